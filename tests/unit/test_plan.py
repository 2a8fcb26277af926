"""Placement and credit: pure arithmetic over a testbed and the shape of a host."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vcg import config, harmonics, plan
from vcg.errors import HostError
from vcg.harmonics import Cadence
from vcg.plan import CLOCK_RESERVE, CPU_CAPACITY, HostShape, Plan

ONE, TWO = HostShape((0,), {0: 0}), HostShape((0, 1), {0: 0, 1: 0})
EIGHT = HostShape(tuple(range(8)), {cpu: cpu // 4 for cpu in range(8)})


def make(name: str = "default", host: HostShape = TWO, floor_ns: int | None = None, **overrides: Any) -> Plan:
    paths = {path.replace("__", "."): value for path, value in overrides.items()}
    return plan.make(config.load(name, paths), host, floor_ns=floor_ns)


def cpus(made: Plan) -> list[tuple[int, ...]]:
    return [d.cpus for d in made.dimensions]


def test_plan_survives_json() -> None:
    made = make(dimensions__d4__args={"share": 0.5}, dimensions__d5__devices=["/dev/null"])
    assert Plan.from_json(made.to_json()) == made
    assert config.from_mapping(Plan.from_json(made.to_json()).testbed).resolved() == made.testbed


def test_on_two_cpus_dimensions_alternate_and_the_clocks_cpu_carries_fewer() -> None:
    made = make()
    assert made.rtd.cpus == made.orchestrator.cpus == made.housekeeping.cpus == (0,)
    assert cpus(made) == [(1,), (0,), (1,), (0,), (1,), (0,), (1,), (0,), (1,)]
    assert (made.rtd.priority, made.orchestrator.priority, made.housekeeping.priority) == (90, 85, 0)


def test_on_one_cpu_everything_shares_it() -> None:
    assert set(cpus(make(host=ONE))) == {(0,)}


def test_larger_hosts_keep_dimensions_off_the_housekeeping_cpu() -> None:
    made = make(host=EIGHT)
    assert cpus(made) == [(1,), (2,), (3,), (4,), (5,), (6,), (7,), (1,), (2,)]
    assert [d.node for d in made.dimensions] == [0, 0, 0, 1, 1, 1, 1, 0, 0]


@given(st.integers(1, 16), st.sampled_from(sorted({*config.ready_testbeds()} - {"programs"})))  # it places its own
def test_automatic_placement_is_balanced_and_spreads_triads(count: int, name: str) -> None:
    host = HostShape(tuple(range(count)), dict.fromkeys(range(count), 0))
    made = make(name, host)
    used = [cpu for (cpu,) in cpus(made)]
    pool = range(1, count) if count >= plan.SEPARATE_CPUS_FROM else range(count)
    loads = [used.count(cpu) for cpu in pool]
    assert sum(loads) == 9
    assert max(loads) - min(loads) <= 1
    for at in (0, 3, 6):
        assert len(set(used[at : at + 3])) == min(3, len(pool))


def test_placement_obeys_the_testbed() -> None:
    made = make(
        host=EIGHT,
        placement__rtd_cpu=5,
        placement__orchestrator_cpu=6,
        placement__housekeeping_cpus=[6, 7],
        placement__dimension_cpus=[1, 2],
        dimensions__d1__cpus=[3, 4],
        dimensions__d2__node=1,
        dimensions__d9__cpus=[2],
    )
    assert (made.rtd.cpus, made.orchestrator.cpus, made.housekeeping.cpus) == ((5,), (6,), (6, 7))
    assert cpus(made)[0] == (3, 4)
    assert made.dimensions[1].node == 1
    assert {cpu for allowed in cpus(made)[1:] for cpu in allowed} == {1, 2}


def test_dimension_with_a_node_gets_a_cpu_of_that_node() -> None:
    made = make(host=EIGHT, dimensions__d4__node=1, dimensions__d5__node=0)
    assert made.dimensions[3].cpus[0] in (4, 5, 6, 7)
    assert made.dimensions[4].cpus[0] in (1, 2, 3)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dimensions.d4.cpus", [1, 7], "d4: cpus 7: expected CPUs that may be used on this host: 0, 1"),
        ("dimensions.d4.node", 1, "d4: node 1: expected a memory node of this host: 0"),
        ("placement.rtd_cpu", 2, "placement.rtd_cpu 2: expected CPUs that may be used on this host: 0, 1"),
        ("placement.housekeeping_cpus", [3], "placement.housekeeping_cpus 3: expected CPUs that may be used on this"),
        (
            "dimensions.d4.devices",
            ["/dev/none"],
            "d4: device /dev/none: expected a device node that exists on this host",
        ),
        ("dimensions.d4.devices", ["/dev/shm"], "d4: device /dev/shm: expected a device node that exists on this host"),
    ],
)
def test_what_the_host_lacks_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(HostError) as caught:
        plan.make(config.load("default", {path: value}), TWO)
    assert str(caught.value).startswith(message)


def test_everything_that_the_host_lacks_is_named_at_once() -> None:
    testbed = config.load("default", {"dimensions.d4.cpus": [9], "dimensions.d5.devices": ["/dev/x"]})
    with pytest.raises(HostError) as caught:
        plan.make(testbed, TWO, floor_ns=4_000_000, is_device=lambda path: False)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["d4", "d5", "d1, d2, d3"]


def test_window_below_the_floor_is_refused() -> None:
    with pytest.raises(HostError) as caught:
        make(floor_ns=250_000, base_window="600us")
    assert str(caught.value) == (
        "d1, d2, d3: window 200us: expected at least the RTD's floor of 250us on this host (run: vcg doctor): "
        "make base_window longer"
    )


PROGRAM = {"gate": "freezer", "exec": ["/bin/sh"], "binds": ["/bin"]}


@pytest.mark.parametrize(
    ("base_window", "floors", "limit"),
    [
        ("4ms", {}, "5ms with the freezer gate"),
        ("4ms", {"floor_ns": 250_000, "freezer_floor_ns": 5_000_000}, "5ms with the freezer gate"),
        ("9ms", {"freezer_floor_ns": 10_000_000}, "the freezer gate's floor of 10ms on this host (run: vcg doctor)"),
    ],
    ids=["floor not known", "floor below", "floor above"],
)
def test_a_window_too_short_for_the_freezer_gate_is_refused(
    base_window: str, floors: dict[str, int], limit: str
) -> None:
    dimensions = {"d1": PROGRAM, "d2": {}}
    testbed = config.from_mapping({"name": "short", "base_window": base_window, "dimensions": dimensions})
    with pytest.raises(HostError) as caught:
        plan.make(testbed, TWO, **floors)
    shown = f"d1: window {base_window}: expected at least {limit}: make base_window longer"
    assert str(caught.value) == shown


def test_at_the_freezer_gates_floor_a_window_is_long_enough() -> None:
    testbed = config.from_mapping({"name": "enough", "base_window": "10ms", "dimensions": {"d1": PROGRAM}})
    assert plan.make(testbed, TWO, freezer_floor_ns=10_000_000).dimensions[0].period_ns == 10_000_000


def test_all_windows_below_the_floor_are_named_in_one_line() -> None:
    with pytest.raises(HostError) as caught:
        make(floor_ns=250_000, base_window="30us")
    shown = "d1, d2, d3: window 10us; d4, d5, d6: window 30us; d7, d8, d9: window 90us: expected at least"
    assert str(caught.value).startswith(shown)
    assert len(str(caught.value).splitlines()) == 1


def test_edges_closer_than_the_floor_are_refused_although_each_window_is_longer() -> None:
    # 27 edges in three base windows, and three of the orchestrator.
    with pytest.raises(HostError) as caught:
        make(floor_ns=100_001, base_window="1ms")
    assert str(caught.value) == (
        "edges follow each other every 100us on average, the orchestrator's included: expected at least the RTD's "
        "floor of 100.001us on this host (run: vcg doctor): make base_window longer, set stagger = false, or take "
        "fewer dimensions"
    )
    assert make(floor_ns=100_000, base_window="1ms").base_window_ns == 1_000_000
    assert make(floor_ns=250_000, base_window="1ms", stagger=False).base_window_ns == 1_000_000


def test_every_window_is_an_edge_where_the_pattern_never_repeats() -> None:
    rhythm = [Cadence(Fraction(1_618_033_989)), Cadence(Fraction(2_718_281_829)), Cadence(Fraction(1_000_000_000))]
    per_ns = sum(1 / cadence.period for cadence in rhythm) + Fraction(1, 500_000_000)
    assert plan.mean_spacing(rhythm, 500_000_000, 1) == 1 / per_ns


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 11)), min_size=1, max_size=6), st.integers(1, 12))
def test_mean_spacing_counts_each_edge_of_a_hyperperiod_once(cadences: list[tuple[int, int]], base_window: int) -> None:
    rhythm = [Cadence(Fraction(period), Fraction(phase % period)) for period, phase in cadences]
    assume(harmonics.fits_table(rhythm))  # where it does not, every window counts
    span = 27_720  # a multiple of every period up to 12
    edges = {start for c in rhythm for start in range(int(c.phase), span, int(c.period))}
    for rounds in (1, 3):
        expected = span / (len(edges) + Fraction(span * rounds, base_window))
        assert plan.mean_spacing(rhythm, base_window, rounds) == expected


def test_without_a_known_floor_nothing_is_too_fast() -> None:
    assert make(floor_ns=None, base_window="10us").base_window_ns == 10_000


def test_cadences_are_exact_and_staggered() -> None:
    made = make()
    assert plan.cadences(made)[1] == Cadence(Fraction(2_000_000), Fraction(2_000_000, 3))
    assert plan.cadences(made)[8] == Cadence(Fraction(18_000_000), Fraction(12_000_000))
    assert made.hyperperiod_ns == 18_000_000
    aligned = make(stagger=False)
    assert {d.phase for d in aligned.dimensions} == {(0, 1)}
    explicit = make(dimensions__d1__phase="1/4")
    assert explicit.dimensions[0].phase == (500_000, 1)


def test_incommensurate_cadences_have_no_hyperperiod() -> None:
    made = make(triads__inner__harmonic="1.6180339887")
    assert made.hyperperiod_ns is None
    assert Fraction(*made.dimensions[0].period) == 6_000_000 / Fraction("1.6180339887")
    assert made.dimensions[0].harmonic == "1.6180339887"


def test_orchestrator_works_far_from_every_edge() -> None:
    assert make("edge").orchestrator_phase_ns == 3_000_000
    assert make().orchestrator_phase_ns == 999_999


def test_credit_divides_each_cpu_by_amplitude() -> None:
    made = make("edge", dimensions__d1__amplitude=2)
    of = {d.name: d.credit_ns for d in made.dimensions}
    assert of["d1"] == 2 * of["d3"] == 2 * of["d9"] == 6_000_000 * 9 // 10 * 2 // 6
    assert of["d2"] == of["d8"] == 6_000_000 * 8 // 10 // 4


def test_each_dimension_has_its_own_bit() -> None:
    made = make()
    assert sum(d.bit for d in made.dimensions) == 0b111_111_111


@st.composite
def claims(draw: st.DrawFn) -> tuple[list[Fraction], list[tuple[int, ...]], dict[int, Fraction]]:
    count = draw(st.integers(1, 5))
    sets = st.sets(st.integers(0, count - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
    allowed = draw(st.lists(sets, min_size=1, max_size=12))
    amplitude = st.fractions(Fraction(1, 100), 100, max_denominator=100)
    amplitudes = draw(st.lists(amplitude, min_size=len(allowed), max_size=len(allowed)))
    rtd = draw(st.integers(0, count - 1))
    return amplitudes, allowed, {c: CPU_CAPACITY - (CLOCK_RESERVE if c == rtd else 0) for c in range(count)}


@given(claims())
def test_no_set_of_cpus_is_promised_more_than_it_has(
    claim: tuple[list[Fraction], list[tuple[int, ...]], dict[int, Fraction]],
) -> None:
    amplitudes, allowed, capacities = claim
    shares = plan.credit_shares(amplitudes, allowed, capacities)
    for size in range(1, len(capacities) + 1):
        for group in combinations(capacities, size):
            confined = (share for share, own in zip(shares, allowed, strict=True) if set(own) <= set(group))
            assert sum(confined, Fraction(0)) <= sum(capacities[cpu] for cpu in group)
    assert all(0 < share <= 1 for share in shares)


@given(claims())
def test_dimensions_on_the_same_cpus_share_by_amplitude(
    claim: tuple[list[Fraction], list[tuple[int, ...]], dict[int, Fraction]],
) -> None:
    amplitudes, allowed, capacities = claim
    shares = plan.credit_shares(amplitudes, allowed, capacities)
    for (a, share_a, own_a), (b, share_b, own_b) in combinations(zip(amplitudes, shares, allowed, strict=True), 2):
        if own_a == own_b and max(share_a, share_b) < 1:
            assert share_a * b == share_b * a


@given(claims())
def test_one_cpu_is_given_out_whole(claim: tuple[list[Fraction], list[tuple[int, ...]], dict[int, Fraction]]) -> None:
    amplitudes, _, capacities = claim
    shares = plan.credit_shares(amplitudes, [(0,)] * len(amplitudes), capacities)
    assert sum(shares) == capacities[0]
