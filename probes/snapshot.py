"""What the probes have counted up to a moment, the difference of two such moments, and what the kernel says of it.

Pure data: rows are frozen dataclasses, and metrics carry their unit in the name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from probes.errors import ProbeError


@dataclass(frozen=True)
class HistogramRow:
    """One filled bucket: ``count`` values from ``low_ns`` (inclusive) to ``high_ns`` (exclusive)."""

    probe: str
    metric: str
    dimension: str
    operation: str | None
    low_ns: int
    high_ns: int
    count: int


@dataclass(frozen=True)
class CounterRow:
    """One count or sum; the unit is in the metric's name, a bare noun counts things."""

    probe: str
    metric: str
    dimension: str
    operation: str | None
    value: int


@dataclass(frozen=True)
class CostRow:
    """What one BPF program cost: how often it ran, and for how long in all (BPF run-time statistics).

    ``missed`` counts the events for which the kernel did not run it, because another program was running on that CPU.
    """

    probe: str
    program: str
    runs: int
    run_ns: int
    missed: int


@dataclass(frozen=True)
class AgreementRow:
    """A figure of ours beside the kernel's own for the same interval.

    Attributes:
        agrees: None where they can't be compared; ``reason`` says why.
        difference: measured minus oracle.
        tolerance: largest absolute difference that counts as agreement.
        reason: what was left out of the comparison, or why there is none; empty if nothing.
    """

    probe: str
    quantity: str
    dimension: str
    measured: int
    oracle: int
    difference: int
    tolerance: int
    agrees: bool | None
    reason: str


@dataclass(frozen=True)
class Reading:
    """One followed task or watched device: our figures, and the kernel's at the same moment.

    Attributes:
        since_ns: when it began to be followed; another value means another task with the same id.
        measured: figures of ours since then.
        oracle: the kernel's figures of the same names; None if it had gone before they could be read.
        origin: the kernel's figures at ``since_ns``.
        steady: ours were the same before and after the kernel's were read, so both are of one moment.
        busy: something was under way (I/O in flight), so the kernel may count what we did not yet, or the reverse.
    """

    dimension: str
    since_ns: int
    measured: Mapping[str, int]
    oracle: Mapping[str, int] | None
    origin: Mapping[str, int]
    steady: bool = True
    busy: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Everything the probes know at a moment, or, as a difference, of an interval.

    Attributes:
        time_ns: CLOCK_MONOTONIC; of a difference, its end.
        duration_ns: 0 at a moment, else the length of the interval.
        lost: events for which there was no room in a map, by probe. Anything but 0 voids a trial.
        missed: events for which the kernel ran no program because another one was running on that CPU, by probe and
            for all tasks of the host. How much of what is followed that cost is for :meth:`Session.agreement` to say.
        readings: by probe, then by task id or device name.
    """

    time_ns: int
    duration_ns: int
    histograms: tuple[HistogramRow, ...]
    counters: tuple[CounterRow, ...]
    cost: tuple[CostRow, ...]
    lost: Mapping[str, int]
    missed: Mapping[str, int]
    readings: Mapping[str, Mapping[str, Reading]] = field(default_factory=dict)

    def __sub__(self, before: Snapshot) -> Snapshot:
        """What happened between two snapshots of one session.

        Raises:
            ProbeError: the order is wrong, or the session was reset in between.
        """
        if before.duration_ns or self.duration_ns or before.time_ns > self.time_ns:
            raise ProbeError("snapshots: expected a later one minus an earlier one, each of a moment")
        buckets = {replace(row, count=0): row.count for row in before.histograms}
        values = {replace(row, value=0): row.value for row in before.counters}
        costs = {(row.probe, row.program): row for row in before.cost}
        histograms = [replace(row, count=row.count - buckets.get(replace(row, count=0), 0)) for row in self.histograms]
        counters = [replace(row, value=row.value - values.get(replace(row, value=0), 0)) for row in self.counters]
        if any(row.count < 0 for row in histograms) or any(row.value < 0 for row in counters):
            raise ProbeError("snapshots: the session was reset between the two")
        cost = [
            replace(
                row,
                runs=row.runs - earlier.runs,
                run_ns=row.run_ns - earlier.run_ns,
                missed=row.missed - earlier.missed,
            )
            if (earlier := costs.get((row.probe, row.program)))
            else row
            for row in self.cost
        ]
        return Snapshot(
            time_ns=self.time_ns,
            duration_ns=self.time_ns - before.time_ns,
            histograms=tuple(row for row in histograms if row.count),
            counters=tuple(counters),
            cost=tuple(cost),
            lost={probe: count - before.lost.get(probe, 0) for probe, count in self.lost.items()},
            missed={probe: count - before.missed.get(probe, 0) for probe, count in self.missed.items()},
            readings=self.readings,
        )


@dataclass
class Change:
    """What the tasks or devices of one dimension did in an interval, by both accounts.

    Attributes:
        measured: our figures, summed over what could be compared.
        oracle: the kernel's.
        compared: over how many tasks or devices.
        gone: how many had gone before the end, those included that came and went within; they are in neither sum.
        unsteady: how many moved while they were read, so that the two accounts are not of one moment.
        busy: how many had something under way at one of the ends.
    """

    measured: Counter[str] = field(default_factory=Counter)
    oracle: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    gone: int = 0
    unsteady: int = 0
    busy: int = 0


def changes(probe: str, before: Snapshot, after: Snapshot) -> dict[str, Change]:
    """What happened between two snapshots, by dimension, by our account and by the kernel's.

    What was followed at the end is compared; for what was not followed yet at the start, from where its following
    began. What has gone in between has no account left in the kernel and is left out on both sides.
    """
    earlier, later = before.readings.get(probe, {}), after.readings.get(probe, {})
    found: dict[str, Change] = {}
    for key, end in later.items():
        change = found.setdefault(end.dimension, Change())
        start = earlier.get(key)
        if start is None or start.since_ns != end.since_ns:
            start = Reading(end.dimension, end.since_ns, {}, end.origin, end.origin)
        if end.oracle is None or start.oracle is None:
            change.gone += 1
            continue
        change.measured.update({name: value - start.measured.get(name, 0) for name, value in end.measured.items()})
        change.oracle.update({name: value - start.oracle[name] for name, value in end.oracle.items()})
        change.compared += 1
        change.unsteady += not (start.steady and end.steady)
        change.busy += start.busy or end.busy
    for key, start in earlier.items():
        if key not in later or later[key].since_ns != start.since_ns:
            found.setdefault(start.dimension, Change()).gone += 1
    for dimension, change in found.items():
        change.gone = max(change.gone, _exits(probe, after, dimension) - _exits(probe, before, dimension))
    return found


def _exits(probe: str, snapshot: Snapshot, dimension: str) -> int:
    exits = (row for row in snapshot.counters if (row.probe, row.metric, row.dimension) == (probe, "exits", dimension))
    return sum(row.value for row in exits)
