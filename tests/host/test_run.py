"""The runtime on the real kernel: every window has a record, nothing is left behind, failures are told in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest

from vcg import audit, config, plan, shm, state
from vcg.errors import RunError
from vcg.linux import loop, mount, numa
from vcg.plan import Plan
from vcg.regions import WindowRecord, windows_of
from vcg.run import Run
from vcg.shm import Cause, Outcome
from vcg.state import StateRoot

pytestmark = pytest.mark.usefixtures("root", "clean_host")

HERE = str(Path(__file__).parent)


class Roots(Protocol):
    state_root: Path
    mount_root: Path


@pytest.fixture
def resolve(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A ready testbed in this test's own roots, some values replaced."""
    monkeypatch.syspath_prepend(HERE)

    def make(name: str = "default", **overrides: str) -> Plan:
        places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
        dotted = {path.replace("__", "."): value for path, value in overrides.items()}
        return plan.make(config.load(name, {**places, **dotted}), numa.observe())

    return make


def ran(run: Run, seconds: float) -> dict[str, list[WindowRecord]]:
    """Start, run, halt; every record of every dimension."""
    run.start()
    time.sleep(seconds)
    run.halt()
    return {name: windows_of(raw) for name, raw in run.drain().items()}


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nine_dimensions_leave_one_record_for_every_window(resolve: Callable[..., Plan]) -> None:
    with Run(resolve()) as run:
        assert len(run.dimension_pids) == 9
        assert sorted(run.loops) == ["d4", "d5", "d6", "d7", "d8", "d9"]
        rows = ran(run, 1.0)
        start_ns, dimensions, statistics = run.start_ns, run.plan.dimensions, run.statistics()
    for d in dimensions:
        mine = rows[d.name]
        assert [row.window for row in mine] == list(range(len(mine)))
        assert len(mine) >= 0.5e9 / d.period_ns
        period = d.period[0] / d.period[1]
        for row in mine:
            assert abs(row.planned_ns - start_ns - d.phase[0] / d.phase[1] - row.window * period) <= 1
            if row.outcome <= Outcome.OVERRUN:
                assert row.planned_ns <= row.wake_ns <= row.entry_ns <= row.finish_ns
                assert int(Fraction(*d.floor) * d.credit_ns) <= row.budget_ns <= Fraction(*d.ceiling) * d.credit_ns
        account = statistics["tokens"][d.name]
        assert account["refused_epoch"] == account["refused_window"] == account["refused_value"] == 0
        settled_ns = sum(row.used_ns for row in mine if row.outcome <= Outcome.OVERRUN)
        assert account["used_ns"] <= settled_ns
    assert run.records_lost == dict.fromkeys(rows, 0)


def test_incommensurate_cadences_run_from_the_lazy_iterator(resolve: Callable[..., Plan]) -> None:
    golden = {"dimensions__d1-d3__harmonic": "1.6180339887", "dimensions__d7-d9__harmonic": "0.6180339887"}
    with Run(resolve("tmpfs", **golden)) as run:
        rows = ran(run, 0.5)
        dimensions, start_ns = run.plan.dimensions, run.start_ns
    for d in dimensions:
        assert [row.window for row in rows[d.name]] == list(range(len(rows[d.name])))
        for row in rows[d.name]:
            exact = d.phase[0] * d.period[1] + row.window * d.period[0] * d.phase[1]
            assert row.planned_ns == start_ns + exact // (d.phase[1] * d.period[1])


def test_a_dimension_that_oversleeps_misses_windows_and_says_so(resolve: Callable[..., Plan]) -> None:
    slow = {"dimensions__d4__workload": "workloads_under_test:oversleeps"}
    with Run(resolve("tmpfs", **slow)) as run:
        rows = ran(run, 1.0)
    mine = rows["d4"]
    assert [row.window for row in mine] == list(range(len(mine)))
    overruns = [row for row in mine if row.outcome == Outcome.OVERRUN]
    missed = [row for row in mine if row.outcome == Outcome.MISSED]
    assert len(overruns) >= len(mine) // 20
    assert len(missed) >= 2 * (len(overruns) - 1)
    assert all(row.entry_ns == 0 and row.planned_ns > 0 for row in missed)
    assert sum(row.cause == Cause.BUSY for row in missed) >= 2 * (len(overruns) - 1)


def test_a_run_can_be_repeated_and_begins_anew(resolve: Callable[..., Plan]) -> None:
    epochs = []
    for _ in range(2):
        with Run(resolve("default")) as run:
            supervisor = run.service_pids["supervisor"]
            archive = Path(f"/proc/{supervisor}/root{run.plan.mount_root}/d7/data/archive")
            assert not archive.exists() or archive.stat().st_size == 0
            rows = ran(run, 0.2)
            assert archive.stat().st_size > 0
            epochs.append({row.epoch for rows_ in rows.values() for row in rows_})
    assert len(epochs[0]) == len(epochs[1]) == 1
    assert epochs[0] != epochs[1]


# ── confinement ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_dimension_is_confined(resolve: Callable[..., Plan]) -> None:
    everywhere = {"dimensions__*__workload": "workloads_under_test:describes"}
    devices = {"dimensions__*__devices": ["/dev/null"]}
    with Run(resolve("default", **everywhere, **devices)) as run:
        supervisor = run.service_pids["supervisor"]
        seen_at = {
            n: Path(f"/proc/{supervisor}/root{run.plan.mount_root}/{n}/data/seen.json") for n in run.dimension_pids
        }
        ran(run, 0.3)
        for d in run.plan.dimensions:
            pid = run.dimension_pids[d.name]
            status = status_of(pid)
            assert status["Name"] == f"vcg:{d.name}"
            assert status["Uid"].split() == status["Gid"].split() == [str(run.uids[d.name])] * 4
            assert status["Groups"] == ""
            assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
            assert status["NoNewPrivs"] == "1"
            assert os.sched_getaffinity(pid) == set(d.cpus)
            assert os.sched_getscheduler(pid) == os.SCHED_FIFO
            assert os.sched_getparam(pid).sched_priority == d.priority
            assert {entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()} == {"0", "1", "2"}
            assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
            mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
            assert {line.split()[4] for line in mounts} == {"/", "/dev/null"}
            root = next(line for line in mounts if line.split()[4] == "/")
            assert {"nodev", "nosuid", "noatime"} <= set(root.split()[5].split(","))
            seen = json.loads(seen_at[d.name].read_text())
            assert set(seen["root"]) - {"lost+found"} == {"data", "dev", "log", "tmp"}
            assert seen["environment"] == {}
            assert seen["attempts"] == {
                "host's /etc": "FileNotFoundError",
                "/proc": "FileNotFoundError",
                "parent of the root": "True",
                "become root": "PermissionError",
                "raise priority": "PermissionError",
                "read null": "None",
                "make a device": "PermissionError",
            }
        groups = {name: Path(f"/proc/{pid}/cgroup").read_text() for name, pid in run.dimension_pids.items()}
    assert all(f"/{name}\n" in text for name, text in groups.items())


def test_a_dimension_can_write_no_shared_page_but_its_own(resolve: Callable[..., Plan]) -> None:
    """Not even after mprotect(2): the kernel's flag ``mw`` (may be made writable) is on its own status page alone."""
    with Run(resolve("tmpfs")) as run:
        for name, pid in run.dimension_pids.items():
            writable: dict[str, bool] = {}
            region = None
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                if match := re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    found = re.search(r"/memfd:vcg-(\S+)", line)
                    region = found[1] if found and match else None
                elif region and line.startswith("VmFlags:"):
                    writable[region] = "mw" in line.split()
            expected = {"control": False, "ticks": False, "tokens": False, f"status-{name}": True}
            assert writable == expected


def test_what_a_dimension_forks_ends_with_the_run(resolve: Callable[..., Plan]) -> None:
    with Run(resolve("tmpfs", dimensions__d2__workload="workloads_under_test:forks_child")) as run:
        ran(run, 0.1)
        main = run.dimension_pids["d2"]
        (child,) = [int(pid) for pid in Path(f"/proc/{main}/task/{main}/children").read_text().split()]
    assert not Path(f"/proc/{child}").exists()


# ── the end of a run ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_workload_that_raises_ends_the_run_with_its_own_words(resolve: Callable[..., Plan]) -> None:
    bad = resolve("default", dimensions__d5__workload="workloads_under_test:raises")
    words = r"d5 exited with 1: .*raised ValueError: window 5 is one too many"
    with pytest.raises(RunError, match=words) as caught, Run(bad) as run:
        run.start()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            run.check()
            time.sleep(0.01)
    assert 'raise ValueError(f"window {window.number} is one too many")' in str(caught.value)


def test_a_workload_that_returns_early_is_an_error(resolve: Callable[..., Plan]) -> None:
    bad = resolve("tmpfs", dimensions__d1__workload="workloads_under_test:returns_early")
    with pytest.raises(RunError, match=r"d1 exited with 1: .*returned before the run was over"), Run(bad) as run:
        run.start()
        time.sleep(0.3)
        run.check()


def test_a_workload_that_never_leaves_its_window_is_named_and_killed(resolve: Callable[..., Plan]) -> None:
    stuck = resolve("tmpfs", dimensions__d9__workload="workloads_under_test:never_leaves")
    with pytest.raises(RunError, match="d9: still inside a window"), Run(stuck) as run:
        ran(run, 0.3)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ("no_such_module:run", "d3: unknown workload 'no_such_module:run'"),
        ("workloads_under_test:no_such_function", "d3: .*workloads_under_test has no function 'no_such_function'"),
    ],
)
def test_an_unknown_workload_is_refused(resolve: Callable[..., Plan], workload: str, message: str) -> None:
    with pytest.raises(RunError, match=message), Run(resolve(dimensions__d3__workload=workload)):
        pass


def test_a_state_root_in_use_is_refused_and_the_other_run_goes_on(resolve: Callable[..., Plan]) -> None:
    with Run(resolve("tmpfs")) as first:
        with (
            pytest.raises(RunError, match=r"state root .* is in use by another run \(pid \d+\)"),
            Run(resolve("tmpfs")),
        ):
            pass
        rows = ran(first, 0.2)
    assert all(rows.values())


def test_a_mount_root_in_use_is_refused_and_the_other_run_goes_on(resolve: Callable[..., Plan], roots: Roots) -> None:
    other = replace(resolve("tmpfs"), state_root=str(roots.state_root.with_name("t")))
    with Run(resolve("tmpfs")) as first:
        with pytest.raises(RunError, match=r"mount root .* is in use by another run"), Run(other):
            pass
        rows = ran(first, 0.2)
    assert all(rows.values())


def test_a_full_disk_is_one_clear_message(resolve: Callable[..., Plan], roots: Roots) -> None:
    mount.mount("tmpfs", roots.state_root, "tmpfs", options="size=100M")
    try:
        with pytest.raises(RunError, match=r"d5\.1\.img: no room for 64 MiB on its file"), Run(resolve("default")):
            pass
        assert not list(roots.state_root.glob("*.img"))
    finally:
        mount.unmount(roots.state_root)


@pytest.mark.parametrize("victim", ["rtd", "orchestrator", "d1", "d8"])
def test_the_death_of_what_the_run_cannot_do_without_is_noticed(resolve: Callable[..., Plan], victim: str) -> None:
    with pytest.raises(RunError, match=f"{victim} was killed by SIGKILL"), Run(resolve("default")) as run:
        run.start()
        os.kill({**run.service_pids, **run.dimension_pids}[victim], signal.SIGKILL)
        time.sleep(0.2)
        run.check()


def test_a_killed_supervisor_leaves_nothing(resolve: Callable[..., Plan], roots: Roots) -> None:
    with pytest.raises(RunError, match="supervisor"), Run(resolve("default")) as run:
        run.start()
        time.sleep(0.1)
        os.kill(run.service_pids["supervisor"], signal.SIGKILL)
        time.sleep(0.1)
        run.check()
    assert loop.backed_by(roots.state_root) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("step", ["journal", "cgroups", "images", "mounts", "services", "dimensions"])
def test_a_supervisor_that_ends_during_the_bring_up_leaves_nothing(
    resolve: Callable[..., Plan], step: str, number: int
) -> None:
    def strike(name: str) -> None:
        if name == step:
            os.kill(run.supervisor_pid, number)

    run = Run(resolve("default"), on_step=strike)
    with pytest.raises(RunError, match="supervisor"), run:
        pass


SCRIPT = """
import sys, time
from vcg.plan import Plan
from vcg.regions import WindowRecord, windows_of
from vcg.run import Run
with Run(Plan.from_json(open(sys.argv[1]).read())) as run:
    run.start()
    print(*run.service_pids.values(), *run.dimension_pids.values(), flush=True)
    time.sleep(60)
"""


def started(the_plan: Plan, roots: Roots) -> tuple[subprocess.Popen[str], list[int]]:
    """A run in another process, already ticking; its pids, the supervisor's first."""
    file = roots.state_root.parent / "plan.json"
    file.write_text(the_plan.to_json())
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": HERE},
        text=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.stdout.close()
    return process, pids


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie (a client that does not wait for its supervisor leaves one)."""
    try:
        return status_of(pid)["State"][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_is_interrupted_or_killed_takes_the_run_with_it(
    resolve: Callable[..., Plan], roots: Roots, number: int
) -> None:
    process, pids = started(resolve("default"), roots)
    process.send_signal(number)
    process.wait()
    wait_for(lambda: not any(map(is_alive, pids)))
    wait_for(lambda: not audit.leftovers(roots.state_root, roots.mount_root))


def test_sigterm_to_the_supervisor_takes_the_run_down_in_order(resolve: Callable[..., Plan], roots: Roots) -> None:
    process, pids = started(resolve("default"), roots)
    os.kill(pids[0], signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, pids)))
    process.kill()
    process.wait()


def test_supervisor_and_client_killed_at_once_are_cleared_by_the_next_start(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    process, pids = started(resolve("default", dimensions__d4__workload="workloads_under_test:forks_child"), roots)
    process.kill()
    os.kill(pids[0], signal.SIGKILL)
    process.wait()
    with Run(resolve("default")) as run:
        rows = ran(run, 0.2)
    assert all(rows.values())


def test_what_a_killed_run_left_is_cleared_although_it_fills_the_disk(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    """There is not even room for the next epoch before the images are gone."""
    small, large = (resolve("default", **{"dimensions__d4-d9__storage__size": size}) for size in ("8M", "16M"))
    mount.mount("tmpfs", roots.state_root, "tmpfs", options="size=64M")
    try:
        process, pids = started(small, roots)
        process.kill()
        os.kill(pids[0], signal.SIGKILL)
        process.wait()
        wait_for(lambda: not any(map(is_alive, pids)))
        with pytest.raises(OSError, match="No space"), (roots.state_root / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(RunError, match="no room for 16 MiB"), Run(large):
            pass
        assert sorted(path.name for path in roots.state_root.iterdir()) == ["ballast", "epoch", "lock"]
        (roots.state_root / "ballast").unlink()
        with Run(small) as run:
            assert run.regions.control[shm.CONTROL.at("epoch")] == 3
    finally:
        mount.unmount(roots.state_root, detach=True)


def test_what_went_wrong_is_not_hidden_by_another_run_that_came_into_the_state_root(
    resolve: Callable[..., Plan], roots: Roots, child_that: Callable[..., Any]
) -> None:
    def occupy() -> None:
        StateRoot(roots.state_root).__enter__()

    with ExitStack() as stack:
        with pytest.raises(ZeroDivisionError) as failure, Run(resolve("tmpfs")) as run:
            os.kill(run.supervisor_pid, signal.SIGKILL)
            os.waitid(os.P_PID, run.supervisor_pid, os.WEXITED | os.WNOWAIT)
            stack.enter_context(child_that(occupy))
            raise ZeroDivisionError
        assert any("not cleared away: state root" in note for note in failure.value.__notes__)
    assert state.clear(roots.state_root) == []


def test_a_start_has_a_new_epoch_before_it_clears_away_what_the_last_one_left(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    image = roots.state_root / "d4.7.img"
    image.mkdir()  # can't be unlinked
    with StateRoot(roots.state_root) as held:
        held.note(held.next_epoch(), [], roots.mount_root, False)
        journal = json.loads(held.journal.read_text())
        held.journal.write_text(json.dumps({**journal, "images": [str(image)]}))
    with pytest.raises(RunError, match=f"an earlier run left what can't be cleared: {image}"), Run(resolve("tmpfs")):
        pass
    assert (roots.state_root / "epoch").read_text() == "2"
    image.rmdir()
    with Run(resolve("tmpfs")) as run:
        assert run.regions.control[shm.CONTROL.at("epoch")] == 3


# ── users ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def elsewhere(roots: Roots) -> dict[str, str]:
    """Roots for another run at the same time."""
    return {root: str(roots.state_root.with_name(root)) for root in ("state_root", "mount_root")}


def test_runs_at_the_same_time_have_no_user_in_common_so_none_signals_anothers_dimensions(
    resolve: Callable[..., Plan], elsewhere: dict[str, str], in_child: Any
) -> None:
    with Run(resolve("tmpfs")) as run, Run(resolve("tmpfs", **elsewhere)) as other:
        seen = [
            {int(uid) for pid in one.dimension_pids.values() for uid in status_of(pid)["Uid"].split()}
            for one in (run, other)
        ]
        assert seen == [set(run.uids.values()), set(other.uids.values())]
        assert len(seen[0] | seen[1]) == 18

        def may_signal() -> list[bool]:
            """Whether a user of the first run may signal its own dimension, and one of the other run."""
            uid = run.uids["d1"]
            os.setresuid(uid, uid, uid)
            return [is_permitted(one.dimension_pids["d1"]) for one in (run, other)]

        assert in_child(may_signal) == [True, False]


def is_permitted(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    return True


def test_the_users_of_a_killed_run_are_the_next_runs_wherever_that_is(
    resolve: Callable[..., Plan], roots: Roots, elsewhere: dict[str, str]
) -> None:
    process, pids = started(resolve("tmpfs"), roots)
    killed = {int(status_of(pid)["Uid"].split()[0]) for pid in pids} - {0}
    process.kill()
    os.kill(pids[0], signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(is_alive, pids)))
    with Run(resolve("tmpfs", **elsewhere)) as run:
        assert set(run.uids.values()) == killed
        assert state.clear(roots.state_root) == []  # takes nothing from whom they belong to now
        assert all(map(is_alive, run.dimension_pids.values()))


# ── subscribers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def subscribe(roots: Roots) -> socket.socket:
    subscriber = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subscriber.settimeout(2)
    subscriber.connect(str(roots.state_root / "rtd.sock"))
    return subscriber


def test_a_subscriber_gets_every_tick_with_its_windows_and_phases(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("tmpfs")) as run, subscribe(roots) as subscriber:
        time.sleep(0.2)
        start_ns = run.start()
        ticks = [json.loads(subscriber.recv(1 << 16)) for _ in range(200)]
    windows: dict[str, list[int]] = {}
    for tick in ticks:
        assert tick["missed"] == 0
        assert start_ns <= tick["planned_ns"] <= tick["actual_ns"]
        for member in tick["due"]:
            windows.setdefault(member["dimension"], []).append(member["window"])
            assert 0 <= member["phase"] < 1
    assert set(windows) == {f"d{n}" for n in range(1, 10)}
    assert all(numbers == list(range(len(numbers))) for numbers in windows.values())


def test_a_slow_subscriber_is_told_what_it_missed(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("tmpfs")) as run, subscribe(roots) as slow:
        time.sleep(0.2)
        run.start()
        time.sleep(1.5)  # it does not read: its socket fills up
        told = [json.loads(slow.recv(1 << 16)) for _ in range(1000)]
    lost = 0
    for before, after in pairwise(told):
        assert after["missed"] <= after["sequence"] - before["sequence"] - 1
        lost += after["missed"]
    assert lost > 0
