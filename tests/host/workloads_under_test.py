"""Workloads that the tests of the runtime put into dimensions."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from vcg.dimension import Dimension


def raises(dimension: Dimension) -> None:
    """Fail in the fifth window."""
    for window in dimension.windows():
        if window.number >= 5:
            raise ValueError(f"window {window.number} is one too many")


def returns_early(dimension: Dimension) -> None:
    """Leave after the first window."""
    for _ in dimension.windows():
        return


def oversleeps(dimension: Dimension) -> None:
    """Every tenth window takes as long as three."""
    for window in dimension.windows():
        if window.number % 10 == 9:
            time.sleep(3 * (window.token.expires_ns - window.planned_ns) / 1e9)


def never_leaves(dimension: Dimension) -> None:
    """Block for ever inside the third window."""
    for window in dimension.windows():
        while window.number >= 3:
            time.sleep(1)


def describes(dimension: Dimension) -> None:
    """Write what can be seen from inside into the dimension's own filesystem, then idle."""
    attempts = {}
    for name, attempt in (
        ("host's /etc", lambda: list(Path("/etc").iterdir())),
        ("/proc", lambda: list(Path("/proc").iterdir())),
        ("parent of the root", lambda: Path("/..").samefile("/")),
        ("become root", lambda: os.setresuid(0, 0, 0)),
        ("raise priority", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))),
        ("read null", lambda: os.close(os.open("/dev/null", os.O_RDWR))),
        ("make a device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))),
    ):
        try:
            attempts[name] = str(attempt())  # type: ignore[no-untyped-call]
        except OSError as error:
            attempts[name] = type(error).__name__
    seen = {
        "root": sorted(path.name for path in Path("/").iterdir()),
        "environment": dict(os.environ),
        "attempts": attempts,
    }
    Path("/data/seen.json").write_text(json.dumps(seen))
    forks_child(dimension)


def forks_child(dimension: Dimension) -> None:
    """Have a child that outlives everything it can, and idle."""
    if os.fork() == 0:
        os.setsid()
        while True:
            time.sleep(60)
    for _ in dimension.windows():
        pass
