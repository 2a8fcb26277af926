"""The reference thread: a small absolute-timer loop at a fixed period, the same in every trial of a sweep.

It is what cyclictest would see on this host at that moment, so a dimension's lateness can be reported relative to it,
and a trial in which the host itself was disturbed can be told from one in which our runtime was late. It runs in its
own process (``python -m experiments.reference``), on one fixed CPU, at SCHED_FIFO above the dimensions and below the
RTD. It is started before a trial is measured and stopped after it.

Assumes root (SCHED_FIFO, mlockall). Traps: a late wake-up makes the next timers expire in the past; each of them is
recorded with its lateness from its own planned time, none is left out. A period that divides a window would meet the
edges at the same phase for a whole trial, and at another one in the next; hence the prime.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

from vcg import shm
from vcg.errors import VcgError
from vcg.linux import clock, memory, prctl, sched

PRIORITY = 88
"""SCHED_FIFO: below the RTD (90), above every dimension."""
PERIOD_NS = 1_900_009
"""A prime, so incommensurate with every window: within each trial its timers fall on all phases of the edges alike."""

HEADER = shm.Record(("magic", "ready", "stop", "count"))
SAMPLE = shm.Record(("planned_ns", "wake_ns"))
SAMPLES_AT = shm.PAGE // shm.WORD
_MAGIC, _READY, _STOP, _COUNT = range(HEADER.words)
_PATIENCE_S = 10.0


class ReferenceThreadError(VcgError):
    """The reference thread did not start, or died."""


class Reference:
    """The reference process, from the measuring side; a context manager.

    Args:
        cpu: the CPU it is pinned to.
        seconds: how long it may run; room for the samples is taken before it starts.
    """

    def __init__(self, cpu: int, seconds: float) -> None:
        self._cpu = cpu
        self._capacity = int(seconds * 1e9) // PERIOD_NS + 1
        self._fd = shm.allocate("vcg-reference", (SAMPLES_AT + self._capacity * SAMPLE.words) * shm.WORD)
        self._words = shm.attach(self._fd, writable=True)
        self._words[_MAGIC] = shm.MAGIC
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Reference:
        arguments = (os.getpid(), self._fd, self._cpu, self._capacity)
        command = [sys.executable, "-m", "experiments.reference", *map(str, arguments)]
        # A session of its own: a Ctrl-C at the terminal is for the sweep to handle, not for this process to die of.
        self._process = subprocess.Popen(
            command, env={}, pass_fds=(self._fd,), stderr=subprocess.PIPE, start_new_session=True
        )
        deadline = time.monotonic() + _PATIENCE_S
        while not self._words[_READY]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                message = self._end()
                raise ReferenceThreadError(
                    f"reference thread on cpu {self._cpu} did not start: {message or 'no answer'}"
                )
            time.sleep(0.002)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ReferenceThreadError("reference thread is not running: enter its context first")
        return self._process.pid

    def stop(self) -> memoryview:
        """End the process.

        Returns:
            The samples as words, ``SAMPLE.words`` for each timer.

        Raises:
            ReferenceThreadError: it died before it was told to stop.
        """
        if self._process is None:
            raise ReferenceThreadError("reference thread is not running: enter its context first")
        died = self._process.poll() is not None and self._words[_COUNT] < self._capacity
        message = self._end()
        if died:
            raise ReferenceThreadError(f"reference thread on cpu {self._cpu} died: {message or 'no message'}")
        return self._words[SAMPLES_AT : SAMPLES_AT + self._words[_COUNT] * SAMPLE.words]

    def _end(self) -> str:
        process, self._process = self._process, None
        if process is None:
            return ""
        self._words[_STOP] = 1
        try:
            _, stderr = process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
        os.close(self._fd)
        lines = stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def loop(words: memoryview, capacity: int) -> None:
    """Record one sample each period until told to stop, or until the room is used up."""
    now, sleep, period = time.monotonic_ns, clock.sleep_until, PERIOD_NS
    at, end = SAMPLES_AT, SAMPLES_AT + capacity * SAMPLE.words
    planned = now() + period
    words[_READY] = 1
    while at < end and not words[_STOP]:
        sleep(planned)
        words[at + 1] = now()
        words[at] = planned
        at += 2
        words[_COUNT] += 1
        planned += period


def main() -> None:
    parent, fd, cpu, capacity = (int(argument) for argument in sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl.die_with_parent(parent)
    prctl.set_name("vcg:reference")
    sched.pin((cpu,))
    words = shm.attach(fd, writable=True)
    memory.lock_all()
    sched.set_fifo(PRIORITY)
    gc.freeze()
    gc.disable()
    loop(words, capacity)


if __name__ == "__main__":
    main()
