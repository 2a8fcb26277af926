"""What a dimension's files lie on: room that is really there, filesystems as asked for, and failures in one line."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vcg import storage, uids
from vcg.errors import RunError
from vcg.linux import loop, mount

pytestmark = pytest.mark.usefixtures("root")
MIB = 1 << 20
UID = uids.SPARE[5]


def features(image: Path) -> set[str]:
    """The features that dumpe2fs(8) finds in an image."""
    told = subprocess.run(["/usr/sbin/dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^Filesystem features:\s+(.*)$", told, re.MULTILINE)
    assert found
    return set(found[1].split())


def refusal(image: Path, size_bytes: int) -> str:
    with pytest.raises(RunError) as caught:
        storage.allocate(image, size_bytes)
    return str(caught.value)


def free_blocks(path: Path) -> int:
    os.sync()
    return os.statvfs(path).f_bfree


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_image_has_all_its_blocks(roots: Any) -> None:
    image = roots.state_root / "d4.img"
    storage.allocate(image, 3 * MIB)
    found = image.stat()
    assert found.st_size == 3 * MIB
    assert found.st_blocks * 512 >= 3 * MIB
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_an_image_that_exists_is_made_anew(roots: Any) -> None:
    image = roots.state_root / "d4.img"
    image.write_bytes(b"old" * MIB)
    storage.allocate(image, MIB)
    assert image.read_bytes() == bytes(MIB)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_an_image_without_room_is_refused_and_takes_none(roots: Any, in_child: Any, kind: str) -> None:
    def act() -> tuple[str, int, int]:
        mount.enter_private_namespace()
        if kind == "tmpfs":
            storage.mount_tmpfs(roots.mount_root, MIB, None)
        else:
            disk = roots.state_root / "disk.img"
            storage.allocate(disk, 8 * MIB)
            storage.make_filesystems([disk])
            storage.mount_ext4(disk, roots.mount_root)
        before = free_blocks(roots.mount_root)
        return refusal(roots.mount_root / "d4.img", 64 * MIB), before, free_blocks(roots.mount_root)

    message, before, after = in_child(act)
    assert f"{roots.mount_root}/d4.img: no room for 64 MiB" in message
    assert "make storage.size smaller" in message
    assert after == before


# ── filesystems ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_image_gets_a_filesystem_without_journal(roots: Any) -> None:
    images = [roots.state_root / f"d{number}.img" for number in range(3)]
    for image in images:
        storage.allocate(image, 4 * MIB)
    storage.make_filesystems(images)
    for image in images:
        assert "extent" in features(image)
        assert "has_journal" not in features(image)
        assert image.stat().st_blocks * 512 >= 4 * MIB  # mkfs has not made it sparse again


def test_images_that_are_too_small_are_named_in_one_message(roots: Any) -> None:
    images = [roots.state_root / f"d{number}.img" for number in range(2)]
    for image in images:
        storage.allocate(image, 1024)
    with pytest.raises(RunError) as caught:
        storage.make_filesystems(images)
    message = str(caught.value)
    for image in images:
        assert message.count(f"{image}: mkfs.ext4 ended with ") == 1
    assert "\n" not in message


def test_whoever_is_killed_while_filesystems_are_made_takes_their_makers_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = tmp_path / "mkfs.ext4"
    maker.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 60\n")
    maker.chmod(0o755)
    monkeypatch.setattr(storage, "_PATH", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    pid = os.fork()
    if pid == 0:
        storage.make_filesystems([tmp_path / "d4.img"])
        os._exit(0)
    try:
        made = wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    wait_for(lambda: not is_alive(made))


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 5
    while not (met := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return met


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_maker_that_cannot_be_executed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PATH", {"PATH": str(tmp_path)})
    with pytest.raises(RunError, match=r"d4\.img: mkfs\.ext4 ended with 1: .*No such file"):
        storage.make_filesystems([tmp_path / "d4.img"])


def test_ext4_is_mounted_so_that_an_error_in_the_image_only_stops_writing(roots: Any, in_child: Any) -> None:
    image = roots.state_root / "d4.img"
    storage.allocate(image, 4 * MIB)
    storage.make_filesystems([image])
    subprocess.run(["/usr/sbin/tune2fs", "-e", "panic", image], check=True, capture_output=True)

    def act() -> mount.Mount:
        mount.enter_private_namespace()
        storage.mount_ext4(image, roots.mount_root)
        (entry,) = [entry for entry in mount.mounts() if entry.point == roots.mount_root]
        return entry

    entry = in_child(act)
    assert entry.fstype == "ext4"
    assert {"noatime", "nodev", "nosuid", "lazytime", "rw"} <= set(entry.options)
    # The kernel shows the option only where it differs from what the image asks for.
    assert "errors=remount-ro" in entry.options


def test_an_image_that_is_no_filesystem_is_refused_by_name_and_given_back(roots: Any, in_child: Any) -> None:
    image = roots.state_root / "d4.img"
    storage.allocate(image, MIB)

    def act() -> None:
        mount.enter_private_namespace()
        storage.mount_ext4(image, roots.mount_root)

    with pytest.raises(OSError, match=f"on {roots.mount_root}"):
        in_child(act)
    assert not [device for device, backing in loop.backed_by(roots.state_root).items() if backing == image]


def test_a_tmpfs_has_its_size_and_an_inode_for_each_page(roots: Any, in_child: Any) -> None:
    def act() -> tuple[mount.Mount, os.statvfs_result, int]:
        mount.enter_private_namespace()
        storage.mount_tmpfs(roots.mount_root, 2 * MIB, 0)
        (entry,) = [entry for entry in mount.mounts() if entry.point == roots.mount_root]
        return entry, os.statvfs(roots.mount_root), roots.mount_root.stat().st_mode

    entry, room, mode = in_child(act)
    assert {"noatime", "nodev", "nosuid", "mpol=bind:0"} <= set(entry.options)
    assert room.f_blocks * room.f_frsize == 2 * MIB
    assert room.f_files == 2 * MIB >> 12
    assert stat.S_IMODE(mode) == 0o755


# ── the first directories ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dimension_owns_its_data_and_tmp_and_its_log_file_and_nothing_else(tmp_path: Path) -> None:
    storage.furnish(tmp_path, UID)
    seen = {str(path.relative_to(tmp_path)): path.stat() for path in tmp_path.rglob("*")}
    owners = {name: (found.st_uid, found.st_gid) for name, found in seen.items()}
    own = (UID, UID)
    assert owners == {"data": own, "tmp": own, "dev": (0, 0), "log": (0, 0), "log/workload.log": own}
    assert {stat.S_IMODE(seen[name].st_mode) for name in ("data", "tmp", "dev", "log")} == {0o755}
    assert stat.S_IMODE(seen["log/workload.log"].st_mode) == 0o600
