"""Keep the CPUs out of deep idle states (Documentation/power/pm_qos_interface.rst)."""

from __future__ import annotations

import os
import struct

DEVICE = "/dev/cpu_dma_latency"


def hold_latency(latency_us: int) -> int | None:
    """Ask for a wake-up latency of at most ``latency_us`` from idle, as long as the returned descriptor is open.

    Returns:
        The descriptor, or None where the host has no such interface (a guest without cpuidle).
    """
    try:
        fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    os.write(fd, struct.pack("=i", latency_us))
    return fd
