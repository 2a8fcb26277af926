"""Loop devices (loop(4)): an image file as a block device.

Assumes Linux 5.8: ``LOOP_CONFIGURE`` binds file, flags and block size in one step, so no other user of the machine
sees a half-configured device. Races are designed for: between asking for a free device and configuring it somebody
else may take it (EBUSY, so ask again). ``LO_FLAGS_AUTOCLEAR`` gives the device back at its last close, whoever dies.

Trap: a lazily unmounted device stays bound until its last user is gone; the truth is in
``/sys/block/loopN/loop/backing_file``, not in the mount table.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_ATTEMPTS = 64


class _LoopInfo64(ctypes.Structure):
    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_uint8 * 64),
        ("lo_crypt_name", ctypes.c_uint8 * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


@dataclass(frozen=True)
class Loop:
    """A bound loop device. ``fd`` keeps it bound until something has mounted it."""

    path: Path
    device: tuple[int, int]
    fd: int


def attach(image: Path) -> Loop:
    """Bind an image to a free loop device, cleared automatically at its last close.

    Direct I/O to the backing file is asked for; the kernel falls back to buffered where that file can't do it
    (see ``/sys/block/loopN/loop/dio``).

    Raises:
        OSError: with the image's path; EBUSY if every device was taken by others each time.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            config = _LoopConfig(fd=backing)
            config.info.lo_flags = _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO
            config.info.lo_file_name[:63] = os.fsencode(image)[:63].ljust(63, b"\0")
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, error.strerror, f"{image} on {path}") from None
                continue
            number = os.fstat(fd).st_rdev
            return Loop(path, (os.major(number), os.minor(number)), fd)
    finally:
        os.close(control)
        os.close(backing)
    raise OSError(errno.EBUSY, f"every free loop device was taken by somebody else, {_ATTEMPTS} times", str(image))


def backed_by(folder: Path) -> dict[Path, Path]:
    """Loop devices whose backing file lies (or lay, if deleted) under ``folder``: device -> file."""
    found = {}
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = Path(entry.read_text().rstrip("\n").removesuffix(" (deleted)"))
        except OSError:  # cleared between the listing and the reading
            continue
        if folder in backing.parents:
            found[Path("/dev") / entry.parts[3]] = backing
    return found


def detach(device: Path) -> None:
    """Clear a device; if something still uses it, the kernel does so at the last close."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD, 0)
    except OSError as error:
        if error.errno != errno.ENXIO:  # already cleared
            raise OSError(error.errno, error.strerror, str(device)) from None
    finally:
        os.close(fd)
