"""Which uids a run may have: the first range that is free, among those that nobody else gives out."""

from __future__ import annotations

import pytest

from vcg import uids
from vcg.errors import RunError
from vcg.shm import MAX_DIMENSIONS


def test_every_run_gets_the_first_range_that_no_other_has() -> None:
    taken: list[range] = []
    for _ in range(uids.RANGES):
        taken.append(uids.first_free(lambda one: one not in taken))
    assert [len(one) for one in taken] == [MAX_DIMENSIONS] * uids.RANGES
    assert [uid for one in taken for uid in one] == list(range(uids.FIRST, uids.SPARE.start))
    taken.remove(freed := taken[5])
    assert uids.first_free(lambda one: one not in taken) == freed


def test_no_further_range_is_asked_for_than_needed() -> None:
    asked = []
    uids.first_free(lambda one: not asked.append(one) and len(asked) == 3)  # type: ignore[func-returns-value]
    assert len(asked) == 3


def test_that_all_ranges_are_taken_is_told() -> None:
    with pytest.raises(RunError, match=r"uids 70000 to 72047: all 64 ranges are taken by .*: stop a run"):
        uids.first_free(lambda one: False)


def test_nobody_else_gives_these_uids_out() -> None:
    """Not 16-bit ones (people, services, nobody), nor the subordinate ones of users."""
    assert uids.ALL.start > 0xFFFF
    assert uids.ALL.stop <= 100_000
    assert set(uids.SPARE) < set(uids.ALL)
