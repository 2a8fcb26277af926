"""CPUs and memory nodes, as the kernel tells them in sysfs.

A host whose kernel has no NUMA (no ``/sys/devices/system/node``) has one node, 0, with all CPUs. Only CPUs that this
process may run on count: a cpuset or ``taskset`` around us is obeyed. Source: the kernel's
Documentation/ABI/stable/sysfs-devices-node.
"""

from __future__ import annotations

import os
from pathlib import Path

from vcg.plan import HostShape

NODES = Path("/sys/devices/system/node")


def parse_cpulist(text: str) -> tuple[int, ...]:
    """The numbers of a kernel list such as ``0-3,8``; an empty text is an empty list (a node without CPUs)."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part)
    return tuple(cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1))


def cpus_of_node(node: int, nodes: Path = NODES) -> tuple[int, ...]:
    """CPUs of a memory node, ascending; none for a node of memory only.

    Raises:
        FileNotFoundError: there is no such node.
    """
    return parse_cpulist((nodes / f"node{node}" / "cpulist").read_text())


def observe(nodes: Path = NODES) -> HostShape:
    """The CPUs that this process may use, and the memory node of each."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    numbers = [int(entry.name.removeprefix("node")) for entry in nodes.glob("node[0-9]*")]
    node_of_cpu = {cpu: node for node in numbers for cpu in cpus_of_node(node, nodes)}
    return HostShape(cpus, {cpu: node_of_cpu.get(cpu, 0) for cpu in cpus})
