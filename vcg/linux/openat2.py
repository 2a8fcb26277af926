"""openat2(2): opening what somebody hostile has arranged, without being led anywhere.

Whatever a dimension left in its own filesystem is opened from the host's side through here only: a plain open would
follow its symlinks (an absolute one into the host's own files), wait for ever at its FIFOs, and cross its mounts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import PurePath

from vcg.linux.libc import syscall

_SYS_OPENAT2 = 437
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory_fd: int, path: str | PurePath, flags: int) -> int:
    """Open what lies below a directory, on the same mount, by a path without symlinks or ``..`` that leads out.

    Args:
        flags: as for open(2); O_CLOEXEC is added, O_CREAT is of no use: no mode is given.

    Raises:
        OSError: ELOOP at a symlink, EXDEV where the path leaves the directory or the mount, and what open(2) raises.
    """
    how = _How(flags | os.O_CLOEXEC, 0, _RESOLVE)
    name = ctypes.create_string_buffer(os.fsencode(path))
    return syscall(
        _SYS_OPENAT2, directory_fd, ctypes.addressof(name), ctypes.addressof(how), ctypes.sizeof(how), name=str(path)
    )


def open_regular(directory_fd: int, path: str | PurePath, flags: int) -> int:
    """As :func:`open_beneath`, for a regular file that has no other name; waits for nobody.

    Raises:
        OSError: EINVAL if it is something else: a FIFO, a socket, a device, a directory, or a hard link.
    """
    fd = open_beneath(directory_fd, path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise OSError(errno.EINVAL, "expected a regular file with one name", str(path))
    return fd


def read_file(directory_fd: int, path: str | PurePath, most_bytes: int) -> bytes:
    """What a regular file below a directory begins with; it may change while it is read.

    Raises:
        OSError: as :func:`open_regular` does.
    """
    fd = open_regular(directory_fd, path, os.O_RDONLY)
    try:
        return os.pread(fd, most_bytes, 0)
    finally:
        os.close(fd)
