"""Forked children, for what a process can only do to itself: enter a cgroup, leave a namespace, give up its uid;
and whether a test has left something.

A child reports over descriptor 1, because a sandbox closes all others but 0 to 2.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from vcg import audit

PATIENCE_S = 20
SETTLE_S = 5


class Staying(NamedTuple):
    """A child that has done something and goes on living; ``said`` is what that returned."""

    pid: int
    said: Any


def fork(act: Callable[[], object], *, stay: bool) -> tuple[int, int]:
    """A child that acts and tells what came of it; its pid and the pipe it tells it through."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return pid, told
    try:
        os.dup2(tell, 1)
        try:
            report = pickle.dumps((act(), None))
        except BaseException as error:
            error.add_note(traceback.format_exc())
            report = pickle.dumps((None, error))
        with open(1, "wb", closefd=False) as pipe:
            pipe.write(len(report).to_bytes(8, "little") + report)
        if stay:
            while True:
                signal.pause()
    finally:
        os._exit(0)


def listen(told: int) -> Any:
    """What the child's act returned, or raised."""
    received = b""
    while len(received) < 8 or len(received) < 8 + int.from_bytes(received[:8], "little"):
        assert select.select([told], [], [], PATIENCE_S)[0], "the child says nothing"
        received += (piece := os.read(told, 1 << 16))
        assert piece, "the child died"
    said, error = pickle.loads(received[8:])
    if error is not None:
        raise error
    return said


@contextmanager
def stay(act: Callable[[], object]) -> Iterator[Staying]:
    pid, told = fork(act, stay=True)
    try:
        yield Staying(pid, listen(told))
    finally:
        os.close(told)
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run(act: Callable[[], object]) -> Any:
    pid, told = fork(act, stay=False)
    try:
        return listen(told)
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], Any]:
    """``in_child(act)``: call ``act`` in a forked child and return, or raise, what came of it."""
    return run


@pytest.fixture
def child_that() -> Callable[[Callable[[], object]], Any]:
    """``with child_that(act) as child:`` a forked child that has called ``act`` and stays until the block ends."""
    return stay


@pytest.fixture
def clean_host(roots: Any) -> Iterator[None]:
    """Nothing of a run is left, of whatever kind."""
    yield
    assert left_after_a_while(roots) == []


@pytest.fixture
def clean_roots(roots: Any) -> Iterator[None]:
    """Nothing is left below the roots; groups and processes may be another run's, and are for the suite to judge."""
    yield
    assert left_after_a_while(roots, {"loop", "mount", "socket", "file"}) == []


def left_after_a_while(roots: Any, kinds: Collection[str] = ()) -> list[audit.Leftover]:
    """What a test has left; a process that init has yet to reap gets a moment."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = audit.leftovers(roots.state_root, roots.mount_root)
        left = [item for item in found if not kinds or item.kind in kinds]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)
