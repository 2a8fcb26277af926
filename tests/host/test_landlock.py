"""Landlock on the real kernel: inside, everything that a program does with files still works."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vcg.linux import landlock, prctl

pytestmark = pytest.mark.usefixtures("root")


def test_files_below_the_root_are_as_usable_as_before_but_devices_are_not_made(in_child: Any, tmp_path: Path) -> None:
    def act() -> list[object]:
        prctl.forbid_new_privileges()
        landlock.restrict(landlock.abi())
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        (first / "file").write_text("text")
        (first / "file").rename(second / "file")  # from one directory to another: ABI 1 forbids it
        os.truncate(second / "file", 2)
        (second / "link").symlink_to("file")
        (second / "hard").hardlink_to(second / "file")
        os.mkfifo(second / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(second / "socket"))
        said = subprocess.run(["/bin/echo", "exec"], capture_output=True, text=True, check=True).stdout
        refused = []
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            try:
                os.mknod(second / "device", kind | 0o600, os.makedev(1, 3))
            except PermissionError:
                refused.append(kind)
        return [(second / "link").read_text(), said, refused]

    assert in_child(act) == ["te", "exec\n", [stat.S_IFCHR, stat.S_IFBLK]]


def test_version_0_restricts_nothing(in_child: Any, tmp_path: Path) -> None:
    def act() -> None:
        landlock.restrict(0)
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))

    in_child(act)
    assert stat.S_ISCHR((tmp_path / "device").stat().st_mode)
