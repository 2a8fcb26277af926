"""``vcg bench mint``: what settling, lending and minting for nine dimensions cost the orchestrator.

Measured where it happens, by the orchestrator itself in a live run: SCHED_FIFO, woken by the clock, its caches cold
from what ran in between. A value is the sum over the rounds of one base window; a run's is the median over its base
windows.

Arms: ``mint``, the default testbed, but one dimension of every triad goes from rest to all the credit that it can get
and back every few windows, so that credit is lent, called back and repaid; ``mint_quiet``, where nobody wants more
than it has; and ``mint_storm``, where all nine do as those three. ``compiled`` is 1 if the rounds were machine code
(``vcg.compiled``), 0 if they were interpreted. The limit is the design's, for a base window.
"""

from __future__ import annotations

from functools import partial

from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Limit, Progress, figure, interleave, quantile
from vcg import compiled, shm
from vcg.plan import Plan
from vcg.run import Run

LIMIT = Limit(most=60_000.0)

_FAST, _BASE, _SLOW = ({"busy": busy, "rest": rest} for busy, rest in ((30, 20), (7, 13), (3, 4)))
"""Windows of work and of rest: never in step with each other for long."""
_BURSTS = {
    **{f"dimensions.{name}.workload": "burst" for name in ("d1", "d5", "d9")},
    "dimensions.d1.args": _FAST,
    "dimensions.d5.args": _BASE,
    "dimensions.d9.args": _SLOW,
}
_STORM = {
    "dimensions.*.workload": "burst",
    "dimensions.d1-d3.args": _FAST,
    "dimensions.d4-d6.args": _BASE,
    "dimensions.d7-d9.args": _SLOW,
}


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """The median cost of a base window."""
    with runtime.directory() as place:
        arms = {
            "mint_p50": partial(ours, runtime.plan_of("default", place, _BURSTS), seconds, lends=True),
            "mint_quiet_p50": partial(ours, runtime.plan_of("default", place), seconds),
            "mint_storm_p50": partial(ours, runtime.plan_of("default", place, _STORM), seconds, lends=True),
        }
        samples = interleave(arms, runs, progress)
    figures = [figure(name, "ns", values, LIMIT) for name, values in samples.items()]
    return [*figures, figure("compiled", "1", [float(compiled.is_built())] * runs)]


def ours(plan: Plan, seconds: float, *, lends: bool = False) -> float:
    """One run: median over its base windows, in ns.

    Raises:
        RuntimeError: nothing was lent although that was to be measured.
    """
    found: list[int] = []
    with Run(plan) as run:
        runtime.run_for(run, seconds, each=lambda: found.extend(_fresh(run, len(found))))
        lent_ns = sum(account["lent_ns"] for account in run.statistics()["tokens"].values())
    if lends and not lent_ns:
        raise RuntimeError("no credit was lent: this is no measurement of lending")
    rounds = plan.rounds
    sums = [sum(found[at : at + rounds]) for at in range(0, len(found) - rounds + 1, rounds)]
    return quantile(sums[runtime.WARM_UP_WINDOWS :] or sums, 0.5)


def _fresh(run: Run, seen: int) -> list[int]:
    """What the rounds since round ``seen`` took; a gap is filled with nothing, because the ring outlasts a look."""
    worked = run.tokens[shm.TOKENS_HEADER.at("rounds")]
    return [run.tokens[shm.MINTS_AT + number % shm.MINT_SLOTS] for number in range(seen, worked)]


BENCHMARK = Benchmark(
    "mint", "settling, lending and minting for nine dimensions, against the limit", 6, 10.0, 3, measure
)
