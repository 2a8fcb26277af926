"""``vcg bench shares``: CPU time of three saturated dimensions with amplitudes 1 : 2 : 4 on one CPU.

A run's value is the largest relative error of the three shares of the CPU time that they used together, by the
kernel's account of their control groups (``cpu.stat``), from 1/7, 2/7 and 4/7.

Arms: ``cooperative`` (a Python workload that spends its token and waits), ``frozen`` (a shell loop that knows nothing
of tokens, thawed and frozen), ``mixed`` (the second of them frozen, the others cooperative), and as peer the kernel's
own fair scheduler: the same three, spinning without any gate, told apart by the weight of their control groups alone.
It has nothing to keep but the shares; ours keep windows as well.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Limit, Progress, comparison, figure, interleave
from vcg.linux import mount
from vcg.plan import Plan
from vcg.run import Run

PEER = "the kernel's fair scheduler by cgroup weight"
AMPLITUDES = {"d1": 1, "d2": 2, "d3": 4}
ERROR = Limit(most=0.03)
BURST = {"workload": "burst", "args": {"rest": 0}}
LOOP = {
    "gate": "freezer",
    "exec": ["/usr/bin/dash", "-c", "while :; do :; done"],
    "binds": ["/usr", "/lib", "/lib64"],
}
WARM_UP_S = 1.0


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """The largest error of a share, both gates over the fair scheduler; and how much of its credit each gate spends."""
    with runtime.directory() as place:
        arms = {
            "share_error": partial(ours, plan_of(place, BURST), seconds),
            "share_error_frozen": partial(ours, plan_of(place, LOOP), seconds),
            "share_error_mixed": partial(ours, plan_of(place, BURST, frozen=("d2",)), seconds),
            "fair": partial(
                ours,
                plan_of(
                    place,
                    {"workload": "hostile", "args": {"after": 0}, "enforce": "none", "scheduling": "other"},
                    ceiling="100",
                ),
                seconds,
            ),
        }
        samples = interleave(arms, runs, progress)
    beside = [error for error, _ in samples.pop("fair")]
    figures: list[Figure] = [
        comparison(name, "1", [error for error, _ in values], PEER, beside, ERROR) for name, values in samples.items()
    ]
    return figures + [
        figure(name.replace("share_error", "credit_spent"), "1", [spent for _, spent in values])
        for name, values in samples.items()
    ]


def plan_of(place: Path, common: dict[str, Any], ceiling: str = "4", frozen: tuple[str, ...] = ()) -> Plan:
    """Three dimensions on the last CPU, ten windows in 100 ms; those named are shell loops behind the freezer gate."""
    cpu = runtime.last_cpu()
    dimensions = {
        name: {"amplitude": amplitude, "cpus": [cpu], "ceiling": ceiling, **(LOOP if name in frozen else common)}
        for name, amplitude in AMPLITUDES.items()
    }
    return runtime.plan_from({"name": "shares", "base_window": "10ms", "dimensions": dimensions}, place)


def ours(plan: Plan, seconds: float) -> tuple[float, float]:
    """One run: largest error of a share, and CPU time used over credit minted."""
    with Run(plan) as run:
        usage = {name: group_of(pid) / "cpu.stat" for name, pid in run.dimension_pids.items()}
        run.start()
        runtime.keep(run, WARM_UP_S)
        before = {name: usage_ns(path) for name, path in usage.items()}
        began = time.monotonic()
        runtime.keep(run, seconds)
        used = {name: usage_ns(path) - before[name] for name, path in usage.items()}
        lasted_ns = (time.monotonic() - began) * 1e9
        if plan.dimensions[0].enforce != "none":  # who is bound by nothing does not stop
            run.halt()
    whole, weights = sum(used.values()), sum(AMPLITUDES.values())
    credited_ns = sum(d.credit_ns / d.period_ns for d in plan.dimensions) * lasted_ns
    errors = [abs(used[name] / whole * weights / amplitude - 1) for name, amplitude in AMPLITUDES.items()]
    return max(errors), whole / credited_ns


def group_of(pid: int) -> Path:
    """Directory of a process's control group in the v2 tree."""
    (line,) = [line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")]
    point = next(one.point for one in mount.mounts() if one.fstype == "cgroup2")
    return point / line.removeprefix("0::/")


def usage_ns(stat: Path) -> int:
    """CPU time of a control group, as the kernel accounts it."""
    return int(stat.read_text().split()[1]) * 1000


BENCHMARK = Benchmark("shares", "CPU shares under amplitudes 1:2:4, against cgroup weights", 6, 30.0, 4, measure)
