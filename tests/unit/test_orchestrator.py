"""Minting ahead, what the orchestrator believes of a status page, and when it holds a dimension."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from fractions import Fraction
from typing import cast

import pytest

from vcg import config, plan, shm
from vcg.linux import clock
from vcg.orchestrator import new_tokens
from vcg.plan import DimensionPlan, HostShape
from vcg.rounds import Desk, Orchestrator
from vcg.shm import Outcome
from vcg.tokens import Ledger, Terms
from vcg.warden import Standing, Warden

EPOCH = 7
ELAPSED_NS = 1_000_000_000
PLAN = DimensionPlan(
    index=2,
    name="d3",
    role="transform",
    harmonic="3",
    period=(10_000_000, 3),
    phase=(1, 2),
    storage="tmpfs",
    storage_bytes=1 << 20,
    amplitude=1.0,
    credit_ns=1000,
    cpus=(0,),
    node=0,
    policy="fifo",
    priority=10,
    workload="vcg.workloads.idle:run",
    args={},
    devices=(),
    memory_bytes=1 << 26,
    pids=8,
)


def words(size_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size_bytes)).cast("q")


class Counter:
    """A desk over private memory, an RTD that has published some windows, a dimension that writes what it likes."""

    def __init__(self, plan: DimensionPlan = PLAN, newest: int = 50) -> None:
        self.ticks, self.status = words(shm.TICKS_BYTES), words(shm.STATUS_BYTES)
        fd, self.tokens = new_tokens(EPOCH)
        os.close(fd)
        terms = Terms(plan.name, plan.cpus, "", plan.period, Fraction(0), Fraction(1, 4), Fraction(4))
        self.ledger = Ledger([terms], [plan.credit_ns], [1], 40_000_000)
        self.account = self.ledger.accounts[0]
        self.desk = Desk(plan, self.account, EPOCH, self.ticks, self.tokens, self.status)
        self.written = 0
        self.publish(newest)

    def publish(self, newest: int) -> None:
        self.ticks[shm.LATEST_AT + PLAN.index] = newest

    def mint(self, end_ns: int, now_ns: int = -1, start_ns: int = 0) -> None:
        self.desk.offer_through(start_ns, end_ns + 10_000_000)
        self.desk.book_through(start_ns, end_ns, now_ns)

    def token(self, window: int) -> dict[str, int]:
        at = shm.TOKENS_AT + (PLAN.index * shm.TOKEN_SLOTS + window % shm.TOKEN_SLOTS) * shm.TOKEN_WORDS
        return dict(zip(shm.TOKEN.fields, self.tokens[at : at + shm.TOKEN.words], strict=True))

    def report(self, window: int, used_ns: int, epoch: int = EPOCH, outcome: int = Outcome.DONE) -> None:
        at = shm.WINDOWS_AT + self.written % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
        for name, value in (("window", window), ("epoch", epoch), ("outcome", outcome), ("used_ns", used_ns)):
            self.status[at + shm.WINDOW.at(name)] = value
        self.written += 1
        self.status[shm.STATUS_HEADER.at("head")] = self.written

    @property
    def refused(self) -> tuple[int, int, int]:
        return self.desk.refused_epoch, self.desk.refused_window, self.desk.refused_value


# ── minting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tokens_cover_every_window_before_the_end_and_expire_at_the_next_edge() -> None:
    counter = Counter()
    counter.mint(100 + 10_000_000, now_ns=5, start_ns=100)
    assert counter.account.minted == 3
    edges = [100 + int((1 + 2 * n * 10_000_000 / 3) // 2) for n in range(7)]
    for window in range(6):
        token = counter.token(window)
        assert (token["window"], token["epoch"], token["dimension"], token["budget_ns"]) == (window, EPOCH, 2, 1000)
        assert (token["planned_ns"], token["expires_ns"]) == (edges[window], edges[window + 1])


def test_minting_goes_on_where_it_stopped() -> None:
    once, twice = Counter(), Counter()
    once.mint(200_000_000)
    for end_ns in (90_000_000, 90_000_001, 200_000_000):
        twice.mint(end_ns)
    assert once.account.minted == twice.account.minted == 60
    assert once.tokens[shm.TOKENS_AT :].tolist() == twice.tokens[shm.TOKENS_AT :].tolist()


def test_a_token_that_is_booked_in_time_takes_the_place_of_the_one_that_was_offered() -> None:
    counter = Counter()
    counter.mint(10_000_000)
    counter.report(0, 1700)
    counter.desk.settle(ELAPSED_NS)
    assert counter.token(3)["budget_ns"] == 1000
    counter.mint(20_000_000)
    assert counter.token(3)["budget_ns"] == 300


def test_a_token_that_is_booked_after_its_edge_stays_what_was_offered() -> None:
    counter = Counter()
    counter.mint(10_000_000)
    counter.report(0, 1700)
    counter.desk.settle(ELAPSED_NS)
    counter.mint(20_000_000, now_ns=10_000_001)
    assert [counter.token(window)["budget_ns"] for window in (3, 4)] == [1000, 300]


@pytest.mark.parametrize("missed", [*range(1, 12), 200, 1000])
def test_rounds_that_were_missed_are_made_up_for(missed: int) -> None:
    made = plan.make(config.load("default"), HostShape((0, 1), {0: 0, 1: 0}))
    ticks, control = words(shm.TICKS_BYTES), words(shm.CONTROL_BYTES)
    fd, tokens = new_tokens(EPOCH)
    os.close(fd)
    for bit in range(shm.MAX_DIMENSIONS):
        ticks[shm.LATEST_AT + bit] = -1
    statuses = [words(shm.STATUS_BYTES) for _ in made.dimensions]
    orchestrator = Orchestrator(made, EPOCH, control, ticks, tokens, statuses)
    start_ns = clock.now_ns() + 1_000_000_000
    orchestrator.work(-1, start_ns)
    for number in range(0, max(60, 3 * missed), missed):
        orchestrator.work(number, start_ns)
        through_ns = (number + 2) * made.base_window_ns // made.rounds
        for d in made.dimensions:
            begins = [int(d.phase[0] / d.phase[1] + n * d.period_ns) for n in range(3100)]
            window = next(n for n, offset_ns in enumerate(begins) if offset_ns >= through_ns) - 1
            if window < 0:
                continue  # it has yet to begin for the first time
            at = shm.TOKENS_AT + (d.index * shm.TOKEN_SLOTS + window % shm.TOKEN_SLOTS) * shm.TOKEN_WORDS
            token = dict(zip(shm.TOKEN.fields, tokens[at : at + shm.TOKEN.words], strict=True))
            assert (token["window"], token["budget_ns"]) == (window, d.credit_ns)
            assert abs(token["planned_ns"] - start_ns - begins[window]) <= 1


def test_another_credit_reaches_every_token_that_has_not_begun() -> None:
    counter = Counter()
    counter.desk.offer_through(0, 30_000_000)
    counter.ledger.tune([500], [1])
    counter.desk.offer_again(0, now_ns=10_000_000)
    edges = [int((1 + 2 * n * 10_000_000 / 3) // 2) for n in range(9)]
    assert [counter.token(n)["budget_ns"] for n in range(9)] == [500 if at > 10_000_000 else 1000 for at in edges]


def test_a_plain_account_comes_to_the_same_whether_it_is_booked_before_or_after() -> None:
    before, after = Counter(), Counter()
    before.mint(60_000_000)
    after.desk.offer_through(0, 60_000_000)
    for counter in (before, after):
        for window, used_ns in enumerate([400, 1700, 0, 1, 999]):
            counter.report(window, used_ns)
        counter.report(6, 500)
        counter.desk.settle(ELAPSED_NS)
    names = ("settled", "used_ns", "expired", "balance_ns", "demand_ns", "hungry", "settled_through")
    assert [getattr(before.account, name) for name in names] == [getattr(after.account, name) for name in names]


# ── settling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_used_is_settled() -> None:
    counter = Counter()
    counter.mint(20_000_000)
    counter.report(0, 400)
    counter.report(1, 1500, outcome=Outcome.OVERRUN)
    counter.report(2, 0, outcome=Outcome.MISSED)
    counter.desk.settle(ELAPSED_NS)
    account = counter.account
    assert (account.settled, account.used_ns, account.overrun_ns, account.expired) == (2, 1900, 500, 1)
    assert counter.refused == (0, 0, 0)


@pytest.mark.parametrize(
    ("forged", "counted"),
    [
        ({"window": 0, "used_ns": 1, "epoch": EPOCH - 1}, "refused_epoch"),
        ({"window": 99, "used_ns": 1}, "refused_window"),
        ({"window": 99, "used_ns": 0, "outcome": Outcome.MISSED}, "refused_window"),
        ({"window": -1, "used_ns": 1}, "refused_window"),
        ({"window": 0, "used_ns": -(2**60)}, "refused_value"),
        ({"window": 0, "used_ns": 2**63 - 1}, "refused_value"),
    ],
)
def test_a_stale_foreign_or_absurd_report_is_refused_and_counted(forged: dict[str, int], counted: str) -> None:
    counter = Counter()
    counter.mint(20_000_000)
    counter.report(**forged)
    counter.desk.settle(ELAPSED_NS)
    assert getattr(counter.desk, counted) == sum(counter.refused) == 1
    assert counter.account.settled == 0


def test_a_replayed_report_is_refused() -> None:
    counter = Counter()
    counter.mint(20_000_000)
    counter.report(1, 10)
    counter.report(1, 10)
    counter.desk.settle(ELAPSED_NS)
    assert (counter.account.settled, counter.desk.refused_window) == (1, 1)


def test_a_window_missed_for_want_of_a_token_is_no_forgery() -> None:
    counter = Counter()
    counter.mint(10_000_000)
    for window in range(3):
        counter.report(window, 1)
    counter.report(3, 0, outcome=Outcome.MISSED)
    counter.desk.settle(ELAPSED_NS)
    assert counter.refused == (0, 0, 0)
    assert counter.account.settled == 3


def test_a_window_that_was_entered_before_it_was_booked_is_settled_as_it_was_offered() -> None:
    counter = Counter()
    counter.mint(10_000_000)
    counter.report(3, 700)
    counter.desk.settle(ELAPSED_NS)
    account = counter.account
    assert (account.settled, account.used_ns, account.next_window, account.expired) == (1, 700, 4, 3)
    assert counter.refused == (0, 0, 0)


def test_a_lease_expires_when_newer_windows_have_begun_and_its_late_report_is_debt() -> None:
    counter = Counter(newest=6)
    counter.mint(30_000_000)
    counter.desk.enforce(0, 0, 0)
    assert counter.account.settled_through == 2
    counter.report(1, 600)
    counter.desk.settle(ELAPSED_NS)
    assert (counter.account.used_ns, counter.account.balance_ns, counter.account.overruns) == (600, -600, 1)
    counter.report(2, 0)
    counter.desk.settle(ELAPSED_NS)
    assert counter.account.overruns == 1
    assert counter.refused == (0, 0, 0)


@pytest.mark.parametrize("head", [-5, 2**62, shm.WINDOW_SLOTS + 1])
def test_a_head_out_of_range_costs_one_refusal(head: int) -> None:
    counter = Counter()
    counter.status[shm.STATUS_HEADER.at("head")] = head
    counter.desk.settle(ELAPSED_NS)
    assert counter.desk.refused_value == 1
    counter.desk.settle(ELAPSED_NS)
    assert counter.desk.refused_value == 1


def test_more_reports_than_windows_have_begun_since_the_last_ones_are_counted_as_lost() -> None:
    counter = Counter(replace(PLAN, period=(100_000, 1)), newest=600)
    for end_ns in range(1_000_000, 61_000_000, 1_000_000):
        counter.mint(end_ns)
    counter.report(0, 1)
    counter.desk.settle(ELAPSED_NS)
    for window in range(1, 600):
        counter.report(window, 1)
    counter.desk.settle(ELAPSED_NS)
    assert counter.desk.records_lost == 599 - 256
    assert counter.desk.records_lost + counter.account.settled == 600


def test_after_a_long_stall_every_report_of_the_windows_that_have_begun_meanwhile_counts() -> None:
    counter = Counter(replace(PLAN, period=(100_000, 1)), newest=20)
    for end_ns in range(1_000_000, 61_000_000, 1_000_000):
        counter.mint(end_ns)
    for window in range(20):
        counter.report(window, 1)
    counter.desk.settle(ELAPSED_NS)
    counter.publish(600)
    for window in range(20, 600):
        counter.report(window, 1)
    counter.desk.settle(ELAPSED_NS)
    assert (counter.account.settled, counter.desk.records_lost) == (600, 0)


def test_counters_are_in_the_order_of_their_declaration() -> None:
    counter = Counter()
    counter.mint(20_000_000)
    counter.report(0, 1400)
    counter.desk.settle(ELAPSED_NS)
    counters = counter.desk.counters()
    assert len(counters) == shm.COUNTERS.words
    exported = dict(zip(shm.COUNTERS.fields, counters, strict=True))
    assert exported["minted"] == counter.account.minted == 6
    assert (exported["used_ns"], exported["overrun_ns"], exported["balance_ns"]) == (1400, 400, -400)
    assert exported["credit_ns"] == 1000
    assert exported["behind"] == 49
    assert exported["held"] == 0


# ── enforcing ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Kernel:
    """What a warden would read and do."""

    def __init__(self) -> None:
        self.used_ns = 5_000_000
        self.acts: list[Standing] = []
        self.left = 1
        """Calls until all of its threads have their class back, once it is set free."""

    def usage_ns(self) -> int:
        return self.used_ns

    def apply(self, before: Standing, after: Standing) -> bool:
        if before != after:
            self.acts.append(after)
        if after == Standing.FREE:
            self.left -= 1
        return after != Standing.FREE or self.left == 0


class Policed(Counter):
    """A dimension with 1000 ns for each window and a grace of 500; window 0 has been entered and reported."""

    def __init__(self) -> None:
        super().__init__(replace(PLAN, grace_ns=500, period=(1_000_000, 1), phase=(0, 1)), newest=0)
        self.kernel = Kernel()
        self.desk.watch_by(cast(Warden, self.kernel))
        self.window = 0
        self.next(used_ns=0, reported_ns=0)

    def next(self, used_ns: int, reported_ns: int | None) -> None:
        """The running window ends, the next begins; then the orchestrator looks."""
        self.mint((self.window + 2) * 1_000_000)
        self.kernel.used_ns += used_ns
        if reported_ns is not None:
            self.report(self.window, reported_ns)
        self.window += 1
        self.publish(self.window)
        self.desk.settle(ELAPSED_NS)
        self.look()

    def look(self) -> None:
        """The orchestrator looks, in the running window."""
        self.mint((self.window + 2) * 1_000_000)
        self.desk.enforce((self.window + 2) * 1_000_000, 0, self.window * 20_000_000)


def test_who_stays_within_its_credit_is_left_alone() -> None:
    policed = Policed()
    for _ in range(50):
        policed.next(used_ns=1000, reported_ns=1000)
    assert policed.kernel.acts == []


def test_an_overrun_within_the_grace_is_only_debt() -> None:
    policed = Policed()
    policed.next(used_ns=1400, reported_ns=1400)
    assert policed.account.balance_ns == -400
    assert policed.kernel.acts == []


@pytest.mark.parametrize("reported_ns", [None, 0, 900])
def test_who_goes_on_without_credit_is_held_whatever_it_reports(reported_ns: int | None) -> None:
    policed = Policed()
    for _ in range(2):
        policed.next(used_ns=1_000_000, reported_ns=reported_ns)
    assert policed.kernel.acts == [Standing.DEMOTED]
    assert policed.desk.custody.offences == 1
    assert policed.desk.unreported_ns > 0


def test_it_is_set_free_when_its_debt_is_paid_and_it_has_come_to_rest() -> None:
    policed = Policed()
    policed.next(used_ns=10_000, reported_ns=None)
    assert policed.kernel.acts == [Standing.DEMOTED]
    rounds = 0
    while policed.desk.custody.standing:
        policed.next(used_ns=0, reported_ns=0)
        rounds += 1
        assert rounds < 20
    assert policed.kernel.acts == [Standing.DEMOTED, Standing.FREE]
    assert rounds >= 8


def test_it_is_not_set_free_while_it_still_spins() -> None:
    policed = Policed()
    for _ in range(300):
        frozen = policed.desk.custody.standing == Standing.FROZEN
        policed.next(used_ns=0 if frozen else 500_000, reported_ns=None)
    assert Standing.FREE not in policed.kernel.acts
    assert policed.kernel.acts.count(Standing.FROZEN) > 1


def test_a_claim_of_more_than_it_used_buys_nothing() -> None:
    policed = Policed()
    policed.next(used_ns=0, reported_ns=900_000_000)
    for _ in range(5):
        policed.next(used_ns=1_000_000, reported_ns=0)
    assert Standing.FREE not in policed.kernel.acts
    assert policed.desk.custody.standing != Standing.FREE


def test_an_honest_token_is_judged_by_what_it_held_when_the_credit_has_changed() -> None:
    policed = Policed()
    policed.ledger.tune([100], [1])
    policed.next(used_ns=1000, reported_ns=1000)
    assert policed.account.balance_ns == 0
    assert policed.kernel.acts == []


def test_use_that_is_reported_in_the_end_is_charged_once() -> None:
    policed = Policed()
    policed.next(used_ns=3_000, reported_ns=None)
    policed.next(used_ns=0, reported_ns=3_000)
    policed.next(used_ns=0, reported_ns=0)
    account = policed.account
    assert account.used_ns == 3_000
    out_ns = account.started_ns(account.next_window - 1)
    assert account.balance_ns + account.expired_ns + account.used_ns == account.own_ns - out_ns


def test_a_gap_in_its_reports_alone_is_no_reason_to_hold_it() -> None:
    policed = Policed()
    for _ in range(20):
        policed.next(used_ns=0, reported_ns=None)
    assert policed.kernel.acts == []
    assert policed.account.expired > 10


@pytest.mark.parametrize(("used_ns", "windows"), [(1600, 2), (2250, 2), (2251, 3), (3900, 4)])
def test_it_is_free_at_the_first_edge_at_which_all_but_a_quarter_of_its_credit_is_paid(
    used_ns: int, windows: int
) -> None:
    """The window in which it is found out and each one after it pays 1000 ns when it is over."""
    policed = Policed()
    policed.kernel.used_ns += used_ns
    policed.look()
    assert policed.kernel.acts == [Standing.DEMOTED]
    found_out = policed.window
    while policed.desk.custody.standing:
        assert policed.account.balance_ns < 0
        policed.next(used_ns=0, reported_ns=0)
    edge = policed.window + 1  # it is set free ahead of it
    assert edge - found_out == windows
    assert policed.account.balance_ns < 0
    policed.next(used_ns=0, reported_ns=0)
    assert policed.window == edge
    assert policed.account.balance_ns >= -250


def test_one_that_goes_on_within_its_credit_works_its_debt_off() -> None:
    policed = Policed()
    policed.next(used_ns=2700, reported_ns=None)
    policed.next(used_ns=600, reported_ns=2700 + 600)
    for _ in range(8):
        policed.next(used_ns=600, reported_ns=600)
    assert policed.kernel.acts == [Standing.DEMOTED, Standing.FREE]


def test_the_token_of_a_window_that_was_not_reported_pays_for_what_was_used_in_it() -> None:
    policed = Policed()
    policed.next(used_ns=5000, reported_ns=None)
    assert policed.kernel.acts == [Standing.DEMOTED]
    assert policed.account.balance_ns == 1000 - 5000


def test_a_report_of_what_has_been_charged_already_does_not_wipe_out_a_debt_that_is_as_large_as_can_be() -> None:
    policed = Policed()
    policed.kernel.used_ns += 900_000
    policed.look()
    most_ns = policed.account.debt_max_ns
    assert policed.account.balance_ns == -most_ns
    policed.next(used_ns=0, reported_ns=900_000)
    assert policed.account.balance_ns <= -most_ns + 1000


def test_threads_that_have_yet_to_get_their_class_back_are_seen_to_in_the_next_round() -> None:
    policed = Policed()
    policed.kernel.left = 3
    policed.kernel.used_ns += 1600
    policed.look()
    while policed.desk.custody.standing:
        policed.next(used_ns=0, reported_ns=0)
    for left in (2, 1):
        assert (policed.kernel.left, policed.desk.next_check) == (left, 0)
        policed.look()
    policed.desk.next_check = 99
    policed.look()
    assert (policed.kernel.left, policed.desk.next_check) == (0, 99)


class Beginner(Policed):
    """One that has yet to enter its first window."""

    def __init__(self, start_ns: int = 0) -> None:
        Counter.__init__(self, replace(PLAN, grace_ns=500, period=(1_000_000, 1), phase=(0, 1)), newest=-1)
        self.kernel = Kernel()
        self.desk.watch_by(cast(Warden, self.kernel))
        self.kernel.used_ns += start_ns
        self.desk.begin()
        self.window = 0
        self.publish(0)


def test_what_was_used_before_window_0_is_nobodys_credit() -> None:
    beginner = Beginner(start_ns=80_000_000)
    beginner.look()
    for _ in range(20):
        beginner.next(used_ns=1000, reported_ns=1000)
    assert beginner.kernel.acts == []
    assert beginner.account.balance_ns == 0


@pytest.mark.parametrize("reported_ns", [None, 0])
def test_who_spins_from_window_0_on_is_found_out_before_its_second_window_is_over(reported_ns: int | None) -> None:
    beginner = Beginner()
    beginner.kernel.used_ns += 500_000
    beginner.look()
    beginner.next(used_ns=1_000_000, reported_ns=reported_ns)
    assert beginner.kernel.acts == [Standing.DEMOTED]
    assert beginner.desk.custody.since <= 1


def test_the_tail_of_a_start_that_came_after_the_first_edge_leaves_no_mark() -> None:
    """Less than what it may use in that window; later its grace is whole again."""
    beginner = Beginner()
    beginner.kernel.used_ns += 400
    beginner.next(used_ns=600, reported_ns=600)
    beginner.kernel.used_ns += 1450
    beginner.look()
    assert beginner.kernel.acts == []


def test_what_is_used_after_the_first_edge_counts_also_if_that_comes_while_the_kernel_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beginner = Beginner()
    beginner.publish(-1)

    def usage_ns() -> int:
        beginner.publish(0)
        beginner.kernel.used_ns += 900_000
        return beginner.kernel.used_ns

    monkeypatch.setattr(beginner.kernel, "usage_ns", usage_ns)
    beginner.mint(2_000_000)
    beginner.desk.enforce(2_000_000, 0, 0)
    assert beginner.kernel.acts == [Standing.DEMOTED]


def test_before_the_first_edge_of_one_that_begins_late_every_round_looks() -> None:
    beginner = Beginner()
    beginner.publish(-1)
    for _ in range(3):
        beginner.desk.next_check = 99
        beginner.kernel.used_ns += 1_000_000
        beginner.desk.enforce(0, 0, 0)
        assert beginner.desk.next_check == 0
    beginner.publish(0)
    beginner.look()
    assert beginner.kernel.acts == []
