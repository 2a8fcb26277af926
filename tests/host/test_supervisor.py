"""The supervisor's own steps, where the kernel refuses something in the middle of them."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg import config, plan, service, supervisor
from vcg.linux import cgroup, numa
from vcg.state import StateRoot
from vcg.succession import Succession
from vcg.supervisor import Child, Life, Stage, Supervisor

pytestmark = pytest.mark.usefixtures("root")


class Switch:
    """In the place of ``cgroup.kill``: what it finds, or what the kernel says to it."""

    def __init__(self) -> None:
        self.answer: set[int] | OSError = OSError(errno.EOPNOTSUPP, "no", "cgroup.kill")

    def __call__(self, directories: Iterable[Path], deadline_ns: int) -> set[int]:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Switch:
    found = Switch()
    monkeypatch.setattr(supervisor.cgroup, "kill", found)
    return found


@pytest.fixture
def ends(roots: Any) -> Iterator[tuple[Supervisor, socket.socket]]:
    """A supervisor that has a group, not made, and nothing else; and its client's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        the_plan = plan.make(config.load("tmpfs"), numa.observe())
        made = Supervisor(the_plan, StateRoot(roots.state_root), service.Outbox(ours))
        made._group = made._groups["d1"] = cgroup.Group(cgroup.observe(), f"vcg-test-{os.getpid()}")
        yield made, theirs


def test_processes_are_ended_one_by_one_if_their_group_can_not_be(
    ends: tuple[Supervisor, socket.socket], switch: Switch, in_child: Callable[[Callable[[], object]], Any]
) -> None:
    def act() -> tuple[list[str], bool]:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            signal.pause()
        ends[0].children.append(Child("rtd", pid, os.pidfd_open(pid)))
        problems = ends[0]._end_processes()
        return problems, Path(f"/proc/{pid}").exists()

    assert in_child(act) == (["cgroup.kill: no"], False)


def test_a_dimension_whose_group_can_not_be_killed_is_down_and_told_so_once(
    ends: tuple[Supervisor, socket.socket], switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, client = ends
    announced: list[int] = []

    class Control:
        def announce_generation(self, index: int, generation: int) -> None:
            announced.append(generation)

    made._control = Control()  # type: ignore[assignment]
    life = Life(made.plan.dimensions[0], Succession(3, 5_000_000), page=None)  # type: ignore[arg-type]
    monkeypatch.setattr(supervisor, "_LEAVE_S", 0)
    made._clear_away(life, 5_000_000)
    time.sleep(0.001)
    waits_s = [made._bring_on(life) for _ in range(3)]
    assert all(waits_s)
    assert life.stage is Stage.DYING
    assert b"cgroup.kill: no" in client.recv(4096)
    with pytest.raises(BlockingIOError):
        client.recv(4096)
    switch.answer = {4_194_305}
    assert made._bring_on(life)
    switch.answer = set()
    assert made._bring_on(life) == 0
    assert life.stage is Stage.DOWN
    assert announced == [-1]
