"""``vcg bench``: run one of the project's benchmarks and print its figures.

The benchmarks are imported when the command is used: they pull in numpy and bcc, for which ``vcg sweep --help`` must
not wait.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.bench.figures import (
    BOOTSTRAP_SEED,
    Benchmark,
    Bounds,
    Comparison,
    Figure,
    Limit,
    Tally,
    Verdict,
)
from experiments.bench.figures import Progress as Report
from vcg import floor

_WIDTH = 160
"""Of what is printed where there is no terminal that could be too narrow."""


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name, in the order in which ``make bench`` runs them."""
    from experiments.bench import (
        abuse,
        borrow,
        crash,
        edge,
        escape,
        hostile,
        mint,
        probe,
        programs,
        rtd,
        shares,
        snapshot,
        up,
    )

    modules = (rtd, edge, up, probe, mint, shares, borrow, hostile, abuse, programs, escape, crash, snapshot)
    return {module.BENCHMARK.name: module.BENCHMARK for module in modules}


def bench(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which one (see --list).")] = None,
    runs: Annotated[
        int | None,
        typer.Option("--runs", "--kills", min=1, help="Runs of each arm, or kills; by default the benchmark's own."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.5, help="Length of a run; by default the benchmark's own.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the random choices of a benchmark that makes some.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write them there as JSON, with the facts of this host.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the names of the benchmarks and what they do.")] = False,
) -> None:
    """Run a benchmark; where there is a peer, both alternate in one go.

    Figures are medians over the runs, with their interval, and the smallest and the largest run; a ratio is the median
    of the ratios in each block. What has a limit is inside, beyond, or undecided: its interval reaches across.
    """
    known = benchmarks()
    if listed:
        for benchmark in known.values():
            print(f"{benchmark.name:8} {benchmark.what}")
        return
    chosen = known.get(name or "")
    if chosen is None:
        raise typer.BadParameter(f"{name!r}: expected one of {', '.join(known)}", param_hint="NAME")
    if seconds is not None and chosen.seconds is None:
        raise typer.BadParameter(f"a run of {chosen.name!r} takes as long as it takes", param_hint="--seconds")
    if seed is not None and not chosen.is_seeded:
        raise typer.BadParameter(f"{chosen.name!r} makes no random choices", param_hint="--seed")
    from experiments.bench import runtime
    from experiments.manifest import host_facts
    from experiments.store import write_durably

    manifest = host_facts() if out else {}  # now: in five minutes the source tree may be another
    runs, seconds = runs or chosen.runs, seconds or chosen.seconds
    with _progress(runs * chosen.arms) as report:
        figures = chosen.measure(runs, seconds or 0.0, report, *((seed,) if chosen.is_seeded else ()))
    host = describe_host()
    if seed is None:  # what a benchmark chose itself is one of its figures
        seed = next((int(figure.value) for figure in figures if figure.name == "seed"), None)
    shown = {
        "bench": chosen.name,
        "runs": runs,
        "arguments": {"runs": runs, "seconds": seconds, "seed": seed},
        "host": host,
        "intervals": describe_intervals(),
        "figures": [figure.as_dict() for figure in figures],
    }
    if out is not None:
        whole = {**shown, "testbeds": runtime.planned, "manifest": manifest}
        write_durably(out, (json.dumps(whole, indent=1) + "\n").encode())
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        _print(chosen, runs, host, figures)


def describe_host() -> dict[str, Any]:
    """Where the figures were made; figures of two hosts, or of two days, are not comparable."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {**asdict(floor.identity()), "cpus": len(os.sched_getaffinity(0)), "date": date}


def describe_intervals() -> dict[str, float]:
    """How the intervals of the figures are made, see :func:`experiments.stats.interval`."""
    from experiments import stats

    return {
        "confidence": stats.CONFIDENCE,
        "resamples": stats.RESAMPLES,
        "seed": BOOTSTRAP_SEED,
        "fewest_runs": stats.minimum_pairs(),
    }


@contextmanager
def _progress(steps: int) -> Iterator[Report]:
    """A progress bar on stderr; yields what a benchmark calls before each of its steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=steps)
        begun = count()

        def report(arm: str) -> None:
            bar.update(task, completed=next(begun), description=arm)

        yield report


def _print(benchmark: Benchmark, runs: int, host: dict[str, Any], figures: list[Figure]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("figure", no_wrap=True)
    intervals = describe_intervals()
    confidence = f"{intervals['confidence']:.0%}"
    for heading in ("median", confidence, "of runs", "peer", "ratio", confidence, "of blocks"):
        table.add_column(heading, justify="right")
    for figure in figures:
        show = partial(readable, unit=figure.unit)
        interval = _between(figure.interval, show) if figure.values else ""
        cells = [show(figure.value), interval, _between((figure.low, figure.high), show)]
        if isinstance(figure, Comparison):
            cells += [show(figure.peer_value), readable_ratio(figure.ratio)]
            cells += [
                _between(b, readable_ratio) for b in (figure.ratio_interval, (figure.ratio_low, figure.ratio_high))
            ]
        table.add_row(figure.name, *cells)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(f"[bold]{benchmark.name}[/]: {benchmark.what}")
    console.print(f"{runs} runs on {host['cpu_model']} ({host['cpus']} CPUs), Linux {host['kernel']}, {host['date']}\n")
    console.print(table)
    if any(figure.values and not figure.interval for figure in figures):
        console.print(f"[dim]-: no interval, fewer than {intervals['fewest_runs']} runs decide nothing[/]")
    limits = Table("limit of", "", "verdict", box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for figure in figures:
        if figure.limit and figure.verdict:
            limits.add_row(figure.name, readable_limit(figure.limit, figure.unit), readable_verdict(figure.verdict))
    if limits.row_count:
        console.print(limits)
    for tally in [figure for figure in figures if isinstance(figure, Tally) and figure.rows]:
        listing = Table(*tally.headings, box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        for row in tally.rows:
            listing.add_row(*row)
        console.print(listing)
    for peer in dict.fromkeys(figure.peer for figure in figures if isinstance(figure, Comparison)):
        console.print(f"[dim]peer: {peer}[/]")


def readable(value: float, unit: str) -> str:
    """A value for people: nanoseconds in the unit that suits their size, shares in percent."""
    if unit == "1":
        return f"{value:.3%}"
    if unit != "ns":
        return f"{value:g} {unit}"
    for size, larger in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if abs(value) >= size:
            return f"{value / size:.3g} {larger}"
    return f"{value:.3g} ns"


def readable_ratio(ratio: float) -> str:
    """A ratio for people: two decimals, or two significant digits where that would hide it."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def readable_limit(limit: Limit, unit: str) -> str:
    """A limit for people."""
    show, what = (readable_ratio, "ratio ") if limit.of_ratio else (partial(readable, unit=unit), "")
    bounds = (("at least", limit.least), ("at most", limit.most))
    return what + ", ".join(f"{words} {show(bound)}" for words, bound in bounds if bound is not None)


def readable_verdict(verdict: Verdict) -> str:
    """A verdict for people."""
    if verdict.outcome != "undecided":
        return verdict.outcome
    if verdict.more_runs is None:
        return "undecided, and no telling how many runs would decide"
    return f"undecided, about {verdict.more_runs:,} more runs would decide"


def _between(bounds: Bounds | None, show: Callable[[float], str]) -> str:
    return f"{show(bounds[0])} - {show(bounds[1])}" if bounds else "-"
