"""Statistics: quantiles that exist, intervals over trials, comparisons inside blocks."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from experiments import stats

VALUES = st_numpy.arrays(np.float64, st.integers(5, 400), elements=st.floats(0, 1e9, allow_nan=False), unique=False)


# ── inside a trial ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("q", "needed"), [(0.5, 5), (0.9, 29), (0.99, 299), (0.999, 2995)])
def test_a_quantile_needs_its_upper_order_statistic(q: float, needed: int) -> None:
    assert stats.minimum_samples(q) == needed
    assert math.isnan(stats.quantile(np.zeros(needed - 1), q).value)
    assert str(needed) in stats.quantile(np.zeros(needed - 1), q).reason
    assert stats.quantile(np.zeros(needed), q) == stats.Quantile(0.0)


@given(samples=VALUES, q=st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_a_sample_with_that_share_at_or_below_it(samples: stats.Floats, q: float) -> None:
    found = stats.quantile(samples, q)
    if len(samples) < stats.minimum_samples(q):
        assert math.isnan(found.value)
        return
    assert found.value in samples
    assert np.mean(samples <= found.value) >= q - 1e-9
    assert np.mean(samples < found.value) < q + 1e-9


@given(samples=VALUES, never=st.integers(1, 50))
def test_windows_never_entered_can_only_raise_a_quantile(samples: stats.Floats, never: int) -> None:
    with_all = stats.quantile(samples, 0.5, never).value
    assert with_all >= stats.quantile(samples, 0.5).value
    assert stats.quantile(samples, 0.5, never=len(samples) + 1).value == math.inf


def test_a_quantile_among_missed_windows_is_infinite_and_says_so() -> None:
    found = stats.quantile(np.arange(980.0), 0.99, never=20)
    assert found.value == math.inf
    assert "20 windows of 1000" in found.reason


@given(samples=VALUES, shift=st.floats(0, 1e6))
def test_jitter_does_not_see_a_constant_lateness(samples: stats.Floats, shift: float) -> None:
    assert stats.jitter(samples + shift) == pytest.approx(stats.jitter(samples), rel=1e-6, abs=1e-3)
    assert stats.jitter(np.full(10, shift)) == 0


def test_a_trend_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(5)
    times = np.arange(0, 20e9, 2e6)
    noise = rng.lognormal(10, 0.5, len(times))
    slope, p_value = stats.trend(times, noise + 200 * times / 1e9)
    assert slope == pytest.approx(200, rel=0.5)
    assert p_value < 0.001
    assert stats.trend(times, noise)[1] > 0.001
    assert stats.trend(times, np.full(len(times), 7.0)) == (0.0, 1.0)
    assert math.isnan(stats.trend(times[:4], noise[:4])[0])


def test_a_trial_is_summarised_without_its_warm_up() -> None:
    outcomes = ["done"] * 6 + ["missed", "skipped", "overrun", "unrecorded"]
    entered = np.isin(outcomes, stats.ENTERED)
    windows = pd.DataFrame(
        {
            "dimension": "d1",
            "window": range(10),
            "outcome": outcomes,
            "warmup": [True, True] + [False] * 8,
            "planned_ns": np.arange(10) * 1_000_000,
            "lateness_ns": pd.array([9_999, 9_999, 10, 20, 10, 20, None, None, 30, None], dtype="Int64"),
            "budget_ns": 100,
            "used_ns": np.where(entered, 40, 0),
        }
    )
    reference = pd.DataFrame({"warmup": [True] + [False] * 9, "lateness_ns": [9_999] + [5] * 9})
    (row,) = stats.summarise_trial(windows, reference).to_dict("records")
    assert row["windows"] == 8
    assert row["entered"] == 5
    assert row["missed_share"] == pytest.approx(2 / 8)
    assert row["skipped_share"] == pytest.approx(1 / 8)
    assert row["overrun_share"] == pytest.approx(1 / 8)
    assert row["lateness_p50_ns"] == 20
    assert row["lateness_max_ns"] == 30
    assert row["jitter_ns"] == 10
    assert row["credit_use_share"] == pytest.approx(0.4)
    assert row["reference_p50_ns"] == 5
    assert row["lateness_p50_over_reference"] == 4
    assert "p99: 8 samples, needs 299" in str(row["lateness_refused"])


# ── over trials ──────────────────────────────────────────────────────────────────────────────────────────────────────
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), seed=st.integers(0, 1000))
def test_an_interval_holds_its_median_and_stays_in_range(values: list[float], seed: int) -> None:
    found = stats.interval(values, seed)
    assert min(values) <= found.low <= found.median + 1e-6
    assert found.median - 1e-6 <= found.high <= max(values)
    assert found.n == len(values)
    assert stats.interval(values, seed) == found


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = sum(stats.interval(rng.normal(0, 1, 12), seed).covers(0) for seed in range(200))
    assert covered > 0.88 * 200


def test_an_interval_of_nothing_is_nothing() -> None:
    assert stats.interval([], 1).n == 0
    assert stats.interval([math.nan, 3.0], 1) == stats.Interval(3.0, 3.0, 3.0, 1)
    assert stats.interval([1.0, math.inf, math.inf], 1).median == math.inf


def test_too_few_pairs_to_decide_anything() -> None:
    assert stats.minimum_pairs() == 6
    assert 2 * 0.5 ** stats.minimum_pairs() < 0.05 < 2 * 0.5 ** (stats.minimum_pairs() - 1)


def sweep(blocks: int, effect: float, seed: int, drift: float = 0.0, void: bool = False) -> pd.DataFrame:
    """A summary of a 2 x 2 sweep: the axis ``arm`` has an effect, blocks drift, the axis ``other`` matters most."""
    rng = np.random.default_rng(seed)
    rows = []
    for block, (i, arm), other in product(range(1, blocks + 1), enumerate(("a", "b")), ("x", "y")):
        level = 1000.0 + drift * block + effect * i + 5000 * (other == "y") + rng.normal(0, 20)
        for dimension in ("d1", "d2"):
            rows.append(
                {
                    "trial": f"{arm}{other}{block}",
                    "configuration": f"{arm}{other}",
                    "block": block,
                    "axis_arm": arm,
                    "axis_other": other,
                    "void": void,
                    "dimension": dimension,
                    "windows": 400,
                    "value_ns": level,
                }
            )
    return pd.DataFrame(rows)


def arm_of(comparisons: list[stats.Comparison]) -> stats.Comparison:
    return next(found for found in comparisons if found.axis == "arm")


def test_an_effect_is_found_inside_blocks_although_the_host_drifts() -> None:
    found = arm_of(stats.compare_levels(sweep(10, 100, 1, drift=3000), "value_ns", 1))
    assert found.verdict == "higher"
    assert found.difference.median == pytest.approx(100, abs=30)
    assert found.difference.n == 10
    lower = arm_of(stats.compare_levels(sweep(10, -100, 1, drift=3000), "value_ns", 1))
    assert lower.verdict == "lower"


def test_two_repetitions_decide_nothing() -> None:
    found = arm_of(stats.compare_levels(sweep(2, 10_000, 1), "value_ns", 1))
    assert found.verdict == "undecided"
    assert "fewer than 6" in found.reason


def test_false_alarms_are_rare_when_there_is_no_effect() -> None:
    verdicts = [arm_of(stats.compare_levels(sweep(10, 0, seed), "value_ns", seed)).verdict for seed in range(60)]
    assert verdicts.count("undecided") > 0.8 * 60


def test_no_effect_is_claimed_under_the_noise_floor() -> None:
    summary = sweep(10, 100, 1)
    again = summary.loc[summary["axis_other"] == "x"].assign(axis_other="x2", configuration="again")
    again["value_ns"] += 3000  # two arms of the same configuration that differ by more than the effect
    both = pd.concat([summary, again.assign(trial=again["trial"] + "2")])
    same = frozenset({("other", "x", "x2")})
    claimed = arm_of(stats.compare_levels(both, "value_ns", 1))
    floored = arm_of(stats.compare_levels(both, "value_ns", 1, same))
    assert claimed.verdict == "higher"
    assert floored.verdict == "undecided"
    assert "noise floor" in floored.reason


def test_the_baseline_is_the_first_level_of_the_sweep_file_whatever_ran_first() -> None:
    summary = sweep(8, 100, 1).iloc[::-1]
    summary["axis_arm"] = pd.Categorical(summary["axis_arm"], categories=["a", "b"])
    found = arm_of(stats.compare_levels(summary, "value_ns", 1))
    assert (found.baseline, found.level, found.verdict) == ("a", "b", "higher")


def test_void_trials_take_no_part() -> None:
    summary = sweep(8, 100, 1)
    spoiled = sweep(8, 100, 2, void=True).assign(value_ns=1e9)
    both = pd.concat([summary, spoiled.assign(trial=spoiled["trial"] + "v")])
    assert stats.compare_levels(both, "value_ns", 1) == stats.compare_levels(summary, "value_ns", 1)
    assert stats.per_trial(sweep(2, 0, 1, void=True), "value_ns").empty


def test_a_block_without_a_whole_pair_is_left_out() -> None:
    summary = sweep(8, 100, 1)
    torn = summary.loc[~((summary["block"] == 3) & (summary["axis_arm"] == "b"))]
    assert arm_of(stats.compare_levels(torn, "value_ns", 1)).difference.n == 7


def test_configurations_are_ranked_best_first() -> None:
    ranking = stats.intervals_by_configuration(sweep(6, 100, 1), "value_ns", 1)
    assert list(ranking["configuration"]) == ["ax", "bx", "ay", "by"]
    assert list(ranking["trials"]) == [6, 6, 6, 6]
    assert (ranking["low"] <= ranking["median"]).all()


@pytest.mark.parametrize(("windows", "expected"), [(299, "p99"), (298, "p90"), (28, "p50"), (5000, "p99")])
def test_the_number_of_windows_settles_by_which_quantile_to_judge(windows: int, expected: str) -> None:
    assert stats.decisive_quantile(sweep(1, 0, 1).assign(windows=windows)) == f"lateness_{expected}_ns"


# ── distributions ────────────────────────────────────────────────────────────────────────────────────────────────────
@given(samples=VALUES, never=st.integers(0, 20))
def test_the_ccdf_falls_to_the_share_of_windows_never_entered(samples: stats.Floats, never: int) -> None:
    values, share = stats.ccdf(samples, never)
    assert (np.diff(values) >= 0).all()
    assert (np.diff(share) <= 0).all()
    assert share[-1] == pytest.approx(never / (len(samples) + never))


@given(
    counts=st.lists(st.lists(st.integers(0, 1000), min_size=20, max_size=20), min_size=1, max_size=5),
    q=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_merged_histograms_keep_every_event_and_bound_the_quantile(counts: list[list[int]], q: float) -> None:
    total = np.sum(counts, axis=0)
    assume(total.sum() >= stats.minimum_samples(q))
    frame = pd.DataFrame(
        [
            {"trial": trial, "dimension": "d1", "low_ns": 10 * i, "high_ns": 10 * (i + 1), "count": count}
            for trial, row in enumerate(counts)
            for i, count in enumerate(row)
        ]
    )
    merged = stats.merge_histograms(frame, ["dimension"])
    assert merged["count"].sum() == total.sum()
    low, high, count = (merged[name].to_numpy(dtype=float) for name in ("low_ns", "high_ns", "count"))
    found = stats.histogram_quantile(low, high, count, q)
    exact = np.quantile(np.repeat(low, count.astype(int)), q, method="inverted_cdf")
    assert exact < found <= exact + 10
