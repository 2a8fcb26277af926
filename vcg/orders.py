"""The supervisor's side of snapshots: what it has asked of the snapshotter, and what has come of it.

The snapshotter (``vcg.snapshotter``) is a process at normal priority, because copying takes its time. Here nothing ever
waits for it, and nothing that it does, or fails to do, ends the run: when it dies, whatever it held is thawed, what it
was asked for has failed, and the next one starts. One that is at work and says nothing for longer than any copy takes
(:meth:`Orders.mind`) hangs, and is killed: what it holds, and what waits for it, would wait for ever.

Before it is asked, it need not be there: it is started for the first order, or at the beginning of a run in which it
has to look out for something.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from vcg import service
from vcg.errors import RunError

NAME = "snapshotter"
KEPT = 64
"""So many results are kept for those who ask for them."""
_LIFE_MIN_NS = 1_000_000_000
"""One that did not live so long is not followed by another before somebody asks."""


class Orders:
    """Every order of a run.

    Args:
        begin: starts the snapshotter; returns its pid and our end of its socket.
        began_ns: when the run began, CLOCK_MONOTONIC.
        sources: for each dimension what the snapshotter has to know, see :class:`vcg.snapshotter.Source`.
        tell: called with what is to be told to whoever began the run; must not wait, nor raise.
        kill: ends the snapshotter of a pid, at once.
        patience_s: so long it may say nothing while it is at work.

    Attributes:
        pid: of the snapshotter, the last that there was; 0 before the first.
    """

    def __init__(
        self,
        begin: Callable[[], tuple[int, socket.socket]],
        began_ns: int,
        sources: Mapping[str, dict[str, Any]],
        tell: Callable[[dict[str, Any]], None],
        kill: Callable[[int], object],
        patience_s: float,
    ) -> None:
        self.pid = 0
        self._begin = begin
        self._run_began_ns = began_ns
        self._sources = {name: dict(source) for name, source in sources.items()}
        self._tell = tell
        self._kill = kill
        self._patience_s = patience_s
        self._is_at_work = False
        self._heard_ns = 0
        self._socket: socket.socket | None = None
        self._epoll = select.epoll()
        self._untold: set[str] = set()
        self._is_over = False
        self._began_ns = 0
        self._numbers = count(1)
        self._open: dict[int, tuple[str, str]] = {}
        self._results: dict[int, dict[str, Any]] = {}

    def fileno(self) -> int:
        """Readable when the snapshotter has something to say."""
        return self._epoll.fileno()

    def engage(self) -> None:
        """Start the snapshotter if it is not there."""
        if self._socket is not None:
            return
        self._began_ns = time.monotonic_ns()
        self.pid, self._socket = self._begin()
        self._socket.setblocking(False)
        self._epoll.register(self._socket, select.EPOLLIN)
        service.send(self._socket, self._facts(self._sources))

    def update(self, name: str, **facts: Any) -> None:
        """Something else holds for a dimension from now on: it has another process."""
        self._sources[name] |= facts
        if self._socket is not None:
            self._untold.add(name)
            self._tell_facts(self._socket)

    def _tell_facts(self, snapshotter: socket.socket) -> None:
        """Send what has changed; if there is no room for it now, it is sent as it is then when there is."""
        if not self._untold:
            return
        try:
            service.send(snapshotter, self._facts({name: self._sources[name] for name in sorted(self._untold)}))
            self._untold.clear()
        except (BrokenPipeError, ConnectionResetError):  # it has died: the next one is told all
            self._untold.clear()
        except OSError:
            pass  # it is busy
        self._epoll.modify(snapshotter, select.EPOLLIN | (select.EPOLLOUT if self._untold else 0))

    def order(self, name: str, why: str, process: Mapping[str, Any] | None = None) -> int:
        """Ask for a snapshot of a dimension; returns the number under which :meth:`result` knows it.

        Args:
            why: ``"demand"``, or ``"death"``: then whether it is wanted at all is for the snapshotter to find out.
            process: what is known of the one that has died.

        Raises:
            RunError: the snapshotter cannot be asked.
        """
        try:
            self.engage()
            assert self._socket is not None
            self._tell_facts(self._socket)  # before the order, as they have come about
            number = next(self._numbers)
            service.send(self._socket, {"number": number, "dimension": name, "why": why, "process": process or {}})
        except OSError as error:
            raise RunError(f"{name}: the snapshotter cannot be asked for a snapshot: {error}") from error
        if not self._open and not self._is_at_work:
            self._heard_ns = time.monotonic_ns()
        self._open[number] = (name, why)
        return number

    def result(self, number: int) -> dict[str, Any] | None:
        """What has come of an order: a ``path``, or an ``error``; None while it is not done.

        Raises:
            RunError: there is no such order, or it is too long ago.
        """
        if number in self._open:
            return None
        if number not in self._results:
            raise RunError(f"order {number}: not known: expected one of the last {KEPT} snapshots that were asked for")
        return self._results[number]

    def is_open(self, name: str | None = None) -> bool:
        """Whether an order is not done yet: any, or one for a dimension."""
        return any(name in (None, dimension) for dimension, _ in self._open.values())

    def hold(self, name: str) -> None:
        """Freeze a dimension at once; it is thawed after its snapshot.

        Raises:
            OSError: it has no group any more.
        """
        self._switch(name, "1")

    def hear(self) -> None:
        """Take what the snapshotter has to say; returns at once if that is nothing."""
        if self._socket is not None:
            self._tell_facts(self._socket)
        while self._socket is not None and any(event & ~select.EPOLLOUT for _, event in self._epoll.poll(0)):
            try:
                message, _ = service.receive(self._socket)
            except OSError:
                message = None
            if message is None:
                self.lost("has gone")
                return
            self._take(message)

    def mind(self) -> float | None:
        """Give up a snapshotter that hangs; returns in how many seconds to look again, None if it has nothing to do."""
        if self._socket is None or not (self._open or self._is_at_work):
            return None
        rest_s = self._patience_s - (time.monotonic_ns() - self._heard_ns) / 1e9
        if rest_s > 0:
            return rest_s
        self._kill(self.pid)
        self.lost(f"has said nothing for {self._patience_s:.0f} s and was killed")
        return None

    def _take(self, message: dict[str, Any]) -> None:
        self._heard_ns = time.monotonic_ns()
        self._is_at_work = message["event"] == "step"  # also of what it does of its own accord
        if message["event"] == "step":
            self._tell(message)
        elif message["event"] == "declined":
            self._open.pop(message["number"], None)
        else:
            self._close(message)

    def _close(self, result: dict[str, Any]) -> None:
        """Note and tell what has become of an order, or of what the snapshotter did on its own account."""
        number = result["number"]
        if number is not None:
            self._open.pop(number, None)
            self._results[number] = result
            while len(self._results) > KEPT:
                del self._results[min(self._results)]
        self._tell(result)

    def lost(self, how: str) -> None:
        """The snapshotter has died: thaw what it held, give up what it was asked for, start the next."""
        if self._socket is None:
            return
        self._epoll.unregister(self._socket)
        self._socket.close()
        self._socket = None
        self._is_at_work = False
        self._untold.clear()
        for name in self._sources:
            with contextlib.suppress(FileNotFoundError):
                self._switch(name, "0")
        for number, (name, why) in list(self._open.items()):
            error = f"{name}: the snapshotter {how} before it was done"
            self._close({"event": "snapshot", "number": number, "dimension": name, "why": why, "error": error})
        if not self._is_over and time.monotonic_ns() - self._began_ns > _LIFE_MIN_NS:
            with contextlib.suppress(OSError):  # the next order tries again, and tells
                self.engage()

    def finish(self, patience_s: float) -> None:
        """Wait for what is not done, for so long at most, and ask for no more."""
        self._is_over = True
        deadline = time.monotonic() + patience_s
        while self._open and (left_s := deadline - time.monotonic()) > 0:
            self._epoll.poll(left_s)
            self.hear()
        self.lost(f"was given up after {patience_s:.0f} s")
        self._epoll.close()

    def _facts(self, sources: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        return {"began_ns": self._run_began_ns, "sources": sources}

    def _switch(self, name: str, value: str) -> None:
        cell = self._sources[name]["cell"]
        if cell is not None:
            Path(cell, "cgroup.freeze").write_text(value)
