"""Run a plan: the client of the supervisor, for the commands and for experiments.

::

    with Run(plan) as run:
        run.start()
        ...
        run.drain()
        run.halt()

Whatever happens inside the block, its end takes the run down; if the supervisor itself was killed, its remains are
cleared from here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vcg import floor, gatefloor, service, state
from vcg.errors import HostError, RunError
from vcg.linux import numa, seccomp
from vcg.plan import Plan, make
from vcg.printable import printable
from vcg.regions import Regions

if TYPE_CHECKING:
    from vcg.config import Testbed

_ANSWER_S = 60.0
_LAST_WORD_S = 5.0
_OF_SNAPSHOT = ("dimension", "why", "path", "bytes", "took_ns", "frozen_for_ns", "error")


class Run:
    """One run of a plan.

    Args:
        plan: what to build.
        on_step: called with the name of each step of the bring-up, of snapshots, and of the way down.

    Attributes:
        dimension_pids: dimension -> pid of its main process; of one that is being restarted, that of the dead one.
        service_pids: supervisor, rtd, orchestrator, relay -> pid.
        uids: dimension -> the user, and the group, that its processes are; no other run of this host has it.
        loops: dimension -> (major, minor) of its loop device; only of those that have one.
        records_lost: dimension -> window records overwritten before :meth:`drain` saw them.
        retuned: changes of amplitudes while it ran, each with its time ``at_ns``, the dimension's ``name`` and its new
            ``amplitude``; complete up to the last call of :meth:`check` or :meth:`halt`.
        restarts: processes of dimensions that failed and were to be replaced, each with the dimension's ``name``, the
            ``generation`` of the next, ``how`` it ended and its last words (``message``), when that was
            (``died_ns``), and when the next one was there (``up_ns``; None: not yet); ``stuck`` is there if what else
            was in its group did not end, and says what. Of those that came while nobody asked for them (:meth:`check`)
            a thousand pieces of news are kept: the generations tell what is left out.
        snapshots: those that were taken, each with the ``dimension``, ``why``, its ``path`` and ``bytes``, how long it
            ``took_ns`` and the dimension was ``frozen_for_ns``; or the ``error`` that kept it from being taken.
        lost_services: services that have died without the run having to end: ``name``, ``how``, ``at_ns``.
        start_ns: CLOCK_MONOTONIC time from which windows are counted; 0 before :meth:`start`.
    """

    def __init__(self, plan: Plan, on_step: Callable[[str], None] = lambda name: None) -> None:
        self.plan = plan
        self.dimension_pids: dict[str, int] = {}
        self.service_pids: dict[str, int] = {}
        self.uids: dict[str, int] = {}
        self.loops: dict[str, tuple[int, int]] = {}
        self.records_lost = {d.name: 0 for d in plan.dimensions}
        self.retuned: list[dict[str, Any]] = []
        self.restarts: list[dict[str, Any]] = []
        self.snapshots: list[dict[str, Any]] = []
        self.lost_services: list[dict[str, Any]] = []
        self.start_ns = 0
        self._on_step = on_step
        self._deaths: list[str] = []
        self._is_down = False
        longest_s = max(d.period_ns for d in plan.dimensions) / 1e9
        self._answer_s = _ANSWER_S + 3 * longest_s
        self._regions: Regions | None = None

    def __enter__(self) -> Self:
        path = search_path()
        check_workloads(self.plan, path)
        if os.geteuid() != 0:
            raise HostError("a run needs root: it mounts, pins and confines (try: sudo vcg run …)")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        ours.settimeout(self._answer_s)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "vcg.supervisor", str(theirs.fileno())],
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            filters = {name: b64encode(program).decode() for name, program in _filters(self.plan).items()}
            self._tell({"plan": self.plan.to_json(), "path": path, "filters": filters})
            self._adopt(*self._expect("ready"))
        except BaseException as error:
            for problem in self._finish():
                error.add_note(problem)
            raise
        return self

    def _adopt(self, ready: dict[str, Any], fds: list[int]) -> None:
        """Map the regions and note the processes that the supervisor reports."""
        self._regions = Regions(self.plan, fds)
        self.ticks, self.tokens = self._regions.ticks, self._regions.tokens
        self.records_lost = self._regions.records_lost
        names = {d.name for d in self.plan.dimensions}
        self.dimension_pids = {name: pid for name, pid in ready["pids"].items() if name in names}
        services = {name: pid for name, pid in ready["pids"].items() if name not in names}
        self.service_pids = {"supervisor": ready["supervisor"], **services}
        self.uids = ready["uids"]
        self.loops = {name: (major, minor) for name, (major, minor) in ready["loops"].items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems = self._finish()
        if problems and error is None:
            raise RunError("; ".join(problems))
        notes = [told_of(one) for one in self.snapshots] if error is not None else []
        for note in [*notes, *problems]:
            assert error is not None
            error.add_note(note)

    @property
    def supervisor_pid(self) -> int:
        """Known from the beginning of the bring-up on."""
        return self._process.pid

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> int:
        """Let the RTD tick; returns the time from which windows are counted, a little ahead of now.

        Raises:
            RunError: it has been started before: a run ticks once.
        """
        if self.start_ns:
            raise RunError("this run has been started before; a run ticks once: make another")
        self._send("start")
        answer, _ = self._expect("started")
        self.start_ns = int(answer["start_ns"])
        return self.start_ns

    def halt(self) -> None:
        """Stop the ticks; on return every dimension is idle, and every process still alive.

        Raises:
            RunError: a process of the run has ended, and why; or the RTD does not obey, or a dimension is still inside
                a window, long after its end.
        """
        self._send("halt")
        answer, _ = self._expect("halted")
        if self._deaths:
            raise RunError("; ".join(self._deaths))
        if answer["is_ticking"]:
            raise RunError("rtd: has not obeyed the order to stop the ticks: is it stopped, or kept off its CPU?")
        if answer["busy"]:
            raise RunError(f"{', '.join(answer['busy'])}: still inside a window long after its end")

    def check(self) -> None:
        """Raise what has happened to the run since the last look, if anything.

        Raises:
            RunError: a process of the run has ended, and why.
        """
        self._socket.setblocking(False)
        try:
            while True:
                message, _ = service.receive(self._socket)
                self._take(message)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(self._answer_s)
        if self._deaths:
            raise RunError("; ".join(self._deaths))

    # ── what is there to read ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def regions(self) -> Regions:
        """The shared memory, from the end of the bring-up to the end of the run."""
        assert self._regions is not None, "the run is not up"
        return self._regions

    def drain(self) -> dict[str, bytes]:
        """Window records since the last call, in order, as they lie in shared memory (``shm.WINDOW``).

        :func:`vcg.regions.windows_of` reads them. A ring holds 8192 windows of its dimension; what was overwritten
        before it was read is counted in ``records_lost``.
        """
        return self.regions.drain()

    def statistics(self) -> dict[str, Any]:
        """What the run counts, as plain data.

        Counters of the RTD and the orchestrator, CPU time (``/proc/PID/schedstat``) and memory of our services, and the
        changes of amplitudes, restarts, snapshots and lost services so far.
        """
        cpu_ns = {name: _cpu_ns(pid) for name, pid in self.service_pids.items()}
        resident = {name: _resident_bytes(pid) for name, pid in self.service_pids.items()}
        return {
            "rtd": self.regions.clock(),
            "orchestrator": self.regions.rounds(),
            "tokens": self.regions.accounts(),
            "cpu_ns": cpu_ns,
            "resident_bytes": resident,
            "retuned": list(self.retuned),
            "restarts": [dict(one) for one in self.restarts],
            "snapshots": list(self.snapshots),
            "lost_services": list(self.lost_services),
        }

    # ── the supervisor ───────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, order: str) -> None:
        self._tell({"do": order})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            service.send(self._socket, message)
        except (BrokenPipeError, ConnectionResetError):
            raise RunError("the supervisor is gone") from None

    def _expect(self, event: str) -> tuple[dict[str, Any], list[int]]:
        while True:
            try:
                message, fds = service.receive(self._socket)
            except TimeoutError:
                raise RunError(f"the supervisor did not answer in {self._answer_s:.0f} s (expected: {event})") from None
            self._take(message)
            if message is not None and message["event"] == event:
                return message, fds

    def _take(self, message: dict[str, Any] | None) -> None:
        """Note what a message says; raise what it means for us."""
        if message is None:
            self._is_down = True
            raise RunError("; ".join([*self._deaths, "the supervisor is gone"]))
        match message["event"]:
            case "step":
                self._on_step(message["name"])
            case "died":
                self._note_death(message)
            case "restarted":
                self.dimension_pids[message["who"]] = message["pid"]
                for died in self._deaths_before(message):
                    died["up_ns"] = message["at_ns"]
            case "stuck":
                for died in self._deaths_before(message):
                    died["stuck"] = message["message"]
            case "snapshot":
                self.snapshots.append({field: value for field, value in message.items() if field in _OF_SNAPSHOT})
            case "retuned":
                changes = message["amplitudes"].items()
                self.retuned += [{"at_ns": message["at_ns"], "name": name, "amplitude": to} for name, to in changes]
            case "failed":
                raise RunError(message["message"])

    def _deaths_before(self, news: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The death that news of the next generation are about; none if it was left out."""
        life = (news["who"], news["generation"])
        return [one for one in self.restarts if (one["name"], one["generation"]) == life]

    def _note_death(self, message: dict[str, Any]) -> None:
        who, how, said, at_ns = (message[key] for key in ("who", "how", "message", "at_ns"))
        match message["then"]:
            case "restart":
                generation = message["generation"] + 1
                news = {"generation": generation, "how": how, "message": said, "died_ns": at_ns, "up_ns": None}
                self.restarts.append({"name": who, **news})
            case "go on":
                self.service_pids.pop(who, None)
                self.lost_services.append({"name": who, "how": how, "at_ns": at_ns})
            case _:
                self._deaths.append(f"{who} {how}" + (f": {said}" if said else ""))

    def _finish(self) -> list[str]:
        """Bring it down, whatever state it is in; returns what is wrong afterwards."""
        problems: list[str] = []
        orderly = False
        try:
            with contextlib.suppress(RunError):
                self._send("finish")
            while (received := service.receive(self._socket))[0] is not None:
                message, fds = received
                for fd in fds:
                    os.close(fd)
                if message is not None and message["event"] == "down":
                    problems += message["leftovers"]
                    orderly = True
                elif message is not None and message["event"] in ("step", "snapshot"):
                    self._take(message)
        except TimeoutError:
            pass  # it hangs: what it leaves is cleared below
        self._socket.close()
        if self._regions is not None:
            self._regions.release()
        try:
            code = self._process.wait(_ANSWER_S if orderly else _LAST_WORD_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code != 0 or not orderly:
            problems.append(f"the supervisor ended with {code}, before it had taken the run down")
            try:
                problems += state.clear(Path(self.plan.state_root))
            except (RunError, OSError) as error:
                problems.append(f"what it may have left was not cleared away: {error}")
        return problems


def told_of(snapshot: Mapping[str, Any]) -> str:
    """One of :attr:`Run.snapshots` in a line."""
    if "error" in snapshot:
        return printable(str(snapshot["error"]))
    return f"snapshot of {snapshot['dimension']} ({snapshot['why']}): vcg snapshot --show {snapshot['path']}"


def plan_here(testbed: Testbed) -> Plan:
    """Resolve a testbed against this host, its measured floors included.

    Raises:
        HostError: the host can't do what the testbed asks for.
    """
    return make(testbed, numa.observe(), floor_ns=floor.ensure(), freezer_floor_ns=gatefloor.shortest_window_ns())


def _filters(plan: Plan) -> dict[str, bytes]:
    """The filter of system calls for each dimension, compiled here while the supervisor starts; none without a kernel.

    A program has no mapping of the clock any more, and libc's own shared futexes may be vital to it.
    """
    if not seccomp.is_available():
        return {}
    return {d.name: seccomp.compile_policy(None if d.program else d.bit) for d in plan.dimensions}


def search_path() -> list[str]:
    """Where workloads are looked for: as this process imports, and last of all in the current directory."""
    return [*filter(None, sys.path), str(Path.cwd())]


def check_workloads(plan: Plan, path: Sequence[str]) -> None:
    """Find the module of every workload, without importing anything: a dimension's process does that.

    Raises:
        RunError: one does not exist.
    """
    for d in plan.dimensions:
        module, _, function = d.workload.partition(":")
        outermost = module.partition(".")[0]
        if not function or not outermost or PathFinder.find_spec(outermost, list(path)) is None:
            raise RunError(
                f"{d.name}: unknown workload {d.workload!r}: expected module:function of a module in the current "
                "directory or on Python's path (PYTHONPATH), or one of the ready ones (see: vcg schema)"
            )


def _cpu_ns(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except FileNotFoundError:
        return 0


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 0
