"""Workloads that misbehave towards the runtime itself, for the tests of what it makes of that.

Arguments: ``after`` windows that they behave for; ``forgeries`` of each kind.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from vcg import shm
from vcg.dimension import Dimension
from vcg.shm import Outcome

HUGE = 2**62
_HEAD = shm.STATUS_HEADER.at("head")


def _claim(dimension: Dimension, window: int, epoch: int, used_ns: int) -> None:
    """Leave a record that says whatever one likes."""
    status, head = dimension._status, dimension._status[_HEAD]
    at = shm.WINDOWS_AT + head % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
    fields = {"window": window, "epoch": epoch, "outcome": Outcome.DONE, "used_ns": used_ns}
    for name, value in fields.items():
        status[at + shm.WINDOW.at(name)] = value
    status[_HEAD] = head + 1


def forges(dimension: Dimension) -> None:
    """Claim windows of another epoch, windows that are settled or not yet begun, and use that is none.

    Each kind in a window of its own, and each record before it lets the runtime's own one follow.
    """
    epoch, after = dimension._epoch, int(dimension.args["after"])
    for window in dimension.windows():
        now = window.number
        claims = {
            after: (now, epoch - 1, 0),
            after + 10: (now - 5, epoch, 0),
            after + 20: (now + 1000, epoch, 0),
            after + 30: (now, epoch, -HUGE),
            after + 40: (now, epoch, HUGE),
        }
        if now in claims:
            for _ in range(int(dimension.args["forgeries"])):
                _claim(dimension, *claims[now])
            time.sleep(0.02)  # the orchestrator looks at them before the true record comes


def corrupts(dimension: Dimension) -> None:
    """Put the head of its own page out of range, backwards and torn, again and again, and garbage in all the rest."""
    status = dimension._status
    heads = (HUGE, -HUGE, -1, 0, 2**63 - 1, shm.WINDOW_SLOTS * 3, 7, 0x0000000100000000, 0x00000000FFFFFFFF)
    message_at = shm.STATUS_HEADER.at("message_bytes")
    for window in dimension.windows():
        if window.number >= dimension.args["after"]:
            status[message_at] = HUGE * (-1) ** window.number
            for word in range(shm.WINDOWS_AT, shm.WINDOWS_AT + 100 * shm.WINDOW_WORDS):
                status[word] = HUGE - word
            status[_HEAD] = heads[window.number % len(heads)]
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
            Path("/data/daemon").write_text(str(os.getpid()))
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()
    for _ in dimension.windows():
        pass
