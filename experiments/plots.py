"""Plots of sweeps and trials: each function draws one documented frame and returns a matplotlib figure.

Colours are Okabe and Ito's palette, which people with any common colour-vision deficiency can tell apart. A triad has
the same colour in every plot. Trials are drawn as lines of their own and never pooled: the spread between them is the
uncertainty.

``annotate`` in :mod:`experiments.report` adds the columns ``label`` (the levels of a configuration) and ``triad``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments import stats
from experiments.stats import Floats

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, YELLOW, BLACK, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#222222", "#8A8A8A"
TRIAD_COLOURS = (BLUE, ORANGE, GREEN)
SERIES_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PINK, SKY, BLACK, "#B8A400")
SERIES_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.")
HDR_TICKS = {0.5: "50%", 0.9: "90%", 0.99: "99%", 0.999: "99.9%", 0.9999: "99.99%", 0.99999: "99.999%"}
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(_STYLE):
        yield


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return figure


def triad_colour(triad: int) -> str:
    """The colour of a triad, counted from 1."""
    return TRIAD_COLOURS[(triad - 1) % len(TRIAD_COLOURS)]


def _triad_name(triad: int) -> str:
    return f"D{3 * triad - 2}–D{3 * triad}"


def format_ns(value: float, _: object = None) -> str:
    """A duration with three significant digits and its unit; ``never`` for an infinite one, a dash for none."""
    if not np.isfinite(value):
        return "never" if value > 0 else "–"
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} ns"


def _log_ns(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    if low > 0 and high / low < 300:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(format_ns))
    axis.set_minor_formatter(NullFormatter())


def _panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    flat: list[Axes] = list(grid.flat)
    for unused in flat[count:]:
        unused.set_visible(False)
    for axes in flat[max(0, count - columns) : count]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return flat[:count]


def _lateness(group: pd.DataFrame) -> tuple[Floats, int]:
    """Lateness of the windows that were entered, sorted, and the number of those that were not."""
    values = np.sort(group["lateness_ns"].dropna().to_numpy(dtype=float))
    return values, len(group) - len(values)


def _thin(n: int, most: int = 400) -> Any:
    """Indices into ``n`` sorted samples, close together towards the tail where each of them shows."""
    if n <= most:
        return np.arange(n)
    return np.unique(n - np.unique(np.geomspace(1, n, most).astype(int)))


def percentiles(windows: pd.DataFrame, reference: pd.DataFrame) -> Figure:
    """Lateness by percentile on the HDR axis: one panel for each configuration, one line for each triad and trial.

    A line ends at the last percentile that its number of samples supports. Windows never entered count as latest, so
    a line that ends early and high missed windows.

    Args:
        windows: table ``windows`` with ``label`` and ``triad``; warm-up is left out here.
        reference: table ``reference`` with ``label``.
    """
    windows, reference = windows.loc[~windows["warmup"]], reference.loc[~reference["warmup"]]
    labels = list(dict.fromkeys(windows["label"]))
    columns = min(4, len(labels))
    rows = -(-len(labels) // max(columns, 1))
    with _style():
        figure = _figure(3.1 * columns + 0.6, 2.5 * rows + 1.0, "Lateness by percentile")
        ends = [10.0]
        for axes, label in zip(_panels(figure, len(labels), columns), labels, strict=True):
            for _, group in reference.loc[reference["label"] == label].groupby("trial", observed=True):
                ends.append(_hdr_line(axes, *_lateness(group), color=GREY, linewidth=0.9, linestyle=(0, (3, 2))))
            chosen = windows.loc[windows["label"] == label]
            for (triad, _), group in chosen.groupby(["triad", "trial"], observed=True):
                line: dict[str, Any] = {"color": triad_colour(int(triad)), "linewidth": 1.2, "alpha": 0.85}
                ends.append(_hdr_line(axes, *_lateness(group), **line))
            _log_ns(axes, "y")
            axes.set_title(label)
        for axes in figure.axes:
            axes.set_xscale("log")
            shown = {1 / (1 - q): text for q, text in HDR_TICKS.items() if 1 / (1 - q) <= max(ends) * 1.05}
            axes.xaxis.set_major_locator(FixedLocator(list(shown)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _, shown=shown: _nearest(shown, x)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlim(1.25, max(ends) * 1.15)
        figure.supxlabel("share of windows at most this late", fontsize=9)
        figure.supylabel("lateness", fontsize=9)
        triads = sorted(windows["triad"].unique())
        handles = [Line2D([], [], color=triad_colour(t), label=_triad_name(t)) for t in triads]
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (3, 2)), label="reference thread"))
        _legend_above(figure, handles, "one line for each trial")
    return figure


def _nearest(ticks: dict[float, str], x: float) -> str:
    return ticks[min(ticks, key=lambda tick: abs(tick - x))]


def _legend_above(figure: Figure, handles: Sequence[Line2D], note: str = "") -> None:
    title = {"title": note, "title_fontsize": 8.5} if note else {}
    figure.legend(
        handles=list(handles),
        loc="outside right upper",
        fontsize=8.5,
        alignment="left",
        **title,
    )


def _hdr_line(axes: Axes, values: Floats, never: int, **line: Any) -> float:
    """Draw sorted values against ``1 / (1 - q)``; return where the line ends."""
    total = len(values) + never
    if total < stats.minimum_samples(0.5):
        return 1.0
    supported = (1 - stats.CONFIDENCE) ** (1 / total)
    at = _thin(len(values))
    q = (at + 1) / (total + 1)
    keep = (q <= supported) & (q >= 0.2)
    if not keep.any():
        return 1.0
    x = 1 / (1 - q[keep])
    axes.plot(x, values[at[keep]], **line)
    return float(x[-1])


def ccdf(windows: pd.DataFrame) -> Figure:
    """How often a window is later than a given time: one panel for each triad, one line for each trial.

    Args:
        windows: table ``windows`` with ``label`` and ``triad``; warm-up is left out here.
    """
    windows = windows.loc[~windows["warmup"]]
    labels, triads = list(dict.fromkeys(windows["label"])), sorted(windows["triad"].unique())
    looks = {
        label: (SERIES_COLOURS[i % len(SERIES_COLOURS)], SERIES_STYLES[i // len(SERIES_COLOURS) % len(SERIES_STYLES)])
        for i, label in enumerate(labels)
    }
    with _style():
        figure = _figure(3.7 * len(triads) + 2.2, 3.9, "Share of windows later than …")
        for axes, triad in zip(_panels(figure, len(triads), len(triads)), triads, strict=True):
            chosen = windows.loc[windows["triad"] == triad]
            for (label, _), group in chosen.groupby(["label", "trial"], observed=True, sort=False):
                colour, style = looks[str(label)]
                values, share = stats.ccdf(*_lateness(group))
                at = _thin(len(values))
                at = at[share[at] > 0]
                axes.plot(values[at], share[at], color=colour, linestyle=style, linewidth=1.1, alpha=0.8)
            _log_ns(axes, "x")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g}%"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(_triad_name(int(triad)), color=triad_colour(int(triad)), fontweight="bold")
            axes.set_xlabel("lateness")
        figure.axes[0].set_ylabel("share of windows that are later")
        handles = [Line2D([], [], color=c, linestyle=s, label=label) for label, (c, s) in looks.items()]
        _legend_above(figure, handles, "one line for each trial")
    return figure


def over_time(windows: pd.DataFrame, title: str, note: str = "") -> Figure:
    """Lateness over the course of one trial: one strip for each dimension; windows never entered stand on top.

    Args:
        windows: table ``windows`` of one trial with ``triad``; the warm-up is shown, shaded.
        title: which trial.
        note: above the legend: why this one.
    """
    names = list(dict.fromkeys(windows["dimension"].astype(str)))
    start = int(windows["planned_ns"].min())
    late = windows["lateness_ns"].dropna()
    late = late[late > 0]
    bottom, top = (late.quantile(0.001) / 1.5, late.max() * 1.5) if len(late) else (1e3, 1e6)
    warm = windows.loc[windows["warmup"], "planned_ns"]
    with _style():
        figure = _figure(10.5, 0.78 * len(names) + 1.3, title)
        strips = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, name in zip(strips, names, strict=True):
            rows = windows.loc[windows["dimension"].astype(str) == name]
            seconds = (rows["planned_ns"] - start) / 1e9
            entered = rows["lateness_ns"].notna()
            colour = triad_colour(int(rows["triad"].iloc[0]))
            axes.plot(
                seconds[entered], rows.loc[entered, "lateness_ns"], ".", color=colour, markersize=2.2, rasterized=True
            )
            never = seconds[~entered]
            axes.plot(never, np.full(len(never), top * 2.0), "|", color=VERMILLION, markersize=8, markeredgewidth=1.1)
            if len(warm):
                axes.axvspan(0, (warm.max() - start) / 1e9, color="#EFEFEF", zorder=0)
            _log_ns(axes, "y")
            axes.set_ylim(bottom, top * 4.5)
            axes.set_ylabel(name.upper(), rotation=0, ha="right", va="center", color=colour, fontweight="bold")
            share = f"{len(never)} of {len(rows)} never entered" if len(never) else ""
            axes.text(
                1.0, 1.0, share, transform=axes.transAxes, ha="right", va="bottom", fontsize=7.5, color=VERMILLION
            )
        strips[-1].set_xlabel("time since the first edge (s)")
        figure.supylabel("lateness", fontsize=9)
        handles = [
            Line2D([], [], color=GREY, marker=".", linestyle="", label="window entered"),
            Line2D([], [], color=VERMILLION, marker="|", linestyle="", markersize=8, label="missed or skipped"),
            Line2D([], [], color="#DDDDDD", linewidth=6, label="warm-up"),
        ]
        _legend_above(figure, handles, note)
    return figure


def heatmap(summary: pd.DataFrame, statistic: str = "lateness_p99_ns") -> Figure:
    """The sweep at a glance: the statistic by the levels of its axes, one panel for each triad.

    A cell is the median over trials of the median over the triad's dimensions; void trials are left out. ``never``
    stands where the quantile falls among windows that were never entered, a dash where there are too few windows.

    Args:
        summary: table ``summary``.
        statistic: one of its columns in ns.
    """
    axes_names = stats.axis_columns(summary)
    counted = summary.loc[~summary["void"].astype(bool)]
    across, down = axes_names[-1:], axes_names[:-1]
    triads = sorted(counted["triad"].unique())
    cells = (
        counted.groupby(["triad", "trial", *axes_names], observed=True, sort=False)[statistic]
        .median()
        .groupby(["triad", *axes_names], observed=True, sort=False)
        .median()
        .reset_index()
    )
    row_of = _level_labels(summary, down)
    column_of = _level_labels(summary, across)
    finite = cells.loc[np.isfinite(cells[statistic]), statistic]
    norm = LogNorm(*((finite.min(), max(finite.max(), finite.min() * 1.01)) if len(finite) else (1, 10)))
    with _style():
        width = max(2.4, 1.05 * len(column_of)) * len(triads) + 2.6
        figure = _figure(width, 0.5 * len(row_of) + 1.9, f"{_statistic_title(statistic)} by configuration")
        panels = figure.subplots(1, len(triads), squeeze=False, sharey=True)[0]
        image = None
        for axes, triad in zip(panels, triads, strict=True):
            values = np.full((len(row_of), len(column_of)), np.nan)
            for _, cell in cells.loc[cells["triad"] == triad].iterrows():
                row = row_of[tuple(str(cell[name]) for name in down)]
                values[row, column_of[tuple(str(cell[name]) for name in across)]] = cell[statistic]
            image = axes.imshow(np.where(np.isfinite(values), values, np.nan), norm=norm, cmap="cividis", aspect="auto")
            axes.set_facecolor("#F1F1F1")
            for (row, column), value in np.ndenumerate(values):
                dark = bool(np.isfinite(value)) and norm(value) < 0.55
                text = {"ha": "center", "va": "center", "color": "white" if dark else BLACK}
                axes.text(column, row, format_ns(value), **text)
            axes.set_xticks(range(len(column_of)), [" · ".join(key) for key in column_of])
            axes.set_yticks(range(len(row_of)), [" · ".join(key) for key in row_of])
            axes.grid(False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(_triad_name(int(triad)), color=triad_colour(int(triad)), fontweight="bold")
            axes.set_xlabel(across[0].removeprefix("axis_") if across else "")
        panels[0].set_ylabel(" · ".join(name.removeprefix("axis_") for name in down))
        if image is not None:
            bar = figure.colorbar(image, ax=list(panels), pad=0.015, fraction=0.03)
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            bar.ax.yaxis.set_major_formatter(FuncFormatter(format_ns))
            bar.ax.yaxis.set_minor_locator(NullLocator())
            bar.ax.tick_params(labelsize=7.5)
            bar.outline.set_visible(False)
    return figure


def _level_labels(summary: pd.DataFrame, columns: Sequence[str]) -> dict[tuple[str, ...], int]:
    """The combinations of levels that occur, in the order of the sweep file, each with its place."""
    ranks = [{level: i for i, level in enumerate(stats.levels_of(summary, name))} for name in columns]
    combinations = {tuple(map(str, row)) for row in summary[list(columns)].astype(str).itertuples(index=False)} or {()}
    ordered = sorted(combinations, key=lambda key: [rank[level] for rank, level in zip(ranks, key, strict=True)])
    return {key: i for i, key in enumerate(ordered)}


def _statistic_title(statistic: str) -> str:
    words = statistic.removesuffix("_ns").replace("p999", "p99.9").split("_")
    return f"{words[1]} lateness" if words[0] == "lateness" else " ".join(words)


def intervals(configurations: pd.DataFrame, trials: pd.DataFrame, statistic: str = "lateness_p99_ns") -> Figure:
    """Each configuration's median and interval over trials, with the trials themselves; best on top.

    Args:
        configurations: frame of :func:`experiments.stats.intervals_by_configuration` with ``label``.
        trials: frame of :func:`experiments.stats.per_trial`.
        statistic: what is shown, in ns.
    """
    with _style():
        figure = _figure(
            8.6, 0.36 * len(configurations) + 1.5, f"{_statistic_title(statistic)}, median of the dimensions"
        )
        axes = figure.subplots()
        places = list(range(len(configurations)))
        finite = trials.loc[np.isfinite(trials["value"]), "value"]
        greatest = 1.05 * finite.max() if len(finite) else 1.0
        for place, (_, row) in enumerate(configurations.iterrows()):
            values = trials.loc[trials["configuration"].astype(str) == str(row["configuration"]), "value"]
            axes.plot(values, np.full(len(values), place), "o", color=SKY, markersize=4.5, alpha=0.9, zorder=2)
            axes.plot([row["low"], min(row["high"], greatest)], [place, place], color=BLUE, linewidth=2.4, zorder=1)
            axes.plot(row["median"], place, "D", color=BLACK, markersize=5, zorder=3)
            if not np.isfinite(row["median"]):
                said = "never: most trials missed too many windows" if row["median"] > 0 else "no trial that counts"
                axes.text(0.01, place, said, transform=axes.get_yaxis_transform(), va="center", color=VERMILLION)
        axes.set_yticks(places, list(configurations["label"]))
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(format_ns))
        axes.set_xlim(0, 1.05 * greatest)
        axes.set_ylim(len(configurations) - 0.4, -0.6)
        handles = [
            Line2D([], [], color=SKY, marker="o", linestyle="", markersize=4.5, label="a trial"),
            Line2D([], [], color=BLACK, marker="D", linestyle="", markersize=5, label="median over trials"),
            Line2D([], [], color=BLUE, linewidth=2.4, label="95 % interval over trials"),
        ]
        _legend_above(figure, handles)
    return figure


def probe_histogram(histograms: pd.DataFrame, title: str) -> Figure:
    """A probe's latency for each dimension, as the kernel counted it: one ridge for each dimension.

    Args:
        histograms: rows of the table ``histograms`` of one metric, with ``triad``; all trials are added up.
        title: which metric.
    """
    merged = stats.merge_histograms(histograms, ["triad", "dimension"])
    names = list(dict.fromkeys(merged["dimension"].astype(str)))
    with _style():
        figure = _figure(8.6, 0.62 * len(names) + 1.4, title)
        axes = figure.subplots()
        for place, name in enumerate(names):
            rows = merged.loc[merged["dimension"].astype(str) == name]
            low, high, count = (rows[c].to_numpy(dtype=float) for c in ("low_ns", "high_ns", "count"))
            colour = triad_colour(int(rows["triad"].iloc[0]))
            edges, density = _log_density(low, high, count)
            height = 0.85 * density / max(density.max(), 1e-12)
            axes.stairs(place - height, edges, baseline=place, fill=True, color=colour, alpha=0.55, linewidth=0)
            axes.stairs(place - height, edges, baseline=None, color=colour, linewidth=1.0)
            for q, mark in ((0.5, "o"), (0.99, "D")):
                value = stats.histogram_quantile(low, high, count, q)
                axes.plot(value, place - 0.08, mark, color=BLACK, markersize=4, zorder=3)
        axes.set_yticks(range(len(names)), [name.upper() for name in names])
        axes.set_ylim(len(names) - 0.6, -1.05)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        _log_ns(axes, "x")
        handles = [
            Line2D([], [], color=BLACK, marker="o", linestyle="", markersize=4, label="p50"),
            Line2D([], [], color=BLACK, marker="D", linestyle="", markersize=4, label="p99"),
        ]
        _legend_above(figure, handles)
    return figure


def _log_density(low: Floats, high: Floats, count: Floats, per_decade: int = 24) -> tuple[Floats, Floats]:
    """Buckets of any width, spread over equal steps of the logarithm, from 100 ns or less."""
    least, most = max(low[low > 0].min(initial=np.inf), 100.0), max(high.max(), 1000.0)
    least = min(least, most / 10)
    edges = np.geomspace(least, most, int(np.log10(most / least) * per_decade) + 2)
    # Each bucket is spread evenly over its own width, so the cumulative count is linear between bucket edges.
    order = np.argsort(low)
    points = np.empty(2 * len(low))
    points[0::2], points[1::2] = low[order], high[order]
    heights = np.empty_like(points)
    total = np.cumsum(count[order])
    heights[0::2], heights[1::2] = total - count[order], total
    return edges, np.diff(np.interp(edges, points, heights))
