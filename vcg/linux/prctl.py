"""prctl(2) and close_range(2): what a process gives up about itself, for good."""

from __future__ import annotations

import ctypes
import os
import signal

from vcg.linux.libc import check, libc, syscall

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SYS_CAPSET = 126
_CAPABILITY_VERSION_3 = 0x20080522
_SYS_CLOSE_RANGE = 436
_LAST_FD = 2**32 - 1

libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def _prctl(option: int, value: int, name: str) -> int:
    return check(libc.prctl(option, value, 0, 0, 0), name)


def set_name(name: str) -> None:
    """The thread's name in ``/proc/PID/comm``, at most 15 bytes."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(text), f"name {name}")


def die_with_parent(parent: int) -> None:
    """SIGKILL when the thread that forked this process ends.

    Traps: a change of uid clears it, so it comes after setresuid; the parent may have died before the call.

    Raises:
        ProcessLookupError: the parent is gone already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "pdeathsig")
    if os.getppid() != parent:
        raise ProcessLookupError(f"parent {parent} ended before its child was ready")


def adopt_orphans(on: bool = True) -> None:
    """Become the parent of every descendant whose own parent ends, in place of init, and so the one to reap it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, on, "child_subreaper")


def forbid_new_privileges() -> None:
    """No setuid program will ever raise this process or its children again."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")


def forbid_inspection() -> None:
    """Not dumpable: its /proc files belong to root, and its equals can't ptrace it."""
    _prctl(_PR_SET_DUMPABLE, 0, "dumpable")


def drop_bounding_set() -> None:
    """Remove every capability from the bounding set (capabilities(7))."""
    capability = 0
    while libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) != -1:
        _prctl(_PR_CAPBSET_DROP, capability, f"capability {capability}")
        capability += 1


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Leave the calling thread without any capability: effective, permitted, inheritable (and so ambient)."""
    header, none = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    syscall(_SYS_CAPSET, ctypes.addressof(header), ctypes.addressof(none), name="capset")


def close_from(first: int) -> None:
    """Close every descriptor from ``first`` on."""
    syscall(_SYS_CLOSE_RANGE, first, _LAST_FD, 0, name=f"close_range {first}")
