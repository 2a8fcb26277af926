"""How the runtime's own processes begin, report and are told what to do.

A service is a fresh exec of this interpreter with an empty environment. It inherits three descriptors, named on its
command line: the plan (JSON), the control page (read-only mapping), and a socket to the supervisor.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from vcg import shm
from vcg.linux import futex, prctl
from vcg.plan import Plan

_MESSAGE_BYTES = 1 << 20
_MAX_FDS = 64
NEWS_KEPT = 1000
"""So many pieces of news wait at most for who does not read them."""


def spawn(module: str, plan_fd: int, control_fd: int, more_fds: Sequence[int] = ()) -> tuple[int, socket.socket]:
    """Start a service.

    Args:
        module: run as ``python -m``.
        more_fds: further descriptors it gets, in this order.

    Returns:
        Its pid and our end of its socket.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        fds = [plan_fd, control_fd, theirs.fileno(), *more_fds]
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", module, str(os.getpid()), *map(str, fds)],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
        )
    process.returncode = 0  # reaped by the supervisor, through its pidfd
    return process.pid, ours


def begin(name: str, arguments: Sequence[str]) -> tuple[Plan, memoryview, socket.socket, list[int]]:
    """First steps of a service: its name, its end with its parent, its inheritance.

    Returns:
        The plan, the control page, the socket to the supervisor, the further descriptors.
    """
    parent, plan_fd, control_fd, socket_fd, *more = map(int, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's business
    prctl.set_name(name)
    prctl.die_with_parent(parent)
    with open(plan_fd, closefd=False) as file:
        plan = Plan.from_json(os.pread(file.fileno(), os.fstat(plan_fd).st_size, 0).decode())
    os.close(plan_fd)
    control = shm.attach(control_fd)
    os.close(control_fd)
    return plan, control, socket.socket(fileno=socket_fd), more


def send(to: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """One message and the descriptors that go with it (unix(7), SCM_RIGHTS)."""
    socket.send_fds(to, [json.dumps(message).encode()], list(fds))


def receive(source: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors; None when the other side is gone."""
    size = array.array("i").itemsize
    room = socket.CMSG_SPACE(_MAX_FDS * size)
    try:
        data, ancillary, _, _ = source.recvmsg(_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # it died with messages of ours unread; what it said before is still to be had
        data, ancillary, _, _ = source.recvmsg(_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % size])
    return (json.loads(data) if data else None), list(fds)


class _Message(NamedTuple):
    content: bytes
    fds: Sequence[int]
    is_news: bool


class Outbox:
    """Our messages to a process that may not read them, such as one that was stopped: nobody ever waits for it.

    What it has no room for waits here, in order. Answers are never lost. Of news only the newest :data:`NEWS_KEPT`
    wait; the older ones go.

    Args:
        to: a connected socket without a timeout; closed by whoever made it.
    """

    def __init__(self, to: socket.socket) -> None:
        self.socket = to
        self._waiting: deque[_Message] = deque()

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to :meth:`flush` when the socket becomes writable."""
        return bool(self._waiting)

    def offer(self, message: dict[str, Any]) -> None:
        """Send a message now or not at all.

        Raises:
            BlockingIOError: there is no room for it.
            BrokenPipeError, ConnectionResetError: the other side is gone.
        """
        self.flush()
        if self._waiting:
            raise BlockingIOError
        self._send(_Message(json.dumps(message).encode(), (), is_news=True))

    def tell(self, message: dict[str, Any]) -> None:
        """Have some news sent."""
        news = [waiting for waiting in self._waiting if waiting.is_news]
        if len(news) >= NEWS_KEPT:
            self._waiting.remove(news[0])
        self._post(_Message(json.dumps(message).encode(), (), is_news=True))

    def answer(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Have something sent that the other side waits for, or could not do without.

        Args:
            fds: descriptors that go with it; they have to stay open.
        """
        self._post(_Message(json.dumps(message).encode(), fds, is_news=False))

    def flush(self) -> None:
        """Send what there is room for now."""
        try:
            while self._waiting:
                self._send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):  # who has gone away does not want to know
            self._waiting.clear()

    def deliver(self) -> None:
        """Wait until the other side has taken everything, or is gone: for who has nothing else to do any more."""
        poll = select.poll()
        poll.register(self.socket, select.POLLOUT)
        while self._waiting:
            poll.poll()
            self.flush()

    def _post(self, message: _Message) -> None:
        self._waiting.append(message)
        self.flush()

    def _send(self, message: _Message) -> None:
        # Before Python 3.12 socket.send_fds() forgets its flags.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.fds))]
        self.socket.sendmsg([message.content], rights if message.fds else (), socket.MSG_DONTWAIT)


def wait_for_other(control: memoryview, phase: int) -> int:
    """Sleep until the control page shows another phase than this one, and return it."""
    phase_at = shm.CONTROL.at("phase")
    wait_until(control, lambda: control[phase_at] != phase)
    return control[phase_at]


def wait_until(control: memoryview, condition: Callable[[], bool]) -> None:
    """Sleep until something holds that the supervisor says in the control page."""
    word_at = shm.CONTROL.at("futex")
    word = control[word_at : word_at + 1].cast("B").cast("I")
    wait = futex.waiter(futex.address_of(control, word_at), futex.MATCH_ANY)
    while True:
        seen = word[0]
        if condition():
            return
        wait(seen)


class Control:
    """The supervisor's writable side of the control page."""

    def __init__(self, epoch: int) -> None:
        self.fd, self._words = shm.create("vcg-control", shm.CONTROL_BYTES)
        self._words[shm.CONTROL.at("magic")] = shm.MAGIC
        self._words[shm.CONTROL.at("epoch")] = epoch
        for index in range(shm.MAX_DIMENSIONS):
            self._words[shm.GENERATIONS_AT + index] = 1
        word_at = shm.CONTROL.at("futex")
        self._word = self._words[word_at : word_at + 1].cast("B").cast("I")
        self._wake = futex.waker(futex.address_of(self._words, word_at))

    def write_credits(self, credits_ns: Iterable[int], amplitudes: Iterable[float]) -> None:
        """Lay down every dimension's own credit for each window, and the amplitudes that it comes from."""
        for index, (credit_ns, amplitude) in enumerate(zip(credits_ns, amplitudes, strict=True)):
            self._words[shm.CREDITS_AT + index] = credit_ns
            self._words[shm.AMPLITUDES_AT + index] = round(amplitude * shm.AMPLITUDE_ONE)

    def announce_credits(self) -> None:
        """Tell the orchestrator that the credits have changed; it takes them over in its next round."""
        self._words[shm.CONTROL.at("tuning")] += 1

    def announce_generation(self, index: int, generation: int) -> None:
        """Say which process of a dimension there is now, or, negative, which has died; see ``shm.GENERATIONS_AT``."""
        self._words[shm.GENERATIONS_AT + index] = generation
        self._words[shm.CONTROL.at("lives")] += 1
        self._wake_all()

    @property
    def phase(self) -> int:
        """What the run is to do now."""
        return self._words[shm.CONTROL.at("phase")]

    def enter(self, phase: shm.Phase, start_ns: int | None = None) -> None:
        """Change the phase and wake everybody who waits for it."""
        if start_ns is not None:
            self._words[shm.CONTROL.at("start_ns")] = start_ns
        self._words[shm.CONTROL.at("phase")] = phase
        self._wake_all()

    def _wake_all(self) -> None:
        self._word[0] = (self._word[0] + 1) & 0xFFFFFFFF
        self._wake(futex.MATCH_ANY)
