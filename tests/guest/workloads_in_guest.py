"""Workloads that the tests in the guest put into dimensions."""

from __future__ import annotations

import mmap
from pathlib import Path

from vcg.dimension import Dimension


def allocates(dimension: Dimension) -> None:
    """Touch so many ``bytes`` of fresh memory, write a file of the same size, then idle."""
    size = int(dimension.args["bytes"])
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, mmap.PAGESIZE):
        memory[at] = 1
    Path("/data/filled").write_bytes(memory)
    for _ in dimension.windows():
        pass
