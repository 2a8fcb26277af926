"""Reading the kernel's tables of mounts and SysV objects, and telling our paths from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcg import audit

MOUNTINFO = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
41 27 7:3 / /vcg/d\\0401 rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw
"""


def test_mounts_are_read_whatever_optional_fields_they_have() -> None:
    assert audit.parse_mountinfo(MOUNTINFO) == [
        audit.Mount(27, "/", "ext4", "/dev/vda"),
        audit.Mount(41, "/vcg/d 1", "ext4", "/dev/loop3"),
    ]


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/vcg", True),
        ("/vcg/d1", True),
        ("/vcg/d1 (deleted)", True),
        ("/vcgs/d1", False),
        ("/", False),
    ],
)
def test_a_path_is_ours_if_it_is_the_root_or_below_it(path: str, ours: bool) -> None:
    assert audit.is_under(path, Path("/vcg")) is ours


def test_sysv_tables_are_read_by_their_headings() -> None:
    table = (
        "       key      shmid perms   size  cpid  lpid nattch   uid   gid  cuid  cgid\n"
        "         0          7  1600   4096   100   100      0 64101 64101 64102 64101\n"
    )
    assert audit.parse_sysvipc(table) == [("7", 64101, 64102)]
