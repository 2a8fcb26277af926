"""The freezer gate: holds a program that knows nothing of windows to its edges and tokens, from outside.

One process for each frozen dimension (``python -m vcg.gate``). To the rest of the runtime it *is* the dimension: it
waits for the same edges, finds the same tokens and writes the same records, through the same loop
(:meth:`vcg.dimension.Dimension.windows`). Its work in a window is to thaw the control group of the dimension, to look
on until the credit is spent or the time is over, and to freeze it again. What the program forks belongs to the group.

Credit is what the kernel accounts to the group (v2 ``cpu.stat``). The gate runs on the dimension's own CPUs, above its
tasks, so whatever ran there has been switched from, and booked, when the gate looks; of several CPUs it visits each.

In a record ``entry_ns`` is the time at which the thaw was done, ``finish_ns`` that at which the freeze was.

Traps:

- How fast a thawed program spends depends on who else is on its CPU, so the moment at which the credit will be spent
  is only ever bounded, never known. The gate looks again and again, the credit is kept to about a sixteenth, and the
  ledger evens out what was too much or too little. A look costs 20 us of the dimension's CPU. Measured: one look for a
  program that runs as soon as it is thawed, two to four under SCHED_FIFO with others on its CPU, up to fifteen under
  SCHED_OTHER; and one that does nothing is looked at as often as its credit goes into the window.
- A task freezes at the end of its system call, not in the middle: what a long one uses is booked in the next window.
- To freeze takes a lock of the kernel's that anybody may hold, also somebody who waits for the CPU that the program
  has: a real-time program is demoted first (:class:`vcg.linux.cgroup.FifoFreezer`).
- The gate must be back at its futex when the next edge comes, and closes :data:`CLEARANCE_NS` before it. One that comes
  only then leaves its program frozen, and the window is missed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vcg import rtd, service, shm
from vcg.dimension import Dimension
from vcg.errors import RunError
from vcg.linux import clock, prctl
from vcg.linux.cgroup import FifoFreezer, Freezer

PRIORITY = 81
"""Above every dimension, below the supervisor."""
CLEARANCE_NS = 200_000
"""How long before its expiry a token is taken away: for the wake-up, the freeze and the record."""
THAW_NS = 15_000
"""What a thawed program takes at least until it runs again."""
REST_MIN_NS = 100_000
"""Shortest time between two looks."""
_AT_REST_S = 5.0


def is_spent(budget_ns: int, left_ns: int) -> bool:
    """Whether so little credit is left that it is not worth another look."""
    return left_ns <= budget_ns // 16


def rest_ns(budget_ns: int, left_ns: int, cpus: int) -> int:
    """How long a program may go on before the gate looks again.

    Until the earliest moment at which its credit can be spent, with every CPU its own; or what takes an eighth of the
    budget, if that is later.

    Args:
        budget_ns: credit of this window.
        left_ns: what is left of it.
        cpus: how many the program may use.
    """
    return max(REST_MIN_NS, max(left_ns, budget_ns // 8) // cpus)


def hold(dimension: Dimension, group: Freezer, cpus: int, is_gone: Callable[[], bool] = lambda: False) -> bool:
    """Let a program run in its windows; the group is frozen before and after.

    Args:
        is_gone: whether the program has failed, and another is to take its place.

    Returns:
        True: the run has ended; False: the program is gone, in a window that has no record yet.
    """
    now_ns, sleep_until = clock.now_ns, clock.sleeper()
    has_ended = False
    for window in dimension.windows():
        if is_gone():
            return False
        budget_ns, close_ns = window.token.budget_ns, window.token.expires_ns - CLEARANCE_NS
        before_ns = window.used_ns()
        left_ns = budget_ns - before_ns
        if window.entry_ns >= close_ns:
            window.entry_ns = 0
            continue
        if has_ended or is_spent(budget_ns, left_ns):
            continue
        group.thaw()
        window.entry_ns = now_ns()
        now = window.entry_ns + THAW_NS
        while now < close_ns and not is_spent(budget_ns, left_ns):
            sleep_until(min(close_ns, now + rest_ns(budget_ns, left_ns, cpus)))
            left_ns, now = budget_ns - window.used_ns(), now_ns()
        group.freeze()
        has_ended = left_ns == budget_ns - before_ns and not group.is_populated()
    return True


def account(group: Freezer, cpus: Sequence[int]) -> Callable[[], int]:
    """What reads the CPU time of a group, from a process that is pinned to the group's CPUs and above its tasks."""
    if len(cpus) == 1:
        return group.usage_ns
    each = [{cpu} for cpu in cpus]

    def usage_ns() -> int:
        for one in each:
            os.sched_setaffinity(0, one)
        return group.usage_ns()

    return usage_ns


def freeze_now(name: str, group: Freezer) -> None:
    """Freeze a group and wait until all that is in it has come to rest.

    Raises:
        RunError: it does not.
    """
    group.freeze()
    deadline = time.monotonic() + _AT_REST_S
    while not group.is_frozen():
        if time.monotonic() > deadline:
            raise RunError(f"{name}: not frozen {_AT_REST_S:.0f} s after the order: is a process of it stuck in I/O?")
        time.sleep(0.001)


def main(arguments: list[str]) -> None:
    """The process: freeze the dimension that waits before its program, report, hold it until FINISH."""
    plan, control, supervisor, more = service.begin("vcg:gate", arguments)
    ticks_fd, tokens_fd, status_fd = more
    ticks, tokens = shm.attach(ticks_fd), shm.attach(tokens_fd)
    status = shm.attach(status_fd, writable=True)
    for fd in more:
        os.close(fd)
    message, _ = service.receive(supervisor)
    if message is None:
        return
    d = plan.dimensions[message["dimension"]]
    prctl.set_name(f"vcg:gate-{d.name}")
    directory = Path(message["group"])
    group = FifoFreezer(directory, d.priority) if d.policy == "fifo" else Freezer(directory)
    rtd.settle_in(d.cpus, PRIORITY)
    freeze_now(d.name, group)
    service.send(supervisor, {"ready": f"gate of {d.name}"})
    epoch, generation_at = control[shm.CONTROL.at("epoch")], shm.GENERATIONS_AT + d.index
    generation, usage_ns = 1, account(group, d.cpus)

    def has_died(generation: int) -> bool:
        word: int = control[generation_at]
        return word == -generation  # not merely negative: the next one is announced only when we have frozen it

    while not hold(
        Dimension(d, epoch, control, ticks, tokens, status, usage_ns, generation),
        group,
        len(d.cpus),
        partial(has_died, generation),
    ):
        group.thaw()  # the next one has to get itself ready first
        service.send(supervisor, {"parked": d.name})
        message, _ = service.receive(supervisor)
        if message is None:
            return
        freeze_now(d.name, group)
        generation = message["generation"]
        service.send(supervisor, {"ready": f"gate of {d.name}"})


if __name__ == "__main__":
    main(sys.argv[1:])
