"""The followed tasks of a probe: which task belongs to which dimension (the reader's side of ``tasks.h``).

A task is followed from :meth:`Tasks.follow` on, or from its fork by a followed task, until it exits. The kernel side
keeps its figures in a slot of a mapped array; this side reads them together with the kernel's own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probes import oracles
from probes.errors import ProbeError
from probes.program import Program
from probes.snapshot import CounterRow, Reading
from vcg.linux.clock import now_ns

CAPACITY = 4096
"""How many tasks a probe follows at a time; a fork beyond that is a lost event."""
_ATTEMPTS = 16

Oracle = Callable[[int], dict[str, int] | None]


class Tasks:
    """The slots of one program.

    Args:
        program: built from a C file that includes ``tasks.h``.
        dimensions: names; their positions are their numbers in the program.
        fields: the probe's own fields of a slot, in C's order.
        oracle: the kernel's figures of a task, by the same names as the fields that they are compared with.
    """

    def __init__(self, program: Program, dimensions: Sequence[str], fields: Sequence[str], oracle: Oracle) -> None:
        self._program = program
        self._dimensions = dimensions
        self._fields = fields
        self._oracle = oracle
        layout = [("tid", "u4"), ("dimension", "u4"), ("since_ns", "u8"), *((field, "u8") for field in fields)]
        self._slots = program.array("tasks", np.dtype(layout), CAPACITY)
        self._exits = program.array("exits", np.dtype("u8"), len(dimensions))
        self._origins: dict[tuple[int, int], Mapping[str, int]] = {}
        self._nothing = dict.fromkeys(fields, 0)
        self._fill()

    def follow(self, pid: int, dimension: int) -> None:
        """Follow every thread of a process, and what it forks from now on.

        Raises:
            ProbeError: there is no such process, it belongs to another dimension, or there is no room.
        """
        # A thread made by one that is followed is followed by the kernel; one made before that is in a later list.
        seen: set[int] = set()
        while new := set(oracles.threads(pid)) - seen:
            for tid in new:
                self._follow(tid, dimension)
            seen |= new
        if not seen:
            raise ProbeError(f"process {pid}: not found in /proc (expected the id of a live process)")

    def readings(self) -> dict[str, Reading]:
        """Every followed task: our figures and the kernel's, by task id."""
        found = {}
        for slot in np.flatnonzero(self._slots["tid"]).tolist():
            row = self._slots[slot]
            tid, since_ns = int(row["tid"]), int(row["since_ns"])
            measured, oracle, steady = self._both(slot, tid)
            if int(self._slots[slot]["tid"]) != tid:
                continue  # it exited meanwhile
            found[str(tid)] = Reading(
                dimension=self._dimensions[int(row["dimension"])],
                since_ns=since_ns,
                measured=measured,
                oracle=oracle,
                origin=self._origins.get((tid, since_ns), self._nothing),
                steady=steady,
            )
        return found

    def exits(self) -> list[CounterRow]:
        """How many followed tasks have exited, by dimension."""
        return [
            CounterRow(self._program.name, "exits", dimension, None, int(count))
            for dimension, count in zip(self._dimensions, self._exits, strict=True)
        ]

    def reset(self) -> None:
        """Follow nobody any more."""
        self._program.clear("slots")
        while self._program.take("free_slots") is not None:
            pass
        self._slots[:] = 0
        self._exits[:] = 0
        self._origins.clear()
        self._fill()

    def _fill(self) -> None:
        for slot in range(len(self._slots)):
            self._program.insert("free_slots", None, struct.pack("=I", slot))

    def _follow(self, tid: int, dimension: int) -> None:
        taken = self._program.take("free_slots")
        if taken is None:
            raise ProbeError(f"{self._program.name}: task {tid}: no room to follow more than {len(self._slots)} tasks")
        (slot,) = struct.unpack("=I", taken)
        since_ns = now_ns()
        self._slots[slot] = (0, dimension, since_ns, *(0 for _ in self._fields))
        self._slots["tid"][slot] = tid
        if not self._program.insert("slots", struct.pack("=I", tid), taken):
            self._slots["tid"][slot] = 0
            self._program.insert("free_slots", None, taken)
            self._check_owner(tid, dimension)
            return
        measured, oracle, _ = self._both(slot, tid)
        if oracle is not None:
            self._origins[tid, since_ns] = {name: value - measured[name] for name, value in oracle.items()}

    def _check_owner(self, tid: int, dimension: int) -> None:
        owners = self._slots["dimension"][self._slots["tid"] == tid].tolist()
        if owners and owners[0] != dimension:
            raise ProbeError(
                f"task {tid}: followed for {self._dimensions[owners[0]]} already, not for {self._dimensions[dimension]}"
            )

    def _both(self, slot: int, tid: int) -> tuple[dict[str, int], dict[str, int] | None, bool]:
        """Our figures and the kernel's, both of one moment if the task lets us find one."""
        for _ in range(_ATTEMPTS):
            before = self._measured(slot)
            oracle = self._oracle(tid)
            if self._measured(slot) == before:
                return before, oracle, True
        return before, oracle, False

    def _measured(self, slot: int) -> dict[str, int]:
        row: Any = self._slots[slot]
        return {name: int(row[name]) for name in self._fields}
