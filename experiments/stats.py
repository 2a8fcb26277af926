"""Statistics of trials and of sweeps; pure functions of arrays and frames.

Two levels, never mixed. *Inside* a trial the samples are correlated, so a trial gives one figure for each statistic
and dimension (:func:`summarise_trial`). *Across* trials the figures are the sample: intervals are bootstrapped over
trials, and two levels of an axis are compared by pairs inside blocks (:func:`compare_levels`).

Traps: a window that was never entered has no lateness. Leaving it out would make a late system look good, so it counts
as later than every window that was entered; a quantile that falls among such windows is infinite. A quantile that the
number of windows does not support is NaN. Medians over trials take both as they should: the first ranks last, the
second does not take part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 4000
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
TREND_BINS = 100
"""A trend is tested on medians of at most this many slices of the trial: neighbouring windows are correlated, and the
pairwise test is quadratic in their number."""

ENTERED = ("done", "overrun")


@dataclass(frozen=True)
class Quantile:
    """A quantile, or the reason why there is none.

    Attributes:
        value: in the unit of the samples; NaN if there are too few, infinite if it falls among events without a value.
        reason: empty if the value is finite.
    """

    value: float
    reason: str = ""


@dataclass(frozen=True)
class Interval:
    """A median over trials with its bootstrap interval; ``n`` trials (or pairs of trials) went into it."""

    median: float
    low: float
    high: float
    n: int

    def covers(self, value: float) -> bool:
        return not (self.low > value or self.high < value)


@dataclass(frozen=True)
class Comparison:
    """One level of an axis against its first level.

    Attributes:
        axis, level, baseline: names from the sweep file.
        statistic: column of the summary frame that is compared.
        difference: level minus baseline, in the statistic's unit; one value for each block goes into it.
        ratio: median of level ÷ baseline.
        identical: both levels resolve to the same configuration, so the difference is the noise floor (A/A).
        verdict: ``lower``, ``higher`` or ``undecided``.
        reason: why it is undecided; empty otherwise.
    """

    axis: str
    level: str
    baseline: str
    statistic: str
    difference: Interval
    ratio: float
    identical: bool
    verdict: str
    reason: str


def minimum_samples(q: float, confidence: float = CONFIDENCE) -> int:
    """Samples below which the upper order statistic of quantile ``q`` does not exist.

    The upper bound of a distribution-free interval for a quantile is an order statistic; with ``n`` samples even the
    greatest one exceeds the true quantile only with probability ``1 - q**n``. That must reach ``confidence``.
    """
    return math.ceil(math.log(1 - confidence) / math.log(q))


def quantile(samples: Floats, q: float, never: int = 0) -> Quantile:
    """The order statistic at rank ``ceil(q * n)`` of ``n`` events, or a refusal.

    Args:
        samples: measured values, in any order and unit.
        q: between 0 and 1.
        never: events without a value that count as greater than all that have one (windows never entered).
    """
    n = len(samples) + never
    needed = minimum_samples(q)
    if n < needed:
        return Quantile(math.nan, f"{n} samples, needs {needed}")
    rank = max(1, math.ceil(q * n - 1e-9))
    if rank > len(samples):
        return Quantile(math.inf, f"falls among the {never} windows of {n} that were never entered")
    return Quantile(float(np.partition(samples, rank - 1)[rank - 1]))


def jitter(lateness: Floats) -> float:
    """Mean absolute difference of the lateness of successive windows (cycle to cycle); NaN below two windows."""
    return float(np.mean(np.abs(np.diff(lateness)))) if len(lateness) > 1 else math.nan


def trend(times_ns: Floats, values: Floats) -> tuple[float, float]:
    """Does a quantity drift over a trial?

    Theil-Sen slope and the two-sided p-value of Mann-Kendall's test, over the medians of equal slices of time.

    Args:
        times_ns: when each value was observed, ascending.
        values: as many.

    Returns:
        Slope in units of ``values`` per second, and the p-value; both NaN below 8 values.
    """
    if len(values) < 8:
        return math.nan, math.nan
    slices = np.array_split(np.arange(len(values)), min(TREND_BINS, len(values) // 2))
    seconds = np.array([np.mean(times_ns[part]) for part in slices]) / 1e9
    medians = np.array([np.median(values[part]) for part in slices])
    if np.ptp(medians) == 0:
        return 0.0, 1.0
    slope = scipy_stats.theilslopes(medians, seconds)[0]
    return float(slope), float(scipy_stats.kendalltau(seconds, medians)[1])


def summarise_trial(windows: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """One row of statistics for each dimension of one trial; warm-up is left out.

    Args:
        windows: rows of the table ``windows`` of one trial.
        reference: rows of the table ``reference`` of the same trial.

    Returns:
        The statistics columns of the table ``summary``. ``lateness_refused`` names each quantile that has no finite
        value, with the reason.
    """
    wakes = reference.loc[~reference["warmup"], "lateness_ns"].to_numpy(dtype=float)
    reference_p50, reference_p99 = quantile(wakes, 0.5).value, quantile(wakes, 0.99).value
    rows = [
        {"dimension": str(name), **_summarise_dimension(group, reference_p50, reference_p99)}
        for name, group in windows.loc[~windows["warmup"]].groupby("dimension", observed=True, sort=False)
    ]
    return pd.DataFrame(rows)


def _summarise_dimension(windows: pd.DataFrame, reference_p50: float, reference_p99: float) -> dict[str, object]:
    ordered = windows.sort_values("window")
    outcome = ordered["outcome"].astype(str)
    entered = ordered.loc[outcome.isin(ENTERED)]
    lateness = entered["lateness_ns"].to_numpy(dtype=float)
    never = len(ordered) - len(entered)
    quantiles = {name: quantile(lateness, q, never) for name, q in QUANTILES.items()}
    slope, p_value = trend(entered["planned_ns"].to_numpy(dtype=float), lateness)
    budget = float(entered["budget_ns"].sum())
    return {
        "windows": len(ordered),
        "entered": len(entered),
        "missed_share": float(outcome.isin(("missed", "unrecorded")).mean()),
        "skipped_share": float((outcome == "skipped").mean()),
        "overrun_share": float((outcome == "overrun").mean()),
        **{f"lateness_{name}_ns": found.value for name, found in quantiles.items()},
        "lateness_max_ns": float(lateness.max()) if len(lateness) else math.nan,
        "lateness_refused": "; ".join(f"{name}: {found.reason}" for name, found in quantiles.items() if found.reason),
        "jitter_ns": jitter(lateness),
        "credit_use_share": float(entered["used_ns"].sum()) / budget if budget else math.nan,
        "reference_p50_ns": reference_p50,
        "reference_p99_ns": reference_p99,
        "lateness_p50_over_reference": quantiles["p50"].value / reference_p50,
        "lateness_p99_over_reference": quantiles["p99"].value / reference_p99,
        "trend_ns_per_s": slope,
        "trend_p": p_value,
    }


def levels_of(frame: pd.DataFrame, axis: str) -> list[str]:
    """The levels of an axis: in the order of the sweep file where the column is categorical, else as they appear.

    Args:
        frame: any with axis columns.
        axis: column name, ``axis_…``.
    """
    column = frame[axis]
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [str(level) for level in column.cat.categories]
    return [str(level) for level in dict.fromkeys(column)]


def per_trial(summary: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """One figure for each trial that counts (void trials are left out).

    The figure of a trial is the median over its dimensions, or their mean for a share: that weighs the dimensions
    alike, whatever their cadence, so that configurations with other cadences stay comparable. A trial in which a
    dimension has too few windows for a quantile has no figure either.

    Returns:
        Columns ``trial``, ``configuration``, ``block``, each ``axis_…``, and ``value``.
    """
    keys = ["trial", "configuration", "block", *axis_columns(summary)]
    combine: Callable[[Floats], float] = np.mean if statistic.endswith("_share") else np.median
    counted = summary.loc[~summary["void"].astype(bool)]
    rows = [
        {**dict(zip(keys, key, strict=True)), "value": float(combine(group[statistic].to_numpy(dtype=float)))}
        for key, group in counted.groupby(keys, observed=True, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "value"]).astype({"value": float})


def decisive_quantile(summary: pd.DataFrame) -> str:
    """The column of the highest quantile up to p99 that the number of windows supports in every dimension and trial.

    Missed windows play no part in the choice: it is settled by the length of the trials and the cadences alone.
    """
    fewest = int(summary["windows"].min()) if len(summary) else 0
    supported = [name for name in ("p99", "p90") if fewest >= minimum_samples(QUANTILES[name])]
    return f"lateness_{supported[0] if supported else 'p50'}_ns"


def axis_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold the level of each axis of the sweep, in the order of the sweep file."""
    return [str(column) for column in frame.columns if str(column).startswith("axis_")]


def interval(values: Sequence[float] | Floats, seed: int, confidence: float = CONFIDENCE) -> Interval:
    """Median of trials with its percentile-bootstrap interval; values that are NaN are left out.

    Resampling is over trials (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13); the seed makes it
    repeatable. Without values everything is NaN; with one, the interval has no width and says nothing.
    """
    sample = np.asarray(values, dtype=float)
    sample = sample[~np.isnan(sample)]
    if not len(sample):
        return Interval(math.nan, math.nan, math.nan, 0)
    picks = np.random.default_rng(seed).integers(0, len(sample), size=(RESAMPLES, len(sample)))
    medians = np.median(sample[picks], axis=1)
    # Order statistics, not interpolated: between a finite and an infinite median there is nothing.
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return Interval(float(np.median(sample)), float(low), float(high), len(sample))


def minimum_pairs(confidence: float = CONFIDENCE) -> int:
    """Pairs below which no outcome at all could decide: even if all agree in sign, chance explains it too often.

    The two-sided sign test gives ``n`` agreeing pairs a p-value of ``2 * 0.5**n``.
    """
    return math.ceil(1 - math.log2(1 - confidence))


def intervals_by_configuration(summary: pd.DataFrame, statistic: str, seed: int) -> pd.DataFrame:
    """Median over trials and interval of each configuration, best first.

    Returns:
        Columns ``configuration``, each ``axis_…``, ``median``, ``low``, ``high`` and ``trials``.
    """
    trials = per_trial(summary, statistic)
    keys = ["configuration", *axis_columns(summary)]
    rows = []
    for key, group in trials.groupby(keys, observed=True, sort=False):
        found = interval(group["value"].to_numpy(dtype=float), seed)
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "median": found.median,
                "low": found.low,
                "high": found.high,
                "trials": found.n,
            }
        )
    return pd.DataFrame(rows, columns=[*keys, "median", "low", "high", "trials"]).sort_values(
        "median", ignore_index=True
    )


def paired_by_block(trials: pd.DataFrame, axis: str, baseline: str, level: str) -> pd.DataFrame:
    """The two levels of an axis side by side, one row for each block.

    Inside a block a trial of one level is paired with the trial of the other level that agrees in all other axes; the
    pairs of a block are averaged, because the block is what was repeated.

    Args:
        trials: frame from :func:`per_trial`.
        axis: column name, ``axis_…``.

    Returns:
        Index ``block``, columns ``baseline`` and ``level``; a block without a whole pair has no row.
    """
    others = [column for column in axis_columns(trials) if column != axis]
    trials = trials.astype(dict.fromkeys(axis_columns(trials), str))
    left = trials.loc[trials[axis] == baseline, ["block", *others, "value"]]
    right = trials.loc[trials[axis] == level, ["block", *others, "value"]]
    pairs = left.merge(right, on=["block", *others], suffixes=("_baseline", "_level")).dropna()
    means = pairs.groupby("block")[["value_baseline", "value_level"]].mean()
    # Two infinite figures have no difference.
    known = np.isfinite(means["value_baseline"]) | np.isfinite(means["value_level"])
    found: pd.DataFrame = means.loc[known].set_axis(["baseline", "level"], axis="columns")
    return found


def compare_levels(
    summary: pd.DataFrame,
    statistic: str,
    seed: int,
    identical: frozenset[tuple[str, str, str]] = frozenset(),
) -> list[Comparison]:
    """Every level of every axis against the first level of that axis.

    An effect is claimed only if there are enough blocks to decide anything, the interval excludes zero, and its near
    end lies beyond the noise floor, where the sweep has an A/A comparison that measured one.

    Args:
        summary: the table ``summary`` with its ``axis_…`` columns.
        statistic: the column compared; lower is better in all that the report uses.
        identical: ``(axis, baseline, level)`` of levels that resolve to the same configuration.
    """
    trials = per_trial(summary, statistic)
    found: list[tuple[str, str, str, Interval, float]] = []
    for axis in axis_columns(summary):
        levels = levels_of(summary, axis)
        for level in levels[1:]:
            blocks = paired_by_block(trials, axis, levels[0], level)
            difference = interval((blocks["level"] - blocks["baseline"]).to_numpy(dtype=float), seed)
            positive = blocks.loc[blocks["baseline"] > 0]
            ratio = float((positive["level"] / positive["baseline"]).median()) if len(positive) else math.nan
            found.append((axis.removeprefix("axis_"), levels[0], level, difference, ratio))
    floor = max(
        (max(abs(d.low), abs(d.high)) for axis, base, level, d, _ in found if (axis, base, level) in identical and d.n),
        default=0.0,
    )
    comparisons = []
    for axis, base, level, difference, ratio in found:
        same = (axis, base, level) in identical
        verdict, reason = _verdict(difference, 0.0 if same else floor)
        comparisons.append(Comparison(axis, level, base, statistic, difference, ratio, same, verdict, reason))
    return comparisons


def _verdict(difference: Interval, floor: float) -> tuple[str, str]:
    needed = minimum_pairs()
    if difference.n < needed:
        return "undecided", f"{difference.n} blocks with a whole pair; fewer than {needed} decide nothing"
    if difference.covers(0.0):
        return "undecided", "the interval covers zero"
    if min(abs(difference.low), abs(difference.high)) <= floor:
        return "undecided", "the interval reaches into the noise floor of the A/A comparison"
    return ("lower" if difference.high < 0 else "higher"), ""


def ccdf(samples: Floats, never: int = 0) -> tuple[Floats, Floats]:
    """Share of events later than each value: sorted values and, for each, the share that exceeds it.

    Events that never happened (``never``) keep the curve above zero at its end.
    """
    values = np.sort(np.asarray(samples, dtype=float))
    n = len(values) + never
    return values, (n - np.arange(1, len(values) + 1)) / max(n, 1)


def merge_histograms(histograms: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Add up histograms that share their buckets.

    Args:
        histograms: rows of the table ``histograms``.
        by: columns that keep histograms apart.

    Returns:
        Columns ``by``, ``low_ns``, ``high_ns``, ``count``; sorted.
    """
    keys = [*by, "low_ns", "high_ns"]
    return histograms.groupby(keys, observed=True, dropna=False)["count"].sum().reset_index().sort_values(keys)


def histogram_quantile(low_ns: Floats, high_ns: Floats, count: Floats, q: float) -> float:
    """The upper edge of the bucket that holds quantile ``q``: never less than the true value; NaN if refused."""
    total = int(np.sum(count))
    if total < minimum_samples(q):
        return math.nan
    order = np.argsort(low_ns)
    at = int(np.searchsorted(np.cumsum(count[order]), q * total - 1e-9))
    return float(high_ns[order][at])
