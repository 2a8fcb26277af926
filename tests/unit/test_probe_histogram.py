"""Log-linear buckets: they tile the durations, are narrow enough, and give quantiles back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.histogram import BUCKETS, HIGHEST_NS, OVERFLOW, TOP_BITS, bounds, bucket_of, merge, quantile

DURATIONS = st.integers(0, HIGHEST_NS - 1)
MEASURABLE = st.integers(0, (1 << TOP_BITS) - 1)


@given(DURATIONS)
def test_a_value_lies_in_its_bucket(value_ns: int) -> None:
    low, high = bounds(bucket_of(value_ns))
    assert low <= value_ns < high


@given(st.integers(32, (1 << TOP_BITS) - 1))
def test_a_bucket_is_at_most_a_32nd_of_its_lower_bound_wide(value_ns: int) -> None:
    low, high = bounds(bucket_of(value_ns))
    assert (high - low) * 32 <= low


def test_buckets_follow_one_another_without_gap_from_zero_to_over_a_minute() -> None:
    edges = [bounds(bucket) for bucket in range(BUCKETS)]
    assert edges[0] == (0, 1)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(edges))
    assert bounds(OVERFLOW)[0] > 60_000_000_000


def test_impossible_values_and_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        bucket_of(-1)
    with pytest.raises(IndexError, match="expected 0 to"):
        bounds(BUCKETS)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        quantile({}, 1.5)


@given(st.lists(MEASURABLE, min_size=1), st.floats(0, 1))
def test_a_quantile_is_the_bucket_of_the_exact_order_statistic(values: list[int], share: float) -> None:
    histogram = merge({bucket_of(value): 1} for value in values)
    ordered = sorted(values)
    exact = next(value for rank, value in enumerate(ordered, 1) if rank >= share * len(ordered))
    assert quantile(histogram, share) == bounds(bucket_of(exact))


@given(st.lists(st.lists(MEASURABLE)))
def test_merging_histograms_is_the_histogram_of_all_values(parts: list[list[int]]) -> None:
    merged = merge(merge({bucket_of(value): 1} for value in part) for part in parts)
    assert merged == merge({bucket_of(value): 1} for part in parts for value in part)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None
