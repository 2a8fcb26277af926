"""Block I/O of a real loop device against ``/sys/block/loopN/stat``."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

import probes
from probes.session import Session
from probes.snapshot import AgreementRow, Snapshot

pytestmark = pytest.mark.usefixtures("root")
BLOCK = 4096


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """An empty loop device of 64 MiB."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    device = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout
    path = Path(device.strip())
    cache = Path(f"/sys/block/{path.name}/queue/write_cache")  # it outlives the binding
    try:
        cache.write_text("write back")
        yield path
    finally:
        cache.write_text("write back")
        subprocess.run(["losetup", "-d", path], check=True)


def watch(session: Session, device: Path) -> None:
    number = device.stat().st_rdev
    session.watch_device(os.major(number), os.minor(number), "d4")


def settled(session: Session) -> Snapshot:
    """A snapshot with no I/O in flight."""
    deadline = time.monotonic() + 10
    while True:
        snapshot = session.snapshot()
        if not any(reading.busy for reading in snapshot.readings["block"].values()) or time.monotonic() > deadline:
            return snapshot
        time.sleep(0.02)


def compared(session: Session, before: Snapshot) -> tuple[Snapshot, dict[str, AgreementRow]]:
    time.sleep(0.1)
    after = settled(session)
    return after - before, {row.quantity: row for row in session.agreement(before, after)}


def in_own_namespace(script: str) -> None:
    """Run a shell script whose mounts end with it."""
    subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", script], check=True)


def test_requests_and_bytes_of_a_filesystem_are_those_of_the_kernel(loop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    with probes.attach(["block"], dimensions=["d4", "d5"]) as session:
        watch(session, loop)
        before = settled(session)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", loop], check=True)
        in_own_namespace(
            f"mount {loop} {folder}; cd {folder}; "
            "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=f$i bs=4k count=25 conv=fsync status=none; done; "
            "dd if=/dev/zero of=g bs=1M count=8 status=none; sync; "
            "dd if=g of=/dev/null bs=64k iflag=direct status=none; rm f1; fstrim .; cd /; umount " + str(folder)
        )
        delta, rows = compared(session, before)
    assert all(row.agrees for row in rows.values()), rows
    assert all(rows[f"requests_{operation}"].oracle > 0 for operation in ("read", "write", "discard", "flush")), rows
    assert rows["bytes_write"].oracle > 8 << 20
    assert delta.lost == {"block": 0}
    assert not any(row.value for row in delta.counters if row.dimension == "d5")
    for metric in ("issue_to_complete_ns", "queue_to_complete_ns"):
        for operation in ("read", "write", "discard", "flush"):
            shown = [row for row in delta.histograms if (row.metric, row.operation) == (metric, operation)]
            assert sum(row.count for row in shown) > 0, (metric, operation)


def test_parallel_flushes_and_reads_of_one_place_are_counted_exactly(loop: Path) -> None:
    def write() -> None:
        fd = os.open(loop, os.O_RDWR)
        for number in range(40):
            os.pwrite(fd, b"x" * BLOCK, number * BLOCK)
            os.fsync(fd)
        os.close(fd)

    def read() -> None:
        fd = os.open(loop, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, BLOCK)
        for _ in range(200):
            os.preadv(fd, [buffer], 0)
        buffer.close()
        os.close(fd)

    with probes.attach(["block"], dimensions=["d4"]) as session:
        watch(session, loop)
        before = settled(session)
        threads = [Thread(target=act) for act in (write, write, read, read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        delta, rows = compared(session, before)
    assert rows["requests_read"].oracle >= 400
    assert rows["requests_flush"].oracle > 0
    assert all(row.agrees for row in rows.values()), rows
    assert delta.lost == {"block": 0}


@pytest.mark.parametrize("cache", ["write back", "write through"])
def test_writes_with_fua_are_counted_once_with_and_without_a_volatile_cache(loop: Path, cache: str) -> None:
    Path(f"/sys/block/{loop.name}/queue/write_cache").write_text(cache)
    with probes.attach(["block"], dimensions=["d4"]) as session:
        watch(session, loop)
        before = settled(session)
        fd = os.open(loop, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        buffer = mmap.mmap(-1, BLOCK)
        for number in range(50):
            os.pwritev(fd, [buffer], number * BLOCK)
        os.close(fd)
        buffer.close()
        _, rows = compared(session, before)
    assert rows["requests_write"].oracle >= 50
    assert rows["bytes_write"].oracle == 50 * BLOCK
    assert all(row.agrees for row in rows.values()), rows


def test_devices_that_cannot_be_watched_are_refused(loop: Path) -> None:
    with probes.attach(["block"], dimensions=["d4"]) as session:
        watch(session, loop)
        with pytest.raises(probes.ProbeError, match="watched already"):
            watch(session, loop)
        with pytest.raises(probes.ProbeError, match=r"block device 7:1000000: expected a whole device"):
            session.watch_device(7, 1_000_000, "d4")
