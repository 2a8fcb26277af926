"""A dimension that turns on its neighbours: honest at first, from one window on an abuse that never ends.

Arguments: ``kind``, the abuse; ``after`` (20) windows that it behaves for.

* ``spin``: ignores its tokens and burns its CPU for ever.
* ``fork``: forks as fast as it is let; every child spins.
* ``memory``: touches memory until something stops it, again and again: its own pages, a memfd's, and a file's in
  ``/data`` (which is a memory of its own kind where the storage is tmpfs).
* ``disk``: fills its filesystem and goes on writing.
* ``inodes``: makes empty files until no more can be made, and goes on trying.
* ``descriptors``: opens files until it may open no more, goes on trying some thousand times, closes them
  all, and begins again.
* ``connections``: connects to itself, and to no end: what is accepted is held, what is not fills the queue.

Once it has turned it never comes back for another window. A refusal by the kernel (EAGAIN, ENOMEM, ENOSPC, EMFILE) is
what the abuse is about, so it is tried again at once.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from vcg.dimension import Dimension

_CHUNK_BYTES = 1 << 20
_TRIES = 5000
_REFUSALS = {errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EFBIG}


def _refused(attempt: Callable[..., Any], *arguments: Any) -> bool:
    """Whether the kernel refused it for want of something; any other error is none that an abuse expects."""
    try:
        attempt(*arguments)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return True
    return False


def _spin() -> NoReturn:
    while True:
        pass


def _fork() -> NoReturn:
    while True:
        try:
            pid = os.fork()
        except BlockingIOError:
            continue
        if pid == 0:
            _spin()


def _memory() -> NoReturn:
    held: list[mmap.mmap] = []
    ram = os.memfd_create("hostile")
    disk = os.open("/data/hostile", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    block, at = b"\xff" * _CHUNK_BYTES, 0

    def touch() -> None:
        pages = mmap.mmap(-1, _CHUNK_BYTES)
        pages.write(block)
        held.append(pages)

    while True:
        _refused(touch)
        _refused(os.pwrite, ram, block, at)
        _refused(os.pwrite, disk, block, at)
        at += _CHUNK_BYTES


def _disk() -> NoReturn:
    fd = os.open("/data/hostile", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    block, at = b"\xff" * _CHUNK_BYTES, 0
    while True:
        if _refused(os.pwrite, fd, block, at):
            os.fsync(fd)
            at = 0  # full: write what there is over and over
        else:
            at += _CHUNK_BYTES


def _inodes() -> NoReturn:
    Path("/data/hostile").mkdir()
    number = 0
    while True:
        if not _refused(os.mknod, f"/data/hostile/{number}"):
            number += 1


def _descriptors() -> NoReturn:
    held: list[int] = []

    def hold() -> None:
        held.append(os.memfd_create("hostile"))

    while True:
        if _refused(hold):
            for _ in range(_TRIES):
                _refused(hold)
            for fd in held:
                os.close(fd)
            held.clear()


def _connections() -> NoReturn:
    held: list[socket.socket] = []
    Path("/data/hostile").unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/data/hostile")
    listener.listen()
    listener.setblocking(False)

    def connect() -> None:
        one = socket.socket(socket.AF_UNIX)
        held.append(one)
        one.setblocking(False)
        one.connect("/data/hostile")

    def accept() -> None:
        held.append(listener.accept()[0])

    while True:
        _refused(connect)
        _refused(accept)


ABUSES: dict[str, Callable[[], NoReturn]] = {
    "spin": _spin,
    "fork": _fork,
    "memory": _memory,
    "disk": _disk,
    "inodes": _inodes,
    "descriptors": _descriptors,
    "connections": _connections,
}


def run(dimension: Dimension) -> None:
    kind, after = dimension.args.get("kind", "spin"), int(dimension.args.get("after", 20))
    if kind not in ABUSES:
        raise ValueError(f"hostile: kind = {kind!r}; expected one of {', '.join(ABUSES)}")
    for window in dimension.windows():
        if window.number >= after:
            ABUSES[kind]()
