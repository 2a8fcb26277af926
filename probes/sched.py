"""Scheduler latency: how long the tasks of a dimension were runnable but not running.

Measured: from the wakeup of a task (``sched_wakeup``, ``sched_wakeup_new``), or from the ``sched_switch`` that took it
off a CPU while it was still runnable (preempted, or it yielded), to the ``sched_switch`` that puts it on a CPU.
Histogram ``runq_latency_ns``; counters ``runq_latency_sum_ns``, ``runq_latency_count``, and ``exits`` of followed
tasks.

A wakeup of another CPU that is idle is seen when that CPU begins to handle it: the flight of the interrupt is not in.
A task that goes to sleep and is woken before it has left its CPU never waited, and is not counted.

The kernel's own account
------------------------
The oracle is the run delay of ``/proc/PID/schedstat``. The kernel does not take it from a clock but from the run
queue's idea of the time, and ``wakeup_preempt()`` (kernel/sched/core.c) lets the next switch keep the old one
(``rq_clock_skip_update``) if the wakeup preempts what runs, or wakes an idle CPU. So for the kernel a task that
preempts at once has waited for nothing, and the preempted task waits from the wakeup on, not from the switch. Where a
switch takes 10 us, the run delay is 10 us short on one side and 10 us long on the other; on an idle CPU it shows
about 0.1 us for a wakeup that really took 15. ``runq_latency_ns`` holds what really passed; beside it each task's
slot sums the same waits by the kernel's idea of the time, and that is what is compared (``run_delay_ns``).

Whether a wakeup preempts is known from the priorities if one of the two is real-time or idle. Between two tasks of
the fair class it is concluded afterwards: from the switch going to the woken task, at once, while the other is still
runnable.
Where the woken task runs because the other then blocks by itself, that conclusion can't be drawn.

So there are waits for which tracepoints leave open which of two times the kernel took: whatever reads the clock between
a wakeup and its switch, a tick above all, makes the old time a new one, unseen. ``open_ns`` is the sum of these
differences. Where tasks really wait, for each other, next to nothing is open; where each finds an idle CPU, nearly
everything is, and the kernel's figure says little about latency. Hence three verdicts:

* *agrees*: within 2 % and half a microsecond for each wait, because a tracepoint fires some hundred ns after the clock
  was read. Where it takes that half microsecond, because the waits are short, ``reason`` says so.
* *not comparable* (None): further apart, but no further than tracepoints leave open, and they leave open more than that
  tolerance; ``reason`` says how much.
* *disagrees*: anything else.

The number of waits is compared with the kernel's own too (the third field of ``schedstat``). It tells of events that
never reached the programs: missed ones (see program.py), and those that nobody counts, for on some virtual machines the
kernel runs no BPF program while certain tasks are current.

OVERHEAD
--------
Two programs on the hottest path of the kernel: each switch runs one, each wakeup one, of every task on the host. Each
looks up one or two task ids; only those of followed tasks cost more. ``vcg probe`` prints runs, ns per run and the
share of a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from probes import oracles, tasks
from probes.probe import Histograms, Lost, macros
from probes.program import Program
from probes.snapshot import AgreementRow, CounterRow, HistogramRow, Reading, Snapshot, changes
from vcg.quantities import show_duration

TOLERANCE = 0.02
"""Largest relative difference from the kernel's run delay."""
RESOLUTION_NS = 500
"""For each wait, how far apart the reading of the kernel's clock and our tracepoint may be; see above."""
_FIELDS = ("queued_ns", "queued_clock_ns", "queued_open_ns", "latency_ns", "delay_ns", "open_ns", "waits")


class Sched:
    """The probe, attached."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self._dimensions = dimensions
        self.program = Program("sched", macros(dimensions, TASKS=tasks.CAPACITY))
        self._lost = Lost(self.program)
        self._tasks = tasks.Tasks(self.program, dimensions, _FIELDS, oracles.run_delay)
        self._histograms = Histograms(self.program, dimensions, [("runq_latency_ns", None)])

    def follow(self, pid: int, dimension: int) -> None:
        self._tasks.follow(pid, dimension)

    def watch_device(self, major: int, minor: int, dimension: int) -> None:
        pass

    def figures(self) -> tuple[list[HistogramRow], list[CounterRow]]:
        histograms, counters = self._histograms.figures()
        return histograms, counters + self._tasks.exits()

    def readings(self) -> dict[str, Reading]:
        return self._tasks.readings()

    def lost(self) -> int:
        return self._lost.count()

    def reset(self) -> None:
        self._tasks.reset()
        self._histograms.reset()
        self._lost.reset()

    @staticmethod
    def agreement(before: Snapshot, after: Snapshot) -> list[AgreementRow]:
        rows = []
        for dimension, change in changes("sched", before, after).items():
            left_out = f"{change.gone} exited and left out" if change.gone else ""
            waits, kernels_waits = change.measured["waits"], change.oracle["waits"]
            delay_ns, kernels_ns = change.measured["delay_ns"], change.oracle["delay_ns"]
            judged_delay = judge_run_delay(delay_ns, kernels_ns, waits, change.measured["open_ns"])
            tolerance = round(TOLERANCE * kernels_waits) + change.compared
            judged_waits = Verdict(tolerance, abs(waits - kernels_waits) <= tolerance, "")
            for quantity, ours, kernels, judged in (
                ("run_delay_ns", delay_ns, kernels_ns, judged_delay),
                ("waits", waits, kernels_waits, judged_waits),
            ):
                agrees = judged.agrees if change.compared else None
                reason = "; ".join(filter(None, (judged.reason, left_out)))
                rows.append(
                    AgreementRow(
                        "sched", quantity, dimension, ours, kernels, ours - kernels, judged.tolerance, agrees, reason
                    )
                )
        return rows


class Verdict(NamedTuple):
    """The tolerance that was applied, whether it was kept (None: not comparable), and what there is to say to that."""

    tolerance: int
    agrees: bool | None
    reason: str


def judge_run_delay(ours_ns: int, kernels_ns: int, waits: int, open_ns: int) -> Verdict:
    """Whether a run delay and the kernel's are the same; see "The kernel's own account".

    Args:
        ours_ns, kernels_ns: the sums.
        waits: how many waits they are the sums of.
        open_ns: how much of ours the kernel may have taken otherwise, as far as tracepoints tell.
    """
    apart_ns, flat_ns = abs(ours_ns - kernels_ns), round(TOLERANCE * kernels_ns)
    tolerance_ns = flat_ns + RESOLUTION_NS * waits
    left_open = f"left open by tracepoints: {show_duration(open_ns)} of {show_duration(kernels_ns)}"
    if apart_ns <= flat_ns:
        return Verdict(tolerance_ns, True, "")
    if apart_ns <= tolerance_ns:
        return Verdict(
            tolerance_ns, True, f"beyond {TOLERANCE:.0%}, within {RESOLUTION_NS} ns for each of {waits} waits"
        )
    if tolerance_ns < open_ns and apart_ns <= tolerance_ns + open_ns:
        return Verdict(tolerance_ns, None, left_open)
    return Verdict(tolerance_ns, False, f"beyond {TOLERANCE:.0%} and {RESOLUTION_NS} ns for each wait; {left_open}")
