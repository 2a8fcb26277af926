"""Limits of I/O on a real loop device: reads, direct, synchronous and fsynced writes keep to them.

A limit is a lower bound for a time, so this one may be asserted. What the kernel writes back later on nobody's behalf
is not limited under cgroup v1, see ``vcg.linux.cgroup``.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vcg import config, plan, storage
from vcg.linux import cgroup, mount, numa
from vcg.run import Run

pytestmark = pytest.mark.usefixtures("root")

MIB = 1 << 20
RATE = 2 * MIB
MANY = 3
"""MiB that are read or written at a rate of RATE: at least a second, a burst at the beginning let pass."""


class Disk(NamedTuple):
    root: Path
    device: tuple[int, int]
    group: cgroup.Group


@pytest.fixture
def disk(roots: Any, in_child: Any) -> Iterator[Disk]:
    """An image on a loop device, mounted where everybody sees it, and a group of ours."""
    if cgroup.observe().backend("io") is None:
        pytest.skip("needs an I/O controller")
    image = roots.state_root / "d1.img"
    storage.allocate(image, 32 * MIB)
    storage.make_filesystems([image])
    device = storage.mount_ext4(image, roots.mount_root)
    group = cgroup.Group(cgroup.observe(), f"vcg-test-{os.getpid()}", ("io",))
    group.create()
    yield Disk(roots.mount_root, device, group)
    deadline_ns = time.monotonic_ns() + 5_000_000_000
    assert cgroup.kill(group.directories, deadline_ns) == set()
    assert cgroup.remove(group.directories, deadline_ns) == []
    mount.unmount(roots.mount_root)


def write(path: Path, flags: int, *, sync: bool = False) -> None:
    block = mmap.mmap(-1, MIB)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags)
    for at in range(MANY):
        os.pwrite(fd, block, at * MIB)
    if sync:
        os.fsync(fd)
    os.close(fd)


def read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while os.read(fd, MIB):
        pass
    os.close(fd)


TRANSFERS: dict[str, Callable[[Path], None]] = {
    "direct writes": lambda path: write(path, os.O_DIRECT),
    "synchronous writes": lambda path: write(path, os.O_SYNC),
    "an fsync": lambda path: write(path, 0, sync=True),
    "reads": read,
}


@pytest.mark.parametrize("kind", TRANSFERS)
def test_what_a_task_itself_transfers_keeps_to_the_rate(kind: str, disk: Disk, in_child: Any) -> None:
    write(disk.root / "file", 0, sync=True)

    def act() -> float:
        disk.group.enter()
        began = time.monotonic()
        TRANSFERS[kind](disk.root / "file")
        return time.monotonic() - began

    free_s = in_child(act)
    disk.group.limit_io(disk.device, {"read_bps": RATE, "write_bps": RATE})
    limited_s = in_child(act)
    assert limited_s >= (MANY - 1) * MIB / RATE > 0
    assert free_s < limited_s


def test_operations_are_limited_too(disk: Disk, in_child: Any) -> None:
    disk.group.limit_io(disk.device, {"write_iops": 20})

    def act() -> float:
        disk.group.enter()
        block = mmap.mmap(-1, 4096)
        fd = os.open(disk.root / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        began = time.monotonic()
        for at in range(20):
            os.pwrite(fd, block, at * 4096)
        return time.monotonic() - began

    assert in_child(act) >= 0.5


def test_who_waits_for_throttled_io_can_be_killed_at_once(disk: Disk) -> None:
    """Alone, SIGKILL would wait for the end of the I/O: here four minutes."""
    disk.group.limit_io(disk.device, {"write_bps": 4096})
    pid = os.fork()
    if pid == 0:
        disk.group.enter()
        write(disk.root / "file", os.O_DIRECT)
        os._exit(0)
    waits = 0
    while waits < 20:  # and not for a moment only
        waits = waits + 1 if is_waiting_for_disk(pid) else 0
        time.sleep(0.01)
    os.kill(pid, 9)
    time.sleep(0.3)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert cgroup.kill(disk.group.directories, time.monotonic_ns() + 5_000_000_000) <= {pid}
    assert os.waitpid(pid, 0)[0] == pid


def is_waiting_for_disk(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


def test_a_testbed_s_limits_reach_its_dimension(roots: Any) -> None:
    limits = {"read_bps": "20M", "write_bps": "10M", "write_iops": 500}
    overrides = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root), "dimensions.d4.io": limits}
    observed = cgroup.observe()
    with Run(plan.make(config.load("default", overrides), numa.observe())) as run:
        above = observed.v1["io"] if observed.backend("io") == "v1" else observed.unified
        assert above is not None
        (directory,) = above.glob(f"vcg-{run.supervisor_pid}-*/d4")
        device = "{}:{}".format(*run.loops["d4"])
        files = {file.name: file.read_text().strip() for file in directory.iterdir() if is_io_limit(file.name)}
        assert str(run.dimension_pids["d4"]) in (directory / "cgroup.procs").read_text().split()
    if observed.backend("io") == "v1":
        assert files == {
            "blkio.throttle.read_bps_device": f"{device} {20 * MIB}",
            "blkio.throttle.write_bps_device": f"{device} {10 * MIB}",
            "blkio.throttle.read_iops_device": "",
            "blkio.throttle.write_iops_device": f"{device} 500",
        }
    else:
        assert files == {"io.max": f"{device} rbps={20 * MIB} wbps={10 * MIB} riops=max wiops=500"}


def test_its_limits_are_the_next_process_s_too(roots: Any) -> None:
    """Whoever kills what is left of a dead one lifts them, or else would wait for its throttled I/O."""
    again = {"policy": "on-failure", "limit": 3, "backoff": "5ms"}
    overrides = {"dimensions.d4.io": {"write_bps": "10M"}, "dimensions.d4.restart": again}
    places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
    with Run(plan.make(config.load("default", {**places, **overrides}), numa.observe())) as run:
        observed = cgroup.observe()
        above = observed.v1["io"] if observed.backend("io") == "v1" else observed.unified
        assert above is not None
        (directory,) = [path for path in above.rglob("d4") if f"vcg-{run.supervisor_pid}-" in str(path)]
        before = {file: file.read_text() for file in directory.iterdir() if is_io_limit(file.name)}
        assert any(before.values())
        os.kill(run.dimension_pids["d4"], 9)
        deadline = time.monotonic() + 10
        while not (run.restarts and run.restarts[0]["up_ns"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
            run.check()
        assert {file: file.read_text() for file in before} == before


def is_io_limit(name: str) -> bool:
    return name == "io.max" or (name.startswith("blkio.throttle.") and name.endswith("_device"))
