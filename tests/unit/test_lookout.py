"""When a dimension is in trouble: windows missed in a row, and what the kernel has killed, whatever its page says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import shm
from vcg.lookout import Lookout, Watchdog
from vcg.shm import Outcome

OUTCOMES = st.sampled_from(list(Outcome))
LOOKS = st.lists(st.tuples(st.lists(OUTCOMES, max_size=12), st.integers(0, 6)), max_size=30)
ENTERED = (Outcome.DONE, Outcome.OVERRUN)


def alarms(limit: int, looks: Sequence[tuple[Sequence[int], int]]) -> list[bool]:
    watchdog = Watchdog(limit)
    return [watchdog.see(outcomes, unrecorded) for outcomes, unrecorded in looks]


def longest_row(outcomes: Sequence[int]) -> int:
    longest = row = 0
    for outcome in outcomes:
        row = 0 if outcome in ENTERED else row + (outcome == Outcome.MISSED)
        longest = max(longest, row)
    return longest


def test_the_last_of_so_many_in_a_row_raises_the_alarm_once() -> None:
    missed, done = Outcome.MISSED, Outcome.DONE
    looks = [([missed, missed], 0), ([missed], 0), ([missed] * 5, 0), ([done], 0), ([missed] * 3, 0)]
    assert alarms(3, looks) == [False, True, False, False, True]


def test_windows_that_go_by_unrecorded_count_at_the_second_look() -> None:
    """At the first it may be about to write them down, after the clock itself has stood still."""
    assert alarms(3, [([], 3), ([], 4), ([], 9)]) == [False, True, False]
    assert alarms(3, [([], 90), ([Outcome.SKIPPED] * 90 + [Outcome.DONE], 0), ([], 1)]) == [False, False, False]


@given(LOOKS, st.integers(1, 8))
def test_without_so_many_missed_there_is_no_alarm(looks: list[tuple[list[Outcome], int]], limit: int) -> None:
    everything = [outcome for outcomes, _ in looks for outcome in outcomes]
    if longest_row(everything) + max((unrecorded for _, unrecorded in looks), default=0) < limit:
        assert not any(alarms(limit, looks))


@given(LOOKS, st.integers(1, 8))
def test_between_two_alarms_a_window_was_entered(looks: list[tuple[list[Outcome], int]], limit: int) -> None:
    raised = [number for number, alarm in enumerate(alarms(limit, looks)) if alarm]
    for first, second in pairwise(raised):
        assert any(outcome in ENTERED for outcomes, _ in looks[first : second + 1] for outcome in outcomes)


@given(LOOKS, st.integers(1, 8))
def test_whatever_row_is_recorded_the_alarm_comes_with_it(looks: list[tuple[list[Outcome], int]], limit: int) -> None:
    recorded = [(outcomes, 0) for outcomes, _ in looks]
    everything = [outcome for outcomes, _ in looks for outcome in outcomes]
    assert any(alarms(limit, recorded)) == (longest_row(everything) >= limit)


def test_what_it_is_not_to_blame_for_is_forgiven() -> None:
    watchdog = Watchdog(3)
    assert not watchdog.see([Outcome.MISSED] * 2, 0)
    watchdog.forgive()
    assert not watchdog.see([Outcome.MISSED] * 2, 0)
    assert watchdog.see([Outcome.MISSED], 0)


# ── looking at shared memory ─────────────────────────────────────────────────────────────────────────────────────────


class Pages:
    """The pages of a dimension, to be written as the clock and the dimension would."""

    def __init__(self) -> None:
        self.status = memoryview(bytearray(shm.STATUS_BYTES)).cast("q")
        self.ticks = memoryview(bytearray(shm.TICKS_BYTES)).cast("q")
        self.recorded = 0
        self.publish(-1)

    def publish(self, window: int) -> None:
        self.ticks[shm.LATEST_AT] = window

    def record(self, outcome: Outcome, planned_ns: int = 1 << 62) -> None:
        at = shm.WINDOWS_AT + self.recorded % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
        self.status[at + shm.WINDOW.at("window")] = self.recorded
        self.status[at + shm.WINDOW.at("outcome")] = outcome
        self.status[at + shm.WINDOW.at("planned_ns")] = planned_ns
        self.recorded += 1
        self.status[shm.STATUS_HEADER.at("head")] = self.recorded


class _Index:
    index = 0


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def lookout(pages: Pages) -> Lookout:
    return Lookout(_Index(), 3, pages.status, pages.ticks)  # type: ignore[arg-type]


def test_a_dimension_that_is_stuck_is_seen_although_it_writes_nothing(pages: Pages, lookout: Lookout) -> None:
    pages.publish(0)
    pages.record(Outcome.DONE)
    pages.publish(4)  # it is in 1, 2 and 3 are missed, 4 is not over
    assert not lookout.misses()
    assert not lookout.misses()
    pages.publish(5)
    assert not lookout.misses()
    assert lookout.misses()


def test_one_that_never_enters_its_first_window_is_seen(pages: Pages, lookout: Lookout) -> None:
    pages.publish(10)
    assert [lookout.misses(), lookout.misses()] == [False, True]


def test_windows_missed_while_it_was_held_do_not_count(pages: Pages, lookout: Lookout) -> None:
    lookout.forgive()
    for _ in range(10):
        pages.record(Outcome.MISSED, planned_ns=1)
    pages.publish(9)
    assert not lookout.misses()
    assert not lookout.misses()


@pytest.mark.parametrize("head", [-(2**63), -1, 0, 2**62, 2**63 - 1])
def test_a_head_that_is_a_lie_does_no_harm(pages: Pages, lookout: Lookout, head: int) -> None:
    pages.publish(5)
    pages.status[shm.STATUS_HEADER.at("head")] = head
    for _ in range(3):
        assert lookout.misses() in (True, False)


def test_what_the_kernel_has_killed_is_told_once(tmp_path: Path, lookout: Lookout) -> None:
    file = tmp_path / "memory.events"
    told = []
    for count in (2, 2, 3, 3, 5):
        file.write_text(f"low 0\nhigh 0\nmax 7\noom 9\noom_kill {count}\noom_group_kill 0\n")
        lookout.begin(str(file))  # at first, and whenever there is another process: nothing is forgotten then
        told.append(lookout.was_short_of_memory(str(file)))
    assert told == [False, False, True, False, True]
    file.unlink()
    assert not lookout.was_short_of_memory(str(file))
    assert not lookout.was_short_of_memory(None)
