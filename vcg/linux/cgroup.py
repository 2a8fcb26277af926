"""Control groups, v1 and v2 behind one small class (cgroups(7), Documentation/admin-guide/cgroup-v1, cgroup-v2.rst).

Our groups are built below the cgroup that this process was started in, on each hierarchy, and no other group is
touched. A controller is taken from the v2 tree if it is available there, else from its v1 hierarchy. Every process
also becomes a member of a v2 group, even of a tree without controllers: that gives BPF an id and ``cgroup.kill``.

Traps:

- v1 cpuset: ``cpuset.cpus`` and ``cpuset.mems`` must be written before a task enters (else ENOSPC).
- v1 cpu with CONFIG_RT_GROUP_SCHED: SCHED_FIFO needs ``cpu.rt_runtime_us`` in the group, and siblings must share what
  their parent has. Nine siblings would split one CPU's worth of real time, so a SCHED_FIFO dimension stays in the cpu
  group that the supervisor was started in, and only SCHED_OTHER dimensions get a cpu group of their own.
- v2: only controllers that the group we were started in already hands down (its ``cgroup.subtree_control``) are used;
  to enable one there would be to reconfigure the host. Without any, v2 is used for membership only, and a dimension's
  CPUs are kept by its affinity instead of a cpuset. The exception is a group that its manager has delegated (systemd's
  ``Delegate=``, which it marks with an extended attribute): what is below it is ours to arrange. But a group with
  processes in it can hand nothing down (cgroup-v2.rst, "No Internal Process Constraint"), so those that are in it,
  ourselves first of all, move into a leaf of it (:data:`LEAF`).
- v2 ``cpu.stat`` lags behind a task that is running on another CPU, by up to a tick of the kernel (4 ms at 250 Hz); so
  does the CPU clock of its process. Exact is what has been switched from: a task that was preempted, or is frozen.
- A frozen v2 group obeys SIGKILL, a frozen v1 group does not.
- v1 blkio limits what a task itself sends to a device: reads, direct and synchronous writes, an fsync. What the kernel
  writes back later for it is nobody's there, and not limited; v2 attributes that, too.
- A task that waits for throttled I/O obeys SIGKILL when that is done, so :func:`kill` lifts the limits first.
- Without ``cgroup.kill`` who forks fast enough outruns any round of signals. Therefore, where no v2 tree is mounted, a
  group also has a directory in the v1 freezer's hierarchy, if there is one, and :func:`kill` freezes it for its rounds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import NamedTuple

from vcg.linux import mount, sched

CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
FREEZER = "freezer"
"""Of v1, where a group without a v2 directory is held while it is killed; in v2 every group has a switch for it."""
_NAME_OF = {"blkio": "io"}
"""Controllers that v1 calls otherwise."""
IO_LIMITS = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
"""Limits of a group's I/O to one device, in bytes or operations a second, as v1's files and as v2's keys name them."""
LEAF = "vcg.leaf"
"""Where the processes of a delegated group live."""
DELEGATION_MARKS = ("trusted.delegate", "user.delegate")
"""Extended attributes of a delegated group, "1" if it is one (systemd's CGROUP_DELEGATION.md)."""
BANDWIDTH_MIN_US = 1_000
BANDWIDTH_PERIOD_MAX_US = 1_000_000
"""What the kernel takes as a quota (at least) and as its period (kernel/sched/core.c, tg_set_cfs_bandwidth)."""
_RETRY_S = 0.002
_ASIDE_S = 2.0
_FREEZE_S = 0.05
_GONE = (errno.ENOENT, errno.ENODEV)
"""What a file of a group says that has been removed, before and after it was opened; ENODEV also of a disk."""


@dataclass(frozen=True)
class Hierarchies:
    """Where a process is, and which hierarchy offers which controller.

    Attributes:
        unified: its directory in the v2 tree, None if none is mounted; of a process in the leaf of a delegated group,
            that group.
        v2: controllers usable below it.
        v1: controller -> its directory in that controller's v1 hierarchy.
        is_delegated: what is below ``unified`` is ours to arrange.
    """

    unified: Path | None
    v2: frozenset[str]
    v1: dict[str, Path]
    is_delegated: bool = False

    def backend(self, controller: str) -> str | None:
        """``"v2"``, ``"v1"`` or None."""
        if controller in self.v2:
            return "v2"
        return "v1" if controller in self.v1 else None


def observe(pid: int | str = "self") -> Hierarchies:
    """Read ``/proc/PID/cgroup`` and the mount table. Changes nothing."""
    mounts_v1: dict[str, tuple[Path, str]] = {}
    mount_v2: tuple[Path, str] | None = None
    for one in mount.mounts():
        if one.fstype == "cgroup2" and mount_v2 is None:
            mount_v2 = one.point, one.root
        elif one.fstype == "cgroup":
            for controller in {_NAME_OF.get(option, option) for option in one.options} & {*CONTROLLERS, FREEZER}:
                mounts_v1.setdefault(controller, (one.point, one.root))
    unified, v1 = None, {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers and mount_v2:
            unified = _below(*mount_v2, path)
        for controller in (_NAME_OF.get(name, name) for name in controllers.split(",")):
            if controller in mounts_v1:
                v1[controller] = _below(*mounts_v1[controller], path)
    if unified and unified.name == LEAF:
        unified = unified.parent
    v2, delegated = frozenset[str](), unified is not None and is_delegated(unified)
    if unified and (unified / "cgroup.controllers").exists():
        offered = frozenset((unified / "cgroup.controllers").read_text().split())
        enabled = frozenset((unified / "cgroup.subtree_control").read_text().split())
        v2 = usable(offered, enabled, delegated)
    return Hierarchies(unified, v2, v1, delegated)


def usable(offered: frozenset[str], enabled: frozenset[str], delegated: bool) -> frozenset[str]:
    """Controllers that a v2 group can give to groups below it.

    Args:
        offered: that the group has itself.
        enabled: that it hands down already.
        delegated: whether it may be made to hand down more.
    """
    return (offered if delegated else offered & enabled) & frozenset(CONTROLLERS)


def is_delegated(directory: Path) -> bool:
    """Whether the manager of the v2 tree has left a group, and what is below it, to whoever is in it."""
    for mark in DELEGATION_MARKS:
        try:
            if os.getxattr(directory, mark) == b"1":
                return True
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.ENOENT):
                raise
    return False


def step_aside(directory: Path, controllers: Iterable[str]) -> None:
    """Let a delegated group hand controllers down, after all that is in it has moved into its leaf.

    Raises:
        OSError: EBUSY if others keep moving into it; ENOENT for a controller that it has not.
    """
    leaf, deadline = directory / LEAF, time.monotonic() + _ASIDE_S
    leaf.mkdir(exist_ok=True)
    while True:
        for pid in (directory / "cgroup.procs").read_text().split():
            try:
                _write(leaf / "cgroup.procs", pid)
            except OSError as error:
                if error.errno != errno.ESRCH:  # it has ended
                    raise
        try:
            _write(directory / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:  # forked meanwhile
                raise


def _below(point: Path, mounted_root: str, path: str) -> Path:
    inside = os.path.relpath(path, mounted_root)
    return point if inside == "." or inside.startswith("..") else point / inside


def _write(path: Path, value: object) -> None:
    try:
        path.write_text(str(value))
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{path} <- {value}") from None


class Bandwidth(NamedTuple):
    """So much CPU time in each period, for the SCHED_OTHER tasks of a group together (sched-bwc.rst)."""

    period_us: int
    quota_us: int


def bandwidth(window_ns: Fraction, most_ns: Fraction, cpus: int) -> Bandwidth | None:
    """The limit that holds a group to a share of its CPUs, over its window or the fewest whole windows that will do.

    Args:
        window_ns: length of a window.
        most_ns: CPU time that the group may use in one.
        cpus: how many it may use.

    Returns:
        None if no period that the kernel takes has room for a quota that it takes.
    """
    if most_ns <= 0:
        return None
    least_ns = Fraction(BANDWIDTH_MIN_US * 1000)
    windows = ceil(max(Fraction(1), least_ns / window_ns, least_ns / most_ns))
    period_us = int(windows * window_ns / 1000)
    if period_us > BANDWIDTH_PERIOD_MAX_US:
        return None
    return Bandwidth(period_us, min(int(windows * most_ns / 1000), cpus * period_us))


class Group:
    """One group of ours in every hierarchy that serves it.

    Args:
        parent: the hierarchies, or our own outer group.
        name: of the new directories.
        controllers: which of :data:`CONTROLLERS` this group limits; others it does not enter.
        in_cell: whether its v2 directory lies in one more of its own.

    Attributes:
        cell: that directory; None without one. To freeze it freezes the group whatever the group's own switch says, so
            two can hold a group who know nothing of each other.
    """

    def __init__(
        self,
        parent: Hierarchies | Group,
        name: str,
        controllers: Iterable[str] = CONTROLLERS,
        *,
        in_cell: bool = False,
    ) -> None:
        self.cell: Path | None = None
        self._outer = isinstance(parent, Hierarchies)
        self.hierarchies: Hierarchies = parent.hierarchies if isinstance(parent, Group) else parent
        self._directories: dict[str, Path] = {}
        for controller in controllers if self.hierarchies.unified else (*controllers, FREEZER):
            if self.hierarchies.backend(controller) == "v1":
                above = parent._directories[controller] if isinstance(parent, Group) else parent.v1[controller]
                self._directories[controller] = above / name
        outer = parent._directories.get("v2") if isinstance(parent, Group) else parent.unified
        if outer and in_cell:
            self.cell = outer / f"{name}.cell"
            self._directories["v2"] = self.cell / name
        elif outer:
            self._directories["v2"] = outer / name

    @property
    def directories(self) -> list[Path]:
        """The topmost directories of this group; known before :meth:`create`, so that they can be journalled first."""
        return [self.cell if key == "v2" and self.cell else path for key, path in self._directories.items()]

    @property
    def unified(self) -> Path | None:
        """Its directory in the v2 tree, which every process of it is in; None if no v2 tree is mounted."""
        return self._directories.get("v2")

    def directory(self, controller: str) -> Path | None:
        """Where this group's files of a controller are; None if this host, or this group, has none."""
        return self.unified if controller in self.hierarchies.v2 else self._directories.get(controller)

    def create(self) -> None:
        """Make the directories.

        Raises:
            FileExistsError: one is there already; it is not ours to use.
        """
        handed_down = " ".join(f"+{name}" for name in sorted(self.hierarchies.v2))
        if self._outer and self.hierarchies.is_delegated and self.hierarchies.unified and handed_down:
            step_aside(self.hierarchies.unified, self.hierarchies.v2)
        if self.cell:
            self.cell.mkdir()
            if handed_down:
                _write(self.cell / "cgroup.subtree_control", handed_down)
        for key, path in self._directories.items():
            path.mkdir()
            if key == "v2" and handed_down and self._outer:
                _write(path / "cgroup.subtree_control", handed_down)
            if key == "cpuset":
                for name in ("cpuset.cpus", "cpuset.mems"):
                    _write(path / name, (path.parent / name).read_text().strip())

    def limit(
        self,
        *,
        cpus: Iterable[int] | None = None,
        node: int | None = None,
        memory_bytes: int | None = None,
        pids: int | None = None,
        weight: float | None = None,
    ) -> None:
        """Write limits, each to the controller that has it; one without a controller on this host is left out.

        Args:
            cpus, node: for cpuset.
            memory_bytes: hard limit, of what would be swapped out, too: the swap is the host's.
            pids: most tasks.
            weight: CPU weight, 1.0 being the default share.
        """
        if cpus is not None:
            self._set("cpuset", "cpuset.cpus", "cpuset.cpus", ",".join(map(str, sorted(cpus))))
        if node is not None:
            self._set("cpuset", "cpuset.mems", "cpuset.mems", node)
        if memory_bytes is not None:
            self._set("memory", "memory.limit_in_bytes", "memory.max", memory_bytes)
            self._keep_off_swap(memory_bytes)
        if pids is not None:
            self._set("pids", "pids.max", "pids.max", pids)
        if weight is not None:
            shares, v2_weight = max(2, round(1024 * weight)), min(max(1, round(100 * weight)), 10000)
            self._set("cpu", "cpu.shares", "cpu.weight", shares if "cpu" in self._directories else v2_weight)
            if self.cell and "cpu" in self.hierarchies.v2:  # it is what competes with the other dimensions
                _write(self.cell / "cpu.weight", v2_weight)

    def limit_bandwidth(self, limit: Bandwidth | None) -> None:
        """Cap the CPU time of the group's SCHED_OTHER tasks; None lifts the cap.

        The kernel's periods begin when they like, so one of them may hold the late half of one window's use and the
        early half of the next one's. Therefore what was left of a period's quota is let accumulate, up to one quota
        more: the long run is capped, and nobody who keeps to it is throttled.

        Under v1 no group may have more than one above it. Where that is so, the limit above is the tighter one, and
        this group is left without one of its own.
        """
        period_us, quota_us = limit or (100_000, -1)
        burst_us = max(quota_us, 0)  # not above the quota: lowered before it, and raised after it
        if (directory := self._directories.get("cpu")) is not None:
            _write(directory / "cpu.cfs_burst_us", 0)
            _write(directory / "cpu.cfs_period_us", period_us)
            try:
                _write(directory / "cpu.cfs_quota_us", quota_us)
            except OSError as error:
                if error.errno != errno.EINVAL or limit is None:
                    raise
                self.limit_bandwidth(None)
            else:
                _write(directory / "cpu.cfs_burst_us", burst_us)
        elif "cpu" in self.hierarchies.v2:
            directory = self._directories["v2"]
            _write(directory / "cpu.max.burst", 0)
            _write(directory / "cpu.max", f"{quota_us if limit else 'max'} {period_us}")
            _write(directory / "cpu.max.burst", burst_us)

    def limit_io(self, device: tuple[int, int], limits: Mapping[str, int]) -> None:
        """Limit the group's I/O to one block device; without the controller on this host it is left out.

        Args:
            device: its major and minor number.
            limits: of :data:`IO_LIMITS`, those that are wanted.
        """
        number = "{}:{}".format(*device)
        if (directory := self._directories.get("io")) is not None:
            for name, value in limits.items():
                _write(directory / f"blkio.throttle.{name}_device", f"{number} {value}")
        elif "io" in self.hierarchies.v2:
            keys = " ".join(f"{IO_LIMITS[name]}={value}" for name, value in limits.items())
            _write(self._directories["v2"] / "io.max", f"{number} {keys}")

    def _set(self, controller: str, v1_file: str, v2_file: str, value: object) -> None:
        if controller in self._directories:
            _write(self._directories[controller] / v1_file, value)
        elif controller in self.hierarchies.v2:
            _write(self._directories["v2"] / v2_file, value)

    def _keep_off_swap(self, memory_bytes: int) -> None:
        """Count what is swapped out, too, or let nothing be, where the kernel keeps an account of it."""
        directory = self.directory("memory")
        for name, value in (("memory.memsw.limit_in_bytes", memory_bytes), ("memory.swap.max", 0)):
            if directory is not None and (directory / name).exists():
                _write(directory / name, value)

    def enter(self) -> None:
        """Move the calling process into the group, in every hierarchy."""
        for path in self._directories.values():
            _write(path / "cgroup.procs", os.getpid())

    def admit(self, pid: int) -> None:
        """Move another process in, where nothing limits it, so that it can be found and killed with the rest."""
        for key in {"v2", FREEZER} & set(self._directories):
            _write(self._directories[key] / "cgroup.procs", pid)

    def members(self) -> set[int]:
        """Pids in the group or below it."""
        found: set[int] = set()
        for directory in self.directories:
            found |= members_below(directory)
        return found


def members_below(directory: Path) -> set[int]:
    """Pids in a cgroup directory and everything under it; empty if it is gone."""
    found: set[int] = set()
    for procs in [directory / "cgroup.procs", *directory.rglob("cgroup.procs")]:
        try:
            found |= {int(line) for line in procs.read_text().split()}
        except OSError as error:
            if error.errno not in _GONE:  # removed while we looked
                raise
    return found


def kill(directories: Iterable[Path], deadline_ns: int) -> set[int]:
    """SIGKILL everything in these directories until nothing is left or the time is up.

    ``cgroup.kill`` does so at once, forks included; where a directory has no such file each member gets a signal, again
    until a pass finds none, all of them frozen meanwhile if a directory is of the v1 freezer.

    Args:
        deadline_ns: CLOCK_MONOTONIC.

    Returns:
        Pids still there at the deadline.
    """
    directories = [path for path in directories if path.exists()]
    for path in directories:
        _lift_io_limits(path)
    while True:
        alive: set[int] = set()
        with _frozen_v1(directories):
            for path in directories:
                found = members_below(path)
                switch = path / "cgroup.kill"
                if found and switch.exists():
                    _write_unless_gone(switch, 1)
                else:
                    for pid in found:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                alive |= found
        if not alive or time.monotonic_ns() >= deadline_ns:
            return alive
        time.sleep(_RETRY_S)


@contextlib.contextmanager
def _frozen_v1(directories: Iterable[Path]) -> Iterator[None]:
    """Let nothing fork inside the block that is in a directory of the v1 freezer (freezer-subsystem.rst).

    Whatever is stuck in the kernel does not freeze; it is not waited for beyond a moment. To thaw comes last, whatever
    happens: a frozen v1 group does not obey SIGKILL, so one that was left frozen is thawed here, too.
    """
    states = [path / "freezer.state" for path in directories if (path / "freezer.state").exists()]
    try:
        for state in states:
            _write_unless_gone(state, "FROZEN")
        deadline = time.monotonic() + _FREEZE_S
        while any(_read_unless_gone(state) == "FREEZING\n" for state in states) and time.monotonic() < deadline:
            time.sleep(_RETRY_S)
        yield
    finally:
        for state in states:
            _write_unless_gone(state, "THAWED")


def _read_unless_gone(path: Path) -> str:
    """Content of a file of a group; nothing if that has just been removed."""
    try:
        return path.read_text()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return ""


def _write_unless_gone(path: Path, value: object) -> None:
    """Write to a file of a group; one that has just been removed has no use for it."""
    try:
        _write(path, value)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _lift_io_limits(directory: Path) -> None:
    """Let throttled I/O of a group, and of those below it, go on at once."""
    for name, unlimited in [*((f"blkio.throttle.{name}_device", "0") for name in IO_LIMITS), ("io.max", "max")]:
        for file in directory.rglob(name) if (directory / name).exists() else ():
            for line in _read_unless_gone(file).splitlines():
                device, *keys = line.split()
                values = " ".join(f"{key.partition('=')[0]}={unlimited}" for key in keys) if "=" in line else unlimited
                _write_unless_gone(file, f"{device} {values}")


def remove(directories: Iterable[Path], deadline_ns: int) -> list[Path]:
    """Remove groups and what is below them, deepest first; a dying task may hold one for a moment.

    Returns:
        Directories that still exist at the deadline.
    """
    left = list(directories)
    while True:
        left = [path for path in left if not _remove_tree(path)]
        if not left or time.monotonic_ns() >= deadline_ns:
            return left
        time.sleep(_RETRY_S)


def _remove_tree(path: Path) -> bool:
    for directory in [*_deepest_first(path), path]:
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
    return True


def _deepest_first(path: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(path, topdown=False):
        if directory != str(path):
            yield Path(directory)


class Freezer:
    """The switch and the accounts of one v2 group, its files kept open (cgroup-v2.rst: cgroup.freeze, cpu.stat).

    A frozen task has left the CPU and gets no other until it is thawed or killed. The switch itself returns at once: a
    task in the middle of a system call freezes at its end.

    Args:
        directory: of the group.

    Raises:
        OSError: there is no such group; ENOENT also before Linux 5.2.
    """

    def __init__(self, directory: Path) -> None:
        self._switch = os.open(directory / "cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)
        self._events = os.open(directory / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        self._account = os.open(directory / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        for fd in (self._switch, self._events, self._account):
            os.close(fd)

    def freeze(self) -> None:
        os.write(self._switch, b"1")

    def thaw(self) -> None:
        os.write(self._switch, b"0")

    def is_frozen(self) -> bool:
        """Whether everything in the group has come to rest."""
        return b"frozen 1" in os.pread(self._events, 128, 0)

    def is_populated(self) -> bool:
        """Whether any process is left in the group."""
        return b"populated 1" in os.pread(self._events, 128, 0)

    def usage_ns(self) -> int:
        """CPU time of all that is or was in the group, to a microsecond; see the trap of lagging above."""
        told = os.pread(self._account, 64, 0)
        return int(told[11 : told.index(b"\n")]) * 1000  # usage_usec


class FifoFreezer(Freezer):
    """The same for a group whose tasks are SCHED_FIFO, at one priority: demoted while they are frozen.

    To freeze and to thaw, the kernel takes a lock that it takes for every change of any control group. Whoever holds it
    may be waiting for the very CPU that a task of this group takes for itself: then neither gets any further until the
    kernel throttles real-time tasks (seen: 0.9 s). A demoted task gives way to the one with the lock, and a change of
    class needs no such lock.
    """

    def __init__(self, directory: Path, priority: int) -> None:
        super().__init__(directory)
        self._priority = priority
        self._threads = os.open(directory / "cgroup.threads", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        super().close()
        os.close(self._threads)

    def freeze(self) -> None:
        self._reschedule("idle", 0)
        super().freeze()

    def thaw(self) -> None:
        self._reschedule("fifo", self._priority)
        super().thaw()

    def _reschedule(self, policy: str, priority: int) -> None:
        """What is forked meanwhile keeps its class until the next time; it is frozen with the rest."""
        listed = b""
        while piece := os.pread(self._threads, 1 << 16, len(listed)):
            listed += piece
        for thread in listed.split():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                sched.reschedule(int(thread), policy, priority)
