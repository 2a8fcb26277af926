"""Messages between the runtime's processes, the descriptors that travel with them, and the control page."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcg import service, shm
from vcg.service import NEWS_KEPT, Outbox
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


# ── for whom nobody waits ───────────────────────────────────────────────────────────────────────────────────────────


def received(theirs: socket.socket, box: Outbox) -> list[dict[str, Any]]:
    """What the other side gets when it reads again, while the box is flushed whenever there is room."""
    theirs.setblocking(False)
    messages = []
    while True:
        try:
            message, fds = service.receive(theirs)
        except BlockingIOError:
            if not box.is_waiting:
                return messages
            box.flush()
            continue
        for fd in fds:
            os.close(fd)
        assert message is not None
        messages.append({**message, "fds": len(fds)} if fds else message)


def test_to_who_does_not_read_nothing_is_lost_and_nobody_waits(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(None)
    box = Outbox(ours)
    box.answer({"number": 0}, [0, 1])
    sent = 1
    while not box.is_waiting or sent % 100:
        box.tell({"number": sent})
        sent += 1
    box.answer({"number": sent}, [0, 1, 2])
    expected = [{"number": number} for number in range(sent + 1)]
    expected[0]["fds"], expected[-1]["fds"] = 2, 3
    assert received(theirs, box) == expected


def test_of_too_much_news_the_oldest_goes_and_no_answer(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(None)
    box = Outbox(ours)
    at_once = 0
    while not box.is_waiting:
        box.tell({"number": at_once})
        at_once += 1
    box.answer({"number": "first"})
    for number in range(at_once, at_once + 2 * NEWS_KEPT):
        box.tell({"number": number})
    box.answer({"number": "last"})
    numbers = [message["number"] for message in received(theirs, box)]
    newest = list(range(at_once + NEWS_KEPT, at_once + 2 * NEWS_KEPT))
    assert numbers == [*range(at_once - 1), "first", *newest, "last"]


def test_an_offer_is_taken_at_once_or_not_at_all_and_overtakes_nobody(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(None)
    box = Outbox(ours)
    box.offer({"number": 0})
    assert service.receive(theirs) == ({"number": 0}, [])
    while not box.is_waiting:
        box.tell({"fill": "x"})
    with pytest.raises(BlockingIOError):
        box.offer({"number": 1})
    assert {"number": 1} not in received(theirs, box)
    box.offer({"number": 2})


def test_who_has_gone_away_is_told_nothing_more(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(None)
    box = Outbox(ours)
    while not box.is_waiting:
        box.tell({"fill": "x"})
    theirs.close()
    box.deliver()
    assert not box.is_waiting
    box.answer({"number": 1})
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        box.offer({"number": 2})


def test_at_the_end_one_can_wait_until_all_is_taken(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(None)
    box = Outbox(ours)
    sent = 0
    while not box.is_waiting:
        box.tell({"number": sent})
        sent += 1
    numbers: list[int] = []

    def read() -> None:
        while len(numbers) < sent:
            message, _ = service.receive(theirs)
            assert message is not None
            numbers.append(message["number"])

    thread = threading.Thread(target=read)
    thread.start()
    box.deliver()
    thread.join()
    assert numbers == list(range(sent))


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
