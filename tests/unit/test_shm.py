"""Shared regions: who may write, and what survives a page of hostile content."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
from collections.abc import Iterator

import pytest

from vcg import shm


@pytest.fixture
def region() -> Iterator[tuple[int, memoryview]]:
    fd, words = shm.create("vcg-test", shm.PAGE)
    yield fd, words
    os.close(fd)


def test_a_reader_sees_what_the_owner_writes(region: tuple[int, memoryview]) -> None:
    fd, words = region
    reader = shm.attach(fd)
    words[7] = -42
    assert reader[7] == -42
    with pytest.raises(TypeError):
        reader[7] = 1


def test_nobody_but_the_owner_can_map_a_region_writable(region: tuple[int, memoryview]) -> None:
    with pytest.raises(PermissionError):
        shm.attach(region[0], writable=True)


def test_a_region_cannot_be_truncated_under_its_readers(region: tuple[int, memoryview]) -> None:
    for size in (0, 16 * shm.PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(region[0], size)


def test_a_forked_child_does_not_inherit_the_owners_mapping(region: tuple[int, memoryview]) -> None:
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        region[1][0] = 1  # a page that is not there: SIGSEGV
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert region[1][0] == 0


def test_messages_are_cut_to_the_page_and_their_length_is_not_trusted() -> None:
    words = memoryview(mmap.mmap(-1, shm.STATUS_BYTES)).cast("q")
    shm.write_message(words, "é" * shm.MESSAGE_BYTES)
    assert len(shm.read_message(words).encode()) == shm.MESSAGE_BYTES
    for forged in (-1, 2**62):
        words[shm.STATUS_HEADER.at("message_bytes")] = forged
        assert len(shm.read_message(words).encode()) <= shm.MESSAGE_BYTES


def test_declared_records_fit_their_slots() -> None:
    assert shm.WINDOW.words == shm.WINDOW_WORDS
    assert shm.TOKEN.words <= shm.TOKEN_WORDS
    assert shm.EDGE.words == shm.EDGE_WORDS
    assert shm.COUNTERS.words <= shm.COUNTER_WORDS
    assert shm.TICK.words <= shm.TICK_WINDOWS_AT
    assert shm.TICKS_HEADER.words <= shm.LATEST_AT
    assert shm.LATEST_AT + shm.MAX_DIMENSIONS <= shm.EDGES_AT
    assert shm.STATUS_HEADER.words * shm.WORD <= shm.MESSAGE_AT_BYTES


# ── what a dead process has left ─────────────────────────────────────────────────────────────────────────────────────

EPOCH = 9


def page_with(windows: range, head: int) -> memoryview:
    """A status page with a record of each of these windows, and some claim of how many there are."""
    words = memoryview(mmap.mmap(-1, shm.STATUS_BYTES)).cast("q")
    for window in windows:
        at = shm.WINDOWS_AT + window % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
        words[at], words[at + 1] = window, EPOCH
    words[shm.STATUS_HEADER.at("head")] = head
    return words


@pytest.mark.parametrize("count", [0, 1, 40, shm.WINDOW_SLOTS + 5])
def test_a_page_in_order_is_believed(count: int) -> None:
    windows = range(max(0, count - shm.WINDOW_SLOTS), count)
    assert shm.newest_record(page_with(windows, count), EPOCH, count + 10) == count - 1


@pytest.mark.parametrize("head", [-1, -(2**62), 0, 7, 41, 99, 2**62])
def test_a_claim_without_the_record_behind_it_is_not_believed(head: int) -> None:
    assert shm.newest_record(page_with(range(10, 40), head), EPOCH, 60) == 39


def test_records_of_windows_that_have_not_begun_do_not_count() -> None:
    assert shm.newest_record(page_with(range(100), 100), EPOCH, 60) == 60


def test_records_of_another_epoch_do_not_count() -> None:
    assert shm.newest_record(page_with(range(40), 40), EPOCH + 1, 60) == -1


def test_what_has_left_the_ring_is_not_claimed_back() -> None:
    latest = 5 * shm.WINDOW_SLOTS
    for page in (page_with(range(40), 40), page_with(range(0), 0)):
        assert shm.newest_record(page, EPOCH, latest) == latest - shm.WINDOW_SLOTS


def test_a_region_is_lent_to_the_children_of_one_moment_only() -> None:
    fd = shm.allocate("vcg-test", shm.PAGE)
    owned = shm.Owned(fd)
    shm.seal(fd)
    with pytest.raises(PermissionError):
        shm.Owned(fd)
    os.close(fd)
    codes = []
    for lends in (False, True, False):
        with owned.lent() if lends else contextlib.nullcontext():
            pid = os.fork()
            if pid == 0:
                faulthandler.disable()
                owned.words[0] += 1
                os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert codes == [-signal.SIGSEGV, 0, -signal.SIGSEGV]
    assert owned.words[0] == 1
