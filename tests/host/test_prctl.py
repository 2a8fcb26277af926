"""What a process gives up about itself stays given up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from vcg.linux import prctl
from vcg.linux.libc import libc

pytestmark = pytest.mark.usefixtures("root")
_PR_GET_DUMPABLE = 3
NOBODY = 65534


def status(pid: int | str = "self") -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie, now or within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if status(pid)["State"][0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_a_name_is_cut_to_what_the_kernel_keeps(in_child: Any) -> None:
    def act() -> str:
        prctl.set_name("vcg:a-very-long-name")
        return Path("/proc/self/comm").read_text()

    assert in_child(act) == "vcg:a-very-long\n"


def orphan(*, change_uid_after: bool) -> int:
    """Fork a process that asks to die with its parent, and end the parent; the pid of what may be left."""
    told, tell = os.pipe()
    if (parent := os.fork()) == 0:
        me = os.getpid()
        if os.fork() == 0:
            prctl.die_with_parent(me)
            if change_uid_after:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(tell, os.getpid().to_bytes(4, "little"))
            signal.alarm(20)
            signal.pause()
        signal.pause()
    pid = int.from_bytes(os.read(told, 4), "little")
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    return pid


def test_a_child_dies_with_its_parent(in_child: Any) -> None:
    assert has_ended(in_child(lambda: orphan(change_uid_after=False)))


def test_a_later_change_of_uid_takes_that_away(in_child: Any) -> None:
    pid = in_child(lambda: orphan(change_uid_after=True))
    assert status(pid)["Uid"].split() == [str(NOBODY)] * 4
    os.kill(pid, signal.SIGKILL)
    assert has_ended(pid)


def test_a_parent_that_is_gone_already_is_noticed(in_child: Any) -> None:
    with pytest.raises(ProcessLookupError, match="parent 1 ended"):
        in_child(lambda: prctl.die_with_parent(1))


def test_orphans_are_adopted(in_child: Any) -> None:
    def act() -> tuple[int, int]:
        prctl.adopt_orphans()
        told, tell = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork() == 0:
                signal.alarm(20)
                signal.pause()
            os._exit(0)
        os.waitpid(between, 0)
        os.close(told)
        os.close(tell)
        (adopted,) = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
        parent = int(status(adopted)["PPid"])
        os.kill(adopted, signal.SIGKILL)
        os.waitpid(adopted, 0)
        return parent, os.getpid()

    parent, me = in_child(act)
    assert parent == me


def test_capabilities_privileges_and_dumps_are_given_up(in_child: Any) -> None:
    def act() -> tuple[dict[str, str], int]:
        prctl.drop_bounding_set()
        prctl.forbid_new_privileges()
        prctl.forbid_inspection()
        return status(), libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)

    before, (after, dumpable) = status(), in_child(act)
    assert int(before["CapBnd"], 16) != 0
    assert int(after["CapBnd"], 16) == 0
    assert (before["NoNewPrivs"], after["NoNewPrivs"]) == ("0", "1")
    assert dumpable == 0


def test_descriptors_are_closed_from_a_number_on(in_child: Any) -> None:
    def act() -> set[int]:
        os.dup2(0, 300)
        prctl.close_from(3)
        return {int(link.name) for link in Path("/proc/self/fd").iterdir()}

    kept = in_child(act)
    assert {0, 1, 2} <= kept
    assert len(kept) == 4  # and the one that listed them
    assert 300 not in kept
