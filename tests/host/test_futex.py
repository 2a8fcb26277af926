"""Futex waits by bit: exactly those wake whose bit is set, also on memory that they may only read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vcg import shm
from vcg.linux import futex

pytestmark = pytest.mark.usefixtures("root")
_SYS_FUTEX = "202 "


class Word(NamedTuple):
    """A futex word of ours in a sealed memfd: the descriptor for others, the writable word, and its waker."""

    fd: int
    cell: memoryview
    wake: Callable[[int], int]


@pytest.fixture
def word() -> Iterator[Word]:
    fd, words = shm.create("vcg-test", shm.PAGE)
    yield Word(fd, words[:1].cast("B").cast("I"), futex.waker(futex.address_of(words, 0)))
    os.close(fd)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def sleeps(pid: int) -> bool:
    """Whether a process is inside futex(2)."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith(_SYS_FUTEX)


def wait_read_only(fd: int, bit: int) -> None:
    """Wait as a dimension does: on a mapping that this process may only read."""
    words = shm.attach(fd)
    assert words.readonly
    futex.waiter(futex.address_of(words, 0), bit)(0)


def start_waiter(fd: int, bit: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            wait_read_only(fd, bit)
        finally:
            os._exit(0)
    return pid


def test_a_wake_reaches_exactly_the_waiters_whose_bits_it_names(word: Word) -> None:
    bits = [1 << 0, 1 << 1, 1 << 2, 1 << 31]
    pids = {bit: start_waiter(word.fd, bit) for bit in bits}
    with ExitStack() as undo:
        undo.callback(lambda: [os.waitpid(pid, 0) for pid in pids.values()])
        undo.callback(word.wake, futex.MATCH_ANY)
        wait_for(lambda: all(map(sleeps, pids.values())))
        assert word.wake(1 << 1 | 1 << 5) == 1
        os.waitpid(pids.pop(1 << 1), 0)
        assert all(map(sleeps, pids.values()))
        assert word.wake(1 << 1) == 0
        assert word.wake(1 << 0 | 1 << 31) == 2
        for bit in (1 << 0, 1 << 31):
            os.waitpid(pids.pop(bit), 0)
        assert sleeps(pids[1 << 2])
        assert word.wake(futex.MATCH_ANY) == 1


def test_a_wait_returns_at_once_if_the_word_has_changed(word: Word, in_child: Any) -> None:
    word.cell[0] = 7
    in_child(lambda: wait_read_only(word.fd, 1))
    assert word.wake(futex.MATCH_ANY) == 0


def test_a_wait_with_a_deadline_ends_not_before_it(word: Word, in_child: Any) -> None:
    def act() -> int:
        address = futex.address_of(words := shm.attach(word.fd), 0)
        deadline_ns = time.monotonic_ns() + 20_000_000
        futex.wait_until(address, 0, deadline_ns)
        left_ns = deadline_ns - time.monotonic_ns()
        words.release()
        return left_ns

    assert in_child(act) <= 0


def test_a_wait_with_a_deadline_ends_at_once_when_it_has_passed_or_the_word_has_changed(
    word: Word, in_child: Any
) -> None:
    def act(deadline_ns: int) -> str:
        words = shm.attach(word.fd)
        futex.wait_until(futex.address_of(words, 0), 0, deadline_ns)
        return "back"

    assert in_child(lambda: act(0)) == "back"
    word.cell[0] = 1
    assert in_child(lambda: act(time.monotonic_ns() + 3600 * 10**9)) == "back"


def test_a_wait_with_a_deadline_can_be_woken_before_it(word: Word) -> None:
    def wait() -> None:
        words = shm.attach(word.fd)
        futex.wait_until(futex.address_of(words, 0), 0, time.monotonic_ns() + 3600 * 10**9, 1 << 3)

    pid = os.fork()
    if pid == 0:
        try:
            wait()
        finally:
            os._exit(0)
    try:
        wait_for(lambda: sleeps(pid))
        assert word.wake(1 << 2) == 0
        assert word.wake(1 << 3) == 1
    finally:
        word.wake(futex.MATCH_ANY)
        assert os.waitpid(pid, 0) == (pid, 0)


def test_the_address_of_a_word_depends_on_its_index(word: Word) -> None:
    words = shm.attach(word.fd)
    assert futex.address_of(words, 3) - futex.address_of(words, 0) == 3 * shm.WORD
