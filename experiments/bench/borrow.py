"""``vcg bench borrow``: what borrowing is worth to a bursting dimension, and how soon a lender has its credit back.

One dimension of a triad has more work than credit; the others rest, but one of them wakes every so often and then
wants all that it can get. Arms: with borrowing (``ceiling = 4``) and, as peer, without (``ceiling = 1``).

``burst_work`` is the rate at which the bursting one gets through units of always the same work. ``borrow_yield`` is
by how much that rose, over the credit that it borrowed as a part of its own: 1 means that every borrowed nanosecond
did as much work as one of its own. ``lender_back_windows`` is the number of windows after the one in which the lender
woke until it has at least its own credit again: the most over all its wakings.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from experiments import trial
from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Limit, Progress, comparison, figure, interleave
from vcg.plan import Plan
from vcg.run import Run

PEER = "the same without borrowing"
YIELD, BACK = Limit(least=0.95), Limit(most=2)
BUSY, REST = 10, 90
"""The lender's windows of work and of rest."""


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """Work with borrowing over work without, what a borrowed nanosecond is worth, and the lender's wait."""
    with runtime.directory() as place:
        arms = {
            "burst_work": partial(ours, plan_of(place, "4"), seconds),
            "alone": partial(ours, plan_of(place, "1"), seconds),
        }
        samples = interleave(arms, runs, progress)
    lending, alone = samples["burst_work"], samples["alone"]
    gains = [with_[0] / without[0] - 1 for with_, without in zip(lending, alone, strict=True)]
    return [
        comparison("burst_work", "units/s", [one[0] for one in lending], PEER, [one[0] for one in alone]),
        figure("borrowed_part", "1", [one[1] for one in lending]),
        figure("borrow_yield", "1", [gain / one[1] for gain, one in zip(gains, lending, strict=True)], YIELD),
        figure("lender_back_windows", "windows", [one[2] for one in lending], BACK),
    ]


def plan_of(place: Path, ceiling: str) -> Plan:
    """A triad on the last CPU: d1 always busy, d2 now and then, d3 never."""
    common = {"cpus": [runtime.last_cpu()], "scheduling": "fifo:30", "ceiling": ceiling}
    dimensions = {
        "d1": {**common, "workload": "burst", "args": {"rest": 0}},
        "d2": {**common, "workload": "burst", "args": {"busy": BUSY, "rest": REST}},
        "d3": {**common, "workload": "idle"},
    }
    triads = {"all": {"members": ["d1", "d2", "d3"], "harmonic": "1"}}
    testbed = {"name": "borrow", "base_window": "6ms", "triads": triads, "dimensions": dimensions}
    return runtime.plan_from(testbed, place)


def ours(plan: Plan, seconds: float) -> tuple[float, float, float]:
    """One run: units of work in a second, credit borrowed as a part of the own, most windows until a lender is back."""
    with Run(plan) as run:
        records = runtime.run_for(run, seconds)
        account = run.statistics()["tokens"]["d1"]
        done = Path(f"/proc/{run.supervisor_pid}/root{plan.mount_root}/d1/data/work")
        fd = os.open(done, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            units = int.from_bytes(os.read(fd, 8), "little")
        finally:
            os.close(fd)
    lender = plan.dimensions[1]
    rows = np.frombuffer(records["d2"], dtype=trial.RECORD)
    return units / seconds, account["borrowed_ns"] / account["own_ns"], waited(rows, lender.credit_ns)


def waited(rows: np.ndarray, credit_ns: int) -> float:
    """Most windows from that in which the lender woke until one whose budget is its own credit again.

    Args:
        rows: its window records; a waking is the first of ``BUSY`` windows after ``REST``.
        credit_ns: its own credit.
    """
    budgets = {int(row["window"]): int(row["budget_ns"]) for row in rows if row["budget_ns"] > 0}
    longest = 0
    for woke in range(BUSY + REST, max(budgets, default=0) - BUSY, BUSY + REST):
        back = [n for n in range(woke, woke + BUSY) if budgets.get(n, 0) >= credit_ns]
        longest = max(longest, (back[0] if back else woke + BUSY) - woke)
    return float(longest)


BENCHMARK = Benchmark(
    "borrow", "work of a bursting dimension with idle neighbours, against no borrowing", 6, 10.0, 2, measure
)
