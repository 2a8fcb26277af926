"""A workload whose start takes a lot of CPU time: many windows' credit to import, and pages that are touched late."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from vcg.dimension import Dimension
from vcg.workloads.spin import burn

BORN_NS = time.process_time_ns()
while time.process_time_ns() - BORN_NS < 40_000_000:
    pass


def run(dimension: Dimension) -> None:
    """Use most of each token; the first process dies in window 30."""
    with Path("/data/lives").open("a") as file:
        file.write("x")
    is_last = Path("/data/lives").stat().st_size > 1
    pages = mmap.mmap(-1, 1 << 20)
    for window in dimension.windows():
        if window.number % 64 < 8:
            pages[window.number % 8 << 12] = 1
        burn(window, 0.9)
        if not is_last and window.number >= 30:
            os._exit(1)
