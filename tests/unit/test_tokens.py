"""The ledger: minting in order, settling once, and books that always balance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.tokens import Account

CREDIT_NS = 1000
USES = st.lists(st.one_of(st.none(), st.integers(min_value=0, max_value=3 * CREDIT_NS)), max_size=60)


def settled(uses: list[int | None]) -> Account:
    """An account whose window n reported ``uses[n]``, or nothing at all where that is None."""
    account = Account(CREDIT_NS)
    for window, used_ns in enumerate(uses):
        account.mint(window)
        if used_ns is not None:
            account.settle(window, used_ns)
    account.expire_before(len(uses))
    return account


@given(USES)
def test_every_minted_nanosecond_is_used_or_expired(uses: list[int | None]) -> None:
    account = settled(uses)
    assert account.minted_ns == CREDIT_NS * len(uses)
    assert account.outstanding_ns == 0
    assert account.minted_ns == account.used_ns - account.overrun_ns + account.expired_ns


@given(USES)
def test_every_token_is_settled_or_expires(uses: list[int | None]) -> None:
    account = settled(uses)
    assert account.settled == sum(used is not None for used in uses)
    assert account.settled + account.expired == len(uses)


@given(USES)
def test_overruns_are_what_was_used_beyond_the_credit(uses: list[int | None]) -> None:
    account = settled(uses)
    beyond = [used - CREDIT_NS for used in uses if used is not None and used > CREDIT_NS]
    assert (account.overruns, account.overrun_ns) == (len(beyond), sum(beyond))


def test_a_window_is_minted_once_and_in_order() -> None:
    account = Account(CREDIT_NS)
    account.mint(0)
    for wrong in (0, 2):
        with pytest.raises(ValueError, match=f"window {wrong}: expected 1"):
            account.mint(wrong)


def test_a_report_is_accepted_once_and_only_for_a_minted_window() -> None:
    account = Account(CREDIT_NS)
    account.mint(0)
    account.settle(0, 10)
    assert account.refuses(0)
    assert account.refuses(1)
    assert account.refuses(-1)
    with pytest.raises(ValueError, match="window 0"):
        account.settle(0, 10)
    assert account.used_ns == 10
