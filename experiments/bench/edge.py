"""``vcg bench edge``: lateness of nine idle dimensions on one aligned edge, against a C program of the same shape.

The C program (``edge.c``) has the same period, CPUs and priorities as the plan of the testbed ``edge``. What differs is
the runtime, and with it how the edge is met: our RTD sets its timer ``vcg.rtd.APPROACH_NS`` before the edge and waits
the rest awake, which costs CPU time; the C publisher sleeps to the edge itself, as is usual, so how late its timer and
its own wake-up are is part of its figures.

Arms: the runtime without probes, with all probes, and with staggered triads; each is compared with the *aligned* C
program of the same block. A run's value is the p50 over the windows of all nine dimensions; a window that was never
entered counts as infinitely late.
"""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from experiments.bench import native, runtime
from experiments.bench.figures import Benchmark, Figure, Progress, comparison, interleave, quantile
from vcg.errors import HostError
from vcg.plan import Plan
from vcg.run import Run

PEER = "C: futex bitset, nine pinned FIFO processes"
_NEVER_NS = float("inf")


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """Lateness at p50 of all three arms over the C program's."""
    with runtime.directory() as place:
        binary = native.build("edge", place)
        aligned = runtime.plan_of("edge", place)
        staggered = runtime.plan_of("edge", place, {"stagger": True})
        arms = {
            "edge_lateness_p50": partial(ours, aligned, seconds),
            "C": partial(peer, binary, aligned, seconds),
            "edge_lateness_probed_p50": partial(ours, aligned, seconds, probed=True),
            "edge_lateness_staggered_p50": partial(ours, staggered, seconds),
        }
        samples = interleave(arms, runs, progress)
    beside = samples.pop("C")
    return [comparison(name, "ns", values, PEER, beside) for name, values in samples.items()]


def ours(plan: Plan, seconds: float, *, probed: bool = False) -> float:
    """One run of the runtime: p50 of lateness in ns."""
    with Run(plan) as run, runtime.observe(run) if probed else nullcontext():
        return quantile(runtime.lateness_ns(runtime.run_for(run, seconds)), 0.5)


def peer(binary: Path, plan: Plan, seconds: float) -> float:
    """One run of the C program in the place of a plan's RTD and dimensions: p50 of lateness in ns.

    Raises:
        HostError: it failed.
    """
    period_ns = plan.base_window_ns
    edges = round(seconds * 1e9 / period_ns)
    places = [(plan.rtd.cpus[0], plan.rtd.priority), *((d.cpus[0], d.priority) for d in plan.dimensions)]
    command = [str(binary), str(period_ns), str(edges), *(f"{cpu}:{priority}" for cpu, priority in places)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30)
    except subprocess.CalledProcessError as error:
        raise HostError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    return quantile(parse_peer(done.stdout, len(plan.dimensions), edges), 0.5)


def parse_peer(output: str, waiters: int, edges: int) -> list[float]:
    """Lateness of every edge of every waiter after the warm-up; infinite if the waiter missed it.

    Args:
        output: of the C program: ``WAITER EDGE LATENESS_NS``, one line for each edge that was not missed.
        waiters: how many there were; one that missed every edge has no line at all.
        edges: how many were published.
    """
    seen: dict[int, dict[int, int]] = {waiter: {} for waiter in range(waiters)}
    for line in output.splitlines():
        waiter, edge, late_ns = map(int, line.split())
        seen[waiter][edge] = late_ns
    wanted = range(runtime.WARM_UP_WINDOWS, edges)
    return [waiter.get(edge, _NEVER_NS) for waiter in seen.values() for edge in wanted]


BENCHMARK = Benchmark("edge", "nine dimensions on one edge, against the same in C", 6, 10.0, 4, measure)
