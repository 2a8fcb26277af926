"""The report of a sweep: one HTML file that needs nothing else, for somebody who has to decide.

Words come first: which configurations were best and worst, which axis made a difference and how sure that is. Then
the tables and plots that the words rest on, the trials that do not count and why, and what is needed to repeat it.
:func:`facts` gathers all of it as plain data (pure but for reading the results); the template only lays it out.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import plots, stats, store
from experiments.plots import format_ns
from experiments.stats import Comparison
from experiments.store import Results

PROBE_TITLES = {
    "runq_latency_ns": "Run-queue latency: from runnable to running",
    "issue_to_complete_ns": "Loop-device I/O: from issue to completion",
    "queue_to_complete_ns": "Loop-device I/O: from queueing to completion",
}
_DPI = 130
FLAT_TOLERANCE = 0.02
"""Relative difference from an oracle that is counted beside the verdicts, whatever tolerance these allow."""


def write(directory: Path) -> Path:
    """Make ``report.html`` and ``plots/`` in a results directory; returns the report's path.

    Raises:
        experiments.store.ResultsError: there are no results, no trial is finished yet, or a file can't be written.
    """
    results = Results(directory)
    if not results.records:
        raise store.ResultsError(f"{directory}: no finished trial yet; resume the sweep first")
    pictures = draw(results)
    folder = directory / "plots"
    with store.writing(folder):
        folder.mkdir(exist_ok=True)
    inlined = {}
    for name, figure in pictures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        store.write_durably(folder / f"{name}.png", buffer.getvalue())
        inlined[name] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "ns": format_ns,
        "share": format_share,
        "ratio": format_ratio,
        "signed_ns": format_signed_ns,
        "signed_share": format_signed_share,
        "amount": format_amount,
    }
    template = environment.from_string((files("experiments") / "report.html.j2").read_text())
    path = directory / "report.html"
    store.write_durably(path, template.render(**facts(results), pictures=inlined).encode())
    return path


# ── numbers as text ──────────────────────────────────────────────────────────────────────────────────────────────────
def format_ratio(value: float) -> str:
    """A ratio with two decimals; a dash for none."""
    return f"{value:.2f}" if np.isfinite(value) else "–"


def format_share(value: float) -> str:
    """A share in percent with two significant digits; a dash for none."""
    if not np.isfinite(value):
        return "–"
    return "0 %" if value == 0 else f"{100 * value:.2g} %" if abs(value) < 0.1 else f"{100 * value:.1f} %"


def format_signed_ns(value: float) -> str:
    """A difference of durations, with its sign."""
    if np.isinf(value):
        return "no bound"
    return f"+{format_ns(value)}" if value > 0 else format_ns(value).replace("-", "−")


def format_signed_share(value: float) -> str:
    """A relative difference in percent, with its sign; a dash for none."""
    return ("+" if 0 < value < np.inf else "") + format_share(value).replace("-", "−")


def format_amount(value: float, name: str) -> str:
    """A sum of the kind that its name tells: a duration, or a count."""
    return format_ns(value) if name.endswith("_ns") else f"{value:,.0f}"


def format_statistic(statistic: str, value: float, *, signed: bool = False) -> str:
    """A value of a column of the summary, in its unit."""
    if statistic.endswith("_share"):
        return format_signed_share(value) if signed else format_share(value)
    return format_signed_ns(value) if signed else format_ns(value)


def statistic_name(statistic: str) -> str:
    """A column of the summary as a person would say it."""
    names = {
        "lateness_p50_ns": "median lateness",
        "lateness_p90_ns": "p90 lateness",
        "lateness_p99_ns": "p99 lateness",
        "jitter_ns": "jitter",
        "missed_share": "missed windows",
    }
    return names[statistic]


# ── what the report says ─────────────────────────────────────────────────────────────────────────────────────────────
def facts(results: Results) -> dict[str, Any]:
    """Everything that the template shows."""
    manifest, summary, trials = results.metadata, results.summary, results.trials
    seed = int(manifest["seed"])
    identical = frozenset(tuple(levels) for levels in manifest["identical_levels"])
    ranked_by = stats.decisive_quantile(summary)
    ranking = labelled(results, stats.intervals_by_configuration(summary, ranked_by, seed))
    compared = dict.fromkeys((ranked_by, "lateness_p50_ns", "jitter_ns", "missed_share"))
    comparisons = {s: stats.compare_levels(summary, s, seed, identical) for s in compared}
    counted = trials.loc[~trials["void"]]
    return {
        "manifest": manifest,
        "host": manifest["starts"][-1],
        "verdict": verdict(results, ranking, comparisons[ranked_by], statistic_name(ranked_by)),
        "ranked_by": statistic_name(ranked_by),
        "ranking": ranking.to_dict("records"),
        "comparisons": [_comparison_row(c) for found in comparisons.values() for c in found],
        "dimensions": dimension_rows(results),
        "agreement": agreement_rows(results.agreement),
        "run_delay": run_delay_rows(results.agreement),
        "probe_cost": _cost_rows(results),
        "void": trials.loc[trials["void"]].to_dict("records"),
        "trial_count": len(trials),
        "counted": len(counted),
        "planned": len(manifest["configurations"]) * int(manifest["sweep"]["repetitions"]),
        "trends": _trends(summary),
        "manifest_json": json.dumps(manifest, indent=1, ensure_ascii=False),
        "steal": trials["steal_share"].max(),
        "foreign": trials["foreign_cpu_share"].max(),
        "reference_p99_ns": counted["reference_p99_ns"].median() if len(counted) else np.nan,
        "columns": {name: store.TABLES[name] for name in store.TABLES},
        "minimum_pairs": stats.minimum_pairs(),
        "directory": shlex.quote(str(results.path.resolve())),
    }


def labelled(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with ``label``: the levels of its ``configuration``, for people."""
    labels = {identity: c["label"] for identity, c in results.metadata["configurations"].items()}
    return frame.assign(label=frame["configuration"].astype(str).map(labels))


def verdict(results: Results, ranking: pd.DataFrame, comparisons: list[Comparison], name: str) -> list[str]:
    """What can be said, and what cannot, in sentences; the most important first.

    Args:
        results: of the sweep.
        ranking: configurations with their intervals, best first.
        comparisons: of the axes' levels, by the same statistic.
        name: of that statistic.
    """
    repetitions = int(results.metadata["sweep"]["repetitions"])
    needed = stats.minimum_pairs()
    sentences = []
    rated = ranking.dropna(subset=["median"])
    if rated.empty:
        sentences.append(f"No configuration has a {name}: every trial is void, or too short for that quantile.")
    else:
        best, worst = rated.iloc[0], rated.iloc[-1]
        sentences.append(f"Lowest {name}: {best['label']}, {_with_interval(best)}.")
        if len(rated) > 1:
            sentences.append(f"Highest {name}: {worst['label']}, {_with_interval(worst)}.")
    refused = [str(label) for label in ranking.loc[ranking["median"].isna(), "label"]]
    if refused and len(rated):
        sentences.append(f"Without a {name}, because no trial counts: {'; '.join(refused)}.")
    if "p99" not in name:
        sentences.append(
            f"Judged by the {name}: the trials are too short for a p99 of every dimension "
            f"(it takes {stats.minimum_samples(0.99)} windows)."
        )
    for found in comparisons:
        sentences.append(_comparison_sentence(found))
    if repetitions < needed:
        counted = {1: "one repetition", 2: "two repetitions"}.get(repetitions, f"{repetitions} repetitions")
        sentences.append(
            f"With {counted} these intervals decide nothing: they only span the trials seen. Run at least {needed} "
            "repetitions to decide anything, more for small effects."
        )
    if doubts := _doubts(results):
        sentences.append(doubts)
    missed = stats.per_trial(results.summary, "missed_share")["value"]
    if len(missed):
        sentences.append(
            f"Windows missed, mean of the dimensions: median over trials {format_share(float(missed.median()))}, "
            f"worst trial {format_share(float(missed.max()))}."
        )
    return sentences


def _doubts(results: Results) -> str:
    """What of the sweep does not count, or is not there; empty if that is nothing."""
    planned = len(results.metadata["configurations"]) * int(results.metadata["sweep"]["repetitions"])
    void = sum(bool(record.void_reasons) for record in results.records)
    counted = len(results.records) - void
    if not void and counted == planned:
        return ""
    told = f"{counted} of {planned} planned trials count"
    return f"{told}; {void} of {len(results.records)} that were run are void (see below)." if void else f"{told}."


def _with_interval(row: pd.Series) -> str:
    trials = f"{row['trials']} trial{'s' if row['trials'] != 1 else ''}"
    return f"{format_ns(row['median'])} (interval {format_ns(row['low'])} to {format_ns(row['high'])} over {trials})"


def _comparison_sentence(found: Comparison) -> str:
    name = statistic_name(found.statistic)
    d = found.difference
    if not d.n:
        return f"{found.axis}: {found.level} against {found.baseline}: undecided, because no block has a whole pair."
    size = (
        f"{format_statistic(found.statistic, d.median, signed=True)} "
        f"(interval {format_statistic(found.statistic, d.low, signed=True)} to "
        f"{format_statistic(found.statistic, d.high, signed=True)}, ratio {format_ratio(found.ratio)})"
    )
    if found.identical:
        same = f"{found.axis}: {found.level} and {found.baseline} are the same (A/A)"
        return f"{same}; their {name} differs by {size}: the noise floor."
    if found.verdict == "undecided":
        return f"{found.axis}: {found.level} against {found.baseline}: undecided, {name} {size}; {found.reason}."
    return f"{found.axis}: {found.level} has {found.verdict} {name} than {found.baseline}: {size}."


def _comparison_row(found: Comparison) -> dict[str, str]:
    def text(value: float, signed: bool = True) -> str:
        return format_statistic(found.statistic, value, signed=signed)

    return {
        "axis": found.axis,
        "levels": f"{found.level} against {found.baseline}",
        "statistic": statistic_name(found.statistic),
        "difference": text(found.difference.median),
        "interval": f"{text(found.difference.low)} … {text(found.difference.high)}" if found.difference.n else "–",
        "ratio": format_ratio(found.ratio),
        "blocks": str(found.difference.n),
        "verdict": "A/A" if found.identical else found.verdict,
        "reason": found.reason,
    }


def dimension_rows(results: Results) -> list[dict[str, Any]]:
    """Per dimension, the median of each statistic over all trials that count; NaN unless every one of them has it."""
    summary = results.summary
    counted = summary.loc[~summary["void"].astype(bool)]
    numbers = [
        "lateness_p50_ns",
        "lateness_p90_ns",
        "lateness_p99_ns",
        "lateness_p999_ns",
        "lateness_max_ns",
        "jitter_ns",
        "lateness_p50_over_reference",
        "lateness_p99_over_reference",
        "missed_share",
        "skipped_share",
        "overrun_share",
        "credit_use_share",
    ]
    rows: list[dict[str, Any]] = []
    for name, group in counted.groupby("dimension", observed=True, sort=False):
        row: dict[str, Any] = {"dimension": str(name), "trials": len(group)}
        row |= {column: str(group[column].iloc[0]) for column in ("role", "storage")}
        row |= {"triad": int(group["triad"].iloc[0]), "windows": int(group["windows"].sum())}
        # A quantile that only some trials support is none: next to the others it would be of other trials than they.
        row |= {column: float(group[column].median(skipna=False)) for column in numbers}
        # A rare miss vanishes in a median: shares are averaged, and the greatest lateness is the greatest.
        row |= {column: float(group[column].mean()) for column in numbers if column.endswith("_share")}
        row["lateness_max_ns"] = float(group["lateness_max_ns"].max())
        rows.append(row)
    return rows


def agreement_rows(agreement: pd.DataFrame) -> list[dict[str, Any]]:
    """Per probe and quantity: sums by both accounts, how many comparisons ended how, and why in words."""
    return _compared(agreement, ["probe", "quantity"])


def run_delay_rows(agreement: pd.DataFrame) -> list[dict[str, Any]]:
    """The same per dimension, for the run delay: whether both accounts can agree depends on how a dimension waits."""
    if agreement.empty:
        return []
    return _compared(agreement.loc[agreement["quantity"] == "run_delay_ns"], ["dimension"])


def _compared(agreement: pd.DataFrame, by: list[str]) -> list[dict[str, Any]]:
    if agreement.empty:
        return []
    oracle, apart = agreement["oracle"].abs(), agreement["difference"].abs()
    # Where the kernel counted nothing, anything of ours is infinitely far from it, and nothing is no difference.
    relative = (apart / oracle.where(oracle > 0)).fillna(np.inf).where(apart > 0, 0.0)
    agreement = agreement.assign(relative=relative)
    rows = []
    for keys, group in agreement.groupby(by, sort=False):
        outcomes = {
            outcome: group.loc[[agrees is outcome for agrees in group["agrees"]]] for outcome in (True, False, None)
        }
        measured, kernels = float(group["measured"].sum()), float(group["oracle"].sum())
        reasons = {
            "disagree": outcomes[False],
            "not comparable": outcomes[None],
            "agree, but with a remark": outcomes[True].loc[outcomes[True]["reason"] != ""],
        }
        rows.append(
            dict(zip(by, map(str, keys), strict=True))
            | {
                "measured": measured,
                "oracle": kernels,
                "difference": (measured - kernels) / kernels if kernels else 0.0 if measured == kernels else np.inf,
                "rows": len(group),
                "within": int((group["relative"] <= FLAT_TOLERANCE).sum()),
                "agreed": len(outcomes[True]),
                "not_comparable": len(outcomes[None]),
                "disagreed": len(outcomes[False]),
                "why": [_worst_reason(what, found) for what, found in reasons.items() if len(found)],
            }
        )
    return rows


def _worst_reason(what: str, rows: pd.DataFrame) -> str:
    """What there is to say to some comparisons, by the example of the one that is furthest apart."""
    worst = rows.sort_values("relative", kind="stable").iloc[-1]
    allowed = "" if worst["reason"] else f"differs by {worst['difference']}, allowed {worst['tolerance']}"
    apart = format_signed_share(float(np.copysign(worst["relative"], worst["difference"])))
    place = f"{apart}, {worst['dimension']} in {worst['trial']}"
    return f"{len(rows)} {what}: {worst['reason'] or allowed} ({'worst: ' if len(rows) > 1 else ''}{place})"


def _cost_rows(results: Results) -> list[dict[str, Any]]:
    """Per BPF program: runs, time per run and share of one CPU, medians over trials; missed events of all trials."""
    frame = results.probe_cost
    if frame.empty:
        return []
    wall = {record.trial: record.facts["wall_ns"] for record in results.records}
    frame = frame.assign(cpu_share=frame["run_ns"] / frame["trial"].map(wall))
    rows = []
    for (probe, program), group in frame.groupby(["probe", "program"], sort=False):
        runs = float(group["runs"].sum())
        rows.append(
            {
                "probe": probe,
                "program": program,
                "runs": int(group["runs"].median()),
                "ns_per_run": float(group["run_ns"].sum()) / runs if runs else np.nan,
                "cpu_share": float(group["cpu_share"].median()),
                "missed": int(group["missed"].sum()),
            }
        )
    return rows


def _trends(summary: pd.DataFrame) -> dict[str, Any]:
    """How many trial × dimension series drift, against how many would by chance."""
    tested = summary.loc[~summary["void"].astype(bool)].dropna(subset=["trend_p"])
    drifting = tested.loc[tested["trend_p"] < 1 - stats.CONFIDENCE]
    return {
        "tested": len(tested),
        "drifting": len(drifting),
        "by_chance": (1 - stats.CONFIDENCE) * len(tested),
        "slope_ns_per_s": float(tested["trend_ns_per_s"].median()) if len(tested) else np.nan,
    }


# ── plots ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def annotate(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """A per-trial table with ``label`` (its configuration's levels) and, where it has dimensions, ``triad``."""
    configuration = {record.trial: record.configuration for record in results.records}
    found = labelled(results, frame.assign(configuration=frame["trial"].astype(str).map(configuration)))
    if "dimension" in found:
        triads = {d["name"]: d["index"] // 3 + 1 for record in results.records for d in record.dimensions}
        found = found.assign(triad=found["dimension"].astype(str).map(triads))
    return found


def draw(results: Results) -> dict[str, Figure]:
    """The plots of a sweep, by name. Void trials are left out, unless there are no others."""
    summary = results.summary
    shown = [record for record in results.records if not record.void_reasons] or results.records
    names = [record.trial for record in shown]
    if len(shown) == len(results.records) and shown[0].void_reasons:
        summary = summary.assign(void=False)
    place = {identity: i for i, identity in enumerate(results.metadata["configurations"])}
    windows = annotate(results, results.windows)
    windows = windows.loc[windows["trial"].isin(names)]
    windows = windows.assign(order=windows["configuration"].map(place)).sort_values("order", kind="stable")
    reference = annotate(results, results.reference)
    reference = reference.loc[reference["trial"].isin(names)]
    seed = int(results.metadata["seed"])
    ranked_by = stats.decisive_quantile(summary)
    ranking = labelled(results, stats.intervals_by_configuration(summary, ranked_by, seed))
    per_trial = stats.per_trial(summary, ranked_by)
    worst = _worst_trial(per_trial)
    figures = {
        "intervals": plots.intervals(ranking, per_trial, ranked_by),
        "heatmap": plots.heatmap(summary, ranked_by),
        "percentiles": plots.percentiles(windows, reference),
        "ccdf": plots.ccdf(windows),
    }
    chosen = windows.loc[windows["trial"].astype(str) == worst].sort_values(["dimension", "window"])
    label = chosen["label"].iloc[0]
    note = f"trial {worst}:\nthe highest {statistic_name(ranked_by)}"
    figures["over_time"] = plots.over_time(chosen, f"Lateness over time: {label}", note)
    histograms = annotate(results, results.histograms)
    histograms = histograms.loc[histograms["trial"].isin(names) & histograms["dimension"].notna()]
    for (probe, metric), rows in histograms.groupby(["probe", "metric"], observed=True):
        title = PROBE_TITLES.get(str(metric), str(metric).removesuffix("_ns").replace("_", " ").capitalize())
        figures[f"probe_{probe}_{metric}".removesuffix("_ns")] = plots.probe_histogram(rows, title)
    return figures


def _worst_trial(per_trial: pd.DataFrame) -> str:
    """The trial with the highest figure; one without a figure only if there is no other."""
    return str(per_trial.sort_values("value", na_position="first")["trial"].iloc[-1])
