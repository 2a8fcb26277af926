"""The workload of ``vcg bench crash`` that is hardest to clear away: it leaves a daemon behind.

The daemon has a session of its own, ignores what can be ignored, and holds a file open on the dimension's filesystem,
so that its loop device stays bound for as long as it lives. The parent goes on to write and sync.
"""

from __future__ import annotations

import os
import signal

from vcg.dimension import Dimension

_BLOCK = b"\xc3" * 4096


def run(dimension: Dimension) -> None:
    fd = os.open("/data/held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            signal.pause()
    os.wait()
    for window in dimension.windows():
        os.pwrite(fd, _BLOCK, window.number % 64 * len(_BLOCK))
        os.fdatasync(fd)
