"""``vcg snapshot``: what snapshots there are, and what one of them holds; for people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcg import snapshot
from vcg.errors import RunError
from vcg.printable import printable
from vcg.quantities import show_duration

WINDOWS_SHOWN = 10
KERNEL_LINES_SHOWN = 10
LOG_LINES_SHOWN = 10


def show_taken(taken: Iterable[Mapping[str, Any]], console: Console, *, as_json: bool) -> None:
    """Those that have just been taken on demand (:meth:`vcg.attach.Attached.snapshot`)."""
    if as_json:
        print(json.dumps({"snapshots": list(taken)}, indent=2))
        return
    for one in taken:
        took, held = show_duration(one["took_ns"]), show_duration(one["frozen_for_ns"])
        console.print(f"{one['dimension']}: {_size(one['bytes'])} in {took}, frozen for {held}")
        console.print(one["path"], markup=False, soft_wrap=True)


def show_all(directory: Path, console: Console, *, as_json: bool) -> None:
    """Every snapshot in a directory, oldest first."""
    rows = [_row(one) for one in snapshot.listed(directory)]
    if as_json:
        print(json.dumps({"directory": str(directory), "snapshots": rows}, indent=2))
        return
    if not rows:
        console.print(f"no snapshots in {directory} (another place: --directory PATH)", markup=False, soft_wrap=True)
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("snapshot", "testbed", "why", "detail"):
        table.add_column(heading, no_wrap=heading != "detail")
    table.add_column("size", justify="right", no_wrap=True)
    for row in rows:
        cells = (row["name"], row["testbed"], row["why"], row["detail"])
        table.add_row(*(escape(printable(str(cell))) for cell in cells), _size(row["bytes"]))
    console.print(table)
    console.print(f"in {directory}, {_size(sum(row['bytes'] for row in rows))} in all", markup=False, soft_wrap=True)


def _row(one: snapshot.Snapshot) -> dict[str, Any]:
    row = {"name": one.path.name, "path": str(one.path), "bytes": one.bytes, "dimension": one.dimension, "why": one.why}
    try:
        papers = one.papers()
    except RunError as error:
        return {**row, "testbed": "", "detail": str(error)}
    return {**row, "testbed": papers["testbed"], "detail": papers["detail"]}


def show(path: Path, console: Console, *, as_json: bool) -> None:
    """What a snapshot holds.

    Raises:
        RunError: it is none, or is damaged.
    """
    papers = snapshot.read_papers(path)
    if as_json:
        print(json.dumps(papers, indent=2))
        return
    folder = path if path.is_dir() else path.parent
    process, contents = papers["process"], papers["contents"]
    detail = f": {papers['detail']}" if papers["detail"] else ""
    about = printable(f" of {papers['testbed']}, {papers['why']}{detail}")
    console.print(f"[bold]{papers['dimension']}[/]{escape(about)}")
    since = ""
    if papers["run_start_ns"] and papers["monotonic_ns"] > papers["run_start_ns"]:
        since = f", {show_duration(papers['monotonic_ns'] - papers['run_start_ns'])} after the start"
    held = f"frozen for {show_duration(papers['frozen_for_ns'])}"
    rest = "" if papers["at_rest"] else ", but not at rest: something in it could go on while it was copied"
    console.print(f"{papers['utc']}{since}; {held}{rest}")
    console.print(f"epoch {papers['epoch']}, generation {papers['generation']}, pid {process['pid']}")
    if process.get("said"):
        console.print(printable(process["said"]), markup=False, style="dim")
    console.print(f"{contents['file']}: {contents['method']}")
    if contents.get("omitted"):
        first = printable(contents["omitted_first"][0])
        console.print(f"left out of it: {contents['omitted']}; {first}", markup=False)
    _show_windows(papers["windows"], console)
    account = papers["ledger"]["account"]
    told = ", ".join(f"{field} {value}" for field, value in account.items() if value)
    console.print(f"\n[bold]Ledger[/] {told}")
    _show_lines("Kernel", [line["text"] for line in papers["kernel"].get("lines", ())][-KERNEL_LINES_SHOWN:], console)
    log = folder / snapshot.LOG
    if log.exists():
        lines = log.read_text(errors="replace").splitlines()
        _show_lines("Log", lines[-LOG_LINES_SHOWN:], console)
    _show_lines("To look into it", papers["open"], console)


def _show_windows(windows: list[dict[str, Any]], console: Console) -> None:
    counts: dict[str, int] = {}
    for window in windows:
        counts[str(window["outcome"])] = counts.get(str(window["outcome"]), 0) + 1
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    console.print(f"\n[bold]Windows[/] the last {len(windows)}: {summary or 'none'}")
    if not windows:
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("window", "outcome", "cause", "late", "used", "credit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for window in windows[-WINDOWS_SHOWN:]:
        late_ns = window["entry_ns"] - window["planned_ns"]
        used = (show_duration(ns) if ns > 0 else "" for ns in (window["used_ns"], window["budget_ns"]))
        late = show_duration(late_ns) if window["entry_ns"] > 0 and late_ns > 0 else ""
        cause = "" if window["cause"] == "none" else str(window["cause"])
        table.add_row(str(window["window"]), str(window["outcome"]), cause, late, *used)
    console.print(table)


def _show_lines(title: str, lines: list[str], console: Console) -> None:
    if lines:
        console.print(f"\n[bold]{title}[/]")
    for line in lines:
        console.print(printable(line), markup=False, soft_wrap=True)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
