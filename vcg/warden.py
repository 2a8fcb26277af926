"""What is done to a dimension that goes on without credit.

:class:`Custody` decides, from facts and without a kernel; :class:`Warden` knows the kernel's account of a dimension's
control group, and acts on every thread in it, also on what it has forked.

Who is found out is *demoted* to SCHED_IDLE (or, if its testbed says so, frozen at once): it can still come to an end
of what it was doing, with CPU time that nobody else wants. If it does not come to rest there it is *frozen*, because
even an idle-class spinner keeps its CPU from sleeping, and its neighbours' wake-ups then take an interrupt more; it
is thawed now and then, demoted, to see whether it has come to its senses. It is free again once its debt is paid and
it rests. Whoever keeps offending waits four times as long each time.
"""

from __future__ import annotations

import contextlib
import os
from enum import IntEnum
from pathlib import Path

from vcg.linux import sched

_UNREST_WINDOWS = 2
"""For so long it may go on after it was demoted."""
_FROZEN_WINDOWS = 8
"""So much longer than it would be demoted for is it frozen for."""
_GOOD_WINDOWS = 16
"""Free for so many times its last sentence, its next one is a first one again."""
_PATIENCE = 4
_SENTENCE_MAX_WINDOWS = 1024


class Standing(IntEnum):
    """Where a dimension stands with the orchestrator; its counter ``held``."""

    FREE = 0
    DEMOTED = 1
    FROZEN = 2


class Custody:
    """The decisions about one dimension.

    Args:
        action: what is done first: ``"demote"`` or ``"freeze"``.

    Attributes:
        standing: as decided last.
        offences: how often it was found to go on without credit while it was free.
        since: window in which it was found out the last time.
    """

    def __init__(self, action: str) -> None:
        self._first = Standing.FROZEN if action == "freeze" else Standing.DEMOTED
        self.standing = Standing.FREE
        self.offences = self.since = 0
        self._sentence = 1
        self._freed = self._from = self._until = 0

    def judge(self, window: int, *, overdrawn: bool, solvent: bool, resting: bool, restless: bool) -> Standing:
        """Decide where it stands from now on.

        Args:
            window: its newest that has begun.
            overdrawn: it has used more than its credit and its grace.
            solvent: it has no debt.
            resting: it has used no CPU time of late that it has not reported.
            restless: it has used much of it; one that is slow to come to its end, for want of CPU time, is neither.
        """
        if self.standing == Standing.FREE:
            if overdrawn:
                reformed = window - self._freed >= _GOOD_WINDOWS * self._sentence
                self._sentence = 1 if reformed or not self.offences else self._longer()
                self.offences += 1
                self.since = window
                self._begin(self._first, window, self._sentence)
        elif self.standing == Standing.DEMOTED:
            if solvent and resting and window >= self._until:
                self.standing, self._freed = Standing.FREE, window
            elif restless and window >= self._from + _UNREST_WINDOWS:
                self._begin(Standing.FROZEN, window, _FROZEN_WINDOWS * self._sentence)
                self._sentence = self._longer()
        elif solvent and window >= self._until:
            self._begin(Standing.DEMOTED, window, 1)
        return self.standing

    def _begin(self, standing: Standing, window: int, windows: int) -> None:
        self.standing = standing
        self._from, self._until = window, window + windows

    def _longer(self) -> int:
        return min(_PATIENCE * self._sentence, _SENTENCE_MAX_WINDOWS)


class Warden:
    """What the kernel knows of a dimension, and what can be done to it.

    Args:
        group: directory of its control group in the v2 tree.
        policy, priority: to which it is restored.

    Raises:
        OSError: there is no such group.
    """

    def __init__(self, group: Path, policy: str, priority: int) -> None:
        self._policy, self._priority = policy, priority
        self._threads = group / "cgroup.threads"
        self._demoted: set[int] = set()
        self._usage = os.open(group / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
        self._freeze = os.open(group / "cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)

    def usage_ns(self) -> int:
        """CPU time of the group since it was made (cgroup-v2.rst, cpu.stat)."""
        told = os.pread(self._usage, 64, 0)
        return int(told[11 : told.index(b"\n")]) * 1000  # usage_usec

    def apply(self, before: Standing, after: Standing) -> None:
        """Act on a decision; to be called again while it stands.

        A child that was being forked while its parent was demoted may still be of the old class, and shows only later.
        """
        if after == Standing.FREE:
            if before != after:
                done: set[int] = set()
                while (found := self._reschedule(self._policy, self._priority, done)) - done:
                    done |= found
                self._demoted = set()
            return
        if before == after == Standing.FROZEN:  # there, nothing can fork
            return
        # Demoted first: to freeze takes the kernel's cgroup mutex, and a spinner of a real-time class could keep
        # whoever holds that, at an ordinary priority, off the CPU, and us with it.
        self._demoted = self._reschedule("idle", 0, self._demoted)
        if after == Standing.FROZEN and before != after:
            os.pwrite(self._freeze, b"1", 0)
        if before == Standing.FROZEN and before != after:
            os.pwrite(self._freeze, b"0", 0)

    def _reschedule(self, policy: str, priority: int, done: set[int]) -> set[int]:
        """Reschedule every thread that is not among those done already; returns all that there are now."""
        found = {int(line) for line in self._threads.read_text().split()}
        for thread in found - done:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                sched.reschedule(thread, policy, priority)
        return found
