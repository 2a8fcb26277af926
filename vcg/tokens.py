"""The ledger: what every dimension may spend in every window, and what became of it.

Pure integer arithmetic: no clock, no memory layout, no kernel. The orchestrator feeds it with facts and publishes what
it answers. Credit is CPU time in nanoseconds; a rate of credit is in parts per billion of one CPU.

**Own credit.** From its amplitude a dimension has a credit for each window (``vcg.plan``): a share of the CPUs that it
is pinned to, so that the own credit of all dimensions of a CPU is never more than that CPU's capacity.

**Balance.** What a window leaves unused is carried on, up to ``burst`` into one later window; the rest expires. What it
uses too much is a debt: later windows pay it, never so that less than ``floor`` is left to them; beyond the credit of
``horizon`` base windows it is forgiven. A window that was not entered carries nothing on: its credit pays debt, or
expires.

**Lending.** A dimension that has used its whole token wants more, up to ``ceiling``; one that uses less than its own
credit can do without the difference, down to ``floor``. Credit passes from the second to the first, inside its triad
before outside it, divided by amplitude; and only

- among dimensions that may use exactly the same CPUs: credit is time on particular CPUs;
- to windows not longer than the lender's own, so that a lender that wants its credit again has it all by its next
  window but one: what it has lent is out for no longer than that (only what is paid back may pass to longer ones);
- out of what tokens of the lender have given up, never of what can still be spent: so no nanosecond is minted twice.

A loan is owed for one to two ``horizon``. While it is, its lender, once it wants more than its own credit, is paid back
from the debtor's own, as far as the debtor's floor allows; what is not claimed by then is forgiven.

The terms are those of HTB (Linux, ``net/sched/sch_htb.c``), with rate = credit and ceil = ceiling. There too a class
borrows only what others leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

PPB = 1_000_000_000
HISTORY = 1024
"""Windows of which an account remembers what was minted; one that is reported later than that has expired."""
_SLOTS = HISTORY - 1
_HUNGRY_SHIFT = 4
"""A window that left less than a 16th of its token wants more than it had."""
_HEADROOM_SHIFT = 2
"""Of a window that used less, a quarter more is expected to be wanted next."""
_FADING_SHIFT = 2
"""An earlier, higher expectation fades by a quarter with each window."""
_TOKENS_OUT = 2
"""Tokens of a dimension that are out at a time: that of the running window and the next."""
_REFINED_AFTER = 8
"""Pauses after which lending is decided anew although nobody has come to want more."""
_ABSENT = 4
"""Who has not entered so many windows in a row wants nothing, whatever it wanted before."""
_SHADES = 8
"""Expectations are told apart in so many parts of the own credit: a smaller change does not make credit flow anew."""


@dataclass(frozen=True)
class Terms:
    """What a dimension's account is opened with.

    Attributes:
        name: of the dimension.
        cpus: that it may use.
        triad: its name; empty if it belongs to none.
        period: length of its windows in ns, as numerator and denominator.
        burst: most credit carried on, in windows of own credit.
        floor: part of its own credit that it always keeps.
        ceiling: most credit of a window with what is borrowed, as a multiple of its own.
        part_max: most credit of a window, as a part of the time of its CPUs.
    """

    name: str
    cpus: tuple[int, ...]
    triad: str
    period: tuple[int, int]
    burst: Fraction
    floor: Fraction
    ceiling: Fraction
    part_max: Fraction = Fraction(9, 10)


class Account:
    """One dimension's books.

    Attributes:
        credit_ns: own credit of each window.
        minted: tokens issued. For these, since the start:
        own_ns: own credit; given_ns: what of it was withheld for others.
        lent_ns, borrowed_ns: credit that passed to, and from, others as loans.
        repaid_ns, returned_ns: credit that passed to, and from, others to pay such loans back.
        waived_ns: what it need not pay back any more of what it borrowed.
        settled, used_ns: tokens that came back, and the CPU time used under them.
        overruns, overrun_ns: windows that used more than their token had, and by how much.
        expired, expired_ns: tokens that were not entered, and credit that nobody used in time.
        forgiven_ns: use beyond its credit that need not be made good any more.
        balance_ns: carried on if positive, owed to its own later windows if negative.
        next_window: the window whose token is minted next.
        settled_through: the newest window that has been settled or has expired; -1 before the first.
    """

    __slots__ = (
        "_carried_in_flight_ns", "_in_a_row", "_minted", "_shade", "_shade_ns", "_withheld_in_flight_ns",
        "balance_ns", "borrowed_ns", "burst_ns", "carry_max_ns", "ceiling_ppb", "credit_ns", "debt_max_ns",
        "demand_ns", "expired", "expired_ns", "floor_ns", "floor_ppb", "forgiven_ns", "give_ns", "given_ns", "gives",
        "horizon_ns", "hungry", "index", "lent_ns", "limit_ns", "market", "minted", "next_window", "over",
        "overrun_ns", "overruns", "own_ns", "rate_ppb", "repaid_ns", "returned_ns", "settled", "settled_through",
        "spare_ppb", "takes", "terms", "under", "used_ns", "waived_ns", "want_ppb", "weight",
    )  # fmt: skip

    def __init__(self, terms: Terms, index: int, credit_ns: int, weight: int, horizon_ns: int) -> None:
        self.terms = terms
        self.index = index
        self.horizon_ns = horizon_ns
        # A rate of r ppb is r * over // under ns in a window.
        self.over, self.under = terms.period[0], terms.period[1] * PPB
        self.limit_ns = int(terms.part_max * len(terms.cpus) * Fraction(*terms.period))
        self.minted = self.own_ns = self.given_ns = self.lent_ns = self.borrowed_ns = 0
        self.repaid_ns = self.returned_ns = self.waived_ns = 0
        self.settled = self.used_ns = self.overruns = self.overrun_ns = 0
        self.expired = self.expired_ns = self.forgiven_ns = 0
        self.balance_ns = 0
        self.hungry = False
        self.demand_ns = credit_ns
        self.give_ns = 0
        self.gives: list[Flow] = []
        self.takes: list[Flow] = []
        self.want_ppb = self.spare_ppb = 0
        self.next_window, self.settled_through = 0, -1
        self._minted = [(0, 0, 0)] * HISTORY
        """Of each window its fresh credit, its budget, and what carrying on or paying made of the one the other."""
        self._carried_in_flight_ns = self._withheld_in_flight_ns = self._in_a_row = 0
        self.market: Market
        self.tune(credit_ns, weight)

    def tune(self, credit_ns: int, weight: int) -> None:
        """Take over another amplitude; tokens already minted stay what they are.

        Args:
            credit_ns: own credit of each window from now on.
            weight: the amplitude, in any unit that is the same for all.
        """
        terms = self.terms
        self.credit_ns, self.weight = credit_ns, weight
        self.rate_ppb = credit_ns * self.under // self.over
        self.floor_ns = -(-credit_ns * terms.floor.numerator // terms.floor.denominator)
        self.floor_ppb = -(-self.floor_ns * self.under // self.over)
        ceiling_ns = max(credit_ns, min(int(terms.ceiling * credit_ns), self.limit_ns))
        self.ceiling_ppb = ceiling_ns * self.under // self.over
        self.burst_ns = int(terms.burst * credit_ns)
        self._shade_ns = credit_ns // _SHADES + 1
        self._shade = -1  # it was told by the old credit: whatever the next window shows is news
        self.carry_max_ns = _TOKENS_OUT * self.burst_ns
        self.debt_max_ns = self.rate_ppb * self.horizon_ns // PPB

    # ── minting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def book(self, window: int, offered_ns: int = 0) -> tuple[int, int]:
        """Mint the token of a window. Windows are minted in order, each once.

        Args:
            offered_ns: what has been promised for it already; 0 if nothing that must be kept.

        Returns:
            Its budget, and how much of it is borrowed.

        Raises:
            ValueError: the window is not the next one.
        """
        if window != self.next_window:
            raise ValueError(f"window {window}: expected {self.next_window}, tokens are minted in order and once")
        self.next_window = window + 1
        if window - self.settled_through > HISTORY:
            self.expire_before(window - HISTORY + 1)
        fresh_ns = credit_ns = offered_ns or self.credit_ns
        borrowed_ns = 0
        if self.give_ns and not offered_ns:
            fresh_ns -= self.give_ns
            self.given_ns += self.give_ns
            for flow in self.gives:
                flow.pool_ns += flow.gives_ns
                if flow.pool_ns > flow.pool_max_ns:
                    flow.pool_ns = flow.pool_max_ns
        if self.takes and not offered_ns:
            before_ns = self.borrowed_ns
            for flow in self.takes:
                taken_ns = flow.takes_ns
                if taken_ns > flow.pool_ns:
                    taken_ns = flow.pool_ns
                debt = flow.reverse
                if debt.young_ns or debt.old_ns or flow.repays:
                    taken_ns = flow.pay_back(taken_ns)
                else:
                    flow.pool_ns -= taken_ns
                    flow.young_ns += taken_ns
                    flow.lender.lent_ns += taken_ns
                    self.borrowed_ns += taken_ns
                fresh_ns += taken_ns
            borrowed_ns = self.borrowed_ns - before_ns
        adjusted_ns = 0
        if self.balance_ns and not offered_ns:
            free_ns = self.balance_ns - self._carried_in_flight_ns
            due_ns = -self.balance_ns - self._withheld_in_flight_ns
            if free_ns > 0:
                adjusted_ns = max(0, min(free_ns, self.burst_ns, self.limit_ns - fresh_ns))
                self._carried_in_flight_ns += adjusted_ns
            elif due_ns > 0:
                adjusted_ns = -max(0, min(due_ns, fresh_ns - self.floor_ns))
                self._withheld_in_flight_ns -= adjusted_ns
        budget_ns = offered_ns or fresh_ns + adjusted_ns
        self._minted[window & _SLOTS] = (fresh_ns, budget_ns, adjusted_ns)
        self.minted += 1
        self.own_ns += credit_ns
        return budget_ns, borrowed_ns

    # ── settling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def refuses(self, window: int) -> bool:
        """Whether a report for this window is stale (settled before) or foreign (never minted)."""
        return not self.settled_through < window < self.next_window

    def settle(self, window: int, used_ns: int) -> None:
        """Book the use of a window's token; windows passed over by the report expire unused.

        Raises:
            ValueError: the report is one that :meth:`refuses`, or its use is negative.
        """
        if not self.settled_through < window < self.next_window or used_ns < 0:
            raise ValueError(
                f"window {window}, used {used_ns} ns: expected a window of "
                f"{self.settled_through + 1}..{self.next_window - 1} and no negative use"
            )
        if window - self.settled_through > 1:
            self.expire_before(window)
        self.settled_through = window
        self._in_a_row = 0
        fresh_ns, budget_ns, adjusted_ns = self._minted[window & _SLOTS]
        if adjusted_ns:
            self._land(adjusted_ns)
        self.settled += 1
        self.used_ns += used_ns
        left_ns = fresh_ns - used_ns
        if used_ns > budget_ns:
            self.overruns += 1
            self.overrun_ns += used_ns - budget_ns
        if left_ns >= 0 and self.balance_ns == self.carry_max_ns:
            self.expired_ns += left_ns
        else:
            self._change(left_ns)
        self._expect(used_ns, budget_ns)

    def settle_plain(self, used_ns: int, credit_ns: int) -> None:
        """Mint the next window and book its use, in one: for an account that is not behind.

        Where tokens hold the own credit and nothing else it does not matter when they are minted.

        Args:
            credit_ns: what its token held.
        """
        self.settled_through = self.next_window
        self.next_window += 1
        self._in_a_row = 0
        self.minted += 1
        self.own_ns += credit_ns
        self.settled += 1
        self.used_ns += used_ns
        left_ns = credit_ns - used_ns
        if left_ns < 0:
            self.overruns += 1
            self.overrun_ns -= left_ns
        if left_ns >= 0 and self.balance_ns == self.carry_max_ns:
            self.expired_ns += left_ns
        else:
            self._change(left_ns)
        self._expect(used_ns, credit_ns)

    def settle_late(self, used_ns: int) -> None:
        """Book the use of a window whose token has expired already: all of it is too much."""
        if used_ns:
            self.overruns += 1
        self.overrun_ns += used_ns
        self.used_ns += used_ns
        self._change(-used_ns)

    def charge(self, used_ns: int) -> None:
        """Book use that no report has told of; negative if more was charged than turned out to be."""
        self._change(-used_ns)

    def expire_before(self, window: int) -> None:
        """Void every outstanding token of windows before this one: its credit pays debt, the rest is gone."""
        while self.settled_through + 1 < min(window, self.next_window):
            self.settled_through += 1
            fresh_ns, _, adjusted_ns = self._minted[self.settled_through & _SLOTS]
            self._land(adjusted_ns)
            self._in_a_row += 1
            if self._in_a_row == _ABSENT:
                self.forget_demand()
            pays_ns = min(fresh_ns, -self.balance_ns) if self.balance_ns < 0 else 0
            if pays_ns:
                self.balance_ns += pays_ns
                self.market.is_sorted = False
            self.expired += 1
            self.expired_ns += fresh_ns - pays_ns

    def forget_demand(self) -> None:
        """Nobody is there to spend it: it wants nothing, until a window shows otherwise."""
        self.hungry, self.demand_ns, self._shade = False, 0, 0
        self.market.stale = True

    def _land(self, adjusted_ns: int) -> None:
        """A token is out no longer, and with it what it carried, or was to pay."""
        if adjusted_ns > 0:
            self._carried_in_flight_ns -= adjusted_ns
        else:
            self._withheld_in_flight_ns += adjusted_ns

    def _change(self, by_ns: int) -> None:
        balance_ns = self.balance_ns + by_ns
        if balance_ns > self.carry_max_ns:
            # What tokens hold that are out stays good, also where another amplitude allows less.
            most_ns = max(self.carry_max_ns, min(balance_ns, self._carried_in_flight_ns))
            self.expired_ns += balance_ns - most_ns
            balance_ns = most_ns
        elif balance_ns < -self.debt_max_ns:
            self.forgiven_ns += -self.debt_max_ns - balance_ns
            balance_ns = -self.debt_max_ns
        if not balance_ns or not self.balance_ns:
            self.market.is_sorted = False
        self.balance_ns = balance_ns

    def _expect(self, used_ns: int, budget_ns: int) -> None:
        """Judge from one window what the next ones will want, and tell the market if that makes a difference."""
        wanted_ns = used_ns + (used_ns >> _HEADROOM_SHIFT)
        fade_ns = self.demand_ns
        fade_ns -= fade_ns >> _FADING_SHIFT
        self.demand_ns = demand_ns = fade_ns if fade_ns > wanted_ns else wanted_ns
        self.hungry = hungry = used_ns >= budget_ns - (budget_ns >> _HUNGRY_SHIFT)
        shade = _SHADES if hungry or demand_ns >= self.credit_ns else demand_ns // self._shade_ns
        if shade != self._shade:
            self._shade = shade
            market = self.market
            if shade == _SHADES:
                if self.give_ns:
                    market.recall(self)
                market.urgent = True
            elif market.wanted:
                if self.takes:
                    market.release(self)
                market.stale = True

    # ── what others go by ────────────────────────────────────────────────────────────────────────────────────────────

    def started_ns(self, newest: int) -> int:
        """Credit, without what was carried on or withheld, of the windows up to ``newest`` that are not settled.

        Windows that have yet to be minted count with the own credit.
        """
        last = min(newest, self.next_window - 1)
        minted_ns = sum(self._minted[window & _SLOTS][0] for window in range(self.settled_through + 1, last + 1))
        return minted_ns + max(0, newest - last) * self.credit_ns

    def behind(self, newest: int) -> int:
        """Windows in a row that have begun and were not entered; the running one counts only when the next has begun.

        Args:
            newest: the newest window that has begun.
        """
        return self._in_a_row + max(0, newest - self.settled_through - 1)

    def room_ns(self, newest: int) -> int:
        """Credit of the next window that its own work is not expected to want: what somebody may send it to do.

        0 tells a router to refuse whoever sends to this dimension: it wants all that it has, is in debt, or behind.
        """
        if self.hungry or self.balance_ns < 0 or self.behind(newest):
            return 0
        return max(0, self.credit_ns + self.balance_ns - self.demand_ns)

    def size_up(self) -> None:
        """Set what it wants beyond its own credit, up to its ceiling, or what of it it can spare, down to its floor."""
        demand_ppb = self.ceiling_ppb
        if not self.hungry:
            demand_ppb = min(demand_ppb, self.demand_ns * self.under // self.over)
        self.want_ppb = max(0, demand_ppb - self.rate_ppb)
        self.spare_ppb = max(0, self.rate_ppb - max(demand_ppb, self.floor_ppb))


class Flow:
    """Credit that may pass from one dimension to another, and what of it is still owed.

    Attributes:
        rate_ppb: that is meant to pass now. In ns, that makes for each window:
        gives_ns, takes_ns: of the lender's, and of the borrower's.
        pool_ns: what tokens of the lender have given up and no token of the borrower has taken up yet.
        pool_max_ns: what of that is kept: for two windows of whoever has the longer ones.
        repays: whether it ends when the lender owes the borrower nothing more; else what passes then is a loan.
        young_ns, old_ns: what the borrower owes the lender, of this horizon and of the one before.
    """

    __slots__ = (
        "_longest_ns", "borrower", "gives_ns", "lender", "offer_ppb", "old_ns", "pool_max_ns", "pool_ns", "rate_ppb",
        "repays", "reverse", "takes_ns", "young_ns",
    )  # fmt: skip

    def __init__(self, lender: Account, borrower: Account) -> None:
        self.lender, self.borrower = lender, borrower
        self.reverse = self
        self.rate_ppb = self.offer_ppb = self.gives_ns = self.takes_ns = 0
        self.pool_ns = self.pool_max_ns = self.young_ns = self.old_ns = 0
        self.repays = False
        self._longest_ns = ceil(max(Fraction(*lender.terms.period), Fraction(*borrower.terms.period)))

    @property
    def inside(self) -> bool:
        """Both are of one triad."""
        return self.lender.terms.triad != "" and self.lender.terms.triad == self.borrower.terms.triad

    @property
    def lends(self) -> bool:
        """Loans may pass here: the borrower's windows are not longer than the lender's."""
        theirs, ours = self.borrower.terms.period, self.lender.terms.period
        return theirs[0] * ours[1] <= ours[0] * theirs[1]

    @property
    def owed_ns(self) -> int:
        """What the borrower owes the lender."""
        return self.young_ns + self.old_ns

    def open(self) -> None:
        """The rate has been decided on: let it count, and keep of the pool what it can fill."""
        self.gives_ns = self.rate_ppb * self.lender.over // self.lender.under
        self.takes_ns = self.rate_ppb * self.borrower.over // self.borrower.under
        self.pool_max_ns = 2 * self.rate_ppb * self._longest_ns // PPB
        if self.pool_ns > self.pool_max_ns:
            self.pool_ns = self.pool_max_ns

    def close(self) -> None:
        """Nothing passes any more."""
        self.rate_ppb = self.gives_ns = self.takes_ns = self.pool_ns = 0
        self.repays = False

    def pay_back(self, taken_ns: int) -> int:
        """Let credit of the pool pass; it pays back what the lender owes the borrower, the rest is a loan.

        Returns:
            How much passed: no more than is owed, if no loan is meant.
        """
        debt = self.reverse
        paid_ns = min(taken_ns, debt.young_ns + debt.old_ns)
        if self.repays:
            taken_ns = paid_ns
        self.pool_ns -= taken_ns
        lender, borrower = self.lender, self.borrower
        if paid_ns:
            old_ns = min(paid_ns, debt.old_ns)
            debt.old_ns -= old_ns
            debt.young_ns -= paid_ns - old_ns
            lender.repaid_ns += paid_ns
            borrower.returned_ns += paid_ns
            if debt.young_ns + debt.old_ns == 0:
                lender.market.stale = True
        loan_ns = taken_ns - paid_ns
        if loan_ns:
            lender.lent_ns += loan_ns
            borrower.borrowed_ns += loan_ns
            self.young_ns += loan_ns
        return taken_ns


class Market:
    """The dimensions of one set of CPUs, among which credit passes.

    Attributes:
        urgent: whether somebody has come to want more than its own credit since :meth:`allot`.
        stale: whether anything else has changed since, so that it would decide a little otherwise.
        wanted: whether anybody wanted more than its own at that time.
        order: of those whose tokens have to be minted before they begin, as :meth:`sort` has left it: those who may
            give come before those who receive.
        is_sorted: whether that is still right.
    """

    def __init__(self, accounts: Sequence[Account], horizon_ns: int) -> None:
        self.accounts = self.order = tuple(accounts)
        self.is_sorted = False
        self.urgent = self.stale = self.wanted = False
        self.allotted_ns = 0
        self._horizon_ns = horizon_ns
        pairs = {(a, b): Flow(a, b) for a in accounts for b in accounts if a is not b}
        for (lender, borrower), flow in pairs.items():
            flow.reverse = pairs[borrower, lender]
        self._flows = tuple(pairs.values())
        self._lanes = tuple(
            tuple(
                (a, tuple(f for f in self._flows if f.lender is a and f.lends and (f.inside or not inside)))
                for a in accounts
            )
            for inside in (True, False)
        )
        self._from = {a: [flow for flow in self._flows if flow.lender is a] for a in accounts}
        self._active: list[Flow] = []
        for account in accounts:
            account.market = self

    def owed_ns(self, borrower: Account) -> int:
        """What a dimension owes to others."""
        return sum(flow.owed_ns for flow in self._flows if flow.borrower is borrower)

    def age(self) -> None:
        """A horizon has passed: waive what was owed before it began."""
        for flow in self._flows:
            flow.borrower.waived_ns += flow.old_ns
            flow.young_ns, flow.old_ns = 0, flow.young_ns
        self.stale = True

    def call_off(self) -> None:
        """Let nothing pass any more until it is decided anew."""
        for flow in self._active:
            flow.close()
        self._active = []
        for account in self.accounts:
            account.gives, account.takes, account.give_ns = [], [], 0
        self.urgent = True
        self.is_sorted = False

    def recall(self, lender: Account) -> None:
        """A lender wants its credit again: lend nothing more of it, at once; the rest is decided anew in its turn."""
        for flow in lender.gives:
            if not flow.repays:
                flow.close()
        lender.gives = [flow for flow in lender.gives if flow.repays]
        lender.give_ns = sum(flow.gives_ns for flow in lender.gives)
        self.is_sorted = False

    def release(self, borrower: Account) -> None:
        """A borrower does with less than before: let its loans end; if it still wants some, that is decided anew."""
        for flow in borrower.takes:
            if flow.rate_ppb and not flow.repays:
                flow.lender.give_ns -= flow.gives_ns
                flow.lender.gives.remove(flow)
                flow.close()
        borrower.takes = [flow for flow in borrower.takes if flow.repays]
        self.is_sorted = False
        if borrower.demand_ns > borrower.credit_ns:
            self.urgent = True

    def allot(self) -> None:
        """Decide anew which rate of credit passes from whom to whom, from what everybody wants."""
        self.urgent = self.stale = False
        for flow in self._active:
            flow.rate_ppb = 0
            flow.repays = False
        before, self._active = self._active, []
        self.wanted = False
        for account in self.accounts:
            account.size_up()
            if account.want_ppb:
                self.wanted = True
        if self.wanted:
            self._reclaim()
            for lane in self._lanes:
                if self._offer(lane):
                    self._offer(lane)  # what one could not take, the others may
        elif not before:
            return
        for account in self.accounts:
            account.gives, account.takes, account.give_ns = [], [], 0
        for flow in self._active:
            flow.open()
            flow.lender.gives.append(flow)
            flow.lender.give_ns += flow.gives_ns
            flow.borrower.takes.append(flow)
        for flow in before:
            if not flow.rate_ppb:
                flow.close()
        self.is_sorted = False

    def sort(self) -> tuple[Account, ...]:
        """Bring :attr:`order` up to date: who is plain is left out of it."""
        self.is_sorted = True
        givers = [a for a in self.accounts if not a.takes and (a.give_ns or a.balance_ns)]
        self.order = (*givers, *(a for a in self.accounts if a.takes))
        return self.order

    def _reclaim(self) -> None:
        """Let debtors pay back to lenders that want more than their own, at most half of what lies above their floor.

        The rate is such that a debt is paid within half a horizon. Who claims does not pay meanwhile, and who pays does
        not borrow.
        """
        claims = [
            flow.reverse
            for account in self.accounts
            if account.want_ppb
            for flow in self._from[account]
            if flow.young_ns or flow.old_ns
        ]
        if not claims:
            return
        claiming = {flow.borrower for flow in claims}
        claims = [flow for flow in claims if flow.lender not in claiming]
        given: dict[Account, int] = {}
        for flow in claims:
            flow.offer_ppb = -(-flow.reverse.owed_ns * 2 * PPB // self._horizon_ns)
            given[flow.lender] = given.get(flow.lender, 0) + flow.offer_ppb
        for flow in claims:
            room_ppb = (flow.lender.rate_ppb - flow.lender.floor_ppb) // 2
            if given[flow.lender] > room_ppb:
                flow.offer_ppb = flow.offer_ppb * room_ppb // given[flow.lender]
        self._accept(claims)
        for flow in claims:
            flow.repays = True
            flow.lender.want_ppb = 0
            flow.lender.spare_ppb = max(0, flow.lender.spare_ppb)

    def _offer(self, lane: tuple[tuple[Account, tuple[Flow, ...]], ...]) -> bool:
        """Every lender divides what it can spare among those it may lend to, by amplitude; whether some is left."""
        offers: list[Flow] = []
        for lender, flows in lane:
            if lender.spare_ppb <= 0:
                continue
            takers = [flow for flow in flows if flow.borrower.want_ppb > 0]
            weight = 0
            for flow in takers:
                weight += flow.borrower.weight
            for flow in takers:
                flow.offer_ppb = lender.spare_ppb * flow.borrower.weight // weight
            offers += takers
        return bool(offers) and self._accept(offers)

    def _accept(self, offers: list[Flow]) -> bool:
        """Take what is offered, or a part of each offer where a borrower wants less; whether anything was left."""
        offered: dict[Account, int] = {}
        for flow in offers:
            offered[flow.borrower] = offered.get(flow.borrower, 0) + flow.offer_ppb
        for flow in offers:
            borrower = flow.borrower
            if offered[borrower] > borrower.want_ppb:
                flow.offer_ppb = flow.offer_ppb * borrower.want_ppb // offered[borrower]
            if flow.offer_ppb:
                if not flow.rate_ppb:
                    self._active.append(flow)
                flow.repays = False
                flow.rate_ppb += flow.offer_ppb
                flow.lender.spare_ppb -= flow.offer_ppb
        too_much = False
        for borrower, offered_ppb in offered.items():
            too_much = too_much or offered_ppb > borrower.want_ppb
            borrower.want_ppb = max(0, borrower.want_ppb - offered_ppb)
        return too_much


class Ledger:
    """All accounts of a testbed.

    Args:
        terms, credits_ns, weights: of each dimension, in the order of their indices.
        horizon_ns: for which a loan can be claimed back.
        pause_ns: from one decision on which credit passes to the next, at least.

    Attributes:
        accounts: in the same order.
    """

    def __init__(
        self,
        terms: Sequence[Terms],
        credits_ns: Sequence[int],
        weights: Sequence[int],
        horizon_ns: int,
        pause_ns: int = 0,
    ) -> None:
        self.accounts = tuple(
            Account(term, index, credit_ns, weight, horizon_ns)
            for index, (term, credit_ns, weight) in enumerate(zip(terms, credits_ns, weights, strict=True))
        )
        by_cpus: dict[tuple[int, ...], list[Account]] = {}
        for account in self.accounts:
            by_cpus.setdefault(account.terms.cpus, []).append(account)
        self.markets = tuple(Market(members, horizon_ns) for members in by_cpus.values())
        self._horizon_ns = horizon_ns
        self._aged_ns = 0
        self._turn = self._allot_ns = 0
        self._pause_ns = pause_ns

    def tune(self, credits_ns: Iterable[int], weights: Iterable[int]) -> None:
        """Take over other amplitudes, for every token minted from now on."""
        for market in self.markets:
            market.call_off()  # what passes was decided on by the old credits
        for account, credit_ns, weight in zip(self.accounts, credits_ns, weights, strict=True):
            account.tune(credit_ns, weight)

    def turn(self, elapsed_ns: int) -> None:
        """Before the tokens of a round are minted: let credit pass as it is wanted now, on the CPUs whose turn it is.

        The CPUs take turns, so that no round takes longer on a host of many, with a pause between two decisions;
        whoever wants its own credit back has it without a decision.

        Args:
            elapsed_ns: since the start of the run.
        """
        if elapsed_ns - self._aged_ns >= self._horizon_ns:
            self._aged_ns = elapsed_ns
            for market in self.markets:
                market.age()
        if elapsed_ns >= self._allot_ns:
            for _ in self.markets:
                self._turn = (self._turn + 1) % len(self.markets)
                market = self.markets[self._turn]
                due_ns = market.allotted_ns + _REFINED_AFTER * self._pause_ns
                if market.urgent or (market.stale and elapsed_ns >= due_ns):
                    market.allot()
                    market.allotted_ns = elapsed_ns
                    self._allot_ns = elapsed_ns + self._pause_ns
                    return
