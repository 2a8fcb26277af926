"""When the gate looks, and what that makes of programs that run whole, by turns, late, or never."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vcg.gate import REST_MIN_NS, is_spent, rest_ns

MS = 1_000_000

BUDGETS = st.integers(100_000, 20 * MS)
CPUS = st.integers(1, 4)
SPELLS = st.lists(st.tuples(st.integers(10_000, 5 * MS), st.integers(0, 4)), min_size=1, max_size=10)
"""How a program runs: for so long, on so many CPUs; over and over."""
WINDOW_NS = 30 * MS


def used_ns(spells: Sequence[tuple[int, int]], cpus: int, elapsed_ns: int) -> int:
    """CPU time that a program has used so long after its thaw."""
    rounds, rest_of_round_ns = divmod(elapsed_ns, sum(length for length, _ in spells))
    used = rounds * sum(length * min(busy, cpus) for length, busy in spells)
    for length, busy in spells:
        part_ns = min(length, rest_of_round_ns)
        used += part_ns * min(busy, cpus)
        rest_of_round_ns -= part_ns
    return used


def looked_on(spells: Sequence[tuple[int, int]], cpus: int, budget_ns: int, window_ns: int) -> tuple[int, int]:
    """CPU time used when the gate freezes, and how often it has looked."""
    now_ns, left_ns, looks = 0, budget_ns, 0
    while now_ns < window_ns and not is_spent(budget_ns, left_ns):
        now_ns = min(window_ns, now_ns + rest_ns(budget_ns, left_ns, cpus))
        left_ns = budget_ns - used_ns(spells, cpus, now_ns)
        looks += 1
    return budget_ns - left_ns, looks


@given(SPELLS, CPUS, BUDGETS)
def test_no_program_uses_much_more_than_its_credit(spells: list[tuple[int, int]], cpus: int, budget_ns: int) -> None:
    used, _ = looked_on(spells, cpus, budget_ns, WINDOW_NS)
    assert used <= budget_ns + max(budget_ns // 16 + 1, cpus * REST_MIN_NS)


@given(SPELLS, CPUS, BUDGETS)
def test_a_program_that_runs_on_gets_its_credit(spells: list[tuple[int, int]], cpus: int, budget_ns: int) -> None:
    used, _ = looked_on(spells, cpus, budget_ns, WINDOW_NS)
    assert used >= min(budget_ns - budget_ns // 16, used_ns(spells, cpus, WINDOW_NS))


@given(CPUS, BUDGETS)
def test_a_program_that_has_every_cpu_to_itself_takes_one_look(cpus: int, budget_ns: int) -> None:
    _, looks = looked_on([(MS, cpus)], cpus, budget_ns, WINDOW_NS)
    assert looks == 1


@given(SPELLS, CPUS, BUDGETS, st.integers(5 * MS, 50 * MS))
def test_looks_are_bounded_by_the_length_of_the_window(
    spells: list[tuple[int, int]], cpus: int, budget_ns: int, window_ns: int
) -> None:
    _, looks = looked_on(spells, cpus, budget_ns, window_ns)
    assert looks <= 1 + window_ns // max(REST_MIN_NS, budget_ns // 8 // cpus)


@given(CPUS, BUDGETS)
def test_a_program_that_sleeps_is_looked_at_as_often_as_its_credit_goes_into_the_window(
    cpus: int, budget_ns: int
) -> None:
    _, looks = looked_on([(MS, 0)], cpus, budget_ns, WINDOW_NS)
    assert looks == -(-WINDOW_NS // max(REST_MIN_NS, budget_ns // cpus))


def test_no_credit_is_spent_credit() -> None:
    assert is_spent(0, 0)
    assert is_spent(1000, -5)
    assert not is_spent(1, 1)
