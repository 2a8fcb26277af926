"""What the crashes of ``vcg bench snapshot`` come to, and which markers a file holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.bench import markers, snapshot
from experiments.bench.figures import Tally
from experiments.bench.snapshot import Crash

GOOD = Crash("killed", 100, 0, True, "", 30_000_000, 20_000_000)


def test_a_snapshot_is_good_only_if_nothing_is_wrong_with_it() -> None:
    assert GOOD.is_good
    assert not replace(GOOD, lost=1).is_good
    assert not replace(GOOD, tells_windows=False).is_good
    assert not replace(GOOD, complaints="Fix? no").is_good
    assert not replace(GOOD, synced=0).is_good


def test_the_good_ones_are_counted_by_how_they_crashed_and_complaints_are_told() -> None:
    crashes = [
        GOOD,
        replace(GOOD, how="aborted", took_ns=50_000_000),
        replace(GOOD, lost=2),
        replace(GOOD, complaints="!"),
    ]
    good, time, frozen, seed, complaints = snapshot.figures(crashes, 7)
    assert isinstance(good, Tally)
    assert isinstance(complaints, Tally)
    assert (good.name, good.value, good.unit) == ("snapshots_good", 2, "of 4")
    assert good.rows == (("killed", "3", "300", "2", "2", "1"), ("aborted", "1", "100", "0", "1", "1"))
    assert (time.name, time.low, time.high) == ("snapshot_time", 30_000_000, 50_000_000)
    assert (frozen.name, seed.value) == ("frozen_time", 7)
    assert complaints.rows == (("killed", "!"),)


def marker(number: int) -> bytes:
    return number.to_bytes(8, "little").ljust(markers.BLOCK_BYTES, b"\x5a")


@pytest.mark.parametrize(
    ("content", "held"),
    [
        (b"", set()),
        (marker(0) + marker(1), {0, 1}),
        (marker(0) + bytes(markers.BLOCK_BYTES) + marker(2), {0, 2}),
        (marker(0) + marker(7) + marker(2)[:100], {0, 2}),
        (bytes(markers.BLOCK_BYTES), set()),
    ],
)
def test_a_marker_counts_where_it_belongs_and_zeros_are_none(content: bytes, held: set[int]) -> None:
    assert markers.read(content) == held
