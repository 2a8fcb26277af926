"""The gauges: samples what the kernel accounts to every dimension (``python -m vcg.gauges``), at normal priority.

Four times a second it reads the CPU time of each dimension's control group, the requests of its loop device, what its
filesystem holds, its memory and its tasks, and lays them into the gauges region. Who watches a run reads them there
and touches neither the control groups nor the filesystems.

It lives in the supervisor's mount namespace, so it sees the filesystems where they are mounted. It holds no descriptor
in any of them, which would keep their loop devices bound. What a dimension no longer has is -1 from then on; that it
has ended is not the gauges' business.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vcg import service, shm
from vcg.linux import clock, futex
from vcg.shm import Phase

SAMPLE_NS = 250_000_000
ABSENT = -1
_SECTOR_BYTES = 512
"""Unit of ``/sys/block/*/stat``, whatever the device's own is (Documentation/block/stat.rst)."""
_FILE_BYTES = 1 << 16
_GONE = (errno.ENODEV, errno.ENOENT)
_RETRIES = 100


class Sample(NamedTuple):
    """One dimension at one moment, in the order of ``shm.GAUGE`` after ``version``; -1 where there is no such figure.

    ``cpu_usage_ns`` is all that its control group has used since it was made, ``requests`` counts completed reads and
    writes of its loop device, ``used_bytes`` what its filesystem holds, ``tasks`` its threads.
    """

    sampled_ns: int
    cpu_usage_ns: int
    read_bytes: int
    written_bytes: int
    requests: int
    used_bytes: int
    memory_bytes: int
    tasks: int


def read(gauges: memoryview, index: int) -> Sample | None:
    """The newest sample of a dimension, whole; None before the first."""
    at = shm.GAUGES_AT + index * shm.GAUGE_WORDS
    for _ in range(_RETRIES):
        version, *values = gauges[at : at + shm.GAUGE.words].tolist()
        if version & 1 == 0 and gauges[at] == version:
            return Sample(*values) if version else None
    return None  # its writer has ended in the middle of a record


def write(gauges: memoryview, index: int, sample: Sample) -> None:
    """Replace the sample of a dimension; a reader never sees half of each."""
    at = shm.GAUGES_AT + index * shm.GAUGE_WORDS
    gauges[at] += 1
    for offset, value in enumerate(sample, 1):
        gauges[at + offset] = value
    gauges[at] += 1


class Meter:
    """Where the figures of one dimension come from.

    Args:
        sources: path, or None where this host or this dimension has none, of ``cpu`` (cpu.stat of its v2 group),
            ``block`` (stat of its loop device), ``memory`` and ``tasks`` (of the controllers), ``processes`` and
            ``threads`` (lists of its v2 group, which stand in for missing controllers), ``filesystem`` (its mount).
    """

    def __init__(self, sources: Mapping[str, str | None]) -> None:
        self._filesystem = sources["filesystem"]
        paths = {name: path for name, path in sources.items() if path is not None and name != "filesystem"}
        self._files = {name: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for name, path in paths.items()}

    def sample(self) -> Sample:
        """Read everything now."""
        cpu = self._read("cpu").split(maxsplit=2)  # usage_usec 1234
        block = [int(field) for field in self._read("block").split()]
        return Sample(
            clock.now_ns(),
            int(cpu[1]) * 1000 if cpu else ABSENT,
            block[2] * _SECTOR_BYTES if block else ABSENT,
            block[6] * _SECTOR_BYTES if block else ABSENT,
            block[0] + block[4] if block else ABSENT,
            self._used_bytes(),
            self._memory_bytes(),
            self._tasks(),
        )

    def _read(self, name: str) -> bytes:
        """One of the files; empty if it is not there, or no longer."""
        fd = self._files.get(name)
        if fd is None:
            return b""
        try:
            return os.pread(fd, _FILE_BYTES, 0)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            os.close(self._files.pop(name))
            return b""

    def _memory_bytes(self) -> int:
        if usage := self._read("memory"):
            return int(usage)
        if "processes" not in self._files:
            return ABSENT
        return sum(map(_resident_bytes, self._read("processes").split()))

    def _tasks(self) -> int:
        if count := self._read("tasks"):
            return int(count)
        return len(self._read("threads").split()) if "threads" in self._files else ABSENT

    def _used_bytes(self) -> int:
        if self._filesystem is None:
            return ABSENT
        try:
            found = os.statvfs(self._filesystem)
        except FileNotFoundError:
            self._filesystem = None
            return ABSENT
        return (found.f_blocks - found.f_bfree) * found.f_frsize


def _resident_bytes(pid: bytes) -> int:
    try:
        return int(Path(f"/proc/{int(pid)}/statm").read_text().split()[1]) * shm.PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def serve(meters: list[Meter], gauges: memoryview, control: memoryview) -> None:
    """Sample until the run finishes."""
    word_at, phase_at = shm.CONTROL.at("futex"), shm.CONTROL.at("phase")
    word = control[word_at : word_at + 1].cast("B").cast("I")
    address = futex.address_of(control, word_at)
    next_ns = clock.now_ns()
    while True:
        seen = word[0]
        if control[phase_at] == Phase.FINISH:
            return
        if clock.now_ns() < next_ns:
            futex.wait_until(address, seen, next_ns)
            continue
        for index, meter in enumerate(meters):
            write(gauges, index, meter.sample())
        gauges[shm.GAUGES_HEADER.at("samples")] += 1
        next_ns = clock.now_ns() + SAMPLE_NS


def main(arguments: list[str]) -> None:
    """The process: hear where everything is, offer the region with a first sample in it, go on until FINISH."""
    plan, control, supervisor, _ = service.begin("vcg:gauges", arguments)
    os.sched_setaffinity(0, plan.housekeeping.cpus)
    message, _ = service.receive(supervisor)
    if message is None:  # the run has come to nothing
        return
    meters = [Meter(message["sources"][d.name]) for d in plan.dimensions]
    fd, gauges = shm.create("vcg-gauges", shm.GAUGES_BYTES)
    gauges[shm.GAUGES_HEADER.at("magic")] = shm.MAGIC
    gauges[shm.GAUGES_HEADER.at("epoch")] = control[shm.CONTROL.at("epoch")]
    for index, meter in enumerate(meters):
        write(gauges, index, meter.sample())
    service.send(supervisor, {"ready": "gauges"}, [fd])
    os.close(fd)
    serve(meters, gauges, control)


if __name__ == "__main__":
    main(sys.argv[1:])
