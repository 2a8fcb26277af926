"""``vcg bench crash``: the kill storm. Nothing of a run may be left, whichever of its processes is killed, and when.

Each kill is a run of its own: three dimensions (a tmpfs one that may be restarted; an ext4 one that leaves a daemon
behind, see ``experiments.bench.orphan``; an unmodified program behind the freezer gate) under a client in a process of
its own. At a random moment of the bring-up, of the run or of the way down, after one of the steps that the supervisor
names, one process gets SIGKILL:

* of the runtime: supervisor, RTD, orchestrator, relay, gauges, gate, a dimension; the snapshotter while it takes a
  snapshot of the ext4 one;
* the client; a client that is a probe collector; the client and the supervisor at once.

Then nobody helps: the client clears what a killed supervisor has left, the supervisor what a killed client has. Only
where both were killed the state root is reconciled as the next start does it. What the audit (``vcg.audit``) still
finds after :data:`SETTLE_S` is *leaked*: loops, mounts, cgroups, processes, SysV objects, sockets, files; BPF programs
and maps of the collector; descriptors and mappings of a client that lives on, and of the benchmark itself.

``reclaim`` is the time from the kill until the audit finds nothing, where the kill ended the run. An audit takes about
6 ms, so the figures are that coarse.

The cases follow from a seed, which is among the figures: ``--seed`` repeats them. All steps and victims are met about
equally often. (The moments themselves can't be repeated to the microsecond.)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Progress, Tally, figure, quantile
from vcg import audit, shm, state
from vcg.errors import RunError
from vcg.linux import bpf, prctl
from vcg.plan import Plan

SETTLE_S = 10.0
"""What is left so long after the last process that could have cleared it is leaked."""
SPREAD_S, SPREAD_DOWN_S = 0.012, 0.003
"""A kill comes so long after the step that it follows, at most: on the way up, and on the way down."""
RUN_S = 0.25
_PATIENCE_S = 60.0
_APPEAR_S = 5.0
_POLL_S = 0.001
SEEDS = 1_000_000
WHOLE_S = RUN_S + 0.1
"""How long a run ticks; longer if its snapshot takes longer."""
BOTH = "client and supervisor"
COLLECTOR = "collector"
SERVICES = {"rtd": "vcg:rtd", "orchestrator": "vcg:orch", "relay": "vcg:relay", "gauges": "vcg:gauges"}
"""Victims by what they are called in /proc/PID/comm."""
SNAPSHOTTER = {"snapshotter": "vcg:snapshot"}
DIMENSIONS = ("d1", "d2", "d3")
GATE = "gate"
_ENDS = ("supervisor", "client", BOTH)
_INNER = (*SERVICES, GATE, *DIMENSIONS)
_OF_SNAPSHOT = (*_ENDS, *SNAPSHOTTER, "orchestrator", "d2")
VICTIMS: dict[str, tuple[str, ...]] = {
    "launch": _ENDS,
    "journal": _ENDS,
    "cgroups": _ENDS,
    "images": _ENDS,
    "mounts": _ENDS,
    "services": (*_ENDS, *SERVICES, GATE),
    "dimensions": (*_ENDS, *_INNER),
    "attach": (COLLECTOR,),
    "run": (*_ENDS, *_INNER, COLLECTOR),
    "snapshot sync": _OF_SNAPSHOT,
    "snapshot freeze": _OF_SNAPSHOT,
    "snapshot copy": _OF_SNAPSHOT,
    "snapshot thaw": _OF_SNAPSHOT,
    "snapshot papers": _OF_SNAPSHOT,
    "snapshot seal": _OF_SNAPSHOT,
    "leave": (*_ENDS, *_INNER, COLLECTOR),
    "end": _ENDS,
    "ungroup": _ENDS,
    "unmount": _ENDS,
    "remove": _ENDS,
}
"""The steps of a run, and who may be killed at each: whoever exists by then."""
WAY_DOWN = ("leave", "end", "ungroup", "unmount", "remove")
TESTBED: dict[str, Any] = {
    "name": "crash",
    "base_window": "6ms",
    "snapshots": {"quota": "16M"},
    "dimensions": {
        "d1": {
            "workload": "spin",
            "args": {"share": 0.2},
            "restart": {"policy": "on-failure", "limit": 3, "backoff": "10ms"},
            "storage": {"kind": "tmpfs", "size": "1M"},
        },
        "d2": {"workload": "experiments.bench.orphan:run", "storage": {"kind": "ext4", "size": "2M"}},
        "d3": {
            "gate": "freezer",
            "exec": ["/usr/bin/dash", "-c", "while :; do :; done"],
            "binds": ["/usr", "/lib", "/lib64"],
            "storage": {"kind": "tmpfs", "size": "1M"},
        },
    },
}


@dataclass(frozen=True)
class Case:
    """One kill.

    Attributes:
        step: after which it comes.
        victim: of :data:`VICTIMS`.
        delay_s: after the step.
    """

    step: str
    victim: str
    delay_s: float


@dataclass
class Aftermath:
    """What became of a kill.

    Attributes:
        has_struck: False: the victim had ended before.
        went_on: the run came to its planned end all the same.
        leaked: what was still there in the end, a line each.
        reclaim_ns: from the kill until nothing was left; None if the run went on.
    """

    case: Case
    has_struck: bool = True
    went_on: bool = False
    leaked: list[str] = field(default_factory=list)
    reclaim_ns: int | None = None


def cases(seed: int) -> Iterator[Case]:
    """Without end: each time one of the pairs of step and victim whose step, and victim, have come up least."""
    chance = random.Random(seed)
    pairs = [(step, victim) for step, victims in VICTIMS.items() for victim in victims]
    met: dict[str | tuple[str, str], int] = {}
    while True:
        step, victim = min(
            pairs,
            key=lambda pair: (met.get(pair, 0), met.get(pair[0], 0) + met.get(pair[1], 0), chance.random()),
        )
        for key in ((step, victim), step, victim):
            met[key] = met.get(key, 0) + 1
        most_s = RUN_S if step in ("attach", "run") else SPREAD_DOWN_S if step in WAY_DOWN else SPREAD_S
        yield Case(step, victim, chance.uniform(0, most_s))


def measure(runs: int, seconds: float, progress: Progress, seed: int | None = None) -> list[Figure]:
    """So many kills that struck."""
    if seed is None:
        seed = random.randrange(SEEDS)
    with runtime.directory() as place:
        plan = runtime.plan_from(TESTBED, place)
        aftermaths: list[Aftermath] = []
        with adopting():
            for case in cases(seed):
                if len(aftermaths) == runs:
                    break
                progress(f"{case.victim} at {case.step}, kill {len(aftermaths) + 1} of {runs}")
                aftermath = kill(case, plan)
                if not aftermath.has_struck:  # it had just ended: once more, and at once
                    aftermath = kill(replace(case, delay_s=0.0), plan)
                if aftermath.has_struck:
                    aftermaths.append(aftermath)
                elif aftermath.leaked:
                    raise RuntimeError(f"left although nobody was killed: {'; '.join(aftermath.leaked)}")
    return figures(aftermaths, seed)


def figures(aftermaths: Sequence[Aftermath], seed: int) -> list[Figure]:
    """What a storm comes to; pure."""
    reclaims = [float(one.reclaim_ns) for one in aftermaths if one.reclaim_ns is not None]
    leaks = [len(one.leaked) for one in aftermaths]
    made: list[Figure] = [
        Tally(
            "leaked",
            sum(leaks),
            "objects",
            min(leaks),
            max(leaks),
            ("victim", "kills", "run went on", "leaked", "reclaim p50 ms", "max ms"),
            tuple(_row(victim, [one for one in aftermaths if one.case.victim == victim]) for victim in _victims()),
        ),
        Tally(
            "kills",
            len(aftermaths),
            "kills",
            len(aftermaths),
            len(aftermaths),
            ("step", "kills", "run went on", "leaked", "reclaim p50 ms", "max ms"),
            tuple(_row(step, [one for one in aftermaths if one.case.step == step]) for step in VICTIMS),
        ),
    ]
    if reclaims:
        made.append(figure("reclaim_p50", "ns", reclaims))
    for name, part in (("reclaim_p99", 0.99), ("reclaim_max", 1.0)) if reclaims else ():
        made.append(Figure(name, quantile(reclaims, part), "ns", min(reclaims), max(reclaims)))
    made.append(Figure("seed", seed, "", seed, seed))
    lines = [(f"{one.case.victim} at {one.case.step}", line) for one in aftermaths for line in one.leaked]
    if lines:
        made.append(Tally("leaks", len(lines), "objects", 0, max(leaks), ("kill", "left behind"), tuple(lines)))
    return made


def _row(name: str, found: Sequence[Aftermath]) -> tuple[str, ...]:
    reclaims = [float(one.reclaim_ns) for one in found if one.reclaim_ns is not None]
    times = (f"{quantile(reclaims, 0.5) / 1e6:.0f}", f"{max(reclaims) / 1e6:.0f}") if reclaims else ("", "")
    went_on = sum(one.went_on for one in found)
    return name, str(len(found)), str(went_on), str(sum(len(one.leaked) for one in found)), *times


def _victims() -> list[str]:
    return list(dict.fromkeys(victim for victims in VICTIMS.values() for victim in victims))


# ── one kill ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """A client process and what it has said so far."""

    def __init__(self, plan: Plan, kind: str) -> None:
        self.said: list[dict[str, Any]] = []
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process is)
        plan_fd = shm.publish("plan", plan.to_json().encode())
        command = [sys.executable, "-m", "experiments.bench.crash_client", str(plan_fd), str(WHOLE_S), kind]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, pass_fds=[plan_fd]
        )
        os.close(plan_fd)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def listen(self, wait_s: float) -> None:
        """Take in what it says within some time, if anything."""
        if self._selector.select(wait_s):
            self._rest += self._output.read(1 << 16) or b""
            *lines, self._rest = self._rest.split(b"\n")
            self.said += [json.loads(line) for line in lines]

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def has_reached(self, step: str) -> bool:
        return any(message.get("at") == step for message in self.said)

    def last(self, key: str) -> Any:
        """What it has said last about something; None if nothing."""
        return next((message[key] for message in reversed(self.said) if key in message), None)

    def supervisor(self) -> int | None:
        """The pid of its supervisor; None if it has none (yet)."""
        return next(iter(children(self.pid)), None)

    def complaint(self) -> str:
        self._errors.seek(0)
        return f"{self.last('error')}; {self._errors.read().decode(errors='replace')[-2000:]}"

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._selector.close()
        self._output.close()
        self._errors.close()


def kill(case: Case, plan: Plan) -> Aftermath:
    """One run, one kill, and what is left of it.

    Raises:
        RuntimeError: the run failed before anybody was killed.
    """
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names are all that is needed)
    kind = "probes" if case.victim == COLLECTOR else "snapshot" if case.step.startswith("snapshot") else "plain"
    client = Client(plan, kind)
    try:
        aftermath = _kill(case, plan, client)
    finally:
        client.close()
        reap()
    opened = len(os.listdir("/proc/self/fd")) - before  # noqa: PTH208
    if opened:
        aftermath.leaked.append(f"descriptor: {opened} of the benchmark itself")
    return aftermath


def _kill(case: Case, plan: Plan, client: Client) -> Aftermath:
    supervisor = _await(client, client.supervisor)
    if supervisor is None:
        raise RuntimeError(f"the client has not started a supervisor: {client.complaint()}")
    if case.step != "launch" and not _await(client, lambda: client.has_reached(case.step)):
        raise RuntimeError(f"the run never came to the step {case.step}: {client.complaint()}")
    time.sleep(case.delay_s)
    victims = find(case, client, supervisor)
    at_ns = time.monotonic_ns()
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    aftermath = Aftermath(case, has_struck=bool(victims))
    client_dies = case.victim in ("client", BOTH, COLLECTOR)
    while not client.has_ended():
        client.listen(_POLL_S)
        reap()
        _note_end(aftermath, plan, supervisor, at_ns)
        if time.monotonic_ns() - at_ns > _PATIENCE_S * 1e9:
            raise RuntimeError(f"the client did not end in {_PATIENCE_S:.0f} s after {case}: {client.complaint()}")
    client.listen(0)
    aftermath.went_on = not client_dies and case.victim != "supervisor" and client.last("error") is None
    settle_by_ns = time.monotonic_ns() + int(SETTLE_S * 1e9)
    uncleared = case.victim == BOTH
    while aftermath.reclaim_ns is None and time.monotonic_ns() < settle_by_ns:
        reap()
        if uncleared:
            with contextlib.suppress(RunError):  # the lock is still held by somebody who is about to end
                aftermath.leaked = state.clear(Path(plan.state_root))
                uncleared = False
        _note_end(aftermath, plan, supervisor, at_ns)
    if aftermath.reclaim_ns is None:
        aftermath.leaked += [
            f"{item.kind} {item.name}: {item.detail}"
            for item in audit.leftovers_of(supervisor, Path(plan.state_root), Path(plan.mount_root))
        ]
    if aftermath.went_on or not aftermath.has_struck:
        aftermath.reclaim_ns = None
    if Path(plan.mount_root).exists():
        aftermath.leaked.append(f"directory {plan.mount_root}")
    aftermath.leaked += _held_by_client(client, client_dies) + _bpf_left(client, settle_by_ns)
    return aftermath


def _note_end(aftermath: Aftermath, plan: Plan, supervisor: int, at_ns: int) -> None:
    looked_ns = time.monotonic_ns()
    if aftermath.reclaim_ns is None and not audit.leftovers_of(
        supervisor, Path(plan.state_root), Path(plan.mount_root)
    ):
        aftermath.reclaim_ns = looked_ns - at_ns


def _held_by_client(client: Client, client_dies: bool) -> list[str]:
    """What a client that lives on still has of the run."""
    if client.last("descriptors") is None:
        return [] if client_dies else [f"client: it has failed itself: {client.complaint()}"]
    kinds = ("descriptors", "mappings")
    return [f"{kind}: {client.last(kind)} of the client" for kind in kinds if client.last(kind) != 0]


def _bpf_left(client: Client, settle_by_ns: int) -> list[str]:
    """BPF objects of a collector that are still loaded; the kernel unloads them a moment after their last user."""
    programs, maps = set(client.last("programs") or ()), set(client.last("maps") or ())
    while True:
        left = [f"bpf program {number}" for number, _ in bpf.programs() if number in programs]
        left += [f"bpf map {number}" for number in bpf.maps() if number in maps]
        if not left or time.monotonic_ns() > settle_by_ns:
            return left


def _await(client: Client, condition: Callable[[], Any]) -> Any:
    """Wait until something holds; None if the client ends before it does."""
    while not (found := condition()):
        if client.has_ended():
            client.listen(0)
            return condition() or None
        client.listen(_POLL_S)
    return found


def find(case: Case, client: Client, supervisor: int) -> list[int]:
    """The processes to kill; none if the victim has ended. One that is about to be started is waited for."""
    match case.victim:
        case "client" | "collector":
            return [client.pid]
        case "supervisor":
            return [supervisor] if is_alive(supervisor) else []
        case "client and supervisor":
            return [supervisor, client.pid] if is_alive(supervisor) else []
    deadline = time.monotonic() + _APPEAR_S
    while time.monotonic() < deadline and not client.has_reached("end"):
        for pid in children(supervisor):
            if title(pid) == case.victim:
                return [pid]
        if client.has_reached("run"):
            break
        client.listen(_POLL_S)
    return []


def title(pid: int) -> str:
    """Which of the victims a child of the supervisor is; empty if none, or if it is gone."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if "vcg.gate" in command:
        return GATE
    for service, known_as in {**SERVICES, **SNAPSHOTTER}.items():
        if name == known_as or f"vcg.{service}\0" in command:
            return service
    return next((d for d in DIMENSIONS if f"/{d}\n" in groups), "")


def children(pid: int) -> list[int]:
    """Children of a process; none if it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ── orphans ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Inside the block orphans come to this process, which reaps them at once: no figure waits for init."""
    prctl.adopt_orphans()
    try:
        yield
    finally:
        reap()
        prctl.adopt_orphans(False)


def reap() -> None:
    """Collect orphans that have ended: children of a session that is not ours, as everything of a run is."""
    for pid in children(os.getpid()):
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if os.getsid(pid) != os.getsid(0):
                os.waitpid(pid, os.WNOHANG)


BENCHMARK = Benchmark("crash", "kill any process of a run at any step: what is left?", 1000, None, 1, measure, True)
