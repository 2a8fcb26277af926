"""The control socket of a run: what other processes may ask of it while it goes on.

One message of at most :data:`REQUEST_BYTES` is one request, a JSON object whose ``do`` names it; one message is its
answer, with an ``error`` where it was refused (SOCK_SEQPACKET, so messages stay whole). Only root may connect.

The supervisor serves it between its other duties, at a priority above every dimension. So nothing that a client does
may hold it: it never waits for one. Who sends what is no request, or does not read its answers, is shown out. After
each piece of work the door stays shut for :data:`REST` times as long, so that even a client that asks without end
costs less than a tenth of a CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from vcg import service
from vcg.errors import RunError
from vcg.quantities import parse_amplitude

Answer: TypeAlias = "tuple[dict[str, Any], Sequence[int]]"
"""The message and the descriptors that go with it."""

REQUEST_BYTES = 16 << 10
NESTED = 4
"""So deep a request is nested at most: whoever walks through it after that runs into no limit of its own."""
CLIENTS = 16
"""So many are served at once; more are turned away."""
REST = 10
_UCRED = struct.Struct("3i")


class Door:
    """The listening socket and its clients.

    Args:
        path: of the socket; made here, for root alone.
        requests: what may be asked, by name; each gets the request and returns its answer, or raises RunError.
    """

    def __init__(self, path: Path, requests: Mapping[str, Callable[[dict[str, Any]], Answer]]) -> None:
        self._requests = requests
        self._selector = selectors.EpollSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(before)
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, 0)
        self._served = 0
        self._shut_until_ns = 0

    def fileno(self) -> int:
        """Readable when somebody is at the door."""
        return self._selector.fileno()

    def rest_s(self) -> float:
        """How long it stays shut from now on; 0: it is open."""
        return max(0, self._shut_until_ns - time.monotonic_ns()) / 1e9

    def serve(self) -> None:
        """Do one piece of work, for whom it has been done least recently."""
        began_ns = time.monotonic_ns()
        waiting = [key for key, _ in self._selector.select(0)]
        if waiting:
            key = min(waiting, key=lambda key: key.data)
            self._served += 1
            self._selector.modify(key.fileobj, selectors.EVENT_READ, self._served)
            if key.fileobj is self._listener:
                self._admit()
            else:
                assert isinstance(key.fileobj, socket.socket)
                self._obey(key.fileobj)
        now_ns = time.monotonic_ns()
        self._shut_until_ns = now_ns + REST * (now_ns - began_ns)

    def close(self) -> None:
        """Show everybody out."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _admit(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone away again, or there is no descriptor left for it
            return
        connection.setblocking(False)
        _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self._selector.register(connection, selectors.EVENT_READ, self._served)
        if uid != 0:
            self._show_out(connection, f"uid {uid} may ask nothing of this run: only root may")
        elif len(self._selector.get_map()) - 1 > CLIENTS:
            self._show_out(connection, f"{CLIENTS} others are attached to this run: wait until one has left")

    def _obey(self, connection: socket.socket) -> None:
        """Answer one request."""
        try:
            # Without room for ancillary data the kernel drops descriptors that come along.
            raw = connection.recv(REQUEST_BYTES + 1)
        except OSError:
            raw = b""
        if not raw:
            self._show_out(connection)
            return
        try:
            request = parse(raw)
        except ValueError as error:
            self._show_out(connection, f"not a request: {error}")
            return
        try:
            answer, fds = self._answer(request)
        except (RunError, OSError) as error:
            answer, fds = {"error": str(error)}, ()
        try:
            service.send(connection, answer, fds)
        except OSError:  # it has gone away, or it does not read
            self._show_out(connection)

    def _answer(self, request: dict[str, Any]) -> Answer:
        name = request["do"]
        if name not in self._requests:
            raise RunError(f"unknown request {name!r}: expected {', '.join(self._requests)}")
        return self._requests[name](request)

    def _show_out(self, connection: socket.socket, why: str | None = None) -> None:
        if why is not None:
            with contextlib.suppress(OSError):  # it need not hear it
                service.send(connection, {"error": why})
        self._selector.unregister(connection)
        connection.close()


def parse(raw: bytes) -> dict[str, Any]:
    """A request.

    Raises:
        ValueError: it is none, and why.
    """
    if len(raw) > REQUEST_BYTES:
        raise ValueError(f"expected at most {REQUEST_BYTES} bytes")
    try:
        request = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(request, dict) or not isinstance(request.get("do"), str):
        raise ValueError('expected an object such as {"do": "attach"}')
    if _is_deeper(request, NESTED):
        raise ValueError("nested too deeply")
    return request


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a value of JSON has more levels of lists and objects than so many."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def dimension_of(request: Mapping[str, Any], known: Collection[str]) -> str:
    """The dimension that a request names.

    Args:
        known: names of the run's dimensions.

    Raises:
        RunError: it names none, or one that does not exist.
    """
    name = request.get("dimension")
    if not isinstance(name, str):
        raise RunError(f"dimension: expected a name, such as {json.dumps(next(iter(known)))}")
    if name not in known:
        raise RunError(f"{name}: no dimension of this run: expected one of {', '.join(known)}")
    return name


def number_of(request: Mapping[str, Any]) -> int:
    """The number of an order that a request names.

    Raises:
        RunError: it names none.
    """
    number = request.get("number")
    if not isinstance(number, int) or isinstance(number, bool):
        raise RunError("number: expected that of an order for a snapshot")
    return number


def amplitudes_of(request: Mapping[str, Any], known: Collection[str]) -> dict[str, float]:
    """The amplitudes that a request is to set.

    Args:
        known: names of the run's dimensions.

    Raises:
        RunError: it names none, or one that does not exist, or a value that is no amplitude.
    """
    wanted = request.get("amplitudes")
    if not isinstance(wanted, dict) or not wanted:
        raise RunError('amplitudes: expected a number for each dimension, such as {"d4": 2.5}')
    amplitudes = {}
    for name, value in wanted.items():
        if name not in known:
            raise RunError(f"{name}: no dimension of this run: expected one of {', '.join(known)}")
        try:
            amplitudes[name] = parse_amplitude(value)
        except ValueError as error:
            raise RunError(f"{name}: amplitude {json.dumps(value)}: {error}") from None
    return amplitudes
