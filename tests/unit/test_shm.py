"""Shared regions: who may write, and what survives a page of hostile content."""

from __future__ import annotations

import faulthandler
import mmap
import os
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
