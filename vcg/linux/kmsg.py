"""The kernel's log (/dev/kmsg, Documentation/ABI/testing/dev-kmsg).

Each read gives one record: ``priority,sequence,microseconds,flags;text``, then lines of a blank, a key and a value.
Its clock is the scheduler's, which is CLOCK_MONOTONIC but for a drift of milliseconds.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_RECORD_BYTES = 1 << 14
_DRIFT_NS = 100_000_000


class Line(NamedTuple):
    """One record.

    Attributes:
        at_ns: about CLOCK_MONOTONIC.
        level: 0 (emergency) to 7 (debug), syslog(3).
    """

    at_ns: int
    level: int
    text: str


def parse(record: bytes) -> Line | None:
    """A record as /dev/kmsg gives it; None if it is no such thing."""
    head, semicolon, text = record.partition(b";")
    fields = head.split(b",")
    if not semicolon or len(fields) < 3 or not (fields[0].isdigit() and fields[2].isdigit()):
        return None
    first = text.partition(b"\n")[0]
    return Line(int(fields[2]) * 1000, int(fields[0]) & 7, first.decode(errors="replace"))


def since(start_ns: int) -> Iterator[Line]:
    """What the kernel has said since a time, as far as it still remembers.

    Raises:
        OSError: EPERM without CAP_SYSLOG, ENOENT where there is no such device.
    """
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = os.read(fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:  # overwritten while we were reading; the next one is there
                    raise
                continue
            line = parse(record)
            if line is not None and line.at_ns >= start_ns - _DRIFT_NS:
                yield line
    finally:
        os.close(fd)


def mentions(text: str, names: Iterable[str], pids: Iterable[int]) -> bool:
    """Whether a line is about one of these names or processes.

    Args:
        names: of processes, devices or control groups, as the kernel prints them.
        pids: only where a line says that a number is one: a bare number is anything.
    """
    if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names):
        return True
    return any(re.search(rf"(\[|\bpid[ =:]+|\bprocess ){pid}\b", text, re.IGNORECASE) for pid in pids)
