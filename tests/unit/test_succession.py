"""When a dimension's process may be replaced, and after how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vcg.succession import BACKOFF_MAX_NS, GOOD_WINDOWS, Succession

LIMITS = st.integers(0, 20)
BACKOFFS = st.integers(1_000_000, BACKOFF_MAX_NS)
KEPT = st.lists(st.integers(0, 3 * GOOD_WINDOWS), max_size=60)
"""How many windows each process has kept when it fails."""


@given(LIMITS, BACKOFFS, KEPT)
def test_no_more_than_the_limit_are_restarted_in_a_row(limit: int, backoff_ns: int, kept: list[int]) -> None:
    succession, row = Succession(limit, backoff_ns), 0
    for windows in kept:
        delay_ns = succession.fail(windows)
        row = 1 if windows >= GOOD_WINDOWS else row + 1
        assert (delay_ns is not None) == (row <= limit)
        if delay_ns is None:
            return


@given(st.integers(1, 60), BACKOFFS)
def test_every_wait_in_a_row_is_twice_the_one_before_up_to_a_maximum(limit: int, backoff_ns: int) -> None:
    succession = Succession(limit, backoff_ns)
    waits = [succession.fail(0) for _ in range(limit)]
    assert waits == [min(backoff_ns * 2**n, BACKOFF_MAX_NS) for n in range(limit)]


@given(LIMITS, BACKOFFS, KEPT)
def test_who_has_made_good_waits_no_longer_than_the_first_time(limit: int, backoff_ns: int, kept: list[int]) -> None:
    succession = Succession(limit, backoff_ns)
    for windows in kept:
        succession.fail(windows)
    assert succession.fail(GOOD_WINDOWS) == (min(backoff_ns, BACKOFF_MAX_NS) if limit else None)
