"""Ranges of uids on the real kernel: whose a range is, when it is free again, and what its next users find."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg import uids
from vcg.errors import RunError
from vcg.linux import sysvipc
from vcg.linux.libc import check, libc, syscall

pytestmark = pytest.mark.usefixtures("root", "lock")
_EXIT = 60  # asm/unistd_64.h: of one thread
FIRST, SECOND = range(uids.ALL.stop, uids.ALL.stop + 32), range(uids.ALL.stop + 32, uids.ALL.stop + 64)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The lock of two ranges that are nobody's."""
    monkeypatch.setattr(uids, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(uids, "FIRST", FIRST.start)
    monkeypatch.setattr(uids, "SPARE", range(SECOND.stop, SECOND.stop + 32))
    yield tmp_path / "lock"
    for left in (FIRST, SECOND):
        uids.sweep(left.start)


def be(uid: int) -> None:
    os.setresuid(uid, uid, uid)


def share(uid: int) -> None:
    be(uid)
    check(libc.shmget(0, 4096, 0o1600), "shmget")


def shared() -> list[int]:
    return sorted(one.uid for one in sysvipc.objects() if one.uid in (*FIRST, *SECOND))


def test_two_runs_have_different_ranges_and_a_third_is_refused(child_that: Any, in_child: Any) -> None:
    with child_that(uids.claim) as one, child_that(uids.claim) as other:
        assert (one.said, other.said) == (FIRST, SECOND)
        with pytest.raises(RunError, match="expected one that is free"):
            in_child(uids.claim)
    assert in_child(uids.claim) == FIRST


def test_only_root_may_take_part(lock: Path, in_child: Any) -> None:
    in_child(uids.claim)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_a_range_is_free_once_its_process_was_killed_although_a_fork_lives_on(child_that: Any, in_child: Any) -> None:
    def act() -> int:
        uids.claim()
        if (pid := os.fork()) == 0:
            signal.alarm(20)
            signal.pause()
        return pid

    with child_that(act) as child:
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert in_child(uids.claim) == FIRST
    finally:
        os.kill(child.said, signal.SIGKILL)


def test_a_range_is_not_free_while_one_of_its_users_is_alive(child_that: Any, in_child: Any) -> None:
    with child_that(lambda: be(FIRST[-1])) as survivor:
        with child_that(uids.claim) as child:
            assert child.said == SECOND
        os.kill(survivor.pid, signal.SIGKILL)
        os.waitid(os.P_PID, survivor.pid, os.WEXITED | os.WNOWAIT)
        assert in_child(uids.claim) == FIRST, "a zombie does nothing any more"


def test_a_process_whose_first_thread_has_ended_is_alive(in_child: Any) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            be(FIRST[0])
            threading.Thread(target=time.sleep, args=(20,)).start()
            syscall(_EXIT, 0, name="exit")
        finally:
            os._exit(1)
    try:
        while "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)
        assert in_child(uids.claim) == SECOND
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_who_claims_a_range_finds_nothing_of_its_last_users(in_child: Any) -> None:
    for uid in (FIRST[0], FIRST[-1], SECOND[0]):
        in_child(lambda uid=uid: share(uid))
    assert in_child(uids.claim) == FIRST
    assert shared() == [SECOND[0]]
    uids.sweep(SECOND.start)
    assert shared() == []


def test_to_sweep_takes_nothing_from_a_run_and_gives_its_range_to_nobody(child_that: Any, in_child: Any) -> None:
    with child_that(uids.claim):
        in_child(lambda: share(FIRST[0]))
        uids.sweep(FIRST.start)
        assert shared() == [FIRST[0]]
        assert in_child(uids.claim) == SECOND
    uids.sweep(FIRST.start)
    assert shared() == []
