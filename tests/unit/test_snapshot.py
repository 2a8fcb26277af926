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
from vcg.snapshot import PAPERS, Part, Snapshot

RUN = snapshot.run_name(4711, 3)
BEGIN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
KIB = 1024
BLANK = {field: kind() for field, kind in snapshot._PAPERS.items()}


def make(directory: Path, number: int, size_bytes: int = 0, why: str = "crash") -> Path:
    """A whole snapshot, the later the higher its number."""
    with Part(directory, snapshot.name_of(BEGIN + timedelta(seconds=number), "d4", why), RUN) as part:
        part.write(PAPERS, json.dumps({**BLANK, "dimension": "d4", "epoch": number}).encode())
        part.write("d4.img", os.urandom(size_bytes))
        return part.seal()


def one_of(dimension: str, number: int, size_bytes: int) -> Snapshot:
    """A snapshot that is nowhere on the disk."""
    return Snapshot(Path(snapshot.name_of(BEGIN + timedelta(seconds=number), dimension, "crash")), size_bytes)


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
    assert (two.dimension, two.why, two.papers()["epoch"]) == ("d4", "crash", 2)
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


def test_what_somebody_has_unpacked_into_one_counts_and_goes_with_it(tmp_path: Path) -> None:
    """Whoever looks into one may put its files beside it; that must not keep the next from being made."""
    whole, elsewhere = make(tmp_path / "s", 1), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").touch()
    (whole / "out" / "data").mkdir(parents=True)
    (whole / "out" / "data" / "file").write_bytes(os.urandom(64 * KIB))
    (whole / "out" / "link").symlink_to(elsewhere)
    (one,) = snapshot.listed(tmp_path / "s")
    assert one.bytes >= 64 * KIB
    assert snapshot.make_room(tmp_path / "s", "d4", 64 * KIB, 100 * KIB, RUN) == [whole]
    assert names(tmp_path / "s") == []
    assert names(elsewhere) == ["thesis.txt"]


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
                snapshot.make_room(place, "d4", need_bytes, quota_bytes, RUN)
            assert snapshot.listed(place) == before
            return
        removed = snapshot.make_room(place, "d4", need_bytes, quota_bytes, RUN)
        after = snapshot.listed(place)
        assert removed == [one.path for one in before[: len(removed)]]
        assert after == before[len(removed) :]
        kept = sum(one.bytes for one in after)
        assert kept + need_bytes <= quota_bytes or not after
        assert not removed or kept + before[len(removed) - 1].bytes + need_bytes > quota_bytes
        assert names(place) == [one.path.name for one in after]


KEPT = st.lists(st.tuples(st.sampled_from(["d1", "d2", "d3"]), st.integers(1, 50)), max_size=12)


@given(KEPT, st.integers(1, 50), st.integers(50, 300))
def test_who_has_more_than_its_share_gives_up_its_own_before_others_lose_theirs(
    sizes: list[tuple[str, int]], need: int, quota: int
) -> None:
    kept = [one_of(name, number, size) for number, (name, size) in enumerate(sizes)]
    going = snapshot.in_the_way(kept, "d1", need, quota)
    staying = [one for one in kept if one not in going]
    assert len(going) == len(set(going))
    assert sum(one.bytes for one in staying) + need <= quota
    own, others = ([one for one in kept if (one.dimension == "d1") is mine] for mine in (True, False))
    assert [one for one in own if one in going] == own[: sum(one in going for one in own)]
    assert [one for one in others if one in going] == others[: sum(one in going for one in others)]
    if any(one in going for one in others):
        share = quota // len({"d1", *(one.dimension for one in kept)})
        first = next(at for at, one in enumerate(going) if one.dimension != "d1")
        left = [one for one in own if one not in going[:first]]
        assert need + sum(one.bytes for one in left) <= share or not left
    if going:  # the last that goes is needed
        assert sum(one.bytes for one in staying) + going[-1].bytes + need > quota


def test_one_that_fails_over_and_over_pushes_out_none_of_another() -> None:
    kept = [one_of("d2", 0, 30), one_of("d3", 1, 30)]
    for number in range(2, 50):
        going = snapshot.in_the_way(kept, "d1", 10, 100)
        kept = [*(one for one in kept if one not in going), one_of("d1", number, 10)]
    assert [one.dimension for one in kept] == ["d2", "d3", *["d1"] * 4]
    assert kept[2:] == [one_of("d1", number, 10) for number in range(46, 50)]


def test_one_alone_may_have_all_of_the_quota() -> None:
    kept = [one_of("d1", number, 10) for number in range(10)]
    assert snapshot.in_the_way(kept, "d1", 10, 100) == kept[:1]


@pytest.mark.parametrize(
    ("free", "need", "left"),
    [(0, 1, [2, 3]), (0, 8, [2, 3]), (0, 9, [3]), (5, 15, [3]), (5, 29, []), (5, 30, [1, 2, 3]), (50, 20, [2, 3])],
)
def test_on_a_full_disk_old_ones_are_given_up_if_that_makes_the_room_and_else_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, need: int, left: list[int]
) -> None:
    paths = {number: make(tmp_path, number) for number in (1, 2, 3)}
    monkeypatch.setattr(snapshot, "_allocated_bytes", lambda path: 8)
    monkeypatch.setattr(snapshot, "_free_bytes", lambda place: free + 8 * (3 - len(list(place.iterdir()))))
    assert snapshot.give_up_for(tmp_path, need, RUN) == (len(left) < 3)
    assert names(tmp_path) == [paths[number].name for number in left]


def test_where_there_are_none_none_is_given_up(tmp_path: Path) -> None:
    assert not snapshot.give_up_for(tmp_path, 1, RUN)


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
