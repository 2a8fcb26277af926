"""``vcg bench programs``: unmodified programs under the freezer gate; does what they get, and do, follow amplitude?

``redis-server``, ``sqlite3`` and ``stress-ng`` run side by side on one CPU (testbed ``programs``), each with more to do
than its credit is good for: Redis is driven by ``redis-benchmark`` from another CPU, through the host's side of the
mount; SQLite loads rows without end; stress-ng never stops by itself.

A block is three arms. The amplitudes 1, 2 and 4 go round, so in a block every program has each of them once, always
against the same two others. So a program is its own yardstick: a run alone would have all of the CPU's caches, too, and
show them as throughput. For program *p* at amplitude *a*, of 7 in all:

- ``p_cpu_a``: the part of the CPU time of all three that *p* got (the kernel's account of its control group), over a/7;
- ``p_work_a``: the part of what *p* did in the three arms of the block that it did in this one, over a/7. Work is
  commands of Redis, rows of SQLite, bogo operations of stress-ng: for each second of CPU time that the three got
  together, because what the host takes away from an arm is not the gate's doing.

1 is perfect, and 10 % from it the limit. ``cpu_error`` and ``work_error`` are the largest distances from 1 of a block.

A program that is thawed finds its caches filled by others. The less it gets in a window, the more of that goes into
filling them again, and the less work comes of the same CPU time: with fifty clients and a hundred thousand keys, Redis
did a third less for each second at amplitude 1 than at amplitude 4. That is no fault of the gate's, and not what is to
be seen here, so windows are long, Redis is driven with few clients and keys, and SQLite keeps few rows.

A program that dies fails the benchmark, and so does one that loses data: every key that Redis has acknowledged must be
there at the end, and every row that SQLite has committed, in a database that passes its integrity check.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Limit, Progress, figure, interleave
from vcg.errors import HostError, RunError
from vcg.linux import cgroup
from vcg.plan import Plan
from vcg.run import Run

DIMENSIONS = {"redis": "d1", "sqlite": "d2", "stress": "d3"}
AMPLITUDES = (1, 2, 4)
SHARE, ERROR = Limit(least=0.9, most=1.1), Limit(most=0.1)
WINDOW = "40ms"
WARM_UP_S = 1.0
KEPT_ROWS = 10_000
"""So many rows the bulk load of the testbed leaves in its table, at least."""
BATCH_ROWS = 1000
_PATIENCE_S = 10.0
_CHECK_S = 0.1
_MGET = 500

Turn = Mapping[str, int]
"""The amplitude of each program in one arm."""


class Measured(NamedTuple):
    """What one program got and did in one arm.

    Attributes:
        cpu_ns: the kernel's account of its control group.
        rate: work for each second.
    """

    cpu_ns: int
    rate: float


def turns() -> list[Turn]:
    """The arms of a block: every program has every amplitude once."""
    shifts = range(len(AMPLITUDES))
    return [{p: AMPLITUDES[(k + shift) % len(shifts)] for k, p in enumerate(DIMENSIONS)} for shift in shifts]


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """Share of CPU time and of work over share of amplitude, for each program and amplitude, and the largest errors."""
    for name in ("redis-server", "redis-benchmark", "sqlite3", "stress-ng"):
        if shutil.which(name) is None:
            raise HostError(f"{name}: not found (apt-get install redis-server redis-tools sqlite3 stress-ng)")
    with runtime.directory() as place:
        order = turns()
        arms = {
            ", ".join(f"{p} {turn[p]}" for p in turn): partial(side_by_side, plan_of(turn, place), seconds)
            for turn in order
        }
        samples = interleave(arms, runs, progress)
    blocks = [ratios([samples[arm][block] for arm in arms], order) for block in range(runs)]
    figures = [figure(name, "1", [block[name] for block in blocks], SHARE) for name in blocks[0]]
    for kind in ("cpu", "work"):
        errors = [max(abs(ratio - 1) for name, ratio in block.items() if f"_{kind}_" in name) for block in blocks]
        figures.append(figure(f"{kind}_error", "1", errors, ERROR))
    return figures


def plan_of(turn: Turn, place: Path) -> Plan:
    """The testbed with the amplitudes of one arm."""
    amplitudes = {f"dimensions.{DIMENSIONS[p]}.amplitude": turn[p] for p in turn}
    return runtime.plan_of("programs", place, {"base_window": WINDOW, **amplitudes})


def ratios(arms: Sequence[Mapping[str, Measured]], order: Sequence[Turn]) -> dict[str, float]:
    """Shares over amplitude shares, by the name of the figure.

    Args:
        arms: one block, an item for each arm.
        order: the amplitudes of each of these arms.
    """
    found = {}
    cpu_ns = [sum(one.cpu_ns for one in arm.values()) for arm in arms]
    for program in DIMENSIONS:
        work = [arm[program].rate / together_ns for arm, together_ns in zip(arms, cpu_ns, strict=True)]
        for k in sorted(range(len(arms)), key=lambda k: order[k][program]):
            amplitude = order[k][program]
            share = amplitude / sum(order[k].values())
            found[f"{program}_cpu_{amplitude}"] = arms[k][program].cpu_ns / cpu_ns[k] / share
            found[f"{program}_work_{amplitude}"] = work[k] / sum(work) / share
    return found


def side_by_side(plan: Plan, seconds: float) -> dict[str, Measured]:
    """Run all three for some time; what each got and did.

    Raises:
        RunError: one has died, or did not come up.
        HostError: one has lost data, or what drives Redis has failed.
    """
    with Run(plan) as run:
        inside = Path(f"/proc/{run.service_pids['supervisor']}/root{plan.mount_root}")
        folders = {program: inside / name for program, name in DIMENSIONS.items()}
        accounts = {p: account_of(run.dimension_pids[name]) for p, name in DIMENSIONS.items()}
        run.start()
        path = folders["redis"] / "data" / "redis.sock"
        with (
            closing(connect(run, path)) as redis,
            closing(connect(run, path)) as apart,
            closing(Keeper(apart)) as keeper,
            load(path, plan),
        ):
            wait(run, WARM_UP_S)
            before = sample(accounts, redis, folders["sqlite"])
            wait(run, seconds)
            after = sample(accounts, redis, folders["sqlite"])
            operations_s = interrupt_stress(run, folders["stress"])
            keeper.check(redis)
        run.check()
        run.halt()
        check_rows(folders["sqlite"], after.rows)
        for account in accounts.values():
            account.close()
    took_s = (after.at_ns - before.at_ns) / 1e9
    return {
        "redis": Measured(after.cpu_ns["redis"] - before.cpu_ns["redis"], (after.commands - before.commands) / took_s),
        "sqlite": Measured(after.cpu_ns["sqlite"] - before.cpu_ns["sqlite"], (after.rows - before.rows) / took_s),
        "stress": Measured(after.cpu_ns["stress"] - before.cpu_ns["stress"], operations_s),
    }


def account_of(pid: int) -> cgroup.Freezer:
    """The control group of a dimension, by its main process."""
    group = cgroup.observe(pid).unified
    assert group is not None, "a run with the freezer gate has a v2 tree"
    return cgroup.Freezer(group)


class Sample(NamedTuple):
    """Where all three are at one time."""

    at_ns: int
    cpu_ns: dict[str, int]
    commands: int
    rows: int


def sample(accounts: Mapping[str, cgroup.Freezer], redis: Redis, sqlite: Path) -> Sample:
    """Look at everything; only Redis takes its time to answer, so it is asked first."""
    commands = redis.commands_processed()
    rows = newest_row(sqlite)
    return Sample(time.monotonic_ns(), {p: account.usage_ns() for p, account in accounts.items()}, commands, rows)


def wait(run: Run, seconds: float) -> None:
    """Let a run go on.

    Raises:
        RunError: a process of it has died.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _CHECK_S))
        run.check()


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Redis:
    """A connection to Redis (RESP2), which waits as long as Redis is frozen."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE_S)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, *commands: Sequence[str]) -> list[Any]:
        """Send commands together; the answer to each.

        Raises:
            HostError: it refused one.
        """
        self._socket.sendall(b"".join(map(_as_request, commands)))
        return [self._answer() for _ in commands]

    def commands_processed(self) -> int:
        (stats,) = self.ask(["INFO", "stats"])
        line = next(line for line in stats.decode().splitlines() if line.startswith("total_commands_processed:"))
        return int(line.partition(":")[2])

    def _answer(self) -> Any:
        kind, rest = (line := self._answers.readline())[:1], line[1:].strip()
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self._answers.read(int(rest) + 2)[:-2]
        if kind in (b"+", b":"):
            return rest
        raise HostError(f"redis: {line.decode(errors='replace').strip() or 'has closed the connection'}")


def _as_request(words: Sequence[str]) -> bytes:
    return b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(w), w) for w in map(str.encode, words))])


def connect(run: Run, path: Path) -> Redis:
    """Connect as soon as Redis listens."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return Redis(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise RunError(f"{path}: Redis does not listen {_PATIENCE_S:.0f} s after the start") from None
        wait(run, 0.01)


@contextmanager
def load(path: Path, plan: Plan) -> Iterator[None]:
    """More commands than Redis has time for, from CPUs that are not its own.

    Raises:
        HostError: redis-benchmark has ended by itself.
    """
    own = {cpu for d in plan.dimensions for cpu in d.cpus}
    command = ["redis-benchmark", "-s", str(path), "-t", "set", "-r", "1000", "-d", "64", "-P", "32", "-c", "8"]
    with tempfile.TemporaryFile() as said:
        driver = subprocess.Popen([*command, "-n", "2000000000", "-q"], stdout=said, stderr=said)
        try:
            os.sched_setaffinity(driver.pid, os.sched_getaffinity(0) - own or own)
            os.setpriority(os.PRIO_PROCESS, driver.pid, -20)  # Redis is not to wait for it
            yield
            if driver.poll() is not None:
                said.seek(0)
                raise HostError(f"redis-benchmark: {said.read()[-500:].decode(errors='replace').strip()}")
        finally:
            driver.kill()
            driver.wait()


class Keeper:
    """Writes numbered keys, one batch after another, and remembers which have been acknowledged."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._acknowledged = 0
        self._stop = threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        try:
            while not self._stop.wait(0.005):
                batch = range(self._acknowledged, self._acknowledged + 10)
                self._redis.ask(*(["SET", f"kept:{number}", str(number)] for number in batch))
                self._acknowledged = batch.stop
        except (OSError, HostError) as error:
            self._problem = error

    def close(self) -> None:
        """Write no more."""
        self._stop.set()
        self._thread.join()

    def check(self, redis: Redis) -> None:
        """Stop, and look for every key.

        Raises:
            HostError: one is missing or wrong, or none could be written.
        """
        self.close()
        if self._problem is not None:
            raise self._problem
        if not self._acknowledged:
            raise HostError("redis: has not acknowledged a single key")
        for first in range(0, self._acknowledged, _MGET):
            numbers = range(first, min(first + _MGET, self._acknowledged))
            (found,) = redis.ask(["MGET", *(f"kept:{number}" for number in numbers)])
            for number, value in zip(numbers, found, strict=True):
                if value != b"%d" % number:
                    raise HostError(f"redis: key kept:{number} is {value!r}, it was acknowledged as {number}")


# ── SQLite ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def newest_row(folder: Path) -> int:
    """The newest row that is known to be committed."""
    with (folder / "log" / "workload.log").open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 64))
        lines = log.read().split(b"\n")[:-1]
    return int(lines[-1]) if lines else 0


def check_rows(folder: Path, committed: int) -> None:
    """Look into the database of a program that is frozen, in the middle of a transaction perhaps: into a copy.

    Raises:
        HostError: the database is damaged, or rows are missing.
    """
    with tempfile.TemporaryDirectory(prefix="vcg-", dir="/var/tmp") as name:
        for file in (folder / "data").glob("load.db*"):
            shutil.copy(file, name)
        with closing(sqlite3.connect(Path(name, "load.db"))) as database:
            try:
                (verdict,) = database.execute("pragma integrity_check").fetchone()
                count, first, last, whole = database.execute(
                    "select count(*), min(id), max(id), sum(length(content) = 64) from rows"
                ).fetchone()
            except sqlite3.DatabaseError as error:
                raise HostError(f"sqlite3: the database can't be read: {error}") from None
    expected = range(min(KEPT_ROWS, last or 0), KEPT_ROWS + BATCH_ROWS + 1)
    if verdict != "ok" or count not in expected or not count == whole == last - first + 1 or last < committed:
        raise HostError(
            f"sqlite3: {count} rows from {first} to {last}, {whole} of them whole, integrity {verdict}: "
            f"expected about {KEPT_ROWS} without a gap, and row {committed} among them"
        )


# ── stress-ng ────────────────────────────────────────────────────────────────────────────────────────────────────────


def interrupt_stress(run: Run, folder: Path) -> float:
    """End it, as Ctrl-C does; bogo operations for each second of its life, as it tells in the end.

    Raises:
        RunError: it does not tell.
    """
    os.kill(run.dimension_pids[DIMENSIONS["stress"]], signal.SIGINT)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        told = (folder / "log" / "workload.log").read_text()
        for line in told.splitlines():
            words = line.split()
            if words[:2] == ["stress-ng:", "metrc:"] and words[3] == "cpu":
                return float(words[8])
        if time.monotonic() > deadline:
            raise RunError(f"stress-ng: no figures {_PATIENCE_S:.0f} s after its end was asked for: {told[-500:]}")
        wait(run, 0.01)


BENCHMARK = Benchmark(
    "programs", "redis-server, sqlite3 and stress-ng under the freezer gate: share over amplitude", 8, 10.0, 3, measure
)
