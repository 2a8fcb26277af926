"""The orchestrator's rounds: tokens are minted ahead, use is settled, dimensions are held to it, counters exported.

The process around them is ``vcg.orchestrator``. It waits on the RTD's futex under its own bit, as often as the shortest
window comes round (``Plan.rounds`` times in a base window), at the middle of the widest gap between edges: its work
then competes with no dimension's entry. Each round

1. settles what the dimensions have reported since the last one;
2. lets the ledger decide which credit passes from whom to whom (``vcg.tokens``);
3. *offers*, once in a base window, the tokens of those to come: an offered token holds its dimension's own credit and
   nothing else. Where there is more to it (credit passes, is carried on or owed) the tokens of the windows that begin
   in the round to come are *booked* over what was offered; all others are booked when they are settled;
4. holds some of the dimensions against what the kernel says that they have used, each once in a window of its own, and
   demotes or freezes those that go on without credit, until their debt is paid.

So at any edge the token already lies in shared memory, and a dimension wakes with a single hop.

What a dimension writes is hostile input: each field is copied once, then validated, then used. What it reports steers
what it is minted; what is done to it follows from the kernel's account of its control group, children included.

This module and ``vcg.tokens`` are the hot path of the orchestrator; in a run they are machine code (``vcg.compiled``).
"""

from __future__ import annotations

from array import array
from fractions import Fraction
from math import ceil, floor

from vcg import shm
from vcg.linux import clock, futex
from vcg.plan import CLOCK_RESERVE, CPU_CAPACITY, DimensionPlan, Plan
from vcg.shm import Outcome, Phase
from vcg.tokens import Account, Ledger, Terms
from vcg.warden import Custody, Standing, Warden

_SLACK_NS = 1_000_000_000
"""CPU time that a dimension may have used before window 0, while it was starting."""
_SETTLE_AT_MOST = 256
"""Records of one dimension looked at in one round, or as many as windows have begun since the last time it was; a
dimension that claims more has its older ones counted as lost."""
_LEASE = 4
"""A token that is out when so many newer windows have begun expires: whoever holds it has stopped, or is stuck."""
_CLEARANCE_NS = 50_000
"""So long before its edge a token is left alone: from looking at the clock to writing it, the RTD may come between."""
_STALE_NS = 10_000_000
"""``cpu.stat`` may lag by a tick for what runs on another CPU, so rest is not believed sooner (10 ms at HZ=100)."""
_EVE_NS = 1_000_000
"""So long before window 0 it is noted what everybody has used while it was starting."""
_NEVER = 2**62


class Desk:
    """One dimension as the orchestrator sees it: its account, its tokens, its status page, its warden."""

    def __init__(
        self,
        plan: DimensionPlan,
        account: Account,
        epoch: int,
        ticks: memoryview,
        tokens: memoryview,
        status: memoryview,
    ) -> None:
        self.account = account
        self.custody = Custody(plan.enforce)
        self._plan = plan
        self._cpus = len(plan.cpus)
        self._epoch = epoch
        self.status = status
        self._ticks, self._tokens = ticks, tokens
        self._latest_at = shm.LATEST_AT + plan.index
        self._ring_at = shm.TOKENS_AT + plan.index * shm.TOKEN_SLOTS * shm.TOKEN_WORDS
        self.seen = 0
        """Records of its status page that have been looked at."""
        self.index = plan.index
        self.reported = -1
        """The newest window of which there was a report."""
        self._settled_in = -1
        """The newest window that had begun when its reports were last looked at."""
        self.refused_epoch = self.refused_window = self.refused_value = self.records_lost = 0
        self.unreported_ns = 0
        self._warden: Warden | None = None
        self._usage_before_ns = self._charged_ns = self._forgiven_ns = 0
        # While it is held: the newest window whose token has been counted, and that token; what is left of it and of
        # the one before (negative: what was used beyond them); and the kernel's account up to which that is so.
        self._rationed_in = -1
        self._token_ns = self._ration_ns = self._rationed_ns = 0
        self._unrest_ns = self._unrest_at_ns = self._watched_ns = 0
        self._watched_in = -1
        self._is_restored = True
        """Since it was set free last, all its threads have their class again."""
        self.next_check = 0
        """The round in which it is held against the kernel's account next."""
        self.generation = 1
        """Of its process, as the supervisor counts them; negative: that one is dead."""
        self._first = 0
        """The window from whose edge on it lives on its credit; what it uses before, to start, is nobody's."""
        self._is_new, self._settled_before = True, 0
        # Window n is planned at floor((a + n * b) / c) after the start, in integers.
        period, phase = Fraction(*plan.period), Fraction(*plan.phase)
        self._c = period.denominator * phase.denominator
        self._a, self._b = int(phase * self._c), int(period * self._c)
        self._offered = 0
        self._offered_ns = floor(phase)

    def watch_by(self, warden: Warden) -> None:
        """From now on, hold it to its credit."""
        self._warden = warden
        self.begin()

    def begin(self) -> None:
        """What it has used so far and not reported is nobody's credit."""
        if self._warden is not None:
            self._disown(self._warden.usage_ns())

    def _disown(self, usage_ns: int) -> None:
        self._usage_before_ns = usage_ns - self.account.used_ns - self._charged_ns

    # ── minting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def offer_through(self, start_ns: int, end_ns: int) -> None:
        """Lay out a token with the own credit for every window planned before ``end_ns``.

        A token is void at the next window's edge.
        """
        tokens, credit_ns = self._tokens, self.account.credit_ns
        window, planned_ns = self._offered, start_ns + self._offered_ns
        while planned_ns < end_ns:
            at = self._ring_at + (window & _TOKEN_SLOTS) * _TOKEN_WORDS
            next_ns = (self._a + (window + 1) * self._b) // self._c
            tokens[at + 3] = credit_ns
            tokens[at + 4] = start_ns + next_ns
            tokens[at + 5] = 0
            tokens[at + 6] = planned_ns
            tokens[at] = window  # makes it valid, so it comes last
            window += 1
            self._offered_ns = next_ns
            planned_ns = start_ns + next_ns
        self._offered = window

    def book_through(self, start_ns: int, end_ns: int, now_ns: int) -> None:
        """Mint the token of every window planned before ``end_ns``, over what was offered for it.

        The token of a window that has begun meanwhile is minted as it was offered: it may have been entered. After a
        long stall its slot may belong to a later window already, so windows are counted here, not read off the ring.
        """
        tokens, account = self._tokens, self.account
        window = account.next_window
        planned_ns = start_ns + self._planned_ns(window)
        while planned_ns < end_ns:
            if planned_ns > now_ns:
                at = self._ring_at + (window & _TOKEN_SLOTS) * _TOKEN_WORDS
                budget_ns, borrowed_ns = account.book(window)
                if budget_ns != tokens[at + 3]:
                    tokens[at + 3], tokens[at + 5] = budget_ns, borrowed_ns
            else:
                account.book(window, offered_ns=self._offered_to(window))
            window += 1
            planned_ns = start_ns + self._planned_ns(window)

    def offer_again(self, start_ns: int, now_ns: int) -> None:
        """The own credit has changed: put it into every token that is neither booked nor begun."""
        for window in range(max(self.account.next_window, self._offered - shm.TOKEN_SLOTS, 0), self._offered):
            if start_ns + self._planned_ns(window) > now_ns:
                at = self._ring_at + (window & _TOKEN_SLOTS) * _TOKEN_WORDS
                self._tokens[at + 3] = self.account.credit_ns

    def _planned_ns(self, window: int) -> int:
        return (self._a + window * self._b) // self._c

    # ── settling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, elapsed_ns: int) -> None:
        """Book every report since the last round.

        Args:
            elapsed_ns: since window 0. Nobody has used more CPU time than has passed on its CPUs.
        """
        status = self.status
        head = status[_HEAD_AT]
        fresh = head - self.seen
        if fresh == 0:
            return
        newest = self._ticks[self._latest_at]
        before, self._settled_in = self._settled_in, newest
        if not 0 < fresh <= _SETTLE_AT_MOST:
            if fresh < 0 or fresh > shm.WINDOW_SLOTS:
                self.refused_value += 1
                self.seen = head
                return
            most = max(_SETTLE_AT_MOST, newest - before + 1)
            if fresh > most:
                self.records_lost += fresh - most
                self.seen = head - most
        account, epoch = self.account, self._epoch
        most_ns = (elapsed_ns + _SLACK_NS) * self._cpus
        for record in range(self.seen, head):
            at = _WINDOWS_AT + (record & _WINDOW_SLOTS) * _WINDOW_WORDS
            window, outcome, used_ns = status[at], status[at + 2], status[at + 8]
            if status[at + 1] != epoch:
                self.refused_epoch += 1
            elif not self.reported < window <= newest:
                self.refused_window += 1
            elif outcome in _ENTERED:
                if not 0 <= used_ns <= most_ns - account.used_ns:
                    self.refused_value += 1
                    continue
                self.reported = window
                if window == account.next_window == account.settled_through + 1:
                    account.settle_plain(used_ns, self._offered_to(window))
                    continue
                if window >= account.next_window:
                    self._catch_up(window)
                if account.settled_through < window:
                    account.settle(window, used_ns)
                else:
                    account.settle_late(used_ns)
            else:
                self.reported = window
                self._catch_up(window)
                account.expire_before(window + 1)
        self.seen = head

    def _offered_to(self, window: int) -> int:
        """What the token of a window held that was entered, or missed, before it was booked."""
        at = self._ring_at + (window & _TOKEN_SLOTS) * _TOKEN_WORDS
        return self._tokens[at + 3] if self._tokens[at] == window else self.account.credit_ns

    def _catch_up(self, window: int) -> None:
        """Mint the windows up to this one, which has begun, as they were offered."""
        account = self.account
        while account.next_window <= window:
            account.book(account.next_window, offered_ns=self._offered_to(account.next_window))

    # ── enforcing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def enforce(self, round_end_ns: int, start_ns: int, now_ns: int) -> None:
        """Hold the dimension against the kernel's account of it, and act (``vcg.warden``).

        What it has used and not reported may be what the windows that have begun since its last report are good for,
        together with its balance. It is set free for a window that begins before the round to come is over.

        Args:
            round_end_ns: when the next round's windows have all begun.
            start_ns: of the run.
            now_ns: the time.
        """
        warden, account, custody = self._warden, self.account, self.custody
        newest = self._ticks[self._latest_at]
        if account.settled_through < newest - _LEASE:
            self.settle(now_ns - start_ns)  # it may have reported since the round began
            self._catch_up(newest - _LEASE)
            account.expire_before(newest - _LEASE + 1)
        if warden is None:
            return
        usage_ns = warden.usage_ns()
        newest = self._ticks[self._latest_at]  # only now: whatever it has used so far, its token counts, too
        if newest < self._first:
            self._disown(usage_ns)
            if self._first != _NEVER:
                self.next_check = 0  # the next round may be the last one before its first edge
            if not custody.standing:
                return
        elif self._is_new:
            self._catch_up(self._first - 1)
            account.expire_before(self._first)
            if account.settled > self._settled_before:
                self._is_new = False
                if not custody.standing:
                    # The tail of its start may have come after its first edge; no more than the grace is let pass.
                    self._usage_before_ns += min(self._open_ns(usage_ns), self._plan.grace_ns)
        open_ns = self._open_ns(usage_ns)
        before = custody.standing
        self._catch_up(newest)  # a token that has begun counts with what it held
        overdrawn = account.balance_ns + account.started_ns(newest) - open_ns < -self._plan.grace_ns
        if overdrawn or before:
            # Everything that it uses is debt from now on; a report that tells of the same use takes it out again. First
            # it is charged, then the tokens expire: what they held pays for what was used while they were out.
            self._charge(open_ns)
            account.expire_before(newest)
            restless = before != Standing.FREE and self._is_restless(newest, usage_ns, now_ns)
            in_time = start_ns + self._planned_ns(newest + 1) <= round_end_ns
            # What it has used is charged already, so the token that is out pays when it is over: at the edge to come.
            # Nobody follows one that is dead before its debt is really paid.
            pays_ns = account.started_ns(newest) if self.generation > 0 else 0
            # Who spends all of its tokens is always a little late to stop, and owes that for ever.
            let_pass_ns = min(self._plan.grace_ns, account.credit_ns // 4)
            # Who wants to run and gets no CPU time does not come back for a window; of the dead nobody will. It may be
            # an honest one beside somebody whom nobody holds: after a horizon of that it is put to the test.
            rested_ns = now_ns - self._unrest_at_ns
            is_back = self.generation < 0 or self.reported >= newest - 1 or rested_ns > account.horizon_ns
            after = custody.judge(
                newest,
                overdrawn=overdrawn,
                solvent=in_time and account.balance_ns + pays_ns >= -let_pass_ns,
                resting=is_back and rested_ns > _STALE_NS,
                restless=restless,
            )
            if after != before:
                self._rationed_in, self._token_ns, self._rationed_ns = newest, self._offered_to(newest), usage_ns
                self._ration_ns = self._token_ns
                self._unrest_ns, self._unrest_at_ns = 0, now_ns
                self._watched_in, self._watched_ns = newest, now_ns
            self._is_restored = warden.apply(before, after)
        elif not self._is_restored:
            self._is_restored = warden.apply(before, before)
        if not self._is_restored:
            self.next_check = 0  # the next round goes on with it

    def _is_restless(self, newest: int, usage_ns: int, now_ns: int) -> bool:
        """While it is held: note what it uses beyond what its tokens hold, and judge it by that now and then."""
        for window in range(max(self._rationed_in + 1, newest - shm.TOKEN_SLOTS), newest + 1):
            former_ns, self._token_ns = self._token_ns, self._offered_to(window)
            self._ration_ns = max(0, min(self._ration_ns, former_ns)) + self._token_ns
        self._rationed_in = newest
        beyond_ns = max(0, -self._ration_ns)
        self._ration_ns -= usage_ns - self._rationed_ns
        if self._ration_ns < -self._plan.grace_ns and usage_ns > self._rationed_ns:
            self._unrest_at_ns = now_ns
        self._rationed_ns = usage_ns
        self._unrest_ns += max(0, -self._ration_ns) - beyond_ns
        windows = newest - self._watched_in
        if not windows or now_ns - self._watched_ns <= _STALE_NS:
            return False
        unrest_ns, self._unrest_ns = self._unrest_ns, 0
        self._watched_in, self._watched_ns = newest, now_ns
        return unrest_ns > windows * self.account.credit_ns // 2

    def _open_ns(self, usage_ns: int) -> int:
        """What of the kernel's account has been neither reported nor charged."""
        account = self.account
        forgiven_ns, self._forgiven_ns = account.forgiven_ns - self._forgiven_ns, account.forgiven_ns
        open_ns = usage_ns - self._usage_before_ns - account.used_ns - self._charged_ns
        if open_ns >= 0:
            return open_ns
        # It has reported more than the kernel saw, or what has been charged already: the former buys it nothing.
        refund_ns = min(-open_ns, self._charged_ns)
        self._charged_ns -= refund_ns
        # What was forgiven is not given back: neither when it was charged nor now that it has been reported.
        account.charge(-min(max(0, refund_ns - forgiven_ns), max(0, -account.balance_ns)))
        self._usage_before_ns += open_ns + refund_ns
        return 0

    def _charge(self, open_ns: int) -> None:
        """What it has used and not reported is debt."""
        self.account.charge(open_ns)
        self._forgiven_ns = self.account.forgiven_ns
        self._charged_ns += open_ns
        self.unreported_ns += open_ns

    def follow(self, generation: int) -> None:
        """Take note of a death, or of the process that follows.

        The dead one's lease comes back: what it has used and not reported is paid from the tokens of the windows that
        have begun, and the rest of these expires. It wants nothing any more, so its credit can be lent. Its debt, and
        how it is held for it, pass on to its successor; what that one uses to start is nobody's credit again, up to the
        next edge after it was announced: it is confined by then, and all that is left for it to do is to ask for a
        window. Behind a freezer gate it is the gate that has the tokens, and goes on to report them.

        Args:
            generation: the word of the control page.
        """
        self.generation = generation
        account, newest = self.account, self._ticks[self._latest_at]
        if generation > 0:
            self._first = newest + 1
            self.begin()
            return
        if self._warden is not None and newest >= self._first:
            self._charge(self._open_ns(self._warden.usage_ns()))
        if self._plan.gate == "cooperative":
            self._catch_up(newest)
            account.expire_before(newest + 1)
        account.forget_demand()
        self._first = _NEVER
        self._is_new, self._settled_before = True, account.settled

    def let_go(self) -> None:
        """The run is over: a dimension that is frozen must be able to see it, at nobody's expense."""
        if self._warden is not None:
            self._warden.apply(self.custody.standing, min(self.custody.standing, Standing.DEMOTED))

    def counters(self) -> tuple[int, ...]:
        """In the order of ``shm.COUNTERS``."""
        a = self.account
        return (
            a.minted, a.own_ns, a.lent_ns, a.borrowed_ns, a.repaid_ns, a.returned_ns, a.settled, a.used_ns, a.overruns,
            a.overrun_ns, a.expired, a.expired_ns, a.forgiven_ns, a.waived_ns, self.refused_epoch, self.refused_window,
            self.refused_value, self.records_lost, self.unreported_ns, self.custody.offences, a.credit_ns, a.balance_ns,
            a.market.owed_ns(a), a.behind(self._ticks[self._latest_at]), self.custody.standing,
            self.custody.since, self.generation,
        )  # fmt: skip


def ledger_of(plan: Plan) -> Ledger:
    """Fresh books for every dimension of a plan."""
    terms = [
        Terms(
            d.name,
            d.cpus,
            d.triad,
            d.period,
            Fraction(*d.burst),
            Fraction(*d.floor),
            Fraction(*d.ceiling),
            CPU_CAPACITY - CLOCK_RESERVE * len({*plan.rtd.cpus} & {*d.cpus}) / len(d.cpus),
        )
        for d in plan.dimensions
    ]
    weights = [max(1, round(d.amplitude * shm.AMPLITUDE_ONE)) for d in plan.dimensions]
    credits_ns = [d.credit_ns for d in plan.dimensions]
    # A decision in each base window at most: a little less than that, so that no round misses its turn by a moment.
    return Ledger(terms, credits_ns, weights, plan.horizon * plan.base_window_ns, plan.base_window_ns * 7 // 8)


class Orchestrator:
    """All desks, and the rounds that are worked on them."""

    def __init__(
        self,
        plan: Plan,
        epoch: int,
        control: memoryview,
        ticks: memoryview,
        tokens: memoryview,
        statuses: list[memoryview],
    ) -> None:
        self.ledger = ledger_of(plan)
        self.desks = [
            Desk(d, account, epoch, ticks, tokens, status)
            for d, account, status in zip(plan.dimensions, self.ledger.accounts, statuses, strict=True)
        ]
        self._control, self._tokens = control, tokens
        self._latest = ticks[shm.LATEST_AT : shm.LATEST_AT + len(plan.dimensions)]
        self._base_ns, self._rounds = plan.base_window_ns, plan.rounds
        self._tuning_at, self._lives_at = shm.CONTROL.at("tuning"), shm.CONTROL.at("lives")
        self._tuning = self._lives = self._offered_ns = 0
        # Each desk is looked at once in a window of its own, in turns, so that no round has to look at all of them.
        every = [max(1, ceil(Fraction(*d.period) * plan.rounds / plan.base_window_ns)) for d in plan.dimensions]
        for k, (desk, rounds) in enumerate(zip(self.desks, every, strict=True)):
            desk.next_check = k % rounds
        self._watched = list(zip(self.desks, every, strict=True))

    def work(self, number: int, start_ns: int) -> None:
        """One round.

        Args:
            number: of the round; -1 is the one before the run starts.
            start_ns: of the run.
        """
        began_ns = clock.now_ns()
        base_ns, rounds = self._base_ns, self._rounds
        through_ns = start_ns + -(-(number + 2) * base_ns // rounds)
        control = self._control
        if control[self._tuning_at] != self._tuning:
            self._tune(start_ns)
        elapsed_ns, desks = began_ns - start_ns, self.desks
        newest = self._latest.tolist()
        for desk in desks:
            # Who has reported its newest window has nothing to add; so its page need not be fetched from afar.
            if desk.reported != newest[desk.index] and desk.status[_HEAD_AT] != desk.seen:
                desk.settle(elapsed_ns)
        if control[self._lives_at] != self._lives:
            self._follow()
        self.ledger.turn(elapsed_ns)
        offered_ns = start_ns + ((number + 1) // rounds + 3) * base_ns
        if offered_ns > self._offered_ns:  # a round may have been missed, so this does not go by its number
            self._offered_ns = offered_ns
            for desk in desks:
                desk.offer_through(start_ns, offered_ns)
        for market in self.ledger.markets:
            for account in market.order if market.is_sorted else market.sort():
                desks[account.index].book_through(start_ns, through_ns, clock.now_ns() + _CLEARANCE_NS)
        tokens = self._tokens
        tokens[_THROUGH_AT] = through_ns
        minted_ns = clock.now_ns()
        if number >= 0:
            for desk, every in self._watched:
                before = desk.custody.standing
                if before or number >= desk.next_check:
                    desk.next_check = number + every
                    desk.enforce(through_ns, start_ns, began_ns)
                    if desk.custody.standing != before:
                        self.export(desk.index)
        self.export(number % len(desks))
        spent_ns = clock.now_ns() - began_ns
        worked = tokens[_ROUNDS_AT]
        tokens[shm.MINTS_AT + worked % shm.MINT_SLOTS] = minted_ns - began_ns
        tokens[_ROUNDS_AT] = worked + 1
        tokens[_TOTAL_AT] += spent_ns
        if spent_ns > tokens[_MAX_AT]:
            tokens[_MAX_AT] = spent_ns

    def _tune(self, start_ns: int) -> None:
        """Take over the amplitudes that the supervisor has put into the control page."""
        control, many = self._control, len(self.desks)
        self._tuning = control[self._tuning_at]
        credits_ns = control[shm.CREDITS_AT : shm.CREDITS_AT + many].tolist()
        weights = control[shm.AMPLITUDES_AT : shm.AMPLITUDES_AT + many].tolist()
        self.ledger.tune(credits_ns, weights)
        for desk in self.desks:
            desk.offer_again(start_ns, clock.now_ns() + _CLEARANCE_NS)

    def _follow(self) -> None:
        """Take note of the dimensions whose process has died, or been replaced, and say so at once."""
        control = self._control
        self._lives = control[self._lives_at]
        for index, desk in enumerate(self.desks):
            generation = control[shm.GENERATIONS_AT + index]
            if generation != desk.generation:
                desk.follow(generation)
                self.export(index)

    def export(self, index: int) -> None:
        """Publish the counters of one desk: they take turns, a round each; who is held, or is free, is told at once."""
        at = shm.COUNTERS_AT + index * shm.COUNTER_WORDS
        self._tokens[at : at + shm.COUNTERS.words] = array("q", self.desks[index].counters())

    def govern(self, ticks: memoryview, start_ns: int) -> None:
        """Work a round at each edge of ours until the RTD stops ticking."""
        word_at = shm.TICKS_HEADER.at("futex")
        word = ticks[word_at : word_at + 1].cast("B").cast("I")
        wait = futex.waiter(futex.address_of(ticks, word_at), 1 << shm.ORCHESTRATOR_BIT)
        latest_at, phase_at = shm.LATEST_AT + shm.ORCHESTRATOR_BIT, shm.TICKS_HEADER.at("phase")
        last = -1
        self.work(last, start_ns)
        clock.sleep_until(start_ns - _EVE_NS)
        for desk in self.desks:
            desk.begin()
        while True:
            seen = word[0]
            newest = ticks[latest_at]
            if newest != last:
                last = newest
                self.work(newest, start_ns)
            elif ticks[phase_at] > Phase.RUN:
                return
            else:
                wait(seen)

    def close(self, now_ns: int, start_ns: int) -> bool:
        """A last settlement, after the ticks have stopped; whether everybody has reported its newest window by now.

        Of the dead and of those that are held nothing is expected.
        """
        is_last = True
        for index, desk in enumerate(self.desks):
            desk.settle(now_ns - start_ns)
            self.export(index)
            if desk.generation > 0 and not desk.custody.standing and desk.reported < self._latest[index]:
                is_last = False
        return is_last


_TOKEN_SLOTS, _TOKEN_WORDS = shm.TOKEN_SLOTS - 1, shm.TOKEN_WORDS
_WINDOWS_AT, _WINDOW_SLOTS, _WINDOW_WORDS = shm.WINDOWS_AT, shm.WINDOW_SLOTS - 1, shm.WINDOW_WORDS
_ENTERED = (int(Outcome.DONE), int(Outcome.OVERRUN))
_HEAD_AT = shm.STATUS_HEADER.at("head")
_ROUNDS_AT, _THROUGH_AT = shm.TOKENS_HEADER.at("rounds"), shm.TOKENS_HEADER.at("minted_through_ns")
_TOTAL_AT, _MAX_AT = shm.TOKENS_HEADER.at("round_ns_total"), shm.TOKENS_HEADER.at("round_ns_max")
