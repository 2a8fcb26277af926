"""Line 10: clients of every bad kind at the Unix sockets of a run, all at once; the run and good clients go on.

The gateway does not exist yet; what exists are the clock's socket, which sends ticks to whoever listens, and the
control socket, which answers requests. Each kind stands beside what it does to a server that trusts its clients.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from vcg import config, plan, service, shm
from vcg.attach import Attached
from vcg.linux import numa
from vcg.plan import Plan
from vcg.run import Run
from vcg.shm import Outcome

pytestmark = pytest.mark.usefixtures("root")

PATIENCE_S = 20
HELD_S = 0.3
WATCHED_S = 0.5
FLOOD = 200
DEEP = b"[" * 8000 + b"]" * 8000


class Roots(Protocol):
    state_root: Path
    mount_root: Path


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(path))
    return connection


def send_until_full(client: socket.socket, message: bytes) -> None:
    client.setblocking(False)
    try:
        for _ in range(10_000):
            client.send(message)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return


def never_reads(client: socket.socket) -> None:
    send_until_full(client, b'{"do": "attach"}')


def half_closed(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def deaf(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_RD)


def silent(client: socket.socket) -> None:
    """Connects, and says nothing ever."""


def oversize(client: socket.socket) -> None:
    client.send(b"x" * 150_000)


def zero_length(client: socket.socket) -> None:
    client.send(b"")


def deeply_nested(client: socket.socket) -> None:
    client.send(DEEP)


def not_text(client: socket.socket) -> None:
    client.send(bytes(range(256)))


KINDS = (never_reads, half_closed, deaf, silent, oversize, zero_length, deeply_nested, not_text)


@pytest.fixture
def made(roots: Roots) -> Plan:
    places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
    return plan.make(config.load("tmpfs", {**places, "dimensions.*.workload": "idle"}), numa.observe())


def assert_all_go_on(run: Run, roots: Roots) -> None:
    """Windows, ticks for a new subscriber, answers to a new request."""
    run.drain()
    with connect(roots.state_root / "rtd.sock") as subscriber, Attached(roots.state_root) as attached:
        ticks = [json.loads(subscriber.recv(1 << 16)) for _ in range(20)]
        attached.set_amplitudes({"d4": 2})
        assert attached.regions.amplitudes()["d4"] == 2
    assert all(tick["due"] for tick in ticks)
    time.sleep(WATCHED_S)
    for name, raw in run.drain().items():
        outcomes = memoryview(raw).cast("q")[shm.WINDOW.at("outcome") :: shm.WINDOW_WORDS].tolist()
        period_ns = next(d.period_ns for d in run.plan.dimensions if d.name == name)
        assert sum(one <= Outcome.OVERRUN for one in outcomes) >= WATCHED_S * 1e9 / period_ns / 3, name
    run.check()


@pytest.mark.parametrize("name", ["rtd.sock", "control.sock"])
def test_bad_clients_of_every_kind_at_once_hold_up_nobody(name: str, made: Plan, roots: Roots) -> None:
    with Run(made) as run, ExitStack() as stack:
        run.start()
        for kind in KINDS:
            client = stack.enter_context(connect(roots.state_root / name))
            try:
                kind(client)
            except (BrokenPipeError, ConnectionResetError):  # shown out meanwhile
                continue
        time.sleep(HELD_S)
        assert_all_go_on(run, roots)


@pytest.mark.parametrize("name", ["rtd.sock", "control.sock"])
def test_a_flood_of_connections_holds_up_nobody(name: str, made: Plan, roots: Roots) -> None:
    with Run(made) as run:
        run.start()
        with ExitStack() as stack:
            for _ in range(FLOOD):
                client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stack.enter_context(client)
                client.setblocking(False)
                try:
                    client.connect(str(roots.state_root / name))
                except BlockingIOError:  # the queue of those who wait is full
                    time.sleep(0.001)
            run.check()
        time.sleep(HELD_S)
        assert_all_go_on(run, roots)


# ── the same, where the client is trusted ────────────────────────────────────────────────────────────────────────────


def trusting(server: socket.socket) -> None:
    """Read a request, answer it at length, go on."""
    while True:
        request = json.loads(server.recv(1 << 20))
        server.send(json.dumps({"answer": "x" * 10_000, "to": request["do"]}).encode())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, client:
        yield server, client


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_server_that_trusts_its_clients_is_held_or_ended_by_it(
    kind: Callable[[socket.socket], None], pair: tuple[socket.socket, socket.socket]
) -> None:
    server, client = pair
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            trusting(server)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    kind(client)
    if kind is deaf:
        client.send(b'{"do": "attach"}')
    thread.join(HELD_S)
    is_held = thread.is_alive()
    assert is_held or ended
    if is_held:  # it serves nobody else meanwhile: whoever asks now gets no answer of his own
        client.shutdown(socket.SHUT_RDWR)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    expected: dict[Any, tuple[type[BaseException], ...]] = {deeply_nested: (RecursionError,), not_text: (ValueError,)}
    assert is_held or isinstance(ended[0], expected.get(kind, (ValueError, OSError, TypeError)))


def test_a_message_with_descriptors_leaves_none_behind(made: Plan, roots: Roots) -> None:
    with Run(made) as run:
        supervisor = Path(f"/proc/{run.supervisor_pid}/fd")
        before = len(list(supervisor.iterdir()))
        with connect(roots.state_root / "control.sock") as client:
            for _ in range(50):
                service.send(client, {"do": "dance"}, [0, 1, 2])
                service.receive(client)
        deadline = time.monotonic() + PATIENCE_S
        while len(list(supervisor.iterdir())) > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
