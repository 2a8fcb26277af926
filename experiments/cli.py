"""``vcg sweep``, ``vcg report`` and ``vcg bench``: the commands that this package adds to ``vcg``."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from experiments.bench.cli import bench as bench

if TYPE_CHECKING:
    from experiments.plan import SweepFile
    from experiments.store import Results

sweep_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Run sweeps over a testbed: trials in randomised blocks."
)
_INTERRUPTED = 130


@sweep_app.command("list")
def list_sweeps(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the sweeps that are part of the package."""
    from experiments import plan, runner

    rows: list[dict[str, Any]] = []
    for name in plan.ready_sweeps():
        file = plan.load(name)
        planned = plan.trials(plan.configurations(file), file.sweep.repetitions, 0)
        rows.append(
            {
                "name": name,
                "description": file.sweep.description,
                "trials": len(planned),
                "estimate_s": round(runner.estimate_s(planned)),
            }
        )
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("sweep", "trials", "takes about", "what for", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], str(row["trials"]), _duration(row["estimate_s"]), row["description"])
    Console().print(table)


@sweep_app.command("run")
def run(
    sweep: Annotated[str, typer.Argument(help="A ready sweep (see: vcg sweep list), or a TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Results directory; one that exists is resumed. [default: results/SWEEP-TIME]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the trials in their order; run none.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Result as JSON, no progress bar.")] = False,
) -> None:
    """Run a sweep, or go on with one that was stopped.

    Finished trials are never repeated. Ctrl-C keeps them; run the same command again to go on.
    """
    from experiments import plan, report, runner, store

    file = plan.load(sweep)
    directory = out or Path("results") / f"{file.sweep.name}-{datetime.now():%Y%m%d-%H%M%S}"
    console = Console(stderr=as_json)
    if dry_run:
        _show_plan(file, directory, console, as_json)
        return
    with _progress(console) as bar:
        task = bar.add_task("", total=None, done="preparing", left="", trial="", void="")

        def show(event: runner.Event) -> None:
            part = event.progress.passed_s / event.progress.total_s if event.progress else 0.0
            rerun = f", rerun {event.attempt}" if event.attempt else ""
            bar.update(
                task,
                total=event.total,
                completed=event.done + part,
                done=f"{event.done} of {event.total} trials",
                left=f"{_duration(event.left_s)} left",
                trial=f"{event.trial.configuration.label} (block {event.trial.block}{rerun})",
                void=f"{event.void} void" if event.void else "",
            )

        ending = runner.run(file, directory, show)
        bar.update(task, done=f"{ending.stored} trials", left="writing report", trial="")
        page = report.write(directory) if ending.stored else None
    if ending.interrupted:
        console.print(f"Stopped. {ending.stored} finished trials are kept, {ending.remaining} are left to run.")
        console.print(f"To go on: vcg sweep run {sweep} --out {directory}", soft_wrap=True)
        raise typer.Exit(_INTERRUPTED)
    results = store.Results(directory)
    rows = report.dimension_rows(results)
    if as_json:
        found = {"results": str(directory), "report": str(page), "trials": ending.stored, "dimensions": rows}
        print(json.dumps(_without_nan(found), allow_nan=False))
        return
    _show_lateness(rows, results, console)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


def report(
    directory: Annotated[Path, typer.Argument(help="A results directory of `vcg sweep run`.")],
) -> None:
    """Make the report of a results directory again; print its path."""
    from experiments import report as report_module

    print(report_module.write(directory))


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.fields[done]}", table_column=Column(no_wrap=True, min_width=12)),
        TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True, min_width=12)),
        TextColumn("[yellow]{task.fields[void]}", table_column=Column(no_wrap=True, min_width=6)),
        TextColumn("[dim]{task.fields[trial]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=console,
        expand=True,
        disable=console.stderr,
    )


def _show_plan(file: SweepFile, directory: Path, console: Console, as_json: bool) -> None:
    from experiments import runner

    manifest, _, planned = runner.prepare(file, directory)
    if as_json:
        rows = [
            {"trial": t.id, "block": t.block, "position": t.position, "levels": dict(t.configuration.levels)}
            for t in planned
        ]
        print(json.dumps({"seed": manifest["seed"], "estimate_s": runner.estimate_s(planned), "trials": rows}))
        return
    axes = list(file.sweep.axes)
    table = Table("block", "trial", *axes, box=None, pad_edge=False)
    for trial in planned:
        table.add_row(str(trial.block), trial.id, *(trial.configuration.levels[axis] for axis in axes))
    console.print(table)
    chosen = "" if file.sweep.seed is not None else " (chosen now; a run without a seed in its file chooses its own)"
    console.print(
        f"{len(planned)} trials, about {_duration(runner.estimate_s(planned))}; seed {manifest['seed']}{chosen}",
        highlight=False,
        soft_wrap=True,
    )


def _show_lateness(rows: list[dict[str, Any]], results: Results, console: Console) -> None:
    from experiments.plots import format_ns
    from experiments.report import format_share

    void = int(results.trials["void"].sum())
    table = Table(
        "dimension",
        "role",
        "p50",
        "p90",
        "p99",
        "missed",
        box=None,
        pad_edge=False,
        title="lateness",
        title_justify="left",
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            str(row["dimension"]),
            str(row["role"]),
            format_ns(row["lateness_p50_ns"]),
            format_ns(row["lateness_p90_ns"]),
            format_ns(row["lateness_p99_ns"]),
            format_share(row["missed_share"]),
        )
    console.print(table)
    console.print(
        f"medians over {len(results.records) - void} trials ({void} void); –: too few windows in some trial for that "
        "quantile; never: more windows than that were missed",
        highlight=False,
        soft_wrap=True,
    )


def _without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
