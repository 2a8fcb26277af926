"""Migrations against ``/proc/PID/sched``."""

from __future__ import annotations

import os
import signal
import time

import pytest

import probes
from probes.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("root")
FLIPS = 60


def counter(snapshot: Snapshot, metric: str) -> int:
    return sum(row.value for row in snapshot.counters if row.metric == metric)


def test_each_forced_move_is_counted_once_here_and_in_the_kernel() -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    pid = os.fork()
    if pid == 0:
        while True:
            pass
    try:
        with probes.attach(["migrate"], dimensions=["d1"]) as session:
            os.sched_setaffinity(pid, {cpus[0]})
            time.sleep(0.05)
            session.follow(pid, "d1")
            before = session.snapshot()
            for flip in range(FLIPS):
                os.sched_setaffinity(pid, {cpus[(flip + 1) % 2]})
                time.sleep(0.003)
            after = session.snapshot()
            (row,) = session.agreement(before, after)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    delta = after - before
    assert row.oracle == FLIPS
    assert row.agrees is True, row
    assert row.measured >= FLIPS - delta.missed["migrate"]
    assert counter(delta, "task_migrations") == row.measured
    assert counter(delta, "task_migrations_between_nodes") == row.measured
    assert counter(delta, "cross_node_task_migrations") <= row.measured
    assert delta.lost == {"migrate": 0}


def test_a_task_followed_in_the_middle_is_compared_from_there() -> None:
    with probes.attach(["migrate"], dimensions=["d1"]) as session:
        before = session.snapshot()
        session.follow(os.getpid(), "d1")
        (row,) = session.agreement(before, session.snapshot())
    assert row.agrees is True, row
