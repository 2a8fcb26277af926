"""The client of one run of ``vcg bench crash``, in a process of its own, so that it can be killed like all others.

``python -m experiments.bench.crash_client PLAN_FD SECONDS KIND`` runs the plan for some time and tells on its
standard output, a JSON object a line, how far it is: ``at`` each step of the run (``run`` once it ticks), and at its
end what became of it (``error``, null if the run went through) and how many descriptors and mappings of the run it
still has. The kind ``probes`` is a probe collector as well, and tells which BPF objects it holds; ``snapshot`` asks
for a snapshot of ``d2`` as soon as the run ticks, and goes on until that is done; ``plain`` does no more.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vcg.attach import Attached
from vcg.errors import VcgError
from vcg.plan import Plan
from vcg.run import Run

CHECK_S = 0.01


def say(**message: Any) -> None:
    """Tell whoever watches us; it may have lost interest."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def held() -> tuple[int, int]:
    """Descriptors of this process, and mappings of shared regions of a run."""
    gc.collect()
    with os.scandir("/proc/self/fd") as entries:
        descriptors = sum(1 for _ in entries) - 1
    return descriptors, Path("/proc/self/maps").read_text().count("/memfd:vcg-")


def go(plan: Plan, seconds: float, kind: str) -> None:
    """One run; raises what ends it early."""
    run = Run(plan, on_step=lambda name: say(at=name))
    with ExitStack() as stack:
        stack.enter_context(run)
        if kind == "probes":
            say(at="attach")
            attach(stack, run)
        run.start()
        say(at="run")
        asker = stack.enter_context(ThreadPoolExecutor(1))
        asked = asker.submit(ask_for_snapshot, Path(plan.state_root)) if kind == "snapshot" else None
        end = time.monotonic() + seconds
        while time.monotonic() < end or (asked and not asked.done()):
            time.sleep(CHECK_S)
            run.drain()
            run.check()
        run.halt()


def ask_for_snapshot(state_root: Path) -> None:
    """Order a snapshot and wait for it. Who takes it may be killed while it is at it: then there is none."""
    with contextlib.suppress(VcgError), Attached(state_root) as run:
        run.snapshot("d2")


def attach(stack: ExitStack, run: Run) -> None:
    """Become a probe collector."""
    import probes
    from vcg.linux import bpf

    session = stack.enter_context(probes.attach(["sched", "block", "migrate"], dimensions=list(run.dimension_pids)))
    for name, pid in run.dimension_pids.items():
        session.follow(pid, name)
    for name, (major, minor) in run.loops.items():
        session.watch_device(major, minor, name)
    programs, maps = bpf.held_by(os.getpid())
    say(programs=sorted(programs), maps=sorted(maps))


def main(arguments: list[str]) -> None:
    plan_fd, seconds, kind = int(arguments[0]), float(arguments[1]), arguments[2]
    plan = Plan.from_json(os.pread(plan_fd, os.fstat(plan_fd).st_size, 0).decode())
    os.close(plan_fd)
    before = held()
    error = None
    try:
        go(plan, seconds, kind)
    except VcgError as caught:
        error = "\n".join([str(caught), *getattr(caught, "__notes__", ())])
        del caught
    descriptors, mappings = held()
    say(error=error, descriptors=descriptors - before[0], mappings=mappings - before[1])


if __name__ == "__main__":
    main(sys.argv[1:])
