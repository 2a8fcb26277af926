"""System V shared memory, semaphores and queues (sysvipc(7)): they outlive the processes that made them."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vcg.linux.libc import check, libc

_TABLES = {"shm": "shmid", "sem": "semid", "msg": "msqid"}
_IPC_RMID = 0  # linux/ipc.h


class Object(NamedTuple):
    """One of them.

    Attributes:
        kind: shm, sem or msg.
        identifier: the kernel's, within its kind.
        uid, creator: user ids of the owner, and of who made it.
    """

    kind: str
    identifier: int
    uid: int
    creator: int


def parse(kind: str, text: str) -> list[Object]:
    """The lines of a ``/proc/sysvipc`` table (proc(5)); its columns differ from kind to kind."""
    header, *lines = text.splitlines()
    names = header.split()
    columns = [names.index(name) for name in (_TABLES[kind], "uid", "cuid")]
    rows = [line.split() for line in lines]
    return [Object(kind, *(int(row[column]) for column in columns)) for row in rows]


def objects() -> Iterator[Object]:
    """All that there are in our namespace."""
    for kind in _TABLES:
        yield from parse(kind, Path("/proc/sysvipc", kind).read_text())


def remove(one: Object) -> None:
    """Remove an object; shared memory goes when nobody has it attached any more. One that is gone already is no error.

    Raises:
        OSError: it may not be removed.
    """
    identifier, no_argument = ctypes.c_int(one.identifier), ctypes.c_void_p(None)
    match one.kind:
        case "shm":
            result = libc.shmctl(identifier, _IPC_RMID, no_argument)
        case "sem":
            result = libc.semctl(identifier, 0, _IPC_RMID)
        case _:
            result = libc.msgctl(identifier, _IPC_RMID, no_argument)
    try:
        check(result, f"{one.kind} {one.identifier}")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EIDRM):
            raise
