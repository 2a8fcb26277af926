"""Messages between the runtime's processes, the descriptors that travel with them, and the control page."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcg import service, shm
from vcg.shm import Phase

Pair = tuple[socket.socket, socket.socket]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(5)
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), PLAIN, max_size=4))
def test_a_message_arrives_as_it_was_sent(pair: Pair, message: dict[str, Any]) -> None:
    ours, theirs = pair
    service.send(ours, message)
    assert service.receive(theirs) == (message, [])


def test_messages_stay_apart_and_in_order(pair: Pair) -> None:
    ours, theirs = pair
    for number in range(3):
        service.send(ours, {"number": number})
    assert [service.receive(theirs)[0] for _ in range(3)] == [{"number": number} for number in range(3)]


@pytest.mark.parametrize("count", [1, 40])
def test_descriptors_arrive_in_order_and_are_closed_on_exec(pair: Pair, count: int) -> None:
    ours, theirs = pair
    regions = [os.memfd_create(f"vcg-test-{number}") for number in range(count)]
    received: list[int] = []
    try:
        service.send(ours, {"ready": "rtd"}, regions)
        message, received = service.receive(theirs)
        assert message == {"ready": "rtd"}
        assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(fd).st_ino for fd in regions]
        assert not set(received) & set(regions)
        assert not any(map(os.get_inheritable, received))
    finally:
        for fd in [*regions, *received]:
            os.close(fd)


def test_the_end_of_the_other_side_is_no_message(pair: Pair) -> None:
    ours, theirs = pair
    service.send(ours, {"last": True})
    ours.close()
    assert service.receive(theirs) == ({"last": True}, [])
    assert service.receive(theirs) == (None, [])
    assert service.receive(theirs) == (None, [])


def test_the_end_of_a_side_that_left_messages_unread_is_no_message_either(pair: Pair) -> None:
    ours, theirs = pair
    service.send(theirs, {"never": "read"})
    ours.close()
    assert service.receive(theirs) == (None, [])


def test_the_last_words_of_a_side_that_left_messages_unread_are_not_lost(pair: Pair) -> None:
    ours, theirs = pair
    service.send(theirs, {"never": "read"})
    service.send(ours, {"last": True})
    ours.close()
    assert service.receive(theirs) == ({"last": True}, [])
    assert service.receive(theirs) == (None, [])


def test_a_change_of_credits_is_complete_before_it_is_announced() -> None:
    control = service.Control(epoch=3)
    try:
        page = shm.attach(control.fd)
        control.write_credits([100, 200], [1.0, 2.5])
        assert page[shm.CREDITS_AT : shm.CREDITS_AT + 2].tolist() == [100, 200]
        assert page[shm.AMPLITUDES_AT : shm.AMPLITUDES_AT + 2].tolist() == [1_000_000, 2_500_000]
        assert page[shm.CONTROL.at("tuning")] == 0
        control.announce_credits()
        assert page[shm.CONTROL.at("tuning")] == 1
    finally:
        os.close(control.fd)


def test_a_change_of_phase_is_seen_by_who_waits_for_it() -> None:
    control = service.Control(epoch=3)
    try:
        page = shm.attach(control.fd)
        assert page[shm.CONTROL.at("epoch")] == 3
        for phase, start_ns in ((Phase.RUN, 12_345), (Phase.HALT, None), (Phase.FINISH, None)):
            before = page[shm.CONTROL.at("phase")]
            control.enter(phase, start_ns)
            assert service.wait_for_other(page, before) == phase
            assert page[shm.CONTROL.at("start_ns")] == 12_345
    finally:
        os.close(control.fd)
