"""Ticks as the relay reads them from the ring, and what a subscriber is told about those it did not get."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vcg import shm
from vcg.relay import Subscriber, read_tick

NEWEST = 3 * shm.TICK_SLOTS
DUE = {0: (17, 0), 3: (5, 333_333_333), 30: (2, 999_999_999)}
"""Dimension -> window and phase in parts per billion."""
TICK = {"sequence": 7, "planned_ns": 100, "actual_ns": 130, "skipped": 2, "due": []}


def ring_with(sequence: int, head: int, due: dict[int, tuple[int, int]]) -> memoryview:
    """A tick ring whose head stands somewhere and that holds one tick."""
    words = memoryview(bytearray(shm.TICKS_BYTES)).cast("q")
    at = shm.TICKS_AT + sequence % shm.TICK_SLOTS * shm.TICK_WORDS
    for name, value in {
        "sequence": sequence,
        "planned_ns": 1_000,
        "actual_ns": 1_250,
        "due": sum(1 << index for index in due),
        "skipped": 4,
    }.items():
        words[at + shm.TICK.at(name)] = value
    for index, (window, phase_ppb) in due.items():
        words[at + shm.TICK_WINDOWS_AT + index] = window
        words[at + shm.TICK_PHASES_AT + index] = phase_ppb
    words[shm.TICKS_HEADER.at("head")] = head
    return words


def test_a_tick_lists_the_due_dimensions_with_window_and_phase() -> None:
    assert read_tick(ring_with(9, 10, DUE), 9) == {
        "sequence": 9,
        "planned_ns": 1_000,
        "actual_ns": 1_250,
        "skipped": 4,
        "due": [
            {"dimension": 0, "window": 17, "phase": 0.0},
            {"dimension": 3, "window": 5, "phase": 0.333333333},
            {"dimension": 30, "window": 2, "phase": 0.999999999},
        ],
    }


def test_the_orchestrator_is_not_listed_as_due() -> None:
    tick = read_tick(ring_with(9, 10, {shm.ORCHESTRATOR_BIT: (1, 0)}), 9)
    assert tick is not None
    assert tick["due"] == []


@given(st.integers(0, NEWEST), st.integers(0, shm.TICK_SLOTS) | st.integers(shm.TICK_SLOTS - 5, shm.TICK_SLOTS + 5))
@example(0, shm.TICK_SLOTS - 3)
@example(0, shm.TICK_SLOTS - 2)
def test_a_tick_is_readable_until_the_next_writing_could_touch_it(sequence: int, younger: int) -> None:
    tick = read_tick(ring_with(sequence, sequence + 1 + younger, DUE), sequence)
    assert (tick is None) == (younger + 1 >= shm.TICK_SLOTS - 1)


def test_a_slot_that_holds_another_tick_is_not_taken_for_the_wanted_one() -> None:
    assert read_tick(ring_with(9 + shm.TICK_SLOTS, 10, DUE), 9) is None


@pytest.fixture
def pair() -> Iterator[tuple[Subscriber, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(5)
    with ours, theirs:
        yield Subscriber(ours), theirs


def next_tick(of: socket.socket) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(of.recv(1 << 16))
    return told


def test_a_subscriber_gets_the_tick_and_that_it_missed_none(pair: tuple[Subscriber, socket.socket]) -> None:
    subscriber, theirs = pair
    assert subscriber.offer(TICK)
    assert next_tick(theirs) == {**TICK, "missed": 0}


def test_a_slow_subscriber_is_told_once_how_many_it_missed(pair: tuple[Subscriber, socket.socket]) -> None:
    subscriber, theirs = pair
    sent = 0
    while subscriber.missed == 0:
        assert subscriber.offer(TICK)
        sent += subscriber.missed == 0
    for _ in range(4):
        assert subscriber.offer(TICK)
    assert subscriber.missed == 5
    assert [next_tick(theirs)["missed"] for _ in range(sent)] == [0] * sent
    assert subscriber.offer(TICK)
    assert subscriber.offer(TICK)
    assert [next_tick(theirs)["missed"] for _ in range(2)] == [5, 0]


@pytest.mark.parametrize("unread", [False, True])
def test_a_subscriber_that_has_gone_is_told_apart(pair: tuple[Subscriber, socket.socket], unread: bool) -> None:
    subscriber, theirs = pair
    if unread:
        assert subscriber.offer(TICK)
    theirs.close()
    assert not subscriber.offer(TICK)
