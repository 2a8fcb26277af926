"""Decisions about a dimension that goes on without credit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.linux import sched
from vcg.warden import Custody, Standing, Turnkey, Warden

FACTS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=200)


def offend(custody: Custody, window: int) -> Standing:
    return custody.judge(window, overdrawn=True, solvent=False, resting=False, restless=True)


def behave(custody: Custody, window: int) -> Standing:
    return custody.judge(window, overdrawn=False, solvent=True, resting=True, restless=False)


@given(FACTS)
def test_only_the_overdrawn_are_held_and_only_the_solvent_at_rest_set_free(
    facts: list[tuple[bool, bool, bool]],
) -> None:
    custody = Custody("demote")
    for window, (overdrawn, solvent, resting) in enumerate(facts):
        before = custody.standing
        after = custody.judge(window, overdrawn=overdrawn, solvent=solvent, resting=resting, restless=not resting)
        if before == Standing.FREE:
            assert (after != Standing.FREE) == overdrawn
        elif after == Standing.FREE:
            assert before == Standing.DEMOTED
            assert solvent
            assert resting


def test_the_first_act_is_what_the_testbed_says() -> None:
    assert offend(Custody("demote"), 5) == Standing.DEMOTED
    assert offend(Custody("freeze"), 5) == Standing.FROZEN


def test_one_slip_is_over_in_the_next_window() -> None:
    custody = Custody("demote")
    offend(custody, 5)
    assert behave(custody, 5) == Standing.DEMOTED
    assert behave(custody, 6) == Standing.FREE
    assert (custody.offences, custody.since) == (1, 5)


def test_who_does_not_rest_when_demoted_is_frozen_for_ever_longer() -> None:
    custody = Custody("demote")
    frozen, lengths = Standing.FREE, []
    for window in range(3000):
        before = custody.standing
        resting = before == Standing.FROZEN
        frozen = custody.judge(window, overdrawn=True, solvent=resting, resting=resting, restless=not resting)
        if frozen == Standing.FROZEN and before != frozen:
            lengths.append(0)
        elif frozen == Standing.FROZEN:
            lengths[-1] += 1
    assert lengths[0] < 10
    assert all(later >= 3 * earlier for earlier, later in pairwise(lengths[:-1]))


def test_who_keeps_offending_is_held_longer_and_who_has_behaved_is_not() -> None:
    def sentence(custody: Custody, window: int) -> int:
        offend(custody, window)
        length = 0
        while behave(custody, window + length) != Standing.FREE:
            length += 1
        return length

    custody = Custody("demote")
    assert [sentence(custody, window) for window in (10, 20, 40)] == [1, 4, 16]
    assert sentence(custody, 10_000) == 1


def test_who_is_only_slow_to_come_to_an_end_is_not_frozen() -> None:
    custody = Custody("demote")
    offend(custody, 5)
    for window in range(6, 100):
        slow = custody.judge(window, overdrawn=True, solvent=False, resting=False, restless=False)
        assert slow == Standing.DEMOTED
    assert behave(custody, 100) == Standing.FREE


def test_who_makes_threads_without_end_does_not_hold_a_round_up_and_they_all_get_their_class_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, scheduled = tmp_path / "cgroup.threads", dict[int, str]()
    for name in ("cpu.stat", "cgroup.freeze"):
        (tmp_path / name).touch()
    threads.write_text("100\n")

    def breed(thread: int, policy: str, priority: int) -> None:
        scheduled[thread] = policy
        threads.write_text(f"{thread}\n{thread + 1}\n")
        assert thread < 150, "it goes on for as long as there are new threads"

    def settle(thread: int, policy: str, priority: int) -> None:
        scheduled[thread] = policy

    def reschedule_by(how: Callable[[int, str, int], None]) -> None:
        monkeypatch.setattr(sched, "reschedule", how)

    warden = Warden(tmp_path, "fifo", 10, cast(Turnkey, None))
    reschedule_by(breed)
    assert not warden.apply(Standing.DEMOTED, Standing.FREE)
    reschedule_by(settle)
    assert warden.apply(Standing.FREE, Standing.FREE)
    assert scheduled == dict.fromkeys(range(100, max(scheduled) + 1), "fifo")
    assert {int(line) for line in threads.read_text().split()} <= set(scheduled)
