"""Locked memory and memory nodes."""

from __future__ import annotations

import errno
import mmap
import re
from pathlib import Path
from typing import Any

import pytest

from vcg.linux import memory

pytestmark = pytest.mark.usefixtures("root")
BYTES = 1 << 20


def locked_bytes() -> int:
    found = re.search(r"^VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def policies() -> set[str]:
    """The policies of this process's mappings (numa_maps(5)): ``default``, ``bind:0`` and so on."""
    return {line.split()[1] for line in Path("/proc/self/numa_maps").read_text().splitlines()}


def test_binding_to_a_node_governs_every_mapping_without_a_policy_of_its_own(in_child: Any) -> None:
    def act() -> set[str]:
        memory.bind_to_node(0)
        return policies()

    assert "default" in policies()
    bound = in_child(act)
    assert "bind:0" in bound
    assert "default" not in bound


def test_a_node_that_does_not_exist_is_named(in_child: Any) -> None:
    with pytest.raises(OSError, match="memory node 99") as caught:
        in_child(lambda: memory.bind_to_node(99))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("future", [True, False])
def test_what_is_mapped_is_locked_and_what_comes_later_if_asked_for(in_child: Any, future: bool) -> None:
    def act() -> tuple[int, int]:
        memory.lock_all(future=future)
        before = locked_bytes()
        later = mmap.mmap(-1, BYTES)
        grown = locked_bytes() - before
        later.close()
        return before, grown

    before, grown = in_child(act)
    assert before > 0
    assert (grown >= BYTES) is future
