"""How short a window can be on this host: the floor, measured with the RTD's own loop, and where it is kept.

Run as a process (``python -m vcg.floor``), this module is an RTD with a single waiter that nobody waits on: the same
loop, priority and preparation as in a run, and nothing beside it. ``vcg bench rtd`` measures with it too. How a floor
is searched and kept serves that of the freezer gate as well (:mod:`vcg.gatefloor`).

Assumes root (SCHED_FIFO, mlockall). Trap: a floor belongs to one kernel and one CPU model; a stored one of another host
is not used.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from statistics import quantiles
from typing import Any, Generic, Protocol, TypeVar

from vcg import rtd, shm
from vcg.errors import HostError
from vcg.harmonics import Cadence
from vcg.linux import clock, cpuidle, prctl

STATE_ROOT = Path("/var/lib/vcg")
"""Where a floor is kept: it is the host's, so it stays at the default place whatever root a testbed names."""
FILE = "host.json"
PERIODS_NS = (1_000_000, 500_000, 400_000, 300_000, 250_000, 200_000, 150_000, 100_000)
"""The windows that are tried, longest first, until one is not sustained."""
SLOW_PERIODS_NS = (2_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000)
"""Tried on a host that does not sustain the first of the others, shortest first, until one is sustained."""
SECONDS = 0.3
"""How long each is tried, or for :data:`MIN_EDGES` if that takes longer."""
MIN_EDGES = 20
TRIES = 2
"""How often a period must fail: what else the host does for a moment can only make it look slower than it is."""
MAX_SKIPPED_SHARE = 0.001
MAX_CPU_SHARE = 0.5
PRIORITY = 90
"""SCHED_FIFO priority of the RTD by default."""

_LOOP_CPU_AT = shm.TICKS_HEADER.at("loop_cpu_ns")
_LEAD_NS = 20_000_000
_POLL_S = 0.1
_WARM_UP_EDGES = 16
"""First wake-ups take page faults and cold caches; a run has them before its first window, too."""


class Tried(Protocol):
    """One period as it was tried, and whether it is sustained: what a floor is chosen by."""

    @property
    def period_ns(self) -> int: ...
    @property
    def sustained(self) -> bool: ...


M = TypeVar("M", bound=Tried)


@dataclass(frozen=True)
class Alone:
    """What an RTD with one waiter did.

    Attributes:
        period_ns: of its only cadence.
        edges: that passed, published or not.
        skipped: edges that were passed over because it woke too late.
        cpu_share: of one CPU that the loop used.
        lateness_ns: for each tick, from the edge that it waited for to its publication.
        timer_late_ns: for each tick, from the time that its timer was set for to its waking.
    """

    period_ns: int
    edges: int
    skipped: int
    cpu_share: float
    lateness_ns: list[int]
    timer_late_ns: list[int]


@dataclass(frozen=True)
class Measurement:
    """One period as the RTD alone was tried at it."""

    period_ns: int
    edges: int
    skipped: int
    lateness_p50_ns: float
    lateness_p99_ns: float
    cpu_share: float

    @classmethod
    def of(cls, alone: Alone) -> Measurement:
        """Percentiles over the publications; infinite if there are too few for any, because nearly all were skipped."""
        known = len(alone.lateness_ns) >= 2
        cuts = quantiles(alone.lateness_ns, n=100, method="inclusive") if known else [math.inf] * 99
        return cls(alone.period_ns, alone.edges, alone.skipped, cuts[49], cuts[98], alone.cpu_share)

    @property
    def sustained(self) -> bool:
        """Whether the RTD keeps this period up: it

        - skips fewer than 0.1 % of the edges,
        - has a p99 lateness under half the period, and
        - uses under half of one CPU.
        """
        return (
            self.skipped < MAX_SKIPPED_SHARE * self.edges
            and self.lateness_p99_ns < self.period_ns / 2
            and self.cpu_share < MAX_CPU_SHARE
        )


@dataclass(frozen=True)
class HostIdentity:
    """What a floor depends on."""

    kernel: str
    cpu_model: str


@dataclass(frozen=True)
class Floor(Generic[M]):
    """A measured floor; ``floor_ns`` is None if the host sustains none of the periods."""

    floor_ns: int | None
    host: HostIdentity
    date: str
    measurements: tuple[M, ...]


def choose(measurements: Sequence[Tried]) -> int | None:
    """The floor: the shortest period, in ns, that is sustained; None if none is."""
    return min((m.period_ns for m in measurements if m.sustained), default=None)


def search(
    measure_period: Callable[[int], M], periods_ns: Sequence[int], slow_periods_ns: Sequence[int]
) -> tuple[M, ...]:
    """Try periods down to the first that is not sustained, or up to the first that is.

    Args:
        measure_period: of a period in ns.
        periods_ns: tried in this order, until one is not sustained.
        slow_periods_ns: tried in this order if the first of the others is not sustained, until one is.

    Returns:
        Every measurement that was made, in order.
    """
    made: list[M] = []

    def is_sustained(period_ns: int) -> bool:
        for _ in range(TRIES):
            made.append(measure_period(period_ns))
            if made[-1].sustained:
                return True
        return False

    if is_sustained(periods_ns[0]):
        all(is_sustained(period_ns) for period_ns in periods_ns[1:])
    else:
        any(is_sustained(period_ns) for period_ns in slow_periods_ns)
    return tuple(made)


def identity() -> HostIdentity:
    """The running kernel and the model of the first CPU (``unknown`` where /proc/cpuinfo names none)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return HostIdentity(platform.release(), next(models, "unknown"))


def concluded(tried: tuple[M, ...]) -> Floor[M]:
    """The floor of this host, as it follows from what has just been tried."""
    return Floor(choose(tried), identity(), datetime.now(UTC).isoformat(timespec="seconds"), tried)


def measure(cpu: int | None = None) -> Floor[Measurement]:
    """Search on one CPU: unless told, the first that we may use, where a plan puts the RTD.

    Raises:
        HostError: not root, or the measuring process failed; its last words are in the message.
    """
    place = min(os.sched_getaffinity(0)) if cpu is None else cpu

    def measure_period(period_ns: int) -> Measurement:
        return Measurement.of(run_alone(period_ns, max(SECONDS, MIN_EDGES * period_ns / 1e9), place))

    return concluded(search(measure_period, PERIODS_NS, SLOW_PERIODS_NS))


def store(floor: Floor[Any], state_root: Path, name: str = FILE) -> Path:
    """Keep a floor in the state root, under a name; returns the file."""
    state_root.mkdir(parents=True, exist_ok=True)
    path = state_root / name
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(floor), indent=2) + "\n")
    part.replace(path)
    return path


def load(state_root: Path) -> Floor[Measurement] | None:
    """The stored floor of the RTD, see :func:`read`."""
    return read(state_root / FILE, Measurement)


def read(path: Path, kind: Callable[..., M]) -> Floor[M] | None:
    """A stored floor, None if there is none for this kernel and CPU model, or none that we may read.

    Args:
        path: of the file.
        kind: of its measurements.

    Raises:
        HostError: the file is not one that :func:`store` wrote.
    """
    try:
        raw = json.loads(path.read_text())
        host = HostIdentity(**raw["host"])
        measurements = tuple(kind(**m) for m in raw["measurements"])
        floor = Floor(raw["floor_ns"], host, raw["date"], measurements)
    except (FileNotFoundError, PermissionError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(f"{path}: not a measured floor ({error}); remove it and run: vcg doctor") from error
    return floor if floor.host == identity() else None


def window_floor_ns(state_root: Path = STATE_ROOT) -> int | None:
    """Shortest window that the RTD sustains on this host, None if that is not known (run: vcg doctor).

    Raises:
        HostError: the stored file is damaged.
    """
    floor = load(state_root)
    return floor.floor_ns if floor else None


def ensure() -> int:
    """The floor of this host in ns, measured first (some seconds) if it is not known yet.

    Raises:
        HostError: this host sustains none of the periods that are tried; or the floor is not known, and could not be
            measured (see :func:`measure`).
    """
    known = load(STATE_ROOT)
    if known is None or known.floor_ns is None:
        known = measure()
        store(known, STATE_ROOT)
    if known.floor_ns is None:
        longest_ms = SLOW_PERIODS_NS[-1] / 1e6
        raise HostError(
            f"the RTD does not keep up with any window up to {longest_ms:g} ms on this host: is it busy? "
            f"(the measurements are in {STATE_ROOT / FILE}; run vcg doctor to repeat them)"
        )
    return known.floor_ns


def run_alone(period_ns: int, seconds: float, cpu: int, priority: int = PRIORITY) -> Alone:
    """Run an RTD with one waiter in a process of its own, for some time, and collect what it published.

    Raises:
        HostError: not root, or it failed; its last words are in the message.
    """
    if os.geteuid() != 0:
        raise HostError("measuring the floor of the window needs root (try: sudo vcg doctor)")
    edges = _WARM_UP_EDGES + round(seconds * 1e9 / period_ns)
    command = [sys.executable, "-m", "vcg.floor", *map(str, (period_ns, edges, cpu, priority))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        try:
            announced = process.stdout.readline()
            if announced:
                with open(f"/proc/{process.pid}/fd/{int(announced)}", "rb") as region:  # noqa: PTH123 (a descriptor)
                    ticks = shm.attach(region.fileno())
                lateness_ns, timer_late_ns, skipped = _follow(ticks, period_ns, process)
            process.stdin.close()  # it may go
            said = process.stderr.read().decode().split("\n")
            if process.wait() != 0:
                last_words = next((line for line in reversed(said) if line), f"exit code {process.returncode}")
                raise HostError(f"the RTD alone at {period_ns} ns on CPU {cpu} ended: {last_words}")
        except BaseException:
            process.kill()
            raise
    cpu_share = ticks[_LOOP_CPU_AT] / (edges * period_ns)
    return Alone(period_ns, edges - _WARM_UP_EDGES, skipped, cpu_share, lateness_ns, timer_late_ns)


def _follow(ticks: memoryview, period_ns: int, process: subprocess.Popen[bytes]) -> tuple[list[int], list[int], int]:
    """Read the ring until the loop has ended; lateness, that of the timer, and skipped edges, without the warm-up.

    A tick that merged edges names the newest of them; its lateness counts from the first, the one it slept for.
    """
    planned_at, actual_at, skipped_at, timer_at = (
        shm.TICK.at(name) for name in ("planned_ns", "actual_ns", "skipped", "timer_late_ns")
    )
    first_ns = ticks[shm.TICKS_HEADER.at("start_ns")] + _WARM_UP_EDGES * period_ns
    lateness_ns, timer_late_ns = list[int](), list[int]()
    skipped, taken, ended = 0, 0, False
    while not ended:
        time.sleep(_POLL_S)
        ended = ticks[_LOOP_CPU_AT] > 0 or process.poll() is not None
        head = ticks[shm.TICKS_HEADER.at("head")]
        if head - taken > shm.TICK_SLOTS:
            raise HostError(f"{head - taken} ticks since the last look, but the ring holds {shm.TICK_SLOTS}")
        for sequence in range(taken, head):
            at = shm.TICKS_AT + (sequence % shm.TICK_SLOTS) * shm.TICK_WORDS
            passed_over = ticks[at + skipped_at]
            slept_for_ns = ticks[at + planned_at] - passed_over * period_ns
            if slept_for_ns >= first_ns:
                skipped += passed_over
                lateness_ns.append(ticks[at + actual_at] - slept_for_ns)
                timer_late_ns.append(ticks[at + timer_at])
        taken = head
    return lateness_ns, timer_late_ns, skipped


def main(arguments: list[str]) -> None:
    """The process: announce the ticks region on stdout, publish every edge, wait for the end of stdin."""
    period_ns, edges, cpu, priority = map(int, arguments)
    prctl.set_name("vcg:rtd")
    _, control = shm.create("vcg-control", shm.CONTROL_BYTES)
    control[shm.CONTROL.at("phase")] = shm.Phase.RUN
    fd, ticks = rtd.new_ticks(epoch=0)
    cpuidle.hold_latency(0)
    rtd.settle_in((cpu,), priority)
    start_ns = clock.now_ns() + _LEAD_NS
    due_edges = rtd.schedule([rtd.Beat(0, Cadence(Fraction(period_ns)))], period_ns, start_ns)
    ticks[shm.TICKS_HEADER.at("start_ns")] = start_ns
    print(fd, flush=True)
    before_ns = time.process_time_ns()
    rtd.tick(due_edges, ticks, control, until_ns=start_ns + edges * period_ns)
    ticks[_LOOP_CPU_AT] = time.process_time_ns() - before_ns
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
