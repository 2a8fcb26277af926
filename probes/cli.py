"""``vcg probe``: the probes by themselves, on any process or block device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from probes.errors import ProbeError
from probes.session import PROBES, Session, attach
from probes.snapshot import AgreementRow, HistogramRow, Snapshot
from vcg.cli import parse_option
from vcg.errors import ConfigError, Problem, VcgError
from vcg.histogram import OVERFLOW, bounds, bucket_of, quantile
from vcg.linux.clock import now_ns
from vcg.quantities import show_duration

DEFAULT_LENGTH_NS = 10_000_000_000
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_BAR = 40
_POLL_S = 0.05
_PIPED_WIDTH = 110

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Measure with eBPF what the kernel does to a process or a block device. Needs root.",
)

Pids = Annotated[list[int] | None, typer.Option("--pid", help="Process to follow, with all that it forks. Repeatable.")]
Devices = Annotated[list[str] | None, typer.Option("--device", help="Block device, such as loop3. Repeatable.")]
Length = Annotated[str | None, typer.Option("--for", help="How long, such as 10s (the default) or 500ms.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Command = Annotated[
    list[str] | None,
    typer.Argument(help="After --: a command to follow until it ends; exits as it does."),
]


@app.command()
def sched(pid: Pids = None, length: Length = None, as_json: Json = False, command: Command = None) -> None:
    """Scheduler latency: from wakeup or preemption to being on a CPU.

    Examples:

      vcg probe sched --pid 4711 --for 10s

      vcg probe sched --pid 4711 --pid 4712 --json

      vcg probe sched -- make -j8
    """
    _probe(["sched"], pid, None, length, as_json, command)


@app.command()
def block(device: Devices = None, length: Length = None, as_json: Json = False) -> None:
    """Block I/O: from queue and from issue to completion, by operation.

    Examples:

      vcg probe block --device loop3 --for 10s

      vcg probe block --device loop3 --device loop4 --json
    """
    _probe(["block"], None, device, length, as_json, None)


@app.command()
def migrate(pid: Pids = None, length: Length = None, as_json: Json = False, command: Command = None) -> None:
    """Migrations: of tasks between CPUs and between memory nodes, and of pages.

    Examples:

      vcg probe migrate --pid 4711 --for 10s

      vcg probe migrate -- stress-ng --cpu 4 --timeout 5
    """
    _probe(["migrate"], pid, None, length, as_json, command)


@app.command("all")
def everything(
    pid: Pids = None, device: Devices = None, length: Length = None, as_json: Json = False, command: Command = None
) -> None:
    """All three probes at once.

    Example:

      vcg probe all --pid 4711 --device loop3 --for 30s
    """
    _probe(list(PROBES), pid, device, length, as_json, command)


def _probe(
    names: list[str],
    pids: list[int] | None,
    devices: list[str] | None,
    length: str | None,
    as_json: bool,
    command: list[str] | None,
) -> None:
    wanted = [f"pid {pid}" for pid in dict.fromkeys(pids or [])]
    numbers = {device.removeprefix("/dev/"): _device_number(device) for device in devices or []}
    labels = [*wanted, *(["command"] if command else []), *numbers]
    if not labels:
        expected = "expected --device" if names == ["block"] else "expected --pid, or a command after --"
        what = f"vcg probe {names[0] if len(names) == 1 else 'all'}"
        raise ConfigError([Problem("command line", None, what, "nothing to observe", expected)])
    length_ns = parse_option("--for", length)
    if length_ns is None and not command:
        length_ns = DEFAULT_LENGTH_NS
    if command and shutil.which(command[0]) is None:
        raise ProbeError(f"{command[0]}: no such program: expected one on the PATH, or the path of one")
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=as_json, highlight=False, width=_PIPED_WIDTH)
    with attach(names, dimensions=labels) as session:
        for pid in dict.fromkeys(pids or []):
            session.follow(pid, f"pid {pid}")
        for name, number in numbers.items():
            session.watch_device(*number, name)
        before, after, status = _observe(session, command, length_ns, console)
        delta, agreement = after - before, session.agreement(before, after)
    if as_json:
        print(json.dumps(as_object(delta, agreement), indent=2))
    else:
        _show(names, labels, delta, agreement, console)
    if status:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
        print(f"{command[0] if command else ''} {how}", file=sys.stderr)
        raise typer.Exit(128 - status if status < 0 else status)


def _device_number(device: str) -> tuple[int, int]:
    name = device.removeprefix("/dev/")
    file = Path("/sys/class/block") / name / "dev"
    if "/" in name or not file.is_file():
        raise ProbeError(f"device {device}: not in /sys/class/block (expected a name such as loop3, see lsblk)")
    major, minor = file.read_text().split(":")
    return int(major), int(minor)


def _observe(
    session: Session, command: Sequence[str] | None, length_ns: int | None, console: Console
) -> tuple[Snapshot, Snapshot, int | None]:
    """Wait, with a progress bar, until the time is over, the command has ended, or Ctrl-C or SIGTERM asks to stop.

    Returns:
        What there was before and after, and the exit code of the command: negative for a signal, None if it was not
        its own end that was waited for.
    """
    with _started(command) as child:
        if child:
            session.follow(child.pid, "command")
        before = session.snapshot()
        if child:
            child.go()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("measuring (Ctrl-C to stop)", total=length_ns and length_ns / 1e9)
            try:
                while not (child and child.ended()):
                    passed_ns = now_ns() - before.time_ns
                    if length_ns and passed_ns >= length_ns:
                        break
                    progress.update(bar, completed=passed_ns / 1e9)
                    time.sleep(min(_POLL_S, (length_ns - passed_ns) / 1e9 if length_ns else _POLL_S))
            except KeyboardInterrupt:
                console.print("[dim]stopped: this is what was measured so far[/]")
        return before, session.snapshot(), child.exit_code() if child else None


class _Child:
    """A forked process that executes a command once it is told to."""

    def __init__(self, command: Sequence[str]) -> None:
        self._status: int | None = None
        end, self._start = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.close(self._start)
                if os.read(end, 1):
                    os.execvp(command[0], list(command))
            except OSError as error:
                print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            finally:
                os._exit(127)
        os.close(end)

    def go(self) -> None:
        os.write(self._start, b"x")

    def ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def exit_code(self) -> int | None:
        return os.waitstatus_to_exitcode(self._status) if self._status is not None else None

    def close(self) -> None:
        os.close(self._start)
        if not self.ended():
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)


@contextmanager
def _started(command: Sequence[str] | None) -> Iterator[_Child | None]:
    # SIGTERM ends the measurement as Ctrl-C does, and with it the command, which nobody else would end.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    child = None
    try:
        child = _Child(command) if command else None
        yield child
    finally:
        if child:
            child.close()
        signal.signal(signal.SIGTERM, previous)


def buckets_of(rows: Sequence[HistogramRow]) -> dict[int, int]:
    """Rows of one histogram as a count for each bucket index."""
    return {bucket_of(row.low_ns): row.count for row in rows}


def octaves(buckets: dict[int, int]) -> list[tuple[int, int, int]]:
    """A histogram with one row for each power of two, as (low ns, high ns, count), without gaps."""
    counts: dict[int, int] = {}
    for bucket, count in buckets.items():
        octave = bounds(bucket)[0].bit_length()
        counts[octave] = counts.get(octave, 0) + count
    if not counts:
        return []
    return [
        (1 << (octave - 1) if octave else 0, 1 << octave, counts.get(octave, 0))
        for octave in range(min(counts), max(counts) + 1)
    ]


def as_object(delta: Snapshot, agreement: Sequence[AgreementRow]) -> dict[str, Any]:
    """An interval as one JSON object; quantiles are upper bounds of their buckets."""
    return {
        "duration_ns": delta.duration_ns,
        "quantiles": [
            {"probe": probe, "metric": metric, "dimension": dimension, "operation": operation, "count": total}
            | {name: quantile(buckets, share)[1] for name, share in QUANTILES.items()}  # type: ignore[index]
            for (probe, metric, dimension, operation), buckets in _grouped(delta).items()
            if (total := sum(buckets.values()))
        ],
        "counters": [asdict(row) for row in delta.counters],
        "agreement": [asdict(row) for row in agreement],
        "lost": dict(delta.lost),
        "missed": dict(delta.missed),
        "cost": [asdict(row) for row in delta.cost],
        "histograms": [asdict(row) for row in delta.histograms],
    }


def _grouped(delta: Snapshot) -> dict[tuple[str, str, str, str | None], dict[int, int]]:
    groups: dict[tuple[str, str, str, str | None], list[HistogramRow]] = {}
    for row in delta.histograms:
        groups.setdefault((row.probe, row.metric, row.dimension, row.operation), []).append(row)
    return {key: buckets_of(rows) for key, rows in groups.items()}


def _show(
    names: Sequence[str], labels: Sequence[str], delta: Snapshot, agreement: Sequence[AgreementRow], console: Console
) -> None:
    groups = _grouped(delta)
    console.print(f"[bold]{', '.join(names)}[/] for {show_duration(delta.duration_ns)}")
    for label in labels:
        console.print(f"\n[bold]{label}[/]")
        mine = {key: buckets for key, buckets in groups.items() if key[2] == label}
        if mine:
            console.print(_quantile_table(mine))
        for (_, metric, _, operation), buckets in mine.items():
            console.print(f"\n  {metric}{f' ({operation})' if operation else ''}")
            for line in bars(octaves(buckets)):
                console.print(Text(line))
        counts = [row for row in delta.counters if row.dimension == label and not row.metric.startswith(HIDDEN)]
        figures = [f"{row.metric}{f' {row.operation}' if row.operation else ''} {row.value}" for row in counts]
        shown = [figure for row, figure in zip(counts, figures, strict=True) if row.value]
        console.print(Text(f"  counted: {', '.join(shown) or 'nothing'}"))
        rows = [row for row in agreement if row.dimension == label]
        if rows:
            console.print(_agreement_table(rows))
    _show_cost(delta, console)


HIDDEN = ("runq_latency", "issue_to_complete", "queue_to_complete")
"""Counters that belong to a histogram, which says it better."""


def bars(rows: Sequence[tuple[int, int, int]]) -> list[str]:
    """Lines of an ASCII histogram."""
    most = max((count for _, _, count in rows), default=0)
    top = bounds(OVERFLOW)[0]
    return [
        f"  {show_duration(low) if low else '0ns':>9} .. {show_duration(high) if low < top else 'more':<9} {count:>9} "
        f"|{'*' * round(_BAR * count / most):<{_BAR}}|"
        for low, high, count in rows
    ]


def _quantile_table(groups: dict[tuple[str, str, str, str | None], dict[int, int]]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("metric", "operation"):
        table.add_column(title)
    for title in ("count", *QUANTILES):
        table.add_column(title, justify="right")
    for (_, metric, _, operation), buckets in groups.items():
        found = [quantile(buckets, share) for share in QUANTILES.values()]
        shown = [show_duration(high) for _, high in filter(None, found)]
        table.add_row(metric.removesuffix("_ns"), operation or "", str(sum(buckets.values())), *shown)
    return table


def _agreement_table(rows: Sequence[AgreementRow]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("against the kernel", "measured", "kernel", "difference", "verdict"):
        table.add_column(title, justify="left" if title in ("against the kernel", "verdict") else "right")
    verdicts = {True: "[green]agrees[/]", False: "[red]disagrees[/]", None: "not comparable"}
    for row in rows:
        relative = f"{row.difference / row.oracle:+.2%}" if row.oracle else str(row.difference)
        reason = f": {row.reason}" if row.reason else ""
        table.add_row(row.quantity, str(row.measured), str(row.oracle), relative, f"{verdicts[row.agrees]}{reason}")
    return table


def _show_cost(delta: Snapshot, console: Console) -> None:
    runs, run_ns = sum(row.runs for row in delta.cost), sum(row.run_ns for row in delta.cost)
    lost, missed = sum(delta.lost.values()), sum(delta.missed.values())
    share = run_ns / delta.duration_ns
    each = f"{run_ns / runs:.0f} ns each, {share:.3%} of one CPU" if runs else "no run"
    colour = "red" if lost else "default"
    console.print(f"\n[{colour}]lost events: {lost}[/] (no room); missed: {missed} (another program was running)")
    console.print(f"overhead: {runs} runs, {each}")


def main() -> None:
    """Run as ``python -m probes.cli``."""
    try:
        app()
    except VcgError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
