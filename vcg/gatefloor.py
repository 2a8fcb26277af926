"""How short a window can be behind the freezer gate on this host: measured with a real run, and where it is kept.

Each period is tried by a run of its own, with its own roots: a program that does nothing but use its CPU, real-time, so
that nobody else takes from its credit, held by the gate of every run (:func:`vcg.gate.hold`) to half of what a CPU has.
The other half belongs to a dimension that wants nothing, with windows far longer, so that nobody is beside the program.
How floors are searched and kept is as with the RTD's: :mod:`vcg.floor`.

Assumes root. Trap: programs that share a CPU share its time, too, and each of them spends its credit the later.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcg import floor, plan, shm
from vcg.floor import STATE_ROOT, Floor
from vcg.linux import clock, numa
from vcg.plan import FREEZER_WINDOW_MIN_NS, Plan
from vcg.shm import Outcome

FILE = "gate.json"
PERIODS_NS = (FREEZER_WINDOW_MIN_NS, 4_000_000, 3_000_000, 2_000_000, 1_000_000)
"""The windows that are tried, longest first, until one is not sustained."""
SLOW_PERIODS_NS = (10_000_000, 20_000_000, 50_000_000)
"""Tried on a host that does not sustain the first of the others, shortest first, until one is sustained."""
SECONDS = 0.5
"""How long each is tried, or for :data:`MIN_WINDOWS` if that takes longer."""
MIN_WINDOWS = 100
MAX_OFF_SHARE = 1 / 8
"""Part of its credit by which a program may have more or less of the CPU in a window than its token held."""
MAX_LOST_SHARE = 0.01
MAX_CREDIT_ERROR = 0.05

_WARM_UP_WINDOWS = 20
"""In its first windows the dimension becomes its program."""
_IDLE_HARMONIC = "1/100"


@dataclass(frozen=True)
class Measurement:
    """One period as the gate was tried at it.

    Attributes:
        period_ns: the window.
        windows: that passed.
        lost: those of them in which the program was not thawed, or frozen only after the next edge, or had more or
            less of the CPU than its token held, by over an eighth of its credit.
        spent: CPU time that the program used in all of them, by the kernel's account, as a part of its credit.
        lateness_p99_ns: from the edge until it was thawed; infinite if it never was.
    """

    period_ns: int
    windows: int
    lost: int
    spent: float
    lateness_p99_ns: float

    @classmethod
    def of(cls, period_ns: int, credit_ns: int, windows: int, words: Sequence[int]) -> Measurement:
        """Judge the windows by their records; one that has left none is lost.

        Args:
            period_ns: of the windows.
            credit_ns: of each.
            windows: that passed.
            words: of the records (``shm.WINDOW``).
        """
        names = ("outcome", "planned_ns", "entry_ns", "finish_ns", "budget_ns", "used_ns", "expires_ns")
        columns = (words[shm.WINDOW.at(name) :: shm.WINDOW_WORDS] for name in names)
        kept, used_in_all_ns, lateness_ns = 0, 0, []
        for outcome, planned_ns, entry_ns, finish_ns, budget_ns, used_ns, expires_ns in zip(*columns, strict=True):
            if outcome in (Outcome.DONE, Outcome.OVERRUN):
                kept += finish_ns <= expires_ns and abs(used_ns - budget_ns) <= MAX_OFF_SHARE * credit_ns
                used_in_all_ns += used_ns
                lateness_ns.append(entry_ns - planned_ns)
        late_ns = sorted(lateness_ns)[int(0.99 * len(lateness_ns))] if lateness_ns else math.inf
        spent = used_in_all_ns / (windows * credit_ns) if windows else 0.0
        return cls(period_ns, windows, windows - kept, spent, late_ns)

    @property
    def sustained(self) -> bool:
        """Whether the gate holds a program to its credit at this period:

        - at most 1 % of the windows are lost, and
        - the program uses its credit to within 5 %.
        """
        return self.lost <= MAX_LOST_SHARE * self.windows and abs(self.spent - 1) <= MAX_CREDIT_ERROR


def measure() -> Floor[Measurement]:
    """Search on the last CPU that we may use: not that of the RTD, if there are several.

    Raises:
        VcgError: not root, or this host can't run a program behind the gate at all.
    """
    return floor.concluded(floor.search(measure_period, PERIODS_NS, SLOW_PERIODS_NS))


def load(state_root: Path) -> Floor[Measurement] | None:
    """The stored floor of the gate, see :func:`vcg.floor.read`."""
    return floor.read(state_root / FILE, Measurement)


def shortest_window_ns(state_root: Path = STATE_ROOT) -> int:
    """What a testbed may have: :data:`FREEZER_WINDOW_MIN_NS`, or this host's floor if it is known and longer.

    Raises:
        HostError: the stored file is damaged.
    """
    known = load(state_root)
    return max(FREEZER_WINDOW_MIN_NS, known.floor_ns or 0) if known else FREEZER_WINDOW_MIN_NS


def measure_period(period_ns: int) -> Measurement:
    """Try one period: a run is brought up, started, halted and taken down.

    Raises:
        VcgError: not root, or this host can't run it.
    """
    from vcg.run import Run  # not above: what a run may ask for depends on what is known here

    with tempfile.TemporaryDirectory(prefix="vcg-doctor-") as place:
        made = plan_of(period_ns, Path(place))
        with Run(made) as run:
            end_ns = run.start() + _WARM_UP_WINDOWS * period_ns + max(round(SECONDS * 1e9), MIN_WINDOWS * period_ns)
            time.sleep((end_ns - clock.now_ns()) / 1e9)
            run.halt()
            passed = run.ticks[shm.LATEST_AT] + 1
            words = memoryview(run.drain()["d1"]).cast("q")[_WARM_UP_WINDOWS * shm.WINDOW_WORDS :].tolist()
        return Measurement.of(period_ns, made.dimensions[0].credit_ns, max(0, passed - _WARM_UP_WINDOWS), words)


def plan_of(period_ns: int, place: Path) -> Plan:
    """``d1``, whose program spins, and ``d2``, which has the other half of its CPU's credit and lies idle."""
    from vcg import config  # not above: whoever only asks for the floor does without pydantic

    shape = numa.observe()
    common = {"cpus": [shape.cpus[-1]], "storage": {"kind": "tmpfs", "size": "1M"}, "ceiling": "1"}
    spinner = {
        "gate": "freezer",
        "exec": ["/bin/sh", "-c", "while :; do :; done"],
        "binds": [path for path in ("/bin", "/usr", "/lib", "/lib64") if Path(path).exists()],
        "scheduling": "fifo:10",
    }
    testbed = {
        "name": "gatefloor",
        "base_window": f"{period_ns}ns",
        "state_root": str(place / "state"),
        "mount_root": str(place / "mnt"),
        "dimensions": {"d1": {**common, **spinner}, "d2": {**common, "harmonic": _IDLE_HARMONIC}},
    }
    return plan.make(config.from_mapping(testbed), shape, freezer_floor_ns=0)
