"""The relay: serves the RTD's ticks to subscribers on a Unix socket, at normal priority (``python -m vcg.relay``).

It reads the tick ring; the RTD does not know that it exists. While somebody listens it looks at the ring every
millisecond; with nobody there it sleeps. A subscriber that reads too slowly loses ticks, never delays any, and is told
with the next message how many it missed. (``sequence`` also counts ticks in which only the orchestrator is due; these
are not sent.)

Each message (SOCK_SEQPACKET) is one JSON object: ``sequence``, ``planned_ns``, ``actual_ns``, ``skipped`` (windows),
``missed`` (ticks this subscriber did not get just before), ``due``: ``dimension``, ``window`` and ``phase`` of each.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import sys
import time
from typing import Any

from vcg import service, shm
from vcg.shm import Phase

_POLL_S = 0.001
_CROWDED_S = 0.01


def read_tick(ticks: memoryview, sequence: int) -> dict[str, Any] | None:
    """One tick of the ring as plain data; None if it has been overwritten."""
    at = shm.TICKS_AT + sequence % shm.TICK_SLOTS * shm.TICK_WORDS
    copy = ticks[at : at + shm.TICK_WORDS].tolist()
    if copy[0] != sequence or ticks[shm.TICKS_HEADER.at("head")] >= sequence + shm.TICK_SLOTS - 1:
        return None
    due = [
        {
            "dimension": bit,
            "window": copy[shm.TICK_WINDOWS_AT + bit],
            "phase": copy[shm.TICK_PHASES_AT + bit] / 1e9,
        }
        for bit in range(shm.ORCHESTRATOR_BIT)
        if copy[3] >> bit & 1
    ]
    return {"sequence": sequence, "planned_ns": copy[1], "actual_ns": copy[2], "skipped": copy[4], "due": due}


class Subscriber:
    """One connection and what it has missed."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.missed = 0

    def offer(self, tick: dict[str, Any]) -> bool:
        """Send a tick if there is room, else count it. False: the subscriber is gone."""
        try:
            self.connection.send(json.dumps({**tick, "missed": self.missed}).encode())
        except BlockingIOError:
            self.missed += 1
        except (BrokenPipeError, ConnectionResetError):
            return False
        else:
            self.missed = 0
        return True


def serve(listener: socket.socket, ticks: memoryview, control: memoryview, names: list[str]) -> None:
    """Accept subscribers and pass every new tick on, until the run finishes."""
    listener.setblocking(False)
    head_at, phase_at = shm.TICKS_HEADER.at("head"), shm.CONTROL.at("phase")
    subscribers: list[Subscriber] = []
    sent = 0
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while control[phase_at] != Phase.FINISH:
            if selector.select(_POLL_S if subscribers else 0.1):
                try:
                    subscribers.append(Subscriber(listener.accept()[0]))
                except BlockingIOError:
                    pass  # it has gone away again
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE):
                        raise
                    time.sleep(_CROWDED_S)  # no descriptor left: it waits, and those who are there are served
            head = ticks[head_at]
            if not subscribers:
                sent = head
            while sent < head:
                tick = read_tick(ticks, sent)
                sent += 1
                if tick is None:
                    for subscriber in subscribers:
                        subscriber.missed += 1
                    continue
                for member in tick["due"]:
                    member["dimension"] = names[member["dimension"]]
                if tick["due"]:
                    for gone in [s for s in subscribers if not s.offer(tick)]:
                        gone.connection.close()
                        subscribers.remove(gone)


def main(arguments: list[str]) -> None:
    """The process."""
    plan, control, supervisor, (ticks_fd, listener_fd) = service.begin("vcg:relay", arguments)
    ticks = shm.attach(ticks_fd)
    os.close(ticks_fd)
    os.sched_setaffinity(0, plan.housekeeping.cpus)
    service.send(supervisor, {"ready": "relay"})
    with socket.socket(fileno=listener_fd) as listener:
        serve(listener, ticks, control, [d.name for d in plan.dimensions])


if __name__ == "__main__":
    main(sys.argv[1:])
