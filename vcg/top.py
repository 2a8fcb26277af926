"""``vcg top``: how a run is doing, dimension by dimension, redrawn while it goes on.

Everything shown is read from the run's shared memory: what the orchestrator's books say (tokens), what the dimensions
tell of their windows (status), what the kernel accounts to them (gauges). The run cannot notice; after attaching
nothing is asked of it any more.

A *reading* is taken at each redraw, and those of the last :data:`SPAN_NS` are kept: rates are differences between the
first and the last of them. Lateness and outcomes come from the window records; these lie in shared memory for a while,
so there is a whole span of them from the first redraw on.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from vcg import gauges, shm
from vcg.attach import Attached
from vcg.gauges import ABSENT, Sample
from vcg.plan import DimensionPlan, Plan
from vcg.shm import Outcome, State
from vcg.watch import QUANTILES, Tally, sigterm_as_interrupt

REDRAW_S = 0.5
SPAN_NS = 3_000_000_000


@dataclass(frozen=True)
class Reading:
    """What shared memory said at one moment.

    Attributes:
        at_ns: CLOCK_MONOTONIC.
        clock, rounds, accounts: counters of the RTD, of the orchestrator, and its accounts.
        tallies: dimension -> its windows since the reading before.
        samples: dimension -> its gauges; None before the first sample.
        states: dimension -> the word of its status page.
        amplitudes, credits_ns: as they are now.
    """

    at_ns: int
    clock: Mapping[str, int]
    rounds: Mapping[str, int]
    accounts: Mapping[str, Mapping[str, int]]
    tallies: Mapping[str, Tally]
    samples: Mapping[str, Sample | None]
    states: Mapping[str, int]
    amplitudes: Mapping[str, float]
    credits_ns: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """One dimension as it is shown; None where nothing can be said.

    Shares of credit (``borrowed_share``, ``lent_share``) relate to the own credit minted in the same time,
    ``balance_share`` and ``owed_share`` to the own credit of one window. ``contained`` counts how often it was demoted
    or frozen in that time, ``behind`` the windows in a row that it has not entered. ``cpu_share`` is of one CPU.
    """

    name: str
    role: str
    window_ns: float
    amplitude: float
    credit_ns: int
    balance_ns: int
    balance_share: float | None
    borrowed_share: float | None
    lent_share: float | None
    owed_ns: int
    owed_share: float | None
    windows: int
    overrun: int
    missed: int
    skipped: int
    lateness_p50_ns: int | None
    lateness_p99_ns: int | None
    state: str
    contained: int
    behind: int
    cpu_share: float | None
    read_bytes_per_s: float | None
    written_bytes_per_s: float | None
    requests_per_s: float | None
    used_bytes: int | None
    memory_bytes: int | None
    tasks: int | None
    totals: Mapping[str, int]


def take(run: Attached) -> Reading:
    """Read everything now."""
    regions = run.regions
    dimensions = run.plan.dimensions
    tallies = {d.name: Tally() for d in dimensions}
    for name, records in regions.drain().items():
        if records:
            tallies[name].add(records)
    state_at = shm.STATUS_HEADER.at("state")
    return Reading(
        time.monotonic_ns(),
        regions.clock(),
        regions.rounds(),
        regions.accounts(),
        tallies,
        {d.name: gauges.read(regions.gauges, d.index) for d in dimensions},
        {name: page[state_at] for name, page in regions.status.items()},
        regions.amplitudes(),
        regions.credits_ns(),
    )


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(plan: Plan, readings: Sequence[Reading]) -> list[Row]:
    """Every dimension, as the readings tell of it; at least one reading."""
    return [_row(d, readings) for d in plan.dimensions]


def _row(d: DimensionPlan, readings: Sequence[Reading]) -> Row:
    first, last = readings[0], readings[-1]
    before, account = first.accounts[d.name], last.accounts[d.name]
    own_ns = account["own_ns"] - before["own_ns"]
    credit_ns = last.credits_ns[d.name]
    tally = Tally.of(reading.tallies[d.name] for reading in readings)
    sample = last.samples[d.name]
    rates = _rates(first.samples[d.name], sample)

    def of_minted(name: str) -> float | None:
        return (account[name] - before[name]) / own_ns if own_ns > 0 else None

    def of_window(name: str) -> float | None:
        return account[name] / credit_ns if credit_ns > 0 else None

    def gauge(name: str) -> int | None:
        value = ABSENT if sample is None else getattr(sample, name)
        return None if value == ABSENT else value

    return Row(
        name=d.name,
        role=d.role,
        window_ns=d.period_ns,
        amplitude=last.amplitudes[d.name],
        credit_ns=credit_ns,
        balance_ns=account["balance_ns"],
        balance_share=of_window("balance_ns"),
        borrowed_share=of_minted("borrowed_ns"),
        lent_share=of_minted("lent_ns"),
        owed_ns=account["owed_ns"],
        owed_share=of_window("owed_ns"),
        windows=tally.windows,
        overrun=tally.outcomes[Outcome.OVERRUN],
        missed=tally.outcomes[Outcome.MISSED],
        skipped=tally.outcomes[Outcome.SKIPPED],
        lateness_p50_ns=tally.lateness_ns(QUANTILES["p50"]),
        lateness_p99_ns=tally.lateness_ns(QUANTILES["p99"]),
        state=_state(last.states[d.name], account, gauge("tasks")),
        contained=account["contained"] - before["contained"],
        behind=account["behind"],
        cpu_share=rates["cpu_usage_ns"] and rates["cpu_usage_ns"] / 1e9,
        read_bytes_per_s=rates["read_bytes"],
        written_bytes_per_s=rates["written_bytes"],
        requests_per_s=rates["requests"],
        used_bytes=gauge("used_bytes"),
        memory_bytes=gauge("memory_bytes"),
        tasks=gauge("tasks"),
        totals=account,
    )


def _rates(before: Sample | None, after: Sample | None) -> dict[str, float | None]:
    """What grew between two samples, for each second; None where there are no two, or no such figure."""
    names = ("cpu_usage_ns", "read_bytes", "written_bytes", "requests")
    if before is None or after is None or after.sampled_ns <= before.sampled_ns:
        return dict.fromkeys(names)
    seconds = (after.sampled_ns - before.sampled_ns) / 1e9

    def rate(name: str) -> float | None:
        was, now = getattr(before, name), getattr(after, name)
        return None if ABSENT in (was, now) else (now - was) / seconds

    return {name: rate(name) for name in names}


def _state(state: int, account: Mapping[str, int], tasks: int | None) -> str:
    """The worst that is to be said of a dimension, in a word."""
    if account["generation"] < 0:
        return "down"
    if state == State.FAILED:
        return "failed"
    if state == State.FINISHED or tasks == 0:
        return "ended"
    if account["held"]:
        return "held"
    return "behind" if account["behind"] > 0 else "ok"


def summary(plan: Plan, start_ns: int, readings: Sequence[Reading]) -> dict[str, Any]:
    """Everything as plain data; names carry the units."""
    dimensions = {row.name: _without_name(row) for row in rows(plan, readings)}
    return {**_overall(plan, start_ns, readings), "dimensions": dimensions}


def _overall(plan: Plan, start_ns: int, readings: Sequence[Reading]) -> dict[str, Any]:
    first, last = readings[0], readings[-1]
    span_ns = last.at_ns - first.at_ns
    rounds = last.rounds["rounds"] - first.rounds["rounds"]
    spent_ns = last.rounds["round_ns_total"] - first.rounds["round_ns_total"]
    ticks = last.clock["head"] - first.clock["head"]
    windows_since_ns = max(start_ns, first.at_ns - SPAN_NS)
    return {
        "testbed": plan.name,
        "base_window_ns": plan.base_window_ns,
        "up_ns": max(0, last.at_ns - start_ns) if start_ns else 0,
        "span_ns": span_ns,
        "windows_span_ns": max(0, last.at_ns - windows_since_ns) if start_ns else 0,
        "ticks_per_s": ticks / span_ns * 1e9 if span_ns else None,
        "rtd": dict(last.clock),
        "orchestrator": {**last.rounds, "round_ns_mean": spent_ns / rounds if rounds else None},
    }


def _without_name(row: Row) -> dict[str, Any]:
    fields = asdict(row)
    del fields["name"]
    return fields


def picture(plan: Plan, start_ns: int, readings: Sequence[Reading], width: int) -> Group:
    """For a terminal of so many columns."""
    return Group(_headline(_overall(plan, start_ns, readings)), *lines(rows(plan, readings), width))


def _headline(told: Mapping[str, Any]) -> Text:
    rounds, clock = told["orchestrator"], told["rtd"]
    parts = [
        f"up {_age(told['up_ns'])}" if told["up_ns"] else "not started",
        f"{_or_dot(told['ticks_per_s'], '{:.0f}'.format)} ticks/s",
        f"RTD behind at most {_short(clock['behind_ns_max'])}",
        f"round {_or_dot(rounds['round_ns_mean'], _short)}, at most {_short(rounds['round_ns_max'])}",
    ]
    return Text.assemble((told["testbed"], "bold"), "  ", "  ".join(parts), no_wrap=True, overflow="ellipsis")


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda row: f"{row.name} #{generation}" if (generation := abs(row.totals["generation"])) > 1 else row.name,
    "win": lambda row: _short(row.window_ns),
    "ampl": lambda row: f"{row.amplitude:.3g}",
    "own": lambda row: _short(row.credit_ns),
    "bal": lambda row: _or_dot(row.balance_share, _percent),
    "borr": lambda row: _or_dot(row.borrowed_share, _percent),
    "lent": lambda row: _or_dot(row.lent_share, _percent),
    "owed": lambda row: _or_dot(row.owed_share, _percent),
    "p50": lambda row: _or_dot(row.lateness_p50_ns, _short),
    "p99": lambda row: _or_dot(row.lateness_p99_ns, _short),
    "over": lambda row: str(row.overrun or "·"),
    "miss": lambda row: str(row.missed or "·"),
    "skip": lambda row: str(row.skipped or "·"),
    "state": lambda row: f"held {row.contained}" if row.contained and row.state in ("ok", "held") else row.state,
    "cpu%": lambda row: _or_dot(row.cpu_share and row.cpu_share * 100, "{:.1f}".format),
    "rd/s": lambda row: _or_dot(row.read_bytes_per_s, _bytes),
    "wr/s": lambda row: _or_dot(row.written_bytes_per_s, _bytes),
    "mem": lambda row: _or_dot(row.memory_bytes, _bytes),
    "task": lambda row: _or_dot(row.tasks, str),
}
_DISPENSABLE = ("task", "mem", "win", "skip", "owed", "rd/s", "wr/s", "ampl")
"""What a narrow terminal is spared, in this order."""
_LEFT = ("", "state")
_STYLES = {"failed": "bold red", "down": "red", "ended": "red", "held": "yellow", "behind": "yellow"}
_WIDE = 120


def lines(shown: Sequence[Row], width: int) -> list[Text]:
    """The table: a heading and a line for each dimension, in so many columns and at most 120."""
    columns = {heading: [heading, *map(show, shown)] for heading, show in _COLUMNS.items()}
    widths = {heading: max(map(len, cells)) for heading, cells in columns.items()}
    for heading in _DISPENSABLE:
        if sum(widths.values()) + len(widths) - 1 > width:
            del widths[heading]
    gap = "  " if sum(widths.values()) + 2 * (len(widths) - 1) <= min(width, _WIDE) else " "

    def line(number: int, style: str) -> Text:
        cells = [
            columns[heading][number].ljust(room) if heading in _LEFT else columns[heading][number].rjust(room)
            for heading, room in widths.items()
        ]
        return Text(gap.join(cells), style=style, no_wrap=True, overflow="ellipsis")

    styles = [_STYLES.get(row.state, "yellow" if row.contained else "") for row in shown]
    return [line(number, style) for number, style in enumerate(["bold", *styles])]


def _or_dot(value: Any, show: Any) -> str:
    return "·" if value is None else show(value)


def _percent(share: float) -> str:
    return f"{round(share * 100)}%"


def _short(duration_ns: float) -> str:
    """At most five characters from 1 us to 1000 s."""
    for unit, size_ns in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        amount = duration_ns / size_ns
        if amount >= 0.9995:
            return f"{amount:.0f}{unit}" if amount >= 9.95 else f"{amount:.1f}".removesuffix(".0") + unit
    return f"{duration_ns:.0f}ns" if duration_ns >= 0.5 else "0"


def _bytes(count: float) -> str:
    """At most five characters up to 999 T."""
    for unit, size in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        amount = count / size
        if amount >= 0.9995:
            return f"{amount:.0f}{unit}" if amount >= 9.95 else f"{amount:.1f}".removesuffix(".0") + unit
    return f"{count:.0f}"


def _age(duration_ns: int) -> str:
    seconds = duration_ns // 1_000_000_000
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def once(run: Attached, console: Console, *, as_json: bool) -> None:
    """Take two readings and print what they show."""
    run.regions.begin_at(SPAN_NS)
    readings = [take(run)]
    time.sleep(REDRAW_S)
    readings.append(take(run))
    if as_json:
        print(json.dumps(summary(run.plan, run.start_ns, readings), indent=2))
    else:
        console.print(picture(run.plan, run.start_ns, readings, console.width))


def follow(run: Attached, console: Console) -> None:
    """Redraw until the run ends, or Ctrl-C; the run goes on then."""
    run.regions.begin_at(SPAN_NS)
    readings = deque([take(run)], maxlen=1 + SPAN_NS // round(REDRAW_S * 1e9))
    try:
        with sigterm_as_interrupt(), Live(console=console, auto_refresh=False) as live:
            while not run.has_ended():
                time.sleep(REDRAW_S)
                readings.append(take(run))
                live.update(picture(run.plan, run.start_ns, readings, console.width), refresh=True)
    except KeyboardInterrupt:
        return
    up_ns = readings[-1].at_ns - run.start_ns
    console.print(f"\n{run.plan.name}: the run has ended" + (f" after {_age(up_ns)}" if run.start_ns else ""))
