"""Plots: each draws its frame; nothing that the frame holds is left out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

import experiments
from experiments import plots, report, stats
from experiments.store import Results

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def results(make_results: Maker, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return experiments.load(make_results(tmp_path_factory.mktemp("plots") / "r", factors={"golden": 2.0}))


def texts(figure: Figure) -> str:
    figure.draw_without_rendering()
    found = [text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))]  # type: ignore[attr-defined]
    return "\n".join(found)


def test_every_plot_of_a_sweep_renders(results: Results) -> None:
    figures = report.draw(results)
    assert set(figures) == {
        "intervals",
        "heatmap",
        "percentiles",
        "ccdf",
        "over_time",
        "probe_sched_run_queue_latency",
    }
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
        buffer.seek(0)
        pixels = matplotlib.image.imread(buffer)
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10, name


def test_the_percentile_plot_has_a_panel_for_each_configuration_and_a_line_for_each_triad_and_trial(
    results: Results,
) -> None:
    windows = report.annotate(results, results.windows)
    figure = plots.percentiles(windows, report.annotate(results, results.reference))
    assert len(figure.axes) == 4
    assert [len(axes.lines) for axes in figure.axes] == [2 * 3 + 2] * 4
    shown = texts(figure)
    for word in ("50%", "90%", "99%", "D1–D3", "reference thread", "golden · 12ms"):
        assert word in shown
    assert "99.99%" not in shown


def test_lines_end_where_the_samples_do(results: Results) -> None:
    windows = report.annotate(results, results.windows)
    figure = plots.percentiles(windows, report.annotate(results, results.reference))
    counted = windows.loc[~windows["warmup"]].groupby(["trial", "triad"], observed=True).size()
    furthest = max(line.get_xdata()[-1] for axes in figure.axes for line in axes.lines)  # type: ignore[index]
    assert furthest <= max(counted.max(), 750) + 1


def test_missed_windows_are_visible_over_time(results: Results) -> None:
    trial = results.records[0].trial
    windows = report.annotate(results, results.table("windows", trial))
    figure = plots.over_time(windows, "one trial")
    for axes, (_, rows) in zip(figure.axes, windows.groupby("dimension", observed=True, sort=False), strict=True):
        entered, never = axes.lines
        assert len(entered.get_xdata()) == rows["lateness_ns"].notna().sum()  # type: ignore[arg-type]
        assert len(never.get_xdata()) == rows["lateness_ns"].isna().sum()  # type: ignore[arg-type]


def test_the_heatmap_shows_the_median_of_each_cell(results: Results) -> None:
    figure = plots.heatmap(results.summary, "lateness_p50_ns")
    summary = results.summary
    cell = summary.loc[
        (summary["triad"] == 1) & (summary["axis_ratio"] == "golden") & (summary["axis_base_window"] == "6ms")
    ]
    expected = cell.groupby("trial", observed=True)["lateness_p50_ns"].median().median()
    assert plots.format_ns(float(expected)) in texts(figure)


def test_levels_stand_in_the_order_of_the_sweep_file(results: Results) -> None:
    figure = plots.heatmap(results.summary.iloc[::-1], "lateness_p50_ns")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["harmonic", "golden"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["6ms", "12ms"]


def test_a_sweep_without_axes_has_a_heatmap_of_one_cell(results: Results) -> None:
    summary = results.summary.drop(columns=["axis_ratio", "axis_base_window"])
    assert texts(plots.heatmap(summary, "lateness_p50_ns")).count("µs") >= 3


def test_a_cell_without_a_quantile_says_why(results: Results) -> None:
    summary = results.summary.copy()
    summary["lateness_p90_ns"] = np.where(summary["triad"] == 1, math.inf, math.nan)
    shown = texts(plots.heatmap(summary, "lateness_p90_ns"))
    assert "never" in shown
    assert "–" in shown


def test_the_probe_histogram_has_a_ridge_for_each_dimension(results: Results) -> None:
    figure = plots.probe_histogram(report.annotate(results, results.histograms), "run queue latency")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"D{n}" for n in range(1, 10)]


def test_spreading_buckets_over_the_logarithm_keeps_every_event() -> None:
    low, high = np.array([0.0, 1000, 2000, 64_000]), np.array([1000.0, 2000, 3000, 65_000])
    count = np.array([0.0, 10, 20, 5])
    edges, density = plots._log_density(low, high, count)
    assert density.sum() == pytest.approx(35, rel=1e-6)
    assert len(edges) == len(density) + 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 ns"), (999.6, "1 µs"), (1500.0, "1.5 µs"), (12_345_678.0, "12.3 ms"), (2.5e9, "2.5 s")],
)
def test_durations_read_with_their_unit(value: float, text: str) -> None:
    assert plots.format_ns(value) == text


def test_no_duration_is_a_dash_and_an_infinite_one_is_never() -> None:
    assert plots.format_ns(math.nan) == "–"
    assert plots.format_ns(math.inf) == "never"


def test_the_ranking_shows_every_trial(results: Results) -> None:
    ranking = report.labelled(results, stats.intervals_by_configuration(results.summary, "jitter_ns", 1))
    figure = plots.intervals(ranking, stats.per_trial(results.summary, "jitter_ns"), "jitter_ns")
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == len(results.records)  # type: ignore[arg-type]
