"""Nothing of one run is visible in the next: files, records, tokens and the epoch are all new."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from vcg import config, plan, shm
from vcg.linux import numa
from vcg.plan import Plan
from vcg.run import Run

pytestmark = pytest.mark.usefixtures("root", "clean_roots")

HERE = str(Path(__file__).parent)
NAMES = ("d1", "d2")


class Roots(Protocol):
    state_root: Path
    mount_root: Path


@pytest.fixture
def resolve(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """One dimension on each kind of storage, both of which write markers."""
    monkeypatch.syspath_prepend(HERE)

    def make(**overrides: Any) -> Plan:
        kinds = {"d1": "ext4", "d2": "tmpfs"}
        common = {"workload": "snapshot_workloads:marks", **overrides}
        testbed = {
            "name": "mine",
            "base_window": "10ms",
            "state_root": str(roots.state_root),
            "mount_root": str(roots.mount_root),
            "dimensions": {name: {**common, "storage": {"kind": kinds[name], "size": "8M"}} for name in NAMES},
        }
        return plan.make(config.from_mapping(testbed), numa.observe())

    return make


class Seen(NamedTuple):
    """What there is of a run: of its files the names and sizes."""

    epoch: int
    files: dict[str, list[str]]
    heads: list[int]
    latest: list[int]
    tokens: int
    counted: int
    message_bytes: int


def inside(run: Run, name: str) -> Path:
    """A dimension's filesystem, from outside."""
    return Path(f"/proc/{run.service_pids['supervisor']}/root{run.plan.mount_root}/{name}")


def look(run: Run) -> Seen:
    regions = run.regions
    tokens_at = range(shm.TOKENS_AT, shm.COUNTERS_AT, shm.TOKEN_WORDS)
    counted = sum(
        value
        for account in regions.accounts().values()
        for field, value in account.items()
        if field in ("minted", "settled", "used_ns", "expired", "lent_ns")
    )
    return Seen(
        epoch=regions.control[shm.CONTROL.at("epoch")],
        files={
            name: sorted(
                f"{path.relative_to(inside(run, name))}" + (f" {path.stat().st_size}" if path.is_file() else "")
                for path in inside(run, name).rglob("*")
            )
            for name in NAMES
        },
        heads=[page[shm.STATUS_HEADER.at("head")] for page in regions.status.values()],
        latest=[regions.ticks[shm.LATEST_AT + index] for index in range(len(NAMES))],
        tokens=sum(regions.tokens[at + shm.TOKEN.at("budget_ns")] != 0 for at in tokens_at),
        counted=counted,
        message_bytes=sum(page[shm.STATUS_HEADER.at("message_bytes")] for page in regions.status.values()),
    )


def has_left_traces(seen: Seen) -> bool:
    return (
        min(seen.heads) > 5 and all("data/markers 0" not in files for files in seen.files.values()) and seen.counted > 0
    )


def test_every_run_begins_as_if_there_had_been_none(resolve: Callable[..., Plan]) -> None:
    seen = []
    for _ in range(3):
        with Run(resolve()) as run:
            seen.append(look(run))
            run.start()
            deadline = time.monotonic() + 20
            while not has_left_traces(look(run)):
                assert time.monotonic() < deadline, "nobody has done anything"
                time.sleep(0.05)
    assert [one.epoch for one in seen] == [1, 2, 3]
    for one in seen:
        assert one._replace(epoch=1) == seen[0]
    (first, *_) = seen
    assert first.heads == [0, 0]
    assert first.latest == [-1, -1]
    assert (first.tokens, first.counted, first.message_bytes) == (0, 0, 0)
    assert first.files["d2"] == ["data", "data/markers 0", "dev", "log", "log/workload.log 0", "tmp"]
    assert set(first.files["d1"]) == {*first.files["d2"], "lost+found"}


def test_the_blocks_of_an_image_are_not_those_that_the_last_run_wrote(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    """Removed files leave their blocks behind; a new image does not show them."""
    secret = b"what the first run wrote" * 1000
    with Run(resolve()) as run:
        (inside(run, "d1") / "data" / "secret").write_bytes(secret)
        (image,) = roots.state_root.glob("d1.*.img")
        first = image.stat().st_ino, image.stat().st_mtime_ns
    assert not image.exists()
    with Run(resolve()) as run:
        (image,) = roots.state_root.glob("d1.*.img")
        assert (image.stat().st_ino, image.stat().st_mtime_ns) != first
        assert secret[:24] not in image.read_bytes()


def test_records_and_tokens_carry_the_epoch_of_their_run(resolve: Callable[..., Plan]) -> None:
    epochs = []
    for _ in range(2):
        with Run(resolve()) as run:
            run.start()
            time.sleep(0.2)
            run.halt()
            epoch = run.regions.control[shm.CONTROL.at("epoch")]
            for records in run.drain().values():
                words = memoryview(records).cast("q").tolist()
                assert {words[at + 1] for at in range(0, len(words), shm.WINDOW_WORDS)} == {epoch}
            tokens = run.regions.tokens
            at_epochs = range(shm.TOKENS_AT + shm.TOKEN.at("epoch"), shm.COUNTERS_AT, shm.TOKEN_WORDS)
            assert {tokens[at] for at in at_epochs} <= {0, epoch}
            epochs.append(epoch)
    assert epochs == [1, 2]


def test_a_report_of_an_earlier_epoch_is_refused_and_counted(resolve: Callable[..., Plan]) -> None:
    """A dimension that writes its records as one of the run before would."""
    with Run(resolve()):
        pass
    with Run(resolve(workload="snapshot_workloads:reports_of_the_past")) as run:
        run.start()
        time.sleep(0.5)
        run.halt()
        for account in run.statistics()["tokens"].values():
            assert account["refused_epoch"] > 5
            assert account["settled"] <= account["minted"]
