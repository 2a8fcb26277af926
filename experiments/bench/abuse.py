"""``vcg bench abuse``: what one abusive dimension of nine does to the cadence of the other eight.

The default testbed, with ``d5`` (ext4, in the middle triad) turned hostile after a while: a fork bomb, a memory bomb
(its own pages, a memfd, and files), a full disk, inodes used up, a flood of descriptors. Its own limits have to stop
it, and every run has to show that they did, by the kernel's account (``sieges.STOPPED``). A run's value is the p99 of
the lateness of the other eight together (a window never entered counts as infinitely late), and of those of each triad,
because windows of the fastest are most of all; the peer is the same testbed with an idle dimension in the hostile one's
place, in the same block. ``…_change`` is what the abuse adds to that in each block. ``abuse_none`` compares that peer
with itself, run once more in the same block: no effect smaller than that is one. Every arm runs beside the reference
thread; a block in which that leaves its limits in any arm, or the hypervisor withholds too much, is void
(``runtime.watched``) and run again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Progress, comparison, figure, interleave_unless_void
from experiments.bench.sieges import STOPPED
from vcg.errors import RunError
from vcg.plan import Plan
from vcg.run import Run

PEER = "an idle dimension in its place"
KINDS = ("fork", "memory", "disk", "inodes", "descriptors")
NONE = "none"
"""An arm without abuse, beside the peer, which is without abuse too."""
ALL = ""
"""Those of all triads together."""
_AFTER_WINDOWS = 50
_PATIENCE_S = 20


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """The p99 of the other eight beside each abuse, over that beside an idle dimension, and how it changes."""
    with runtime.directory() as place:
        kinds = {"idle": None, NONE: None} | {kind: kind for kind in KINDS}
        arms = {name: partial(ours, plan_of(place, kind), seconds) for name, kind in kinds.items()}
        samples, void = interleave_unless_void(runtime.watched(arms, seconds), runs, progress)
    beside = samples.pop("idle")
    figures: list[Figure] = []
    for kind, values in samples.items():
        for triad in beside[0]:
            name = f"abuse_{kind}_{triad}_p99" if triad else f"abuse_{kind}_p99"
            here, peers = [value[triad] for value in values], [idle[triad] for idle in beside]
            figures.append(comparison(name, "ns", here, PEER, peers))
    for kind, values in samples.items():
        changes = [value[ALL] - idle[ALL] for value, idle in zip(values, beside, strict=True)]
        figures.append(figure(f"abuse_{kind}_p99_change", "ns", changes))
    return [*figures, void]


def plan_of(place: Path, kind: str | None) -> Plan:
    """The default testbed with its fifth dimension hostile, or idle.

    It is not held to its tokens: whom the orchestrator freezes in time never comes to the limits at issue here.
    """
    overrides: dict[str, Any] = {
        "dimensions.d5.workload": "hostile" if kind else "idle",
        "dimensions.d5.scheduling": "other",
        "dimensions.d5.enforce": "none",
        "dimensions.d5.memory": "96M",
        "dimensions.d5.storage.size": "16M",
    }
    if kind:
        overrides["dimensions.d5.args"] = {"kind": kind, "after": _AFTER_WINDOWS}
        # What the kernel kills for its memory begins again, and bombs again.
        overrides["dimensions.d5.restart"] = {"policy": "on-failure", "limit": 1000, "backoff": "50ms"}
    return runtime.plan_of("default", place, overrides)


def ours(plan: Plan, seconds: float) -> dict[str, float]:
    """One run: p99 of the lateness of all dimensions but the fifth in ns, together and of each triad.

    Raises:
        RunError: there was to be abuse, and nothing has stopped it: it was none, or it had no limit.
    """
    bad = next(d for d in plan.dimensions if d.name == "d5")
    kind, stopped = bad.args.get("kind"), set[str]()

    def look() -> None:
        if kind and not stopped and (what := STOPPED[kind](run, bad)):
            stopped.add(what)

    with Run(plan) as run:
        run.start()
        records = runtime.keep(run, seconds, look)  # not halted: the fifth never leaves its window
        for _ in range(_PATIENCE_S):  # how soon it gets to its limit depends on what the other eight leave it
            if kind and not stopped:
                runtime.keep(run, 1.0, look)
    if kind and not stopped:
        took_s = seconds + _PATIENCE_S
        raise RunError(f"abuse {kind}: the kernel never stopped it in {took_s:g} s; expected it at the limit of d5")
    triads: dict[str, dict[str, bytes]] = {ALL: {}}
    for d in plan.dimensions:
        if d is not bad:
            triads.setdefault(d.triad, {})[d.name] = triads[ALL][d.name] = records[d.name]
    return {triad: runtime.lateness_p99_ns(members) for triad, members in triads.items()}


BENCHMARK = Benchmark("abuse", "eight neighbours of each abuse, against an idle dimension", 10, 4.0, 7, measure)
