"""What the supervisor has asked of the snapshotter, played by a test: nothing it does, or fails to do, goes further."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg import orders, service
from vcg.errors import RunError
from vcg.orders import KEPT, Orders

Message = dict[str, Any]
PATIENCE_S = 100.0


class Bench:
    """The orders of a run with two dimensions, the snapshotters that were started, and what was told."""

    def __init__(self, place: Path) -> None:
        self.theirs: list[socket.socket] = []
        self.told: list[Message] = []
        self.switches = {name: place / name / "cgroup.freeze" for name in ("d1", "d2")}
        for switch in self.switches.values():
            switch.parent.mkdir()
            switch.write_text("0")
        sources = {name: {"cell": str(switch.parent), "pid": 1} for name, switch in self.switches.items()}
        self.killed: list[int] = []
        self.orders = Orders(self.begin, 77, sources, self.told.append, self.killed.append, PATIENCE_S)

    def begin(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.settimeout(5)
        self.theirs.append(theirs)
        return 1000 + len(self.theirs), ours

    def heard(self) -> Message:
        message, _ = service.receive(self.theirs[-1])
        assert message is not None
        return message

    def say(self, **message: Any) -> None:
        service.send(self.theirs[-1], message)
        self.orders.hear()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.orders.finish(0)
    for one in made.theirs:
        one.close()


def test_the_first_order_starts_a_snapshotter_and_tells_it_all(bench: Bench) -> None:
    assert bench.theirs == []
    number = bench.orders.order("d1", "demand")
    assert bench.orders.pid == 1001
    facts = bench.heard()
    assert facts["began_ns"] == 77
    assert set(facts["sources"]) == {"d1", "d2"}
    assert bench.heard() == {"number": number, "dimension": "d1", "why": "demand", "process": {}}
    bench.orders.order("d2", "demand")
    assert len(bench.theirs) == 1


def test_a_result_can_be_asked_for_and_is_told(bench: Bench) -> None:
    number = bench.orders.order("d1", "demand")
    assert bench.orders.result(number) is None
    assert bench.orders.is_open("d1")
    assert not bench.orders.is_open("d2")
    bench.say(event="step", name="snapshot copy", dimension="d1")
    bench.say(event="snapshot", number=number, dimension="d1", why="demand", path="/x")
    assert bench.orders.result(number)["path"] == "/x"  # type: ignore[index]
    assert not bench.orders.is_open()
    assert [one["event"] for one in bench.told] == ["step", "snapshot"]


def test_what_it_takes_of_its_own_accord_is_told(bench: Bench) -> None:
    bench.orders.engage()
    bench.say(event="snapshot", number=None, dimension="d2", why="watchdog", path="/x")
    assert [one["why"] for one in bench.told] == ["watchdog"]


def test_a_death_that_is_no_occasion_is_closed_in_silence(bench: Bench) -> None:
    number = bench.orders.order("d1", "death", {"code": 1})
    bench.say(event="declined", number=number)
    assert not bench.orders.is_open()
    assert bench.told == []
    with pytest.raises(RunError, match=f"order {number}: not known"):
        bench.orders.result(number)


def test_only_the_newest_results_are_kept(bench: Bench) -> None:
    numbers = []
    for _ in range(KEPT + 5):
        numbers.append(bench.orders.order("d1", "demand"))
        bench.say(event="snapshot", number=numbers[-1], dimension="d1", why="demand", path="/x")
    assert bench.orders.result(numbers[-1]) is not None
    with pytest.raises(RunError, match="expected one of the last"):
        bench.orders.result(numbers[0])


def test_when_the_snapshotter_dies_what_was_held_is_thawed_and_what_was_open_has_failed(bench: Bench) -> None:
    number = bench.orders.order("d1", "death", {"code": -9})
    bench.orders.hold("d1")
    assert bench.switches["d1"].read_text() == "1"
    bench.theirs[-1].close()
    bench.orders.hear()
    assert bench.switches["d1"].read_text() == "0"
    assert "d1: the snapshotter has gone before it was done" in bench.orders.result(number)["error"]  # type: ignore[index]
    assert bench.told == [bench.orders.result(number)]
    bench.orders.lost("was killed")  # the news of its death come twice
    assert len(bench.told) == 1


def test_one_that_dies_at_once_is_not_followed_by_another_until_somebody_asks(bench: Bench) -> None:
    bench.orders.engage()
    bench.theirs[-1].close()
    bench.orders.hear()
    assert len(bench.theirs) == 1
    bench.orders.order("d1", "demand")
    assert len(bench.theirs) == 2


def test_one_that_has_lived_is_followed_by_another_that_knows_the_present_processes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "_LIFE_MIN_NS", 0)
    bench.orders.engage()
    bench.orders.update("d1", pid=4711, generation=2)
    bench.theirs[-1].close()
    bench.orders.hear()
    assert len(bench.theirs) == 2
    assert bench.heard()["sources"]["d1"]["pid"] == 4711


def test_a_snapshotter_that_does_not_listen_holds_nobody(bench: Bench) -> None:
    with pytest.raises(RunError, match="d1: the snapshotter cannot be asked"):
        for _ in range(10_000):
            bench.orders.order("d1", "demand")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time go by, in seconds."""
    now_ns = [time.monotonic_ns()]
    monkeypatch.setattr(orders.time, "monotonic_ns", lambda: now_ns[0])

    def pass_by(seconds: float) -> None:
        now_ns[0] += round(seconds * 1e9)

    return pass_by


def test_one_that_hangs_over_an_order_is_killed_and_holds_nobody_any_more(
    bench: Bench, clock: Callable[[float], None]
) -> None:
    assert bench.orders.mind() is None
    number = bench.orders.order("d1", "death", {"code": -9})
    bench.orders.hold("d1")
    assert bench.orders.mind() == PATIENCE_S
    clock(PATIENCE_S - 1)
    assert bench.orders.mind() == pytest.approx(1)
    assert bench.killed == []
    clock(1)
    assert bench.orders.mind() is None
    assert bench.killed == [1001]
    assert bench.switches["d1"].read_text() == "0"
    error = "d1: the snapshotter has said nothing for 100 s and was killed before it was done"
    assert bench.orders.result(number)["error"] == error  # type: ignore[index]
    assert not bench.orders.is_open()
    assert len(bench.theirs) == 2, "the next one is there"


def test_each_word_of_it_is_a_sign_of_life_and_idleness_is_no_silence(
    bench: Bench, clock: Callable[[float], None]
) -> None:
    number = bench.orders.order("d1", "demand")
    for step in ("sync", "freeze", "copy"):
        clock(PATIENCE_S - 1)
        bench.say(event="step", name=f"snapshot {step}", dimension="d1")
        assert bench.orders.mind() == PATIENCE_S
    bench.say(event="snapshot", number=number, dimension="d1", why="demand", path="/x")
    assert bench.orders.mind() is None
    clock(10 * PATIENCE_S)
    assert bench.orders.mind() is None
    bench.orders.order("d2", "demand")
    assert bench.orders.mind() == PATIENCE_S


def test_one_that_hangs_over_what_it_does_of_its_own_accord_is_killed_too(
    bench: Bench, clock: Callable[[float], None]
) -> None:
    bench.orders.engage()
    bench.say(event="step", name="snapshot freeze", dimension="d2")
    bench.switches["d2"].write_text("1")
    clock(PATIENCE_S)
    assert bench.orders.mind() is None
    assert bench.killed == [1001]
    assert bench.switches["d2"].read_text() == "0"


def test_at_the_end_what_is_not_done_is_given_up_and_none_is_started_any_more(bench: Bench) -> None:
    number = bench.orders.order("d1", "demand")
    bench.orders.hold("d1")
    bench.orders.finish(0.05)
    assert "was given up after 0 s" in bench.orders.result(number)["error"]  # type: ignore[index]
    assert bench.switches["d1"].read_text() == "0"
    assert len(bench.theirs) == 1


def test_at_the_end_what_is_nearly_done_is_waited_for(bench: Bench) -> None:
    number = bench.orders.order("d1", "demand")
    service.send(bench.theirs[-1], {"event": "snapshot", "number": number, "dimension": "d1", "why": "x", "path": "/x"})
    bench.orders.finish(5)
    assert bench.orders.result(number)["path"] == "/x"  # type: ignore[index]


def test_what_a_busy_snapshotter_has_no_room_for_is_told_as_it_is_when_there_is_room(bench: Bench) -> None:
    bench.orders.engage()
    for pid in range(1, 5000):
        bench.orders.update("d1", pid=pid)
        bench.orders.update("d2", pid=-pid)
    known: dict[str, int] = {}
    bench.theirs[-1].setblocking(False)
    with select.epoll() as supervisor:
        supervisor.register(bench.orders, select.EPOLLIN)
        for _ in range(5000):
            try:
                known |= {name: source["pid"] for name, source in bench.heard()["sources"].items()}
            except BlockingIOError:
                if not supervisor.poll(0):
                    break
                bench.orders.hear()
    assert known == {"d1": 4999, "d2": -4999}
    assert len(bench.theirs) == 1
