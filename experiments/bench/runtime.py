"""Running ready testbeds for a benchmark: in directories of its own, without a sweep around it.

The directories lie in /var/tmp, which is a disk where /tmp may be a tmpfs (loop devices on a tmpfs have no direct I/O).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import probes
from experiments import trial
from vcg import config, shm
from vcg.linux import numa
from vcg.plan import Plan
from vcg.run import Run, plan_here

PROBES = ("sched", "block", "migrate")
WARM_UP_WINDOWS = 20
"""First windows of each dimension, left out of the figures: page faults and cold caches."""
_DRAIN_S = 0.1
_ENTERED = (shm.Outcome.DONE, shm.Outcome.OVERRUN)
_RECORD = np.dtype([(name, np.int64) for name in shm.WINDOW.fields])


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for one benchmark, with a short path (Unix sockets lie in it)."""
    with tempfile.TemporaryDirectory(prefix="vcg-", dir="/var/tmp") as name:
        yield Path(name)


def plan_of(testbed: str, place: Path, overrides: dict[str, Any] | None = None) -> Plan:
    """A ready testbed, planned for this host, with its roots below ``place``.

    Raises:
        HostError: this host can't run it.
    """
    roots = {"state_root": str(place / "state"), "mount_root": str(place / "mnt")}
    loaded = config.load(testbed, {**(overrides or {}), **roots})
    return plan_here(loaded)


def plan_from(testbed: dict[str, Any], place: Path) -> Plan:
    """A testbed of a benchmark's own, planned for this host, with its roots below ``place``.

    Raises:
        HostError: this host can't run it.
    """
    roots = {"state_root": str(place / "state"), "mount_root": str(place / "mnt")}
    loaded = config.from_mapping({**testbed, **roots}, source=testbed["name"])
    return plan_here(loaded)


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


def lateness_ns(records: dict[str, bytes]) -> list[float]:
    """Lateness of every window of every dimension after the warm-up; infinite if it was never entered."""
    late: list[float] = []
    for raw in records.values():
        rows = np.frombuffer(raw, dtype=_RECORD)
        rows = rows[rows["window"] >= WARM_UP_WINDOWS]
        entered = np.isin(rows["outcome"], _ENTERED)
        late += np.where(entered, rows["entry_ns"] - rows["planned_ns"], np.inf).tolist()
    return late
