"""Landlock (landlock(7)): a second wall around what a process can reach, put up by the process itself.

Where the mount namespace and the chroot decide which files have a name, Landlock decides which may be opened, by
whatever descriptor somebody got hold of; and it closes what no chroot reaches: abstract Unix sockets, signals, TCP.

The kernel offers it in versions (ABI); :func:`restrict` uses what there is. Traps: no ``lsm`` file shows it reliably,
so it is asked itself; under ABI 1 every rename from one directory to another fails, so ABI 1 counts as none; it leaves
descriptors alone that are open already; it needs no_new_privs (or CAP_SYS_ADMIN).
"""

from __future__ import annotations

import ctypes
import errno
import os

from vcg.linux.libc import syscall

RENAMES_SINCE = 2
SCOPES_SINCE = 6
"""The ABI from which abstract Unix sockets and signals can be kept inside."""
TCP_SINCE = 4
_SYS_CREATE_RULESET = 444
_SYS_ADD_RULE = 445
_SYS_RESTRICT_SELF = 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_MAKE_CHAR = 1 << 6
_MAKE_BLOCK = 1 << 11
_FILE_RIGHTS_OF = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""ABI -> rights to files that came with it: thirteen at first, then REFER, TRUNCATE and IOCTL_DEV."""
_TCP_BIND_AND_CONNECT = 0b11
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """The kernel's version of Landlock; 0 if it has none that can be used."""
    try:
        found = syscall(_SYS_CREATE_RULESET, 0, 0, _CREATE_RULESET_VERSION, name="landlock_create_ruleset")
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return 0
    return found if found >= RENAMES_SINCE else 0


def ruleset_of(version: int) -> tuple[int, int, int]:
    """Which rights to files, TCP and scopes an ABI lets us handle, as bit masks."""
    files = sum(rights for since, rights in _FILE_RIGHTS_OF.items() if since <= version)
    tcp = _TCP_BIND_AND_CONNECT if version >= TCP_SINCE else 0
    return files, tcp, _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= SCOPES_SINCE else 0


def restrict(version: int) -> None:
    """Confine the calling thread, for good, to what lies below its root directory.

    There it may do whatever the files' modes allow, except make device nodes. From ABI 4 on it may use no TCP, from ABI
    6 on reach no abstract Unix socket and signal no process but those that it forks.

    Args:
        version: as :func:`abi` tells; with 0 nothing is done.
    """
    if not version:
        return
    files, tcp, scopes = ruleset_of(version)
    attributes = _Ruleset(files, tcp, scopes)
    size = ctypes.sizeof(attributes)
    ruleset = syscall(_SYS_CREATE_RULESET, ctypes.addressof(attributes), size, 0, name="landlock_create_ruleset")
    try:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            rule = _PathBeneath(files & ~(_MAKE_CHAR | _MAKE_BLOCK), root)
            syscall(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.addressof(rule), 0, name="landlock_add_rule")
        finally:
            os.close(root)
        syscall(_SYS_RESTRICT_SELF, ruleset, 0, name="landlock_restrict_self")
    finally:
        os.close(ruleset)
