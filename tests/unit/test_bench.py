"""The pure parts of the benchmarks: pairing, medians, ratios, and reading what the peers print."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench import cyclictest, edge, runtime
from experiments.bench.cli import readable, readable_ratio
from experiments.bench.figures import comparison, figure, interleave, quantile
from vcg import shm

LATENCIES = st.lists(st.integers(1, 10**9), min_size=1, max_size=50)


def test_two_arms_alternate_as_abba() -> None:
    order: list[str] = []
    interleave({name: partial(order.append, name) for name in "ab"}, runs=4)
    assert "".join(order) == "abbaabba"


@given(st.integers(1, 5), st.integers(1, 6))
def test_every_arm_runs_once_in_each_block(arms: int, runs: int) -> None:
    order: list[int] = []

    def run(arm: int) -> int:
        order.append(arm)
        return arm

    samples = interleave({str(arm): partial(run, arm) for arm in range(arms)}, runs)
    blocks = [order[i : i + arms] for i in range(0, len(order), arms)]
    assert all(sorted(block) == list(range(arms)) for block in blocks)
    assert samples == {str(arm): [arm] * runs for arm in range(arms)}


def test_progress_names_the_arm_and_the_run() -> None:
    told: list[str] = []
    interleave({"ours": lambda: 1, "theirs": lambda: 2}, 2, told.append)
    assert told == ["ours, run 1 of 2", "theirs, run 1 of 2", "theirs, run 2 of 2", "ours, run 2 of 2"]


@given(LATENCIES)
def test_a_figure_is_the_median_of_its_runs_between_the_extremes(values: list[int]) -> None:
    made = figure("f", "ns", values)
    assert (made.value, made.low, made.high) == (median(values), min(values), max(values))


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)), min_size=1, max_size=20))
def test_a_ratio_is_that_of_the_medians_and_lies_beside_the_extremes_of_the_pairs(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    made = comparison("c", "ns", ours, "peer", theirs)
    assert made.ratio == median(ours) / median(theirs)
    assert made.ratio_low == min(a / b for a, b in pairs)
    assert made.ratio_high == max(a / b for a, b in pairs)


def test_blocks_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        comparison("c", "ns", [1.0, 2.0], "peer", [1.0])


def test_a_comparison_prints_what_the_figures_of_the_command_promise() -> None:
    printed = comparison("c", "ns", [2.0], "peer", [1.0]).as_dict()
    assert {"name", "value", "unit", "low", "high", "peer", "peer_value", "ratio"} <= printed.keys()


@given(LATENCIES, st.floats(0, 1))
def test_a_quantile_is_a_sample_with_at_most_its_share_below(samples: list[int], q: float) -> None:
    value = quantile(samples, q)
    assert value in samples
    assert sum(sample < value for sample in samples) <= q * len(samples)


def test_a_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


OUTPUT = """# /dev/cpu_dma_latency set to 0us
# Histogram
000000 000000
000017 000002
000018 000001
001000 000001
# Total: 000000004
# Min Latencies: 00017
# Avg Latencies: 00263
# Max Latencies: 2000000
# Histogram Overflows: 00001
# Histogram Overflow at cycle number:
# Thread 0: 00003
"""


def test_a_histogram_of_cyclictest_is_read_with_its_overflows() -> None:
    assert cyclictest.parse(OUTPUT) == cyclictest.Histogram({17: 2, 18: 1, 1000: 1}, overflows=1)


def test_output_without_a_histogram_is_refused() -> None:
    with pytest.raises(ValueError, match="no histogram"):
        cyclictest.parse("unable to set scheduling parameters")


@given(LATENCIES, st.floats(0, 1))
def test_quantiles_of_a_histogram_are_those_of_its_samples(samples: list[int], q: float) -> None:
    histogram = cyclictest.Histogram({value: samples.count(value) for value in samples}, overflows=0)
    assert histogram.quantile(q) == quantile(samples, q)


def test_a_quantile_among_the_overflows_is_not_invented() -> None:
    assert cyclictest.Histogram({17: 1}, overflows=9).quantile(0.5) == float("inf")


def test_an_edge_that_a_c_waiter_missed_counts_as_infinitely_late() -> None:
    edges = runtime.WARM_UP_WINDOWS + 3
    lines = [
        f"{waiter} {number} 500" for waiter in (0, 1) for number in range(edges) if (waiter, number) != (1, edges - 1)
    ]
    assert sorted(edge.parse_peer("\n".join(lines), 2, edges)) == [500] * 5 + [float("inf")]


def test_a_c_waiter_without_a_line_missed_every_edge() -> None:
    edges = runtime.WARM_UP_WINDOWS + 2
    lines = [f"0 {number} 500" for number in range(edges)]
    assert edge.parse_peer("\n".join(lines), 2, edges) == [500, 500, float("inf"), float("inf")]


def test_lateness_counts_from_the_planned_edge_and_a_missed_window_is_infinitely_late() -> None:
    def record(window: int, outcome: shm.Outcome, entry_ns: int) -> list[int]:
        fields = dict.fromkeys(shm.WINDOW.fields, 0)
        return list((fields | {"window": window, "outcome": outcome, "planned_ns": 100, "entry_ns": entry_ns}).values())

    first = runtime.WARM_UP_WINDOWS
    rows = [
        record(first - 1, shm.Outcome.DONE, 999),
        record(first, shm.Outcome.DONE, 140),
        record(first + 1, shm.Outcome.OVERRUN, 150),
        record(first + 2, shm.Outcome.MISSED, 0),
    ]
    raw = np.array(rows, dtype=np.int64).tobytes()
    assert runtime.lateness_ns({"d1": raw}) == [40.0, 50.0, float("inf")]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (999, "ns", "999 ns"),
        (20_100, "ns", "20.1 us"),
        (2.5e9, "ns", "2.5 s"),
        (0.25, "1", "25.000%"),
        (3, "MB", "3 MB"),
    ],
)
def test_values_are_shown_in_the_unit_that_suits_them(value: float, unit: str, shown: str) -> None:
    assert readable(value, unit) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"), [(12.345, "12.35"), (1.149, "1.15"), (0.99, "0.99"), (0.0034, "0.0034"), (0.000_121, "0.00012")]
)
def test_a_ratio_is_never_shown_as_nothing(ratio: float, shown: str) -> None:
    assert readable_ratio(ratio) == shown


def test_the_commands_are_there_without_what_the_benchmarks_import() -> None:
    script = (
        "import sys, experiments.cli; print(*({'numpy', 'pandas', 'bcc', 'probes', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
