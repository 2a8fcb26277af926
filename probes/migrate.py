"""Migrations: moves of a dimension's tasks between CPUs and between memory nodes, and of pages on their behalf.

Measured: ``sched_migrate_task`` of a followed task to another CPU. Counters ``task_migrations``,
``cross_node_task_migrations``, and the node x node matrix as ``task_migrations_between_nodes`` with ``from>to`` as its
operation. From ``mm_migrate_pages``: ``pages_migrated`` and ``pages_not_migrated``, attributed to the task that asked
(by a system call, a page fault, or the balancing of memory between nodes), not to the owner of the pages; what the
kernel's own threads do, such as compaction, belongs to no dimension. The event carries no nodes.

The choice of a CPU at fork is not a migration, neither here nor for the kernel.

The oracle is ``se.nr_migrations`` of ``/proc/PID/sched``, which the kernel counts next to the tracepoint
(``set_task_cpu``, kernel/sched/core.c): the two are equal, but for events that the kernel says it missed.

Trap: ``comm`` of ``sched_migrate_task`` changed its layout between kernels; it is never read.

OVERHEAD
--------
One program for each migration of any task and each batch of migrated pages: rare events, under 1 us each.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes import oracles, tasks
from probes.probe import Lost, macros
from probes.program import Program, possible_cpus
from probes.snapshot import AgreementRow, CounterRow, HistogramRow, Reading, Snapshot, changes

_NODES = Path("/sys/devices/system/node")


def node_of_cpu(nodes: Path) -> dict[int, int]:
    """The memory node of each CPU, from a directory like ``/sys/devices/system/node``.

    A CPU of no node there (a kernel without CONFIG_NUMA has no such directory at all) is absent.
    """
    found = {}
    for node in nodes.glob("node[0-9]*"):
        for span in filter(None, (node / "cpulist").read_text().strip().split(",")):
            first, _, last = span.partition("-")
            for cpu in range(int(first), int(last or first) + 1):
                found[cpu] = int(re.sub(r"\D", "", node.name))
    return found


class Migrate:
    """The probe, attached."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self._dimensions = dimensions
        nodes = node_of_cpu(_NODES)
        self._nodes = max(nodes.values(), default=0) + 1
        self.program = Program("migrate", macros(dimensions, TASKS=tasks.CAPACITY, NODES=self._nodes))
        for cpu, node in nodes.items():
            self.program.put("node_of_cpu", struct.pack("=I", cpu), struct.pack("=I", node))
        self._lost = Lost(self.program)
        self._tasks = tasks.Tasks(self.program, dimensions, ("migrations",), oracles.migrations)
        cell = np.dtype([("pages_moved", "u8"), ("pages_failed", "u8"), ("tasks", "u8", (self._nodes, self._nodes))])
        moves = self.program.array("moves", cell, possible_cpus() * len(dimensions))
        self._moves: NDArray[Any] = moves.reshape(possible_cpus(), len(dimensions))

    def follow(self, pid: int, dimension: int) -> None:
        self._tasks.follow(pid, dimension)

    def watch_device(self, major: int, minor: int, dimension: int) -> None:
        pass

    def figures(self) -> tuple[list[HistogramRow], list[CounterRow]]:
        rows = self._tasks.exits()
        matrices = self._moves["tasks"].sum(axis=0)
        moved, failed = self._moves["pages_moved"].sum(axis=0), self._moves["pages_failed"].sum(axis=0)
        for number, dimension in enumerate(self._dimensions):
            matrix = matrices[number]
            figures = {
                "task_migrations": matrix.sum(),
                "cross_node_task_migrations": matrix.sum() - matrix.trace(),
                "pages_migrated": moved[number],
                "pages_not_migrated": failed[number],
            }
            rows += [CounterRow("migrate", name, dimension, None, int(value)) for name, value in figures.items()]
            rows += [
                CounterRow("migrate", "task_migrations_between_nodes", dimension, f"{start}>{end}", int(value))
                for (start, end), value in np.ndenumerate(matrix)
            ]
        return [], rows

    def readings(self) -> dict[str, Reading]:
        return self._tasks.readings()

    def lost(self) -> int:
        return self._lost.count()

    def reset(self) -> None:
        self._tasks.reset()
        self._moves[...] = np.zeros((), dtype=self._moves.dtype)
        self._lost.reset()

    @staticmethod
    def agreement(before: Snapshot, after: Snapshot) -> list[AgreementRow]:
        rows = []
        missed = after.missed["migrate"] - before.missed["migrate"]
        for dimension, change in changes("migrate", before, after).items():
            ours, kernels = change.measured["migrations"], change.oracle["migrations"]
            agrees: bool | None = 0 <= kernels - ours <= missed
            reason = f"{change.gone} exited and left out" if change.gone else ""
            if not change.compared:
                agrees = None
            elif change.unsteady and not agrees:
                agrees, reason = None, f"{change.unsteady} moved while they were read"
            rows.append(
                AgreementRow(
                    "migrate", "task_migrations", dimension, ours, kernels, ours - kernels, missed, agrees, reason
                )
            )
        return rows
