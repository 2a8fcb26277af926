"""A run's shared memory as its readers find it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from vcg import config, plan, shm
from vcg.plan import HostShape
from vcg.regions import Regions, WindowRecord, windows_of

SLOTS = shm.WINDOW_SLOTS
MADE = plan.make(config.load("tmpfs"), HostShape((0, 1), {0: 0, 1: 0}))


class Owned(NamedTuple):
    """The regions of a run as their owners see them, and as a reader does."""

    control: memoryview
    ticks: memoryview
    tokens: memoryview
    status: dict[str, memoryview]
    read: Regions


@pytest.fixture
def owned() -> Iterator[Owned]:
    sizes = [shm.CONTROL_BYTES, shm.TICKS_BYTES, shm.TOKENS_BYTES, shm.GAUGES_BYTES]
    made = [shm.create("vcg-test", size) for size in [*sizes, *[shm.STATUS_BYTES] * len(MADE.dimensions)]]
    control, ticks, tokens, _, *status = (words for _, words in made)
    ticks[shm.LATEST_AT : shm.LATEST_AT + len(MADE.dimensions)] = memoryview(
        struct.pack(f"={len(MADE.dimensions)}q", *[-1] * len(MADE.dimensions))
    ).cast("q")
    regions = Regions(MADE, [fd for fd, _ in made])
    yield Owned(
        control, ticks, tokens, {d.name: page for d, page in zip(MADE.dimensions, status, strict=True)}, regions
    )
    regions.release()


def report(status: memoryview, windows: range) -> None:
    """Leave a record of each of these windows, as a dimension does."""
    head_at = shm.STATUS_HEADER.at("head")
    for window in windows:
        status[shm.WINDOWS_AT + status[head_at] % SLOTS * shm.WINDOW_WORDS] = window
        status[head_at] += 1


def numbers_of(raw: bytes) -> list[int]:
    return memoryview(raw).cast("q").tolist()[:: shm.WINDOW_WORDS]


def test_every_record_is_drained_once(owned: Owned) -> None:
    report(owned.status["d4"], range(5))
    assert numbers_of(owned.read.drain()["d4"]) == [0, 1, 2, 3, 4]
    report(owned.status["d4"], range(5, 7))
    assert numbers_of(owned.read.drain()["d4"]) == [5, 6]
    assert numbers_of(owned.read.drain()["d4"]) == []
    assert owned.read.records_lost["d4"] == 0


def test_records_that_were_overwritten_are_counted(owned: Owned) -> None:
    report(owned.status["d4"], range(SLOTS + 100))
    fresh = numbers_of(owned.read.drain()["d4"])
    assert fresh == list(range(101, SLOTS + 100))  # the slot after the newest may be in the hands of its writer
    assert owned.read.records_lost["d4"] == 101


def test_who_attaches_later_begins_with_the_last_span(owned: Owned) -> None:
    report(owned.status["d4"], range(100))
    report(owned.status["d1"], range(2))
    owned.read.begin_at(60_000_000)
    fresh = owned.read.drain()
    assert numbers_of(fresh["d4"]) == list(range(90, 100))  # windows of 6 ms
    assert numbers_of(fresh["d1"]) == [0, 1]
    assert sum(owned.read.records_lost.values()) == 0


def test_a_span_longer_than_the_ring_is_all_that_the_ring_holds(owned: Owned) -> None:
    report(owned.status["d4"], range(SLOTS + 50))
    owned.read.begin_at(3600 * 10**9)
    assert numbers_of(owned.read.drain()["d4"]) == list(range(51, SLOTS + 50))
    assert owned.read.records_lost["d4"] == 0


@pytest.mark.parametrize("head", [-(1 << 62), -1, 1 << 62])
def test_a_head_out_of_range_yields_no_more_than_a_ring(owned: Owned, head: int) -> None:
    owned.status["d4"][shm.STATUS_HEADER.at("head")] = head
    owned.read.begin_at(10**9)
    assert len(numbers_of(owned.read.drain()["d4"])) < SLOTS


def test_accounts_amplitudes_and_credits_are_told_by_name(owned: Owned) -> None:
    owned.tokens[shm.COUNTERS_AT + 3 * shm.COUNTER_WORDS + shm.COUNTERS.at("owed_ns")] = 77
    owned.control[shm.CREDITS_AT + 3] = 1234
    owned.control[shm.AMPLITUDES_AT + 3] = 2_500_000
    assert owned.read.accounts()["d4"] == dict.fromkeys(shm.COUNTERS.fields, 0) | {"owed_ns": 77}
    assert (owned.read.credits_ns()["d4"], owned.read.amplitudes()["d4"]) == (1234, 2.5)


def test_a_reader_cannot_write(owned: Owned) -> None:
    for region in (owned.read.control, owned.read.ticks, owned.read.tokens, owned.read.gauges):
        with pytest.raises(TypeError):
            region[0] = 1


def test_the_descriptors_are_not_kept() -> None:
    sizes = [shm.CONTROL_BYTES, shm.TICKS_BYTES, shm.TOKENS_BYTES, shm.GAUGES_BYTES]
    fds = [shm.create("vcg-test", size)[0] for size in [*sizes, *[shm.STATUS_BYTES] * len(MADE.dimensions)]]
    regions = Regions(MADE, fds)
    regions.release()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_windows_that_were_published_but_left_no_record_are_told(owned: Owned) -> None:
    owned.ticks[shm.LATEST_AT + 3] = 9
    report(owned.status["d4"], range(4))
    assert owned.read.unrecorded() == {d.name: 6 if d.name == "d4" else 0 for d in MADE.dimensions}
    owned.status["d4"][shm.STATUS_HEADER.at("head")] = 1 << 40
    assert owned.read.unrecorded()["d4"] == 0, "what a dimension writes is not believed beyond that"


def test_a_window_is_read_as_it_is_laid_out() -> None:
    assert WindowRecord._fields == shm.WINDOW.fields
    words = list(range(2 * shm.WINDOW_WORDS))
    first, second = windows_of(struct.pack(f"={len(words)}q", *words))
    assert (first.window, first.cause, second.window) == (0, 11, 12)
    assert windows_of(b"") == []
