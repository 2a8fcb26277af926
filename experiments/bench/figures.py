"""From the runs of a benchmark to its figures; pure but for :func:`interleave`, which calls what it is given.

How a figure is made: each run gives one value for each arm (a quantile over its own samples; samples inside a run are
correlated, so they are not pooled). The figure is the **median over the runs**; ``low`` and ``high`` are the smallest
and the largest run. A comparison adds the peer's median; ``ratio`` is the ratio of these two medians, ``ratio_low`` and
``ratio_high`` the smallest and largest ratio within one block (ours and the peer's run that stood beside it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeVar

Sample = TypeVar("Sample")
Progress = Callable[[str], None]
"""Called before each arm is run, with what it is."""


@dataclass(frozen=True)
class Figure:
    """One result.

    Attributes:
        name: stable, for comparison between commits.
        value, low, high: median, smallest and largest of the runs.
        unit: of these three.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison(Figure):
    """A result beside that of a peer, in the same unit; a ratio below 1 means that ours is smaller."""

    peer: str
    peer_value: float
    ratio: float
    ratio_low: float
    ratio_high: float


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
        for name in arms if block % 2 == 0 else reversed(list(arms)):
            progress(f"{name}, run {block + 1} of {runs}")
            samples[name].append(arms[name]())
    return samples


def figure(name: str, unit: str, values: Sequence[float]) -> Figure:
    """A figure from one value for each run."""
    return Figure(name, median(values), unit, min(values), max(values))


def comparison(name: str, unit: str, values: Sequence[float], peer: str, peer_values: Sequence[float]) -> Comparison:
    """A comparison from one value for each block and arm.

    Raises:
        ValueError: the blocks don't pair up.
    """
    ratios = [value / beside for value, beside in zip(values, peer_values, strict=True)]
    ours, theirs = median(values), median(peer_values)
    return Comparison(name, ours, unit, min(values), max(values), peer, theirs, ours / theirs, min(ratios), max(ratios))


def quantile(samples: Sequence[float], q: float) -> float:
    """The sample below which at most a share ``q`` of all samples lies (nearest rank: always one that was measured).

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("a quantile of no samples")
    ranked = sorted(samples)
    return ranked[min(math.floor(q * len(ranked)), len(ranked) - 1)]
