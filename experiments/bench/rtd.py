"""``vcg bench rtd``: how late the RTD is, against cyclictest, alternating on the same CPU.

Ours is the RTD's own loop at a window of 1 ms with one waiter and no dimension. ``rtd_lateness`` runs from the planned
edge to its publication, which is what a dimension sees. ``rtd_timer_late`` is the wake-up alone, from the time that the
timer was set for: like for like with cyclictest, since the RTD sets its timer a little before the edge and waits the
rest awake. Edges that a late wake-up passed over have no sample of their own, because cyclictest has none for them
either; their share is a figure of ours instead.
"""

from __future__ import annotations

import os

from experiments.bench import cyclictest
from experiments.bench.figures import Benchmark, Figure, Progress, comparison, figure, interleave, quantile
from vcg import floor

PERIOD_NS = 1_000_000
PEER = "cyclictest -m -p 90 -i 1000"
QUANTILES = {"p50": 0.5, "p99": 0.99}


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """Lateness at p50 and p99, ours over cyclictest's, and the share of edges that we passed over."""
    cpu = max(os.sched_getaffinity(0))
    skipped_shares = []

    def ours() -> dict[str, float]:
        alone = floor.run_alone(PERIOD_NS, seconds, cpu, floor.PRIORITY)
        skipped_shares.append(alone.skipped / alone.edges)
        return {
            f"{figure_name}_{name}": quantile(values, q)
            for figure_name, values in (("rtd_lateness", alone.lateness_ns), ("rtd_timer_late", alone.timer_late_ns))
            for name, q in QUANTILES.items()
        }

    def theirs() -> dict[str, float]:
        histogram = cyclictest.run(cpu, floor.PRIORITY, PERIOD_NS, seconds)
        return {name: histogram.quantile(q) for name, q in QUANTILES.items()}

    samples = interleave({"rtd": ours, "cyclictest": theirs}, runs, progress)
    return [
        *(
            comparison(
                f"{figure_name}_{name}",
                "ns",
                [sample[f"{figure_name}_{name}"] for sample in samples["rtd"]],
                PEER,
                [sample[name] for sample in samples["cyclictest"]],
            )
            for figure_name in ("rtd_lateness", "rtd_timer_late")
            for name in QUANTILES
        ),
        figure("rtd_skipped_share", "1", skipped_shares),
    ]


BENCHMARK = Benchmark("rtd", "lateness of the RTD against cyclictest, 1 ms window", 6, 20.0, 2, measure)
