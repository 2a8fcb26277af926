"""Reading the kernel's tables of System V objects."""

from __future__ import annotations

import pytest

from vcg.linux import sysvipc
from vcg.linux.sysvipc import Object

TABLES = {
    "shm": (
        "       key      shmid perms       size  cpid  lpid nattch   uid   gid  cuid  cgid      atime\n"
        "         0          7  1600       4096   100   100      0 64101 64101 64102 64101          0\n"
    ),
    "sem": (
        "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n"
        "         0          7   600          1 64101 64101 64102 64101          0 1790000000\n"
    ),
    "msg": (
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid\n"
        "         0          7   600           0          0     0     0 64101 64101 64102 64101\n"
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_each_kind_is_read_by_its_own_headings(kind: str) -> None:
    assert sysvipc.parse(kind, TABLES[kind]) == [Object(kind, 7, 64101, 64102)]
