"""Workloads that misbehave towards the runtime itself: what they write, what they hold, what they leave behind.

Arguments: ``after`` windows that they behave for; ``forgeries`` of each kind. They run in dimensions: the standard
library and ``vcg`` only.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from vcg import shm
from vcg.dimension import Dimension
from vcg.shm import Outcome

DAEMON = "data/daemon"
"""Below a dimension's root directory: the pid of what it has left behind."""
_HUGE = 2**62
_HEAD_AT = shm.STATUS_HEADER.at("head")


def claim(status: memoryview, window: int, epoch: int, used_ns: int) -> None:
    """Leave a record in a status page that says whatever one likes."""
    head = status[_HEAD_AT]
    at = shm.WINDOWS_AT + head % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
    fields = {"window": window, "epoch": epoch, "outcome": Outcome.DONE, "used_ns": used_ns}
    for name, value in fields.items():
        status[at + shm.WINDOW.at(name)] = value
    status[_HEAD_AT] = head + 1


def forges(dimension: Dimension) -> None:
    """Claim windows of another epoch, windows that are settled or not yet begun, and use that is none.

    Each kind in a window of its own, and each record before it lets the runtime's own one follow.
    """
    epoch, after, kind = dimension._epoch, int(dimension.args["after"]), 0
    for window in dimension.windows():
        now = window.number
        claims = (
            (now, epoch - 1, 0),
            (now - 5, epoch, 0),
            (now + 1000, epoch, 0),
            (now, epoch, -_HUGE),
            (now, epoch, _HUGE),
        )
        if kind < len(claims) and now >= after * (1 + kind):
            for _ in range(int(dimension.args["forgeries"])):
                claim(dimension._status, *claims[kind])
            time.sleep(0.02)  # the orchestrator looks at them before the true record comes
            kind += 1


def corrupts(dimension: Dimension) -> None:
    """Put the head of its own page out of range, backwards and torn, again and again, and garbage in all the rest."""
    status = dimension._status
    heads = (_HUGE, -_HUGE, -1, 0, 2**63 - 1, shm.WINDOW_SLOTS * 3, 7, 0x0000000100000000, 0x00000000FFFFFFFF)
    message_at = shm.STATUS_HEADER.at("message_bytes")
    for window in dimension.windows():
        if window.number >= dimension.args["after"]:
            status[message_at] = _HUGE * (-1) ** window.number
            for word in range(shm.WINDOWS_AT, shm.WINDOWS_AT + 100 * shm.WINDOW_WORDS):
                status[word] = _HUGE - word
            status[_HEAD_AT] = heads[window.number % len(heads)]
            time.sleep(0.003)  # let it be seen so


def stops(dimension: Dimension) -> None:
    """Stop in the middle of a window, with the token in hand."""
    for window in dimension.windows():
        if window.number >= dimension.args["after"]:
            os.kill(os.getpid(), signal.SIGSTOP)


def daemonises(dimension: Dimension) -> None:
    """Leave a process behind that has cut every tie, ignores every signal that can be ignored, and never ends."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            Path("/", DAEMON).write_text(str(os.getpid()))
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()
    for _ in dimension.windows():
        pass
