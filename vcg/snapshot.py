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
from collections.abc import Iterator
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
    return papers


def listed(directory: Path) -> list[Snapshot]:
    """The snapshots in a directory, oldest first; none if there is no such directory."""
    return [Snapshot(path, _allocated_bytes(path)) for path in sorted(_entries(directory)) if is_complete(path)]


def is_complete(path: Path) -> bool:
    """Whether a path is that of a snapshot, and not of a part of one."""
    return _NAME.fullmatch(path.name) is not None


def make_room(directory: Path, need_bytes: int, quota_bytes: int, run: str) -> list[Path]:
    """Remove the oldest snapshots until there is room in the quota.

    Args:
        need_bytes: what is to come.
        run: of the run that makes room, see :func:`run_name`.

    Returns:
        What has been removed.

    Raises:
        RunError: it would not fit into an empty quota; nothing has been removed.
    """
    if need_bytes > quota_bytes:
        raise RunError(
            f"it takes {-(-need_bytes >> 20)} MiB, more than all of snapshots.quota ({quota_bytes >> 20} MiB): "
            "make the quota larger, or the dimension smaller"
        )
    kept = listed(directory)
    total_bytes = sum(one.bytes for one in kept)
    removed = []
    for oldest in kept:
        if total_bytes + need_bytes <= quota_bytes:
            break
        _discard(oldest.path, run)
        removed.append(oldest.path)
        total_bytes -= oldest.bytes
    return removed


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


def _allocated_bytes(folder: Path) -> int:
    total = 0
    for path in _entries(folder):
        try:
            total += path.lstat().st_blocks * _BLOCK_BYTES
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
    for path in _entries(part):
        path.unlink()
    part.rmdir()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
