"""From what programs got and did to their shares; pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from experiments.bench.programs import AMPLITUDES, DIMENSIONS, Measured, ratios, turns

SPEEDS = st.fixed_dictionaries({program: st.floats(0.1, 1e6) for program in DIMENSIONS})


def arms(speeds: dict[str, float], thrift: dict[str, float]) -> list[dict[str, Measured]]:
    """Three arms in which each program gets its share of ten seconds, times its thrift, and works at its speed."""
    return [
        {p: Measured(int(1e10 * turn[p] / 7 * thrift[p]), speeds[p] * turn[p] / 7 * thrift[p]) for p in turn}
        for turn in turns()
    ]


def test_in_a_block_every_program_has_every_amplitude_once() -> None:
    order = turns()
    assert all(sorted(turn.values()) == sorted(AMPLITUDES) for turn in order)
    for program in DIMENSIONS:
        assert sorted(turn[program] for turn in order) == sorted(AMPLITUDES)


@given(SPEEDS)
def test_programs_that_get_and_do_their_share_are_perfect_at_any_speed(speeds: dict[str, float]) -> None:
    found = ratios(arms(speeds, dict.fromkeys(DIMENSIONS, 1.0)), turns())
    assert len(found) == 2 * len(DIMENSIONS) * len(AMPLITUDES)
    assert all(abs(ratio - 1) < 1e-6 for ratio in found.values())


@given(SPEEDS, st.lists(st.floats(0.1, 1), min_size=3, max_size=3))
def test_what_the_host_takes_away_from_an_arm_does_not_count(speeds: dict[str, float], left: list[float]) -> None:
    whole = arms(speeds, dict.fromkeys(DIMENSIONS, 1.0))
    cut = [
        {p: Measured(int(one.cpu_ns * part), one.rate * part) for p, one in arm.items()}
        for arm, part in zip(whole, left, strict=True)
    ]
    assert all(abs(ratio - 1) < 1e-6 for ratio in ratios(cut, turns()).values())


def test_a_program_that_gets_too_little_shows_in_its_cpu_and_one_that_does_too_little_in_its_work() -> None:
    order = turns()
    measured = arms(dict.fromkeys(DIMENSIONS, 100.0), dict.fromkeys(DIMENSIONS, 1.0))
    at = next(k for k, turn in enumerate(order) if turn["redis"] == 4)
    whole = measured[at]["redis"]
    measured[at]["redis"] = Measured(whole.cpu_ns, whole.rate / 2)
    lazy = ratios(measured, order)
    assert abs(lazy["redis_cpu_4"] - 1) < 1e-6
    assert abs(lazy["redis_work_4"] - (2 / 5) / (4 / 7)) < 1e-6
    measured[at]["redis"] = Measured(whole.cpu_ns // 2, whole.rate / 2)
    starved = ratios(measured, order)
    assert abs(starved["redis_cpu_4"] - (2 / 5) / (4 / 7)) < 1e-6
    assert starved["redis_work_4"] < 1
