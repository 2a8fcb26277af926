"""mlockall(2) and set_mempolicy(2)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from vcg.linux.libc import check, libc, syscall

_MCL_CURRENT = 1
_MCL_FUTURE = 2
_SYS_SET_MEMPOLICY = 238
_MPOL_BIND = 2
_MAX_NODES = 1024


def lock_all(*, future: bool = True) -> None:
    """Keep every mapped page in memory.

    Args:
        future: pages mapped later too. Trap: a process that then gives up CAP_IPC_LOCK can no longer allocate beyond
            RLIMIT_MEMLOCK, so a dimension locks only what it has. Even so a locked stack could not grow any more: the
            first deep call would be the end of the process. So then the stack is left out; that needs ``/proc``.
    """
    check(libc.mlockall(_MCL_CURRENT | (_MCL_FUTURE if future else 0)), "mlockall")
    if not future:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith("[stack]"):
                first, end = (int(address, 16) for address in line.split(" ", 1)[0].split("-"))
                check(libc.munlock(ctypes.c_void_p(first), ctypes.c_size_t(end - first)), "munlock of the stack")


def bind_to_node(node: int) -> None:
    """Allocate this thread's pages on one memory node only.

    Raises:
        OSError: EINVAL if the node does not exist or is not allowed by the cpuset.
    """
    if not 0 <= node < _MAX_NODES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), f"memory node {node}")
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (_MAX_NODES // bits))()
    mask[node // bits] = 1 << node % bits
    syscall(_SYS_SET_MEMPOLICY, _MPOL_BIND, ctypes.addressof(mask), _MAX_NODES, name=f"memory node {node}")
