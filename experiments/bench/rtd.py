"""``vcg bench rtd``: the RTD's wake lateness against cyclictest's, alternating on the same CPU.

Ours is the RTD's own loop at a window of 1 ms with one waiter and no dimension. In both, lateness runs from the planned
edge that the loop slept for; edges that a late wake-up passed over have no sample of their own, because cyclictest has
none for them either. Their number is a figure of ours instead.
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
    """Wake lateness at p50 and p99, ours over cyclictest's, and the share of edges that we passed over."""
    cpu = max(os.sched_getaffinity(0))
    skipped_shares = []

    def ours() -> dict[str, float]:
        alone = floor.run_alone(PERIOD_NS, seconds, cpu, floor.PRIORITY)
        skipped_shares.append(alone.skipped / alone.edges)
        return {name: quantile(alone.lateness_ns, q) for name, q in QUANTILES.items()}

    def theirs() -> dict[str, float]:
        histogram = cyclictest.run(cpu, floor.PRIORITY, PERIOD_NS, seconds)
        return {name: histogram.quantile(q) for name, q in QUANTILES.items()}

    samples = interleave({"rtd": ours, "cyclictest": theirs}, runs, progress)
    return [
        *(
            comparison(
                f"rtd_lateness_{name}",
                "ns",
                [sample[name] for sample in samples["rtd"]],
                PEER,
                [sample[name] for sample in samples["cyclictest"]],
            )
            for name in QUANTILES
        ),
        figure("rtd_skipped_share", "1", skipped_shares),
    ]


BENCHMARK = Benchmark("rtd", "wake lateness of the RTD against cyclictest, 1 ms window", 5, 20.0, 2, measure)
