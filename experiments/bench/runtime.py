"""Running ready testbeds for a benchmark: in directories of its own, without a sweep around it.

The directories lie in /var/tmp, which is a disk where /tmp may be a tmpfs (loop devices on a tmpfs have no direct I/O).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import probes
from experiments import reference, stats, trial
from experiments.bench.figures import Sample, quantile
from experiments.plan import Limits
from vcg import config, shm
from vcg.errors import HostError, RunError
from vcg.linux import cgroup, numa
from vcg.plan import Plan
from vcg.run import Run, plan_here

PROBES = ("sched", "block", "migrate")
WARM_UP_WINDOWS = 20
"""First windows of each dimension, left out of the figures: page faults and cold caches."""
planned: list[dict[str, Any]] = []
"""Every testbed, resolved, that a benchmark has planned in this process: what ``--out`` stores of them."""
_DRAIN_S = 0.1
_BASELINE_S = 2.0
"""For so long the reference thread is looked at on the idle host."""
_UNDO_NS = 5_000_000_000
_MARGIN_S = 30.0
"""Room that the reference thread gets beyond a run: bring-up, halt, a busy host."""
_ENTERED = (shm.Outcome.DONE, shm.Outcome.OVERRUN)


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for one benchmark, with a short path (Unix sockets lie in it)."""
    with tempfile.TemporaryDirectory(prefix="vcg-", dir="/var/tmp") as name:
        yield Path(name)


@contextmanager
def group(controllers: Sequence[str] = ()) -> Iterator[cgroup.Group]:
    """A control group that processes may enter; at the end what is in it is killed, and it is gone.

    It lies in one more of ours: under v2 the upper one hands controllers down, and so may hold no process itself.

    Raises:
        RunError: something in it could not be killed, or it could not be removed.
    """
    outer = cgroup.Group(cgroup.observe(), f"vcg-bench-{os.getpid()}", controllers)
    inner = cgroup.Group(outer, "inside", controllers)
    try:
        outer.create()
        inner.create()
        yield inner
    finally:
        deadline_ns = time.monotonic_ns() + _UNDO_NS
        processes, groups = cgroup.kill(outer.directories, deadline_ns), cgroup.remove(outer.directories, deadline_ns)
        if processes or groups:
            raise RunError(f"{outer.directories[0].name}: processes {processes} and groups {groups} could not be ended")


def plan_of(testbed: str, place: Path, overrides: dict[str, Any] | None = None) -> Plan:
    """A ready testbed, planned for this host, with its roots below ``place``.

    Raises:
        HostError: this host can't run it.
    """
    roots = {"state_root": str(place / "state"), "mount_root": str(place / "mnt")}
    return _plan(config.load(testbed, {**(overrides or {}), **roots}))


def plan_from(testbed: dict[str, Any], place: Path) -> Plan:
    """A testbed of a benchmark's own, planned for this host, with its roots below ``place``.

    Raises:
        HostError: this host can't run it.
    """
    roots = {"state_root": str(place / "state"), "mount_root": str(place / "mnt")}
    return _plan(config.from_mapping({**testbed, **roots}, source=testbed["name"]))


def _plan(testbed: config.Testbed) -> Plan:
    made = plan_here(testbed)
    if made.testbed not in planned:
        planned.append(made.testbed)
    return made


def last_cpu() -> int:
    """A CPU for dimensions that are to share one: not that of the RTD, if there are several."""
    return numa.observe().cpus[-1]


@contextmanager
def observe(run: Run, *others: str) -> Iterator[probes.Session]:
    """All probes on every dimension of a run.

    Args:
        run: that has been brought up.
        others: more names that the caller will have followed.

    Raises:
        ProbeError: they can't be attached.
    """
    with probes.attach(list(PROBES), dimensions=[*run.dimension_pids, *others]) as session:
        trial.observe(session, run)
        yield session


def run_for(run: Run, seconds: float, each: Callable[[], None] = lambda: None) -> dict[str, bytes]:
    """Start a run, let it go on for some time, halt it; each dimension's window records.

    Args:
        each: called several times a second while it runs.

    Raises:
        RunError: a process of the run died.
    """
    run.start()
    records = keep(run, seconds, each)
    run.halt()
    return {name: records[name] + fresh for name, fresh in run.drain().items()}


def keep(run: Run, seconds: float, each: Callable[[], None] = lambda: None) -> dict[str, bytes]:
    """Let a run that has been started go on for some time; each dimension's window records of that time.

    Raises:
        RunError: a process of the run died.
    """
    records = dict.fromkeys((d.name for d in run.plan.dimensions), b"")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(_DRAIN_S)
        for name, fresh in run.drain().items():
            records[name] += fresh
        each()
        run.check()
    return records


def missed(raw: bytes, first: int) -> int:
    """How many windows of a dimension were never entered, from the ``first`` on."""
    rows = np.frombuffer(raw, dtype=trial.RECORD)
    return int(np.sum((rows["window"] >= first) & ~np.isin(rows["outcome"], _ENTERED)))


def lateness_ns(records: dict[str, bytes]) -> list[float]:
    """Lateness of every window of every dimension after the warm-up; infinite if it was never entered."""
    late: list[float] = []
    for raw in records.values():
        rows = np.frombuffer(raw, dtype=trial.RECORD)
        rows = rows[rows["window"] >= WARM_UP_WINDOWS]
        entered = np.isin(rows["outcome"], _ENTERED)
        late += np.where(entered, rows["entry_ns"] - rows["planned_ns"], np.inf).tolist()
    return late


def lateness_p99_ns(records: dict[str, bytes]) -> float:
    """p99 of the lateness of all windows of some dimensions together, after the warm-up.

    Raises:
        HostError: there are too few windows for one.
    """
    late_ns = lateness_ns(records)
    if len(late_ns) < (needed := stats.minimum_samples(0.99)):
        raise HostError(f"{len(late_ns)} windows after the warm-up, a p99 needs {needed}: give --seconds more")
    return quantile(late_ns, 0.99)


Watched = Callable[[], tuple[Sample, list[str]]]
"""Gives what an arm gave, and the reasons why it is void."""


def watched(arms: Mapping[str, Callable[[], Sample]], seconds: float) -> dict[str, Watched[Sample]]:
    """The same arms, each beside the reference thread on the last CPU.

    An arm is judged as a trial of a sweep is, by the limits that a sweep has by default, but only by what the
    hypervisor withheld and by the reference thread: foreign CPU use can't be told once the run's own processes are
    gone, and an abuse that is throttled is what is to be seen.

    Args:
        arms: each brings a run up and takes it down again.
        seconds: how long each takes, about.

    Raises:
        TrialError: the idle host, which is looked at now, gives no p99 of the reference thread.
    """
    baseline_ns = trial.measure_baseline(last_cpu(), _BASELINE_S)
    return {name: partial(_beside_reference, arm, seconds, baseline_ns) for name, arm in arms.items()}


def _beside_reference(arm: Callable[[], Sample], seconds: float, baseline_p99_ns: float) -> tuple[Sample, list[str]]:
    with reference.Reference(last_cpu(), seconds + _MARGIN_S) as clockwork:
        before = trial.sample_host(())
        sample = arm()
        after = trial.sample_host(())
        late_ns = trial.reference_rows(clockwork.stop(), 0, 0)["lateness_ns"].to_numpy(dtype=float)
    p50, p99 = (stats.quantile(late_ns, q) for q in (0.5, 0.99))
    facts = trial.HostFacts(
        wall_ns=after.at_ns - before.at_ns,
        steal_share=trial.host_shares(before, after)[0],
        foreign_cpu_share=0.0,
        throttled=0,
        reference_p50_ns=None if p50.reason else p50.value,
        reference_p99_ns=None if p99.reason else p99.value,
        lost_events=0,
        disagreements=0,
        refused_records=0,
    )
    return sample, trial.void_reasons(facts, Limits(), baseline_p99_ns)
