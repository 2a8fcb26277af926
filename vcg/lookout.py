"""The lookout of the snapshotter: which dimension is in trouble that nobody else notices.

Its process is alive, but misses windows one after another, or the kernel has killed something in it for want of memory.
A status page is written by its dimension, so it is hostile input: any number in it may be a lie, and only costs the
liar.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vcg import shm
from vcg.linux import clock
from vcg.plan import DimensionPlan
from vcg.shm import Outcome

ENTERED = (Outcome.DONE, Outcome.OVERRUN)


class Watchdog:
    """Finds out that a dimension misses windows.

    Every window that is not entered leaves a record, but only when its dimension comes round to it. One that is stuck
    leaves none: its windows go by unrecorded. They count as well if they are still there at the next look.

    Args:
        limit: so many in a row are too many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._row = 0
        self._is_armed = True
        self._is_suspected = False

    def see(self, outcomes: Iterable[int], unrecorded: int) -> bool:
        """Look; whether it has become too many. Says so once, until the dimension enters a window again.

        Args:
            outcomes: of the windows that have been recorded since the last look.
            unrecorded: how many windows are over of which there is no record.
        """
        is_time = False
        for outcome in outcomes:
            if outcome in ENTERED:
                self._row, self._is_armed = 0, True
            elif outcome == Outcome.MISSED:
                self._row += 1
                is_time |= self._alarm(self._row >= self._limit)
        is_stuck = self._row + unrecorded >= self._limit
        is_time |= self._alarm(is_stuck and self._is_suspected)
        self._is_suspected = is_stuck
        return is_time

    def forgive(self) -> None:
        """What has been missed until now was not its fault."""
        self._row, self._is_suspected = 0, False

    def _alarm(self, condition: bool) -> bool:
        is_time = condition and self._is_armed
        self._is_armed &= not is_time
        return is_time


class Lookout:
    """What is looked out for in one dimension, and what has been seen so far."""

    def __init__(self, d: DimensionPlan, limit: int, status: memoryview, ticks: memoryview) -> None:
        self.d = d
        self.quiet_until_ns = 0
        self._watchdog = Watchdog(limit)
        self._status, self._ticks = status, ticks
        self._seen = 0
        self._forgiven_ns = 0
        self._kills: int | None = None
        self._is_suspected = False

    def begin(self, memory: str | None) -> None:
        """There is another process; what happened before is not its doing."""
        if self._kills is None:
            self._kills = oom_kills(memory)
        self.forgive()

    def misses(self) -> bool:
        """Whether it has just missed too many windows in a row."""
        head = self._status[shm.STATUS_HEADER.at("head")]
        first = max(self._seen, head - shm.WINDOW_SLOTS // 2)
        fresh = [record_at(self._status, number) for number in range(first, head)]
        self._seen = head
        planned_at, outcome_at, window_at = (shm.WINDOW.at(name) for name in ("planned_ns", "outcome", "window"))
        outcomes = [record[outcome_at] for record in fresh if record[planned_at] >= self._forgiven_ns]
        latest = self._ticks[shm.LATEST_AT + self.d.index]
        last = record_at(self._status, head - 1)[window_at] if head > 0 else -1
        # The newest is not over yet, and the one before it may be the one that it is in.
        return self._watchdog.see(outcomes, max(0, latest - last - 2))

    def forgive(self) -> None:
        """What it missed until now was not its fault."""
        self._forgiven_ns = clock.now_ns()
        self._watchdog.forgive()

    def was_short_of_memory(self, file: str | None) -> bool:
        """Whether the kernel has killed something in it for want of memory since this was true last."""
        kills = oom_kills(file)
        before, self._kills = self._kills, kills
        return before is not None and kills is not None and kills > before

    def runs_short_of_memory(self, file: str | None, pid: int) -> bool:
        """The same, while the main process goes on: so not before the second look, because it may be the victim."""
        kills = oom_kills(file)
        if self._kills is None or kills is None or kills <= self._kills:
            self._kills, self._is_suspected = kills, False
            return False
        if self._is_suspected and is_alive(pid):
            self._kills, self._is_suspected = kills, False
            return True
        self._is_suspected = True
        return False


def record_at(status: memoryview, number: int) -> list[int]:
    """A window's record, by how many were written before it (``shm.WINDOW``)."""
    at = shm.WINDOWS_AT + number % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
    return status[at : at + shm.WINDOW_WORDS].tolist()


def oom_kills(file: str | None) -> int | None:
    """What a memory group counts as ``oom_kill``; None if it does not, or is gone."""
    try:
        lines = Path(file).read_text().splitlines() if file else []
    except OSError:
        return None
    return next((int(value) for key, value in map(str.split, lines) if key == "oom_kill"), None)


def is_alive(pid: int) -> bool:
    """Whether a process is there, and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
