"""``vcg bench hostile``: what a dimension that ignores its tokens does to two honest ones on its CPU.

All three run at the same SCHED_FIFO priority, where whoever spins keeps the CPU for ever unless somebody takes it
away. A run's value is the p99 of the lateness of both honest dimensions together (a window never entered counts as
infinitely late); the peer is the same testbed with an idle dimension in the hostile one's place.

Every arm runs beside the reference thread; a block in which that leaves its limits in any arm, or the hypervisor
withholds too much, is void (``runtime.watched``) and run again.

Arms: ``spin``, one spinner; ``fork``, a fork bomb under its pids limit. ``contained_windows`` is how many windows of
its own the abuse lasted until the orchestrator acted (for the last time, if more than once). A p99 over a whole run
says little of the moment before that, so ``neighbour_lost_windows`` is how many windows both honest ones together did
not enter, from the first hostile one on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    beside = samples.pop("idle")
    figures: list[Figure] = []
    for name, values in samples.items():
        kind = "fork_" if "fork" in name else ""
        late_ns, idle_ns = [one.late_ns for one in values], [one.late_ns for one in beside]
        figures += [
            comparison(name, "ns", late_ns, PEER, idle_ns, LATENESS),
            figure(f"contained_{kind}windows", "windows", [one.lasted for one in values], CONTAINED),
            figure(f"neighbour_{kind}lost_windows", "windows", [one.lost for one in values]),
        ]
    lost = figure("neighbour_idle_lost_windows", "windows", [one.lost for one in beside])
    return [*figures, lost, void]


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


class Measured(NamedTuple):
    """What one run showed of the honest ones: their p99, and windows not entered; and how long the abuse lasted."""

    late_ns: float
    lasted: float
    lost: float


def ours(plan: Plan, seconds: float) -> Measured:
    """One run.

    Raises:
        RuntimeError: there was abuse, and nobody acted.
    """
    with Run(plan) as run:
        records = runtime.run_for(run, seconds)
        account = run.statistics()["tokens"]["d1"]
    if "hostile" in plan.dimensions[0].workload and not account["contained"]:
        raise RuntimeError("the hostile dimension was never held: its abuse has not been contained")
    honest = {name: records[name] for name in HONEST}
    lost = sum(runtime.missed(raw, AFTER_WINDOWS) for raw in honest.values())
    return Measured(runtime.lateness_p99_ns(honest), float(account["held_in"] - AFTER_WINDOWS), float(lost))


BENCHMARK = Benchmark("hostile", "neighbours of a spinner and of a fork bomb, against an idle one", 16, 4.0, 3, measure)
