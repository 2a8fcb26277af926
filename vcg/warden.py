"""What is done to a dimension that goes on without credit.

:class:`Custody` decides, from facts and without a kernel; :class:`Warden` knows the kernel's account of a dimension's
control group, and acts on every thread in it, also on what it has forked.

Who is found out is *demoted* to SCHED_IDLE (or, if its testbed says so, frozen at once): it can still come to an end
of what it was doing, with CPU time that nobody else wants. If it does not come to rest there it is *frozen*, because
even an idle-class spinner keeps its CPU from sleeping, and its neighbours' wake-ups then take an interrupt more; it
is thawed now and then, demoted, to see whether it has come to its senses. It is free again once its debt is paid and
it rests. Whoever keeps offending waits four times as long each time.

With a debt that is later than its next edge: were it free while it still owes, it could spin in every other window, get
its class back at each edge, and its neighbours would never have back what it took from them. It is the first edge at
which the tokens that are over have paid, or that at which the kernel's account, which lags, shows that it rests.

What its tokens hold is still its own while it is held: to spend that, and what it had left of the token before, is no
unrest, whether it has reported it yet or not. What the kernel has seen it use beyond that is, whatever it reports: more
than its grace in one window keeps it from being set free, more than half its credit in each window gets it frozen. Of
its debt a quarter of its credit is let pass, if that is within its grace: who spends all of its tokens is always a
little late to stop. And who gets no CPU time does not rest: it also has to have come back for its newest window, or the
one before; or else to have been starved for a horizon, because that may befall an honest one as well. One that is not
is found out again within two windows, and waits four times as long.

No lock that is taken in a round can be held by somebody whom a dimension keeps off the CPU: what freezes and thaws
needs one that can, so it is done by a thread of its own, the :class:`Turnkey`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from vcg.linux import prctl, sched

_UNREST_WINDOWS = 2
"""For so long it may go on after it was demoted."""
_FROZEN_WINDOWS = 8
"""So much longer than it would be demoted for is it frozen for."""
_GOOD_WINDOWS = 16
"""Free for so many times its last sentence, its next one is a first one again."""
_PATIENCE = 4
_SENTENCE_MAX_WINDOWS = 1024
_PASSES = 3
"""So often a round looks for threads that have come up while others were given their class back."""
_STACK_BYTES = 1 << 18
"""All of it is locked in memory."""
_LAST_S = 1.0
"""So long the end of the run waits for what has been ordered; the supervisor waits longer for us."""


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
            solvent: it will have no debt at its next edge, which comes before it is looked at again.
            resting: it has come back for its windows, and of late has used no CPU time beyond what its tokens held.
            restless: it has used much beyond that; one that is slow to come to its end, for want of CPU, is neither.
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


class Turnkey:
    """Freezes and thaws groups, in a thread of its own, so that nobody else waits for it.

    To write ``cgroup.freeze`` takes the kernel's one cgroup mutex, as does every change of any group. It lends nobody
    its waiters' priority: whoever holds it, at an ordinary priority, may be kept off the CPU by a real-time dimension
    that is within its credit. This thread then waits, asleep and without the interpreter's lock, and what is ordered
    last meanwhile is what is done in the end.

    Args:
        cpus, priority: of the thread. They are those of whoever gives the orders: then it runs only while that one
            sleeps, and neither has to wait for the interpreter's lock.
    """

    def __init__(self, cpus: Iterable[int], priority: int) -> None:
        self._ordered: dict[int, bytes] = {}
        self._done: dict[int, bytes] = {}
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._has_settled_in = threading.Event()
        self._is_over = False
        threading.stack_size(_STACK_BYTES)
        self._thread = threading.Thread(target=self._serve, args=(cpus, priority), daemon=True)
        self._thread.start()
        self._has_settled_in.wait()

    def order(self, switch: int, *, frozen: bool) -> None:
        """Have a group frozen, or thawed; ``switch`` is its ``cgroup.freeze``, open for writing."""
        self._ordered[switch] = b"1" if frozen else b"0"
        os.eventfd_write(self._bell, 1)

    def has_done(self, switch: int) -> bool:
        """Whether the last order for a group has been carried out."""
        return self._done.get(switch) == self._ordered.get(switch)

    def finish(self) -> None:
        """Carry out what has been ordered, and end.

        If somebody does not let go of the mutex that is not waited for: what is still frozen then can be killed.
        """
        self._is_over = True
        os.eventfd_write(self._bell, 1)
        self._thread.join(_LAST_S)

    def _serve(self, cpus: Iterable[int], priority: int) -> None:
        try:
            prctl.set_name("vcg:turnkey")
            sched.pin(cpus)
            sched.set_fifo(priority)
            self._has_settled_in.set()
            is_over = False
            while not is_over:
                os.eventfd_read(self._bell)
                is_over = self._is_over  # before the orders are read: there are none after it
                for switch, word in list(self._ordered.items()):
                    if self._done.get(switch) != word:
                        os.pwrite(switch, word, 0)
                        self._done[switch] = word
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # without it the run is not what it claims to be


class Warden:
    """What the kernel knows of a dimension, and what can be done to it.

    None of it waits for anybody. The files are kept open: to open one takes a semaphore that is held while groups are
    made and removed. To read them takes spin locks only (``css_set_lock``, that of rstat), under which nobody loses the
    CPU; to reschedule a thread, that of its run queue. (Before Linux 6.5 the latter also waits for whoever is about to
    change a cpuset, or to enter one; so there a process that is restarted at that moment can still be waited for.)

    Args:
        group: directory of its control group in the v2 tree.
        policy, priority: to which it is restored.
        turnkey: who freezes and thaws it.

    Raises:
        OSError: there is no such group.
    """

    def __init__(self, group: Path, policy: str, priority: int, turnkey: Turnkey) -> None:
        self._policy, self._priority, self._turnkey = policy, priority, turnkey
        self._demoted: set[int] = set()
        self._restored: set[int] = set()
        self._threads = os.open(group / "cgroup.threads", os.O_RDONLY | os.O_CLOEXEC)
        self._usage = os.open(group / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
        self._freeze = os.open(group / "cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)

    def usage_ns(self) -> int:
        """CPU time of the group since it was made (cgroup-v2.rst, cpu.stat)."""
        told = os.pread(self._usage, 64, 0)
        return int(told[11 : told.index(b"\n")]) * 1000  # usage_usec

    def apply(self, before: Standing, after: Standing) -> bool:
        """Act on a decision; to be called again while it stands.

        A child that was being forked while its parent was demoted may still be of the old class, and shows only later;
        so may one of a parent that was about to be set free.

        Returns:
            Whether a dimension that is free has its class back in all its threads: else call again.
        """
        if after == Standing.FREE:
            if before != after:
                self._demoted, self._restored = set(), set()
            for _ in range(_PASSES):
                found = self._reschedule(self._policy, self._priority, self._restored)
                if found <= self._restored:
                    return True
                self._restored = found
            return False
        if before == after == Standing.FROZEN and self._turnkey.has_done(self._freeze):  # there, nothing can fork
            return True
        # Demoted first, and as long as it is not frozen: it then gives way to whoever the turnkey waits for.
        self._demoted = self._reschedule("idle", 0, self._demoted)
        if before != after and Standing.FROZEN in (before, after):
            self._turnkey.order(self._freeze, frozen=after == Standing.FROZEN)
        return True

    def _reschedule(self, policy: str, priority: int, done: set[int]) -> set[int]:
        """Reschedule every thread that is not among those done already; returns all that there are now."""
        listed = b""
        while piece := os.pread(self._threads, 1 << 16, len(listed)):
            listed += piece
        found = {int(line) for line in listed.split()}
        for thread in found - done:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                sched.reschedule(thread, policy, priority)
        return found
