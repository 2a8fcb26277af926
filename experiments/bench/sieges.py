"""Lines 07 to 09 and 11 of what a dimension must not be able to do, as whole runs in which all nine misbehave at once.

A :class:`Siege` is a workload, how the run is seen to bear it, and a control: the same against something that lacks the
defence. For what is written or held that is the orchestrator without one check (``experiments.bench.forgeries``), for
what is taken a process with twice the limit, for what is left behind a group that nobody sweeps. Line 10 is about
clients, which are no dimensions: ``tests/host/test_escape_sockets.py``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench import forgeries, runtime
from experiments.bench.attacks import Control, Outcome
from experiments.bench.misbehaviour import DAEMON
from vcg import shm, uids
from vcg.errors import RunError
from vcg.linux import cgroup, mount, openat2, prctl, sandbox
from vcg.lookout import oom_kills
from vcg.plan import DimensionPlan, Plan
from vcg.run import Run
from vcg.workloads import hostile

AFTER, FORGERIES = 20, 5
LIMITS = {"fork": 20, "memory": 48 << 20, "disk": 8 << 20, "inodes": 500, "descriptors": 64, "connections": 64}
"""What an abuse is held to in its control: processes, bytes, bytes, inodes, descriptors, descriptors."""
_BESIEGED_S = 60
_ABUSED_S = 15
_LONG_ENOUGH_S = 0.5
_POLL_S = 0.02
_UNDO_NS = 5_000_000_000
_AMPLE = 8
_UID = uids.SPARE[2]


@dataclass(frozen=True)
class Siege:
    """One kind of misbehaviour.

    Attributes:
        line: of the list of what a dimension must not be able to do.
        name: stable, for comparison between commits.
        fields: of every dimension.
        judge: whether a dimension has been held by now, and by what; None if that is not yet to be seen.
        control: the same without the defence, and with it, in a directory to mount on.
        afterwards: what is to be seen only when the run is over.
        is_mortal: whether dimensions die of it, by SIGKILL and nothing else.
    """

    line: str
    name: str
    fields: dict[str, Any]
    judge: Callable[[Run, DimensionPlan], str | None]
    control: Callable[[Path], Control]
    afterwards: Callable[[str], Outcome] = lambda seen: Outcome("refused", seen)
    is_mortal: bool = False

    @property
    def overrides(self) -> dict[str, Any]:
        """What makes of any testbed one whose dimensions all misbehave so."""
        return {f"dimensions.*.{name}": value for name, value in self.fields.items()}


def besiege(siege: Siege, plan: Plan) -> dict[str, Outcome]:
    """Run a testbed until the misbehaviour of all its dimensions has been held.

    Raises:
        RunError: a process of the run died that should not.
    """
    seen: dict[str, str] = {}
    deaths = ""
    with Run(plan) as run:
        run.start()
        deadline = time.monotonic() + _BESIEGED_S
        while len(seen) < len(plan.dimensions) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            for d in plan.dimensions:
                has_ended = f"{d.name} was killed by SIGKILL" in deaths
                if d.name not in seen and has_ended == siege.is_mortal and (what := siege.judge(run, d)) is not None:
                    seen[d.name] = what
            run.drain()
            try:
                run.check()
            except RunError as error:
                deaths = str(error)
                if not siege.is_mortal or deaths.count(" was killed by SIGKILL") != deaths.count(";") + 1:
                    raise
        services = [name for name, pid in run.service_pids.items() if not Path(f"/proc/{pid}").exists()]
    if services:
        raise RunError(f"{', '.join(services)}: did not live through it")
    held = {name: siege.afterwards(what) for name, what in seen.items()}
    late = Outcome("escaped", f"not held after {_BESIEGED_S} s")
    return {d.name: held.get(d.name, late) for d in plan.dimensions}


# ── 07, 08: what it writes ───────────────────────────────────────────────────────────────────────────────────────────
def _account(run: Run, d: DimensionPlan) -> dict[str, int]:
    account: dict[str, int] = run.statistics()["tokens"][d.name]
    return account


def _refused(counter: str, run: Run, d: DimensionPlan) -> str | None:
    shm.read_message(run.regions.status[d.name])  # whatever length it claims
    account = _account(run, d)
    if account[counter] < FORGERIES or not 0 <= account["used_ns"] < _BESIEGED_S * 1e9:
        return None
    return f"counted as {counter}"


def _paid_late(run: Run, d: DimensionPlan) -> str | None:
    account = _account(run, d)
    if account["expired"] < FORGERIES or account["overrun_ns"] < FORGERIES * d.credit_ns // 2:
        return None
    return "its tokens expired, and all use under them is too much"


# ── 09: what it takes ────────────────────────────────────────────────────────────────────────────────────────────────
def group_of(run: Run, name: str, controller: str) -> Path:
    """A dimension's directory in the hierarchy of a controller."""
    found = cgroup.observe()
    above = found.unified if found.backend(controller) == "v2" else found.v1[controller]
    assert above is not None
    (directory,) = above.glob(f"vcg-{run.supervisor_pid}-*/**/{name}")
    return directory


def _filesystem(run: Run, name: str) -> os.statvfs_result:
    return os.statvfs(f"/proc/{run.supervisor_pid}/root{run.plan.mount_root}/{name}")


def fork_stopped(run: Run, d: DimensionPlan) -> str | None:
    _, refused = (group_of(run, d.name, "pids") / "pids.events").read_text().split()[:2]  # max 17
    return "the kernel refused it a process" if int(refused) else None


def memory_stopped(run: Run, d: DimensionPlan) -> str | None:
    group = group_of(run, d.name, "memory")
    events = group / "memory.events"
    return (
        "killed for want of memory"
        if oom_kills(str(events if events.exists() else group / "memory.oom_control"))
        else None
    )


def disk_stopped(run: Run, d: DimensionPlan) -> str | None:
    return "its filesystem is full" if _filesystem(run, d.name).f_bavail == 0 else None


def inodes_stopped(run: Run, d: DimensionPlan) -> str | None:
    return "its filesystem has no inode left" if _filesystem(run, d.name).f_ffree == 0 else None


def descriptors_stopped(run: Run, d: DimensionPlan) -> str | None:
    most = sandbox.LIMITS[resource.RLIMIT_NOFILE]
    return f"at {most} descriptors" if len(_descriptors_of(run, d)) == most else None


def connections_stopped(run: Run, d: DimensionPlan) -> str | None:
    most, kinds = sandbox.LIMITS[resource.RLIMIT_NOFILE], _descriptors_of(run, d)
    sockets = sum(kind.startswith("socket:") for kind in kinds)
    return "at its limit of descriptors, nearly all sockets" if len(kinds) == most and sockets > most * 0.9 else None


def _descriptors_of(run: Run, d: DimensionPlan) -> list[str]:
    """What each descriptor of a dimension's process is; of those that are closed meanwhile nothing."""
    kinds = []
    for fd in Path(f"/proc/{run.dimension_pids[d.name]}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kinds.append(str(fd.readlink()))
    return kinds


STOPPED = {
    "fork": fork_stopped,
    "memory": memory_stopped,
    "disk": disk_stopped,
    "inodes": inodes_stopped,
    "descriptors": descriptors_stopped,
    "connections": connections_stopped,
}
"""Each abuse of ``vcg.workloads.hostile``, and how it is seen to be at its limit, by the kernel's account."""


def peak_of(kind: str, generosity: int, place: Path) -> int:
    """The most that an abuse takes when it has that many times its :data:`LIMITS`.

    With its own limit it is watched for a while, longer where it is slow to come near it; with more until it has passed
    that.
    """
    limit, peak = LIMITS[kind], 0
    with _abused(kind, generosity, place) as taken:
        began = time.monotonic()
        while peak <= limit and (lasted := time.monotonic() - began) < _ABUSED_S:
            if generosity == 1 and peak > limit / 2 and lasted > _LONG_ENOUGH_S:
                break
            peak = max(peak, taken())
            time.sleep(0.001)
    return peak


@contextmanager
def _abused(kind: str, generosity: int, place: Path) -> Iterator[Callable[[], int]]:
    """An abuse in a child; yields what tells how much it has taken. Of all else it has ample."""
    allowed = {one: limit * (generosity if one == kind else _AMPLE) for one, limit in LIMITS.items()}
    with runtime.group(("memory", "pids")) as group:
        memory = group.directory("memory")
        assert memory is not None
        group.limit(memory_bytes=allowed["memory"], pids=allowed["fork"])
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                prctl.die_with_parent(parent)
                group.enter()
                mount.enter_private_namespace()
                options = f"size={allowed['disk']},nr_inodes={allowed['inodes']},mode=755"
                mount.mount("tmpfs", place, "tmpfs", 0, options)
                (place / "data").mkdir()
                (place / "data").chmod(0o777)
                sandbox.take(sandbox.enclosure(place, ()))
                dict(sandbox.surrendering(_UID, parent))["uid"]()
                prctl.close_from(3)
                descriptors = allowed["connections" if kind == "connections" else "descriptors"]
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
                hostile.ABUSES[kind]()
            finally:
                os._exit(1)

        def taken() -> int:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found = os.statvfs(f"/proc/{pid}/root/data")
                return {
                    "fork": lambda: len(group.members()),
                    "memory": lambda: _usage(memory),
                    "disk": lambda: (found.f_blocks - found.f_bfree) * found.f_frsize,
                    "inodes": lambda: found.f_files - found.f_ffree,
                    "descriptors": lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())),
                    "connections": lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())),
                }[kind]()
            return 0

        try:
            yield taken
        finally:
            cgroup.kill(group.directories, time.monotonic_ns() + _UNDO_NS)
            os.waitpid(pid, 0)


def _usage(memory: Path) -> int:
    file = memory / "memory.current"
    return int((file if file.exists() else memory / "memory.usage_in_bytes").read_text())


def limited(kind: str, place: Path) -> Control:
    """The same abuse in the same place, with twice as much of what it takes, and with no more than its limit."""
    twice, once, limit = peak_of(kind, 2, place), peak_of(kind, 1, place), LIMITS[kind]
    without = Outcome("escaped" if twice > limit else "refused", f"took {twice}, where the limit is {limit}")
    reached = limit / 2 < once <= limit
    return Control(without, {"its limit": Outcome("refused" if reached else "escaped", f"took {once}")})


# ── 11: what it holds, and what it leaves behind ─────────────────────────────────────────────────────────────────────
def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _token_taken(run: Run, d: DimensionPlan) -> str | None:
    if not is_stopped(run.dimension_pids[d.name]):
        return None
    latest = run.ticks[shm.LATEST_AT + d.index]
    account = _account(run, d)
    # All that was minted up to some windows ago has been used or has expired: none of it is out.
    return "its token expired" if account["settled"] + account["expired"] > latest - 2 * AFTER > 0 else None


def daemon_of(run: Run, name: str) -> int:
    """The pid of what a dimension has left behind; 0 if it has not yet."""
    root = os.open(f"/proc/{run.supervisor_pid}/root{run.plan.mount_root}/{name}", os.O_PATH | os.O_DIRECTORY)
    try:
        return int(openat2.read_file(root, DAEMON, 100) or 0)
    except FileNotFoundError:
        return 0
    finally:
        os.close(root)


def _daemon_seen(run: Run, d: DimensionPlan) -> str | None:
    pid = daemon_of(run, d.name)
    return str(pid) if pid else None


def _daemon_gone(seen: str) -> Outcome:
    is_gone = not Path(f"/proc/{seen}").exists()
    return Outcome("refused", "it ended with the run") if is_gone else Outcome("escaped", f"pid {seen} lives on")


def outlive_parent(place: Path) -> Control:
    """A daemon whose parent is killed: PDEATHSIG is not inherited, so it takes a sweep of its control group."""
    return Control(_daemon_of_dead(is_swept=False), {"sweep": _daemon_of_dead(is_swept=True)})


def _daemon_of_dead(*, is_swept: bool) -> Outcome:
    with runtime.group() as group:
        told, tell = os.pipe()
        parent = os.getpid()
        dimension = os.fork()
        if dimension == 0:
            try:
                group.enter()
                prctl.die_with_parent(parent)
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        os.write(tell, os.getpid().to_bytes(4, "little"))
                        time.sleep(_ABUSED_S)
                else:
                    os.wait()
                    signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        daemon = int.from_bytes(os.read(told, 4), "little")
        os.close(told)
        if not daemon:
            raise RunError("nobody was left behind: the one that was to be could not enter its group, or fork")
        handle = os.pidfd_open(daemon)
        os.kill(dimension, signal.SIGKILL)
        os.waitpid(dimension, 0)
        try:
            if is_swept:
                cgroup.kill(group.directories, time.monotonic_ns() + _UNDO_NS)
            is_over = bool(select.select([handle], [], [], int(is_swept))[0])
        finally:
            os.close(handle)
    return Outcome("refused", "it ended with its parent") if is_over else Outcome("escaped", "it outlived its parent")


def _hostile(kind: str, **more: Any) -> dict[str, Any]:
    fields = {"workload": "hostile", "args": {"kind": kind, "after": AFTER}, "scheduling": "other", "enforce": "none"}
    return {**fields, "pids": 20, **more}


_HERE = "experiments.bench.misbehaviour"
_SMALL = {"storage.size": "8M"}


def _writes(function: str, **more: Any) -> dict[str, Any]:
    args = {"after": AFTER, "forgeries": FORGERIES, **more}
    return {"workload": f"{_HERE}:{function}", "args": args, "scheduling": "other", "enforce": "none"}


def _facing(forgery: Callable[[forgeries.Office], str]) -> Callable[[Path], Control]:
    return lambda place: forgeries.control(forgery)


_CLAIMS = (
    ("old epoch", "refused_epoch", forgeries.old_epoch),
    ("replay", "refused_window", forgeries.replay),
    ("future", "refused_window", forgeries.future),
    ("negative use", "refused_value", forgeries.negative_use),
    ("impossible use", "refused_value", forgeries.impossible_use),
    ("neighbour", "refused_value", forgeries.neighbour),
)
_OUT_OF_RANGE = partial(_refused, "refused_value")

SIEGES = (
    Siege("07", "garbage", _writes("corrupts"), _OUT_OF_RANGE, _facing(forgeries.head_out_of_range)),
    Siege("07", "torn head", _writes("tears", word="head"), _OUT_OF_RANGE, _facing(forgeries.head_rewritten)),
    Siege("07", "torn use", _writes("tears", word="use"), _OUT_OF_RANGE, _facing(forgeries.use_rewritten)),
    *(
        Siege("08", kind, _writes("forges", claims=[kind]), partial(_refused, counter), _facing(forgery))
        for kind, counter, forgery in _CLAIMS
    ),
    Siege("08", "expired token", _writes("overstays"), _paid_late, _facing(forgeries.expired)),
    *(
        Siege(
            "09",
            kind,
            _hostile(kind, **({"memory": "48M"} if kind == "memory" else {}), **_SMALL),
            judge,
            partial(limited, kind),
            is_mortal=kind == "memory",
        )
        for kind, judge in STOPPED.items()
    ),
    Siege(
        "11", "stop", {"workload": f"{_HERE}:stops", "args": {"after": AFTER}}, _token_taken, _facing(forgeries.stop)
    ),
    Siege("11", "daemon", {"workload": f"{_HERE}:daemonises"}, _daemon_seen, outlive_parent, _daemon_gone),
)
"""Every kind; each in a run of its own."""
