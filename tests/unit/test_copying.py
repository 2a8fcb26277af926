"""Copies of files with holes: the same content, and the same holes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from vcg.linux import copying

BLOCK = 4096
PIECES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3 * BLOCK)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.integers(0, 300 * BLOCK))
def test_a_copy_is_equal_and_its_holes_are_no_smaller(pieces: list[tuple[int, int]], size_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "source"), Path(name, "target")
        with source.open("wb") as file:
            file.truncate(size_bytes)
            for block, length in pieces:
                file.seek(block * BLOCK)
                file.write(os.urandom(length))
        with source.open("rb") as original, target.open("wb+") as copy:
            copying.copy(original.fileno(), copy.fileno())
            size = source.stat().st_size
            taken_bytes, given_bytes = (
                sum(length for _, length in copying.data(file.fileno(), size)) for file in (copy, original)
            )
            assert taken_bytes <= given_bytes
        assert target.read_bytes() == source.read_bytes()


def test_what_was_allocated_and_never_written_is_a_hole_even_after_others_were_read(tmp_path: Path) -> None:
    """Reading ahead would fill the holes in the page cache, and then they are none to SEEK_DATA."""
    source, target = tmp_path / "source", tmp_path / "target"
    size = 8 << 20
    with source.open("wb+") as original, target.open("wb+") as copy:
        os.posix_fallocate(original.fileno(), 0, size)
        for block in range(0, 512, 8):
            os.pwrite(original.fileno(), b"x" * BLOCK, block * BLOCK)
        os.fsync(original.fileno())
        before = sum(length for _, length in copying.data(original.fileno(), size))
        copying.copy(original.fileno(), copy.fileno())
        assert sum(length for _, length in copying.data(original.fileno(), size)) == before
        assert sum(length for _, length in copying.data(copy.fileno(), size)) == before <= 64 * BLOCK * 8
    assert target.stat().st_size == size


def test_zeros_that_were_written_take_no_room_in_a_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(4 << 20) + b"x" * BLOCK + bytes(4 << 20))
    with source.open("rb") as original, target.open("wb+") as copy:
        copying.copy(original.fileno(), copy.fileno())
        assert sum(length for _, length in copying.data(copy.fileno(), 9 << 20)) <= 1 << 16
    assert target.read_bytes() == source.read_bytes()


def test_data_ends_where_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * BLOCK)
    with path.open("rb") as file:
        assert list(copying.data(file.fileno(), BLOCK + 1)) == [(0, BLOCK + 1)]
        assert list(copying.data(file.fileno(), 0)) == []


def test_a_clone_shares_or_is_refused_and_never_half_done(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3 * BLOCK))
    with source.open("rb") as original, target.open("wb+") as copy:
        is_clone = copying.clone(original.fileno(), copy.fileno())
    assert target.read_bytes() == (source.read_bytes() if is_clone else b"")
