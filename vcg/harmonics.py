"""Cadences, and the edges that they make: exact, without drift, at any distance from the start.

A cadence is a rational period and phase in nanoseconds. Window ``n`` starts at ``floor(phase + n * period)``: the exact
instant is rounded towards the start, once, and never carried on, so an edge is early by less than one nanosecond after
any number of windows. Offsets count from the start of the run.

Two forms of the same sequence: :func:`edge_table` for cadences that repeat soon, and :func:`edges`, which goes on for
ever and needs no hyperperiod. Walking the table again and again, each time later by the hyperperiod, gives exactly what
the iterator gives. Trap: harmless-looking ratios have enormous hyperperiods (1.6180339887 against 1, at 6 ms, repeats
after months), so ask :func:`fits_table` before making a table.

Standard library only, because the clock's process imports it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, takewhile
from typing import NamedTuple

EDGE_TABLE_LIMIT = 20_000
"""Most edges that a table may have; a table of that size takes about 2 MB."""

TRIAD = 3
"""Dimensions in a triad, and by default windows of one level of a nest inside a window of the next."""


@dataclass(frozen=True)
class Cadence:
    """When a dimension's windows start.

    Attributes:
        period: length of a window in ns, at least 1.
        phase: start of window 0 in ns; at least 0 and less than the period.

    Raises:
        ValueError: a period or phase out of its range.
    """

    period: Fraction
    phase: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period {self.period} ns: expected at least 1 ns")
        if not 0 <= self.phase < self.period:
            raise ValueError(f"phase {self.phase} ns: expected at least 0 and less than the period, {self.period} ns")


class Edge(NamedTuple):
    """An instant at which at least one window starts.

    Attributes:
        offset_ns: from the start of the run.
        due: bit ``d`` is set if a window of the cadence at position ``d`` starts here.
    """

    offset_ns: int
    due: int


def window_start_ns(cadence: Cadence, number: int) -> int:
    """Offset at which a window starts: ``floor(phase + number * period)``."""
    return math.floor(cadence.phase + number * cadence.period)


def hyperperiod_ns(cadences: Sequence[Cadence]) -> int:
    """The least whole number of nanoseconds after which the pattern of edges repeats exactly.

    It has to hold a whole number of windows of every cadence; the least whole number of nanoseconds that does so for a
    reduced period ``p/q`` is ``p``.
    """
    return math.lcm(*(c.period.numerator for c in cadences))


def count_edges(cadences: Sequence[Cadence]) -> int:
    """Windows that start in one hyperperiod, over all cadences: an upper bound for the length of the edge table."""
    hyperperiod = hyperperiod_ns(cadences)
    return sum(int(hyperperiod / c.period) for c in cadences)


def fits_table(cadences: Sequence[Cadence]) -> bool:
    """Whether one hyperperiod is short enough for :func:`edge_table`."""
    return count_edges(cadences) <= EDGE_TABLE_LIMIT


def edge_table(cadences: Sequence[Cadence]) -> tuple[Edge, ...]:
    """The edges of one hyperperiod, in order of time; cadences whose floored offsets coincide share an edge.

    Raises:
        ValueError: more than :data:`EDGE_TABLE_LIMIT` edges; use :func:`edges`.
    """
    if not fits_table(cadences):
        raise ValueError(f"{count_edges(cadences)} edges in a hyperperiod: expected at most {EDGE_TABLE_LIMIT}")
    hyperperiod = hyperperiod_ns(cadences)
    return tuple(takewhile(lambda edge: edge.offset_ns < hyperperiod, edges(cadences)))


def edges(cadences: Sequence[Cadence]) -> Iterator[Edge]:
    """All edges from the start on, in order of time, without end; offsets grow strictly."""
    # Each cadence counts in units of 1/denominator ns, so that the loop adds and divides integers only.
    denominators = [math.lcm(c.period.denominator, c.phase.denominator) for c in cadences]
    steps = [int(c.period * m) for c, m in zip(cadences, denominators, strict=True)]
    positions = [int(c.phase * m) for c, m in zip(cadences, denominators, strict=True)]
    heap = [(positions[d] // denominators[d], d) for d in range(len(cadences))]
    heapq.heapify(heap)
    while heap:
        offset_ns = heap[0][0]
        due = 0
        while heap[0][0] == offset_ns:
            d = heap[0][1]
            due |= 1 << d
            positions[d] += steps[d]
            heapq.heapreplace(heap, (positions[d] // denominators[d], d))
        yield Edge(offset_ns, due)


def triad_phases(period: Fraction, staggered: bool) -> tuple[Fraction, ...]:
    """Phases in ns of a triad's members: 0, 1/3 and 2/3 of their window, or all 0."""
    return tuple(period * Fraction(k, TRIAD) if staggered else Fraction(0) for k in range(TRIAD))


def nested(levels: int = 3, windows: int = TRIAD) -> tuple[Fraction, ...]:
    """Harmonic ratios of nested loops, the innermost first: each window of a level holds ``windows`` of the one inside.

    The middle level runs at the base frequency; by default that makes 3, 1 and 1/3.
    """
    middle = levels // 2
    return tuple(Fraction(windows) ** (middle - level) for level in range(levels))


def widest_gap(cadences: Sequence[Cadence], base_window_ns: Fraction | int) -> int:
    """Offset in ns inside the base window that lies farthest from any edge: the middle of the widest gap.

    All edges are folded onto one base window; of equally wide gaps the first is taken. Where folding every edge would
    take more than :data:`EDGE_TABLE_LIMIT` of them, the first that many stand for the rest; cadences that are not
    commensurate with the base window then leave only narrow gaps, and the result is merely as good as any.
    """
    span_ns = math.lcm(hyperperiod_ns(cadences), Fraction(base_window_ns).numerator)
    within_span = takewhile(lambda edge: edge.offset_ns < span_ns, edges(cadences))
    folded = sorted({edge.offset_ns % base_window_ns for edge in islice(within_span, EDGE_TABLE_LIMIT)})
    following = [*folded[1:], folded[0] + base_window_ns]
    width_ns, start_ns = max(
        ((end - start, start) for start, end in zip(folded, following, strict=True)), key=lambda gap: (gap[0], -gap[1])
    )
    return math.floor((start_ns + width_ns // 2) % base_window_ns)
