"""``vcg bench``: run one of the project's benchmarks and print its figures.

The benchmarks are imported when the command is used: they pull in numpy and bcc, for which ``vcg sweep --help`` must
not wait.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.bench.figures import Benchmark, Comparison, Figure, Tally
from experiments.bench.figures import Progress as Report
from vcg import floor


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

    Figures are medians over the runs, with the smallest and the largest run; a ratio is that of the two medians.
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
    runs, seconds = runs or chosen.runs, seconds or chosen.seconds or 0.0
    with _progress(runs * chosen.arms) as report:
        figures = chosen.measure(runs, seconds, report, *((seed,) if chosen.is_seeded else ()))
    host = describe_host()
    shown = {"bench": chosen.name, "runs": runs, "host": host, "figures": [figure.as_dict() for figure in figures]}
    if out is not None:
        from experiments.manifest import host_facts
        from experiments.store import write_durably

        write_durably(out, (json.dumps({**shown, "manifest": host_facts()}, indent=1) + "\n").encode())
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        _print(chosen, runs, host, figures)


def describe_host() -> dict[str, Any]:
    """Where the figures were made; figures of two hosts, or of two days, are not comparable."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {**asdict(floor.identity()), "cpus": len(os.sched_getaffinity(0)), "date": date}


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
    for heading in ("median", "of runs", "peer", "ratio", "of blocks"):
        table.add_column(heading, justify="right")
    for figure in figures:
        value, low, high = (readable(v, figure.unit) for v in (figure.value, figure.low, figure.high))
        cells = [value, f"{low} - {high}"]
        if isinstance(figure, Comparison):
            cells.append(readable(figure.peer_value, figure.unit))
            cells += [
                readable_ratio(figure.ratio),
                f"{readable_ratio(figure.ratio_low)} - {readable_ratio(figure.ratio_high)}",
            ]
        table.add_row(figure.name, *cells)
    console = Console(highlight=False)
    console.print(f"[bold]{benchmark.name}[/]: {benchmark.what}")
    console.print(f"{runs} runs on {host['cpu_model']} ({host['cpus']} CPUs), Linux {host['kernel']}, {host['date']}\n")
    console.print(table)
    for tally in [figure for figure in figures if isinstance(figure, Tally)]:
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
