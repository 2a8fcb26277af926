"""The pure parts of the benchmarks: pairing, medians, ratios, verdicts, and reading what the peers print."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from experiments import stats
from experiments.bench import cli, cyclictest, edge, runtime
from experiments.bench.cli import readable, readable_limit, readable_ratio, readable_verdict
from experiments.bench.figures import (
    BOOTSTRAP_SEED,
    RERUNS,
    Benchmark,
    Figure,
    Limit,
    Progress,
    Verdict,
    comparison,
    figure,
    interleave,
    interleave_unless_void,
    judge,
    quantile,
)
from vcg import shm
from vcg.errors import HostError

LATENCIES = st.lists(st.integers(1, 10**9), min_size=1, max_size=50)
LIMITS = st.sampled_from([Limit(most=1.5), Limit(least=0.95), Limit(least=0.9, most=1.1)])
SMALL = st.floats(0.5, 2, allow_nan=False)


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
def test_a_ratio_is_the_median_of_those_of_the_pairs_between_the_extremes(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    made = comparison("c", "ns", ours, "peer", theirs)
    ratios = [a / b for a, b in pairs]
    assert (made.ratio, made.ratio_low, made.ratio_high) == (median(ratios), min(ratios), max(ratios))
    assert made.peer_value == median(theirs)


def test_what_drifts_from_block_to_block_leaves_a_ratio_alone() -> None:
    drift = [1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0]
    made = comparison("c", "ns", [2 * value for value in drift], "peer", drift)
    assert (made.ratio, made.ratio_interval) == (2, (2, 2))


def test_a_block_where_both_are_infinite_has_no_ratio_and_takes_no_part() -> None:
    never = math.inf
    made = comparison("c", "ns", [never, 2.0, 3.0, never], "peer", [never, 1.0, 1.0, 1.0])
    assert (made.ratio, made.ratio_low, made.ratio_high, made.value) == (3, 2, never, never)
    change = figure("d", "ns", [math.nan, 1.0, 2.0])
    assert (change.value, change.low, change.high) == (1.5, 1, 2)


# ── intervals and limits ─────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(SMALL, min_size=1, max_size=20))
def test_an_interval_is_that_of_the_statistics_and_missing_where_runs_are_too_few(values: list[float]) -> None:
    of_values = stats.interval(values, BOOTSTRAP_SEED)
    of_ratios = stats.interval([value / 2 for value in values], BOOTSTRAP_SEED)
    made = comparison("c", "ns", values, "peer", [2.0] * len(values))
    if len(values) < stats.minimum_pairs():
        assert (made.interval, made.ratio_interval) == (None, None)
    else:
        assert made.interval == (of_values.low, of_values.high)
        assert made.ratio_interval == (of_ratios.low, of_ratios.high)
    assert figure("f", "ns", values).interval == made.interval


@given(st.lists(SMALL, min_size=6, max_size=12), LIMITS)
def test_a_limit_is_kept_or_broken_only_if_all_of_the_interval_says_so(values: list[float], limit: Limit) -> None:
    made = figure("f", "1", values, limit)
    assert made.interval
    assert made.verdict
    low, high = made.interval
    least, most = limit.least or -math.inf, limit.most or math.inf
    within = [least <= value <= most for value in np.linspace(low, high, 1000)]
    if made.verdict.outcome == "undecided":
        assert not all(within)
        assert low <= most
        assert high >= least
        assert made.verdict.more_runs is None or made.verdict.more_runs > 0
    else:
        assert {"inside": all(within), "beyond": not any(within)}[made.verdict.outcome]


@given(st.lists(SMALL, min_size=1, max_size=5), LIMITS)
def test_too_few_runs_decide_nothing_and_the_missing_ones_are_told(values: list[float], limit: Limit) -> None:
    assert figure("f", "1", values, limit).verdict == Verdict("undecided", stats.minimum_pairs() - len(values))


@pytest.mark.parametrize(
    ("interval", "limit", "more_runs"),
    [
        (stats.Interval(1.4, 1.2, 1.6, 10), Limit(most=1.5), 30),  # it reaches twice as far as it may
        (stats.Interval(1.6, 1.4, 1.7, 10), Limit(most=1.5), 30),
        (stats.Interval(1.0, 0.8, 1.2, 10), Limit(least=0.9, most=1.05), 150),  # the nearer bound decides
        (stats.Interval(0.96, 0.94, 0.97, 8), Limit(least=0.95), 24),
        (stats.Interval(1.5, 1.4, 1.6, 10), Limit(most=1.5), None),
        (stats.Interval(1.2, 1.0, math.inf, 10), Limit(most=1.5), None),
        (stats.Interval(math.inf, 1.0, math.inf, 10), Limit(most=1.5), None),
    ],
)
def test_what_is_undecided_tells_how_many_more_runs_it_would_take(
    interval: stats.Interval, limit: Limit, more_runs: int | None
) -> None:
    assert judge(limit, interval) == Verdict("undecided", more_runs)


def test_a_limit_binds_the_ratio_or_the_value_of_a_comparison() -> None:
    ours, theirs = [3.0] * 6, [2.0] * 6
    of_ratio = comparison("c", "ns", ours, "peer", theirs, Limit(most=2, of_ratio=True))
    of_value = comparison("c", "ns", ours, "peer", theirs, Limit(most=2))
    assert (of_ratio.verdict, of_value.verdict) == (Verdict("inside"), Verdict("beyond"))


@pytest.mark.parametrize(
    ("ratio", "outcome", "least", "most"),
    [(1.0, "inside", 0.95, 1), (3.0, "beyond", 0.95, 1), (1.5, "inside", 0, 0.06), (1.5, "beyond", 0, 0.06)],
)
def test_verdicts_are_seldom_wrong_and_find_what_is_there(
    ratio: float, outcome: str, least: float, most: float
) -> None:
    chance = np.random.default_rng(1)
    intervals = [stats.interval(ratio * chance.lognormal(0, 0.2, 10), BOOTSTRAP_SEED) for _ in range(200)]
    found = [judge(Limit(most=1.5), interval).outcome for interval in intervals]
    assert least <= found.count(outcome) / len(found) <= most


@pytest.mark.parametrize(
    ("limit", "unit", "shown"),
    [
        (Limit(most=60_000), "ns", "at most 60 us"),
        (Limit(most=1.5, of_ratio=True), "ns", "ratio at most 1.50"),
        (Limit(least=0.9, most=1.1), "1", "at least 90.000%, at most 110.000%"),
    ],
)
def test_a_limit_is_shown_in_the_unit_of_its_figure(limit: Limit, unit: str, shown: str) -> None:
    assert readable_limit(limit, unit) == shown


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        (Verdict("inside"), "inside"),
        (Verdict("undecided", 1200), "undecided, about 1,200 more runs would decide"),
        (Verdict("undecided"), "undecided, and no telling how many runs would decide"),
    ],
)
def test_a_verdict_says_what_would_decide(verdict: Verdict, shown: str) -> None:
    assert readable_verdict(verdict) == shown


# ── void blocks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_void_block_ends_there_and_is_run_again_whole() -> None:
    order: list[str] = []
    reasons = {2: ["a stall"]}  # by the number of the run of b

    def run(arm: str) -> tuple[int, list[str]]:
        order.append(arm)
        return len(order), reasons.get(order.count("b"), []) if arm == "b" else []

    samples, void = interleave_unless_void({name: partial(run, name) for name in "abc"}, runs=2)
    assert "".join(order) == "abc" + "cb" + "cba"
    assert samples == {"a": [1, 8], "b": [2, 7], "c": [3, 6]}
    assert (void.name, void.value, void.unit, void.rows) == ("void_blocks", 1, "of 3", (("2", "b", "a stall"),))


def test_a_block_that_stays_void_is_left_out_after_its_reruns() -> None:
    told: list[str] = []
    attempts = iter([["steal"]] * (1 + RERUNS) + [[]])
    samples, void = interleave_unless_void({"a": lambda: (5, next(attempts))}, 2, told.append)
    assert samples == {"a": [5]}
    assert (void.value, void.unit) == (1 + RERUNS, f"of {2 + RERUNS}")
    assert told[:2] == ["a, run 1 of 2", "a, run 1 of 2, once more"]


def test_where_every_block_is_void_there_are_no_figures() -> None:
    with pytest.raises(HostError, match=r"all 3 blocks were void, the last because: steal"):
        interleave_unless_void({"a": lambda: (5, ["steal"])}, 1)


@given(st.lists(SMALL, min_size=1, max_size=8))
def test_no_value_makes_a_block_void(values: list[float]) -> None:
    left = iter(values)
    samples, void = interleave_unless_void({"a": lambda: (next(left), [])}, len(values))
    assert (samples["a"], void.value) == (values, 0)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stored_result_holds_what_it_takes_to_repeat_and_to_recompute_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, beside = [4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [2.0, 3.0, 2.0, 3.0, 2.0, 3.0]

    def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
        return [comparison("c", "ns", values, "peer", beside, Limit(most=1.5, of_ratio=True))]

    known = {"fake": Benchmark("fake", "nothing", 6, 2.5, 2, measure)}
    monkeypatch.setattr(cli, "benchmarks", lambda: known)
    monkeypatch.setattr(runtime, "planned", [{"name": "a testbed"}])
    app = Typer()
    app.command()(cli.bench)
    out = tmp_path / "fake.json"
    result = CliRunner().invoke(app, ["fake", "--out", str(out)])
    assert result.exit_code == 0
    assert "ratio at most 1.50" in result.stdout
    stored = json.loads(out.read_text())
    assert stored["arguments"] == {"runs": 6, "seconds": 2.5, "seed": None}
    assert stored["testbeds"] == [{"name": "a testbed"}]
    assert {"commit", "kernel", "kernel_command_line", "clocksource", "mitigations", "packages"} <= set(
        stored["manifest"]
    )
    (found,) = stored["figures"]
    ratios = [a / b for a, b in zip(found["values"], found["peer_values"], strict=True)]
    again = stats.interval(ratios, stored["intervals"]["seed"], stored["intervals"]["confidence"])
    assert (found["ratio"], found["ratio_interval"]) == (again.median, [again.low, again.high])
    assert found["verdict"] == {"outcome": "beyond", "more_runs": None}


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
