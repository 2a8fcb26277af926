"""CLOCK_MONOTONIC: the one clock of the testbed (clock_gettime(2), clock_nanosleep(2)).

``bpf_ktime_get_ns`` reads the same clock, so a probe's times and ours subtract directly.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from vcg.linux.libc import libc

now_ns = time.monotonic_ns
"""Nanoseconds of CLOCK_MONOTONIC, through the vDSO: no system call."""

_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def sleeper() -> Callable[[int], None]:
    """A function that sleeps until an absolute time in ns; its timespec is made once, here.

    A signal ends the sleep early; the caller looks at the clock anyway.
    """
    timespec = _Timespec()
    words = memoryview(timespec).cast("B").cast("q")
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    nanosleep = prototype(("clock_nanosleep", libc))
    clock, absolute, request = time.CLOCK_MONOTONIC, _TIMER_ABSTIME, ctypes.addressof(timespec)

    def sleep(until_ns: int) -> None:
        words[0], words[1] = divmod(until_ns, 1_000_000_000)
        nanosleep(clock, absolute, request, None)

    sleep.timespec = timespec  # type: ignore[attr-defined]  # keep the memory behind `request` alive
    return sleep


sleep_until = sleeper()
"""Sleep until an absolute time in ns. For one thread at a time: the timespec is shared."""
