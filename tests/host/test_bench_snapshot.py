"""``vcg bench snapshot``, as short as it gets."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from experiments.bench import snapshot
from experiments.bench.figures import Tally
from vcg.snapshot import listed

pytestmark = pytest.mark.usefixtures("root")


def quiet(arm: str) -> None:
    assert arm


def test_every_crash_snapshot_is_good_and_none_is_left() -> None:
    good, time, frozen, seed = snapshot.measure(11, 0, quiet, 5)
    assert isinstance(good, Tally)
    assert (good.value, good.unit, seed.value) == (11, "of 11", 5)
    assert sum(int(row[1]) for row in good.rows) == 11
    assert 0 < frozen.low <= time.high


def test_a_damaged_snapshot_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what the benchmark examines is the snapshot itself."""
    examine = snapshot.examine

    def damage(path: Path, *rest: object) -> snapshot.Crash:
        (image,) = path.glob("*.img")
        assert [one.path for one in listed(path.parent)]
        subprocess.run(["debugfs", "-w", "-R", "clri /data/markers", str(image)], check=True, capture_output=True)
        return examine(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot, "examine", damage)
    (found,) = snapshot.crash(tmp_path, 1, random.Random(1))
    assert not found.is_good
    assert found.lost == found.synced > 0
    assert "exit code 4" in found.complaints
