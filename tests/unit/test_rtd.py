"""What the RTD publishes, on time and late."""

from __future__ import annotations

import mmap
import time
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcg import rtd, shm
from vcg.harmonics import Cadence
from vcg.shm import Phase

BASE_NS = 1_000_000


def regions() -> tuple[memoryview, memoryview]:
    """A ticks region and a control page that says RUN, in private memory."""
    ticks = memoryview(mmap.mmap(-1, shm.TICKS_BYTES)).cast("q")
    for bit in range(shm.MAX_DIMENSIONS):
        ticks[shm.LATEST_AT + bit] = -1
    control = memoryview(mmap.mmap(-1, shm.CONTROL_BYTES)).cast("q")
    control[shm.CONTROL.at("phase")] = Phase.RUN
    return ticks, control


def beat(bit: int, period_ns: int, phase_ns: int = 0) -> rtd.Beat:
    return rtd.Beat(bit, Cadence(Fraction(period_ns), Fraction(phase_ns)))


def publish(beats: list[rtd.Beat], start_ns: int, until_ns: int) -> memoryview:
    ticks, control = regions()
    rtd.tick(rtd.schedule(beats, BASE_NS, start_ns), ticks, control, until_ns)
    return ticks


def head(ticks: memoryview, name: str) -> int:
    return ticks[shm.TICKS_HEADER.at(name)]


def newest(ticks: memoryview, bit: int) -> dict[str, int]:
    window = ticks[shm.LATEST_AT + bit]
    at = shm.EDGES_AT + (bit * shm.EDGE_SLOTS + window % shm.EDGE_SLOTS) * shm.EDGE_WORDS
    return dict(zip(shm.EDGE.fields, ticks[at : at + shm.EDGE_WORDS], strict=True))


def test_each_edge_is_one_tick_with_its_windows_and_phases() -> None:
    for _ in range(20):  # edges that pass while this process gets no CPU are merged
        start_ns = time.monotonic_ns() + 5_000_000
        ticks = publish([beat(0, 20_000_000), beat(3, 10_000_000, 5_500_000)], start_ns, start_ns + 30_000_000)
        if head(ticks, "coalesced") == 0:
            break
    assert head(ticks, "head") == 5
    assert head(ticks, "superseded") == 0
    rows = [ticks[shm.TICKS_AT + k * shm.TICK_WORDS :][: shm.TICK_WORDS].tolist() for k in range(5)]
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4]
    assert [row[1] - start_ns for row in rows] == [0, 5_500_000, 15_500_000, 20_000_000, 25_500_000]
    assert [row[3] for row in rows] == [1, 8, 8, 1, 8]
    assert all(row[2] >= row[1] for row in rows)
    assert [row[shm.TICK_WINDOWS_AT + 3] for row in rows if row[3] & 8] == [0, 1, 2]
    assert newest(ticks, 3) == {
        "window": 2,
        "planned_ns": start_ns + 25_500_000,
        "phase_ppb": 500_000_000,
        "published": 0b111,
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(min_value=1, max_value=200), st.integers(min_value=1, max_value=5))
def test_a_late_rtd_publishes_once_and_marks_what_it_skipped(late_windows: int, slower: int) -> None:
    """Every edge lies in the past: one tick, newest windows only, no burst."""
    start_ns = time.monotonic_ns() - 10**12
    until_ns = start_ns + late_windows * BASE_NS
    ticks, control = regions()
    edges = rtd.schedule([beat(0, BASE_NS), beat(1, slower * BASE_NS)], BASE_NS, start_ns)
    past = [edge for edge in islice(edges, late_windows) if edge[0] < until_ns]
    future = (time.monotonic_ns() + 10**12, 1, ((0, 0),))
    rtd.tick(iter([*past, future, future]), ticks, control, until_ns=future[0])
    windows_of_slower = -(-late_windows // slower)
    assert head(ticks, "head") == 1
    assert head(ticks, "superseded") == late_windows - 1 + windows_of_slower - 1
    assert newest(ticks, 0)["window"] == late_windows - 1
    assert newest(ticks, 1)["window"] == windows_of_slower - 1
    assert newest(ticks, 0)["published"] == 1
    assert newest(ticks, 1)["planned_ns"] == start_ns + (windows_of_slower - 1) * slower * BASE_NS


def test_the_rtd_stops_when_the_phase_changes() -> None:
    ticks, control = regions()
    control[shm.CONTROL.at("phase")] = Phase.HALT
    rtd.tick(rtd.schedule([beat(0, BASE_NS)], BASE_NS, time.monotonic_ns()), ticks, control)
    assert head(ticks, "head") == 1


@pytest.mark.parametrize("period", [Fraction(BASE_NS), Fraction(BASE_NS) * 10**10 / 16180339887])
def test_a_schedule_never_drifts(period: Fraction) -> None:
    """From the table, and from the lazy iterator (an incommensurate pair has no short hyperperiod)."""
    beats = [beat(0, BASE_NS), rtd.Beat(1, Cadence(period, Fraction(0)))]
    seen = 0
    for edge_ns, due, _ in islice(rtd.schedule(beats, BASE_NS, 7), 5000):
        if due & 2:
            assert edge_ns == 7 + int(seen * period)
            seen += 1
    assert seen > 1000
