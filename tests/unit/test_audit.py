"""Reading the kernel's tables of SysV objects, and telling our paths from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcg import audit


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
