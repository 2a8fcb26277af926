"""Workloads for the tests of snapshots: they leave markers, and then come to grief as their arguments say."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from vcg.dimension import Dimension

MARKERS = "/data/markers"


def marks(dimension: Dimension) -> None:
    """Write each window's number down and fsync it; once, in the first window from ``at`` on, do what ``then`` says.

    ``abort``, ``raise``, ``grow`` (until something stops it), ``hang`` (for ``for_s`` seconds), ``child`` (fork one
    that grows, and go on), ``linger`` (fork one that goes on writing, and abort).
    """
    at, then, done = dimension.args.get("at"), dimension.args.get("then", ""), Path("/data/done")
    fd = os.open(MARKERS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for window in dimension.windows():
        os.write(fd, b"%d\n" % window.number)
        os.fsync(fd)
        if at is not None and window.number >= at and not done.exists():  # its next process finds it
            done.touch()
            print(f"in its window: {then}", flush=True)
            _come_to_grief(then, dimension)


def _come_to_grief(how: str, dimension: Dimension) -> None:
    match how:
        case "abort":
            os.abort()
        case "raise":
            raise ValueError("the test wants it so")
        case "grow":
            _grow()
        case "hang":
            time.sleep(dimension.args["for_s"])
        case "child":
            if os.fork() == 0:
                _grow()
        case "linger":
            if os.fork() == 0:
                _scribble()
            time.sleep(0.05)
            os.abort()


def _grow() -> None:
    held = []
    while True:
        held.append(bytearray(b"\xff") * (1 << 20))


def _scribble() -> None:
    number = 0
    while True:
        Path("/data/scribble").write_text(f"{number}")
        number += 1
        time.sleep(0.001)


def plants(dimension: Dimension) -> None:
    """Arrange a tree that whoever reads it from outside may stumble over; abort in the tenth window."""
    data = Path("/data")
    (data / "plain").write_bytes(b"plain" * 1000)
    os.link(data / "plain", data / "second")
    (data / "outside").symlink_to("/etc/passwd")
    (data / "inside").symlink_to("plain")
    os.mkfifo(data / "fifo")
    (data / os.fsdecode(b"bad\xff\nname")).write_bytes(b"x")
    with (data / "sparse").open("wb") as file:
        file.truncate(1 << 33)
        file.seek(1 << 20)
        file.write(b"middle")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("/data/socket")
    for window in dimension.windows():
        if window.number >= 10:
            os.abort()


def reports_of_the_past(dimension: Dimension) -> None:
    """Say of every window that it was of the epoch before this one."""
    dimension._epoch -= 1
    for window in dimension.windows():
        assert window.number < 0, "a token of this epoch has been taken for one of the past"
