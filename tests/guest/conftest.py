"""What the tests in the guest share: a place for runs on a tmpfs, plans for a slow host, and what they need of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vcg import audit, config, plan
from vcg.linux import cgroup, numa
from vcg.plan import Plan

HERE = str(Path(__file__).parent)
SETTLE_S = 20.0
"""The emulated host is slow to detach what nobody uses any more."""


class Roots(NamedTuple):
    """Directories for one run."""

    state_root: Path
    mount_root: Path


@pytest.fixture(autouse=True)
def kind_of_host(root: None) -> None:
    """Two memory nodes, and every controller in the v2 tree."""
    if len(list(numa.NODES.glob("node[0-9]*"))) < 2:
        pytest.skip("needs two memory nodes")
    if not set(cgroup.CONTROLLERS) <= cgroup.observe().v2:
        pytest.skip("needs cgroup v2 controllers")


@pytest.fixture
def roots() -> Iterator[Roots]:
    """A state root and a mount root on the tmpfs of ``/run``; nothing of a run may be left in them, nor elsewhere."""
    made = Roots(Path("/run/vcg-s"), Path("/run/vcg-m"))
    for path in made:
        path.mkdir()
    yield made
    deadline = time.monotonic() + SETTLE_S
    while (left := audit.leftovers(*made)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    for path in made:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


@pytest.fixture
def resolve(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A ready testbed at a base window that the emulated host keeps up with, some values replaced."""
    monkeypatch.syspath_prepend(HERE)

    def make(name: str, **overrides: object) -> Plan:
        places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root), "base_window": "50ms"}
        dotted = {path.replace("__", "."): value for path, value in overrides.items()}
        return plan.make(config.load(name, {**places, **dotted}), numa.observe())

    return make
