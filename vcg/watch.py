"""What a run looks like from outside: its windows summed up, dimension by dimension, while they happen.

Lateness is kept in log-linear histograms (at most 1/32 off), so the summary of a run of days is as small as that of a
second.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import compress
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vcg import histogram, shm, unit
from vcg.errors import RunError
from vcg.lookout import is_alive
from vcg.plan import DimensionPlan, Plan
from vcg.printable import printable
from vcg.quantities import format_duration, show_duration
from vcg.run import Run, told_of
from vcg.shm import Cause, Outcome, Phase

REDRAW_PER_S = 2
_DRAIN_S = 0.1

_OUTCOME, _PLANNED = shm.WINDOW.at("outcome"), shm.WINDOW.at("planned_ns")
_PHASE = shm.TICKS_HEADER.at("phase")
_CAUSE = shm.WINDOW.at("cause")
_ENTRY, _BUDGET, _USED = shm.WINDOW.at("entry_ns"), shm.WINDOW.at("budget_ns"), shm.WINDOW.at("used_ns")
QUANTILES = {"p50": 0.5, "p99": 0.99}


class Tally:
    """One dimension's windows so far."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.causes = dict.fromkeys(Cause, 0)
        self.refused = 0
        self.unrecorded = 0
        self.lateness: dict[int, int] = {}
        self.budget_ns = self.used_ns = 0
        self.lateness_max_ns = 0

    def add(self, records: bytes) -> None:
        """Count window records as :meth:`vcg.run.Run.drain` returns them."""
        words = memoryview(records).cast("q").tolist()
        columns = (words[at :: shm.WINDOW_WORDS] for at in (_OUTCOME, _CAUSE, _PLANNED, _ENTRY, _BUDGET, _USED))
        outcomes, causes, planned, entries, budgets, used = columns
        kinds = list(zip(outcomes, causes, strict=True))
        entered = set()
        for kind, count in Counter(kinds).items():
            try:
                outcome, cause = Outcome(kind[0]), Cause(kind[1])
            except ValueError:  # a dimension writes what it likes
                self.refused += count
                continue
            self.outcomes[outcome] += count
            self.causes[cause] += count
            if outcome in (Outcome.DONE, Outcome.OVERRUN):
                entered.add(kind)
        mine = [kind in entered for kind in kinds]
        self.budget_ns += sum(compress(budgets, mine))
        self.used_ns += sum(compress(used, mine))
        lateness = [max(0, entry - plan) for entry, plan in compress(zip(entries, planned, strict=True), mine)]
        self.lateness_max_ns = max(self.lateness_max_ns, *lateness, 0)
        for bucket, count in Counter(map(histogram.bucket_of, lateness)).items():
            self.lateness[bucket] = self.lateness.get(bucket, 0) + count

    @classmethod
    def of(cls, parts: Iterable[Tally]) -> Tally:
        """The sum of tallies."""
        total = cls()
        for part in parts:
            for outcome, count in part.outcomes.items():
                total.outcomes[outcome] += count
            for cause, count in part.causes.items():
                total.causes[cause] += count
            for bucket, count in part.lateness.items():
                total.lateness[bucket] = total.lateness.get(bucket, 0) + count
            total.refused += part.refused
            total.unrecorded += part.unrecorded
            total.budget_ns += part.budget_ns
            total.used_ns += part.used_ns
            total.lateness_max_ns = max(total.lateness_max_ns, part.lateness_max_ns)
        return total

    @property
    def windows(self) -> int:
        return sum(self.outcomes.values()) + self.unrecorded

    @property
    def missed(self) -> int:
        return self.outcomes[Outcome.MISSED] + self.unrecorded

    def lateness_ns(self, share: float) -> int | None:
        """A quantile of the lateness: the upper bound of its bucket; None before the first window."""
        bucket = histogram.quantile(self.lateness, share)
        return min(bucket[1], self.lateness_max_ns) if bucket else None

    def summary(self) -> dict[str, Any]:
        """The tally as plain data; names carry the units."""
        counts = {outcome.name.lower(): count for outcome, count in self.outcomes.items()} | {"missed": self.missed}
        causes = {f"missed_{cause.name.lower()}": self.causes[cause] for cause in Cause if cause is not Cause.NONE}
        causes["missed_unrecorded"] = self.unrecorded
        quantiles = {f"lateness_{name}_ns": self.lateness_ns(share) for name, share in QUANTILES.items()}
        worst = {"lateness_max_ns": self.lateness_max_ns if self.lateness else None}
        return {
            "windows": self.windows,
            **counts,
            **causes,
            **quantiles,
            **worst,
            "budget_ns": self.budget_ns,
            "used_ns": self.used_ns,
            "refused_records": self.refused,
        }


class Watch:
    """Every dimension's tally."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tallies = {d.name: Tally() for d in plan.dimensions}

    def add(self, drained: Mapping[str, bytes]) -> None:
        for name, records in drained.items():
            self.tallies[name].add(records)

    def note_unrecorded(self, windows: Mapping[str, int]) -> None:
        """Windows that nobody has left a record of, and nobody will: see :meth:`vcg.regions.Regions.unrecorded`."""
        for name, many in windows.items():
            self.tallies[name].unrecorded = many

    def table(self) -> Table:
        """For the terminal, at most 100 columns wide."""
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("")
        for heading in ("window", "windows", "done", "overrun", "missed", "skipped"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("late p50 us", "p99 us", "max us", "credit used"):
            table.add_column(heading, justify="right", no_wrap=True)
        for d in self.plan.dimensions:
            table.add_row(*_row(d, self.tallies[d.name]))
        return table


def _row(d: DimensionPlan, tally: Tally) -> list[str]:
    counts = [tally.missed if outcome is Outcome.MISSED else tally.outcomes[outcome] for outcome in Outcome]
    lateness = [*(tally.lateness_ns(share) for share in QUANTILES.values()), tally.lateness_max_ns or None]
    return [
        d.name,
        show_duration(d.period_ns),
        str(tally.windows),
        *(str(count) if count else "·" for count in counts),
        *("" if ns is None else f"{ns / 1000:.0f}" for ns in lateness),
        f"{tally.used_ns / tally.budget_ns:.0%}" if tally.budget_ns else "",
    ]


class Ending(NamedTuple):
    """How a run ended that somebody followed: by Ctrl-C or SIGTERM, or by a failure; and its result as plain data."""

    interrupted: bool
    failure: RunError | None
    result: dict[str, Any]


def follow(plan: Plan, length_ns: int | None, console: Console, *, quiet: bool) -> Ending:
    """Run a plan and show its tallies until the time is up, Ctrl-C or SIGTERM, or a failure.

    What was seen until a failure is shown, and part of the result, as after any other end.

    Args:
        length_ns: how long to tick; None is until interrupted.
        quiet: show nothing while it runs.

    Raises:
        RunError: it could not be brought up, or not be taken down.
    """
    watch = Watch(plan)
    interrupted, failure = False, None
    result: dict[str, Any] = {}
    began = time.monotonic()
    try:
        with _live(console, quiet) as live, sigterm_as_interrupt(), Run(plan) as run:
            up_s = time.monotonic() - began
            before = run.statistics()
            start_ns = run.start()
            end_ns = None if length_ns is None else start_ns + length_ns
            try:
                unit.notify("READY=1")
                while end_ns is None or time.monotonic_ns() < end_ns:
                    left_s = _DRAIN_S if end_ns is None else (end_ns - time.monotonic_ns()) / 1e9
                    time.sleep(max(0.0, min(_DRAIN_S, left_s)))
                    watch.add(run.drain())
                    run.check()
                    live.update(Group(watch.table(), _progress(start_ns, end_ns)))
            except KeyboardInterrupt:
                interrupted = True
            except RunError as error:
                failure = error
            unit.notify("STOPPING=1")
            if failure:
                live.update(Group(watch.table(), Text(f"\n{_first_line(failure)}; the run ends …", style="bold")))
            try:
                run.halt()
            except RunError as error:
                failure = failure or error
            watch.add(run.drain())
            if run.ticks[_PHASE] != Phase.RUN:
                watch.note_unrecorded(run.regions.unrecorded())
            unrecorded = [name for name, tally in watch.tallies.items() if tally.unrecorded]
            ticked_ns = time.monotonic_ns() - start_ns
            result |= {
                "testbed": plan.name,
                "interrupted": interrupted,
                "failed": failure and str(failure),
                "up_s": round(up_s, 3),
                "ticked_ns": ticked_ns,
                "dimensions": {name: tally.summary() for name, tally in watch.tallies.items()},
                "records_lost": run.records_lost,
                "finished": run.regions.finished(),
                "hung": [name for name in unrecorded if is_alive(run.dimension_pids[name])],
                **(after := run.statistics()),
                "resident_bytes_before": before["resident_bytes"],
            }
            spent_ns = sum(after["cpu_ns"].get(name, 0) for name in ("rtd", "orchestrator"))
            spent_ns -= sum(before["cpu_ns"][name] for name in ("rtd", "orchestrator"))
            result["clock_cpu_share"] = spent_ns / ticked_ns if spent_ns > 0 else None  # one of them may have died
            live.update(watch.table())
    except (KeyboardInterrupt, RunError) as error:
        if failure is None:
            raise
        if not result:
            raise failure from None
        if isinstance(error, RunError):  # and while the run that has failed is taken down, Ctrl-C hides nothing
            failure.add_note(str(error))
    result["snapshots"] = list(run.snapshots)  # with those that the end of the run has waited for
    if not quiet:
        for line in _summary(plan, watch, result, start_ns):
            console.print(line, markup=False, soft_wrap=True)
    return Ending(interrupted, failure, result)


def _first_line(error: RunError) -> str:
    return printable(str(error).splitlines()[0])


def _summary(plan: Plan, watch: Watch, result: Mapping[str, Any], start_ns: int) -> Iterator[str]:
    """What there is to say of a run beside its table, a line each."""
    share = result["clock_cpu_share"]
    yield (
        f"\n{plan.name}: up in {result['up_s']:.2f} s, ticked for {show_duration(result['ticked_ns'])}; "
        f"{result['rtd']['head']} ticks"
        + ("" if share is None else f", RTD and orchestrator together {share:.1%} of one CPU")
    )
    if result["retuned"]:
        yield f"changed while it ran: {changes(result['retuned'], start_ns)}"
    yield from restarts(result["restarts"], start_ns)
    yield from lost_services(result["lost_services"], start_ns)
    for name in result["finished"]:
        yield f"{name}: its program ended with 0 before the run did; since then its windows went by without it"
    yield from map(told_of, result["snapshots"])
    tallies = watch.tallies
    if lost := sum(result["records_lost"].values()) + sum(tally.refused for tally in tallies.values()):
        yield f"{lost} records were lost or refused: the table is not complete"
    missed = {cause: sum(tally.causes[cause] for tally in tallies.values()) for cause in Cause}
    if sum(missed.values()) > missed[Cause.NONE]:
        yield (
            f"missed: {missed[Cause.BUSY]} still busy with an earlier window, {missed[Cause.LATE]} on the CPU too "
            f"late, {missed[Cause.NO_TOKEN]} without a token, {missed[Cause.DOWN]} while their process was down"
        )
    for name, tally in tallies.items():
        if tally.unrecorded:
            which = f"{tally.unrecorded} windows, from number {tally.windows - tally.unrecorded} on, have no record"
            why = "it has not left one of them" if name in result["hung"] else "its process had ended"
            yield f"{name}{' hung' if name in result['hung'] else ''}: {which}: {why}"


def restarts(failures: Iterable[Mapping[str, Any]], start_ns: int) -> Iterator[str]:
    """A line for each process that was to be replaced (:attr:`vcg.run.Run.restarts`)."""
    for one in failures:
        said = f": {printable(one['message'].splitlines()[0])}" if one["message"] else ""
        stuck = f" ({one['stuck']})" if "stuck" in one else ""
        then = f"the run ended before another could take its place{stuck}"
        if one["up_ns"] is not None:
            after = show_duration(max(1, one["up_ns"] - one["died_ns"]))
            then = f"restarted after {after} (generation {one['generation']})"
        yield f"{one['name']} {one['how']} {_when(one['died_ns'], start_ns)}{said}; {then}"


def lost_services(lost: Iterable[Mapping[str, Any]], start_ns: int) -> Iterator[str]:
    """A line for each service that the run went on without (:attr:`vcg.run.Run.lost_services`)."""
    for one in lost:
        yield f"{one['name']} {one['how']} {_when(one['at_ns'], start_ns)}; the run went on without it"


def _when(at_ns: int, start_ns: int) -> str:
    return f"after {show_duration(at_ns - start_ns)}" if at_ns > start_ns else "before the start"


def changes(retuned: Iterable[Mapping[str, Any]], start_ns: int) -> str:
    """Changes of amplitudes (:attr:`vcg.run.Run.retuned`) in a line; those made together stand together."""
    together: dict[tuple[int, float], list[str]] = {}
    for change in retuned:
        together.setdefault((change["at_ns"], change["amplitude"]), []).append(change["name"])
    return "; ".join(
        f"amplitude of {', '.join(names)} to {amplitude:g} {_when(at_ns, start_ns)}"
        for (at_ns, amplitude), names in together.items()
    )


def _progress(start_ns: int, end_ns: int | None) -> Text:
    gone = show_duration(max(1, time.monotonic_ns() - start_ns))
    if end_ns is None:
        return Text(f"\n{gone}; Ctrl-C ends the run", style="dim")
    return Text(f"\n{gone} of {format_duration(end_ns - start_ns)}; Ctrl-C ends it early", style="dim")


@contextmanager
def _live(console: Console, quiet: bool) -> Iterator[Live]:
    live = Live(console=console, refresh_per_second=REDRAW_PER_S)
    if quiet:
        yield live
        return
    with live:
        yield live


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Inside the block SIGTERM does what Ctrl-C does: it ends things in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
