"""Lines 07 to 09 and 11 of what a dimension must not be able to do, as whole runs in which all nine misbehave at once.

A :class:`Siege` is a workload, how the run is seen to bear it, and a control: the same against something that lacks the
defence. Line 10 is about clients, which are no dimensions: ``tests/host/test_escape_sockets.py``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.bench.attacks import Outcome
from experiments.bench.misbehaviour import DAEMON, claim, corrupts
from vcg import shm, uids
from vcg.errors import RunError
from vcg.linux import cgroup, mount, openat2, prctl, sandbox
from vcg.plan import DimensionPlan, Plan
from vcg.rounds import ledger_of
from vcg.run import Run
from vcg.workloads import hostile

AFTER, FORGERIES = 20, 5
LIMITS = {"fork": 20, "memory": 48 << 20, "disk": 8 << 20, "inodes": 500, "descriptors": 64}
"""What an abuse is held to in its control: processes, bytes, bytes, inodes, descriptors."""
_BESIEGED_S = 60
_ABUSED_S = 15
_LONG_ENOUGH_S = 0.5
_POLL_S = 0.02
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
        control: the same without the defence, in a directory to mount on; it should escape.
        afterwards: what is to be seen only when the run is over.
        is_mortal: whether dimensions may die of it.
    """

    line: str
    name: str
    fields: dict[str, Any]
    judge: Callable[[Run, DimensionPlan], str | None]
    control: Callable[[Path], Outcome]
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
    with Run(plan) as run:
        run.start()
        deadline = time.monotonic() + _BESIEGED_S
        while len(seen) < len(plan.dimensions) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            for d in plan.dimensions:
                if d.name not in seen and (what := siege.judge(run, d)) is not None:
                    seen[d.name] = what
            run.drain()
            with contextlib.suppress(RunError) if siege.is_mortal else contextlib.nullcontext():
                run.check()
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


def _forgeries_refused(run: Run, d: DimensionPlan) -> str | None:
    account = _account(run, d)
    every = account["refused_epoch"], account["refused_window"], account["refused_value"]
    if not all(found >= least for found, least in zip(every, (FORGERIES, 2 * FORGERIES, 2 * FORGERIES), strict=True)):
        return None
    if not 0 <= account["used_ns"] < _BESIEGED_S * 1e9:
        return None
    return "its claims were refused and counted"


def _garbage_refused(run: Run, d: DimensionPlan) -> str | None:
    shm.read_message(run.regions.status[d.name])  # whatever length it claims
    return "its head was refused and counted" if _account(run, d)["refused_value"] >= FORGERIES else None


def _a_page() -> memoryview:
    return memoryview(bytearray(shm.STATUS_BYTES)).cast("q")


def believe_claims(place: Path) -> Outcome:
    """Somebody adds up what he finds."""
    page = _a_page()
    claim(page, 3, 1, -(2**62))
    used_ns = sum(page[shm.WINDOWS_AT + shm.WINDOW.at("used_ns") :: shm.WINDOW_WORDS].tolist())
    return Outcome("escaped" if used_ns < 0 else "refused", f"it is believed to have used {used_ns} ns")


def believe_head(place: Path) -> Outcome:
    """Somebody reads the record before the head, wherever that is."""
    page = _a_page()
    windows = iter([SimpleNamespace(number=9 * AFTER)])  # the first of its heads is far out of range
    corrupts(SimpleNamespace(_status=page, args={"after": AFTER}, windows=lambda: windows))  # type: ignore[arg-type]
    try:
        page[shm.WINDOWS_AT + (page[shm.STATUS_HEADER.at("head")] - 1) * shm.WINDOW_WORDS]
    except IndexError as error:
        return Outcome("escaped", f"the reader ends with {error}")
    return Outcome("refused", "it was there")


# ── 09: what it takes ────────────────────────────────────────────────────────────────────────────────────────────────
def group_of(run: Run, name: str, controller: str) -> Path:
    """A dimension's directory in the hierarchy of a controller."""
    found = cgroup.observe()
    above = found.unified if found.backend(controller) == "v2" else found.v1[controller]
    assert above is not None
    (directory,) = above.glob(f"vcg-{run.supervisor_pid}-*/{name}")
    return directory


def _filesystem(run: Run, name: str) -> os.statvfs_result:
    return os.statvfs(f"/proc/{run.supervisor_pid}/root{run.plan.mount_root}/{name}")


def fork_stopped(run: Run, d: DimensionPlan) -> str | None:
    many = int((group_of(run, d.name, "pids") / "pids.current").read_text())
    return f"at {many} processes" if many == d.pids else None


def memory_stopped(run: Run, d: DimensionPlan) -> str | None:
    return None if Path(f"/proc/{run.dimension_pids[d.name]}").exists() else "killed at its limit"


def disk_stopped(run: Run, d: DimensionPlan) -> str | None:
    return "its filesystem is full" if _filesystem(run, d.name).f_bavail == 0 else None


def inodes_stopped(run: Run, d: DimensionPlan) -> str | None:
    return "its filesystem has no inode left" if _filesystem(run, d.name).f_ffree == 0 else None


def descriptors_stopped(run: Run, d: DimensionPlan) -> str | None:
    most = sandbox.LIMITS[resource.RLIMIT_NOFILE]
    many = len(list(Path(f"/proc/{run.dimension_pids[d.name]}/fd").iterdir()))
    return f"at {many} descriptors" if many == most else None


STOPPED = {
    "fork": fork_stopped,
    "memory": memory_stopped,
    "disk": disk_stopped,
    "inodes": inodes_stopped,
    "descriptors": descriptors_stopped,
}
"""Each abuse of ``vcg.workloads.hostile``, and how it is seen to be at its limit."""


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
    group = cgroup.Group(cgroup.observe(), f"vcg-siege-{os.getpid()}", ("memory", "pids"))
    group.create()
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
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed["descriptors"], allowed["descriptors"]))
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
            }[kind]()
        return 0

    try:
        yield taken
    finally:
        deadline_ns = time.monotonic_ns() + 5_000_000_000
        left = cgroup.kill(group.directories, deadline_ns)
        os.waitpid(pid, 0)
        left_groups = cgroup.remove(group.directories, deadline_ns)
        if left or left_groups:
            raise RunError(f"an abuse left processes {left} and groups {left_groups}")


def _usage(memory: Path) -> int:
    file = memory / "memory.current"
    return int((file if file.exists() else memory / "memory.usage_in_bytes").read_text())


def twice_the_limit(kind: str, place: Path) -> Outcome:
    """The same abuse in the same place, with twice as much of what it takes."""
    peak, limit = peak_of(kind, 2, place), LIMITS[kind]
    return Outcome("escaped" if peak > limit else "refused", f"took {peak}, where the limit is {limit}")


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


def keep_lease(place: Path) -> Outcome:
    """A ledger that nobody tells that time is up."""
    rtd = SimpleNamespace(cpus=_A_DIMENSION.cpus)
    plan = SimpleNamespace(dimensions=[_A_DIMENSION], horizon=64, base_window_ns=1_000_000, rtd=rtd)
    account = ledger_of(plan).accounts[0]  # type: ignore[arg-type]
    for window in range(2 * AFTER):
        account.book(window)
    out = account.next_window - account.settled_through - 1
    return Outcome("escaped" if out == 2 * AFTER else "refused", f"{out} tokens stay out")


_A_DIMENSION = SimpleNamespace(
    name="d1",
    cpus=(0,),
    triad="",
    period=(1_000_000, 1),
    burst=(0, 1),
    floor=(1, 4),
    ceiling=(4, 1),
    amplitude=1.0,
    credit_ns=100_000,
)


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


def outlive_parent(place: Path) -> Outcome:
    """A daemon whose parent is killed, where nobody sweeps: PDEATHSIG is not inherited."""
    told, tell = os.pipe()
    parent = os.getpid()
    dimension = os.fork()
    if dimension == 0:
        prctl.die_with_parent(parent)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(tell, os.getpid().to_bytes(4, "little"))
                time.sleep(_ABUSED_S)
            os._exit(0)
        os.wait()
        signal.pause()
    daemon = int.from_bytes(os.read(told, 4), "little")
    os.close(told)
    os.close(tell)
    handle = os.pidfd_open(daemon)
    os.kill(dimension, signal.SIGKILL)
    os.waitpid(dimension, 0)
    try:
        signal.pidfd_send_signal(handle, 0)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return Outcome("refused", "it ended with its parent")
    finally:
        os.close(handle)
    return Outcome("escaped", "it outlived its parent")


def _hostile(kind: str, **more: Any) -> dict[str, Any]:
    fields = {"workload": "hostile", "args": {"kind": kind, "after": AFTER}, "scheduling": "other", "enforce": "none"}
    return {**fields, "pids": 20, **more}


_WRITES = {"args": {"after": AFTER, "forgeries": FORGERIES}, "enforce": "none"}
_HERE = "experiments.bench.misbehaviour"
_SMALL = {"storage.size": "8M"}

SIEGES = (
    Siege("07", "garbage", {"workload": f"{_HERE}:corrupts", **_WRITES}, _garbage_refused, believe_head),
    Siege("08", "forgeries", {"workload": f"{_HERE}:forges", **_WRITES}, _forgeries_refused, believe_claims),
    *(
        Siege(
            "09",
            kind,
            _hostile(kind, **({"memory": "48M"} if kind == "memory" else {}), **_SMALL),
            judge,
            partial(twice_the_limit, kind),
            is_mortal=kind == "memory",
        )
        for kind, judge in STOPPED.items()
    ),
    Siege("11", "stop", {"workload": f"{_HERE}:stops", "args": {"after": AFTER}}, _token_taken, keep_lease),
    Siege("11", "daemon", {"workload": f"{_HERE}:daemonises"}, _daemon_seen, outlive_parent, _daemon_gone),
)
"""Every kind; each in a run of its own."""
