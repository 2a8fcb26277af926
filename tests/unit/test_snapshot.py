"""Snapshots on disk: whole or not there, within the quota, the oldest first."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcg import snapshot
from vcg.errors import RunError
from vcg.snapshot import PAPERS, Part

RUN = snapshot.run_name(4711, 3)
BEGIN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
KIB = 1024


def make(directory: Path, number: int, size_bytes: int = 0, why: str = "crash") -> Path:
    """A whole snapshot, the later the higher its number."""
    with Part(directory, snapshot.name_of(BEGIN + timedelta(seconds=number), "d4", why), RUN) as part:
        part.write(PAPERS, json.dumps({"dimension": "d4", "number": number}).encode())
        part.write("d4.img", os.urandom(size_bytes))
        return part.seal()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_name_sorts_by_time_whatever_the_zone() -> None:
    assert snapshot.name_of(BEGIN, "d4", "crash") == "20260102T030405.678901Z-d4-crash"
    east = BEGIN.astimezone(timezone(timedelta(hours=5)))
    assert snapshot.name_of(east, "d4", "crash") == snapshot.name_of(BEGIN, "d4", "crash")


def test_what_is_sealed_is_listed_with_what_it_holds(tmp_path: Path) -> None:
    second, first = make(tmp_path / "deep" / "er", 2, 8 * KIB), make(tmp_path / "deep" / "er", 1)
    one, two = snapshot.listed(tmp_path / "deep" / "er")
    assert (one.path, two.path) == (first, second)
    assert (two.dimension, two.why, two.papers()["number"]) == ("d4", "crash", 2)
    assert two.bytes >= 8 * KIB > one.bytes
    assert [path.stat().st_mode & 0o777 for path in (second, second / "d4.img", second.parent)] == [0o700, 0o600, 0o700]


def test_what_is_not_sealed_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Part(tmp_path, snapshot.name_of(BEGIN, "d4", "oom"), RUN) as part:
        part.write("d4.img", b"half of it")
        assert snapshot.listed(tmp_path) == []
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_what_a_killed_run_was_at_is_removed_and_nothing_else(tmp_path: Path) -> None:
    whole = make(tmp_path, 1)
    mine, theirs = tmp_path / f"x.part-{RUN}", tmp_path / f"x.part-{snapshot.run_name(4712, 3)}"
    for part in (mine, theirs):
        part.mkdir()
        (part / "d4.img").touch()
    (tmp_path / "thesis.txt").touch()
    snapshot.discard_parts(tmp_path, RUN)
    assert names(tmp_path) == sorted([whole.name, theirs.name, "thesis.txt"])
    snapshot.discard_parts(tmp_path / "nowhere", RUN)


def test_nowhere_there_are_none(tmp_path: Path) -> None:
    assert snapshot.listed(tmp_path / "nowhere") == []
    (tmp_path / "file").touch()
    assert snapshot.listed(tmp_path / "file") == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 64), max_size=6), st.integers(0, 100), st.integers(20, 200))
def test_room_is_made_from_the_oldest_on_and_for_no_more_than_is_needed(
    sizes: list[int], need: int, quota: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for number, size in enumerate(sizes):
            make(place, number, size * KIB)
        before = snapshot.listed(place)
        need_bytes, quota_bytes = need * KIB, quota * KIB
        if need > quota:
            with pytest.raises(RunError, match=r"more than all of snapshots\.quota"):
                snapshot.make_room(place, need_bytes, quota_bytes, RUN)
            assert snapshot.listed(place) == before
            return
        removed = snapshot.make_room(place, need_bytes, quota_bytes, RUN)
        after = snapshot.listed(place)
        assert removed == [one.path for one in before[: len(removed)]]
        assert after == before[len(removed) :]
        kept = sum(one.bytes for one in after)
        assert kept + need_bytes <= quota_bytes or not after
        assert not removed or kept + before[len(removed) - 1].bytes + need_bytes > quota_bytes
        assert names(place) == [one.path.name for one in after]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "no snapshot"), (b"{", "damaged"), (b"[]", "not of a snapshot"), (b"{}", "not of a snapshot")],
)
def test_papers_that_are_missing_or_damaged_are_named(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / PAPERS).write_bytes(content)
    with pytest.raises(RunError, match=rf"{tmp_path}.*{complaint}"):
        snapshot.read_papers(tmp_path)
    with pytest.raises(RunError, match="no snapshot"):
        snapshot.read_papers(tmp_path / "nowhere" / "deep")
