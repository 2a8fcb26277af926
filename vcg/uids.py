"""Which users the dimensions of a run are: for every run of a host a range of its own, one uid for each dimension.

What the kernel grants or counts by user would otherwise cross between runs: who may signal and trace whom, System V
objects, limits on processes, pipes, pending signals. A range is claimed by a record lock (fcntl(2)) on its byte of one
file, which the kernel gives up when the process ends, however it ends: there is nothing to clean. A range is free if
nobody holds its lock and none of its users is alive: of a run that was killed, processes may be left for a while.

Traps: closing *any* descriptor of that file gives up every range of this process, and a fork has none of them. So a
run claims its range once, and sweeps, which opens the file anew, only before that and after its last process. The
file itself, empty, stays: if it were removed under a run, the next would lock another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from vcg.errors import RunError
from vcg.linux import sysvipc
from vcg.shm import MAX_DIMENSIONS

FIRST = 70_000
"""From here on nobody else gives any out.

After "Users, Groups, UIDs and GIDs on systemd Systems" (systemd.io/UIDS-GIDS): people have those up to 60513, services
with DynamicUser= 61184 to 65519, 65534 is nobody, 65535 the -1 of 16 bits, and containers have those from 524288 on.
What is between is unused there, but from 100000 on (SUB_UID_MIN in login.defs(5)) it is the users' for containers.
"""
RANGES = 64
"""So many runs a host can have at once."""
SPARE = range(FIRST + RANGES * MAX_DIMENSIONS, FIRST + (RANGES + 1) * MAX_DIMENSIONS)
"""Users of no run: for tests and benchmarks, whose processes play a dimension."""
ALL = range(FIRST, SPARE.stop)
LOCK = Path("/run/vcg-uids.lock")


def first_free(is_free: Callable[[range], bool]) -> range:
    """The first range that is free.

    Args:
        is_free: asked about one range after the other, no further than needed.

    Raises:
        RunError: none is.
    """
    for first in range(FIRST, SPARE.start, MAX_DIMENSIONS):
        if is_free(uids := range(first, first + MAX_DIMENSIONS)):
            return uids
    raise RunError(
        f"uids {FIRST} to {SPARE.start - 1}: all {RANGES} ranges are taken by other runs of this host or by processes "
        "that killed ones have left, expected one that is free: stop a run, or start a killed one's testbed again"
    )


def claim() -> range:
    """Take the first free range, until this process ends, and remove what its last users have left.

    Raises:
        RunError: none is free.
    """
    fd = _open()

    def take(uids: range) -> bool:
        if not _lock(fd, uids):
            return False
        if _are_alive(uids):  # only under the lock: who holds it may be starting them just now
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, _byte_of(uids))
            return False
        return True

    uids = first_free(take)
    _remove_sysv_objects(uids)
    return uids


def sweep(first: int) -> None:
    """Remove what the run whose range begins so has left in System V IPC, where no filter keeps dimensions from it.

    If another run has the range by now, nothing is left to do: it has begun with that, and what there is is its own.
    """
    uids = range(first, first + MAX_DIMENSIONS)
    fd = _open()
    try:
        if _lock(fd, uids):
            _remove_sysv_objects(uids)
    finally:
        os.close(fd)


def _open() -> int:
    return os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _byte_of(uids: range) -> int:
    return (uids.start - FIRST) // MAX_DIMENSIONS


def _lock(fd: int, uids: range) -> bool:
    """Whether the range is ours now."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(uids))
    except (BlockingIOError, PermissionError):  # fcntl(2) may say either of a lock that is held
        return False
    return True


def _are_alive(uids: range) -> bool:
    """Whether one of these users has a process that may still do something.

    A zombie, which its parent may keep for long, does not, unless it is but the first thread that has ended.
    """
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            lines = path.read_text(errors="replace").splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            has_ended = fields["State"][0] in "ZX" and int(fields["Threads"]) <= 1
            if int(fields["Uid"].split()[0]) in uids and not has_ended:
                return True
    return False


def _remove_sysv_objects(uids: range) -> None:
    for one in sysvipc.objects():
        if one.uid in uids or one.creator in uids:
            sysvipc.remove(one)
