"""Workloads that fail, for the tests of restarts. Each says in ``/data/lives`` how many of its processes there were."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from vcg import shm
from vcg.dimension import Dimension

LIVES = Path("/data/lives")


def count_life() -> int:
    """How many processes there have been, with this one."""
    with LIVES.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(LIVES.read_text().splitlines())


def lives(dimension: Dimension) -> None:
    """Idle."""
    count_life()
    for _ in dimension.windows():
        pass


def fails(dimension: Dimension) -> None:
    """Raise after some windows (``after``, 3) of each process, until there have been ``times`` (99) of them."""
    life = count_life()
    after, times = int(dimension.args.get("after", 3)), int(dimension.args.get("times", 99))
    for entered, _ in enumerate(dimension.windows(), 1):
        if entered >= after and life <= times:
            raise ValueError(f"life {life} is over")


def leaves_a_daemon(dimension: Dimension) -> None:
    """Have a grandchild in a session of its own that ignores what it can, then idle."""
    count_life()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    os.wait()
    for _ in dimension.windows():
        pass


def wrecks_its_page(dimension: Dimension) -> None:
    """In the first process's window 20: claim to have written any number of records, and die."""
    life = count_life()
    for window in dimension.windows():
        if life == 1 and window.number >= 20:
            dimension._status[shm.STATUS_HEADER.at("head")] = int(dimension.args["head"])
            os._exit(7)


def stops_itself(dimension: Dimension) -> None:
    """SIGSTOP in window 30, the token in hand; all of the credit is used before that."""
    for window in dimension.windows():
        while window.remaining_ns() > 0:
            pass
        if window.number >= 30:
            os.kill(os.getpid(), signal.SIGSTOP)
