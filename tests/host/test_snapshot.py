"""Snapshots on the real kernel: what they hold, when they are taken, and that nothing about them harms the run."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from rich.console import Console

from vcg import audit, config, plan, shm, snapshot, state, watch
from vcg.attach import Attached
from vcg.errors import RunError
from vcg.linux import loop, mount, numa
from vcg.plan import Plan
from vcg.run import Run

pytestmark = pytest.mark.usefixtures("root", "clean_roots")

HERE = str(Path(__file__).parent)
VCG = str(Path(sys.executable).with_name("vcg"))
PATIENCE_S = 20
ALL = ["crash", "oom", "watchdog"]


class Roots(Protocol):
    state_root: Path
    mount_root: Path


@pytest.fixture
def resolve(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Two dimensions in this test's own roots, d1 that comes to grief and d2 that is to go on; ``storage`` of both."""
    monkeypatch.syspath_prepend(HERE)

    def make(storage: str = "ext4", snapshots: dict[str, Any] | None = None, **d1: Any) -> Plan:
        common = {"storage": {"kind": storage, "size": "16M"}, "workload": "snapshot_workloads:marks"}
        testbed = {
            "name": "mine",
            "base_window": "10ms",
            "state_root": str(roots.state_root),
            "mount_root": str(roots.mount_root),
            "snapshots": snapshots or {},
            "dimensions": {"d1": {**common, **d1}, "d2": common},
        }
        return plan.make(config.from_mapping(testbed), numa.observe())

    return make


@pytest.fixture(autouse=True)
def nothing_half_done(roots: Roots) -> Iterator[None]:
    yield
    assert [path.name for path in folder(roots).glob("*.part*")] == []


def folder(roots: Roots) -> Path:
    return roots.state_root / snapshot.FOLDER


def vcg(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([VCG, *arguments], capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert "Traceback" not in done.stderr
    return done


def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def check(run: Run) -> None:
    """The run goes on, and what it says is taken in."""
    run.check()


def windows(run: Run) -> int:
    """How many windows of d1 have a record."""
    return run.regions.status["d1"][shm.STATUS_HEADER.at("head")]


def goes_on(run: Run) -> None:
    """Wait until d1 has come through some more windows."""
    before = windows(run)
    until(lambda: check(run) or windows(run) > before + 10)


def fail(run: Run) -> str:
    """Wait for the run to fail; what it says."""
    with pytest.raises(RunError) as failure:
        until(lambda: check(run))
    return str(failure.value)


def only_papers(roots: Roots) -> dict[str, Any]:
    (one,) = snapshot.listed(folder(roots))
    return {**one.papers(), "path": str(one.path)}


def markers(papers: dict[str, Any]) -> list[int]:
    """What the copy holds of the markers."""
    copy = Path(papers["path"], papers["contents"]["file"])
    if copy.suffix == ".img":
        command = ["debugfs", "-R", "cat /data/markers", str(copy)]
    else:
        command = ["tar", "--zstd", "-xOf", str(copy), "data/markers"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(line) for line in text.splitlines()]


def entered(papers: dict[str, Any]) -> list[int]:
    return [window["window"] for window in papers["windows"] if window["outcome"] in ("done", "overrun")]


def is_clean(papers: dict[str, Any]) -> bool:
    """e2fsck has nothing to complain about, not even what it would pass over."""
    copy = str(Path(papers["path"], papers["contents"]["file"]))
    said = subprocess.run(["e2fsck", "-fn", copy], capture_output=True, text=True, check=False)
    return said.returncode == 0 and "wrong" not in said.stdout


# ── what one holds ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("storage", ["ext4", "tmpfs"])
def test_a_crash_leaves_every_marker_that_was_synced_and_all_the_evidence(
    resolve: Callable[..., Plan], roots: Roots, tmp_path: Path, storage: str
) -> None:
    with (
        pytest.raises(RunError, match="d1 was killed by SIGABRT") as failure,
        Run(resolve(storage, snapshot=["crash"], args={"at": 40, "then": "abort"})) as run,
    ):
        pid, start_ns = run.dimension_pids["d1"], run.start()
        until(lambda: check(run))
    papers = only_papers(roots)
    assert f"vcg snapshot --show {papers['path']}" in failure.value.__notes__[0]
    assert markers(papers)[:-1] == entered(papers)
    assert markers(papers)[-1] >= 40  # in which it has died
    assert storage == "tmpfs" or is_clean(papers)
    assert (papers["dimension"], papers["why"], papers["testbed"]) == ("d1", "crash", "mine")
    assert papers["process"] == {
        "pid": pid,
        "generation": 1,
        "code": -signal.SIGABRT,
        "how": "was killed by SIGABRT",
        "said": "",
    }
    assert start_ns == papers["run_start_ns"] < papers["monotonic_ns"] < time.monotonic_ns()
    assert papers["ledger"]["account"]["used_ns"] > 0
    assert papers["ledger"]["tokens"][-1]["epoch"] == papers["epoch"]
    assert papers["plan"] == json.loads(run.plan.to_json())
    assert Path(papers["path"], "workload.log").read_text() == "in its window: abort\n"
    assert "lines" in papers["kernel"]
    assert papers["at_rest"]
    for command in papers["open"]:  # each as it stands
        assert subprocess.run(command, shell=True, capture_output=True, check=False, cwd=tmp_path).returncode == 0
    taken_out = (tmp_path / "d1" / "data" / "markers").read_text()
    assert [int(line) for line in taken_out.splitlines()] == markers(papers)
    assert [(one["dimension"], one["path"]) for one in run.snapshots] == [("d1", papers["path"])]


def test_what_the_filesystem_holds_back_is_in_the_snapshot_and_in_no_plain_copy(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    """The control: without syncfs the same file, at the same moment, is not there."""
    with Run(resolve()) as run, Attached(roots.state_root) as attached:
        run.start()
        mine = Path(f"/proc/{run.dimension_pids['d1']}/root/data/unsynced")
        mine.write_text("written, and synced by nobody")
        plain = roots.state_root.parent / "plain.img"
        plain.write_bytes((roots.state_root / "d1.1.img").read_bytes())
        taken = Path(attached.snapshot("d1")["path"], "d1.img")
        run.halt()
    found = [
        subprocess.run(["debugfs", "-R", "cat /data/unsynced", str(image)], capture_output=True, check=True).stdout
        for image in (plain, taken)
    ]
    assert found == [b"", b"written, and synced by nobody"]


def test_the_image_is_copied_without_its_holes(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()) as run, Attached(roots.state_root) as attached:
        run.start()
        first, second = attached.snapshot("d1"), attached.snapshot("d1")
        run.halt()
    for taken in (first, second):
        image = Path(taken["path"], "d1.img").stat()
        assert image.st_size == 16 << 20
        assert image.st_blocks * 512 < 2 << 20
        assert taken["bytes"] < 2 << 20


def test_nothing_that_a_dimension_plants_leads_the_archive_astray(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("tmpfs", snapshot=["crash"], workload="snapshot_workloads:plants")) as run:
        run.start()
        fail(run)
        until(lambda: snapshot.listed(folder(roots)))
    papers = only_papers(roots)
    unpacked = subprocess.run(["zstd", "-dc", f"{papers['path']}/d1.tar.zst"], capture_output=True, check=True).stdout
    plain = Path(papers["path"], "plain.tar")
    plain.write_bytes(unpacked)
    with tarfile.open(plain) as tar:
        kinds = {entry.name: entry.type for entry in tar}
        assert tar.extractfile("data/second").read() == b"plain" * 1000  # type: ignore[union-attr]
        sparse = tar.getmember("data/sparse")
        assert sparse.size == 1 << 33
        assert tar.getmember("data/outside").linkname == "/etc/passwd"
    plain.unlink()
    assert kinds["data/fifo"] == tarfile.FIFOTYPE
    assert kinds[os.fsdecode(b"data/bad\xff\nname")] == tarfile.REGTYPE
    assert kinds["data/outside"] == kinds["data/inside"] == tarfile.SYMTYPE
    assert {kinds["data/plain"], kinds["data/second"]} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    assert len(unpacked) < 1 << 20
    assert papers["contents"]["omitted"] == 1
    assert papers["contents"]["omitted_first"] == ["data/socket: a socket"]


# ── when one is taken ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exception_of_the_workload_is_a_crash(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve(snapshot=["crash"], args={"at": 5, "then": "raise"})) as run:
        run.start()
        fail(run)
        until(lambda: snapshot.listed(folder(roots)))
    papers = only_papers(roots)
    assert papers["process"]["code"] == 1
    assert "ValueError: the test wants it so" in papers["process"]["said"]
    assert markers(papers)[:-1] == entered(papers)


@pytest.mark.parametrize("wanted", [[], ["oom", "watchdog"]])
def test_what_is_not_asked_for_is_not_taken(resolve: Callable[..., Plan], roots: Roots, wanted: list[str]) -> None:
    with Run(resolve(snapshot=wanted, args={"at": 5, "then": "abort"})) as run:
        run.start()
        assert fail(run) == "d1 was killed by SIGABRT"
    assert snapshot.listed(folder(roots)) == []
    assert run.snapshots == []


@pytest.mark.parametrize(("wanted", "why"), [(ALL, "oom"), (["oom"], "oom"), (["crash"], "crash")])
def test_a_process_that_the_kernel_kills_for_want_of_memory(
    resolve: Callable[..., Plan], roots: Roots, wanted: list[str], why: str
) -> None:
    with Run(resolve(snapshot=wanted, memory="64M", args={"at": 5, "then": "grow"})) as run:
        run.start()
        assert "d1 was killed by SIGKILL" in fail(run)
    papers = only_papers(roots)
    assert papers["why"] == why
    assert papers["process"]["code"] == -signal.SIGKILL
    assert any("Memory cgroup out of memory" in line["text"] for line in papers["kernel"]["lines"])


def test_a_child_that_the_kernel_kills_for_want_of_memory_while_the_run_goes_on(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    with Run(resolve(snapshot=["crash", "oom"], memory="64M", args={"at": 5, "then": "child"})) as run:
        run.start()
        until(lambda: check(run) or run.snapshots)
        time.sleep(0.5)
        run.halt()
    papers = only_papers(roots)
    assert papers["why"] == "oom"
    assert run.dimension_pids["d1"] in [process["pid"] for process in papers["processes"]]


def test_so_many_windows_missed_in_a_row_are_an_occasion_once(resolve: Callable[..., Plan], roots: Roots) -> None:
    hangs = {"at": 20, "then": "hang", "for_s": 1.0}
    with Run(resolve(snapshots={"watchdog": 20}, snapshot=ALL, args=hangs)) as run:
        run.start()
        until(lambda: check(run) or run.snapshots)
        time.sleep(1.5)
        run.halt()
    papers = only_papers(roots)
    assert (papers["why"], papers["detail"]) == ("watchdog", "it missed 20 windows in a row")
    assert markers(papers)[:-1] == entered(papers)
    assert papers["processes"][0]["pid"] == run.dimension_pids["d1"]
    assert not run.restarts


def test_a_dimension_that_keeps_its_windows_is_left_alone(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve(snapshots={"watchdog": 50}, snapshot=ALL, args={"at": 30, "then": "hang", "for_s": 0.1})) as run:
        run.start()
        time.sleep(1)
        run.halt()
    assert snapshot.listed(folder(roots)) == []


@pytest.mark.parametrize("storage", ["ext4", "tmpfs"])
def test_on_demand_the_dimension_is_held_and_goes_on(resolve: Callable[..., Plan], roots: Roots, storage: str) -> None:
    with Run(resolve(storage)) as run:
        run.start()
        time.sleep(0.3)
        done = vcg("snapshot", "d1", "--state-root", str(roots.state_root), "--json")
        assert done.returncode == 0, done.stderr
        (taken,) = json.loads(done.stdout)["snapshots"]
        goes_on(run)
        run.halt()
    papers = only_papers(roots)
    assert (papers["why"], papers["path"]) == ("demand", taken["path"])
    assert set(entered(papers)) <= set(markers(papers))
    assert len(markers(papers)) - len(entered(papers)) <= 1
    assert storage == "tmpfs" or is_clean(papers)
    assert {"path", "bytes", "took_ns", "frozen_for_ns", "dimension", "why"} == run.snapshots[0].keys()


def test_what_else_lives_in_a_dimension_that_died_is_held(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve(snapshot=["crash"], args={"at": 5, "then": "linger"})) as run:
        run.start()
        fail(run)
        until(lambda: snapshot.listed(folder(roots)))
    papers = only_papers(roots)
    assert len(papers["processes"]) == 1
    assert papers["at_rest"]
    assert is_clean(papers)


def test_a_program_that_fails_is_kept_too(resolve: Callable[..., Plan], roots: Roots) -> None:
    script = "echo kept >/data/file; echo said; sleep 0.3; exit 3"
    program = {"gate": "freezer", "exec": ["/bin/sh", "-c", script], "binds": ["/bin", "/usr", "/lib", "/lib64"]}
    with Run(resolve(snapshot=["crash"], workload="idle", **program)) as run:
        run.start()
        assert "d1 exited with 3" in fail(run)
        until(lambda: snapshot.listed(folder(roots)))
    papers = only_papers(roots)
    image = f"{papers['path']}/d1.img"
    said = subprocess.run(["debugfs", "-R", "cat /data/file", image], capture_output=True, text=True, check=True)
    assert said.stdout == "kept\n"
    assert Path(papers["path"], "workload.log").read_text() == "said\n"


def test_a_dimension_is_not_restarted_before_its_snapshot_is_there(resolve: Callable[..., Plan], roots: Roots) -> None:
    crashing = {"restart": {"policy": "on-failure", "limit": 3, "backoff": "1ms"}, "args": {"at": 20, "then": "abort"}}
    with Run(resolve(snapshot=["crash"], **crashing)) as run:
        run.start()
        until(lambda: check(run) or (run.restarts and run.restarts[0]["up_ns"]))
        time.sleep(0.2)
        run.halt()
    papers = only_papers(roots)
    assert papers["generation"] == 1
    assert markers(papers)[:-1] == entered(papers)
    assert papers["monotonic_ns"] + run.snapshots[0]["frozen_for_ns"] < run.restarts[0]["up_ns"]


def test_windows_that_nobody_was_there_for_are_no_occasion(resolve: Callable[..., Plan], roots: Roots) -> None:
    """Of a dimension that is down between one process and the next."""
    crashing = {
        "restart": {"policy": "on-failure", "limit": 3, "backoff": "500ms"},
        "args": {"at": 20, "then": "abort"},
    }
    with Run(resolve(snapshots={"watchdog": 5}, snapshot=["watchdog"], **crashing)) as run:
        run.start()
        until(lambda: check(run) or (run.restarts and run.restarts[0]["up_ns"]))
        goes_on(run)
        time.sleep(0.3)
        run.halt()
    assert run.snapshots == []


def test_one_that_the_end_of_a_run_waits_for_is_part_of_its_result(
    resolve: Callable[..., Plan], roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing = {"restart": {"policy": "on-failure", "limit": 3, "backoff": "1ms"}, "args": {"at": 20, "then": "abort"}}
    stopped: list[int] = []

    class Hindered(Run):
        """Its snapshotter does nothing before the run is on its way down."""

        def start(self) -> int:
            stopped.append(self.service_pids["snapshotter"])
            os.kill(stopped[0], signal.SIGSTOP)
            return super().start()

    def go_on(step: str) -> None:
        if step == "snapshots":
            os.kill(stopped[0], signal.SIGCONT)

    monkeypatch.setattr(watch, "Run", lambda the_plan: Hindered(the_plan, on_step=go_on))
    made = resolve("tmpfs", snapshot=["crash"], **crashing)
    result = watch.follow(made, 1_000_000_000, Console(file=io.StringIO()), quiet=True).result
    (one,) = snapshot.listed(folder(roots))
    assert [taken["path"] for taken in result["snapshots"]] == [str(one.path)]


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_oldest_go_first_and_the_quota_is_kept(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("tmpfs", snapshots={"quota": "4M"})) as run, Attached(roots.state_root) as attached:
        run.start()
        taken = []
        for _ in range(4):
            pid = run.dimension_pids["d1"]
            Path(f"/proc/{pid}/root/data/ballast").write_bytes(os.urandom(1 << 20))
            taken.append(attached.snapshot("d1")["path"])
            assert sum(one.bytes for one in snapshot.listed(folder(roots))) <= 4 << 20
        run.halt()
    kept = [str(one.path) for one in snapshot.listed(folder(roots))]
    assert kept == taken[-len(kept) :]
    assert 1 <= len(kept) < 4


def test_one_that_is_larger_than_the_quota_is_refused_and_costs_no_other(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    with Run(resolve("tmpfs", snapshots={"quota": "4M"})) as run, Attached(roots.state_root) as attached:
        run.start()
        first = attached.snapshot("d1")["path"]
        Path(f"/proc/{run.dimension_pids['d1']}/root/data/ballast").write_bytes(bytes(8 << 20))
        with pytest.raises(
            RunError, match=r"d1: no snapshot \(demand\): it takes .* MiB, more than all of snapshots.quota"
        ):
            attached.snapshot("d1")
        run.halt()
        assert [str(one.path) for one in snapshot.listed(folder(roots))] == [first]


@pytest.fixture
def small_disk(roots: Roots) -> Iterator[Path]:
    """A filesystem with little room, for snapshots alone."""
    place = roots.state_root.parent / "small"
    place.mkdir()
    mount.mount("tmpfs", place, "tmpfs", 0, "size=1M")
    yield place
    mount.unmount(place, detach=True)


@pytest.mark.parametrize("storage", ["ext4", "tmpfs"])
def test_a_full_disk_is_told_and_the_run_goes_on(
    resolve: Callable[..., Plan], roots: Roots, small_disk: Path, storage: str
) -> None:
    made = resolve(
        storage,
        snapshots={"directory": str(small_disk)},
        args={"at": 5, "then": "hang", "for_s": 0.4},
        snapshot=["watchdog"],
    )
    with Run(made) as run:
        with Path(f"/proc/{run.dimension_pids['d1']}/root/data/ballast").open("wb") as ballast:
            ballast.write(os.urandom(4 << 20))
        run.start()
        until(lambda: check(run) or run.snapshots)
        time.sleep(0.5)
        run.halt()
    assert "No space left on device" in run.snapshots[0]["error"]
    assert "d1: no snapshot (watchdog)" in run.snapshots[0]["error"]
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def tight_disk(roots: Roots) -> Iterator[Path]:
    """A filesystem with room for two snapshots of a few MiB, and not for three."""
    place = roots.state_root.parent / "tight"
    place.mkdir()
    mount.mount("tmpfs", place, "tmpfs", 0, "size=12M")
    yield place
    mount.unmount(place, detach=True)


@pytest.mark.parametrize("storage", ["ext4", "tmpfs"])
def test_on_a_full_disk_below_the_quota_the_oldest_make_room(
    resolve: Callable[..., Plan], roots: Roots, tight_disk: Path, storage: str
) -> None:
    made = resolve(storage, snapshots={"directory": str(tight_disk)})
    with Run(made) as run, Attached(roots.state_root) as attached:
        Path(f"/proc/{run.dimension_pids['d1']}/root/data/ballast").write_bytes(os.urandom(4 << 20))
        run.start()
        taken = [attached.snapshot("d1")["path"] for _ in range(4)]
        goes_on(run)
        run.halt()
    assert [str(one.path) for one in snapshot.listed(tight_disk)] == taken[2:]


@pytest.mark.parametrize("storage", ["ext4", "tmpfs"])
def test_one_for_which_the_disk_has_no_room_at_all_costs_no_other(
    resolve: Callable[..., Plan], roots: Roots, tight_disk: Path, storage: str
) -> None:
    made = resolve(storage, snapshots={"directory": str(tight_disk), "quota": "13M"})
    with Run(made) as run, Attached(roots.state_root) as attached:
        ballast = Path(f"/proc/{run.dimension_pids['d1']}/root/data/ballast")
        ballast.write_bytes(os.urandom(4 << 20))
        run.start()
        taken = [attached.snapshot("d1")["path"] for _ in range(2)]
        ballast.write_bytes(os.urandom(9 << 20))
        (tight_disk / "of somebody else").write_bytes(bytes(3 << 20))
        with pytest.raises(RunError, match="No space left on device"):
            attached.snapshot("d1")
        goes_on(run)
        run.halt()
    assert [str(one.path) for one in snapshot.listed(tight_disk)] == taken


# ── death in the middle ──────────────────────────────────────────────────────────────────────────────────────────────


STEPS = ("sync", "freeze", "copy", "thaw", "papers", "seal")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", ["snapshotter", "supervisor"])
def test_who_is_killed_at_any_step_leaves_nothing(
    resolve: Callable[..., Plan], roots: Roots, victim: str, step: str
) -> None:
    """A killed snapshotter thaws nothing itself: the dimension goes on because the supervisor sees to it."""
    killed: list[int] = []
    made = resolve("tmpfs", snapshot=["crash"])

    def kill(name: str) -> None:
        if name == f"snapshot {step}" and not killed:
            killed.append(run.service_pids[victim])
            os.kill(killed[0], signal.SIGKILL)

    run = Run(made, on_step=kill)
    try:
        with run:
            run.start()
            time.sleep(0.1)
            asker = threading.Thread(target=vcg, args=("snapshot", "d1", "--state-root", str(roots.state_root)))
            asker.start()
            until(lambda: check(run) or killed)
            asker.join()
            goes_on(run)
            with Attached(roots.state_root) as attached:
                again = attached.snapshot("d1")
            run.halt()
    except RunError as error:
        assert victim == "supervisor"
        assert "supervisor" in str(error)
    else:
        assert victim == "snapshotter"
        assert Path(again["path"]) in [one.path for one in snapshot.listed(folder(roots))]
    assert state.clear(roots.state_root) == []
    assert all(one.papers()["dimension"] == "d1" for one in snapshot.listed(folder(roots)))
    assert [item for item in audit.cgroups() if f"vcg-{run.supervisor_pid}-" in item.name] == []


def test_a_dimension_is_thawed_when_the_snapshotter_dies_while_it_is_held(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    """The copy takes long here: the snapshotter itself is stopped, then killed."""
    made = resolve("tmpfs", snapshot=["crash"])
    stopped: list[int] = []

    def stop(name: str) -> None:
        if name == "snapshot copy" and not stopped:
            stopped.append(run.service_pids["snapshotter"])
            os.kill(stopped[0], signal.SIGSTOP)

    with Run(made, on_step=stop) as run:
        Path(f"/proc/{run.dimension_pids['d1']}/root/data/ballast").write_bytes(os.urandom(12 << 20))
        run.start()
        time.sleep(1.1)  # so long it has lived, that another takes its place by itself
        asker = threading.Thread(target=vcg, args=("snapshot", "d1", "--state-root", str(roots.state_root)))
        asker.start()
        until(lambda: check(run) or stopped)
        time.sleep(0.1)
        before = windows(run)
        time.sleep(0.3)
        assert windows(run) == before
        os.kill(stopped[0], signal.SIGKILL)
        goes_on(run)
        asker.join()
        check(run)
        assert "before it was done" in run.snapshots[0]["error"]
        with Attached(roots.state_root) as attached:
            until(lambda: not list(folder(roots).glob("*.part*")))  # its successor clears that away
            assert attached.snapshot("d1")["path"]
        run.halt()


# ── afterwards ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_snapshots_outlive_the_run_and_the_next(resolve: Callable[..., Plan], roots: Roots) -> None:
    for _ in range(2):
        with Run(resolve()), Attached(roots.state_root) as attached:
            attached.snapshot("d1")
    assert len(snapshot.listed(folder(roots))) == 2
    assert state.clear(roots.state_root) == []
    assert len(snapshot.listed(folder(roots))) == 2


def test_a_loop_device_that_somebody_has_bound_to_a_snapshot_is_left_to_them(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    with Run(resolve()), Attached(roots.state_root) as attached:
        image = Path(attached.snapshot("d1")["path"], "d1.img")
    bound = loop.attach(image)
    try:
        assert state.clear(roots.state_root) == []
        assert bound.path in loop.backed_by(roots.state_root)
    finally:
        os.close(bound.fd)
    until(lambda: not loop.backed_by(roots.state_root))


def test_the_command_lists_and_shows_them_and_says_what_is_wrong(resolve: Callable[..., Plan], roots: Roots) -> None:
    place = ["--state-root", str(roots.state_root)]
    assert f"no snapshots in {folder(roots)}" in vcg("snapshot", "--list", *place).stdout
    with Run(resolve(snapshot=["crash"], args={"at": 12, "then": "abort"})) as run:
        run.start()
        fail(run)
        until(lambda: snapshot.listed(folder(roots)))
        assert vcg("snapshot", "d7", *place).returncode == 2
    (one,) = snapshot.listed(folder(roots))
    listed = json.loads(vcg("snapshot", "--list", "--json", *place).stdout)
    assert [(row["name"], row["why"], row["detail"]) for row in listed["snapshots"]] == [
        (one.path.name, "crash", "was killed by SIGABRT")
    ]
    assert one.path.name in vcg("snapshot", "--list", *place).stdout
    for name in (one.path.name, str(one.path), str(one.path / "snapshot.json")):
        shown = vcg("snapshot", "--show", name, *place)
        assert shown.returncode == 0, shown.stderr
        assert "was killed by SIGABRT" in shown.stdout
        assert f"e2fsck -fn {one.path}/d1.img" in shown.stdout
    assert json.loads(vcg("snapshot", "--show", one.path.name, "--json", *place).stdout) == one.papers()
    missing = vcg("snapshot", "--show", "yesterday", *place)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "no snapshot: expected a directory with a snapshot.json" in missing.stderr
    assert vcg("snapshot", *place).returncode == vcg("snapshot", "d1", "--list", *place).returncode == 2
    assert f"no run at {roots.state_root}" in vcg("snapshot", "d1", *place).stderr


def test_copying_needs_no_more_descriptors_than_before(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("tmpfs", snapshot=["crash"])) as run, Attached(roots.state_root) as attached:
        attached.snapshot("d1")
        place = Path(f"/proc/{run.service_pids['snapshotter']}/fd")
        before = len(list(place.iterdir()))
        for _ in range(5):
            attached.snapshot("d1")
        assert len(list(place.iterdir())) == before < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
