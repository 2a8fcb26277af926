"""Line 10: clients of every bad kind at the Unix sockets of a run, all at once; the run and good clients go on.

The gateway does not exist yet; what exists are the clock's socket, which sends ticks to whoever listens, and the
control socket, which answers requests. Each kind stands beside what it does to a server that trusts its clients.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

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
    client.send(b'{"do": "attach", "more": [' + b"[]," * 45_000 + b"0]}")


def zero_length(client: socket.socket) -> None:
    client.send(b"")


def deeply_nested(client: socket.socket) -> None:
    client.send(DEEP)


def not_text(client: socket.socket) -> None:
    client.send(b'{"do": "\xff"}')


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


WRONG: dict[str, list[bytes]] = {
    "types": [
        json.dumps({"do": do, field: value}).encode()
        for do, field in (("snapshot", "dimension"), ("snapshot result", "number"), ("amplitude", "amplitudes"))
        for value in (None, True, [], {}, ["d1"], {"d1": []}, {"d1": {}}, {"d1": "2"}, 1.5, -1, "", "\ud800", [[[]]])
    ],
    "requests": [json.dumps({"do": do}).encode() for do in ("snapshot", "snapshot result", "amplitude", "", "\0")],
    "names": [json.dumps({"do": do}).encode() for do in (None, 1, [], {}, ["attach"], {"do": "attach"})],
    "numbers": [
        b'{"do": "snapshot result", "number": 1' + b"0" * 4000 + b"}",
        b'{"do": "snapshot result", "number": 1' + b"0" * 5000 + b"}",
        b'{"do": "amplitude", "amplitudes": {"d4": 1' + b"0" * 4000 + b"}}",
        b'{"do": "amplitude", "amplitudes": {"d4": 1e999}}',
        b'{"do": "amplitude", "amplitudes": {"d4": NaN}}',
    ],
    "depths": [
        b'{"do": "amplitude", "amplitudes": {"d4": ' + b"[" * depth + b"]" * depth + b"}}"
        for depth in (1, 2, 3, 4, 100, *range(940, 1000))
    ],
    "encodings": [
        json.dumps({"do": "snapshot", "dimension": "d99"}).encode("utf-16"),
        json.dumps({"do": "snapshot", "dimension": "d99"}).encode("utf-32-be"),
        b'{"do": "snapshot", "dimension": "\xff\xfe"}',
        b'\xef\xbb\xbf{"do": "snapshot", "dimension": 7}',
        b'{"do": "snapshot", "dimension": "d1\x00"}',
    ],
}


@pytest.mark.parametrize("kind", WRONG)
def test_requests_of_a_wrong_shape_are_answered_with_an_error_and_the_run_goes_on(
    kind: str, made: Plan, roots: Roots
) -> None:
    with Run(made) as run:
        run.start()
        for raw in WRONG[kind]:
            with connect(roots.state_root / "control.sock") as client:
                client.send(raw)
                answer, _ = service.receive(client)
                assert answer is not None, raw
                assert list(answer) == ["error"], raw
        assert_all_go_on(run, roots)


# ── the same, where the client is trusted ────────────────────────────────────────────────────────────────────────────

ROUNDS = 10
ANSWER_BYTES = 3000
GROWN_BYTES = 1 << 20


def trusting(clients: list[socket.socket]) -> None:
    """Take a request of each in turn, whatever comes, however large; answer it; go on."""
    while True:
        for client in clients:
            request = json.loads(client.recv(1 << 18))
            client.send(json.dumps({"answer": "x" * ANSWER_BYTES, "to": request["do"]}).encode())


def honest(client: socket.socket) -> None:
    """Asks, and reads the answers."""

    def ask() -> None:
        for _ in range(ROUNDS):
            client.send(b'{"do": "attach"}')
            client.recv(1 << 16)

    threading.Thread(target=ask, daemon=True).start()


def asks_and_is_deaf(client: socket.socket) -> None:
    client.send(b'{"do": "attach"}')
    deaf(client)


def large(client: socket.socket) -> None:
    oversize(client)
    honest(client)


class Served(NamedTuple):
    """What became of a server and of who else asked it."""

    answers: int
    ended: BaseException | None
    grown_bytes: int


def serve_beside(kind: Callable[[socket.socket], None], pairs: list[tuple[socket.socket, socket.socket]]) -> Served:
    """Let a trusting server have a client of some kind, and beside it one that asks :data:`ROUNDS` times in order."""
    (_, client), (_, bystander) = pairs
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            trusting([server for server, _ in pairs])
        except BaseException as error:
            ended.append(error)

    bystander.settimeout(HELD_S)
    answers = 0
    tracemalloc.start()
    try:
        kind(client)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with suppress(TimeoutError):
            for _ in range(ROUNDS):
                bystander.send(b'{"do": "attach"}')
                answers += bool(bystander.recv(1 << 16))
        thread.join(0 if answers == ROUNDS else HELD_S)
        came_to_end = ended[0] if ended else None
        grown_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for pair in pairs:  # whoever held it goes away
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    return Served(answers, came_to_end, grown_bytes)


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """A server's ends and its clients' ends of two connections; the server's have room for one answer or two."""
    with ExitStack() as stack:
        made = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        for server, client in made:
            stack.enter_context(server).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * ANSWER_BYTES)
            stack.enter_context(client)
        yield made


Pairs = list[tuple[socket.socket, socket.socket]]


def test_a_server_that_trusts_its_clients_serves_the_honest_ones(pairs: Pairs) -> None:
    """What the others are held against."""
    served = serve_beside(honest, pairs)
    assert (served.answers, served.ended) == (ROUNDS, None)
    assert served.grown_bytes < GROWN_BYTES


@pytest.mark.parametrize("kind", [silent, never_reads], ids=lambda kind: kind.__name__)
def test_a_server_that_waits_for_its_clients_is_held_by_one(
    kind: Callable[[socket.socket], None], pairs: Pairs
) -> None:
    served = serve_beside(kind, pairs)
    assert served.answers < ROUNDS
    assert served.ended is None


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (half_closed, json.JSONDecodeError),
        (zero_length, json.JSONDecodeError),
        (asks_and_is_deaf, BrokenPipeError),
        (deeply_nested, RecursionError),
        (not_text, UnicodeDecodeError),
    ],
)
def test_a_server_that_believes_its_clients_is_ended_by_one(
    kind: Callable[[socket.socket], None], error: type[Exception], pairs: Pairs
) -> None:
    served = serve_beside(kind, pairs)
    assert served.answers < ROUNDS
    assert type(served.ended) is error


def test_a_server_that_takes_any_size_grows_with_its_client(pairs: Pairs) -> None:
    assert serve_beside(large, pairs).grown_bytes > GROWN_BYTES


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
