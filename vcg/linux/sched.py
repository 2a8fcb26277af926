"""sched(7) and ioprio_set(2): policy, priority and affinity of the calling thread, and the class of its I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable

from vcg.linux.libc import syscall

_SYS_IOPRIO_SET = 251
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13

POLICIES = {"fifo": os.SCHED_FIFO, "other": os.SCHED_OTHER, "idle": os.SCHED_IDLE}


def set_policy(policy: str, priority: int, *, reset_on_fork: bool = False) -> None:
    """Give the calling thread a scheduling class.

    Trap: under CONFIG_RT_GROUP_SCHED, SCHED_FIFO inside a child of the v1 cpu controller fails with EPERM until that
    group's ``cpu.rt_runtime_us`` is set.

    Raises:
        OSError: EPERM without CAP_SYS_NICE, or in such a group.
    """
    flag = os.SCHED_RESET_ON_FORK if reset_on_fork else 0
    try:
        os.sched_setscheduler(0, POLICIES[policy] | flag, os.sched_param(priority))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (see cpu.rt_runtime_us)", f"{policy} {priority}") from None


def reschedule(thread: int, policy: str, priority: int) -> None:
    """Give another thread a scheduling class; what it forks from now on inherits it.

    Raises:
        ProcessLookupError: it has ended.
    """
    os.sched_setscheduler(thread, POLICIES[policy], os.sched_param(priority))


def set_fifo(priority: int) -> None:
    """SCHED_FIFO at a priority, not inherited by children."""
    set_policy("fifo", priority, reset_on_fork=True)


def pin(cpus: Iterable[int]) -> None:
    """Restrict the calling thread to some CPUs."""
    wanted = set(cpus)
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"cpus {sorted(wanted)}") from None


def idle_io() -> None:
    """Let the calling thread's I/O wait for everybody else's, where the device has a scheduler that knows of that."""
    syscall(_SYS_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE, name="ioprio idle")
