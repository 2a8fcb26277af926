"""Attach to a run that is going on: read its shared memory, and ask something of it.

::

    with Attached(Path("/var/lib/vcg")) as run:
        print(run.plan.name, run.regions.clock())
        run.set_amplitudes({"d4": 2.5})

The run is found by its state root, and goes on whatever happens here.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vcg import service, shm
from vcg.errors import HostError, RunError
from vcg.plan import Plan
from vcg.regions import Regions
from vcg.shm import Phase
from vcg.state import control_socket

_ANSWER_S = 10.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class Change:
    """What a change of amplitudes has done to one dimension."""

    name: str
    amplitude_before: float
    amplitude: float
    credit_before_ns: int
    credit_ns: int


class Attached:
    """A run that is going on. A context manager: attached inside the block.

    Args:
        state_root: of the run.

    Attributes:
        plan: as the run was begun; amplitudes and credits may have changed since, see :class:`vcg.regions.Regions`.
        regions: its shared memory, which can only be read.
        dimension_pids: dimension -> pid of its main process; only of those that are alive.
        service_pids: supervisor, rtd, orchestrator, relay, gauges -> pid.
        loops: dimension -> (major, minor) of its loop device; only of those that have one.

    Raises:
        HostError: (on entry) not root.
        RunError: (on entry) there is no run at this state root.
    """

    def __init__(self, state_root: Path) -> None:
        self._state_root = state_root.resolve()

    def __enter__(self) -> Self:
        self._socket = self._connect()
        try:
            answer, fds = self._ask({"do": "attach"})
        except BaseException:
            self._socket.close()
            raise
        plan_fd, *region_fds = fds
        self.plan = Plan.from_json(os.pread(plan_fd, os.fstat(plan_fd).st_size, 0).decode())
        os.close(plan_fd)
        self.regions = Regions(self.plan, region_fds)
        names = {d.name for d in self.plan.dimensions}
        self.dimension_pids = {name: pid for name, pid in answer["pids"].items() if name in names}
        services = {name: pid for name, pid in answer["pids"].items() if name not in names}
        self.service_pids = {"supervisor": answer["supervisor"], **services}
        self.loops = {name: (major, minor) for name, (major, minor) in answer["loops"].items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.regions.release()
        self._socket.close()

    @property
    def start_ns(self) -> int:
        """CLOCK_MONOTONIC time from which windows are counted; 0 before the run was started."""
        return self.regions.control[shm.CONTROL.at("start_ns")]

    @property
    def phase(self) -> Phase:
        """What the run is doing."""
        return Phase(self.regions.control[shm.CONTROL.at("phase")])

    def has_ended(self) -> bool:
        """Whether the run is over, in order or not."""
        if self.phase == Phase.FINISH:
            return True
        # Nobody writes to us unasked: what can be read here is the end of the supervisor's side.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def set_amplitudes(self, amplitudes: Mapping[str, float]) -> list[Change]:
        """Change amplitudes of the run; the windows after the next are minted by the new credits.

        Returns:
            What has changed: for each dimension that was named, and each whose credit is another now.

        Raises:
            RunError: the run refuses, and why; or it has ended.
        """
        answer, _ = self._ask({"do": "amplitude", "amplitudes": dict(amplitudes)})
        return [Change(name, *was["amplitude"], *was["credit_ns"]) for name, was in answer["changed"].items()]

    def snapshot(self, name: str) -> dict[str, Any]:
        """Have a snapshot of a dimension taken, and wait for it.

        Returns:
            Its ``path``, its ``bytes``, how long it ``took_ns``, and for how long the dimension was ``frozen_for_ns``.

        Raises:
            RunError: it cannot be taken, and why; or the run has ended.
        """
        order, _ = self._ask({"do": "snapshot", "dimension": name})
        while (result := self._ask({"do": "snapshot result", **order})[0]["result"]) is None:
            time.sleep(_LOOK_S)
        if "error" in result:
            raise RunError(result["error"])
        return {field: result[field] for field in ("dimension", "path", "bytes", "took_ns", "frozen_for_ns")}

    def _connect(self) -> socket.socket:
        path = control_socket(self._state_root)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise self._refusal(error) from None
        return connection

    def _refusal(self, error: OSError) -> RunError | HostError:
        """What an error of connect(2) says about the run."""
        if isinstance(error, PermissionError):
            return HostError(f"the run at {self._state_root} answers only root (try: sudo vcg …)")
        if isinstance(error, ConnectionRefusedError):
            return RunError(
                f"the run at {self._state_root} was killed and has left its socket behind: "
                "the next start there clears it away (vcg run TESTBED)"
            )
        if isinstance(error, TimeoutError):
            return RunError(f"the run at {self._state_root} did not answer in {_ANSWER_S:.0f} s")
        return RunError(
            f"no run at {self._state_root}: start one (vcg run TESTBED), "
            "or name the state root of the one you mean (--state-root PATH)"
        )

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """One request and its answer.

        Raises:
            RunError: it is refused, or nobody answers.
        """
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # shown out: it may have said why
                service.send(self._socket, request)
            answer, fds = service.receive(self._socket)
        except TimeoutError:
            raise self._refusal(TimeoutError()) from None
        if answer is None:
            raise RunError(f"the run at {self._state_root} has ended")
        if "error" in answer:
            raise RunError(answer["error"])
        return answer, fds
