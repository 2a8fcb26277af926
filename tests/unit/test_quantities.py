"""Durations, sizes and ratios are read exactly, written back exactly, and refused with an example."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.quantities import (
    AMPLITUDE_MAX,
    AMPLITUDE_MIN,
    format_duration,
    format_ratio,
    format_size,
    parse_amplitude,
    parse_duration,
    parse_ratio,
    parse_size,
    show_duration,
)


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [("5ms", 5_000_000), ("200us", 200_000), ("1s", 10**9), ("250ns", 250), ("1.5ms", 1_500_000), ("0.001us", 1)],
)
def test_durations_are_whole_nanoseconds(text: str, duration_ns: int) -> None:
    assert parse_duration(text) == duration_ns


@given(st.integers(1, 10**15))
def test_duration_survives_formatting(duration_ns: int) -> None:
    assert parse_duration(format_duration(duration_ns)) == duration_ns


@pytest.mark.parametrize(
    "value", ["5", "5 ms", "ms", "-5ms", "1e3ms", "0ms", "0.5ns", "1.0001us", 5, 5.0, None, ["5ms"]]
)
def test_other_durations_are_refused_with_an_example(value: Any) -> None:
    with pytest.raises(ValueError, match=r'^expected a .*"'):
        parse_duration(value)


def test_a_number_is_told_to_take_a_unit_and_quotes() -> None:
    with pytest.raises(ValueError, match='in quotes, such as "5ms"'):
        parse_duration(5)


@pytest.mark.parametrize(("text", "size_bytes"), [("4K", 4096), ("64M", 64 << 20), ("1G", 1 << 30)])
def test_sizes_are_binary(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@given(st.integers(1, 1 << 30))
def test_size_survives_formatting(kibibytes: int) -> None:
    assert parse_size(format_size(kibibytes << 10)) == kibibytes << 10


@pytest.mark.parametrize("value", ["64Q", "64", "0M", "1.5M", "-1M", "64 M", "M", 64, None])
def test_other_sizes_are_refused_with_an_example(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a size .*such as"):
        parse_size(value)


@pytest.mark.parametrize(
    ("value", "ratio"),
    [("3", 3), ("1/3", Fraction(1, 3)), ("1.618", Fraction(809, 500)), (2, 2), (Decimal("1.618"), Fraction(809, 500))],
)
def test_ratios_equal_their_text(value: Any, ratio: Fraction) -> None:
    assert parse_ratio(value) == ratio


@given(st.fractions(min_value=0))
def test_ratio_survives_formatting(ratio: Fraction) -> None:
    assert parse_ratio(format_ratio(ratio)) == ratio


@given(st.decimals(min_value=0, max_value=1000, places=6))
def test_decimal_ratio_is_exact(value: Decimal) -> None:
    assert parse_ratio(value) == Fraction(value) == parse_ratio(format_ratio(Fraction(value)))


def test_ratio_reads_as_people_write_it() -> None:
    assert [format_ratio(Fraction(text)) for text in ("3", "1/3", "1.618", "3/2", "1/11")] == [
        "3",
        "1/3",
        "1.618",
        "3/2",
        "1/11",
    ]


@pytest.mark.parametrize("value", ["1/0", "a", "-1", "1:3", "1.", "", True, 1.618, None, Decimal("Infinity")])
def test_other_ratios_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a ratio"):
        parse_ratio(value)


@given(st.floats(AMPLITUDE_MIN, AMPLITUDE_MAX) | st.integers(1, AMPLITUDE_MAX))
def test_an_amplitude_is_the_number_itself(value: float) -> None:
    assert parse_amplitude(value) == parse_amplitude(Decimal(value)) == value


@pytest.mark.parametrize("value", [0, -1, True, None, "2", float("nan"), float("inf"), Decimal("nan"), Decimal("-inf")])
def test_other_amplitudes_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a number above 0$"):
        parse_amplitude(value)


@pytest.mark.parametrize("value", [1e-7, 1_000_001, 10**400, Decimal("1e300")])
def test_an_amplitude_out_of_range_is_refused_with_the_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a number from 0\.000001 to 1000000$"):
        parse_amplitude(value)


def test_shown_durations_have_four_digits() -> None:
    shown = [show_duration(ns) for ns in (0, 5, 999_999, 1_000_000, Fraction(3 * 10**9, 809), 2 * 10**9)]
    assert shown == ["0ns", "5ns", "1ms", "1ms", "3.708ms", "2s"]
