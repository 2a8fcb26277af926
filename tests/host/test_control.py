"""The control socket alone, on real sockets: no client holds its owner, whatever that client does."""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg import control, service
from vcg.control import CLIENTS, REQUEST_BYTES, REST, Answer, Door
from vcg.errors import RunError

pytestmark = pytest.mark.usefixtures("root")

PATIENCE_S = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def door(path: Path) -> Iterator[Door]:
    """A door where one may ask for an ``echo``, a ``long`` answer, and what is always ``refused``."""

    def echo(request: dict[str, Any]) -> Answer:
        return {"echo": request.get("say")}, ()

    def long(request: dict[str, Any]) -> Answer:
        return {"long": "x" * 50_000}, ()

    def refused(request: dict[str, Any]) -> Answer:
        raise RunError("d4: not today")

    made = Door(path, {"echo": echo, "long": long, "refused": refused})
    yield made
    made.close()


def serve(door: Door, until: Callable[[], bool] = lambda: False) -> None:
    """Do as the supervisor does: serve whoever is at the door, rest, until there is nothing to do."""
    deadline = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as selector:
        selector.register(door, selectors.EVENT_READ)
        while selector.select(0) and not until():
            assert time.monotonic() < deadline, "the door is never done"
            door.serve()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(path))
    return connection


def ask(door: Door, connection: socket.socket, raw: bytes) -> dict[str, Any] | None:
    connection.send(raw)
    serve(door)
    return service.receive(connection)[0]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_the_socket_is_for_root_alone(door: Door, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_request_is_answered_and_the_connection_stays(door: Door, path: Path) -> None:
    with connect(path) as client:
        for say in ("one", "two"):
            assert ask(door, client, json.dumps({"do": "echo", "say": say}).encode()) == {"echo": say}


def test_a_request_that_is_refused_or_unknown_says_why_and_the_connection_stays(door: Door, path: Path) -> None:
    with connect(path) as client:
        assert ask(door, client, b'{"do": "refused"}') == {"error": "d4: not today"}
        unknown = {"error": "unknown request 'dance': expected echo, long, refused"}
        assert ask(door, client, b'{"do": "dance"}') == unknown
        assert ask(door, client, b'{"do": "echo", "say": 1}') == {"echo": 1}


@pytest.mark.parametrize("raw", [b"garbage", b"[]", b"{" * 9000, b"x" * (REQUEST_BYTES + 1), b"x" * 100_000, b"\0"])
def test_who_sends_no_request_is_told_and_shown_out_and_others_stay(door: Door, path: Path, raw: bytes) -> None:
    with connect(path) as bystander, connect(path) as client:
        answer = ask(door, client, raw)
        assert answer is not None
        assert answer["error"].startswith("not a request: ")
        assert service.receive(client) == (None, [])
        assert ask(door, bystander, b'{"do": "echo", "say": 1}') == {"echo": 1}


def test_an_empty_message_is_a_goodbye(door: Door, path: Path) -> None:
    with connect(path) as client:
        assert ask(door, client, b"") is None


def test_who_never_reads_is_shown_out_and_others_stay(door: Door, path: Path) -> None:
    with connect(path) as sleeper, connect(path) as bystander:
        sleeper.setblocking(False)
        serve(door)
        sent = 0
        with pytest.raises((BlockingIOError, BrokenPipeError)):
            while sent < 1000:
                sent += sleeper.send(b'{"do": "long"}') > 0
                serve(door)
        assert ask(door, bystander, b'{"do": "echo", "say": 1}') == {"echo": 1}


def test_who_goes_away_in_the_middle_leaves_nothing_behind(door: Door, path: Path) -> None:
    before = descriptors()
    for _ in range(5):
        with connect(path) as client:
            client.send(b'{"do": "long"}')
        serve(door)
    assert descriptors() == before


def test_descriptors_that_come_with_a_request_are_not_taken(door: Door, path: Path) -> None:
    with connect(path) as client:
        serve(door)
        before = descriptors()
        null = os.open("/dev/null", os.O_RDONLY)
        service.send(client, {"do": "echo", "say": 1}, [null] * 50)
        os.close(null)
        serve(door)
        assert service.receive(client) == ({"echo": 1}, [])
        assert descriptors() == before


def test_only_so_many_are_served_and_the_next_is_told(door: Door, path: Path) -> None:
    clients = [connect(path) for _ in range(CLIENTS)]
    try:
        serve(door)
        with connect(path) as late:
            serve(door)
            refusal = {"error": f"{CLIENTS} others are attached to this run: wait until one has left"}
            assert service.receive(late)[0] == refusal
        clients.pop().close()
        serve(door)
        with connect(path) as next_one:
            assert ask(door, next_one, b'{"do": "echo", "say": 1}') == {"echo": 1}
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("is_limited", [True, False])
def test_without_the_limit_of_their_number_each_client_of_a_flood_costs_a_descriptor(
    door: Door, path: Path, monkeypatch: pytest.MonkeyPatch, is_limited: bool
) -> None:
    if not is_limited:
        monkeypatch.setattr(control, "CLIENTS", 1000)
    flood = 5 * CLIENTS
    before = descriptors()
    clients = []
    try:
        for _ in range(flood):
            clients.append(connect(path))
            serve(door)
        held = descriptors() - before - flood
    finally:
        for client in clients:
            client.close()
    assert held == (CLIENTS if is_limited else flood)


@pytest.mark.parametrize("is_limited", [True, False])
def test_without_the_limit_of_their_size_requests_make_their_owner_grow(
    door: Door, path: Path, monkeypatch: pytest.MonkeyPatch, is_limited: bool
) -> None:
    if not is_limited:
        monkeypatch.setattr(control, "REQUEST_BYTES", 1 << 20)
    raw = b'{"do": "echo", "say": 1, "more": [' + b"[]," * 45_000 + b"0]}"
    with connect(path) as client:
        tracemalloc.start()
        try:
            answer = ask(door, client, raw)
            grown_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (answer == {"echo": 1}) != is_limited
    assert (grown_bytes < 2 << 20) == is_limited


def test_who_asks_without_end_does_not_keep_others_waiting(door: Door, path: Path) -> None:
    with connect(path) as flood, connect(path) as patient:
        flood.setblocking(False)
        serve(door)
        for _ in range(50):
            flood.send(b'{"do": "echo", "say": "flood"}')
        patient.send(b'{"do": "echo", "say": "patient"}')
        for _ in range(2):
            door.serve()
        assert service.receive(patient)[0] == {"echo": "patient"}


def test_after_each_piece_of_work_the_door_rests_many_times_as_long(door: Door, path: Path) -> None:
    with connect(path):
        assert door.rest_s() == 0
        before_ns = time.monotonic_ns()
        door.serve()
        worked_ns = time.monotonic_ns() - before_ns
        assert 0 < door.rest_s() <= REST * worked_ns / 1e9


def test_another_user_is_refused_even_where_the_file_would_let_it_in(door: Door, path: Path) -> None:
    path.chmod(0o666)
    path.parent.chmod(0o711)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(path.parent)
            os.setresuid(65534, 65534, 65534)
            os.write(tell, json.dumps(service.receive(connect(Path(path.name)))[0]).encode())
        finally:
            os._exit(0)
    os.close(tell)
    deadline = time.monotonic() + PATIENCE_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        assert time.monotonic() < deadline, "the other user hangs"
        serve(door)
    with os.fdopen(told, "rb") as pipe:
        assert json.loads(pipe.read()) == {"error": "uid 65534 may ask nothing of this run: only root may"}


def test_closing_shows_everybody_out(path: Path) -> None:
    door = Door(path, {})
    with connect(path) as client:
        serve(door)
        door.close()
        assert service.receive(client) == (None, [])
    assert control.parse(b'{"do": "x"}') == {"do": "x"}
