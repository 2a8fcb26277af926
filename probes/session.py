"""A session: some probes attached at once, told what belongs to which dimension, and read at chosen moments.

::

    with probes.attach(["sched", "block"], dimensions=["d1", "d4"]) as session:
        session.follow(pid, "d1")
        session.watch_device(7, 3, "d4")
        before = session.snapshot()
        ...
        after = session.snapshot()
        delta = after - before
        rows = session.agreement(before, after)

To attach takes about half a second for each probe, most of it the compiler's; :meth:`Session.reset` lets one session
serve many trials. Run-time statistics of BPF programs are on while a session is open.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

from probes.block import Block
from probes.errors import ProbeError
from probes.migrate import Migrate
from probes.probe import Probe
from probes.program import enable_statistics
from probes.sched import Sched
from probes.snapshot import AgreementRow, Snapshot
from vcg.linux.clock import now_ns

PROBES: dict[str, type[Probe]] = {"sched": Sched, "block": Block, "migrate": Migrate}


def attach(names: Sequence[str], *, dimensions: Sequence[str]) -> Session:
    """Load and attach probes; they observe nobody until told whom.

    Args:
        names: of "sched", "block", "migrate".
        dimensions: names to attribute events to.

    Raises:
        ProbeError: an unknown probe, no or a repeated dimension, not root, or something that bcc needs is missing.
    """
    if unknown := [name for name in names if name not in PROBES]:
        raise ProbeError(f"probe {unknown[0]!r}: expected one of {', '.join(PROBES)}")
    if not dimensions or len(set(dimensions)) != len(dimensions):
        raise ProbeError(f"dimensions {list(dimensions)}: expected at least one, each once")
    return Session(names, dimensions)


class Session:
    """Attached probes. Made by :func:`attach`; a context manager that detaches at its end."""

    def __init__(self, names: Sequence[str], dimensions: Sequence[str]) -> None:
        self.dimensions = tuple(dimensions)
        self._probes: dict[str, Probe] = {}
        self._statistics = -1
        try:
            for name in dict.fromkeys(names):
                self._probes[name] = PROBES[name](self.dimensions)
            self._statistics = enable_statistics()
        except BaseException:
            self.close()
            raise

    def follow(self, pid: int, dimension: str) -> None:
        """Attribute a process, all its threads, and everything they fork from now on, to a dimension.

        Raises:
            ProbeError: no such process or dimension, no room, or it is followed for another dimension already.
        """
        number = self._number(dimension)
        for probe in self._probes.values():
            probe.follow(pid, number)

    def watch_device(self, major: int, minor: int, dimension: str) -> None:
        """Attribute the I/O of a whole block device to a dimension.

        Watch it while it is quiet: requests in flight at this moment are counted, but have no latency.

        Raises:
            ProbeError: no such device or dimension, or it is watched already.
        """
        number = self._number(dimension)
        for probe in self._probes.values():
            probe.watch_device(major, minor, number)

    def snapshot(self) -> Snapshot:
        """Read all figures and, at the same moment, the kernel's own for what is followed and watched."""
        probes = self._probes.items()
        time_ns = now_ns()
        figures = [probe.figures() for _, probe in probes]
        return Snapshot(
            time_ns=time_ns,
            duration_ns=0,
            readings={name: probe.readings() for name, probe in probes},
            histograms=tuple(row for histograms, _ in figures for row in histograms),
            counters=tuple(row for _, counters in figures for row in counters),
            cost=tuple(row for _, probe in probes for row in probe.program.cost()),
            lost={name: probe.lost() for name, probe in probes},
            missed={name: probe.program.missed() for name, probe in probes},
        )

    def agreement(self, before: Snapshot, after: Snapshot) -> list[AgreementRow]:
        """The figures of an interval beside those that the kernel keeps for its own purposes."""
        return [row for probe in self._probes.values() for row in probe.agreement(before, after)]

    def reset(self) -> None:
        """Follow nobody, watch nothing, and begin all figures at zero; earlier snapshots lose their meaning."""
        for probe in self._probes.values():
            probe.reset()

    @property
    def program_ids(self) -> list[int]:
        """The kernel's ids of the BPF programs that are loaded."""
        return [number for probe in self._probes.values() for number in probe.program.ids]

    def close(self) -> None:
        """Detach and unload everything."""
        for probe in self._probes.values():
            probe.program.close()
        self._probes.clear()
        if self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _number(self, dimension: str) -> int:
        if dimension not in self.dimensions:
            raise ProbeError(f"dimension {dimension!r}: expected one of {', '.join(self.dimensions)}")
        return self.dimensions.index(dimension)
