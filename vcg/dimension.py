"""A dimension from the inside: the window API that a workload sees, and the loop that gates it on edges and tokens.

A workload is a function of one argument, imported before the process is confined::

    def run(dimension: Dimension) -> None:
        for window in dimension.windows():
            while window.remaining_ns() > 0:
                ...

Each turn of the loop is one window: it begins when the RTD's tick has woken the process and its token was found, and
ends when the body asks for the next. Every window leaves one record in the status page, also those that were missed or
skipped. Between the wake-up and the body there is no allocation, no I/O and no system call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from os import sched_yield
from typing import Any

from vcg import shm
from vcg.linux import clock, futex
from vcg.plan import DimensionPlan
from vcg.shm import Cause, Outcome, Phase


class Token:
    """The credit of the current window. One object, refilled for each window.

    Attributes:
        budget_ns: CPU time that may be used.
        expires_ns: CLOCK_MONOTONIC time from which it is void.
        borrowed_ns: how much of the budget is borrowed.
    """

    __slots__ = ("borrowed_ns", "budget_ns", "expires_ns")

    def __init__(self) -> None:
        self.budget_ns = self.expires_ns = self.borrowed_ns = 0


class Window:
    """The current window. One object, refilled for each window: copy what you want to keep.

    Attributes:
        number: counts from 0 at the start of the run.
        phase: position of its edge in the base window, 0 <= phase < 1.
        planned_ns: its edge, CLOCK_MONOTONIC.
        entry_ns: when its work began. It goes into the record as it stands at the end: whoever only lets others work
            sets it anew, and to 0 if it came too late to let them: then the window was missed.
        token: its credit.
    """

    __slots__ = ("_cpu_before_ns", "_cpu_ns", "_phase_ppb", "entry_ns", "number", "planned_ns", "token")

    def __init__(self, cpu_ns: Callable[[], int]) -> None:
        self.number = -1
        self.planned_ns = 0
        self.entry_ns = 0
        self.token = Token()
        self._phase_ppb = 0
        self._cpu_ns = cpu_ns
        self._cpu_before_ns = 0

    @property
    def phase(self) -> float:
        return self._phase_ppb / 1e9

    def used_ns(self) -> int:
        """CPU time of this process since the end of the last window, wake-up included."""
        return self._cpu_ns() - self._cpu_before_ns

    def remaining_ns(self) -> int:
        """What is left: the unused budget, or the time to expiry if that is shorter; 0 when the token is spent."""
        token = self.token
        left_ns = min(token.budget_ns - self._cpu_ns() + self._cpu_before_ns, token.expires_ns - clock.now_ns())
        return left_ns if left_ns > 0 else 0

    @property
    def expired(self) -> bool:
        """The time of the token is over, whatever is left of its budget."""
        return clock.now_ns() >= self.token.expires_ns


class Dimension:
    """What a workload is given.

    Args:
        cpu_ns: the CPU time that is held against the tokens; by default this process's own.
        generation: which process of this dimension this is. A later one than the first finds windows behind the newest
            record for which nobody was there.

    Attributes:
        name, role, args: from the testbed.
    """

    def __init__(
        self,
        plan: DimensionPlan,
        epoch: int,
        start_ns_of: memoryview,
        ticks: memoryview,
        tokens: memoryview,
        status: memoryview,
        cpu_ns: Callable[[], int] = time.process_time_ns,
        generation: int = 1,
    ) -> None:
        self.name = plan.name
        self.role = plan.role
        self.args: dict[str, Any] = plan.args
        self._plan = plan
        self._epoch = epoch
        self._control = start_ns_of
        self._ticks = ticks
        self._tokens = tokens
        self._status = status
        self._cpu_ns = cpu_ns
        self._is_late_comer = generation > 1

    def windows(self) -> Iterator[Window]:
        """Wait for each edge of this dimension, from behind its newest record on; ends when the run does."""
        if self._is_late_comer:
            self.record_absence()
            self._is_late_comer = False
        plan, ticks, tokens, status, epoch = self._plan, self._ticks, self._tokens, self._status, self._epoch
        word_at = shm.TICKS_HEADER.at("futex")
        word = ticks[word_at : word_at + 1].cast("B").cast("I")
        wait = futex.waiter(futex.address_of(ticks, word_at), plan.bit)
        latest_at, phase_at = shm.LATEST_AT + plan.index, shm.TICKS_HEADER.at("phase")
        edges_at = shm.EDGES_AT + plan.index * shm.EDGE_SLOTS * shm.EDGE_WORDS
        edge_slots, edge_words = shm.EDGE_SLOTS - 1, shm.EDGE_WORDS
        tokens_at = shm.TOKENS_AT + plan.index * shm.TOKEN_SLOTS * shm.TOKEN_WORDS
        token_slots, token_words = shm.TOKEN_SLOTS - 1, shm.TOKEN_WORDS
        head_at = shm.STATUS_HEADER.at("head")
        windows_at, window_slots, window_words = shm.WINDOWS_AT, shm.WINDOW_SLOTS - 1, shm.WINDOW_WORDS
        now_ns, cpu_now_ns, finish = clock.now_ns, self._cpu_ns, int(Phase.FINISH)
        done, overrun, missed = int(Outcome.DONE), int(Outcome.OVERRUN), int(Outcome.MISSED)
        late, no_token = int(Cause.LATE), int(Cause.NO_TOKEN)
        window, head, finish_ns = Window(cpu_now_ns), status[head_at], 0
        last = head - 1
        token = window.token
        cpu_before_ns = cpu_now_ns()

        while True:
            seen = word[0]
            number = ticks[latest_at]
            if number == last:
                if ticks[phase_at] == finish:
                    return
                wait(seen)
                continue
            wake_ns = now_ns()
            at = edges_at + (number & edge_slots) * edge_words
            planned_ns, phase_ppb, published = ticks[at + 1], ticks[at + 2], ticks[at + 3]
            if ticks[at] != number:
                continue  # the RTD has gone round the ring since: look again
            gap, last, busy_until_ns = last + 1, number, finish_ns

            at = tokens_at + (number & token_slots) * token_words
            has_token = tokens[at] == number and tokens[at + 1] == epoch
            if has_token and wake_ns < tokens[at + 4]:
                window.number = number
                window.planned_ns = planned_ns
                window._phase_ppb = phase_ppb
                window._cpu_before_ns = cpu_before_ns
                token.budget_ns = budget_ns = tokens[at + 3]
                token.expires_ns = expires_ns = tokens[at + 4]
                token.borrowed_ns = tokens[at + 5]
                window.entry_ns = now_ns()
                yield window
                finish_ns = now_ns()
                entry_ns = window.entry_ns
                sched_yield()  # peers of our priority on this CPU enter their windows before we write ours down
            else:
                entry_ns = 0
            if entry_ns:
                cpu_ns = cpu_now_ns()
                used_ns = cpu_ns - cpu_before_ns
                cpu_before_ns = cpu_ns
                outcome, cause = overrun if finish_ns > expires_ns or used_ns > budget_ns else done, 0
            else:
                finish_ns = budget_ns = expires_ns = used_ns = 0
                outcome, cause = missed, late if has_token else no_token

            if gap != number:
                head = self._record_gap(head, gap, number, published, busy_until_ns)
            at = windows_at + (head & window_slots) * window_words
            status[at] = number
            status[at + 1] = epoch
            status[at + 2] = outcome
            status[at + 3] = planned_ns
            status[at + 4] = wake_ns
            status[at + 5] = entry_ns
            status[at + 6] = finish_ns
            status[at + 7] = budget_ns
            status[at + 8] = used_ns
            status[at + 9] = expires_ns
            status[at + 10] = phase_ppb
            status[at + 11] = cause
            head += 1
            status[head_at] = head

    def record_absence(self) -> None:
        """Leave a record for every window up to the newest one, of which nobody has left any because nobody was there.

        Of more windows than the ring holds only the newest are written down.
        """
        ticks, status, index = self._ticks, self._status, self._plan.index
        latest_at, head_at = shm.LATEST_AT + index, shm.STATUS_HEADER.at("head")
        while True:
            newest = ticks[latest_at]
            if newest < status[head_at]:
                return
            at = shm.EDGES_AT + (index * shm.EDGE_SLOTS + newest % shm.EDGE_SLOTS) * shm.EDGE_WORDS
            window, _, _, published = ticks[at : at + shm.EDGE_WORDS]
            if window == newest:
                first = max(status[head_at], newest + 1 - shm.WINDOW_SLOTS)
                self._record_gap(first, first, newest + 1, published << 1, 0, Cause.DOWN)
                return

    def _record_gap(
        self, head: int, first: int, end: int, published: int, busy_until_ns: int, otherwise: Cause = Cause.LATE
    ) -> int:
        """Leave a record for every window that went by unentered; returns the new head.

        ``published`` is the history that came with window ``end``: bit k stands for window ``end - k``. Beyond its 62
        bits a window counts as missed. What nobody was busy for it is missed for the cause ``otherwise``.
        """
        status, plan = self._status, self._plan
        start_ns = self._control[shm.CONTROL.at("start_ns")]
        (a, b), (c, d) = plan.period, plan.phase
        for number in range(first, end):
            back = end - number
            skipped = back < 62 and not published >> back & 1
            planned_ns = start_ns + (c * b + number * a * d) // (b * d)
            at = shm.WINDOWS_AT + head % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
            status[at] = number
            status[at + 1] = self._epoch
            status[at + 2] = Outcome.SKIPPED if skipped else Outcome.MISSED
            status[at + 3] = planned_ns
            for field in range(4, 11):
                status[at + field] = 0
            status[at + 11] = 0 if skipped else Cause.BUSY if planned_ns < busy_until_ns else otherwise
            head += 1
        status[shm.STATUS_HEADER.at("head")] = head
        return head
