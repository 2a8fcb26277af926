"""Scheduler latency against the run delay that the kernel keeps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest

import probes
from probes import tasks
from probes.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("root")
CPU = max(os.sched_getaffinity(0))
SECONDS = 2.0


@contextmanager
def running(act: Callable[[], None]) -> Iterator[tuple[int, Callable[[], int]]]:
    """A child that acts once it is let go, for ever; its pid, and what lets it go."""
    end, start = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(start)
            if os.read(end, 1):
                act()
        finally:
            os._exit(0)
    os.close(end)
    try:
        yield pid, lambda: os.write(start, b"x")
    finally:
        os.close(start)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wakes_often() -> None:
    """Sleeps and works in turn at real-time priority, so that it preempts whoever shares its CPU."""
    os.sched_setaffinity(0, {CPU})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(40))
    while True:
        time.sleep(300e-6)
        end = time.perf_counter() + 100e-6
        while time.perf_counter() < end:
            pass


def never_sleeps() -> None:
    os.sched_setaffinity(0, {CPU})
    while True:
        pass


def forks_three_times() -> None:
    for _ in range(3):
        if (child := os.fork()) == 0:
            for _ in range(20):
                time.sleep(1e-3)
            os._exit(0)
        os.waitpid(child, 0)
    time.sleep(3600)


def counter(snapshot: Snapshot, metric: str, dimension: str) -> int:
    (row,) = [row for row in snapshot.counters if (row.metric, row.dimension) == (metric, dimension)]
    return row.value


def test_latency_of_a_preempting_and_two_preempted_tasks_agrees_with_schedstat() -> None:
    with (
        probes.attach(["sched"], dimensions=["fifo", "hogs"]) as session,
        running(wakes_often) as (fifo, start_fifo),
        running(never_sleeps) as (one, start_one),
        running(never_sleeps) as (other, start_other),
    ):
        session.follow(fifo, "fifo")
        session.follow(one, "hogs")
        session.follow(other, "hogs")
        before = session.snapshot()
        for start in (start_one, start_other, start_fifo):
            start()
        time.sleep(SECONDS)
        for pid in (fifo, one, other):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.1)
        after = session.snapshot()
        delta = after - before
        rows = {(row.dimension, row.quantity): row for row in session.agreement(before, after)}
    hogs = rows["hogs", "run_delay_ns"]
    assert hogs.measured > SECONDS * 0.5e9, "two hogs on one CPU wait at least half of the time, together"
    assert abs(hogs.difference) <= 0.02 * hogs.oracle, hogs
    assert all(row.agrees for row in rows.values()), rows
    assert delta.lost == {"sched": 0}
    for dimension in ("fifo", "hogs"):
        buckets = [row for row in delta.histograms if row.dimension == dimension]
        total_ns = counter(delta, "runq_latency_sum_ns", dimension)
        assert sum(row.count for row in buckets) == counter(delta, "runq_latency_count", dimension) > 500
        assert sum(row.low_ns * row.count for row in buckets) <= total_ns
        assert total_ns <= sum(row.high_ns * row.count for row in buckets)
    assert sum(row.runs for row in delta.cost) > 1000
    assert sum(row.run_ns for row in delta.cost) > 0


def test_children_are_followed_from_their_fork_to_their_exit() -> None:
    with (
        probes.attach(["sched"], dimensions=["parent"]) as session,
        running(forks_three_times) as (pid, start),
    ):
        session.follow(pid, "parent")
        before = session.snapshot()
        start()
        deadline = time.monotonic() + 10
        while counter(session.snapshot(), "exits", "parent") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        after = session.snapshot()
        delta = after - before
        reasons = {row.reason for row in session.agreement(before, after)}
    assert counter(delta, "exits", "parent") == 3
    assert counter(delta, "runq_latency_count", "parent") >= 3 * 20
    assert list(after.readings["sched"]) == [str(pid)]
    assert reasons
    assert all(reason.endswith("3 exited and left out") for reason in reasons)


def test_a_fork_beyond_the_room_there_is_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CAPACITY", 1)
    with (
        probes.attach(["sched"], dimensions=["parent"]) as session,
        running(forks_three_times) as (pid, start),
    ):
        session.follow(pid, "parent")
        start()
        deadline = time.monotonic() + 10
        while session.snapshot().lost["sched"] < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert session.snapshot().lost == {"sched": 3}
        with pytest.raises(probes.ProbeError, match="no room to follow more than 1 tasks"):
            session.follow(os.getpid(), "parent")


def test_a_task_belongs_to_one_dimension() -> None:
    with (
        probes.attach(["sched"], dimensions=["one", "other"]) as session,
        running(never_sleeps) as (pid, _),
    ):
        session.follow(pid, "one")
        session.follow(pid, "one")
        with pytest.raises(probes.ProbeError, match="followed for one already, not for other"):
            session.follow(pid, "other")


def test_a_reset_session_starts_anew() -> None:
    with (
        probes.attach(["sched", "migrate", "block"], dimensions=["d1"]) as session,
        running(wakes_often) as (pid, start),
    ):
        session.follow(pid, "d1")
        start()
        time.sleep(0.2)
        assert counter(session.snapshot(), "runq_latency_count", "d1") > 0
        session.reset()
        emptied = session.snapshot()
        assert emptied.histograms == ()
        assert not any(row.value for row in emptied.counters)
        assert not any(emptied.readings.values())
        session.follow(pid, "d1")
        time.sleep(0.2)
        assert counter(session.snapshot(), "runq_latency_count", "d1") > 0


def test_all_threads_of_a_process_are_followed() -> None:
    done = Event()
    threads = [Thread(target=done.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with probes.attach(["sched"], dimensions=["d1"]) as session:
            session.follow(os.getpid(), "d1")
            followed = set(session.snapshot().readings["sched"])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {str(thread.native_id) for thread in threads} | {str(os.getpid())} <= followed
