"""Workloads that the tests of the runtime put into dimensions."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import threading
import time
from pathlib import Path

from vcg import shm
from vcg.dimension import Dimension
from vcg.linux import futex, libc


def raises(dimension: Dimension) -> None:
    """Fail in the fifth window."""
    for window in dimension.windows():
        if window.number >= 5:
            raise ValueError(f"window {window.number} is one too many")


def returns_early(dimension: Dimension) -> None:
    """Leave after the first window."""
    for _ in dimension.windows():
        return


def oversleeps(dimension: Dimension) -> None:
    """Every tenth window takes as long as three."""
    for window in dimension.windows():
        if window.number % 10 == 9:
            time.sleep(3 * (window.token.expires_ns - window.planned_ns) / 1e9)


def never_leaves(dimension: Dimension) -> None:
    """Block for ever inside the third window."""
    for window in dimension.windows():
        while window.number >= 3:
            time.sleep(1)


def describes(dimension: Dimension) -> None:
    """Write what can be seen from inside into the dimension's own filesystem, then idle."""
    attempts = {}
    for name, attempt in (
        ("host's /etc", lambda: list(Path("/etc").iterdir())),
        ("/proc", lambda: list(Path("/proc").iterdir())),
        ("parent of the root", lambda: Path("/..").samefile("/")),
        ("become root", lambda: os.setresuid(0, 0, 0)),
        ("raise priority", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))),
        ("read null", lambda: os.close(os.open("/dev/null", os.O_RDWR))),
        ("make a device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))),
    ):
        try:
            attempts[name] = str(attempt())  # type: ignore[no-untyped-call]
        except OSError as error:
            attempts[name] = type(error).__name__
    seen = {
        "root": sorted(path.name for path in Path("/").iterdir()),
        "environment": dict(os.environ),
        "attempts": attempts,
    }
    Path("/data/seen.json").write_text(json.dumps(seen))
    forks_child(dimension)


def forks_child(dimension: Dimension) -> None:
    """Have a child that outlives everything it can, and idle."""
    if os.fork() == 0:
        os.setsid()
        while True:
            time.sleep(60)
    for _ in dimension.windows():
        pass


def loses_its_temper(dimension: Dimension) -> None:
    """Behave, but spin through ten windows from window 20 on; then behave again."""
    for window in dimension.windows():
        if window.number == 20:
            until_ns = window.planned_ns + 10 * (window.token.expires_ns - window.planned_ns)
            while time.monotonic_ns() < until_ns:
                pass


def lies(dimension: Dimension) -> None:
    """From window 20 on spin for ever, and write a record of every window as if nothing had been used."""
    ticks, status = dimension._ticks, dimension._status
    latest_at, head_at = shm.LATEST_AT + dimension._plan.index, shm.STATUS_HEADER.at("head")
    for window in dimension.windows():
        if window.number < 20:
            continue
        last = window.number - 1
        while True:
            newest = ticks[latest_at]
            if newest == last:
                continue
            last, head = newest, status[head_at]
            at = shm.WINDOWS_AT + head % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
            for field in range(shm.WINDOW_WORDS):
                status[at + field] = 0
            status[at], status[at + 1] = newest, dimension._epoch
            status[head_at] = head + 1


def meddles(dimension: Dimension) -> None:
    """Do whatever might make the clock wait: crowd its futex, fork, lock files, sync, work on the shared pages."""
    word = futex.address_of(dimension._ticks, shm.TICKS_HEADER.at("futex"))

    def crowd() -> None:
        wait = futex.waiter(word, futex.MATCH_ANY)
        cell = dimension._ticks[shm.TICKS_HEADER.at("futex") :][:1].cast("B").cast("I")
        while True:
            wait(cell[0])
            time.sleep(0.0005)  # where such a wait is refused, it returns at once

    for _ in range(20):
        threading.Thread(target=crowd, daemon=True).start()
    fd = os.open("/data/held", os.O_RDWR | os.O_CREAT)
    for window in dimension.windows():
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.pwrite(fd, bytes(4096), window.number % 64 * 4096)
        os.fsync(fd)
        if window.number % 50 == 0 and (pid := os.fork()):
            os.waitpid(pid, 0)
        elif window.number % 50 == 0:
            os._exit(0)
        for advice in (mmap.MADV_DONTNEED, mmap.MADV_WILLNEED):
            libc.libc.madvise(ctypes.c_void_p(word & -mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), advice)


def spins_from_its_first_window(dimension: Dimension) -> None:
    """Spin for ever, and say from which window on; of several processes (``lives``) only the last one does."""
    with Path("/data/lives").open("a") as file:
        file.write("x")
    is_last = Path("/data/lives").stat().st_size == dimension.args.get("lives", 1)
    for window in dimension.windows():
        if is_last:
            Path("/data/spins").write_text(str(window.number))
            while True:
                pass
        if window.number >= 10:
            os._exit(1)


def spins_before_its_first_window(dimension: Dimension) -> None:
    """Spin for ever, without asking for a window."""
    while not dimension._control[shm.CONTROL.at("start_ns")]:  # before, it would keep the others from getting ready
        time.sleep(0.001)
    while True:
        pass
