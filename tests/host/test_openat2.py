"""Line 06: what the host's side opens of a dimension's filesystem leads nowhere else, whatever is done meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg.linux import mount, openat2

pytestmark = pytest.mark.usefixtures("root")
TRIES = 20_000


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "inside" / "data").mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    return tmp_path / "inside"


@pytest.fixture
def directory(inside: Path) -> Iterator[int]:
    fd = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_regular_file_is_read_up_to_the_limit(inside: Path, directory: int) -> None:
    (inside / "data" / "file").write_text("content")
    assert openat2.read_file(directory, "data/file", 100) == b"content"
    assert openat2.read_file(directory, "data/file", 3) == b"con"
    assert openat2.read_file(directory, "data/../data/file", 100) == b"content"


def test_what_is_not_there_or_no_directory_is_told_as_open_does(inside: Path, directory: int) -> None:
    (inside / "data" / "file").touch()
    with pytest.raises(FileNotFoundError, match="data/none"):
        openat2.read_file(directory, "data/none", 1)
    with pytest.raises(NotADirectoryError):
        openat2.read_file(directory, "data/file/more", 1)


def test_symlinks_are_followed_nowhere_not_even_inside(inside: Path, directory: int) -> None:
    (inside / "data" / "file").touch()
    (inside / "data" / "near").symlink_to("file")
    (inside / "data" / "far").symlink_to(inside.parent / "secret")
    (inside / "data" / "folder").symlink_to(inside.parent)
    for path in ("data/near", "data/far", "data/folder/secret"):
        with pytest.raises(OSError) as caught:
            openat2.read_file(directory, path, 1)
        assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("path", ["../secret", "data/../../secret", "/etc/hostname"])
def test_a_path_that_leads_out_is_refused(path: str, directory: int) -> None:
    with pytest.raises(OSError) as caught:
        openat2.read_file(directory, path, 1)
    assert caught.value.errno == errno.EXDEV


def test_another_mount_is_not_entered(inside: Path, in_child: Any) -> None:
    def act() -> int | None:
        mount.enter_private_namespace()
        mount.mount("tmpfs", inside / "data", "tmpfs")
        (inside / "data" / "file").touch()
        fresh = os.open(inside, os.O_PATH | os.O_DIRECTORY)
        try:
            openat2.read_file(fresh, "data/file", 1)
        except OSError as error:
            return error.errno
        return None

    assert in_child(act) == errno.EXDEV


def test_what_is_no_regular_file_with_one_name_is_refused_at_once(inside: Path, directory: int) -> None:
    os.mkfifo(inside / "data" / "fifo")
    (inside / "data" / "file").touch()
    (inside / "data" / "hard").hardlink_to(inside / "data" / "file")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inside / "data" / "socket"))
    for path, expected in (
        ("data/fifo", errno.EINVAL),
        ("data/hard", errno.EINVAL),
        ("data", errno.EINVAL),
        ("data/socket", errno.ENXIO),
    ):
        with pytest.raises(OSError) as caught:
            openat2.read_file(directory, path, 1)
        assert caught.value.errno == expected


def test_a_directory_that_is_swapped_all_the_time_leads_a_plain_open_astray_and_this_one_never(
    inside: Path, directory: int
) -> None:
    folder, aside = inside / "data" / "folder", inside / "data" / "aside"
    folder.mkdir()
    (folder / "secret").write_text("inside")
    aside.symlink_to(inside.parent)
    swapper = os.fork()
    if swapper == 0:
        spare = inside / "data" / "spare"
        while True:
            folder.rename(spare)
            aside.rename(folder)
            spare.rename(aside)
    try:
        plain, guarded = set(), set()
        for tries in range(TRIES):
            with contextlib.suppress(OSError):  # it may be gone for a moment
                plain.add((folder / "secret").read_text())
            try:
                guarded.add(openat2.read_file(directory, "data/folder/secret", 100))
            except OSError as error:
                assert error.errno in (errno.ELOOP, errno.ENOENT, errno.EAGAIN, errno.EXDEV)
            if tries > 200 and "outside" in plain and guarded:
                break
    finally:
        os.kill(swapper, 9)
        os.waitpid(swapper, 0)
    assert "outside" in plain
    assert guarded == {b"inside"}
