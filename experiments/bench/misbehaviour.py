"""Workloads that misbehave towards the runtime itself: what they write, what they hold, what they leave behind.

Arguments: ``after`` windows that they behave for; ``forgeries`` of each kind; ``claims``, which kinds (all of them);
``word``, what is torn. They run in dimensions: the standard library and ``vcg`` only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vcg import shm
from vcg.dimension import Dimension
from vcg.shm import Outcome

DAEMON = "data/daemon"
"""Below a dimension's root directory: the pid of what it has left behind."""
HUGE = 2**62
_HEAD_AT, _DIMENSION_AT = shm.STATUS_HEADER.at("head"), shm.STATUS_HEADER.at("dimension")
_OVERSTAYED_WINDOWS = 10
CLAIMS: dict[str, Callable[[int, int], tuple[int, int, int]]] = {
    "old epoch": lambda now, epoch: (now, epoch - 1, 0),
    "replay": lambda now, epoch: (now - 5, epoch, 0),
    "future": lambda now, epoch: (now + 1000, epoch, 0),
    "negative use": lambda now, epoch: (now, epoch, -HUGE),
    "impossible use": lambda now, epoch: (now, epoch, HUGE),
    "neighbour": lambda now, epoch: (now, epoch, HUGE),
}
"""Kinds of claims: from the running window and the epoch the window, epoch and use that are claimed."""


def claim(status: memoryview, window: int, epoch: int, used_ns: int) -> None:
    """Leave a record in a status page that says whatever one likes."""
    head = status[_HEAD_AT]
    at = shm.WINDOWS_AT + head % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
    fields = {"window": window, "epoch": epoch, "outcome": Outcome.DONE, "used_ns": used_ns}
    for name, value in fields.items():
        status[at + shm.WINDOW.at(name)] = value
    status[_HEAD_AT] = head + 1


def forges(dimension: Dimension) -> None:
    """Claim windows of another epoch, windows that are settled or not yet begun, use that is none, or another's name.

    Each kind in a window of its own, and each record before it lets the runtime's own one follow.
    """
    epoch, after, done = dimension._epoch, int(dimension.args["after"]), 0
    claims = list(dimension.args.get("claims", CLAIMS))
    for window in dimension.windows():
        if done < len(claims) and window.number >= after * (1 + done):
            if claims[done] == "neighbour":
                dimension._status[_DIMENSION_AT] ^= 1
            for _ in range(int(dimension.args["forgeries"])):
                claim(dimension._status, *CLAIMS[claims[done]](window.number, epoch))
            time.sleep(0.02)  # the orchestrator looks at them before the true record comes
            done += 1


def overstays(dimension: Dimension) -> None:
    """Use half of a token, keep it until long after its time, and report it then; so many times as told to."""
    left, after = int(dimension.args["forgeries"]), int(dimension.args["after"])
    for window in dimension.windows():
        if left and window.number >= after:
            while window.used_ns() < dimension._plan.credit_ns // 2:
                pass
            time.sleep(_OVERSTAYED_WINDOWS * dimension._plan.period_ns / 1e9)
            left -= 1


def tears(dimension: Dimension) -> None:
    """Rewrite the head of its page, or the use in its newest record, as fast as it can, for ever: well, and not."""
    status, latest_at = dimension._status, shm.LATEST_AT + dimension._plan.index
    for window in dimension.windows():
        if window.number >= dimension.args["after"]:
            break
    head, claimed = status[_HEAD_AT], -1
    while dimension.args["word"] == "head":
        head += 1
        status[_HEAD_AT] = head
        status[_HEAD_AT] = HUGE
    while True:
        if claimed != dimension._ticks[latest_at]:
            claimed = dimension._ticks[latest_at]
            at = shm.WINDOWS_AT + status[_HEAD_AT] % shm.WINDOW_SLOTS * shm.WINDOW_WORDS + shm.WINDOW.at("used_ns")
            claim(status, claimed, dimension._epoch, 0)
        status[at] = -HUGE
        status[at] = 0


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
