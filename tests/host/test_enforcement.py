"""Dimensions that go on without credit, and those that would hold up the clock, on the real kernel.

What is asserted are states of the kernel (scheduling classes, frozen groups, context switches), never times.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vcg import config, plan, shm, warden
from vcg.linux import mount, numa
from vcg.plan import Plan
from vcg.run import Run
from vcg.warden import Standing, Turnkey

pytestmark = pytest.mark.usefixtures("root", "clean_host")

HERE = str(Path(__file__).parent)
PATIENCE_S = 20.0
FIFO = {"scheduling": "fifo:30"}


@pytest.fixture
def testbed(roots: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A plan of the dimensions that are given, all on the last CPU."""
    monkeypatch.syspath_prepend(HERE)

    def make(**dimensions: dict[str, Any]) -> Plan:
        cpu = numa.observe().cpus[-1]
        data = {
            "name": "test",
            "base_window": "4ms",
            "state_root": str(roots.state_root),
            "mount_root": str(roots.mount_root),
            "dimensions": {name: {"cpus": [cpu], **given} for name, given in dimensions.items()},
        }
        return plan.make(config.from_mapping(data), numa.observe())

    return make


def until(condition: Callable[[], bool], every_s: float = 0.005) -> bool:
    """Whether something comes true, be it for a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def group_of(pid: int) -> Path:
    (line,) = [line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")]
    return next(one.point for one in mount.mounts() if one.fstype == "cgroup2") / line.removeprefix("0::/")


def classes(pid: int) -> set[int]:
    """Scheduling classes of every thread of a dimension."""
    found = set()
    for thread in (group_of(pid) / "cgroup.threads").read_text().split():
        try:
            found.add(os.sched_getscheduler(int(thread)))
        except ProcessLookupError:
            continue
    return found


def account(run: Run, name: str) -> dict[str, int]:
    accounts: dict[str, dict[str, int]] = run.statistics()["tokens"]
    return accounts[name]


HONEST = {**FIFO, "workload": "spin", "args": {"share": 0.3}}


@pytest.mark.parametrize("workload", ["hostile", "workloads_under_test:lies"])
def test_a_spinner_loses_its_class_and_then_the_cpu_whatever_it_reports(
    testbed: Callable[..., Plan], workload: str
) -> None:
    with Run(testbed(d1={**FIFO, "workload": workload}, d2=HONEST)) as run:
        pid = run.dimension_pids["d1"]
        assert os.sched_getscheduler(pid) == os.SCHED_FIFO
        run.start()
        assert until(lambda: classes(pid) == {os.SCHED_IDLE})
        assert until(lambda: "frozen 1" in (group_of(pid) / "cgroup.events").read_text())
        assert until(lambda: account(run, "d1")["held"] == Standing.FROZEN)
        assert classes(run.dimension_pids["d2"]) == {os.SCHED_FIFO}
        before = account(run, "d2")["settled"]
        assert until(lambda: account(run, "d2")["settled"] > before + 50)
        run.halt()
        assert account(run, "d1")["contained"] >= 1
        assert account(run, "d2")["contained"] == 0


def test_what_it_forks_is_held_with_it(testbed: Callable[..., Plan]) -> None:
    bomb = {**FIFO, "workload": "hostile", "args": {"kind": "fork"}, "pids": 24}
    with Run(testbed(d1=bomb, d2=HONEST)) as run:
        pid = run.dimension_pids["d1"]
        run.start()
        assert until(lambda: len((group_of(pid) / "cgroup.threads").read_text().split()) > 5)
        assert until(lambda: classes(pid) == {os.SCHED_IDLE})
        before = account(run, "d2")["settled"]
        assert until(lambda: account(run, "d2")["settled"] > before + 50)


def test_who_comes_to_its_senses_gets_its_class_and_its_windows_back(testbed: Callable[..., Plan]) -> None:
    with Run(testbed(d1={**FIFO, "workload": "workloads_under_test:loses_its_temper"})) as run:
        pid = run.dimension_pids["d1"]
        run.start()
        assert until(lambda: account(run, "d1")["contained"] >= 1)
        assert until(lambda: classes(pid) == {os.SCHED_FIFO} and account(run, "d1")["held"] == Standing.FREE)
        before = account(run, "d1")["settled"]
        assert until(lambda: account(run, "d1")["settled"] > before + 20)
        assert account(run, "d1")["balance_ns"] >= 0


def test_who_is_to_be_frozen_at_once_is_thawed_when_its_debt_is_paid(testbed: Callable[..., Plan]) -> None:
    with Run(testbed(d1={**FIFO, "workload": "workloads_under_test:loses_its_temper", "enforce": "freeze"})) as run:
        pid = run.dimension_pids["d1"]
        events = group_of(pid) / "cgroup.events"
        run.start()
        assert until(lambda: "frozen 1" in events.read_text(), every_s=0)  # it is for a few windows only
        assert until(lambda: classes(pid) == {os.SCHED_FIFO} and account(run, "d1")["held"] == Standing.FREE)
        assert "frozen 0" in (group_of(pid) / "cgroup.events").read_text()


AGAIN = {"policy": "on-failure", "limit": 3, "backoff": "5ms"}


TRIES = 3
"""While the hypervisor stops the host, windows pass in which nobody can act; so one of some tries has to be in time."""


@pytest.mark.parametrize("lives", [1, 2])
def test_who_spins_from_its_first_window_on_is_contained_within_two(testbed: Callable[..., Plan], lives: int) -> None:
    """Also where that is the first window of a process that has followed one that died."""
    workload = "workloads_under_test:spins_from_its_first_window"
    spinner = {**FIFO, "workload": workload, "args": {"lives": lives}, "restart": AGAIN}

    def windows_until_held() -> int:
        with Run(testbed(d1=spinner, d2=HONEST, d3=HONEST)) as run:
            spins = Path(f"/proc/{run.supervisor_pid}/root{run.plan.mount_root}/d1/data/spins")
            run.start()
            assert until(lambda: account(run, "d1")["contained"] >= 1 and spins.exists() and spins.read_text())
            first = int(spins.read_text())
            run.check()
            assert len(run.restarts) == lives - 1
            return account(run, "d1")["held_in"] - first

    assert any(0 <= windows_until_held() <= 2 for _ in range(TRIES))


def test_who_spins_without_asking_for_a_window_is_contained_within_two(testbed: Callable[..., Plan]) -> None:
    spinner = {**FIFO, "workload": "workloads_under_test:spins_before_its_first_window"}

    def windows_until_held() -> int:
        with Run(testbed(d1=spinner, d2=HONEST, d3=HONEST)) as run:
            run.start()
            assert until(lambda: account(run, "d1")["contained"] == 1)
            return account(run, "d1")["held_in"]

    assert any(windows_until_held() <= 2 for _ in range(TRIES))


def test_who_takes_long_to_start_is_not_held_for_it(testbed: Callable[..., Plan]) -> None:
    """Neither the first process nor the one that follows it."""
    slow = {**FIFO, "workload": "workloads_slow_to_start:run", "restart": AGAIN}
    with Run(testbed(d1=slow, d2=HONEST)) as run:
        run.start()
        assert until(lambda: account(run, "d1")["settled"] > 130)
        run.check()
        assert len(run.restarts) == 1
        assert account(run, "d1")["contained"] == 0


def test_where_nothing_is_enforced_nothing_is_done(testbed: Callable[..., Plan]) -> None:
    with Run(testbed(d1={"workload": "hostile", "enforce": "none"})) as run:
        pid = run.dimension_pids["d1"]
        run.start()
        settled_at = shm.LATEST_AT
        assert until(lambda: run.ticks[settled_at] > 60)
        assert classes(pid) == {os.SCHED_OTHER}
        assert account(run, "d1")["contained"] == 0


def test_a_program_is_held_by_its_gate_alone(testbed: Callable[..., Plan]) -> None:
    loop = {
        "gate": "freezer",
        "exec": ["/usr/bin/dash", "-c", "while :; do :; done"],
        "binds": ["/usr", "/lib", "/lib64"],
    }
    data = {"d1": {**loop, "harmonic": "1/4"}, "d2": {**HONEST, "harmonic": "1/4"}}
    with Run(testbed(**data)) as run:
        run.start()
        assert until(lambda: account(run, "d1")["settled"] > 20)
        run.halt()
        assert account(run, "d1")["contained"] == 0
        assert account(run, "d2")["contained"] == 0


def voluntary_switches(pid: int) -> int:
    """How often a process gave up the CPU of itself: to sleep, or to wait for somebody (proc_pid_status(5))."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("voluntary")]
    return int(line.split()[1])


def test_the_clock_and_the_orchestrator_wait_for_nobody(testbed: Callable[..., Plan]) -> None:
    """No lock of theirs can be held by a dimension: they sleep once for each tick, or round, and never else."""
    meddler = {**FIFO, "workload": "workloads_under_test:meddles", "storage": {"kind": "ext4"}, "enforce": "none"}
    cpu = numa.observe().cpus[0]
    with Run(testbed(d1=meddler, d2={**meddler, "cpus": [cpu]}, d3={**meddler, "scheduling": "other"})) as run:
        run.start()
        assert until(lambda: run.ticks[shm.LATEST_AT] > 30)
        clock, orchestrator = run.service_pids["rtd"], run.service_pids["orchestrator"]
        before = voluntary_switches(clock), voluntary_switches(orchestrator)
        counted = run.statistics()
        assert until(lambda: run.ticks[shm.LATEST_AT] > 530)
        after = voluntary_switches(clock), voluntary_switches(orchestrator)
        statistics = run.statistics()
    ticks = statistics["rtd"]["head"] - counted["rtd"]["head"]
    rounds = statistics["orchestrator"]["rounds"] - counted["orchestrator"]["rounds"]
    assert 400 <= rounds <= ticks
    # The counts are read a moment apart.
    assert after[0] - before[0] <= ticks + 5
    assert after[1] - before[1] <= rounds + 5


HOLD_THE_MUTEX = """
import os, sys
cpu, *groups = sys.argv[1:]
os.sched_setaffinity(0, {int(cpu)})
members = [os.open(group + "/cgroup.procs", os.O_WRONLY) for group in groups]
while True:
    for member in members:
        os.write(member, b"0")
"""


@contextmanager
def attack(above: Path, cpu: int) -> Iterator[None]:
    """Processes of the ordinary class that move themselves from one group to another all the time, on one CPU.

    In each move they hold the kernel's cgroup mutex, and sleep; a dimension that has taken the CPU by then keeps the
    mutex from everybody for as long as it likes.
    """
    groups = [above / name for name in ("here", "there")]
    for group in groups:
        group.mkdir()
    command = [sys.executable, "-I", "-c", HOLD_THE_MUTEX, str(cpu), *map(str, groups)]
    attackers = [subprocess.Popen(command) for _ in range(4)]
    try:
        yield
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.wait()
        for group in groups:
            group.rmdir()


def waits_in_writing(switch: Path, times: int) -> bool:
    """Whether the calling thread, writing ``cgroup.freeze``, had to sleep so many times."""
    waited, deadline = 0, time.monotonic() + PATIENCE_S
    while waited < times and time.monotonic() < deadline:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        switch.write_text("0")
        waited += resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
        time.sleep(0.001)
    return waited >= times


def task_named(pid: int, name: str) -> Path:
    """A thread of a process, in ``/proc``."""
    return next(task for task in Path(f"/proc/{pid}/task").iterdir() if (task / "comm").read_text().strip() == name)


def test_who_holds_the_cgroup_mutex_holds_nobody_but_the_turnkey(testbed: Callable[..., Plan]) -> None:
    """A dimension that spins within its credit keeps the mutex's holder off the CPU, while others have to be frozen."""
    cpus = numa.observe().cpus
    hog = {**FIFO, "workload": "spin", "args": {"share": 0.9}, "harmonic": "1/16", "cpus": [cpus[-1]]}
    offender = {**FIFO, "workload": "hostile", "args": {"after": 100}, "cpus": [cpus[0]]}
    waiting = 0

    def looks_on(run: Run, turnkey: Path, window: int) -> bool:
        nonlocal waiting
        waiting += (turnkey / "stat").read_text().rpartition(") ")[2].startswith("D")
        return run.ticks[shm.LATEST_AT + 1] > window

    def has_waited() -> bool:
        """Whether rounds were left out, or waited in."""
        nonlocal waiting
        waiting = 0
        with Run(testbed(d1=hog, d2=offender, d3=offender, d4=offender)) as run:
            above = group_of(run.dimension_pids["d1"]).parent.parent
            orchestrator = run.service_pids["orchestrator"]
            turnkey = task_named(orchestrator, "vcg:turnkey")
            round_at = shm.LATEST_AT + shm.ORCHESTRATOR_BIT
            with attack(above, cpus[-1]):
                run.start()
                assert until(lambda: run.ticks[shm.LATEST_AT + 1] > 60)
                published, switched = run.ticks[round_at], voluntary_switches(orchestrator)
                worked = run.statistics()["orchestrator"]["rounds"]
                assert until(lambda: looks_on(run, turnkey, 600))
                published, switched = run.ticks[round_at] - published, voluntary_switches(orchestrator) - switched
                worked = run.statistics()["orchestrator"]["rounds"] - worked
                own = above / "control"
                own.mkdir()
                try:
                    assert waits_in_writing(own / "cgroup.freeze", 3)
                finally:
                    own.rmdir()
            assert waiting
            for name in ("d2", "d3", "d4"):
                assert account(run, name)["contained"] >= 1
                assert "frozen 1" in (group_of(run.dimension_pids[name]) / "cgroup.events").read_text()
            assert account(run, "d1")["contained"] == 0
            # The counts are read a moment apart.
            return not (published - 5 <= worked and switched <= worked + 5)

    assert not all(has_waited() for _ in range(TRIES))


def test_what_is_ordered_last_is_done_in_the_end_and_the_end_of_a_run_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go, written = threading.Event(), []

    def write(switch: int, word: bytes, at: int) -> None:
        let_go.wait(PATIENCE_S)
        written.append((switch, word))

    monkeypatch.setattr(warden, "_LAST_S", 0.01)
    monkeypatch.setattr(os, "pwrite", write)
    turnkey = Turnkey(numa.observe().cpus[:1], 10)
    turnkey.order(3, frozen=True)
    time.sleep(0.05)
    for switch, frozen in ((4, True), (4, False), (3, False)):
        turnkey.order(switch, frozen=frozen)
    turnkey.finish()
    assert not turnkey.has_done(3)
    let_go.set()
    assert until(lambda: turnkey.has_done(3) and turnkey.has_done(4))
    assert written == [(3, b"1"), (3, b"0"), (4, b"0")]
