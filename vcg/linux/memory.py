"""mlockall(2) and set_mempolicy(2)."""

from __future__ import annotations

import ctypes
import errno
import os

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
            RLIMIT_MEMLOCK, so a dimension locks only what it has.
    """
    check(libc.mlockall(_MCL_CURRENT | (_MCL_FUTURE if future else 0)), "mlockall")


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
