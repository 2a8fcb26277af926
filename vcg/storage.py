"""What a dimension's files lie on: an ext4 image without journal on a loop device, or tmpfs.

Both are made fresh for every run. Images are allocated, not sparse, so that a full disk shows at the start and not in
the middle of a window.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from vcg.errors import RunError
from vcg.linux import loop, mount, prctl

_FLAGS = mount.MS_NODEV | mount.MS_NOSUID | mount.MS_NOATIME
FOLDERS = ("data", "dev", "log", "tmp")
"""What a dimension's filesystem begins with; no bind may cover it."""


def allocate(image: Path, size_bytes: int) -> None:
    """A new file with all its blocks.

    Raises:
        RunError: the disk has no room for it.
    """
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.ftruncate(fd, 0)  # ext4 keeps what it had found so far
        raise RunError(
            f"{image}: no room for {size_bytes >> 20} MiB on its filesystem: "
            "free some, choose another state_root, or make storage.size smaller"
        ) from None
    finally:
        os.close(fd)


def make_filesystems(images: Iterable[Path]) -> None:
    """ext4 without journal on every image, all at once (mke2fs(8)).

    ``lazy_itable_init=0``: the kernel would else initialise inode tables in the background, as I/O of nobody's.
    """
    command = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"]
    running = [(image, *_begin([*command, str(image)])) for image in images]
    failed = []
    for image, pid, output in running:
        with os.fdopen(output, errors="replace") as file:
            said = " ".join(file.read().split())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != 0:
            failed.append(f"{image}: mkfs.ext4 ended with {code}: {said}")
    if failed:
        raise RunError("; ".join(failed))


_PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _begin(command: list[str]) -> tuple[int, int]:
    """Execute a command that ends with this process, so that nobody else holds an image.

    Returns:
        Its pid, and a descriptor to read what it says.
    """
    parent = os.getpid()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prctl.die_with_parent(parent)
            os.dup2(theirs, 1)
            os.dup2(theirs, 2)
            os.execvpe(command[0], command, _PATH)
        except OSError as error:
            os.write(theirs, str(error).encode())
        finally:
            os._exit(1)
    os.close(theirs)
    return pid, ours


def mount_ext4(image: Path, target: Path) -> tuple[int, int]:
    """Bind an image to a loop device and mount it; the device clears itself when the mount ends.

    ``errors=remount-ro`` always: an image could ask for ``panic``, and take the host down.

    Returns:
        Major and minor number of the device.
    """
    device = loop.attach(image)
    try:
        mount.mount(str(device.path), target, "ext4", _FLAGS | mount.MS_LAZYTIME, "errors=remount-ro")
    finally:
        os.close(device.fd)
    return device.device


def complete_superblock(target: Path) -> None:
    """Let the superblock of a mounted ext4 say what is free: to save writes the kernel keeps that in memory.

    It writes it down when it is mounted anew, also if that changes nothing. A filesystem that an error has made
    read-only is left so.
    """
    if not os.statvfs(target).f_flag & os.ST_RDONLY:
        mount.mount("", target, "", mount.MS_REMOUNT | _FLAGS | mount.MS_LAZYTIME, "errors=remount-ro")


def mount_tmpfs(target: Path, size_bytes: int, node: int | None) -> None:
    """A tmpfs of a size, with an inode for each 4 KiB, its pages on one memory node if one is given."""
    policy = "" if node is None else f",mpol=bind:{node}"
    mount.mount("tmpfs", target, "tmpfs", _FLAGS, f"size={size_bytes},nr_inodes={size_bytes >> 12},mode=755{policy}")


def furnish(root: Path, uid: int) -> None:
    """The few directories that a dimension begins with; ``/data`` and ``/tmp`` are its own.

    Args:
        uid: of the dimension.
    """
    for name in FOLDERS:
        folder = root / name
        folder.mkdir(mode=0o755)
        if name in ("data", "tmp"):
            os.chown(folder, uid, uid)
    log = root / "log" / "workload.log"
    log.touch(0o600)
    os.chown(log, uid, uid)
