"""``vcg bench probe``: what the probes cost, per event and to what they observe.

``*_event_cost`` is the run time of a probe's BPF programs per run of one, by the kernel's own account
(``kernel.bpf_stats_enabled``), while the testbed ``default`` runs with its usual load, and a process beside it changes
CPU every millisecond so that there are migrations. ``*_pingpong`` is the mean round trip of a byte between two
processes on one CPU (``pingpong.c``), both followed by a probe, against the same without any probe in the same block.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

import probes
from experiments.bench import native, runtime
from experiments.bench.figures import Benchmark, Figure, Progress, comparison, figure, interleave
from vcg.errors import HostError
from vcg.run import Run

ROUND_TRIPS = 200_000
PEER = "without probes"
_BARE = "no probe"
_MOVE_S = 0.001


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """Cost per event of each probe, and the round trip with each of them attached over that with none."""
    costs: dict[str, list[float]] = defaultdict(list)
    with runtime.directory() as place:
        program = native.build("pingpong", place)
        plan = runtime.plan_of("default", place)
        for run in range(runs):
            progress(f"events, run {run + 1} of {runs}")
            for probe, cost in event_costs_ns(Run(plan), seconds).items():
                costs[probe].append(cost)
        arms = {
            _BARE: partial(bare_round_trip_ns, program),
            **{probe: partial(probed_round_trip_ns, program, probe) for probe in runtime.PROBES},
        }
        samples = interleave(arms, runs, progress)
    return [
        *(figure(f"{probe}_event_cost", "ns", values) for probe, values in costs.items()),
        *(comparison(f"{probe}_pingpong", "ns", samples[probe], PEER, samples[_BARE]) for probe in runtime.PROBES),
    ]


def event_costs_ns(run: Run, seconds: float) -> dict[str, float]:
    """Mean run time of each probe's programs in one run of a testbed; only of probes that ran at all."""
    with moving_process() as mover, run, runtime.observe(run, "mover") as session:
        session.follow(mover, "mover")
        before = session.snapshot()
        runtime.run_for(run, seconds)
        spent = session.snapshot() - before
    runs, run_ns = defaultdict[str, int](int), defaultdict[str, int](int)
    for row in spent.cost:
        runs[row.probe] += row.runs
        run_ns[row.probe] += row.run_ns
    return {probe: run_ns[probe] / runs[probe] for probe in runtime.PROBES if runs[probe]}


@contextmanager
def moving_process() -> Iterator[int]:
    """A process that goes from CPU to CPU; yields its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            for cpu in cycle(sorted(os.sched_getaffinity(0))):
                os.sched_setaffinity(0, {cpu})
                time.sleep(_MOVE_S)
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def bare_round_trip_ns(program: Path) -> float:
    """Mean round trip without probes."""
    with pingpong(program) as game:
        return play(game)


def probed_round_trip_ns(program: Path, probe: str) -> float:
    """Mean round trip with both processes followed by one probe."""
    with pingpong(program) as game, probes.attach([probe], dimensions=["pingpong"]) as session:
        assert game.stdout
        for pid in game.stdout.readline().split():
            session.follow(int(pid), "pingpong")
        return play(game)


@contextmanager
def pingpong(program: Path) -> Iterator[subprocess.Popen[str]]:
    """The two processes, waiting to begin; ended at the end of the block."""
    command = [str(program), str(max(os.sched_getaffinity(0))), str(ROUND_TRIPS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as game:
        try:
            yield game
        finally:
            game.kill()


def play(game: subprocess.Popen[str]) -> float:
    """Let them begin; the mean round trip in ns.

    Raises:
        HostError: the program ended without a result.
    """
    said, _ = game.communicate("go\n")
    if not said:
        raise HostError(f"pingpong: exit code {game.returncode} and no result")
    return float(said.splitlines()[-1])


BENCHMARK = Benchmark("probe", "cost of the probes, per event and to a wake-up ping-pong", 6, 5.0, 5, measure)
