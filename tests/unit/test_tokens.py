"""The ledger under arbitrary demand: books that balance, floors that hold, shares that follow the amplitudes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcg.tokens import PPB, Account, Ledger, Terms

ROUND_NS = 1_000_000
HORIZON_ROUNDS = 32
CAPACITY = Fraction(9, 10)
CPU = (1,)


@dataclass(frozen=True)
class Spec:
    """One dimension of a simulated CPU: its windows last ``rounds`` rounds and begin at ``phase_ns``."""

    name: str
    rounds: int = 1
    phase_ns: int = 0
    weight: int = 1
    triad: str = ""
    burst: Fraction = Fraction(0)
    floor: Fraction = Fraction(1, 4)
    ceiling: Fraction = Fraction(4)

    @property
    def period_ns(self) -> int:
        return self.rounds * ROUND_NS


Demand = Callable[[str, int], int]
"""Name, window -> CPU time that the dimension would use if its token allowed it, and what it uses beyond that."""


class Cpu:
    """Rounds as the orchestrator works them, over dimensions that use what they want of what they may."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.specs = specs
        weights = sum(spec.weight for spec in specs)
        self.credits = {s.name: int(CAPACITY * s.weight / weights * s.period_ns) for s in specs}
        terms = [Terms(s.name, CPU, s.triad, (s.period_ns, 1), s.burst, s.floor, s.ceiling) for s in specs]
        horizon_ns = HORIZON_ROUNDS * ROUND_NS
        self.ledger = Ledger(terms, list(self.credits.values()), [s.weight for s in specs], horizon_ns)
        self.accounts = {account.terms.name: account for account in self.ledger.accounts}
        self.rounds = 0
        self.used: dict[str, list[int]] = {s.name: [] for s in specs}
        self.budgets: dict[str, list[int]] = {s.name: [] for s in specs}
        self.borrowed: dict[str, list[int]] = {s.name: [] for s in specs}

    def run(self, rounds: int, demand: Demand, overshoot: Demand = lambda name, window: 0) -> None:
        for _ in range(rounds):
            now_ns = self.rounds * ROUND_NS + ROUND_NS // 2
            for spec in self.specs:
                account, used = self.accounts[spec.name], self.used[spec.name]
                while len(used) < len(self.budgets[spec.name]) and self._end_ns(spec, len(used)) <= now_ns:
                    window = len(used)
                    wanted = demand(spec.name, window)
                    if wanted >= 0:
                        use = min(wanted, self.budgets[spec.name][window]) + overshoot(spec.name, window)
                        account.settle(window, use)
                    else:
                        use = 0
                        account.expire_before(window + 1)
                    used.append(use)
            self.ledger.turn(now_ns)
            by_name = {spec.name: spec for spec in self.specs}
            market = self.ledger.markets[0]
            order = market.sort()
            for account in (*order, *(a for a in market.accounts if a not in order)):
                spec = by_name[account.terms.name]
                budgets = self.budgets[spec.name]
                while self._start_ns(spec, len(budgets)) < (self.rounds + 2) * ROUND_NS:
                    budget_ns, borrowed_ns = account.book(len(budgets))
                    budgets.append(budget_ns)
                    self.borrowed[spec.name].append(borrowed_ns)
            self.rounds += 1

    def _start_ns(self, spec: Spec, window: int) -> int:
        return spec.phase_ns + window * spec.period_ns

    def _end_ns(self, spec: Spec, window: int) -> int:
        return self._start_ns(spec, window + 1)

    def fresh_ns(self, account: Account) -> int:
        return account.own_ns - account.given_ns + account.borrowed_ns + account.returned_ns

    def outstanding_ns(self, account: Account) -> int:
        return account.started_ns(account.next_window - 1)


def greedy(name: str, window: int) -> int:
    return 1 << 60


def between(*names: str) -> Demand:
    """These want all that they can get, the others nothing."""
    return lambda name, window: greedy(name, window) if name in names else 0


@st.composite
def specs(draw: st.DrawFn, most: int = 5) -> list[Spec]:
    found = []
    for index in range(draw(st.integers(1, most))):
        rounds = draw(st.sampled_from([1, 2, 3, 9]))
        found.append(
            Spec(
                f"d{index + 1}",
                rounds,
                draw(st.integers(0, rounds * ROUND_NS - 1)),
                draw(st.integers(1, 9)),
                draw(st.sampled_from(["", "a", "b"])),
                Fraction(draw(st.integers(0, 4)), 2),
                Fraction(draw(st.integers(1, 7)), 8),
                Fraction(draw(st.integers(2, 12)), 2),
            )
        )
    return found


@st.composite
def traces(draw: st.DrawFn) -> tuple[list[Spec], Demand, Demand]:
    """Dimensions whose wants change every few windows: nothing, some, everything; now and then one is not entered."""
    chosen = draw(specs())
    wants = {
        s.name: draw(st.lists(st.sampled_from([-1, 0, 1, 3, 8, 12, 40, 1000]), min_size=1, max_size=12)) for s in chosen
    }
    beyond = {s.name: draw(st.lists(st.sampled_from([0, 0, 0, 1, 30]), min_size=1, max_size=7)) for s in chosen}
    credit = Cpu(chosen).credits

    def demand(name: str, window: int) -> int:
        eighths = wants[name][window // 5 % len(wants[name])]
        return -1 if eighths < 0 else credit[name] * eighths // 8

    def overshoot(name: str, window: int) -> int:
        return credit[name] * beyond[name][window % len(beyond[name])] // 10

    return chosen, demand, overshoot


# ── laws, under any demand ───────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=100)
@given(traces())
def test_every_nanosecond_is_used_expired_carried_or_owed(trace: tuple[list[Spec], Demand, Demand]) -> None:
    chosen, demand, overshoot = trace
    cpu = Cpu(chosen)
    cpu.run(150, demand, overshoot)
    for account in cpu.accounts.values():
        out_ns = cpu.outstanding_ns(account)
        accounted = account.used_ns + account.expired_ns - account.forgiven_ns + account.balance_ns + out_ns
        assert cpu.fresh_ns(account) == accounted
        assert account.minted == account.settled + account.expired + account.next_window - 1 - account.settled_through


@settings(deadline=None, max_examples=100)
@given(traces())
def test_credit_minted_never_exceeds_capacity(trace: tuple[list[Spec], Demand, Demand]) -> None:
    chosen, demand, overshoot = trace
    cpu = Cpu(chosen)
    for _ in range(30):
        cpu.run(5, demand, overshoot)
        end_ns = max(s.phase_ns + len(cpu.budgets[s.name]) * s.period_ns for s in chosen)
        fresh_ns = sum(cpu.fresh_ns(account) for account in cpu.accounts.values())
        assert fresh_ns <= CAPACITY * end_ns
        assert all(account.lent_ns + account.repaid_ns <= account.given_ns for account in cpu.accounts.values())
        assert sum(account.rate_ppb for account in cpu.accounts.values()) <= CAPACITY * PPB
    for spec in chosen:
        most = spec.period_ns * CAPACITY
        assert all(budget <= most for budget in cpu.budgets[spec.name])


@settings(deadline=None, max_examples=100)
@given(traces())
def test_a_token_holds_at_least_the_floor_and_at_most_the_ceiling_and_a_burst(
    trace: tuple[list[Spec], Demand, Demand],
) -> None:
    chosen, demand, overshoot = trace
    cpu = Cpu(chosen)
    cpu.run(150, demand, overshoot)
    for spec in chosen:
        own = cpu.credits[spec.name]
        for budget in cpu.budgets[spec.name]:
            assert own * spec.floor - 1 <= budget <= own * (spec.ceiling + spec.burst) + 1


@settings(deadline=None, max_examples=100)
@given(traces())
def test_loans_are_paid_back_waived_or_owed(trace: tuple[list[Spec], Demand, Demand]) -> None:
    chosen, demand, overshoot = trace
    cpu = Cpu(chosen)
    cpu.run(150, demand, overshoot)
    accounts = cpu.accounts.values()
    assert sum(a.lent_ns for a in accounts) == sum(a.borrowed_ns for a in accounts)
    assert sum(a.repaid_ns for a in accounts) == sum(a.returned_ns for a in accounts)
    for account in accounts:
        assert account.borrowed_ns == account.repaid_ns + account.waived_ns + account.market.owed_ns(account)
        assert sum(cpu.borrowed[account.terms.name]) == account.borrowed_ns
    cpu.run(2 * HORIZON_ROUNDS + 5 * max(s.rounds for s in chosen), lambda name, window: 0)
    for account in accounts:
        assert account.market.owed_ns(account) == 0


@settings(deadline=None, max_examples=100)
@given(traces())
def test_debt_is_bounded_and_paid_once_it_stops_growing(trace: tuple[list[Spec], Demand, Demand]) -> None:
    chosen, demand, overshoot = trace
    cpu = Cpu(chosen)
    cpu.run(100, demand, overshoot)
    for spec in chosen:
        account = cpu.accounts[spec.name]
        assert -account.debt_max_ns <= account.balance_ns <= 2 * spec.burst * cpu.credits[spec.name]
    cpu.run(HORIZON_ROUNDS + 3 * max(s.rounds for s in chosen), lambda name, window: 0)
    for account in cpu.accounts.values():
        assert account.balance_ns >= 0


@settings(deadline=None, max_examples=100)
@given(traces(), st.randoms(use_true_random=False))
def test_the_order_of_dimensions_does_not_matter(trace: tuple[list[Spec], Demand, Demand], random: object) -> None:
    chosen, demand, overshoot = trace
    shuffled = list(chosen)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ours, theirs = Cpu(chosen), Cpu(shuffled)
    for cpu in (ours, theirs):
        cpu.run(80, demand, overshoot)
    assert ours.budgets == theirs.budgets
    assert ours.used == theirs.used


@settings(deadline=None, max_examples=100)
@given(specs(), st.integers(0, 30), traces())
def test_under_saturation_shares_converge_to_the_amplitudes(
    chosen: list[Spec], overshoot: int, before: tuple[list[Spec], Demand, Demand]
) -> None:
    cpu = Cpu(chosen)
    history = before[1]
    known = {s.name for s in before[0]}
    cpu.run(40, lambda name, window: history(name, window) if name in known else 0)
    cpu.run(3 * HORIZON_ROUNDS, greedy)
    marks = {name: len(used) for name, used in cpu.used.items()}
    cpu.run(20 * max(s.rounds for s in chosen), greedy, lambda name, window: cpu.credits[name] * overshoot // 1000)
    rates = {s.name: sum(cpu.used[s.name][marks[s.name] :]) for s in chosen}
    for spec in chosen:
        windows = len(cpu.used[spec.name]) - marks[spec.name]
        own_ns = cpu.credits[spec.name] * windows
        # What was carried on pays for excess first; that of the last three windows is not known yet, or not taken back.
        most_ns = 2 * spec.burst * cpu.credits[spec.name] + 3 * cpu.credits[spec.name] * overshoot // 1000 + windows
        assert abs(rates[spec.name] - own_ns) <= most_ns


# ── borrowing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hungry_dimension_gets_what_idle_ones_can_spare_up_to_its_ceiling() -> None:
    cpu = Cpu([Spec("d1", ceiling=Fraction(3)), Spec("d2"), Spec("d3"), Spec("d4")])
    cpu.run(40, between("d1"))
    own = cpu.credits["d1"]
    assert abs(cpu.budgets["d1"][-1] - 3 * own) <= 3
    assert min(cpu.budgets["d2"][-1], cpu.budgets["d3"][-1]) >= own // 4


def test_the_triad_lends_before_outsiders_do() -> None:
    cpu = Cpu([Spec("d1", triad="a", ceiling=Fraction(3, 2)), Spec("d2", triad="a"), Spec("d3"), Spec("d4")])
    cpu.run(20, between("d1"))
    before = {name: account.lent_ns for name, account in cpu.accounts.items()}
    cpu.run(20, between("d1"))
    lent = {name: account.lent_ns - before[name] for name, account in cpu.accounts.items()}
    assert lent["d2"] > 0
    assert lent["d3"] == lent["d4"] == 0


def test_where_the_triad_is_not_enough_outsiders_lend_too() -> None:
    cpu = Cpu([Spec("d1", triad="a"), Spec("d2", triad="a"), Spec("d3"), Spec("d4")])
    cpu.run(40, between("d1"))
    assert min(cpu.accounts[name].lent_ns for name in ("d2", "d3", "d4")) > 0


def test_several_hungry_ones_share_by_amplitude() -> None:
    cpu = Cpu([Spec("d1", weight=1), Spec("d2", weight=2), Spec("d3", weight=6)])
    cpu.run(60, between("d1", "d2"))
    borrowed = {name: cpu.borrowed[name][-1] for name in ("d1", "d2")}
    assert borrowed["d1"] > 0
    assert abs(borrowed["d2"] - 2 * borrowed["d1"]) <= 4


def test_nobody_borrows_across_cpus() -> None:
    terms = [Terms(f"d{cpu}", (cpu,), "a", (ROUND_NS, 1), Fraction(0), Fraction(0), Fraction(4)) for cpu in range(2)]
    ledger = Ledger(terms, [1000, 1000], [1, 1], 10 * ROUND_NS)
    for window in range(20):
        ledger.turn(window * ROUND_NS)
        budgets = [account.book(window)[0] for account in ledger.accounts]
        assert budgets == [1000, 1000]
        ledger.accounts[0].settle(window, 1000)
        ledger.accounts[1].settle(window, 0)


def test_a_longer_window_borrows_nothing_from_a_shorter_one() -> None:
    cpu = Cpu([Spec("d1", rounds=9), Spec("d2", rounds=1)])
    cpu.run(90, between("d1"))
    assert cpu.accounts["d1"].borrowed_ns == 0


@settings(deadline=None)
@given(specs())
def test_a_lender_has_its_own_credit_back_one_round_after_it_is_known_to_want_it(chosen: list[Spec]) -> None:
    cpu = Cpu(chosen)
    lender = chosen[0]
    others = [s.name for s in chosen[1:]]
    cpu.run(20 * max(s.rounds for s in chosen), between(*others))
    woke = len(cpu.used[lender.name])
    cpu.run(4 * max(s.rounds for s in chosen), greedy)
    # Window `woke` is the first that uses all its token; the next is out already when that is known. Here a report
    # comes at the very end of its window; where that is just after a round, it is known a round later.
    late = 2 if lender.phase_ns % ROUND_NS <= ROUND_NS // 2 else 3
    assert all(budget >= cpu.credits[lender.name] for budget in cpu.budgets[lender.name][woke + late :])


def test_who_lent_is_paid_back_from_the_debtors_own_credit_within_the_horizon() -> None:
    cpu = Cpu([Spec("d1"), Spec("d2")])
    cpu.run(HORIZON_ROUNDS - 2, between("d1"))
    owed = cpu.accounts["d1"].borrowed_ns
    assert owed > 0
    cpu.run(2 * HORIZON_ROUNDS, greedy)
    d1, d2 = cpu.accounts["d1"], cpu.accounts["d2"]
    assert d2.returned_ns == d1.repaid_ns > 0
    assert d1.repaid_ns + d1.waived_ns == d1.borrowed_ns


# ── carrying on, debt ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_left_over_is_carried_into_later_windows_up_to_the_depth() -> None:
    cpu = Cpu([Spec("d1", burst=Fraction(1, 2)), Spec("d2")])
    cpu.run(10, between())
    own = cpu.credits["d1"]
    assert cpu.budgets["d1"][-1] == own + own // 2
    assert cpu.budgets["d2"][-1] == own


def test_an_overrun_is_taken_out_of_the_next_windows_but_never_below_the_floor() -> None:
    cpu = Cpu([Spec("d1", ceiling=Fraction(1))])
    own = cpu.credits["d1"]
    cpu.run(30, greedy, lambda name, window: 2 * own if window == 10 else 0)
    budgets = cpu.budgets["d1"]
    assert sum(own - budget for budget in budgets) == 2 * own
    assert min(budgets) == -(-own // 4)
    assert budgets[-1] == own


def test_a_window_that_was_not_entered_carries_nothing_on() -> None:
    cpu = Cpu([Spec("d1", burst=Fraction(1))])
    cpu.run(20, lambda name, window: -1)
    assert cpu.accounts["d1"].balance_ns == 0
    assert set(cpu.budgets["d1"]) == {cpu.credits["d1"]}
    assert cpu.accounts["d1"].expired == 19


def test_who_is_absent_wants_nothing_and_its_credit_is_lent() -> None:
    cpu = Cpu([Spec("d1"), Spec("d2")])
    cpu.run(10, greedy)
    cpu.run(10, lambda name, window: greedy(name, window) if name == "d1" else -1)
    assert cpu.budgets["d1"][-1] > cpu.credits["d1"]


# ── what a router goes by ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dimension_has_room_while_it_leaves_credit_over() -> None:
    cpu = Cpu([Spec("d1"), Spec("d2")])
    own = cpu.credits["d1"]
    cpu.run(10, lambda name, window: own // 2)
    account = cpu.accounts["d1"]
    assert account.room_ns(account.settled_through + 1) == own - own // 2 * 5 // 4


@pytest.mark.parametrize("state", ["hungry", "in debt", "behind"])
def test_a_dimension_that_cannot_keep_up_has_no_room(state: str) -> None:
    cpu = Cpu([Spec("d1"), Spec("d2")])
    own = cpu.credits["d1"]
    behind = 3 if state == "behind" else 0
    if state == "hungry":
        cpu.run(10, greedy)
    else:
        cpu.run(10, lambda name, window: own // 2, lambda name, window: own if state == "in debt" else 0)
    account = cpu.accounts["d1"]
    assert account.room_ns(account.settled_through + 1 + behind) == 0
    assert account.behind(account.settled_through + 1 + behind) == behind


# ── changes, refusals ────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_amplitude_counts_from_the_next_token_on() -> None:
    cpu = Cpu([Spec("d1"), Spec("d2")])
    cpu.run(5, greedy)
    cpu.ledger.tune([100_000, 700_000], [1, 7])
    minted = len(cpu.budgets["d1"])
    cpu.run(5, greedy)
    assert set(cpu.budgets["d1"][minted:]) == {100_000}
    assert set(cpu.budgets["d2"][minted:]) == {700_000}


def test_another_amplitude_ends_what_passes_by_the_old_ones() -> None:
    cpu = Cpu([Spec("d1"), Spec("d2"), Spec("d3")])
    cpu.run(20, between("d1"))
    assert cpu.accounts["d2"].give_ns > 0
    cpu.ledger.tune([290_000, 10_000, 290_000], [29, 1, 29])
    minted = len(cpu.budgets["d2"])
    cpu.run(20, between("d1"))
    assert min(cpu.budgets["d2"][minted:]) >= 2_500
    assert sum(cpu.budgets[name][-1] for name in ("d1", "d2", "d3")) <= 590_000


def alone() -> Account:
    return Cpu([Spec("d1")]).accounts["d1"]


def test_a_window_is_minted_once_and_in_order() -> None:
    account = alone()
    account.book(0)
    for wrong in (0, 2):
        with pytest.raises(ValueError, match=f"window {wrong}: expected 1"):
            account.book(wrong)


def test_a_report_is_accepted_once_and_only_for_a_minted_window() -> None:
    account = alone()
    account.book(0)
    account.settle(0, 10)
    assert account.refuses(0)
    assert account.refuses(1)
    assert account.refuses(-1)
    with pytest.raises(ValueError, match="window 0"):
        account.settle(0, 10)
    assert account.used_ns == 10


def test_what_was_promised_is_minted_as_it_was_promised() -> None:
    account = alone()
    account.book(0)
    account.settle(0, 3 * account.credit_ns)
    assert account.book(1, offered_ns=account.credit_ns) == (account.credit_ns, 0)
    assert account.book(2)[0] < account.credit_ns


def test_equal_dimensions_are_treated_alike_in_any_order() -> None:
    names = ("d1", "d2", "d3")
    seen = set()
    for order in permutations(names):
        cpu = Cpu([Spec(name) for name in order])
        cpu.run(30, between("d1", "d2"))
        seen.add((cpu.budgets["d1"][-1], cpu.budgets["d2"][-1], cpu.budgets["d3"][-1]))
    assert len(seen) == 1
    ((first, second, _),) = seen
    assert first == second
