"""The orchestrator: mints tokens one base window ahead, settles what was used, exports its counters.

Runs as a process of its own (``python -m vcg.orchestrator``). It waits on the RTD's futex under its own bit, once in
each base window, at the middle of the widest gap between edges: its work then competes with no dimension's entry. In
round *k* it mints every token of the windows that begin in base window *k + 1* and settles what the dimensions report,
so at any edge the token already lies in shared memory and a dimension wakes with a single hop.

What a dimension writes is hostile input: each field is copied once, then validated, then used.
"""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from math import floor

from vcg import rtd, service, shm
from vcg.linux import clock, futex
from vcg.plan import DimensionPlan, Plan
from vcg.shm import Outcome, Phase
from vcg.tokens import Account

_SLACK_NS = 1_000_000_000
"""CPU time that a dimension may have used before window 0, while it was starting."""
_SETTLE_AT_MOST = 256
"""Records of one dimension looked at in one round; a dimension that claims more has its older ones counted as lost."""


class Desk:
    """One dimension as the orchestrator sees it: its account, its tokens, its status page."""

    def __init__(self, plan: DimensionPlan, epoch: int, tokens: memoryview, status: memoryview) -> None:
        self.account = Account(plan.credit_ns)
        self._plan = plan
        self._epoch = epoch
        self._tokens = tokens
        self._status = status
        self._ring_at = shm.TOKENS_AT + plan.index * shm.TOKEN_SLOTS * shm.TOKEN_WORDS
        self._counters_at = shm.COUNTERS_AT + plan.index * shm.COUNTER_WORDS
        self._head_at = shm.STATUS_HEADER.at("head")
        self._seen = 0
        self.refused_epoch = self.refused_window = self.refused_value = self.records_lost = 0
        # Window n is planned at floor((a + n * b) / c) after the start, in integers.
        period, phase = Fraction(*plan.period), Fraction(*plan.phase)
        self._c = period.denominator * phase.denominator
        self._a, self._b = int(phase * self._c), int(period * self._c)
        self._window = 0
        self._offset_ns = floor(phase)

    def mint_through(self, start_ns: int, end_ns: int, now_ns: int) -> None:
        """Issue the tokens of every window planned before ``end_ns``. A token is void at the next window's edge."""
        tokens, account = self._tokens, self.account
        planned_ns = start_ns + self._offset_ns
        while planned_ns < end_ns:
            window = self._window
            self._window = window + 1
            self._offset_ns = (self._a + self._window * self._b) // self._c
            expires_ns = start_ns + self._offset_ns
            at = self._ring_at + (window & shm.TOKEN_SLOTS - 1) * shm.TOKEN_WORDS
            tokens[at + 1] = self._epoch
            tokens[at + 2] = self._plan.index
            tokens[at + 3] = account.mint(window)
            tokens[at + 4] = expires_ns
            tokens[at + 5] = 0
            tokens[at + 6] = planned_ns
            tokens[at + 7] = now_ns
            tokens[at] = window  # makes it valid, so it comes last
            planned_ns = expires_ns

    def settle(self, elapsed_ns: int) -> None:
        """Book every report since the last round.

        Args:
            elapsed_ns: since window 0. Nobody has used more CPU time than has passed on its CPUs.
        """
        most_ns = (elapsed_ns + _SLACK_NS) * len(self._plan.cpus)
        status = self._status
        head = status[self._head_at]
        fresh = head - self._seen
        if fresh == 0:
            return
        if fresh < 0 or fresh > shm.WINDOW_SLOTS:
            self.refused_value += 1
            self._seen = head
            return
        if fresh > _SETTLE_AT_MOST:
            self.records_lost += fresh - _SETTLE_AT_MOST
            self._seen = head - _SETTLE_AT_MOST
        account = self.account
        for record in range(self._seen, head):
            at = shm.WINDOWS_AT + record % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
            window, epoch, outcome, used_ns = status[at], status[at + 1], status[at + 2], status[at + 8]
            if epoch != self._epoch:
                self.refused_epoch += 1
            elif account.refuses(window):
                self.refused_window += 1
            elif not 0 <= used_ns <= most_ns - account.used_ns:
                self.refused_value += 1
            elif outcome == Outcome.DONE or outcome == Outcome.OVERRUN:
                account.settle(window, used_ns)
            else:
                account.expire_before(window + 1)
        self._seen = head

    def export(self) -> None:
        """Publish the counters, in the order of ``shm.COUNTERS``."""
        a = self.account
        counters = (
            a.minted, a.minted_ns, a.settled, a.used_ns, a.overruns, a.overrun_ns, a.expired, a.expired_ns,
            self.refused_epoch, self.refused_window, self.refused_value, self.records_lost,
        )  # fmt: skip
        for at, value in enumerate(counters, self._counters_at):
            self._tokens[at] = value


def govern(plan: Plan, desks: list[Desk], ticks: memoryview, tokens: memoryview, start_ns: int) -> None:
    """Work a round at each edge of ours until the RTD stops ticking."""
    word_at = shm.TICKS_HEADER.at("futex")
    word = ticks[word_at : word_at + 1].cast("B").cast("I")
    wait = futex.waiter(futex.address_of(ticks, word_at), 1 << shm.ORCHESTRATOR_BIT)
    latest_at, phase_at = shm.LATEST_AT + shm.ORCHESTRATOR_BIT, shm.TICKS_HEADER.at("phase")
    rounds_at, through_at = shm.TOKENS_HEADER.at("rounds"), shm.TOKENS_HEADER.at("minted_through_ns")
    total_at, max_at = shm.TOKENS_HEADER.at("round_ns_total"), shm.TOKENS_HEADER.at("round_ns_max")
    base_ns = plan.base_window_ns
    now_ns = clock.now_ns
    last = -1

    def work(through_ns: int) -> None:
        began_ns = now_ns()
        for desk in desks:
            desk.mint_through(start_ns, through_ns, began_ns)
        tokens[through_at] = through_ns
        for desk in desks:
            desk.settle(began_ns - start_ns)
            desk.export()
        spent_ns = now_ns() - began_ns
        tokens[rounds_at] += 1
        tokens[total_at] += spent_ns
        if spent_ns > tokens[max_at]:
            tokens[max_at] = spent_ns

    work(start_ns + base_ns)
    while True:
        seen = word[0]
        newest = ticks[latest_at]
        if newest != last:
            last = newest
            work(start_ns + (newest + 2) * base_ns)
        elif ticks[phase_at] > Phase.RUN:
            return
        else:
            wait(seen)


def main(arguments: list[str]) -> None:
    """The process: offer the token region, wait for RUN, govern, settle what is left, wait for FINISH."""
    plan, control, supervisor, more = service.begin("vcg:orch", arguments)
    epoch = control[shm.CONTROL.at("epoch")]
    ticks, *statuses = [shm.attach(fd) for fd in more]
    for fd in more:
        os.close(fd)
    fd, tokens = shm.create("vcg-tokens", shm.TOKENS_BYTES)
    tokens[shm.TOKENS_HEADER.at("magic")] = shm.MAGIC
    tokens[shm.TOKENS_HEADER.at("epoch")] = epoch
    for slot in range(shm.MAX_DIMENSIONS * shm.TOKEN_SLOTS):
        tokens[shm.TOKENS_AT + slot * shm.TOKEN_WORDS] = -1
    desks = [Desk(d, epoch, tokens, status) for d, status in zip(plan.dimensions, statuses, strict=True)]
    rtd.settle_in(plan.orchestrator.cpus, plan.orchestrator.priority)
    service.send(supervisor, {"ready": "orchestrator"}, [fd])
    os.close(fd)

    phase = service.wait_for_other(control, Phase.HOLD)
    if phase == Phase.RUN:
        govern(plan, desks, ticks, tokens, control[shm.CONTROL.at("start_ns")])
        phase = control[shm.CONTROL.at("phase")]
    while phase != Phase.FINISH:
        phase = service.wait_for_other(control, phase)
    for desk in desks:
        desk.settle(clock.now_ns() - control[shm.CONTROL.at("start_ns")])
        desk.export()


if __name__ == "__main__":
    main(sys.argv[1:])
