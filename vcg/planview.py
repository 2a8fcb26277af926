"""How a plan is shown: what ``vcg plan`` prints for people, and the same as one object for programs.

Three parts: the cadence of each dimension, the edges, and the bounds of each dimension: what it may use and see, what
happens when it goes on without credit or fails, and who lends credit to whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from vcg.harmonics import Edge
from vcg.linux import seccomp
from vcg.plan import DimensionPlan, Plan
from vcg.quantities import format_duration, format_size, show_duration

EDGE_ROWS = 9
"""Rows of the edge table that are shown unless all are asked for."""


def as_object(plan: Plan, listed: Sequence[Edge]) -> Mapping[str, Any]:
    """The plan, its edges and the policy of system calls, of built-in types.

    Args:
        plan: what is shown.
        listed: its edges: those of a hyperperiod, or if it has none, those within the longest window.
    """
    return {
        "plan": asdict(plan),
        "edges_per_hyperperiod": len(listed) if plan.hyperperiod_ns is not None else None,
        "edges": [{"offset_ns": edge.offset_ns, "due": _due_names(plan, edge)} for edge in listed],
        "lending": [[d.name for d in members] for members in _markets(plan.dimensions)],
        "policy": policy(),
    }


def policy() -> list[dict[str, str]]:
    """Which system calls the dimensions are refused, and why."""
    return [line._asdict() for line in seccomp.describe()]


def show(console: Console, plan: Plan, description: str, listed: Sequence[Edge], *, all_edges: bool) -> None:
    """Print a plan.

    Args:
        console: where to.
        plan: what is shown.
        description: of the testbed, in its own words.
        listed: its edges, as for :func:`as_object`.
        all_edges: not only the first :data:`EDGE_ROWS`.
    """
    title = f"[bold]{escape(plan.name)}[/]"
    console.print(f"{title}  {escape(description)}" if description else title)
    windows = sum(edge.due.bit_count() for edge in listed)
    if plan.hyperperiod_ns is not None:
        rhythm = f"hyperperiod {format_duration(plan.hyperperiod_ns)} with {len(listed)} edges for {windows} windows"
    else:
        rhythm = f"endless pattern, generated edge by edge: {len(listed)} in the first of the longest windows"
    console.print(f"base window {format_duration(plan.base_window_ns)}, {rhythm}")
    rounds = "a base window" if plan.rounds == 1 else f"each of {plan.rounds} rounds in a base window"
    console.print(
        f"RTD on CPU {plan.rtd.cpus[0]} (fifo:{plan.rtd.priority}), "
        f"orchestrator on CPU {plan.orchestrator.cpus[0]} (fifo:{plan.orchestrator.priority}) "
        f"at {show_duration(plan.orchestrator_phase_ns)} of {rounds}, "
        f"housekeeping on {_numbers(plan.housekeeping.cpus)}"
    )
    console.print(f"images in {escape(plan.state_root)}, mounts in {escape(plan.mount_root)}\n")
    console.print(_cadence_table(plan.dimensions))
    console.print()
    _show_bounds(console, plan)
    console.print()
    console.print(_edge_table(plan, listed if all_edges else listed[:EDGE_ROWS]))
    if not all_edges and len(listed) > EDGE_ROWS:
        console.print(f"[dim]… and {len(listed) - EDGE_ROWS} more: --edges[/]")


def show_policy(console: Console) -> None:
    """Print which system calls the dimensions are refused, and why."""
    console.print("\n[bold]System calls that a dimension is refused[/]")
    for line in seccomp.describe():
        only = f" [dim]({line.when})[/]" if line.when else ""
        console.print(f"{line.verdict:12} {line.topic}: {line.why}")
        console.print(Padding(f"{line.calls}{only}", (0, 0, 0, 13)))


# ── cadence and edges ────────────────────────────────────────────────────────────────────────────────────────────────
def _cadence_table(dimensions: Iterable[DimensionPlan]) -> Table:
    table = _bare_table()
    for heading in ("", "role"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    table.add_column("f x", justify="right", no_wrap=True, overflow="ellipsis", max_width=8)
    for heading in ("window", "phase", "ampl.", "credit", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("cpu", "node", "sched", "storage", "workload"):
        table.add_column(heading, no_wrap=heading != "workload", overflow="fold")
    for d in dimensions:
        table.add_row(
            d.name,
            escape(d.role),
            d.harmonic,
            show_duration(d.period_ns),
            show_duration(d.phase[0] / d.phase[1]) if d.phase[0] else "0",
            f"{d.amplitude:g}",
            show_duration(d.credit_ns),
            f"{d.credit_ns / d.period_ns:.1%}",
            _numbers(d.cpus),
            str(d.node),
            f"{d.policy}:{d.priority}" if d.priority else d.policy,
            f"{d.storage} {format_size(d.storage_bytes)}",
            escape(d.program[0] if d.program else d.workload.removeprefix("vcg.workloads.").removesuffix(":run")),
        )
    return table


def _edge_table(plan: Plan, listed: Sequence[Edge]) -> Table:
    table = _bare_table()
    table.add_column("edge", justify="right")
    table.add_column("after", justify="right")
    table.add_column("windows that start")
    previous_ns: int | None = None
    for edge in listed:
        after = "" if previous_ns is None else show_duration(edge.offset_ns - previous_ns)
        offset = show_duration(edge.offset_ns) if edge.offset_ns else "0"
        table.add_row(offset, after, " ".join(_due_names(plan, edge)))
        previous_ns = edge.offset_ns
    return table


def _due_names(plan: Plan, edge: Edge) -> list[str]:
    return [d.name for d in plan.dimensions if edge.due & d.bit]


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _show_bounds(console: Console, plan: Plan) -> None:
    """Rows of the same bounds are one; the headings are the words of a testbed file."""
    table = _bare_table()
    table.add_column("")
    for heading in ("memory", "pids", "burst", "floor", "ceiling"):
        table.add_column(heading, justify="right")
    for heading in ("enforce", "restart", "snapshot"):
        table.add_column(heading, no_wrap=heading != "snapshot")
    for bounds, members in groupby(plan.dimensions, _bounds_of):
        table.add_row(_span(members), *map(escape, bounds))
    console.print(table)
    for paths, members in groupby(plan.dimensions, lambda d: d.devices):
        if paths:
            console.print(f"{_span(members)}: has the devices {escape(' '.join(paths))}")
    for paths, members in groupby(plan.dimensions, lambda d: d.binds):
        if paths:
            console.print(f"{_span(members)}: sees of the host, read-only, {escape(' '.join(paths))}")
    for limits, members in groupby(plan.dimensions, lambda d: d.io):
        if limits:
            console.print(f"{_span(members)}: I/O of at most {' '.join(f'{k}={v}' for k, v in limits.items())}")
    lending = "; ".join(" ".join(d.name for d in members) for members in _markets(plan.dimensions))
    console.print(f"credit is lent among {lending or 'nobody: none share their CPUs'}")
    if any(d.snapshot for d in plan.dimensions):
        quota = format_size(plan.snapshots.quota_bytes)
        watchdog = f"watchdog after {plan.snapshots.watchdog} windows missed in a row"
        console.print(f"snapshots in {escape(plan.snapshots.directory)}, at most {quota}; {watchdog}")
    required = ", ".join(plan.testbed.get("require") or ("nothing that it could do without",))
    console.print(f"required of the host: {required}")
    console.print(f"refused to all: system calls of {sum(1 for _ in seccomp.describe())} kinds, see --policy")


def _bounds_of(d: DimensionPlan) -> tuple[str, ...]:
    return (
        format_size(d.memory_bytes),
        str(d.pids),
        *(f"{float(Fraction(*part)):.0%}" for part in (d.burst, d.floor, d.ceiling)),
        _enforcement(d),
        f"{d.restarts} x, after {format_duration(d.backoff_ns)}" if d.restarts else "never",
        " ".join(d.snapshot) or "never",
    )


def _enforcement(d: DimensionPlan) -> str:
    if d.gate == "freezer":
        return "freezer gate"
    return d.enforce if d.enforce == "none" else f"{d.enforce} after {format_duration(d.grace_ns)}"


def _markets(dimensions: Iterable[DimensionPlan]) -> list[list[DimensionPlan]]:
    """Who lends credit to each other: those that may use the same CPUs; who is alone there is left out."""
    by_cpus: dict[tuple[int, ...], list[DimensionPlan]] = {}
    for d in dimensions:
        by_cpus.setdefault(d.cpus, []).append(d)
    return [members for members in by_cpus.values() if len(members) > 1]


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _span(members: Iterable[DimensionPlan]) -> str:
    """Neighbours in the plan, by the first and the last."""
    names = [d.name for d in members]
    return " … ".join(dict.fromkeys((names[0], names[-1])))


def _numbers(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _bare_table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
