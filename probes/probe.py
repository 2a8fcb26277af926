"""What the session asks of a probe, and the parts that probes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probes.program import Program, possible_cpus
from probes.snapshot import AgreementRow, CounterRow, HistogramRow, Reading, Snapshot
from vcg.histogram import BUCKETS, SUB_BITS, TOP_BITS, bounds

HISTOGRAM = np.dtype([("sum_ns", "u8"), ("bucket", "u8", BUCKETS)])


class Probe(Protocol):
    """One program and the reading of its maps.

    A dimension is known to a program by its position in the list that the probe was made with.
    """

    program: Program

    def __init__(self, dimensions: Sequence[str]) -> None: ...

    def follow(self, pid: int, dimension: int) -> None:
        """Attribute a process to a dimension; does nothing in a probe that goes by device."""

    def watch_device(self, major: int, minor: int, dimension: int) -> None:
        """Attribute a block device to a dimension; does nothing in a probe that goes by task."""

    def figures(self) -> tuple[list[HistogramRow], list[CounterRow]]:
        """Histograms and counters so far."""

    def readings(self) -> dict[str, Reading]:
        """Every followed task or watched device, beside the kernel's account of it."""

    def lost(self) -> int:
        """Events so far for which there was no room in a map."""

    def reset(self) -> None:
        """Forget whom to observe, and begin all figures at zero."""

    @staticmethod
    def agreement(before: Snapshot, after: Snapshot) -> list[AgreementRow]:
        """The probe's figures of an interval beside the kernel's."""


class Lost:
    """Events that a program could not record because a map was full."""

    def __init__(self, program: Program) -> None:
        self._events = program.array("lost", np.dtype("u8"), 1)

    def count(self) -> int:
        return int(self._events[0])

    def reset(self) -> None:
        self._events[:] = 0


class Histograms:
    """The histograms of one program: kind by kind for each dimension, summed over the CPUs.

    Args:
        program: built from a C file that includes ``histogram.h``.
        dimensions: names.
        kinds: metric and operation of each kind, in C's order.
    """

    def __init__(self, program: Program, dimensions: Sequence[str], kinds: Sequence[tuple[str, str | None]]) -> None:
        self._name = program.name
        self._dimensions = dimensions
        self._kinds = kinds
        flat = program.array("histograms", HISTOGRAM, possible_cpus() * len(dimensions) * len(kinds))
        self._cells: NDArray[Any] = flat.reshape(possible_cpus(), len(dimensions), len(kinds))

    def figures(self) -> tuple[list[HistogramRow], list[CounterRow]]:
        """The filled buckets, and of each histogram the number of its values and their exact sum."""
        cells = self._cells.copy()
        buckets, sums_ns = cells["bucket"].sum(axis=0), cells["sum_ns"].sum(axis=0)
        filled = zip(*(axis.tolist() for axis in np.nonzero(buckets)), strict=True)
        rows = [
            HistogramRow(
                self._name, *self._kind(kind, dimension), *bounds(bucket), int(buckets[dimension, kind, bucket])
            )
            for dimension, kind, bucket in filled
        ]
        counters = []
        for dimension, kind in np.ndindex(sums_ns.shape):
            metric, name, operation = self._kind(kind, dimension)
            values = {"count": buckets[dimension, kind].sum(), "sum_ns": sums_ns[dimension, kind]}
            counters += [
                CounterRow(self._name, f"{metric.removesuffix('_ns')}_{suffix}", name, operation, int(value))
                for suffix, value in values.items()
            ]
        return rows, counters

    def reset(self) -> None:
        self._cells[...] = np.zeros((), dtype=HISTOGRAM)

    def _kind(self, kind: int, dimension: int) -> tuple[str, str, str | None]:
        metric, operation = self._kinds[kind]
        return metric, self._dimensions[dimension], operation


def macros(dimensions: Sequence[str], **more: int) -> Mapping[str, int]:
    """The macros that every program is compiled with, and those of one."""
    common = {"CPUS": possible_cpus(), "DIMENSIONS": len(dimensions)}
    return common | {"BUCKETS": BUCKETS, "SUB_BITS": SUB_BITS, "TOP_BITS": TOP_BITS} | more
