"""Nothing is left of a run, whichever of its processes is killed, and when; and clearing up survives being killed, too.

The storm (``vcg bench crash``) is small here. Its seed is another one each time, and told when it fails.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import crash
from experiments.bench.crash import Client
from experiments.bench.figures import Tally
from vcg import audit, config, plan, state
from vcg.linux import loop, numa
from vcg.plan import Plan

pytestmark = pytest.mark.usefixtures("root")

KILLS = 50


@pytest.fixture
def adopting() -> Iterator[None]:
    with crash.adopting():
        yield


@pytest.fixture
def testbed(roots: Any) -> Plan:
    """The storm's own, in this test's roots; the mount root is the run's to make, as it is there."""
    roots.mount_root.rmdir()
    places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
    return plan.make(config.from_mapping({**crash.TESTBED, **places}), numa.observe())


def test_a_storm_of_kills_leaves_nothing() -> None:
    seed = random.randrange(crash.SEEDS)
    figures = {figure.name: figure for figure in crash.measure(KILLS, 0, lambda arm: None, seed)}
    leaks = figures.get("leaks")
    told = leaks.rows if isinstance(leaks, Tally) else ()
    assert figures["leaked"].value == 0, f"vcg bench crash --kills {KILLS} --seed {seed}: {told}"
    assert figures["kills"].value == KILLS
    assert 0 < figures["reclaim_p50"].value <= figures["reclaim_max"].value


def left_by_a_killed_run(testbed: Plan) -> int:
    """Kill a client and its supervisor in the middle of a run, and help nobody; the supervisor's pid."""
    client = Client(testbed, "plain")
    try:
        while not client.has_reached("run"):
            client.listen(0.01)
        time.sleep(0.1)
        supervisor = client.supervisor()
        assert supervisor is not None
        for pid in (supervisor, client.pid):
            os.kill(pid, signal.SIGKILL)
    finally:
        client.close()
    return supervisor


def kinds(supervisor: int, testbed: Plan) -> set[str]:
    crash.reap()
    found = audit.leftovers_of(supervisor, Path(testbed.state_root), Path(testbed.mount_root))
    return {item.kind for item in found}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + crash.SETTLE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.usefixtures("adopting")
def test_the_audit_of_the_storm_sees_what_nobody_has_cleared(testbed: Plan) -> None:
    """The positive control: without the next start a daemon lives on, and pins its loop device and its mount."""
    supervisor = left_by_a_killed_run(testbed)
    assert kinds(supervisor, testbed) >= {"process", "cgroup", "loop", "mount", "file", "socket"}
    assert state.clear(Path(testbed.state_root)) == []
    until(lambda: not kinds(supervisor, testbed))
    assert not Path(testbed.mount_root).exists()
    Path(testbed.mount_root).mkdir()


@pytest.mark.usefixtures("adopting")
def test_to_clear_up_survives_being_killed_at_each_of_its_steps(testbed: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = left_by_a_killed_run(testbed)

    def clear_but_die_at(step: int, *, after: bool) -> int:
        """In a child; the signal that ended it, 0 if there is no such step."""
        pid = os.fork()
        if pid == 0:
            taken, attempt = count(), state.attempt

            def die_there(act: Callable[[], Any]) -> list[str]:
                here = next(taken) == step
                if here and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                problems = attempt(act)
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)
                return problems

            monkeypatch.setattr(state, "attempt", die_there)
            state.clear(Path(testbed.state_root))
            os._exit(0)
        return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    steps = next(step for step in count() if not all(clear_but_die_at(step, after=after) for after in (False, True)))
    assert steps >= 5
    assert state.clear(Path(testbed.state_root)) == []
    until(lambda: not kinds(supervisor, testbed))
    assert not loop.backed_by(Path(testbed.state_root))
    assert not Path(testbed.mount_root).exists()
    Path(testbed.mount_root).mkdir()


@pytest.mark.usefixtures("adopting")
def test_to_clear_up_survives_being_killed_at_any_moment(testbed: Plan) -> None:
    supervisor = left_by_a_killed_run(testbed)
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            state.clear(Path(testbed.state_root))
            os._exit(0)
        time.sleep(random.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert state.clear(Path(testbed.state_root)) == []
    until(lambda: not kinds(supervisor, testbed))
    assert not Path(testbed.mount_root).exists()
    Path(testbed.mount_root).mkdir()
