"""The kill storm's choice of cases, and what it makes of what it saw."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from experiments.bench import crash
from experiments.bench.crash import VICTIMS, Aftermath, Case
from experiments.bench.figures import Tally

PAIRS = {(step, victim) for step, victims in VICTIMS.items() for victim in victims}
SEEDS = st.integers(0, crash.SEEDS)


def first(seed: int, count: int) -> list[Case]:
    return list(islice(crash.cases(seed), count))


@given(SEEDS, st.integers(1, 300))
def test_a_seed_repeats_its_cases(seed: int, count: int) -> None:
    assert first(seed, count) == first(seed, count)


@given(SEEDS)
def test_as_many_kills_as_there_are_pairs_meet_each_once(seed: int) -> None:
    assert {(case.step, case.victim) for case in first(seed, len(PAIRS))} == PAIRS


@given(SEEDS)
def test_fifty_kills_meet_every_step_and_every_victim(seed: int) -> None:
    cases = first(seed, 50)
    assert {case.step for case in cases} == VICTIMS.keys()
    assert {case.victim for case in cases} == {victim for _, victim in PAIRS}
    assert max(Counter(case.step for case in cases).values()) <= 6


def test_everything_that_was_left_is_counted_and_told_with_its_kill() -> None:
    clean = Aftermath(Case("run", "rtd", 0.1), reclaim_ns=30_000_000)
    leaky = Aftermath(Case("end", "client", 0.001), leaked=["loop loop3: x", "mount /m"])
    ongoing = Aftermath(Case("run", "relay", 0.1), went_on=True)
    found = {figure.name: figure for figure in crash.figures([clean, leaky, ongoing], 77)}
    assert (found["leaked"].value, found["leaked"].low, found["leaked"].high) == (2, 0, 2)
    assert (found["kills"].value, found["seed"].value) == (3, 77)
    assert [found[f"reclaim_{name}"].value for name in ("p50", "p99", "max")] == [30_000_000] * 3
    leaks = found["leaks"]
    assert isinstance(leaks, Tally)
    assert leaks.rows == (("client at end", "loop loop3: x"), ("client at end", "mount /m"))
    by_victim = found["leaked"]
    assert isinstance(by_victim, Tally)
    assert ("relay", "1", "1", "0", "", "") in by_victim.rows
    assert ("rtd", "1", "0", "0", "30", "30") in by_victim.rows


def test_a_storm_without_a_leak_lists_none() -> None:
    names = [figure.name for figure in crash.figures([Aftermath(Case("run", "rtd", 0.1), reclaim_ns=1)], 1)]
    assert "leaks" not in names
