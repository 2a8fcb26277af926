"""Dimensions that go on without credit, and those that would hold up the clock, on the real kernel.

What is asserted are states of the kernel (scheduling classes, frozen groups, context switches), never times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg import audit, config, plan, shm
from vcg.linux import mount, numa
from vcg.plan import Plan
from vcg.run import Run
from vcg.warden import Standing

pytestmark = pytest.mark.usefixtures("root")

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


@pytest.fixture(autouse=True)
def clean_host(roots: Any) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while (left := audit.leftovers(roots.state_root, roots.mount_root)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


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
        run.start()
        assert until(lambda: "frozen 1" in (group_of(pid) / "cgroup.events").read_text())
        assert until(lambda: classes(pid) == {os.SCHED_FIFO} and account(run, "d1")["held"] == Standing.FREE)
        assert "frozen 0" in (group_of(pid) / "cgroup.events").read_text()


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
