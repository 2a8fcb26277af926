"""CPUs and memory nodes from sysfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vcg.linux import numa


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", (0,)), ("0-3,8\n", (0, 1, 2, 3, 8)), ("\n", ()), ("0,2-3,5-6", (0, 2, 3, 5, 6))]
)
def test_kernel_lists_are_parsed(text: str, cpus: tuple[int, ...]) -> None:
    assert numa.parse_cpulist(text) == cpus


def test_cpus_belong_to_the_node_that_lists_them(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    for node, cpulist in [(0, "4000-4001"), (1, ",".join(map(str, mine))), (2, "")]:
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{cpulist}\n")
    (tmp_path / "possible").write_text("0-2\n")
    assert numa.observe(tmp_path).node_of_cpu == dict.fromkeys(mine, 1)
    assert numa.cpus_of_node(2, tmp_path) == ()
    with pytest.raises(FileNotFoundError):
        numa.cpus_of_node(3, tmp_path)


def test_host_without_numa_has_one_node(tmp_path: Path) -> None:
    assert set(numa.observe(tmp_path / "none").node_of_cpu.values()) == {0}


def test_this_host_is_observed_as_the_kernel_reports_it() -> None:
    shape = numa.observe()
    assert shape.cpus == tuple(sorted(os.sched_getaffinity(0)))
    for cpu, node in shape.node_of_cpu.items():
        assert Path(f"/sys/devices/system/cpu/cpu{cpu}/node{node}").exists() or not numa.NODES.exists()


def test_only_usable_cpus_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert numa.observe().cpus == (min(before),)
    finally:
        os.sched_setaffinity(0, before)
