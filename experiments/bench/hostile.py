"""``vcg bench hostile``: what a dimension that ignores its tokens does to two honest ones on its CPU.

All three run at the same SCHED_FIFO priority, where whoever spins keeps the CPU for ever unless somebody takes it
away. A run's value is the p99 of the lateness of both honest dimensions together (a window never entered counts as
infinitely late); the peer is the same testbed with an idle dimension in the hostile one's place.

Every arm runs beside the reference thread; a block in which that leaves its limits in any arm, or the hypervisor
withholds too much, is void (``runtime.watched``) and run again.

Arms: ``spin``, one spinner; ``fork``, a fork bomb under its pids limit. ``contained_windows`` is how many windows of
its own the abuse lasted until the orchestrator acted.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Limit, Progress, comparison, figure, interleave_unless_void
from vcg.plan import Plan
from vcg.run import Run

PEER = "an idle dimension in its place"
HONEST = ("d2", "d3")
LATENESS = Limit(most=1.5, of_ratio=True)
CONTAINED = Limit(most=2)
AFTER_WINDOWS = 100


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """The neighbours' p99 beside each abuse, over that beside an idle dimension."""
    with runtime.directory() as place:
        arms = {
            "neighbour_lateness_p99": partial(ours, plan_of(place, "spin"), seconds),
            "neighbour_lateness_fork_p99": partial(ours, plan_of(place, "fork"), seconds),
            "idle": partial(ours, plan_of(place, None), seconds),
        }
        samples, void = interleave_unless_void(runtime.watched(arms, seconds), runs, progress)
    beside = [late_ns for late_ns, _ in samples.pop("idle")]
    figures: list[Figure] = [
        comparison(name, "ns", [late_ns for late_ns, _ in values], PEER, beside, LATENESS)
        for name, values in samples.items()
    ]
    lasted = {"contained_windows": "neighbour_lateness_p99", "contained_fork_windows": "neighbour_lateness_fork_p99"}
    figures += [
        figure(name, "windows", [lasted for _, lasted in samples[arm]], CONTAINED) for name, arm in lasted.items()
    ]
    return [*figures, void]


def plan_of(place: Path, abuse: str | None) -> Plan:
    """Three dimensions on the last CPU; the first of them turns hostile after a while."""
    common: dict[str, Any] = {"cpus": [runtime.last_cpu()], "scheduling": "fifo:30"}
    honest = {**common, "workload": "spin", "args": {"share": 0.3}}
    bad = {"workload": "hostile", "args": {"kind": abuse, "after": AFTER_WINDOWS}} if abuse else {"workload": "idle"}
    dimensions = {
        "d1": {**common, **bad},
        "d2": {**honest, "phase": "1/3"},
        "d3": {**honest, "phase": "2/3"},
    }
    return runtime.plan_from({"name": "hostile", "base_window": "4ms", "dimensions": dimensions}, place)


def ours(plan: Plan, seconds: float) -> tuple[float, float]:
    """One run: p99 of the honest ones' lateness in ns, and how many windows the abuse lasted.

    Raises:
        RuntimeError: there was abuse, and nobody acted.
    """
    with Run(plan) as run:
        records = runtime.run_for(run, seconds)
        account = run.statistics()["tokens"]["d1"]
    if "hostile" in plan.dimensions[0].workload and not account["contained"]:
        raise RuntimeError("the hostile dimension was never held: its abuse has not been contained")
    late_ns = runtime.lateness_p99_ns({name: records[name] for name in HONEST})
    return late_ns, float(account["held_in"] - AFTER_WINDOWS)


BENCHMARK = Benchmark("hostile", "neighbours of a spinner and of a fork bomb, against an idle one", 16, 4.0, 3, measure)
