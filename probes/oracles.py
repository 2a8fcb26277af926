"""What the kernel counts for purposes of its own, to hold the probes against.

===========================  =============================================================================
``/proc/PID/schedstat``      run delay and time slices of a task (Documentation/scheduler/sched-stats.rst)
``/proc/PID/sched``          ``se.nr_migrations`` (kernel/sched/debug.c)
``/sys/dev/block/N:M/stat``  requests, sectors and requests in flight (Documentation/block/stat.rst)
===========================  =============================================================================

Each function returns the figures by name, or None if the task or device is gone.
"""

from __future__ import annotations

from pathlib import Path

from probes.errors import ProbeError

OPERATIONS = ("read", "write", "discard", "flush")
_SECTOR_BYTES = 512
_IOS_AT = {"read": 0, "write": 4, "discard": 11, "flush": 15}
_SECTORS_AT = {"read": 2, "write": 6, "discard": 13}
_IN_FLIGHT_AT = 8


def run_delay(tid: int) -> dict[str, int] | None:
    """Time that a task was runnable but not running, in ns, and how often it waited so.

    Raises:
        ProbeError: the kernel keeps no such account (CONFIG_SCHED_INFO).
    """
    text = _read(Path(f"/proc/{tid}/schedstat"))
    if text is None:
        return None
    words = text.split()
    if len(words) < 3:
        raise ProbeError(f"/proc/{tid}/schedstat: {text!r} - expected three numbers (CONFIG_SCHED_INFO)")
    return {"delay_ns": int(words[1]), "waits": int(words[2])}


def migrations(tid: int) -> dict[str, int] | None:
    """How often a task was given another CPU.

    Raises:
        ProbeError: the kernel does not show it (CONFIG_SCHED_DEBUG or, since 6.15, CONFIG_PROC_FS alone).
    """
    text = _read(Path(f"/proc/{tid}/sched"))
    if text is None:
        return None
    for line in text.splitlines():
        if line.startswith("se.nr_migrations"):
            return {"migrations": int(line.split(":")[1])}
    raise ProbeError(f"/proc/{tid}/sched: no line se.nr_migrations")


def block_stat(major: int, minor: int) -> dict[str, int] | None:
    """Requests by operation, bytes by operation, all but flushes together, and requests in flight."""
    text = _read(Path(f"/sys/dev/block/{major}:{minor}/stat"))
    if text is None:
        return None
    words = [int(word) for word in text.split()]
    figures = {f"requests_{name}": words[at] for name, at in _IOS_AT.items()}
    figures |= {f"bytes_{name}": words[at] * _SECTOR_BYTES for name, at in _SECTORS_AT.items()}
    completions = sum(figures[f"requests_{name}"] for name in OPERATIONS if name != "flush")
    return figures | {"bytes_flush": 0, "completions": completions, "in_flight": words[_IN_FLIGHT_AT]}


def threads(pid: int) -> list[int]:
    """Ids of a process's threads; empty if there is no such process."""
    try:
        return sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
