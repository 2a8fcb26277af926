"""Edges are exact: the right count, the right masks, no drift, and the same from the table as from the iterator."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice, pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vcg.harmonics import (
    EDGE_TABLE_LIMIT,
    Cadence,
    Edge,
    count_edges,
    edge_table,
    edges,
    fits_table,
    hyperperiod_ns,
    nested,
    triad_phases,
    widest_gap,
    window_start_ns,
)

RATIOS = st.builds(Fraction, st.integers(1, 12), st.integers(1, 12))
BASE_WINDOWS_NS = st.sampled_from([100, 997, 12_600, 6_000_000])


@st.composite
def cadence_lists(draw: st.DrawFn) -> list[Cadence]:
    base_window = draw(BASE_WINDOWS_NS)
    cadences = []
    for _ in range(draw(st.integers(1, 6))):
        period = base_window / draw(RATIOS)
        phase = period * draw(st.fractions(0, Fraction(23, 24), max_denominator=24))
        cadences.append(Cadence(period, phase))
    return cadences


@st.composite
def tabled_cadences(draw: st.DrawFn) -> list[Cadence]:
    cadences = draw(cadence_lists())
    assume(count_edges(cadences) <= 3_000)
    return cadences


def nine(base_window_ns: int, ratios: Sequence[Fraction], staggered: bool) -> list[Cadence]:
    periods = [base_window_ns / ratio for ratio in ratios]
    return [Cadence(period, phase) for period in periods for phase in triad_phases(period, staggered)]


@given(tabled_cadences())
def test_each_dimension_is_due_exactly_once_per_window_of_the_hyperperiod(cadences: list[Cadence]) -> None:
    table = edge_table(cadences)
    for d, cadence in enumerate(cadences):
        assert sum(edge.due >> d & 1 for edge in table) == hyperperiod_ns(cadences) / cadence.period


@given(tabled_cadences())
def test_number_of_windows_in_a_hyperperiod_is_the_count(cadences: list[Cadence]) -> None:
    table = edge_table(cadences)
    assert sum(edge.due.bit_count() for edge in table) == count_edges(cadences)
    assert len(table) <= count_edges(cadences)


@given(tabled_cadences())
def test_masks_name_the_dimensions_whose_window_starts_there(cadences: list[Cadence]) -> None:
    starts: dict[int, int] = {}
    for d, cadence in enumerate(cadences):
        for n in range(int(hyperperiod_ns(cadences) / cadence.period)):
            offset = window_start_ns(cadence, n)
            starts[offset] = starts.get(offset, 0) | 1 << d
    assert edge_table(cadences) == tuple(Edge(offset, starts[offset]) for offset in sorted(starts))


@given(tabled_cadences())
def test_table_lies_inside_the_hyperperiod_in_strict_order(cadences: list[Cadence]) -> None:
    offsets = [edge.offset_ns for edge in edge_table(cadences)]
    assert offsets == sorted(set(offsets))
    assert offsets[0] >= 0
    assert offsets[-1] < hyperperiod_ns(cadences)


@given(tabled_cadences())
def test_iterator_equals_the_table_repeated(cadences: list[Cadence]) -> None:
    table, hyperperiod = edge_table(cadences), hyperperiod_ns(cadences)
    repeated = [Edge(edge.offset_ns + k * hyperperiod, edge.due) for k in range(3) for edge in table]
    assert list(islice(edges(cadences), len(repeated))) == repeated


@given(cadence_lists())
def test_iterator_grows_strictly_and_is_never_idle(cadences: list[Cadence]) -> None:
    first = list(islice(edges(cadences), 500))
    assert all(a.offset_ns < b.offset_ns for a, b in pairwise(first))
    assert all(edge.due > 0 for edge in first)


@given(st.lists(RATIOS, min_size=1, max_size=5), BASE_WINDOWS_NS)
def test_hyperperiod_is_the_least_that_holds_whole_windows_of_all(ratios: list[Fraction], base_window: int) -> None:
    cadences = [Cadence(base_window / ratio) for ratio in ratios]
    hyperperiod = hyperperiod_ns(cadences)
    assert all((hyperperiod / c.period).denominator == 1 for c in cadences)
    for prime in (p for p in range(2, 1000) if hyperperiod % p == 0 and all(p % q for q in range(2, p))):
        assert any((Fraction(hyperperiod, prime) / c.period).denominator != 1 for c in cadences)


@given(RATIOS, BASE_WINDOWS_NS, st.integers(10**9, 10**9 + 10**6))
def test_no_drift_over_a_billion_periods(ratio: Fraction, base_window: int, number: int) -> None:
    cadence = Cadence(base_window / ratio, base_window / ratio / 3)
    early = cadence.phase + number * cadence.period - window_start_ns(cadence, number)
    assert 0 <= early < 1


@given(tabled_cadences(), st.integers(0, 10**9))
def test_table_predicts_any_later_window(cadences: list[Cadence], repetitions: int) -> None:
    windows = int(hyperperiod_ns(cadences) / cadences[0].period)
    later = window_start_ns(cadences[0], repetitions * windows)
    assert later == window_start_ns(cadences[0], 0) + repetitions * hyperperiod_ns(cadences)


def test_nested_triads_hold_three_windows_in_each_window_outside() -> None:
    assert list(nested()) == [3, 1, Fraction(1, 3)]
    assert list(nested(levels=2)) == [3, 1]
    assert list(nested(levels=4, windows=2)) == [4, 2, 1, Fraction(1, 2)]
    cadences = nine(6_000_000, nested(), staggered=False)
    assert hyperperiod_ns(cadences) == 18_000_000
    table = edge_table(cadences)
    assert [sum(edge.due >> d & 1 for edge in table) for d in (0, 3, 6)] == [9, 3, 1]
    assert [edge.due for edge in table if edge.due & 0b111_000_000] == [0b111_111_111]


def test_staggered_triad_divides_its_window_in_three() -> None:
    period = Fraction(9_000)
    assert list(triad_phases(period, True)) == [0, 3_000, 6_000]
    assert list(triad_phases(period, False)) == [0, 0, 0]
    table = edge_table([Cadence(period, phase) for phase in triad_phases(period, True)])
    assert table == (Edge(0, 0b001), Edge(3_000, 0b010), Edge(6_000, 0b100))


def test_aligned_dimensions_share_one_edge() -> None:
    assert edge_table([Cadence(Fraction(1_000))] * 9) == (Edge(0, 0b111_111_111),)


def test_golden_ratio_to_three_digits_is_exact_in_a_table() -> None:
    cadences = nine(6_000_000, [Fraction("1.618"), Fraction(1)], staggered=True)
    assert cadences[0].period == Fraction(3_000_000_000, 809)
    assert fits_table(cadences)
    table = edge_table(cadences)
    assert sum(edge.due & 1 for edge in table) == hyperperiod_ns(cadences) * Fraction(809, 3_000_000_000)


def test_incommensurate_ratio_needs_the_iterator() -> None:
    cadences = nine(6_000_000, [Fraction("1.6180339887"), Fraction(1)], staggered=True)
    assert count_edges(cadences) > EDGE_TABLE_LIMIT
    with pytest.raises(ValueError, match="edges in a hyperperiod: expected at most"):
        edge_table(cadences)
    first = list(islice(edges(cadences), 5_000))
    counts = [0] * len(cadences)
    for offset_ns, due in first:
        for d, cadence in enumerate(cadences):
            if due >> d & 1:
                assert offset_ns == window_start_ns(cadence, counts[d])
                counts[d] += 1
    horizon = first[-1].offset_ns
    for count, cadence in zip(counts, cadences, strict=True):
        assert window_start_ns(cadence, count - 1) <= horizon < window_start_ns(cadence, count)


@given(tabled_cadences(), BASE_WINDOWS_NS)
def test_widest_gap_is_farther_from_every_edge_than_any_other_instant(cadences: list[Cadence], base: int) -> None:
    span = math.lcm(hyperperiod_ns(cadences), base)
    assume(span <= 20 * max(base, hyperperiod_ns(cadences)))
    repeats = span // hyperperiod_ns(cadences)
    assume(repeats * count_edges(cadences) <= EDGE_TABLE_LIMIT)
    folded = sorted(
        {(e.offset_ns + k * hyperperiod_ns(cadences)) % base for e in edge_table(cadences) for k in range(repeats)}
    )
    gaps = [b - a for a, b in zip(folded, [*folded[1:], folded[0] + base], strict=True)]
    gap = widest_gap(cadences, base)
    assert 0 <= gap < base
    distance = min(min((gap - edge) % base, (edge - gap) % base) for edge in folded)
    assert distance == max(gaps) // 2


def test_widest_gap_of_staggered_nested_triads_is_halfway_between_two_inner_edges() -> None:
    assert widest_gap(nine(6_000_000, nested(), staggered=True), 6_000_000) == 999_999
    assert widest_gap([Cadence(Fraction(1_000))], 1_000) == 500


def test_widest_gap_of_incommensurate_cadences_is_an_offset_in_the_base_window() -> None:
    cadences = nine(6_000_000, [Fraction("1.6180339887"), Fraction(1)], staggered=True)
    assert 0 <= widest_gap(cadences, 6_000_000) < 6_000_000


@pytest.mark.parametrize(("period", "phase"), [("1/2", "0"), ("0", "0"), ("10", "10"), ("10", "-1")])
def test_cadence_out_of_range_is_refused(period: str, phase: str) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        Cadence(Fraction(period), Fraction(phase))


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, vcg.harmonics, vcg.plan; print({'pydantic', 'numpy', 'typer', 'rich'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"
