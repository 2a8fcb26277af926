"""The CPU limit behind the tokens: what the kernel takes, and never less than what a dimension may use.

And which controllers of the v2 tree are ours to use.
"""

from __future__ import annotations

import errno
import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.linux import cgroup
from vcg.linux.cgroup import BANDWIDTH_MIN_US, BANDWIDTH_PERIOD_MAX_US, CONTROLLERS, Bandwidth, bandwidth, usable

US = 1000
WINDOWS_NS = st.fractions(min_value=50 * US, max_value=5_000_000 * US, max_denominator=1000)
SHARES = st.fractions(min_value=0, max_value=16, max_denominator=10_000)
CPUS = st.integers(1, 8)


def test_a_window_that_the_kernel_takes_as_a_period_is_one() -> None:
    assert bandwidth(Fraction(10_000 * US), Fraction(3_000 * US), 1) == Bandwidth(10_000, 3_000)


def test_a_quota_that_is_too_short_is_given_over_several_windows() -> None:
    assert bandwidth(Fraction(2_000 * US), Fraction(300 * US), 1) == Bandwidth(8_000, 1_200)


def test_a_window_that_is_too_short_is_taken_several_times() -> None:
    assert bandwidth(Fraction(250 * US), Fraction(1_000 * US), 4) == Bandwidth(1_000, 4_000)


def test_a_quota_beyond_all_cpus_is_cut() -> None:
    assert bandwidth(Fraction(10_000 * US), Fraction(40_000 * US), 2) == Bandwidth(10_000, 20_000)


def test_what_no_period_has_room_for_is_not_limited() -> None:
    assert bandwidth(Fraction(2_000_000 * US), Fraction(1_000_000 * US), 1) is None
    assert bandwidth(Fraction(100_000 * US), Fraction(50 * US), 1) is None
    assert bandwidth(Fraction(10_000 * US), Fraction(0), 1) is None


@given(WINDOWS_NS, SHARES, CPUS)
def test_every_limit_is_one_that_the_kernel_takes(window_ns: Fraction, share: Fraction, cpus: int) -> None:
    limit = bandwidth(window_ns, share * window_ns, cpus)
    if limit is not None:
        assert BANDWIDTH_MIN_US <= limit.period_us <= BANDWIDTH_PERIOD_MAX_US
        assert BANDWIDTH_MIN_US <= limit.quota_us <= cpus * limit.period_us


@given(WINDOWS_NS, SHARES, CPUS)
def test_a_limit_is_the_share_of_the_cpus_to_a_thousandth(window_ns: Fraction, share: Fraction, cpus: int) -> None:
    limit = bandwidth(window_ns, share * window_ns, cpus)
    if limit is not None:
        given_share = Fraction(limit.quota_us, limit.period_us)
        wanted = min(share, Fraction(cpus))
        assert abs(given_share - wanted) <= wanted / 1000 + Fraction(1, limit.period_us)


@given(WINDOWS_NS, SHARES, CPUS)
def test_a_limit_is_left_out_only_if_a_second_has_no_room_for_it(
    window_ns: Fraction, share: Fraction, cpus: int
) -> None:
    if bandwidth(window_ns, share * window_ns, cpus) is None:
        windows_in_a_second = int(BANDWIDTH_PERIOD_MAX_US * US / window_ns)
        assert windows_in_a_second * share * window_ns < BANDWIDTH_MIN_US * US or windows_in_a_second == 0


@given(WINDOWS_NS, SHARES, CPUS)
def test_no_shorter_period_of_whole_windows_would_do(window_ns: Fraction, share: Fraction, cpus: int) -> None:
    limit = bandwidth(window_ns, share * window_ns, cpus)
    if limit is not None:
        windows = round(limit.period_us * US / window_ns)
        shorter_ns = (windows - 1) * window_ns
        assert windows == 1 or shorter_ns < BANDWIDTH_MIN_US * US or share * shorter_ns < BANDWIDTH_MIN_US * US


SETS = st.frozensets(st.sampled_from([*CONTROLLERS, "hugetlb", "rdma", "misc"]))


@given(SETS, SETS)
def test_of_a_group_that_is_not_ours_only_what_it_hands_down_already_is_used(
    offered: frozenset[str], enabled: frozenset[str]
) -> None:
    assert usable(offered, enabled, delegated=False) == offered & enabled & set(CONTROLLERS)


@given(SETS, SETS)
def test_of_a_delegated_group_all_that_it_has_is_used(offered: frozenset[str], enabled: frozenset[str]) -> None:
    assert usable(offered, enabled, delegated=True) == offered & set(CONTROLLERS)


# ── what goes away while a group is killed ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOENT])
def test_a_group_or_a_disk_that_goes_away_meanwhile_does_not_keep_the_rest_from_being_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise OSError(number, os.strerror(number), f"{path} <- {value}")

    nobody = 2**22 + 1  # beyond any pid
    for name, content in {"cgroup.procs": f"{nobody}", "cgroup.kill": "", "io.max": "7:0 rbps=5 wbps=max"}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(cgroup, "_write", refuse)
    assert cgroup.kill([tmp_path], 0) == {nobody}
