"""The probes on a stock kernel with its own headers: they attach, and count what the kernel counts."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from collections.abc import Callable

import probes
from probes import headers
from probes.snapshot import Snapshot
from vcg.linux import memory, numa
from vcg.linux.libc import syscall
from vcg.plan import Plan
from vcg.run import Run

FLIPS = 200
PAGES = 512
SECONDS = 3.0
_SYS_MOVE_PAGES = 279
_MPOL_MF_MOVE = 2


def counted(delta: Snapshot, metric: str, operation: str | None = None) -> int:
    return sum(row.value for row in delta.counters if (row.metric, row.operation) == (metric, operation))


def quiet(session: probes.Session) -> Snapshot:
    """A snapshot with no I/O in flight."""
    deadline = time.monotonic() + 20
    while True:
        snapshot = session.snapshot()
        if not any(reading.busy for reading in snapshot.readings["block"].values()) or time.monotonic() > deadline:
            return snapshot
        time.sleep(0.1)


def test_the_headers_are_those_of_the_running_kernel() -> None:
    found = headers.find()
    assert found.running
    assert found.release == os.uname().release


def test_moves_between_nodes_are_counted_exactly() -> None:
    cpus = [numa.cpus_of_node(node)[0] for node in (0, 1)]
    pid = os.fork()
    if pid == 0:
        while True:
            pass
    try:
        with probes.attach(["migrate"], dimensions=["d1"]) as session:
            os.sched_setaffinity(pid, {cpus[0]})
            time.sleep(0.1)
            session.follow(pid, "d1")
            before = session.snapshot()
            for flip in range(FLIPS):
                os.sched_setaffinity(pid, {cpus[(flip + 1) % 2]})
                time.sleep(0.01)
            after = session.snapshot()
            (row,) = session.agreement(before, after)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    delta = after - before
    assert (row.oracle, row.measured, row.agrees) == (FLIPS, FLIPS, True), row
    assert counted(delta, "task_migrations") == counted(delta, "cross_node_task_migrations") == FLIPS
    moves = {pair: counted(delta, "task_migrations_between_nodes", pair) for pair in ("0>0", "0>1", "1>0", "1>1")}
    assert moves == {"0>0": 0, "0>1": FLIPS // 2, "1>0": FLIPS // 2, "1>1": 0}
    assert delta.lost == {"migrate": 0}


def test_pages_that_a_process_moves_to_the_other_node_are_counted_exactly() -> None:
    go, wait = os.pipe()[::-1]
    pid = os.fork()
    if pid == 0:
        os.close(go)
        memory.bind_to_node(0)  # the kernel's own balancing leaves bound memory alone
        os.read(wait, 1)
        os._exit(0 if allocate_and_move(to_node=1) == {1} else 1)
    os.close(wait)
    try:
        with probes.attach(["migrate"], dimensions=["d1"]) as session:
            session.follow(pid, "d1")
            before = session.snapshot()
            os.close(go)
            _, status = os.waitpid(pid, 0)
            delta = session.snapshot() - before
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert os.waitstatus_to_exitcode(status) == 0
    assert (counted(delta, "pages_migrated"), counted(delta, "pages_not_migrated")) == (PAGES, 0)


def allocate_and_move(to_node: int) -> set[int]:
    """Touch fresh memory and move its pages to a node (move_pages(2)); returns where they are then."""
    fresh = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fresh.madvise(mmap.MADV_NOHUGEPAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(fresh))
    for at in range(0, len(fresh), mmap.PAGESIZE):
        fresh[at] = 1
    pages = (ctypes.c_void_p * PAGES)(*range(first, first + len(fresh), mmap.PAGESIZE))
    nodes, status = (ctypes.c_int * PAGES)(*[to_node] * PAGES), (ctypes.c_int * PAGES)()
    pointers = [ctypes.addressof(array) for array in (pages, nodes, status)]
    syscall(_SYS_MOVE_PAGES, 0, PAGES, *pointers, _MPOL_MF_MOVE, name="move_pages")
    return set(status)


def test_all_probes_agree_with_the_kernel_about_nine_dimensions(resolve: Callable[..., Plan]) -> None:
    plan = resolve("default")
    names = [d.name for d in plan.dimensions]
    with probes.attach(["sched", "block", "migrate"], dimensions=names) as session, Run(plan) as run:
        for name, pid in run.dimension_pids.items():
            session.follow(pid, name)
        for name, (major, minor) in run.loops.items():
            session.watch_device(major, minor, name)
        before = quiet(session)
        run.start()
        time.sleep(SECONDS)
        run.halt()
        after = quiet(session)
        rows, loops = session.agreement(before, after), run.loops
    delta = after - before
    assert delta.lost == dict.fromkeys(("sched", "block", "migrate"), 0)
    assert [row for row in rows if row.agrees is False] == []
    block = {(row.dimension, row.quantity): row for row in rows if row.probe == "block"}
    assert {dimension for dimension, _ in block} == set(loops)
    assert all(row.agrees for row in block.values()), block
    # These call fdatasync; what the others write may still be in the page cache.
    assert all(block[name, "requests_write"].oracle > 0 for name in ("d7", "d8", "d9")), block
    migrations = [row for row in rows if row.probe == "migrate"]
    assert [(row.dimension, row.measured, row.oracle) for row in migrations] == [(name, 0, 0) for name in names]
    switched = {row.dimension: row.measured for row in rows if (row.probe, row.quantity) == ("sched", "waits")}
    assert all(switched[d.name] >= SECONDS * 1e9 / d.period_ns / 2 for d in plan.dimensions), switched
