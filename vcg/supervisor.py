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
import gc
import importlib
import linecache
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vcg import service, shm, storage
from vcg.dimension import Dimension
from vcg.errors import RunError
from vcg.linux import cgroup, memory, mount, prctl, sandbox, sched
from vcg.plan import DimensionPlan, Plan
from vcg.shm import Phase, State
from vcg.state import StateRoot, attempt, lock_mount_root

PRIORITY = 82
"""Above every dimension, so that none of them can keep it from stopping them; below the RTD and the orchestrator."""

_LEAD_NS = 30_000_000
"""From the order to start to window 0: the orchestrator has minted the first tokens by then."""
_READY_S = 20.0
_LEAVE_S = 2.0
_POLL_S = 0.001
_CONTROLLERS_OF = {"fifo": ("cpuset", "memory", "pids"), "other": ("cpu", "cpuset", "memory", "pids")}


class Terminated(BaseException):
    """SIGTERM has come."""


@dataclass
class Child:
    """A process of ours."""

    name: str
    pid: int
    pidfd: int
    status: memoryview | None = None


class Supervisor:
    """One run, from nothing to nothing."""

    def __init__(self, plan: Plan, state: StateRoot, client: socket.socket) -> None:
        self.plan = plan
        self.state = state
        self.client = client
        self.children: list[Child] = []
        self.loops: dict[str, tuple[int, int]] = {}
        self._mount_root = Path(plan.mount_root)
        self._mounts: list[Path] = []
        self._sockets: list[socket.socket] = []
        self._group: cgroup.Group | None = None
        self._claim = -1
        self._control: service.Control | None = None
        self._regions: list[int] = []
        self._ticks: memoryview | None = None

    # ── up ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def up(self) -> None:
        """Build everything; on return every dimension is confined and waits for its first window."""
        epoch = self.state.next_epoch()
        self._group = cgroup.Group(cgroup.observe(), f"vcg-{os.getpid()}-{epoch}")
        self._step("journal")
        made = not self._mount_root.exists()
        self.state.note(epoch, self._group.directories, self._mount_root, made)
        self._mount_root.mkdir(parents=True, exist_ok=True)
        self._claim = lock_mount_root(self._mount_root)
        self._step("cgroups")
        self._group.create()
        services = cgroup.Group(self._group, "services", ())
        services.create()
        self._step("images")
        images = {d.name: self.state.image(d.name) for d in self.plan.dimensions if d.storage == "ext4"}
        for d in self.plan.dimensions:
            if d.name in images:
                storage.allocate(images[d.name], d.storage_bytes)
        storage.make_filesystems(images.values())
        self._step("mounts")
        mount.enter_private_namespace()
        mount.mount("tmpfs", self._mount_root, "tmpfs", mount.MS_NODEV | mount.MS_NOSUID, "size=64k,mode=755")
        self._mounts.append(self._mount_root)
        several_nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) > 1
        for d in self.plan.dimensions:
            root = self._mount_root / d.name
            root.mkdir()
            if d.name in images:
                self.loops[d.name] = storage.mount_ext4(images[d.name], root)
            else:
                storage.mount_tmpfs(root, d.storage_bytes, d.node if several_nodes else None)
            self._mounts.append(root)
            storage.furnish(d, root)
        self._step("services")
        self._control = service.Control(epoch)
        control_fd = self._control.fd
        plan_fd = os.memfd_create("vcg-plan", os.MFD_CLOEXEC)
        os.write(plan_fd, self.plan.to_json().encode())
        ticks_fd = self._serve("rtd", services, plan_fd, control_fd)
        status_fds = [shm.allocate(f"vcg-status-{d.name}", shm.STATUS_BYTES) for d in self.plan.dimensions]
        tokens_fd = self._serve("orchestrator", services, plan_fd, control_fd, [ticks_fd, *status_fds])
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets.append(listener)
        listener.bind(str(self.state.socket))
        listener.listen()
        self._serve("relay", services, plan_fd, control_fd, [ticks_fd, listener.fileno()])
        os.close(plan_fd)
        self._ticks = shm.attach(ticks_fd)
        self._step("dimensions")
        regions = (control_fd, ticks_fd, tokens_fd)
        for d, status_fd in zip(self.plan.dimensions, status_fds, strict=True):
            self._launch(d, self._group, epoch, regions, status_fd, several_nodes)
        self._await_ready(dict(zip((d.name for d in self.plan.dimensions), status_fds, strict=True)))
        for d, status_fd in zip(self.plan.dimensions, status_fds, strict=True):
            shm.seal(status_fd)
            self._child(d.name).status = shm.attach(status_fd)
        self._regions = [ticks_fd, tokens_fd, *status_fds]
        sched.set_fifo(PRIORITY)

    def _step(self, name: str) -> None:
        service.send(self.client, {"event": "step", "name": name})

    def _child(self, name: str) -> Child:
        return next(child for child in self.children if child.name == name)

    def _serve(
        self, name: str, group: cgroup.Group, plan_fd: int, control_fd: int, more_fds: Sequence[int] = ()
    ) -> int:
        """Start one of our services and wait until it is ready; returns the region that it offers, or -1."""
        pid, ours = service.spawn(f"vcg.{name}", plan_fd, control_fd, more_fds)
        self.children.append(Child(name, pid, os.pidfd_open(pid)))
        self._sockets.append(ours)
        group.admit(pid)
        ours.settimeout(_READY_S)
        try:
            message, fds = service.receive(ours)
        except TimeoutError:
            raise RunError(f"{name} (pid {pid}) was not ready after {_READY_S:.0f} s") from None
        if message is None:
            raise RunError(f"{name} (pid {pid}) ended while it was starting: its error is on the terminal above")
        return fds[0] if fds else -1

    def _launch(
        self,
        d: DimensionPlan,
        outer: cgroup.Group,
        epoch: int,
        regions: tuple[int, int, int],
        status_fd: int,
        bind_memory: bool,
    ) -> None:
        group = cgroup.Group(outer, d.name, _CONTROLLERS_OF[d.policy])
        group.create()
        group.limit(cpus=d.cpus, node=d.node, memory_bytes=d.memory_bytes, pids=d.pids, weight=d.amplitude)
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = shm.attach(status_fd, writable=True, inherited=True)
            _become(d, epoch, regions, status, group, self._mount_root / d.name, supervisor, bind_memory)
        self.children.append(Child(d.name, pid, os.pidfd_open(pid)))

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
                    raise RunError(f"{name} ended while it was starting")
            waiting = [name for name in waiting if shm.peek(status_fds[name])[state_at] != State.READY]
            if time.monotonic() > deadline:
                names = ", ".join(waiting)
                raise RunError(f"{names}: not ready after {_READY_S:.0f} s; does importing the workload hang?")
            time.sleep(_POLL_S)

    # ── serve ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def serve(self) -> None:
        """Obey the client until it says ``finish`` or goes away."""
        pids = {child.name: child.pid for child in self.children}
        report = {"event": "ready", "pids": pids, "loops": self.loops, "supervisor": os.getpid()}
        service.send(self.client, report, self._regions)
        for fd in self._regions:
            os.close(fd)
        orders: dict[str, Callable[[], None]] = {"start": self._start, "halt": self._halt}
        signals, wakeup = socket.socketpair()
        signals.setblocking(False)
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector, signals, wakeup:
            selector.register(self.client, selectors.EVENT_READ)
            selector.register(signals, selectors.EVENT_READ)
            self._reap()
            while True:
                for key, _ in selector.select():
                    if key.fileobj is signals:
                        signals.recv(4096)
                        self._reap()
                    else:
                        message, _ = service.receive(self.client)
                        order = message["do"] if message else "finish"
                        if order == "finish":
                            return
                        orders[order]()

    def _start(self) -> None:
        assert self._control is not None
        start_ns = time.monotonic_ns() + _LEAD_NS
        self._control.enter(Phase.RUN, start_ns)
        service.send(self.client, {"event": "started", "start_ns": start_ns})

    def _halt(self) -> None:
        """Stop the ticks, then wait until no dimension is inside a window."""
        assert self._ticks is not None and self._control is not None
        self._control.enter(Phase.HALT)
        longest_s = max(d.period_ns for d in self.plan.dimensions) / 1e9
        deadline = time.monotonic() + 2 * longest_s + 1
        phase_at = shm.TICKS_HEADER.at("phase")
        while time.monotonic() < deadline:
            busy = [child.name for child in self.children if self._is_busy(child)]
            if self._ticks[phase_at] == Phase.HALT and not busy:
                break
            time.sleep(_POLL_S)
        service.send(self.client, {"event": "halted", "busy": busy})

    def _is_busy(self, child: Child) -> bool:
        """Whether the newest published window of a dimension has no record yet."""
        if child.status is None or self._ticks is None or _has_ended(child):
            return False
        head = child.status[shm.STATUS_HEADER.at("head")]
        index = next(d.index for d in self.plan.dimensions if d.name == child.name)
        latest = self._ticks[shm.LATEST_AT + index]
        if head <= 0:
            return latest >= 0
        return latest != child.status[shm.WINDOWS_AT + (head - 1) % shm.WINDOW_SLOTS * shm.WINDOW_WORDS]

    def _reap(self) -> None:
        """Collect every process that has ended: ours, and orphans that dimensions have left to us."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for child in [child for child in self.children if child.pid == ended[0]]:
                    self._bury(child, os.waitstatus_to_exitcode(ended[1]))

    def _bury(self, child: Child, code: int) -> None:
        """A process has ended although nobody asked it to: say who, how, and its last words."""
        said = shm.read_message(child.status) if child.status is not None else ""
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with {code}"
        self.children.remove(child)
        os.close(child.pidfd)
        service.send(self.client, {"event": "died", "who": child.name, "how": how, "message": said})

    # ── down ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def down(self) -> list[str]:
        """Take down whatever of it exists; returns what could not be undone, a line each."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        if self._control is not None:
            self._control.enter(Phase.FINISH)
        deadline = time.monotonic() + _LEAVE_S
        for child in self.children:
            while not _has_ended(child) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        problems = attempt(self._end_processes) + attempt(self._remove_groups)
        for one in self._sockets:
            one.close()
        for point in reversed(self._mounts):
            problems += attempt(partial(mount.unmount, point, detach=True))
        if self._claim >= 0:
            os.close(self._claim)  # before the mount root is removed, which claims it again
        return problems + self.state.reconcile()

    def _end_processes(self) -> list[str]:
        kill_by_ns = time.monotonic_ns() + int(_LEAVE_S * 1e9)
        alive = cgroup.kill(self._group.directories, kill_by_ns) if self._group else set()
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            os.close(child.pidfd)
        with contextlib.suppress(ChildProcessError):  # none left: what dimensions forked has become ours, too
            while time.monotonic_ns() < kill_by_ns:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(_POLL_S)
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
    epoch: int,
    regions: tuple[int, int, int],
    status: memoryview,
    group: cgroup.Group,
    root: Path,
    supervisor: int,
    bind_memory: bool,
) -> NoReturn:
    """Turn a fresh fork into a dimension, run its workload, and end.

    Nothing of this process ever returns into the supervisor's code: it leaves through ``os._exit``.
    """
    state_at = shm.STATUS_HEADER.at("state")
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl.die_with_parent(supervisor)  # and once more after the change of uid, which clears it
        group.enter()
        prctl.set_name(f"vcg:{d.name}")
        for name, value in (("magic", shm.MAGIC), ("epoch", epoch), ("dimension", d.index), ("pid", os.getpid())):
            status[shm.STATUS_HEADER.at(name)] = value
        workload = resolve_workload(d.workload)
        os.environ.clear()  # the interpreter itself may have set LC_CTYPE
        control, ticks, tokens = (shm.attach(fd, inherited=True) for fd in regions)
        sched.pin(d.cpus)
        if bind_memory:
            memory.bind_to_node(d.node)
        log = os.open(root / "log" / "workload.log", os.O_WRONLY | os.O_APPEND)
        null = os.open("/dev/null", os.O_RDONLY)
        for standard, fd in ((0, null), (1, log), (2, log)):
            os.dup2(fd, standard)
        sandbox.enclose(root, d.devices)
        sched.set_policy(d.policy, d.priority)
        memory.lock_all(future=False)
        sandbox.surrender(d.uid, supervisor)
        gc.collect()
        gc.freeze()
        dimension = Dimension(d, epoch, control, ticks, tokens, status)
        status[state_at] = State.READY
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


def _last_words(d: DimensionPlan, error: BaseException) -> str:
    summary = "".join(traceback.format_exception_only(error)).strip()
    trace = "".join(traceback.format_exception(error)).strip()
    return f"workload {d.workload} raised {summary}\n{trace}"


def main(arguments: list[str]) -> None:
    """The process: read the order, build, serve, take down, report."""
    (socket_fd,) = map(int, arguments)
    client = socket.socket(fileno=socket_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    prctl.set_name("vcg:super")
    prctl.adopt_orphans()
    order, _ = service.receive(client)
    if order is None:
        return
    plan = Plan.from_json(order["plan"])
    sys.path[:] = order["path"]
    try:
        with StateRoot(Path(plan.state_root)) as state:
            if leftovers := state.reconcile():
                raise RunError(f"an earlier run left what can't be cleared: {'; '.join(leftovers)}")
            supervisor = Supervisor(plan, state, client)
            try:
                supervisor.up()
                supervisor.serve()
            except Terminated:
                _report(client, {"event": "failed", "message": "the supervisor was asked to end (SIGTERM)"})
            except (RunError, OSError) as error:
                _report(client, {"event": "failed", "message": _told(error)})
            finally:
                leftovers = supervisor.down()
            _report(client, {"event": "down", "leftovers": leftovers})
    except Terminated:
        return
    except (RunError, OSError) as error:
        _report(client, {"event": "failed", "message": _told(error)})
        _report(client, {"event": "down", "leftovers": []})  # it never came to build anything


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _told(error: RunError | OSError) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def _report(client: socket.socket, message: dict[str, Any]) -> None:
    """Tell the client; one that has gone away does not want to know."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        service.send(client, message)


if __name__ == "__main__":
    main(sys.argv[1:])
