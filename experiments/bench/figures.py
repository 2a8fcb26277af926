"""From the runs of a benchmark to its figures; pure but for the two that interleave, which call what they are given.

How a figure is made: each run gives one value for each arm (a quantile over its own samples; samples inside a run are
correlated, so they are not pooled). The figure is the **median over the runs**; ``low`` and ``high`` are the smallest
and the largest run. A comparison adds the peer's median; ``ratio`` is the **median of the ratios within one block**
(ours and the peer's run that stood beside it), so what drifts from block to block leaves it alone; ``ratio_low`` and
``ratio_high`` are the smallest and the largest of these.

The intervals of both medians are those of :func:`experiments.stats.interval`: bootstrapped over runs, or over blocks.
There is none below :func:`experiments.stats.minimum_pairs` runs. A limit is judged by the interval alone: *inside* if
all of it keeps to the limit, *beyond* if none of it does, else *undecided*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from vcg.errors import HostError

if TYPE_CHECKING:  # else where it is used: it imports pandas, for which `vcg --help` must not wait
    from experiments.stats import Interval

BOOTSTRAP_SEED = 1
RERUNS = 2
"""How often a block that is void is run again, at most."""

Sample = TypeVar("Sample")
Progress = Callable[[str], None]
"""Called before each arm is run, with what it is."""


Bounds = tuple[float, float]


@dataclass(frozen=True)
class Limit:
    """What a figure is to keep to; declared in the module of its benchmark.

    Attributes:
        least, most: in the unit of the figure; None if there is no such bound.
        of_ratio: whether they bind the ratio of a comparison, not its value.
    """

    least: float | None = None
    most: float | None = None
    of_ratio: bool = False


@dataclass(frozen=True)
class Verdict:
    """What an interval says of a limit.

    Attributes:
        outcome: ``inside``, ``beyond`` or ``undecided``.
        more_runs: if undecided, how many more it would probably take; None if there is no telling.
    """

    outcome: str
    more_runs: int | None = None


@dataclass(frozen=True)
class Figure:
    """One result.

    Attributes:
        name: stable, for comparison between commits.
        value, low, high: median, smallest and largest of the runs.
        unit: of these three, and of the following two.
        values: one for each run, in the order of the runs; empty if the figure is none of runs.
        interval: of the median; None if there are too few runs.
        limit, verdict: None if nothing is asked of it.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    values: tuple[float, ...] = field(default=(), kw_only=True)
    interval: Bounds | None = field(default=None, kw_only=True)
    limit: Limit | None = field(default=None, kw_only=True)
    verdict: Verdict | None = field(default=None, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison(Figure):
    """A result beside that of a peer, in the same unit; a ratio below 1 means that ours is smaller."""

    peer: str
    peer_value: float
    peer_values: tuple[float, ...]
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_interval: Bounds | None


@dataclass(frozen=True)
class Tally(Figure):
    """A count, and the table that it was counted over."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Benchmark:
    """What ``vcg bench`` can run.

    Attributes:
        name: on the command line.
        what: one line on what is measured against what.
        runs: how often, unless told.
        seconds: length of one run of one arm, unless told; None if a run takes as long as it takes.
        arms: how many arms a run has (for the progress bar).
        measure: (runs, seconds, progress) -> figures.
        is_seeded: whether ``measure`` takes the seed of its random choices as one argument more.
    """

    name: str
    what: str
    runs: int
    seconds: float | None
    arms: int
    measure: Callable[..., list[Figure]]
    is_seeded: bool = False


def interleave(
    arms: Mapping[str, Callable[[], Sample]], runs: int, progress: Progress = lambda arm: None
) -> dict[str, list[Sample]]:
    """Run every arm once in each block, and reverse the order from block to block (ABBA for two arms).

    Slow drift of the host then hits all arms alike.

    Returns:
        For each arm its samples, in the order of the blocks.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    for block in range(runs):
        for name in _order(arms, block):
            progress(f"{name}, run {block + 1} of {runs}")
            samples[name].append(arms[name]())
    return samples


def interleave_unless_void(
    arms: Mapping[str, Callable[[], tuple[Sample, Sequence[str]]]], runs: int, progress: Progress = lambda arm: None
) -> tuple[dict[str, list[Sample]], Tally]:
    """As :func:`interleave`, with arms that tell why what they give does not count, for reasons declared beforehand.

    A block with such an arm is void: it ends there, and is run again, at most :data:`RERUNS` times. Nothing here looks
    at the samples themselves.

    Args:
        arms: each gives a sample, and the reasons why it is void; none if it counts.

    Returns:
        For each arm the samples of the blocks that count, and the figure ``void_blocks``.

    Raises:
        HostError: no block counts.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    void: list[tuple[str, ...]] = []
    kept = 0
    for block in range(runs):
        for attempt in range(1 + RERUNS):
            found: dict[str, Sample] = {}
            for name in _order(arms, block):
                progress(f"{name}, run {block + 1} of {runs}{', once more' if attempt else ''}")
                found[name], reasons = arms[name]()
                if reasons:
                    void.append((str(block + 1), name, "; ".join(reasons)))
                    break
            else:
                kept += 1
                for name, sample in found.items():
                    samples[name].append(sample)
                break
    if not kept:
        raise HostError(f"all {len(void)} blocks were void, the last because: {void[-1][-1]}; wait for a quieter host")
    count = len(void)
    return samples, Tally(
        "void_blocks", count, f"of {kept + count}", count, count, ("block", "arm", "void"), tuple(void)
    )


def _order(arms: Mapping[str, Any], block: int) -> list[str]:
    names = list(arms)
    return names if block % 2 == 0 else names[::-1]


def figure(name: str, unit: str, values: Sequence[float], limit: Limit | None = None) -> Figure:
    """A figure from one value for each run; a run that has none (NaN) takes no part."""
    found, bounds = _estimate(values)
    verdict = judge(limit, found) if limit else None
    return Figure(
        name,
        found.median,
        unit,
        *_extremes(values),
        values=tuple(values),
        interval=bounds,
        limit=limit,
        verdict=verdict,
    )


def comparison(
    name: str,
    unit: str,
    values: Sequence[float],
    peer: str,
    peer_values: Sequence[float],
    limit: Limit | None = None,
) -> Comparison:
    """A comparison from one value for each block and arm; a block where both are infinite has no ratio.

    Raises:
        ValueError: the blocks don't pair up.
    """
    ratios = [value / beside for value, beside in zip(values, peer_values, strict=True)]
    ours, bounds = _estimate(values)
    ratio, ratio_bounds = _estimate(ratios)
    return Comparison(
        name,
        ours.median,
        unit,
        *_extremes(values),
        peer,
        median(peer_values),
        tuple(peer_values),
        ratio.median,
        *_extremes(ratios),
        ratio_bounds,
        values=tuple(values),
        interval=bounds,
        limit=limit,
        verdict=judge(limit, ratio if limit.of_ratio else ours) if limit else None,
    )


def _estimate(values: Sequence[float]) -> tuple[Interval, Bounds | None]:
    from experiments import stats

    found = stats.interval(values, BOOTSTRAP_SEED)
    return found, (found.low, found.high) if found.n >= stats.minimum_pairs() else None


def _extremes(values: Sequence[float]) -> Bounds:
    known = [value for value in values if not math.isnan(value)]
    return min(known, default=math.nan), max(known, default=math.nan)


def judge(limit: Limit, found: Interval) -> Verdict:
    """What an interval says of a limit.

    An interval gets narrower as the root of the number of runs grows; from that follows how many more it takes until
    its end no longer reaches across the limit, if the median stays where it is.
    """
    from experiments import stats

    if (missing := stats.minimum_pairs() - found.n) > 0:
        return Verdict("undecided", missing)
    least = -math.inf if limit.least is None else limit.least
    most = math.inf if limit.most is None else limit.most
    if least <= found.low and found.high <= most:
        return Verdict("inside")
    if found.high < least or most < found.low:
        return Verdict("beyond")
    wanted = found.n + 1
    for bound in (limit.least, limit.most):
        if bound is not None and found.low <= bound <= found.high:
            reach = found.high - found.median if bound > found.median else found.median - found.low
            away = abs(bound - found.median)
            if not away or not math.isfinite(reach):
                return Verdict("undecided")
            wanted = max(wanted, math.ceil(found.n * (reach / away) ** 2))
    return Verdict("undecided", wanted - found.n)


def quantile(samples: Sequence[float], q: float) -> float:
    """The sample below which at most a share ``q`` of all samples lies (nearest rank: always one that was measured).

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("a quantile of no samples")
    ranked = sorted(samples)
    return ranked[min(math.floor(q * len(ranked)), len(ranked) - 1)]
