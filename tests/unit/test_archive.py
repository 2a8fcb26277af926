"""A tree comes out of its archive as it went in, whatever its names, its holes and its links."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import socket
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcg import archive
from vcg.archive import DEPTH_MAX, PATH_MAX, Writer
from vcg.linux import openat2

NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not set(b"/\0") & set(name) and name not in (b".", b"..")
)
PIECES = st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=9000)), max_size=4)
FILES = st.dictionaries(NAMES, st.tuples(PIECES, st.integers(0, 1 << 18)), max_size=5)


@contextmanager
def tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(root: Path) -> tuple[bytes, Writer]:
    out = io.BytesIO()
    writer = Writer(out)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        writer.write_tree(fd)
    finally:
        os.close(fd)
    return out.getvalue(), writer


def contents(root: Path) -> dict[bytes, bytes]:
    """Every file below a directory, by its path there."""
    found = {}
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 (bytes)
            with open(path, "rb") as file:  # noqa: PTH123 (bytes)
                found[os.path.relpath(path, os.fsencode(root))] = file.read()
    return found


@settings(max_examples=40, deadline=None)
@given(FILES)
def test_what_goes_in_comes_out_through_tar_and_through_python(
    files: dict[bytes, tuple[list[tuple[int, bytes]], int]],
) -> None:
    with tree() as root, tree() as out:
        folder = root / "data" / "in"
        folder.mkdir(parents=True)
        for name, (pieces, size_bytes) in files.items():
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123 (bytes)
                file.truncate(size_bytes)
                for block, piece in pieces:
                    file.seek(block * 4096)
                    file.write(piece)
        packed, writer = write(root)
        assert writer.omitted == 0
        subprocess.run(["tar", "-xf", "-", "-C", str(out)], input=packed, check=True, stderr=subprocess.DEVNULL)
        assert contents(out) == contents(root)
        with tarfile.open(fileobj=io.BytesIO(packed), errors="surrogateescape") as tar:
            read = {
                os.fsencode(entry.name): tar.extractfile(entry).read()  # type: ignore[union-attr]
                for entry in tar
                if entry.isfile()
            }
        assert read == contents(root)


def test_a_hole_of_a_terabyte_takes_no_room_and_no_time(tmp_path: Path) -> None:
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"middle")
    packed, _ = write(tmp_path)
    assert len(packed) < 1 << 16
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getmember("endless").size == 1 << 40
        middle = tar.extractfile("endless")
        assert middle is not None
        middle.seek(1 << 39)
        assert middle.read(6) == b"middle"


def test_symlinks_fifos_and_hard_links_are_what_they_are(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_text("twice")
    os.link(root / "a", root / "b")
    (root / "absolute").symlink_to(outside / "secret")
    (root / "folder").symlink_to("../outside")
    os.mkfifo(root / "fifo")
    packed, _ = write(root)
    assert b"secret" not in packed.replace(os.fsencode(outside / "secret"), b"")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        entries = {entry.name: entry for entry in tar}
    assert {name: entry.type for name, entry in entries.items()} == {
        ".": tarfile.DIRTYPE,
        "a": tarfile.REGTYPE,
        "absolute": tarfile.SYMTYPE,
        "b": tarfile.LNKTYPE,
        "fifo": tarfile.FIFOTYPE,
        "folder": tarfile.SYMTYPE,
    }
    assert entries["folder"].linkname == "../outside"
    assert entries["b"].linkname == "a"


def test_modes_owners_and_times_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o640)
    os.utime(tmp_path / "file", ns=(0, 1_234_567_890_123_456_789))
    packed, _ = write(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        entry = tar.getmember("file")
    found = (tmp_path / "file").stat()
    assert (entry.mode, entry.uid, entry.gid) == (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
    assert entry.mtime == pytest.approx(1_234_567_890.123, abs=0.001)


def test_what_is_too_deep_is_left_out_and_told(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(DEPTH_MAX + 20):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    packed, writer = write(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert len(tar.getmembers()) == 1 + DEPTH_MAX
    assert writer.omitted == 1
    assert writer.told[0].endswith(f"below it: {DEPTH_MAX} directories deep")


def test_what_has_too_long_a_path_is_left_out_and_told_and_costs_no_memory(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(40):
        os.mkdir("d" * 255, dir_fd=here)
        below = os.open("d" * 255, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.mknod("f", dir_fd=here)
        os.link("f", "g", src_dir_fd=here, dst_dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    packed, writer = write(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = tar.getnames()
    assert max(map(len, names)) <= PATH_MAX
    assert len(names) == 1 + 16 + 2 * 16  # the root; a directory of 16 such names has just room, what is in it has none
    assert writer.omitted == 3
    assert writer.told[0].endswith(f"its path is longer than {PATH_MAX} bytes")


def test_a_file_that_is_held_by_a_lease_is_left_out_and_told_and_the_rest_is_there(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    with (tmp_path / "b").open("r+") as file:
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # is sent to the holder, who does not care
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        packed, writer = write(tmp_path)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames() == [".", "a", "c"]
    assert writer.told == ["b: its owner holds a lease on it"]


def test_a_file_that_shrinks_while_it_is_read_is_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    with path.open("rb") as file:
        pieces = archive._Pieces(file, [(0, 100_000)])
        assert pieces.read(50_000) == b"x" * 50_000
        os.truncate(path, 60_000)
        assert pieces.read(50_000) == b"x" * 10_000 + bytes(40_000)
        assert pieces.read(1) == b""


@pytest.mark.parametrize("becomes", ["nothing", "a symlink", "a file", "a socket"])
def test_what_goes_while_the_tree_is_read_is_left_out_and_told_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    """Of a tree whose owner goes on: seen in its directory, and something else when it is opened."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"first")
    (tmp_path / "c").write_bytes(b"second")
    opened = openat2.open_beneath

    def too_late(directory: int, name: str, flags: int) -> int:
        path = tmp_path / name
        if name in ("a", "b"):
            path.rmdir() if name == "a" else path.unlink()
            if becomes == "a symlink":
                path.symlink_to("c")
            elif becomes == "a file" and name == "a":
                path.touch()
            elif becomes == "a socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(path))
        return opened(directory, name, flags)

    monkeypatch.setattr(openat2, "open_beneath", too_late)
    monkeypatch.setattr(Writer, "_entries", staticmethod(lambda directory: iter("abcd")))
    packed, writer = write(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        content = tar.extractfile("c")
        assert content is not None
        assert content.read() == b"second"
        assert not {"b", "d"} & set(tar.getnames())
    assert [line.partition(":")[0] for line in writer.told] == ["a", "b", "d"]
