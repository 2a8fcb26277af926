"""One trial: bring a testbed up, run it under the probes and beside the reference thread, and decide whether it counts.

:func:`run_trial` acts; what it decides by is pure: :func:`believable` (records that a dimension can have meant),
:func:`window_rows` (records to rows), :func:`void_reasons` (facts and declared limits to reasons). Nothing here looks
at whether a result is good: a trial is void only for reasons that were declared beforehand.

Traps: the probes and their oracles are read before the first edge and after the last window has ended and the disks
are quiet, so their figures include the warm-up. CPU time in ``/proc/stat`` is sampled at ticks, and windows that keep
step with the ticks would be counted wrongly; idle time and ``/proc/PID/task/*/schedstat`` are exact, so foreign CPU
use is what remains of the wall time after those.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import probes
from experiments import reference, stats
from experiments.plan import Limits, Trial
from experiments.store import TABLES, TrialRecord
from probes import AgreementRow
from vcg import shm
from vcg.errors import VcgError
from vcg.linux import mount
from vcg.plan import DimensionPlan, Plan
from vcg.run import Run
from vcg.shm import Cause, Outcome

DRAIN_S = 0.1
_MARGIN_S = 30.0
"""Room that the reference thread gets beyond the trial itself: bring-up of its process, halt, a busy host."""
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PF_KTHREAD = 0x00200000  # include/linux/sched.h
RECORD = np.dtype([(name, np.int64) for name in shm.WINDOW.fields])
_SHOWN_REFUSALS = 20

Records = np.ndarray[Any, np.dtype[np.void]]
"""Window records, as a structured array with the fields of :data:`vcg.shm.WINDOW`."""


class TrialError(VcgError):
    """A trial that could not be measured."""


class Interrupted(Exception):
    """The sweep was asked to stop while a trial was running; the trial is given up."""


@dataclass(frozen=True)
class HostFacts:
    """The host over the interval of a trial.

    Attributes:
        wall_ns: length of the interval.
        steal_share: CPU time that the hypervisor withheld, of all CPUs' time.
        foreign_cpu_share: CPU time of processes that are neither ours nor the kernel's, of all CPUs' time.
        throttled: periods in which a cgroup of ours or above ours used up its CPU quota.
        reference_p50_ns, reference_p99_ns: lateness of the reference thread after the warm-up; None if there are too
            few samples.
        lost_events: events that a probe had to drop, and window records overwritten before they were read; ``lost`` of
            the trial's record says where.
        disagreements: quantities in which a probe and its oracle differ by more than the probe allows.
        refused_records: window records that can't be what a dimension did, see :func:`believable`.
        restarted: processes of dimensions that failed and were replaced: the probes attribute by process.
    """

    wall_ns: int
    steal_share: float
    foreign_cpu_share: float
    throttled: int
    reference_p50_ns: float | None
    reference_p99_ns: float | None
    lost_events: int
    disagreements: int
    refused_records: int
    restarted: int = 0


def void_reasons(
    facts: HostFacts, limits: Limits, baseline_p99_ns: float, disagreeing: Sequence[AgreementRow] = ()
) -> list[str]:
    """Why a trial does not count; empty if it does.

    Args:
        facts: of the trial.
        limits: as the sweep file declared them.
        baseline_p99_ns: of the reference thread on this host before the first trial.
        disagreeing: what ``facts.disagreements`` counts.
    """
    reasons = []
    if facts.steal_share > limits.steal_share:
        reasons.append(
            f"the hypervisor withheld {facts.steal_share:.2%} of the CPU time (limit {limits.steal_share:.2%})"
        )
    if facts.foreign_cpu_share > limits.foreign_cpu_share:
        reasons.append(
            f"foreign processes used {facts.foreign_cpu_share:.1%} of the CPU time "
            f"(limit {limits.foreign_cpu_share:.1%})"
        )
    if facts.throttled:
        reasons.append(f"a CPU quota ran out in {facts.throttled} periods (limit 0)")
    p99 = facts.reference_p99_ns
    if p99 is None:
        reasons.append(f"too few samples for a reference p99 (needs {stats.minimum_samples(0.99)})")
    elif p99 > limits.reference_p99_ns:
        reasons.append(f"reference p99 {p99 / 1e3:.0f} us (limit {limits.reference_p99_ns / 1e3:.0f} us)")
    if p99 is not None and p99 > limits.reference_p99_factor * baseline_p99_ns:
        reasons.append(
            f"reference p99 {p99 / 1e3:.0f} us is {p99 / baseline_p99_ns:.1f} times that of the idle host "
            f"(limit {limits.reference_p99_factor:g} times)"
        )
    if facts.restarted:
        reasons.append(f"restarted: a dimension's process failed and was replaced {facts.restarted} times (limit 0)")
    if facts.refused_records:
        reasons.append(f"{facts.refused_records} window records refused (limit 0)")
    if facts.lost_events > limits.lost_events:
        reasons.append(f"{facts.lost_events} events lost (limit {limits.lost_events})")
    if facts.disagreements > limits.oracle_disagreements:
        which = "; ".join(map(_disagreement, disagreeing))
        many = f"{facts.disagreements} quantities disagree with their oracles"
        what = "a quantity disagrees with its oracle" if facts.disagreements == 1 else many
        reasons.append(f"{what} (limit {limits.oracle_disagreements}){which and f': {which}'}")
    return reasons


def _disagreement(row: AgreementRow) -> str:
    by = f"{row.difference / row.oracle:+.1%}" if row.oracle else f"{row.difference:+d} where the oracle has none"
    return f"{row.probe} {row.quantity} of {row.dimension}, by {by}"


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def planned_count(dimension: DimensionPlan, duration_ns: int) -> int:
    """Windows that a dimension has planned in the first ``duration_ns`` of a run."""
    phase, period = Fraction(*dimension.phase), Fraction(*dimension.period)
    return max(0, -((phase - duration_ns) // period))


def planned_ns(dimension: DimensionPlan, count: int, start_ns: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Planned edges of the first ``count`` windows; exact, so in Python's integers (64 bits would overflow)."""
    (a, b), (c, d) = dimension.period, dimension.phase
    return np.array([start_ns + (c * b + n * a * d) // (b * d) for n in range(count)], dtype=np.int64)


def believable(raw: bytes, dimension: DimensionPlan, start_ns: int, before_ns: int) -> tuple[Records, list[str]]:
    """Sort out which records can be what a dimension did.

    A dimension writes its own page, so whatever stands there is hostile input: an outcome or a cause that does not
    exist, a window recorded twice (the first record stays) or at another time than it was planned, an entry before
    the edge, an end before the entry or in the future.

    Args:
        raw: records (:data:`vcg.shm.WINDOW`) of one dimension, in the order in which they were written.
        dimension: from the plan.
        start_ns: planned edge of window 0, before phases.
        before_ns: CLOCK_MONOTONIC after the last record was read.

    Returns:
        The records that are believed, with those of the last windows, which began before ``before_ns``; and for each
        of the others why it is not.
    """
    found = np.frombuffer(raw, dtype=RECORD)
    count = planned_count(dimension, before_ns - start_ns)
    there = (found["window"] >= 0) & (found["window"] < count)
    planned = planned_ns(dimension, count, start_ns)[np.where(there, found["window"], 0)] if count else found["window"]
    first = np.zeros(len(found), dtype=bool)
    first[np.unique(found["window"], return_index=True)[1]] = True
    entered = np.isin(found["outcome"], [Outcome.DONE, Outcome.OVERRUN])
    in_order = (planned <= found["entry_ns"]) & (found["entry_ns"] <= found["finish_ns"])
    checks = {
        "not a window of this run": there,
        "unknown outcome": np.isin(found["outcome"], list(Outcome)),
        "unknown cause": np.isin(found["cause"], list(Cause)),
        "not planned for this time": found["planned_ns"] == planned,
        "entry or end out of order": ~entered | in_order,
        "ends in the future": (found["finish_ns"] <= before_ns) & (found["wake_ns"] <= before_ns),
        "recorded twice": first,
    }
    refused = [
        f"{dimension.name}: window {found['window'][n]}: {next(why for why, fine in checks.items() if not fine[n])}"
        for n in np.flatnonzero(~np.logical_and.reduce(list(checks.values())))
    ]
    return found[np.logical_and.reduce(list(checks.values()))], refused


def window_rows(
    records: Mapping[str, Records], dimensions: Iterable[DimensionPlan], start_ns: int, warmup_ns: int, duration_ns: int
) -> pd.DataFrame:
    """The table ``windows`` of a trial, from what the dimensions recorded.

    Every window planned before the end of the trial has a row, also one that nobody recorded; windows that began
    while the run was being halted are not part of the trial.

    Args:
        records: dimension -> its records, from :func:`believable`.
        dimensions: of the plan.
        start_ns: planned edge of window 0, before phases.
        warmup_ns: length of the warm-up.
        duration_ns: length of the trial after the warm-up.

    Returns:
        All columns of the table but ``trial``.
    """
    parts = [_dimension_rows(records[d.name], d, start_ns, warmup_ns, duration_ns) for d in dimensions]
    return pd.concat(parts, ignore_index=True)


def _dimension_rows(
    found: Records, dimension: DimensionPlan, start_ns: int, warmup_ns: int, duration_ns: int
) -> pd.DataFrame:
    count = planned_count(dimension, warmup_ns + duration_ns)
    planned = planned_ns(dimension, count, start_ns)
    found = found[found["window"] < count]
    rows = np.zeros(count, dtype=RECORD)
    rows[found["window"]] = found
    recorded = np.zeros(count, dtype=bool)
    recorded[found["window"]] = True
    names = {int(outcome): outcome.name.lower() for outcome in Outcome}
    outcome = [names[int(o)] if seen else "unrecorded" for o, seen in zip(rows["outcome"], recorded, strict=True)]
    causes = {int(cause): cause.name.lower() for cause in Cause}
    entered = pd.Series(outcome).isin(stats.ENTERED).to_numpy()

    def nullable(values: np.ndarray[Any, Any], there: np.ndarray[Any, Any]) -> pd.Series:
        return pd.Series(pd.arrays.IntegerArray(values.astype(np.int64), ~there))

    return pd.DataFrame(
        {
            "dimension": dimension.name,
            "window": np.arange(count, dtype=np.int64),
            "outcome": outcome,
            "warmup": planned < start_ns + warmup_ns,
            "planned_ns": planned,
            "wake_ns": nullable(rows["wake_ns"], rows["wake_ns"] > 0),
            "entry_ns": nullable(rows["entry_ns"], entered),
            "finish_ns": nullable(rows["finish_ns"], entered),
            "lateness_ns": nullable(rows["entry_ns"] - planned, entered),
            "budget_ns": rows["budget_ns"],
            "used_ns": rows["used_ns"],
            "expires_ns": nullable(rows["expires_ns"], rows["expires_ns"] > 0),
            "cause": [causes[int(c)] if o == "missed" else None for c, o in zip(rows["cause"], outcome, strict=True)],
            "phase_ppb": rows["phase_ppb"],
        }
    )


def reference_rows(samples: memoryview, start_ns: int, warmup_ns: int) -> pd.DataFrame:
    """The table ``reference`` of a trial (all columns but ``trial``): the timers from the start of the run on."""
    words = np.frombuffer(samples, dtype=np.int64).reshape(-1, reference.SAMPLE.words)
    planned, wake = words[words[:, 0] >= start_ns].T.copy()
    return pd.DataFrame(
        {
            "planned_ns": planned,
            "wake_ns": wake,
            "lateness_ns": wake - planned,
            "warmup": planned < start_ns + warmup_ns,
        }
    )


# ── the host ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class HostSample:
    """Counters of the host at one instant; two of them make the facts of an interval.

    Attributes:
        at_ns: CLOCK_MONOTONIC.
        cpus: online CPUs.
        idle_ns: of all CPUs, waiting for I/O included.
        steal_ns: of all CPUs.
        ours_ns: pid -> CPU time of the processes of the run, of this process, and of their descendants.
        kernel_ns: pid -> CPU time of each kernel thread.
        throttled: throttled periods of the cpu cgroups that hold our processes, and of those above them.
    """

    at_ns: int
    cpus: int
    idle_ns: int
    steal_ns: int
    ours_ns: dict[int, int]
    kernel_ns: dict[int, int]
    throttled: int


def sample_host(pids: Iterable[int]) -> HostSample:
    """Read the host's counters.

    Args:
        pids: processes of ours; their descendants and this process count as ours too.
    """
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle, iowait, steal = int(fields[3]), int(fields[4]), int(fields[7])
    children: dict[int, list[int]] = {}
    kernel = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we were looking
        pid = int(path.parent.name)
        children.setdefault(int(after_name[1]), []).append(pid)
        if int(after_name[6]) & _PF_KTHREAD:
            kernel.append(pid)
    ours: set[int] = set()
    pending = [os.getpid(), *pids]
    while pending:
        pid = pending.pop()
        if pid not in ours:
            ours.add(pid)
            pending += children.get(pid, [])
    return HostSample(
        time.monotonic_ns(),
        os.cpu_count() or 1,
        (idle + iowait) * _NS_PER_TICK,
        steal * _NS_PER_TICK,
        {pid: _cpu_ns(pid) for pid in ours},
        {pid: _cpu_ns(pid) for pid in kernel},
        _throttled(ours),
    )


def _cpu_ns(pid: int) -> int:
    """CPU time of a process's threads; 0 if it is gone."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has ended
    return total


def _throttled(pids: Iterable[int]) -> int:
    """Throttled periods (``cpu.stat``) of the cpu cgroups of some processes, and of all groups above them."""
    points: dict[str, Path] = {}
    for found in mount.mounts():
        if found.fstype == "cgroup2":
            points.setdefault("", found.point)
        elif found.fstype == "cgroup" and "cpu" in found.options:
            points.setdefault("cpu", found.point)
    groups: set[Path] = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we were looking
        for line in lines:
            _, controllers, path = line.split(":", 2)
            key = "cpu" if "cpu" in controllers.split(",") else controllers
            if key in points:
                inside = Path(path.lstrip("/"))
                groups |= {points[key] / part for part in (inside, *inside.parents)}
    total = 0
    for group in groups:
        try:
            text = (group / "cpu.stat").read_text()
        except FileNotFoundError:
            continue  # no cpu controller there
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("nr_throttled "))
    return total


def host_shares(before: HostSample, after: HostSample) -> tuple[float, float]:
    """Shares of all CPUs' time between two samples: withheld by the hypervisor, and used by foreign processes.

    A process that began in between counts in full; one that ended in between counts as foreign, so ours must live
    through the interval.
    """
    available = (after.at_ns - before.at_ns) * after.cpus

    def used(name: str) -> int:
        earlier, later = getattr(before, name), getattr(after, name)
        return sum(max(0, value - earlier.get(pid, 0)) for pid, value in later.items())

    steal = after.steal_ns - before.steal_ns
    idle = after.idle_ns - before.idle_ns
    foreign = available - idle - steal - used("ours_ns") - used("kernel_ns")
    return steal / available, max(0.0, foreign / available)


# ── the trial ────────────────────────────────────────────────────────────────────────────────────────────────────────
class Instruments:
    """The probes, attached once and kept over the trials of a sweep that use the same ones.

    A trial without probes has none attached, so that its figures show what the probes cost the others.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._attached: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._session: probes.Session | None = None

    def __enter__(self) -> Instruments:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        self._attached, self._session = None, None
        self._stack.close()

    def session(self, names: tuple[str, ...], dimensions: tuple[str, ...]) -> probes.Session | None:
        """A session that follows nothing yet; None if no probe is wanted.

        Raises:
            probes.ProbeError: the probes can't be attached on this host.
        """
        if not names:
            self.detach()
            return None
        if self._session is not None and self._attached == (names, dimensions):
            try:
                self._session.reset()
                return self._session
            except probes.ProbeError:
                self.detach()
        else:
            self.detach()
        self._session = self._stack.enter_context(probes.attach(list(names), dimensions=list(dimensions)))
        self._attached = (names, dimensions)
        return self._session


def observe(session: probes.Session, run: Run) -> None:
    """Have the probes follow every dimension of a run that has been brought up, and watch its loop devices.

    Raises:
        probes.ProbeError: a dimension is unknown to the session, or followed already.
    """
    for name, pid in run.dimension_pids.items():
        session.follow(pid, name)
    for name, (major, minor) in run.loops.items():
        session.watch_device(major, minor, name)


@dataclass(frozen=True)
class Progress:
    """How far a running trial is: seconds of it that have passed, and that it takes."""

    passed_s: float
    total_s: float


def run_trial(
    trial: Trial,
    attempt: int,
    plan: Plan,
    instruments: Instruments,
    *,
    limits: Limits,
    reference_cpu: int,
    baseline_p99_ns: float,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> tuple[TrialRecord, dict[str, pd.DataFrame]]:
    """Run one trial.

    Args:
        trial: from the sweep's plan.
        attempt: 0, or the number of the rerun.
        plan: of its testbed on this host.
        instruments: the probes, kept from trial to trial.
        limits: beyond which it is void.
        reference_cpu: where the reference thread runs, the same in all trials.
        baseline_p99_ns: of the reference thread on the idle host.
        on_progress: called about ten times a second.
        stop: asked as often; true gives the trial up.

    Returns:
        Its record and its tables, for :func:`experiments.store.write_trial`.

    Raises:
        Interrupted: ``stop`` said so; the run has been taken down.
        vcg.errors.VcgError: the run or the probes failed.
    """
    configuration = trial.configuration
    warmup_ns, duration_ns = configuration.warmup_ns, configuration.duration_ns
    total_ns = warmup_ns + duration_ns
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    records: dict[str, bytearray] = {d.name: bytearray() for d in plan.dimensions}

    def drain() -> None:
        for name, raw in run.drain().items():
            records[name] += raw

    with ExitStack() as stack:
        session = instruments.session(configuration.probes, tuple(records))
        run = stack.enter_context(Run(plan))
        if session:
            observe(session, run)
        clockwork = stack.enter_context(reference.Reference(reference_cpu, total_ns / 1e9 + _MARGIN_S))
        pids = [*run.dimension_pids.values(), *run.service_pids.values(), clockwork.pid]
        os.sync()
        before_probes = session.snapshot() if session else None
        before = sample_host(pids)
        start_ns = run.start()
        end_ns = start_ns + total_ns
        while (now := time.monotonic_ns()) < end_ns:
            if stop():
                raise Interrupted
            time.sleep(min(DRAIN_S, (end_ns - now) / 1e9))
            drain()
            run.check()
            on_progress(Progress(min(total_ns, time.monotonic_ns() - start_ns) / 1e9, total_ns / 1e9))
        run.halt()
        drain()
        drained_ns = time.monotonic_ns()
        after = sample_host(pids)
        samples = reference_rows(clockwork.stop(), start_ns, warmup_ns)
        os.sync()
        after_probes = session.snapshot() if session else None
        statistics = run.statistics()
        records_lost = sum(run.records_lost.values())

    agreement: list[Any] = []
    cost: list[dict[str, Any]] = []
    lost = {"window records": records_lost}
    histograms, counters = _no_rows("histograms"), _no_rows("counters")
    if session and before_probes and after_probes:
        delta = after_probes - before_probes
        agreement = list(session.agreement(before_probes, after_probes))
        lost |= delta.lost
        cost = [asdict(row) for row in delta.cost]
        histograms = _frame(histograms, [asdict(row) for row in delta.histograms])
        counters = _frame(counters, [asdict(row) for row in delta.counters])

    believed: dict[str, Records] = {}
    refused: list[str] = []
    for d in plan.dimensions:
        believed[d.name], not_believed = believable(bytes(records[d.name]), d, start_ns, drained_ns)
        refused += not_believed
    windows = window_rows(believed, plan.dimensions, start_ns, warmup_ns, duration_ns)
    steal_share, foreign_share = host_shares(before, after)
    measured = samples.loc[~samples["warmup"], "lateness_ns"].to_numpy(dtype=float)
    facts = HostFacts(
        wall_ns=after.at_ns - before.at_ns,
        steal_share=steal_share,
        foreign_cpu_share=foreign_share,
        throttled=max(0, after.throttled - before.throttled),
        reference_p50_ns=_value(stats.quantile(measured, 0.5)),
        reference_p99_ns=_value(stats.quantile(measured, 0.99)),
        lost_events=sum(lost.values()),
        disagreements=sum(row.agrees is False for row in agreement),
        refused_records=len(refused),
        restarted=len(run.restarts),
    )
    name = trial.id if attempt == 0 else f"{trial.id}-r{attempt}"
    record = TrialRecord(
        trial=name,
        id=trial.id,
        attempt=attempt,
        configuration=configuration.id,
        block=trial.block,
        position=trial.position,
        levels=dict(configuration.levels),
        probes=list(configuration.probes),
        dimensions=[
            {
                "name": d.name,
                "index": d.index,
                "role": d.role,
                "storage": d.storage,
                "harmonic": d.harmonic,
                "period_ns": d.period_ns,
            }
            for d in plan.dimensions
        ],
        started_at=started_at,
        start_ns=start_ns,
        warmup_ns=warmup_ns,
        duration_ns=duration_ns,
        void_reasons=void_reasons(facts, limits, baseline_p99_ns, [row for row in agreement if row.agrees is False]),
        facts=asdict(facts),
        lost=lost,
        refused=refused[:_SHOWN_REFUSALS],
        agreement=[asdict(row) for row in agreement],
        probe_cost=cost,
        statistics=statistics,
    )
    tables = {"windows": windows, "histograms": histograms, "counters": counters, "reference": samples}
    for frame in tables.values():
        frame["trial"] = name
    return record, tables


def _value(quantile: stats.Quantile) -> float | None:
    return None if quantile.reason else quantile.value


def _no_rows(table: str) -> pd.DataFrame:
    return pd.DataFrame({c.name: [] for c in TABLES[table] if c.name != "trial"})


def _frame(empty: pd.DataFrame, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=empty.columns) if rows else empty


def measure_baseline(cpu: int, seconds: float) -> float:
    """p99 lateness of the reference thread alone, in ns, before anything of ours runs.

    Raises:
        TrialError: too few samples for a p99.
    """
    with reference.Reference(cpu, seconds + _MARGIN_S) as clockwork:
        time.sleep(seconds)
        rows = reference_rows(clockwork.stop(), 0, 0)
    found = stats.quantile(rows["lateness_ns"].to_numpy(dtype=float), 0.99)
    if found.reason:
        raise TrialError(f"reference thread on cpu {cpu}: no p99 in {seconds:g} s ({found.reason}); try again")
    return found.value
