"""Block I/O of a dimension's loop device: how long requests took, how many there were, and how many bytes.

Attributed by device number, never by task: a loop device's I/O is done by another task than the one that asked.

Measured, for each request, by operation (read, write, discard, flush), as histograms:

``issue_to_complete_ns``  from the driver being given the request (``block_rq_issue``, the last one if it was requeued)
                          to its completion (``block_rq_complete``).
``queue_to_complete_ns``  from the making of the request (``block_getrq``) to its completion: with the time in plugs,
                          queues and schedulers. Bios merged into the request later don't count again.

Counters: ``requests`` and ``bytes`` by operation, taken where a request is issued; ``completions`` seen of reads,
writes and discards; ``unmatched`` ones among them (their making was not seen), ``ambiguous`` and ``requeued`` requests.

How flushes go (block/blk-flush.c), and so how they are counted here:

* A request to flush without data is never issued itself. The kernel issues a flush of the device's own for all that
  wait, then completes them; by then they have lost their mark and look like writes of nothing. The kernel counts each
  as a write, and the device's flush as a flush, and so do we. Its ``queue_to_complete_ns`` (what fsync waits for) is
  shown under *flush*; ``issue_to_complete_ns`` under *flush* is the device's own flush.
* A write with data and preflush or FUA becomes a sequence of flush, data, flush, if the device has a volatile cache
  (no FUA of its own). It completes once for the data and once more, without data, at the end; there it is counted.

Requests are told apart by device, operation and first sector, because no tracepoint carries their identity. What
changes that first sector is followed: front merges, merges of requests, partial completions. Two requests in flight
with the same key (parallel fsyncs, parallel reads of one block) are counted exactly, but their latency is taken from
the newer of the two: ``ambiguous`` counts them.

The oracle is ``/sys/block/loopN/stat``, over an interval at whose ends nothing is in flight: the counts and bytes are
equal. They are taken at the issue because that happens in a task that does I/O, whereas a completion may interrupt any
task, and on some virtual machines the kernel runs no BPF program while certain tasks are current. What that costs is
shown by ``completions``, compared with a tolerance of 2 %.
``block_io_start`` and ``block_io_done``, which only newer kernels have, are not used: ``block_getrq`` fires where
the former does and exists on all; the latter
fires twice for flush sequences, just as ``block_rq_complete``.

OVERHEAD
--------
Three programs for each request of a watched device (made, issued, completed), of one hash lookup and one update each;
requests of other devices cost one lookup each.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes import oracles
from probes.errors import ProbeError
from probes.oracles import OPERATIONS
from probes.probe import Histograms, Lost, macros
from probes.program import Program, possible_cpus
from probes.snapshot import AgreementRow, CounterRow, HistogramRow, Reading, Snapshot, changes
from vcg.linux.clock import now_ns

DEVICES = 64
"""How many devices can be watched at a time."""
REQUESTS = 8192
"""How many requests of watched devices can be in flight: 128 for each, which is what a loop device takes."""
TOLERANCE = 0.02
"""Largest share of completions that may go unseen."""
_IO = np.dtype(
    [
        ("requests", "u8", len(OPERATIONS)),
        ("bytes", "u8", len(OPERATIONS)),
        ("completions", "u8"),
        ("unmatched", "u8"),
        ("ambiguous", "u8"),
        ("requeued", "u8"),
    ]
)
_KINDS = [
    (metric, operation) for metric in ("issue_to_complete_ns", "queue_to_complete_ns") for operation in OPERATIONS
]
_MINOR_BITS = 20
_SEQUENCE_ON_PREFLUSH = 1
_SEQUENCE_ON_FUA = 2
_ATTEMPTS = 16


@dataclass(frozen=True)
class _Device:
    major: int
    minor: int
    dimension: int
    since_ns: int
    origin: dict[str, int]


class Block:
    """The probe, attached."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self._dimensions = dimensions
        self.program = Program("block", macros(dimensions, DEVICES=DEVICES, REQUESTS=REQUESTS))
        self._lost = Lost(self.program)
        self._histograms = Histograms(self.program, dimensions, _KINDS)
        ios = self.program.array("ios", _IO, possible_cpus() * DEVICES)
        self._ios: NDArray[Any] = ios.reshape(possible_cpus(), DEVICES)
        self._devices: list[_Device] = []

    def follow(self, pid: int, dimension: int) -> None:
        pass

    def watch_device(self, major: int, minor: int, dimension: int) -> None:
        queue = Path(f"/sys/dev/block/{major}:{minor}/queue")
        stat = oracles.block_stat(major, minor)
        if stat is None or not queue.is_dir():
            raise ProbeError(
                f"block device {major}:{minor}: expected a whole device in /sys/dev/block, not "
                f"{'a partition' if stat else 'one that is absent'}"
            )
        if (queue / "iostats").read_text().strip() != "1":
            raise ProbeError(f"block device {major}:{minor}: it keeps no statistics (write 1 to {queue}/iostats)")
        if len(self._devices) == DEVICES:
            raise ProbeError(f"block device {major}:{minor}: {DEVICES} devices are watched already, expected no more")
        cached = (queue / "write_cache").read_text().strip() == "write back"
        own_fua = (queue / "fua").read_text().strip() == "1"
        sequence_on = cached * (_SEQUENCE_ON_PREFLUSH | (0 if own_fua else _SEQUENCE_ON_FUA))
        key = struct.pack("=I", major << _MINOR_BITS | minor)
        if not self.program.insert("watched", key, struct.pack("=III", dimension, len(self._devices), sequence_on)):
            raise ProbeError(f"block device {major}:{minor}: it is watched already")
        self._devices.append(_Device(major, minor, dimension, now_ns(), stat))

    def figures(self) -> tuple[list[HistogramRow], list[CounterRow]]:
        histograms, rows = self._histograms.figures()
        sums = self._sums()
        for number, name in enumerate(self._dimensions):
            slots = [slot for slot, device in enumerate(self._devices) if device.dimension == number]
            for metric in ("requests", "bytes"):
                values = sums[metric][slots].sum(axis=0)
                rows += [
                    CounterRow("block", metric, name, operation, int(value))
                    for operation, value in zip(OPERATIONS, values, strict=True)
                ]
            rows += [
                CounterRow("block", metric, name, None, int(sums[metric][slots].sum()))
                for metric in ("completions", "unmatched", "ambiguous", "requeued")
            ]
        return histograms, rows

    def readings(self) -> dict[str, Reading]:
        found = {}
        for slot, device in enumerate(self._devices):
            for _ in range(_ATTEMPTS):
                measured = self._measured(slot)
                oracle = oracles.block_stat(device.major, device.minor)
                steady = self._measured(slot) == measured
                if steady:
                    break
            found[f"{device.major}:{device.minor}"] = Reading(
                dimension=self._dimensions[device.dimension],
                since_ns=device.since_ns,
                measured=measured,
                oracle=oracle,
                origin=device.origin,
                steady=steady,
                busy=bool(oracle and oracle["in_flight"]),
            )
        return found

    def lost(self) -> int:
        return self._lost.count()

    def reset(self) -> None:
        self.program.clear("watched")
        self.program.clear("inflight")
        self._devices.clear()
        self._histograms.reset()
        self._ios[...] = np.zeros((), dtype=_IO)
        self._lost.reset()

    @staticmethod
    def agreement(before: Snapshot, after: Snapshot) -> list[AgreementRow]:
        rows = []
        for dimension, change in changes("block", before, after).items():
            reason = ""
            if change.gone:
                reason = "the device has gone"
            elif change.busy or change.unsteady:
                reason = "I/O was in flight at an end of the interval"
            for quantity in change.measured:
                ours, kernels = change.measured[quantity], change.oracle[quantity]
                tolerance = round(TOLERANCE * kernels) if quantity == "completions" else 0
                agrees = None if reason else abs(ours - kernels) <= tolerance
                rows.append(
                    AgreementRow("block", quantity, dimension, ours, kernels, ours - kernels, tolerance, agrees, reason)
                )
        return rows

    def _sums(self) -> dict[str, NDArray[Any]]:
        return {name: self._ios[name].sum(axis=0) for name in _IO.names or ()}

    def _measured(self, slot: int) -> dict[str, int]:
        figures = {"completions": int(self._ios["completions"][:, slot].sum())}
        for metric in ("requests", "bytes"):
            for operation, value in zip(OPERATIONS, self._ios[metric][:, slot].sum(axis=0), strict=True):
                figures[f"{metric}_{operation}"] = int(value)
        return figures
