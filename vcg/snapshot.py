"""Snapshots as they lie on disk: one directory each, complete or not there, within a quota.

::

    /var/lib/vcg/snapshots/20260102T030405.678901Z-d4-crash/
        d4.img           the image (ext4), or d4.tar.zst (the tree of a tmpfs)
        snapshot.json    why, when, the last windows, the ledger, the kernel's log, what opens the rest
        workload.log     the end of what the workload has written there

Names sort by time. A snapshot is made under a name that ends in ``.part-`` and the run that makes it, and gets its own
at the very end; when it is to go it gets such a name first. So whatever has a proper name is whole, and what a killed
run was at can be told from what another run is still making.

They outlive the run. Who makes them is ``vcg.snapshotter``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vcg.errors import RunError

OCCASIONS = ("crash", "oom", "watchdog")
"""When one is taken without being asked for, where a testbed wants it."""
FOLDER = "snapshots"
"""Where they lie in a state root, unless a testbed says otherwise."""
PAPERS = "snapshot.json"
LOG = "workload.log"
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[a-z][a-z0-9_]*-[a-z]+")
_PAPERS: dict[str, type] = {
    "dimension": str,
    "why": str,
    "detail": str,
    "utc": str,
    "monotonic_ns": int,
    "run_start_ns": int,
    "testbed": str,
    "epoch": int,
    "generation": int,
    "process": dict,
    "at_rest": bool,
    "frozen_for_ns": int,
    "contents": dict,
    "open": list,
    "windows": list,
    "ledger": dict,
    "kernel": dict,
}
"""What has to be in the papers for somebody to make sense of them."""
_BLOCK_BYTES = 512
"""Unit of ``st_blocks`` (stat(2))."""


@dataclass(frozen=True)
class Snapshot:
    """One that is complete.

    Attributes:
        bytes: that it takes on the disk.
    """

    path: Path
    bytes: int

    @property
    def dimension(self) -> str:
        return self.path.name.split("-")[1]

    @property
    def why(self) -> str:
        return self.path.name.split("-")[2]

    def papers(self) -> dict[str, Any]:
        """What its JSON says.

        Raises:
            RunError: it cannot be read, or is damaged.
        """
        return read_papers(self.path)


def name_of(at: datetime, dimension: str, why: str) -> str:
    """Of a snapshot that is taken at a time in UTC."""
    return f"{at.astimezone(UTC):%Y%m%dT%H%M%S.%f}Z-{dimension}-{why}"


def read_papers(path: Path) -> dict[str, Any]:
    """What the JSON of a snapshot says.

    Args:
        path: of the snapshot, or of something in it.

    Raises:
        RunError: there is none, or it is damaged.
    """
    folder = path if path.is_dir() else path.parent
    try:
        papers = json.loads((folder / PAPERS).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path}: no snapshot: expected a directory with a {PAPERS} (see: vcg snapshot --list)"
        ) from None
    except ValueError as error:
        raise RunError(f"{folder / PAPERS}: damaged: {error}") from None
    if not isinstance(papers, dict) or "dimension" not in papers:
        raise RunError(f"{folder / PAPERS}: not of a snapshot")
    if wrong := [field for field, kind in _PAPERS.items() if not isinstance(papers.get(field), kind)]:
        raise RunError(f"{folder / PAPERS}: damaged: {', '.join(wrong)}: missing, or not as they were written")
    return papers


def listed(directory: Path) -> list[Snapshot]:
    """The snapshots in a directory, oldest first; none if there is no such directory."""
    return [Snapshot(path, _allocated_bytes(path)) for path in sorted(_entries(directory)) if is_complete(path)]


def is_complete(path: Path) -> bool:
    """Whether a path is that of a snapshot, and not of a part of one."""
    return _NAME.fullmatch(path.name) is not None


def expect_to_fit(need_bytes: int, quota_bytes: int) -> None:
    """Refuse what would not fit into an empty quota.

    Raises:
        RunError: so large it is.
    """
    if need_bytes > quota_bytes:
        raise RunError(
            f"it takes {-(-need_bytes >> 20)} MiB, more than all of snapshots.quota ({quota_bytes >> 20} MiB): "
            "make the quota larger, or the dimension smaller"
        )


def in_the_way(kept: Sequence[Snapshot], dimension: str, need_bytes: int, quota_bytes: int) -> list[Snapshot]:
    """Which snapshots have to go so that another one has room in the quota.

    As long as its dimension would have more than its share, it is the oldest of its own: so no dimension, however often
    it fails, can push out what is known of the others. Then it is the oldest of all. A share is the quota divided by
    the number of dimensions that have snapshots, with this one.

    Args:
        kept: all of them, oldest first.
        dimension, need_bytes: of the other one.
    """
    share_bytes = quota_bytes // len({dimension, *(one.dimension for one in kept)})
    own = [one for one in kept if one.dimension == dimension]
    total_bytes, own_bytes = (need_bytes + sum(one.bytes for one in some) for some in (kept, own))
    going: list[Snapshot] = []
    while total_bytes > quota_bytes and len(going) < len(kept):
        is_greedy = own_bytes > share_bytes and any(one not in going for one in own)
        oldest = next(one for one in (own if is_greedy else kept) if one not in going)
        going.append(oldest)
        total_bytes -= oldest.bytes
        own_bytes -= oldest.bytes if oldest.dimension == dimension else 0
    return going


def make_room(directory: Path, dimension: str, need_bytes: int, quota_bytes: int, run: str) -> list[Path]:
    """Remove snapshots until there is room in the quota for another one, see :func:`in_the_way`.

    Args:
        run: of the run that makes room, see :func:`run_name`.

    Returns:
        What has been removed.

    Raises:
        RunError: it would not fit into an empty quota; nothing has been removed.
    """
    expect_to_fit(need_bytes, quota_bytes)
    going = [one.path for one in in_the_way(listed(directory), dimension, need_bytes, quota_bytes)]
    for path in going:
        _discard(path, run)
    return going


def give_up_for(directory: Path, need_bytes: int, run: str) -> bool:
    """The disk is full: remove the oldest snapshot, and further ones until so much is free.

    None is removed if the disk would still have less than that free without all of them.

    Returns:
        Whether there is more room now.
    """
    kept = listed(directory)
    if not kept or _free_bytes(directory) + sum(one.bytes for one in kept) < need_bytes:
        return False
    for number, oldest in enumerate(kept):
        if number and _free_bytes(directory) >= need_bytes:
            break
        _discard(oldest.path, run)
    return True


class Part:
    """A snapshot that is being made. A context manager: what is not :meth:`sealed <seal>` in the block is removed.

    Args:
        directory: of the snapshots; made if it is not there.
        name: that it will have.
        run: of the run that makes it, see :func:`run_name`.
    """

    def __init__(self, directory: Path, name: str, run: str) -> None:
        self._final = directory / name
        self.path = directory / f"{name}.part-{run}"

    def __enter__(self) -> Part:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.exists():
            _remove(self.path)

    def create(self, name: str) -> int:
        """A new file in it, open for writing."""
        return os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, name: str, content: bytes) -> None:
        """A new file in it with this content."""
        with os.fdopen(self.create(name), "wb") as file:
            file.write(content)

    def allocated_bytes(self) -> int:
        """What it takes on the disk so far."""
        return _allocated_bytes(self.path)

    def seal(self) -> Path:
        """Make it durable and give it its proper name; returns its path."""
        for path in (*self.path.iterdir(), self.path):
            _sync(path)
        self.path.rename(self._final)
        _sync(self._final.parent)
        return self._final


def run_name(supervisor: int, epoch: int) -> str:
    """Which run a part belongs to."""
    return f"{supervisor}-{epoch}"


def discard_parts(directory: Path, run: str) -> None:
    """Remove what a run has begun and not finished."""
    for path in _entries(directory):
        if path.name.endswith(f".part-{run}"):
            _remove(path)


def _entries(directory: Path) -> Iterator[Path]:
    try:
        yield from list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bfree * found.f_frsize  # what is reserved for root, too


def _allocated_bytes(folder: Path) -> int:
    total = 0
    for directory, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                total += Path(directory, name).lstat().st_blocks * _BLOCK_BYTES
            except FileNotFoundError:  # another run has just removed it
                continue
    return total


def _discard(path: Path, run: str) -> None:
    try:
        part = path.rename(path.with_name(f"{path.name}.part-{run}"))
    except FileNotFoundError:  # another run has made the same room
        return
    _remove(part)


def _remove(part: Path) -> None:
    """With what somebody has put there, such as the files of its copy; but nothing that they have mounted there."""
    device, emptied = part.lstat().st_dev, []
    for directory, folders, names in os.walk(part):
        emptied.append(directory)
        links = [name for name in folders if Path(directory, name).is_symlink()]
        for name in (*names, *links):
            Path(directory, name).unlink()
        folders[:] = [name for name in folders if name not in links and Path(directory, name).lstat().st_dev == device]
    for directory in reversed(emptied):
        Path(directory).rmdir()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
