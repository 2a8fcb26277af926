"""The supervisor: builds what a plan describes, keeps it together, and takes it all down again.

Runs as a process of its own (``python -m vcg.supervisor``), started by :class:`vcg.run.Run` with an empty environment.
It lives in a private mount namespace, so all mounts end with it; it holds no authority over tokens, so its memory image
is a safe parent for the dimensions, which it forks.

It obeys messages on one socket (``start``, ``halt``, ``finish``) and reports on the same. When that socket closes, or
on SIGTERM at any time, it takes the run down in order: once something has been built, every way out of :func:`main`
goes through :meth:`Supervisor.down`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import linecache
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vcg import control, orders, service, shm, storage, uids
from vcg.dimension import Dimension
from vcg.errors import RunError
from vcg.linux import cgroup, memory, mount, openat2, prctl, sandbox, sched
from vcg.lookout import oom_kills
from vcg.plan import DimensionPlan, Plan, retuned
from vcg.quantities import format_size
from vcg.shm import Phase, State
from vcg.state import StateRoot, attempt, lock_mount_root
from vcg.succession import Succession
from vcg.warden import Standing

PRIORITY = 82
"""Above every dimension, so that none of them can keep it from stopping them; below the RTD and the orchestrator."""

_LEAD_NS = 30_000_000
"""From the order to start to window 0: the orchestrator has minted the first tokens by then."""
_READY_S = 20.0
_LEAVE_S = 2.0
_POLL_S = 0.001
_TAIL_BYTES = 2048
_TAIL_LINES = 10
_PATIENCE_S = 0.01
"""Between two looks at a dimension that may not be launched yet."""
_SNAPSHOT_S = 45.0
"""So long the end of a run, or of its ticks, waits for snapshots; its client waits longer for an answer."""
_SILENCE_S = 30.0
_SLOWEST_COPY_BPS = 1 << 20
"""A snapshotter that says nothing for so long, and for as long as a copy takes at this rate, hangs."""
_DISPENSABLE = ("relay", "gauges", orders.NAME)
"""Services that only serve readers: without them the run goes on."""
_CONTROLLERS_OF = {"fifo": ("cpuset", "memory", "pids"), "other": ("cpu", "cpuset", "memory", "pids")}
"""And ``io`` for those that have limits of it."""


class Terminated(BaseException):
    """SIGTERM has come."""


@dataclass
class Child:
    """A process of ours.

    Attributes:
        status: the page in which it leaves its last words.
        dimension: the one whose windows it writes down there.
        is_program: it knows nothing of the run: it ends when it likes, or is killed.
    """

    name: str
    pid: int
    pidfd: int
    status: memoryview | None = None
    dimension: DimensionPlan | None = None
    is_program: bool = False


class Stage(Enum):
    """Where the replacement of a dimension's process stands."""

    UP = auto()
    DYING = auto()
    """It has ended; what else is in its group has been killed, but is not gone."""
    DOWN = auto()
    """Nothing is left of it; the next one is waited for."""
    STARTING = auto()


@dataclass
class Life:
    """A dimension whose process may be replaced by another.

    Attributes:
        page: its status page, writable, for its next process.
        pid: of its present process, or the last one.
        kept: windows that it had kept when its present process began.
        until_ns: of a stage: its deadline, or the end of the backoff.
        delay_ns: the backoff.
        is_stuck: what is left of it does not end, and the client has been told so.
        is_parked: its gate has noticed that the program is gone, and waits for the next.
        is_at_gate: its gate has been told that the next program is there.
    """

    dimension: DimensionPlan
    succession: Succession
    page: shm.Owned
    stage: Stage = Stage.UP
    pid: int = 0
    kept: int = 0
    until_ns: int = 0
    delay_ns: int = 0
    is_stuck: bool = False
    is_parked: bool = False
    is_at_gate: bool = False

    @property
    def may_be_launched_into(self) -> bool:
        """Nobody but us may write into its page, or freeze its group."""
        return self.stage is Stage.DOWN and (self.is_parked or not self.dimension.program)


class Supervisor:
    """One run, from nothing to nothing."""

    def __init__(
        self, plan: Plan, state: StateRoot, client: service.Outbox, filters: Mapping[str, bytes] | None = None
    ) -> None:
        self.plan = plan
        self.state = state
        self.client = client
        self.filters = filters or {}
        self.children: list[Child] = []
        self.loops: dict[str, tuple[int, int]] = {}
        self._mount_root = Path(plan.mount_root)
        self._mounts: list[Path] = []
        self._sockets: list[socket.socket] = []
        self._group: cgroup.Group | None = None
        self._groups: dict[str, cgroup.Group] = {}
        self._claim = -1
        self._amplitudes = {d.name: d.amplitude for d in plan.dimensions}
        self._credits_ns = [d.credit_ns for d in plan.dimensions]
        self._control: service.Control | None = None
        self._door: control.Door | None = None
        self._orders: orders.Orders | None = None
        self._oom_kills: dict[str, int] = {}
        self._began_ns = time.monotonic_ns()
        self._plan_fd = -1
        self._epoch = 0
        self._uids = range(0)
        self._several_nodes = False
        self._is_serving = False
        self._lives: dict[str, Life] = {}
        self._gates: dict[str, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self.regions: list[int] = []
        """The control page, ticks, tokens, gauges, and every status page, for readers."""
        self._ticks: memoryview | None = None
        self._tokens: memoryview | None = None

    # ── up ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def up(self) -> None:
        """Build everything; on return every dimension is confined and waits for its first window."""
        programs = [d for d in self.plan.dimensions if d.program]
        if programs and cgroup.observe().unified is None:
            names = ", ".join(d.name for d in programs)
            raise RunError(f"{names}: the freezer gate needs a cgroup v2 tree, none is mounted (see: vcg doctor)")
        enforced = [d.name for d in self.plan.dimensions if d.enforce != "none"]
        if enforced and cgroup.observe().unified is None:
            names = ", ".join(enforced)
            raise RunError(f'{names}: to enforce tokens takes a cgroup v2 tree, none is mounted: set enforce = "none"')
        for d in self.plan.dimensions:
            if "oom" in d.snapshot and cgroup.observe().backend("memory") is None:
                raise RunError(f"{d.name}: snapshot oom: no memory controller counts what the kernel kills here")
            if d.snapshot and d.storage == "tmpfs" and shutil.which("zstd") is None:
                raise RunError(f"{d.name}: snapshot of a tmpfs: zstd not found (apt-get install zstd)")
        epoch = self._epoch = self.state.epoch
        self._uids = uids.claim()
        self._group = cgroup.Group(cgroup.observe(), f"vcg-{os.getpid()}-{epoch}")
        self._step("journal")
        made = not self._mount_root.exists()
        snapshots, first_uid = Path(self.plan.snapshots.directory), self._uids.start
        images = {d.name: self.state.image(d.name) for d in self.plan.dimensions if d.storage == "ext4"}
        self.state.note(
            epoch, self._group.directories, self._mount_root, made, snapshots, first_uid, list(images.values())
        )
        self._mount_root.mkdir(parents=True, exist_ok=True)
        self._claim = lock_mount_root(self._mount_root)
        self._step("cgroups")
        self._group.create()
        services = self._services = cgroup.Group(self._group, "services", ())
        services.create()
        self._step("images")
        for d in self.plan.dimensions:
            if d.name in images:
                storage.allocate(images[d.name], d.storage_bytes)
        storage.make_filesystems(images.values())
        self._step("mounts")
        mount.enter_private_namespace()
        mount.mount("tmpfs", self._mount_root, "tmpfs", mount.MS_NODEV | mount.MS_NOSUID, "size=64k,mode=755")
        self._mounts.append(self._mount_root)
        several_nodes = self._several_nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) > 1
        for d in self.plan.dimensions:
            root = self._mount_root / d.name
            root.mkdir()
            if d.name in images:
                self.loops[d.name] = storage.mount_ext4(images[d.name], root)
            else:
                storage.mount_tmpfs(root, d.storage_bytes, d.node if several_nodes else None)
            self._mounts.append(root)
            storage.furnish(root, self._uids[d.index])
        self._step("services")
        self._control = service.Control(epoch)
        self._control.write_credits(self._credits_ns, self._amplitudes.values())
        control_fd = self._control.fd
        self._plan_fd = plan_fd = shm.publish("vcg-plan", self.plan.to_json().encode())
        ticks_fd = self._serve("rtd", services, plan_fd, control_fd)
        status_fds = [shm.allocate(f"vcg-status-{d.name}", shm.STATUS_BYTES) for d in self.plan.dimensions]
        tokens_fd = self._serve("orchestrator", services, plan_fd, control_fd, [ticks_fd, *status_fds])
        orchestrator = self._sockets[-1]
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener = listener
        self._sockets.append(listener)
        listener.bind(str(self.state.socket))
        listener.listen()
        self._serve("relay", services, plan_fd, control_fd, [ticks_fd, listener.fileno()])
        gauges = self._begin("gauges", services, plan_fd, control_fd)
        gates = self._gates = {
            d.name: self._begin(
                _gate_of(d), services, plan_fd, control_fd, [ticks_fd, tokens_fd, status_fd], module="gate"
            )
            for d, status_fd in zip(self.plan.dimensions, status_fds, strict=True)
            if d.program
        }
        self._ticks, self._tokens = shm.attach(ticks_fd), shm.attach(tokens_fd)
        self._step("dimensions")
        self.regions = [control_fd, ticks_fd, tokens_fd]
        for d, status_fd in zip(self.plan.dimensions, status_fds, strict=True):
            self._confine(d, self._group)
            self._launch(d, partial(shm.attach, status_fd, writable=True, inherited=True))
        self._await_ready(dict(zip((d.name for d in self.plan.dimensions), status_fds, strict=True)))
        for d in programs:
            service.send(gates[d.name], {"dimension": d.index, "group": str(self._groups[d.name].unified)})
        for d in programs:
            self._await_service(_gate_of(d), gates[d.name])
        for d, status_fd in zip(self.plan.dimensions, status_fds, strict=True):
            recorder = self._child(_gate_of(d) if d.program else d.name)
            recorder.dimension = d
            if d.program or d.restarts:
                page = shm.Owned(status_fd)
                process = self._child(d.name)
                process.status = page.words
                if d.restarts:
                    self._lives[d.name] = Life(d, Succession(d.restarts, d.backoff_ns), page, pid=process.pid)
            shm.seal(status_fd)
            recorder.status = shm.attach(status_fd)
        service.send(orchestrator, {"groups": {name: str(group.unified) for name, group in self._groups.items()}})
        service.send(gauges, {"sources": {d.name: self._sources(d) for d in self.plan.dimensions}})
        gauges_fd = self._await_service("gauges", gauges)
        self.regions += [gauges_fd, *status_fds]
        subjects = {d.name: self._subject(d, images.get(d.name)) for d in self.plan.dimensions}
        largest_bytes = max(d.storage_bytes for d in self.plan.dimensions)
        self._orders = orders.Orders(
            self._begin_snapshotter,
            self._began_ns,
            subjects,
            self._tell_of_snapshot,
            lambda pid: os.kill(pid, signal.SIGKILL),
            _SILENCE_S + largest_bytes / _SLOWEST_COPY_BPS,
        )
        if any(d.snapshot for d in self.plan.dimensions):
            self._orders.engage()
        requests = {
            "attach": self._attach,
            "amplitude": self._amplitude,
            "snapshot": self._snapshot,
            "snapshot result": self._snapshot_result,
        }
        self._door = control.Door(self.state.control, requests)
        sched.pin(self.plan.housekeeping.cpus)
        sched.set_fifo(PRIORITY)

    def _step(self, name: str) -> None:
        """Name a step of the bring-up to a client that may not read, but has to be there."""
        with contextlib.suppress(BlockingIOError):
            self.client.offer({"event": "step", "name": name})

    def _tell_of_snapshot(self, message: dict[str, Any]) -> None:
        if message["event"] == "step":
            self._passes(message["name"])
        else:
            self.client.tell(message)

    def _child(self, name: str) -> Child:
        return next(child for child in self.children if child.name == name)

    def _serve(
        self, name: str, group: cgroup.Group, plan_fd: int, control_fd: int, more_fds: Sequence[int] = ()
    ) -> int:
        """Start one of our services and wait until it is ready; returns the region that it offers, or -1."""
        return self._await_service(name, self._begin(name, group, plan_fd, control_fd, more_fds))

    def _begin(
        self,
        name: str,
        group: cgroup.Group,
        plan_fd: int,
        control_fd: int,
        more_fds: Sequence[int] = (),
        *,
        module: str = "",
    ) -> socket.socket:
        """Start one of our services, from the module of its name or of another; returns our end of its socket."""
        pid, ours = service.spawn(f"vcg.{module or name}", plan_fd, control_fd, more_fds)
        self.children.append(Child(name, pid, os.pidfd_open(pid)))
        self._sockets.append(ours)
        group.admit(pid)
        return ours

    def _await_service(self, name: str, ours: socket.socket) -> int:
        pid = self._child(name).pid
        ours.settimeout(_READY_S)
        try:
            message, fds = service.receive(ours)
        except TimeoutError:
            raise RunError(f"{name} (pid {pid}) was not ready after {_READY_S:.0f} s") from None
        if message is None:
            raise RunError(f"{name} (pid {pid}) ended while it was starting: its error is on the terminal above")
        return fds[0] if fds else -1

    def _confine(self, d: DimensionPlan, outer: cgroup.Group) -> None:
        """Make the control group of a dimension."""
        controllers = (*_CONTROLLERS_OF[d.policy], *(("io",) if d.io else ()))
        group = self._groups[d.name] = cgroup.Group(outer, d.name, controllers, in_cell=True)
        group.create()
        group.limit(cpus=d.cpus, node=d.node, memory_bytes=d.memory_bytes, pids=d.pids)
        group.limit(weight=d.amplitude)
        self._limit_io(d)

    def _limit_cpu(self, d: DimensionPlan) -> None:
        """Let a dimension's share of the CPU follow its amplitude, and cap what it could take at most, as a backstop.

        The cap is for windows: before the first one, or while its next process starts, there is none, because what a
        process needs to start may be the credit of many of them.

        Raises:
            OSError: the kernel refuses a limit.
        """
        group, life = self._groups[d.name], self._lives.get(d.name)
        group.limit(weight=self._amplitudes[d.name])
        if d.policy != "other":  # the kernel's cap knows no other class
            return
        assert self._control is not None
        most_ns = (Fraction(*d.ceiling) + Fraction(*d.burst)) * self._credits_ns[d.index]
        is_up = self._control.phase != Phase.HOLD and (life is None or life.stage is Stage.UP)
        group.limit_bandwidth(cgroup.bandwidth(Fraction(*d.period), most_ns, len(d.cpus)) if is_up else None)

    def _limit_io(self, d: DimensionPlan) -> None:
        """Limit what a dimension transfers; whoever kills its group lifts these limits."""
        if d.io:
            self._groups[d.name].limit_io(self.loops[d.name], d.io)

    def _launch(self, d: DimensionPlan, status: Callable[[], memoryview], generation: int = 1) -> Child:
        """Fork the process of a dimension.

        Args:
            status: called there, gives it its status page, writable.
        """
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            root, filter_ = self._mount_root / d.name, self.filters.get(d.name, b"")
            control_fd, ticks_fd, tokens_fd, *_ = self.regions
            _become(
                d,
                self._uids[d.index],
                self._epoch,
                generation,
                (control_fd, ticks_fd, tokens_fd),
                status(),
                self._groups[d.name],
                root,
                supervisor,
                self._several_nodes,
                filter_,
            )
        child = Child(d.name, pid, os.pidfd_open(pid), is_program=bool(d.program))
        self.children.append(child)
        return child

    def _await_ready(self, status_fds: Mapping[str, int]) -> None:
        """Wait until every dimension is confined, or one has failed.

        Their status pages are read by copying: they are not sealed before their owners have mapped them, and nobody
        else maps them before they are sealed.
        """
        deadline = time.monotonic() + _READY_S
        state_at = shm.STATUS_HEADER.at("state")
        waiting = list(status_fds)
        while waiting:
            for name in waiting:
                page = shm.peek(status_fds[name])
                if page[state_at] == State.FAILED:
                    raise RunError(f"{name}: {shm.read_message(page)}")
                if page[state_at] != State.READY and _has_ended(self._child(name)):
                    raise RunError(f"{name} ended while it was starting{self._shortage(name)}")
            waiting = [name for name in waiting if shm.peek(status_fds[name])[state_at] != State.READY]
            if time.monotonic() > deadline:
                names = ", ".join(waiting)
                raise RunError(f"{names}: not ready after {_READY_S:.0f} s; does importing the workload hang?")
            time.sleep(_POLL_S)

    def _sources(self, d: DimensionPlan) -> dict[str, str | None]:
        """Where the kernel's figures of a dimension are, see :class:`vcg.gauges.Meter`."""
        group = self._groups[d.name]
        memory, pids, unified = group.directory("memory"), group.directory("pids"), group.unified
        memory_file = "memory.current" if group.hierarchies.backend("memory") == "v2" else "memory.usage_in_bytes"
        device = self.loops.get(d.name)
        files = {
            "cpu": unified and unified / "cpu.stat",
            "block": Path("/sys/dev/block/{}:{}/stat".format(*device)) if device else None,
            "memory": memory and memory / memory_file,
            "tasks": pids and pids / "pids.current",
            "processes": unified and unified / "cgroup.procs",
            "threads": unified and unified / "cgroup.threads",
            "filesystem": self._mount_root / d.name,
        }
        return {name: None if path is None else str(path) for name, path in files.items()}

    def _subject(self, d: DimensionPlan, image: Path | None) -> dict[str, Any]:
        """What a snapshot of a dimension takes, see :class:`vcg.snapshotter.Source`."""
        group = self._groups[d.name]
        device = self.loops.get(d.name)
        return {
            "root": str(self._mount_root / d.name),
            "image": image and str(image),
            "device": device and Path("/sys/dev/block/{}:{}".format(*device)).resolve().name,
            "group": "/".join(group.directories[0].parts[-2:]) if group.directories else d.name,
            "cell": group.cell and str(group.cell),
            "memory": self._memory_events(d.name),
            "pid": self._child(d.name).pid,
            "generation": 1,
        }

    def _memory_events(self, name: str) -> str | None:
        """The file that counts what the kernel has killed in a dimension for want of memory."""
        group = self._groups[name]
        memory = group.directory("memory")
        file = "memory.events" if group.hierarchies.backend("memory") == "v2" else "memory.oom_control"
        return None if memory is None else str(memory / file)

    def _shortage(self, name: str) -> str:
        """Whether the kernel has killed something in a dimension for want of memory since it was last asked."""
        kills = oom_kills(self._memory_events(name)) or 0
        if kills <= self._oom_kills.get(name, 0):
            return ""
        self._oom_kills[name] = kills
        (limit_bytes,) = (d.memory_bytes for d in self.plan.dimensions if d.name == name)
        return f", short of memory (at most {format_size(limit_bytes)})"

    def _begin_snapshotter(self) -> tuple[int, socket.socket]:
        control_fd, ticks_fd, tokens_fd, _, *status_fds = self.regions
        fds = [ticks_fd, tokens_fd, *status_fds]
        ours = self._begin(orders.NAME, self._services, self._plan_fd, control_fd, fds)
        child = self.children[-1]
        if self._is_serving:
            self._selector.register(child.pidfd, selectors.EVENT_READ)
        return child.pid, ours

    # ── serve ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def serve(self) -> None:
        """Obey the client until it says ``finish`` or goes away; answer others that come to the control socket."""
        assert self._door is not None and self._orders is not None
        pids = {child.name: child.pid for child in self.children}
        own = {d.name: self._uids[d.index] for d in self.plan.dimensions}
        report = {"event": "ready", "pids": pids, "uids": own, "loops": self.loops, "supervisor": os.getpid()}
        self.client.answer(report, self.regions)
        obey: dict[str, Callable[[], None]] = {"start": self._start, "halt": self._halt}
        signals, wakeup = socket.socketpair()
        signals.setblocking(False)
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with self._selector as selector, signals, wakeup:
            selector.register(self.client.socket, selectors.EVENT_READ)
            selector.register(signals, selectors.EVENT_READ)
            selector.register(self._orders, selectors.EVENT_READ)
            for child in self.children:
                selector.register(child.pidfd, selectors.EVENT_READ)
            self._is_serving = True
            self._reap()
            while True:
                rest_s = self._door.rest_s()
                if rest_s == 0 and self._door not in selector.get_map():
                    selector.register(self._door, selectors.EVENT_READ)
                waits_s = [s for s in (rest_s or None, self._replace(), self._orders.mind()) if s is not None]
                to_client = selectors.EVENT_WRITE if self.client.is_waiting else 0
                selector.modify(self.client.socket, selectors.EVENT_READ | to_client)
                for key, events in selector.select(min(waits_s, default=None)):
                    if key.fileobj is signals:
                        with contextlib.suppress(BlockingIOError):
                            signals.recv(4096)
                        self._reap()
                    elif isinstance(key.fileobj, int):  # a process of ours has ended; it may have been reaped just now
                        self._reap()
                    elif key.fileobj is self._orders:
                        self._orders.hear()
                    elif key.fileobj is self._door:
                        self._door.serve()
                        selector.unregister(self._door)
                    elif not events & selectors.EVENT_READ:
                        self.client.flush()
                    else:
                        message, _ = service.receive(self.client.socket)
                        order = message["do"] if message else "finish"
                        if order == "finish":
                            return
                        obey[order]()

    def _start(self) -> None:
        assert self._control is not None
        start_ns = time.monotonic_ns() + _LEAD_NS
        self._control.enter(Phase.RUN, start_ns)
        for d in self.plan.dimensions:
            self._limit_cpu(d)
        self.client.answer({"event": "started", "start_ns": start_ns})

    def _halt(self) -> None:
        """Stop the ticks, then wait until no dimension is inside a window."""
        assert self._ticks is not None and self._control is not None
        self._control.enter(Phase.HALT)
        longest_s = max(d.period_ns for d in self.plan.dimensions) / 1e9
        deadline = time.monotonic() + 2 * longest_s + 1
        phase_at = shm.TICKS_HEADER.at("phase")
        while time.monotonic() < deadline + (_SNAPSHOT_S if self._is_holding() else 0):
            self._reap()
            self._replace()
            has_stopped = self._ticks[phase_at] == Phase.HALT or not self._is_alive("rtd")
            busy = [child.name for child in self.children if self._is_busy(child)]
            dying = any(life.stage is Stage.DYING and not life.is_stuck for life in self._lives.values())
            if has_stopped and not busy and not dying:
                break
            time.sleep(_POLL_S)
        for life in self._lives.values():
            if life.may_be_launched_into or (life.is_stuck and not life.dimension.program):
                self._record_absence(life)
        self.client.answer({"event": "halted", "is_ticking": not has_stopped, "busy": busy})

    def _is_holding(self) -> bool:
        """Whether a dimension may be held for a snapshot."""
        assert self._orders is not None
        self._orders.hear()
        return self._orders.is_open()

    def _is_alive(self, name: str) -> bool:
        return any(child.name == name and not _has_ended(child) for child in self.children)

    def _is_busy(self, child: Child) -> bool:
        """Whether the newest published window of a dimension has no record yet; one that is held will not leave any."""
        if child.dimension is None or child.status is None or self._ticks is None or _has_ended(child):
            return False
        life = self._lives.get(child.dimension.name)
        if life is not None and life.may_be_launched_into:
            return False
        held_at = shm.COUNTERS_AT + child.dimension.index * shm.COUNTER_WORDS + shm.COUNTERS.at("held")
        if self._tokens is not None and self._tokens[held_at]:
            return False
        head = child.status[shm.STATUS_HEADER.at("head")]
        latest = self._ticks[shm.LATEST_AT + child.dimension.index]
        if head <= 0:
            return latest >= 0
        return latest != child.status[shm.WINDOWS_AT + (head - 1) % shm.WINDOW_SLOTS * shm.WINDOW_WORDS]

    def _attach(self, request: dict[str, Any]) -> control.Answer:
        """A reader comes: the plan and every region, and what else it needs to know."""
        pids = {child.name: child.pid for child in self.children}
        answer = {"pids": pids, "loops": self.loops, "supervisor": os.getpid()}
        return answer, [self._plan_fd, *self.regions]

    def _amplitude(self, request: dict[str, Any]) -> control.Answer:
        """Change amplitudes: the orchestrator mints by the new credits from its next round on.

        Raises:
            RunError: the request is wrong, or comes too late.
        """
        assert self._control is not None
        wanted = control.amplitudes_of(request, self._amplitudes)
        if self._control.phase > Phase.RUN:
            raise RunError("the run has stopped ticking: no amplitude can be changed any more")
        amplitudes = {**self._amplitudes, **wanted}
        credits_ns = retuned(self.plan, amplitudes)
        at_ns = time.monotonic_ns()
        self._notify({"event": "retuned", "at_ns": at_ns, "amplitudes": wanted})
        self._control.write_credits(credits_ns, amplitudes.values())
        self._control.announce_credits()
        changed = {
            d.name: {
                "amplitude": (self._amplitudes[d.name], amplitudes[d.name]),
                "credit_ns": (before_ns, after_ns),
            }
            for d, before_ns, after_ns in zip(self.plan.dimensions, self._credits_ns, credits_ns, strict=True)
            if d.name in wanted or before_ns != after_ns
        }
        self._amplitudes, self._credits_ns = amplitudes, credits_ns
        try:
            for d in self.plan.dimensions:
                if d.name in changed:
                    self._limit_cpu(d)
        except OSError as error:
            raise RunError(
                f"{error.filename}: {error.strerror}: the credits have changed, the limits of the cgroups have not"
            ) from error
        return {"at_ns": at_ns, "changed": changed}, ()

    def _snapshot(self, request: dict[str, Any]) -> control.Answer:
        """Order a snapshot; what comes of it can be asked for by its number.

        Raises:
            RunError: there is no such dimension, or it can't be ordered.
        """
        assert self._orders is not None
        return {"number": self._orders.order(control.dimension_of(request, self._groups), "demand")}, ()

    def _snapshot_result(self, request: dict[str, Any]) -> control.Answer:
        """What has come of an order.

        Raises:
            RunError: it was never given, or long ago.
        """
        assert self._orders is not None
        return {"result": self._orders.result(control.number_of(request))}, ()

    def _notify(self, message: dict[str, Any]) -> None:
        """Tell our own client of something that others have asked for.

        Raises:
            RunError: it cannot be told; then it must not be done.
        """
        try:
            self.client.offer(message)
        except BlockingIOError:
            raise RunError("the process that began this run does not read its messages: is it stopped?") from None
        except (BrokenPipeError, ConnectionResetError):
            raise RunError("the run is about to end: nothing can be changed any more") from None

    def _reap(self) -> None:
        """Collect every process that has ended: ours, and orphans that dimensions have left to us."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for child in [child for child in self.children if child.pid == ended[0]]:
                    self._bury(child, os.waitstatus_to_exitcode(ended[1]))

    def _bury(self, child: Child, code: int) -> None:
        """A process has ended although nobody asked it to: say who, how, and its last words.

        A program that has done its work is no news: its dimension is finished, and goes on without it.
        """
        said = shm.read_message(child.status) if child.status is not None else ""
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with {code}"
        if child.name in self._groups:
            how += self._shortage(child.name)
        self.children.remove(child)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        if child.is_program and child.status is not None:
            state_at = shm.STATUS_HEADER.at("state")
            if code == 0:
                child.status[state_at] = State.FINISHED
                return
            child.status[state_at] = State.FAILED
            said = said or _last_lines(self._mount_root / child.name)
        assert self._control is not None and self._orders is not None
        if child.name in self._groups:
            self._keep_evidence(child, code, how, said)
        elif child.pid == self._orders.pid:
            self._orders.lost(how)
        then, life = "stop", self._lives.get(child.name)
        if life is not None and self._control.phase <= Phase.RUN:
            delay_ns = life.succession.fail(self._kept(life.dimension) - life.kept)
            if delay_ns is not None:
                then = "restart"
                self._clear_away(life, delay_ns)
            else:
                how += f", its failure number {life.succession.failures} in a row"
        elif child.name in _DISPENSABLE:
            then = "go on"
            if child.name == "relay":
                self._close_listener()
        elif child.name not in self._groups:
            said = "the run can't go on without it, and has been stopped"
            if self._control.phase == Phase.RUN:
                self._control.enter(Phase.HALT)
        news: dict[str, Any] = {"event": "died", "who": child.name, "how": how, "message": said, "then": then}
        news |= {"generation": life.succession.generation if life else 1, "at_ns": time.monotonic_ns()}
        if then == "stop":
            self.client.answer(news)
        else:
            self.client.tell(news)

    def _keep_evidence(self, child: Child, code: int, how: str, said: str) -> None:
        """The process of a dimension has failed: have a snapshot taken, if wanted, and hold what else is in it."""
        assert self._orders is not None
        d = next(d for d in self.plan.dimensions if d.name == child.name)
        self._orders.update(d.name, pid=0)
        if not {"crash", "oom"} & set(d.snapshot):
            return
        life = self._lives.get(d.name)
        generation = life.succession.generation if life else 1
        process = {"pid": child.pid, "generation": generation, "code": code, "how": how, "said": said}
        try:
            self._orders.order(d.name, "death", process)
            self._orders.hold(d.name)
        except (RunError, OSError) as error:
            self.client.tell({"event": "snapshot", "dimension": d.name, "why": "crash", "error": str(error)})

    def _close_listener(self) -> None:
        """Nobody accepts subscribers any more: let them be refused, not wait."""
        self._listener.close()
        self.state.socket.unlink(missing_ok=True)

    # ── one process in the place of another ──────────────────────────────────────────────────────────────────────────

    def _clear_away(self, life: Life, delay_ns: int) -> None:
        """The process of a dimension has failed: kill what else is in its group, and have another one launched."""
        now_ns = time.monotonic_ns()
        life.stage, life.delay_ns, life.until_ns = Stage.DYING, delay_ns, now_ns + int(_LEAVE_S * 1e9)
        self._kill_rest(life)

    def _kill_rest(self, life: Life) -> str:
        """SIGKILL to what is left in the group of a dead dimension; says what there was, or why it can't be killed."""
        try:
            left = cgroup.kill(self._groups[life.dimension.name].directories, time.monotonic_ns())
        except OSError as error:
            return _told(error)
        return f"process {', '.join(map(str, sorted(left)))} survives SIGKILL: is it stuck in I/O?" if left else ""

    def _replace(self) -> float | None:
        """Do what can be done now for dimensions whose process has failed; when to look again, in s."""
        waits_s = [wait_s for life in self._lives.values() if (wait_s := self._bring_on(life)) is not None]
        return min(waits_s, default=None)

    def _bring_on(self, life: Life) -> float | None:
        """The next step from one process of a dimension to its successor, if it can be taken.

        Returns:
            When to look again, in s; None if there is nothing to wait for.
        """
        d, now_ns = life.dimension, time.monotonic_ns()
        assert self._control is not None
        match life.stage:
            case Stage.DYING:
                if left := self._kill_rest(life):
                    if now_ns > life.until_ns and not life.is_stuck:
                        life.is_stuck = True
                        news = {"event": "stuck", "who": d.name, "generation": life.succession.generation + 1}
                        self.client.tell({**news, "message": left})
                    return _PATIENCE_S if life.is_stuck else _POLL_S
                life.stage, life.is_stuck, life.until_ns = Stage.DOWN, False, now_ns + life.delay_ns
                self._control.announce_generation(d.index, -life.succession.generation)
                return 0.0
            case Stage.DOWN:
                is_free = self._is_written_off(life)  # first, so that the gate is heard whatever else is waited for
                if self._control.phase > Phase.RUN:
                    return None if is_free else _PATIENCE_S
                if now_ns < life.until_ns:
                    return min(_PATIENCE_S, (life.until_ns - now_ns) / 1e9)
                assert self._orders is not None
                if not is_free or self._orders.is_open(d.name):
                    return _PATIENCE_S
                self._relaunch(life)
                return _POLL_S
            case Stage.STARTING:
                if life.page.words[shm.STATUS_HEADER.at("state")] == State.READY and self._is_held(life):
                    self._announce(life)
                    return None
                if now_ns > life.until_ns:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(life.pid, signal.SIGKILL)
                return _POLL_S
        return None

    def _is_written_off(self, life: Life) -> bool:
        """Whether nothing of a dead process has a say any more.

        Its gate has let go of the group, the orchestrator has taken its lease back, and nobody is held for its debts:
        who could shed them by dying, would.
        """
        assert self._control is not None and self._tokens is not None
        d = life.dimension
        if d.program and not life.is_parked:
            life.is_parked = self._hears_from_gate(d)
            if not life.is_parked:
                return False
        if self._control.phase != Phase.RUN:
            return True
        at = shm.COUNTERS_AT + d.index * shm.COUNTER_WORDS
        has_lease_back = self._tokens[at + shm.COUNTERS.at("generation")] == -life.succession.generation
        return has_lease_back and self._tokens[at + shm.COUNTERS.at("held")] == Standing.FREE

    def _hears_from_gate(self, d: DimensionPlan) -> bool:
        """Whether the gate of a dimension has said something."""
        gate = self._gates[d.name]
        gate.setblocking(False)
        try:
            message, _ = service.receive(gate)
        except BlockingIOError:
            return False
        return message is not None

    def _relaunch(self, life: Life) -> None:
        """Launch the next process of a dimension, where the last one was."""
        d, page = life.dimension, life.page
        if not d.program:  # of a program it is the gate that keeps the records
            self._mend_page(life)
        page.words[shm.STATUS_HEADER.at("state")] = State.STARTING
        page.words[shm.STATUS_HEADER.at("message_bytes")] = 0
        life.succession.generation += 1
        life.kept = self._kept(d)
        self._limit_io(d)
        life.stage = Stage.STARTING
        self._limit_cpu(d)
        with page.lent():
            child = self._launch(d, lambda: page.words, life.succession.generation)
        child.status = page.words
        child.dimension = None if d.program else d
        self._selector.register(child.pidfd, selectors.EVENT_READ)
        life.pid, life.until_ns = child.pid, time.monotonic_ns() + int(_READY_S * 1e9)
        life.is_at_gate = False

    def _is_held(self, life: Life) -> bool:
        """Whether a process that is ready may go on; a program only once it is frozen."""
        d = life.dimension
        if not d.program:
            return True
        if not life.is_at_gate:
            life.is_at_gate = True
            service.send(self._gates[d.name], {"generation": life.succession.generation})
        return self._hears_from_gate(d)

    def _announce(self, life: Life) -> None:
        """Another process is there: tell everybody."""
        assert self._control is not None
        name, generation = life.dimension.name, life.succession.generation
        life.stage, life.is_parked = Stage.UP, False
        self._limit_cpu(life.dimension)
        self._control.announce_generation(life.dimension.index, generation)
        assert self._orders is not None
        self._orders.update(name, pid=life.pid, generation=generation)
        news = {"event": "restarted", "who": name, "generation": generation, "pid": life.pid}
        self.client.tell({**news, "at_ns": time.monotonic_ns()})

    def _kept(self, d: DimensionPlan) -> int:
        """Windows that a dimension has kept so far, by the orchestrator's books."""
        assert self._tokens is not None
        at = shm.COUNTERS_AT + d.index * shm.COUNTER_WORDS
        return self._tokens[at + shm.COUNTERS.at("settled")] - self._tokens[at + shm.COUNTERS.at("overruns")]

    def _mend_page(self, life: Life) -> None:
        """Whatever the dead process has left in its status page, let its records end where they end."""
        assert self._ticks is not None
        latest = self._ticks[shm.LATEST_AT + life.dimension.index]
        newest = shm.newest_record(life.page.words, self._epoch, latest)
        life.page.words[shm.STATUS_HEADER.at("head")] = newest + 1

    def _record_absence(self, life: Life) -> None:
        """The ticks have stopped, and no other process will come: leave the records of the windows that went by."""
        assert self._control is not None and self._ticks is not None and self._tokens is not None
        if not life.dimension.program:
            self._mend_page(life)
        control_words = shm.attach(self._control.fd)
        Dimension(
            life.dimension, self._epoch, control_words, self._ticks, self._tokens, life.page.words
        ).record_absence()

    # ── down ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def down(self) -> list[str]:
        """Take down whatever of it exists; returns what could not be undone, a line each."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        if self._control is not None:
            self._control.enter(Phase.FINISH)
        # Without the clock nobody learns that the run is over.
        leave_s = _LEAVE_S if self._is_alive("rtd") else 0
        if self._orders is not None:
            self._passes("snapshots")
            self._orders.finish(_SNAPSHOT_S)
        deadline = time.monotonic() + leave_s
        self._passes("leave")
        if self._door is not None:
            self._door.close()
        for one in self._sockets:
            one.close()
        for child in self.children:
            while not child.is_program and not _has_ended(child) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        self._passes("end")
        problems = attempt(self._end_processes)
        self._passes("ungroup")
        problems += attempt(self._remove_groups)
        self._passes("unmount")
        for point in reversed(self._mounts):
            problems += attempt(partial(mount.unmount, point, detach=True))
        if self._claim >= 0:
            os.close(self._claim)  # before the mount root is removed, which claims it again
        self._passes("remove")
        return problems + self.state.reconcile()

    def _passes(self, step: str) -> None:
        """Name a step to a client that may not listen any more."""
        with contextlib.suppress(OSError):
            self.client.offer({"event": "step", "name": step})

    def _end_processes(self) -> list[str]:
        kill_by_ns = time.monotonic_ns() + int(_LEAVE_S * 1e9)
        problems = attempt(partial(self._kill_group, kill_by_ns))
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            os.close(child.pidfd)
        with contextlib.suppress(ChildProcessError):  # none left: what dimensions forked has become ours, too
            while time.monotonic_ns() < kill_by_ns:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(_POLL_S)
        return problems

    def _kill_group(self, by_ns: int) -> list[str]:
        alive = cgroup.kill(self._group.directories, by_ns) if self._group else set()
        return [f"process {pid} survives SIGKILL" for pid in alive]

    def _remove_groups(self) -> list[str]:
        directories = self._group.directories if self._group else []
        left = cgroup.remove(directories, time.monotonic_ns() + int(_LEAVE_S * 1e9))
        return [f"cgroup {path} can't be removed" for path in left]


def _has_ended(child: Child) -> bool:
    """Whether it is a zombie or gone; does not reap it."""
    try:
        return os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _gate_of(d: DimensionPlan) -> str:
    return f"gate-{d.name}"


def _open_log(root: Path, flags: int) -> int:
    """Where the standard output and error of a dimension go; it may have been at its own files before."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2.open_regular(directory, "log/workload.log", flags)
    finally:
        os.close(directory)


def _last_lines(root: Path) -> str:
    """The end of what a program has written to its standard output and error, whatever else it did to its log."""
    try:
        fd = _open_log(root, os.O_RDONLY)
        try:
            end = os.pread(fd, _TAIL_BYTES, max(0, os.fstat(fd).st_size - _TAIL_BYTES))
        finally:
            os.close(fd)
    except OSError as error:
        return f"its log could not be read: {error.strerror}"
    return "\n".join(end.decode(errors="replace").splitlines()[-_TAIL_LINES:])


def resolve_workload(name: str) -> Callable[[Dimension], None]:
    """Import ``module:function``.

    Raises:
        RunError: no such module, or no such function in it.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RunError(f"workload {name}: can't import {module_name}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RunError(f"workload {name}: {module_name} has no function {function_name!r}")
    if module.__file__ and (lines := linecache.getlines(module.__file__)):
        # For tracebacks: inside the chroot the file is out of sight. Without a time stamp the entry is never dropped.
        linecache.cache[module.__file__] = (sum(map(len, lines)), None, lines, module.__file__)
    return function  # type: ignore[no-any-return]


def _become(
    d: DimensionPlan,
    uid: int,
    epoch: int,
    generation: int,
    regions: tuple[int, int, int],
    status: memoryview,
    group: cgroup.Group,
    root: Path,
    supervisor: int,
    bind_memory: bool,
    filter_: bytes,
) -> NoReturn:
    """Turn a fresh fork into a dimension, run its workload, and end.

    Nothing of this process ever returns into the supervisor's code: it leaves through ``os._exit``.
    """
    state_at = shm.STATUS_HEADER.at("state")
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        prctl.die_with_parent(supervisor)  # and once more after the change of uid, which clears it
        group.enter()
        prctl.set_name(f"vcg:{d.name}")
        identity = {"epoch": epoch, "dimension": d.index, "pid": os.getpid(), "generation": generation}
        for name, value in {"magic": shm.MAGIC, **identity}.items():
            status[shm.STATUS_HEADER.at(name)] = value
        workload = None
        if not d.program:
            workload = resolve_workload(d.workload)
            _require_alone(d, identity["pid"], group)
        os.environ.clear()  # the interpreter itself may have set LC_CTYPE
        control, ticks, tokens = (shm.attach(fd, inherited=True) for fd in regions)
        sched.pin(d.cpus)
        if bind_memory:
            memory.bind_to_node(d.node)
        log = _open_log(root, os.O_WRONLY | os.O_APPEND)
        null = os.open("/dev/null", os.O_RDONLY)
        for standard, fd in ((0, null), (1, log), (2, log)):
            os.dup2(fd, standard)
        groups = sandbox.groups_of(d.devices)
        processes = None if group.hierarchies.backend("pids") else d.pids
        memory.lock_all(future=False)
        sandbox.take(sandbox.enclosure(root, d.devices, d.binds))
        sched.set_policy(d.policy, d.priority)
        sandbox.take(sandbox.surrendering(uid, supervisor, filter_, groups, processes))
        gc.collect()
        gc.freeze()
        dimension = Dimension(d, epoch, control, ticks, tokens, status, generation=generation)
        status[state_at] = State.READY
        if workload is None:
            phase_at, generation_at = shm.CONTROL.at("phase"), shm.GENERATIONS_AT + d.index
            service.wait_until(
                control, lambda: control[phase_at] != Phase.HOLD and control[generation_at] == generation
            )
            _execute(d)
        workload(dimension)
        if ticks[shm.TICKS_HEADER.at("phase")] != Phase.FINISH:
            raise RunError(f"workload {d.workload} returned before the run was over")
        status[state_at] = State.FINISHED
        code = 0
    except BaseException as error:
        text = str(error) if isinstance(error, RunError) else _last_words(d, error)
        shm.write_message(status, text)
        status[state_at] = State.FAILED
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _require_alone(d: DimensionPlan, pid: int, group: cgroup.Group) -> None:
    """Confinement is for one thread of one process: what a workload has begun while it was imported would stay outside.

    Args:
        pid: of that process; a copy of it may have got here, too.

    Raises:
        RunError: there are others.
    """
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 (their number is all that is needed)
    if threads > 1:
        raise RunError(
            f"workload {d.workload}: its import has started {threads - 1} threads, which would stay unconfined: "
            "start them in the function; a library that starts some on its own has a switch for that, to be set "
            'before its import (numpy: os.environ["OPENBLAS_NUM_THREADS"] = "1")'
        )
    if others := group.members() - {pid}:
        raise RunError(
            f"workload {d.workload}: its import has left processes, which would stay unconfined "
            f"(pid {', '.join(map(str, sorted(others)))}): start them in the function"
        )


def _execute(d: DimensionPlan) -> NoReturn:
    """Become the program of a dimension. What Python and the supervisor ignore has its default again.

    Raises:
        RunError: it can't be executed.
    """
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(d.program[0], d.program, {})
    except OSError as error:
        raise RunError(
            f"exec {d.program[0]}: {error.strerror}: expected it, and the loader and libraries that it needs, below "
            f"the binds: {', '.join(d.binds)}"
        ) from None


def _last_words(d: DimensionPlan, error: BaseException) -> str:
    summary = "".join(traceback.format_exception_only(error)).strip()
    trace = "".join(traceback.format_exception(error)).strip()
    return f"workload {d.workload} raised {summary}\n{trace}"


def main(arguments: list[str]) -> None:
    """The process: read the order, build, serve, take down, report."""
    (socket_fd,) = map(int, arguments)
    client = service.Outbox(socket.socket(fileno=socket_fd))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    prctl.set_name("vcg:super")
    prctl.adopt_orphans()
    order, _ = service.receive(client.socket)
    if order is None:
        return
    plan = Plan.from_json(order["plan"])
    filters = {name: b64decode(program) for name, program in order["filters"].items()}
    sys.path[:] = order["path"]
    try:
        with StateRoot(Path(plan.state_root)) as state:
            try:
                state.next_epoch()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                state.reconcile()  # what fills the disk may be the images of a killed run
                state.next_epoch()
            if leftovers := state.reconcile():
                raise RunError(f"an earlier run left what can't be cleared: {'; '.join(leftovers)}")
            supervisor = Supervisor(plan, state, client, filters)
            try:
                supervisor.up()
                supervisor.serve()
            except Terminated:
                client.answer({"event": "failed", "message": "the supervisor was asked to end (SIGTERM)"})
            except (RunError, OSError) as error:
                client.answer({"event": "failed", "message": _told(error)})
            finally:
                leftovers = supervisor.down()
            client.answer({"event": "down", "leftovers": leftovers})
    except Terminated:
        return
    except (RunError, OSError) as error:
        client.answer({"event": "failed", "message": _told(error)})
        client.answer({"event": "down", "leftovers": []})  # it never came to build anything
    if client.is_waiting:  # nothing is left of the run, nor is its state root locked: there is time for this
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        client.deliver()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _told(error: RunError | OSError) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


if __name__ == "__main__":
    main(sys.argv[1:])
