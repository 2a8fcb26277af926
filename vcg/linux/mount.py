"""mount(2), umount2(2), pivot_root(2), private mount namespaces (mount_namespaces(7)) and the table of mounts."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vcg.linux.libc import check, libc, syscall

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_LAZYTIME = 1 << 25
MNT_DETACH = 2
CLONE_NEWNS = 0x00020000
_SYS_PIVOT_ROOT = 155

libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def mount(source: str, target: Path | str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a filesystem, or bind or change one, as the flags say."""
    result = libc.mount(
        source.encode() or None, os.fsencode(target), kind.encode() or None, flags, options.encode() or None
    )
    check(result, f"{source or kind} on {target}")


def bind(source: Path | str, target: Path | str) -> None:
    """Make a file or directory visible at a second place."""
    mount(str(source), target, flags=MS_BIND)


def unmount(target: Path | str, *, detach: bool = False) -> None:
    """Unmount; with ``detach`` at once out of sight, in fact when the last user is gone."""
    check(libc.umount2(os.fsencode(target), MNT_DETACH if detach else 0), str(target))


def enter_private_namespace() -> None:
    """Give the calling process mounts of its own, from which nothing propagates.

    They end with the last process in the namespace: whatever kills it, the kernel undoes the mounts.
    """
    check(libc.unshare(CLONE_NEWNS), "unshare mount namespace")
    mount("", "/", flags=MS_REC | MS_PRIVATE)


def pivot_into(root: Path | str) -> None:
    """Make a mount point the root of this mount namespace and leave nothing behind it.

    ``pivot_root(".", ".")`` stacks the old root on the new one, from where it is detached: no directory of the new root
    is needed for it (pivot_root(2), "pivot_root(".", ".")").
    """
    os.chdir(root)
    here = ctypes.create_string_buffer(b".")
    syscall(_SYS_PIVOT_ROOT, ctypes.addressof(here), ctypes.addressof(here), name=f"pivot_root {root}")
    unmount(".", detach=True)
    os.chdir("/")


@dataclass(frozen=True)
class Mount:
    """One mount as a process sees it (proc_pid_mountinfo(5)).

    Attributes:
        identifier: the kernel's number for it; no two mounts of a host share one, whatever namespace they are in.
        root: the directory of the filesystem that is shown; ``/`` is all of it.
        point: where it is mounted, below the root of the process whose table this is.
        fstype: as mount(2) takes it.
        source: a device, or whatever name was given.
        options: those of the mount, then those of its filesystem; among a v1 cgroup's are its controllers.
    """

    identifier: int
    root: str
    point: Path
    fstype: str
    source: str
    options: tuple[str, ...]


def parse_mountinfo(text: str) -> list[Mount]:
    """The lines of a mountinfo file, in the order of mounting; octal escapes of blanks are undone."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        identifier, _, _, root, point, options, *_ = left.split(" ")
        fstype, source, more = map(_unescape, right.split(" "))
        flags = (*options.split(","), *more.split(","))
        found.append(Mount(int(identifier), _unescape(root), Path(_unescape(point)), fstype, source, flags))
    return found


def mounts(pid: int | str = "self") -> list[Mount]:
    """The mounts in the namespace of a process, below its root.

    Raises:
        OSError: the process is gone (FileNotFoundError, ProcessLookupError) or a zombie (EINVAL).
    """
    return parse_mountinfo(os.fsdecode(Path(f"/proc/{pid}/mountinfo").read_bytes()))


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), field)
