"""The runtime on a stock kernel with cgroup v2 alone and two memory nodes: counts and states, no times."""

from __future__ import annotations

import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from vcg import audit, shm
from vcg.linux import cgroup, numa
from vcg.plan import Plan
from vcg.run import Run
from vcg.shm import Outcome

SECONDS = 3.0
PAGES = 2048
"""What a dimension allocates: more than any other of its mappings has."""
ALLOCATES = {
    "dimensions__*__workload": "workloads_in_guest:allocates",
    "dimensions__*__args": {"bytes": PAGES * mmap.PAGESIZE},
}


class Row(NamedTuple):
    """The part of a window's record that is compared here."""

    window: int
    outcome: int
    planned_ns: int


def rows_of(raw: bytes) -> list[Row]:
    words = memoryview(raw).cast("q")
    at = [shm.WINDOW.at(name) for name in Row._fields]
    return [Row(*(words[start + i] for i in at)) for start in range(0, len(words), shm.WINDOW_WORDS)]


def ran(run: Run, seconds: float = SECONDS) -> dict[str, list[Row]]:
    """Start, run, halt; every record of every dimension."""
    run.start()
    time.sleep(seconds)
    run.check()
    run.halt()
    return {name: rows_of(raw) for name, raw in run.drain().items()}


def assert_one_record_for_every_window(run: Run, rows: dict[str, list[Row]], seconds: float = SECONDS) -> None:
    latest = {d.name: run.ticks[shm.LATEST_AT + d.index] for d in run.plan.dimensions}
    for d in run.plan.dimensions:
        mine = rows[d.name]
        assert [row.window for row in mine] == list(range(latest[d.name] + 1)), d.name
        assert len(mine) >= seconds * 1e9 / d.period_ns / 2, d.name
        for row in mine:
            exact = d.phase[0] * d.period[1] + row.window * d.period[0] * d.phase[1]
            assert row.planned_ns == run.start_ns + exact // (d.phase[1] * d.period[1])
        entered = [row for row in mine if row.outcome in (Outcome.DONE, Outcome.OVERRUN)]
        assert entered, d.name
    assert run.records_lost == dict.fromkeys(rows, 0)
    for name, account in run.statistics()["tokens"].items():
        assert account["minted"] >= len(rows[name]) - 1, name
        assert account["refused_epoch"] == account["refused_window"] == account["refused_value"] == 0, name


def group_of(pid: int | str) -> str:
    """The v2 group of a process; the only hierarchy that there is."""
    (line,) = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert line.startswith("0::")
    return line.removeprefix("0::")


def group_of_run(run: Run) -> Path:
    """The group above the cells of the dimensions; the services have one beside them."""
    (ours,) = {Path(group_of(pid)).parent.parent for pid in run.dimension_pids.values()}
    services = {group_of(pid) for name, pid in run.service_pids.items() if name != "supervisor"}
    assert services == {str(ours / "services")}
    assert ours.name.startswith(audit.CGROUP_PREFIX)
    return ours


def pages_on_nodes(numa_maps_line: str) -> dict[int, int]:
    """Pages of one mapping on each node (numa(7), ``/proc/PID/numa_maps``)."""
    return {int(node): int(pages) for node, pages in re.findall(r" N(\d+)=(\d+)", numa_maps_line)}


def numa_maps(pid: int | str) -> list[str]:
    return Path(f"/proc/{pid}/numa_maps").read_text().splitlines()


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("testbed", "loops"), [("default", 6), ("tmpfs", 0)])
def test_nine_dimensions_leave_one_record_for_every_window(
    resolve: Callable[..., Plan], testbed: str, loops: int
) -> None:
    with Run(resolve(testbed)) as run:
        assert len(run.dimension_pids) == 9
        assert len(run.loops) == loops
        rows = ran(run)
        assert_one_record_for_every_window(run, rows)


# ── control groups ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_dimension_is_in_a_limited_group_of_its_own(resolve: Callable[..., Plan]) -> None:
    with Run(resolve("default")) as run:
        ran(run, 1.0)
        ours = group_of_run(run)
        assert ours.parent == Path(group_of(run.service_pids["supervisor"])) == Path(group_of("self"))
        for d in run.plan.dimensions:
            assert group_of(run.dimension_pids[d.name]) == str(ours / f"{d.name}.cell" / d.name)
            directory = Path(f"/sys/fs/cgroup{ours}", f"{d.name}.cell", d.name)

            def value(file: str, directory: Path = directory) -> str:
                return (directory / file).read_text().strip()

            assert numa.parse_cpulist(value("cpuset.cpus")) == numa.parse_cpulist(value("cpuset.cpus.effective"))
            assert numa.parse_cpulist(value("cpuset.cpus")) == d.cpus
            assert numa.parse_cpulist(value("cpuset.mems")) == (d.node,)
            assert value("memory.max") == str(d.memory_bytes)
            assert value("pids.max") == str(d.pids)
            assert int(value("pids.current")) == 1
            assert os.sched_getaffinity(run.dimension_pids[d.name]) == set(d.cpus)


@contextmanager
def group_without_controllers() -> Iterator[str]:
    """This process in a v2 group that hands no controllers down, as a login of systemd's is."""
    group = Path("/sys/fs/cgroup/no-controllers")
    group.mkdir()
    home = Path("/sys/fs/cgroup" + group_of("self"))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield "/" + group.name
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def test_without_controllers_affinity_confines_the_dimensions(resolve: Callable[..., Plan]) -> None:
    with group_without_controllers() as above:
        assert cgroup.observe().v2 == frozenset()
        with Run(resolve("default")) as run:
            rows = ran(run)
            assert_one_record_for_every_window(run, rows)
            assert group_of_run(run).parent == Path(above)
            for d in run.plan.dimensions:
                pid = run.dimension_pids[d.name]
                assert Path(group_of(pid)).name == d.name
                assert not Path(f"/sys/fs/cgroup{group_of(pid)}", "cpuset.cpus").exists()
                assert os.sched_getaffinity(pid) == set(d.cpus)
                assert {line.split()[1] for line in numa_maps(pid)} == {f"bind:{d.node}"}


@contextmanager
def delegated_group() -> Iterator[Path]:
    """This process in a v2 group as systemd makes it for a service with ``Delegate=``; it hands nothing down yet."""
    home = Path("/sys/fs/cgroup" + group_of("self"))
    group = home / "vcg.service"
    group.mkdir()
    os.setxattr(group, "trusted.delegate", b"1")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield group
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        (group / cgroup.LEAF).rmdir()
        group.rmdir()


def test_in_a_delegated_group_we_step_aside_and_every_controller_serves_the_dimensions(
    resolve: Callable[..., Plan],
) -> None:
    with delegated_group() as group:
        assert (group / "cgroup.subtree_control").read_text().split() == []
        assert cgroup.observe().v2 == set(cgroup.CONTROLLERS)
        for _ in range(2):  # the second time everything is in place already
            with Run(resolve("tmpfs")) as run:
                ran(run, 1.0)
                assert Path(f"/sys/fs/cgroup{group_of_run(run)}").parent == group
                assert group_of("self") == group_of(run.service_pids["supervisor"])
                assert Path(f"/sys/fs/cgroup{group_of('self')}") == group / cgroup.LEAF
                for d in run.plan.dimensions:
                    directory = Path(f"/sys/fs/cgroup{group_of(run.dimension_pids[d.name])}")
                    assert (directory / "memory.max").read_text().strip() == str(d.memory_bytes)
                    assert numa.parse_cpulist((directory / "cpuset.cpus").read_text().strip()) == d.cpus
                    assert (directory.parent / "cpu.weight").read_text() == (directory / "cpu.weight").read_text()
        assert set((group / "cgroup.subtree_control").read_text().split()) == set(cgroup.CONTROLLERS)


# ── memory nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dimensions_are_spread_over_both_nodes_and_their_memory_is_where_their_cpus_are(
    resolve: Callable[..., Plan],
) -> None:
    plan = resolve("tmpfs", **ALLOCATES)
    assert {d.node for d in plan.dimensions} == {0, 1}
    with Run(plan) as run:
        ran(run, 1.0)
        supervisor = run.service_pids["supervisor"]
        for d in plan.dimensions:
            assert all(cpu in numa.cpus_of_node(d.node) for cpu in d.cpus)
            assert_memory_is_on(d.node, run.dimension_pids[d.name])
            file = Path(f"/proc/{supervisor}/root{plan.mount_root}/{d.name}/data/filled")
            assert pages_of_file_on_nodes(file) == {d.node: PAGES}


def test_a_node_that_is_asked_for_is_obeyed(resolve: Callable[..., Plan]) -> None:
    plan = resolve("default", **ALLOCATES, dimensions__d2__node=1, dimensions__d8__node=1, dimensions__d9__node=0)
    nodes = {d.name: d.node for d in plan.dimensions}
    assert (nodes["d2"], nodes["d8"], nodes["d9"]) == (1, 1, 0)
    with Run(plan) as run:
        ran(run, 1.0)
        for name in ("d2", "d8", "d9"):
            assert_memory_is_on(nodes[name], run.dimension_pids[name])
            assert os.sched_getaffinity(run.dimension_pids[name]) <= set(numa.cpus_of_node(nodes[name]))


def assert_memory_is_on(node: int, pid: int) -> None:
    """The policy binds every mapping to the node, and the memory that the workload touched lies there in full."""
    lines = numa_maps(pid)
    assert {line.split()[1] for line in lines} == {f"bind:{node}"}
    touched = [pages_on_nodes(line) for line in lines if f"anon={PAGES} " in line]
    assert touched == [{node: PAGES}]


def pages_of_file_on_nodes(file: Path) -> dict[int, int]:
    """Where the pages of a file on a tmpfs lie, seen by mapping them."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as pages:
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at]
        (line,) = [line for line in numa_maps("self") if f"/{file.name} " in line]
    return pages_on_nodes(line)
