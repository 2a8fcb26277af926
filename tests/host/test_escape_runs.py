"""Lines 07 to 09 and 11 of what a dimension must not be able to do: one of nine misbehaves, the run has to bear it.

07 and 08 are about what it writes into its own status page, 09 about what it takes of the machine, 11 about a token
that it holds and a process that it leaves behind. The clients of line 10 are in ``test_escape_sockets.py``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from vcg import audit, config, plan, shm
from vcg.errors import RunError
from vcg.linux import cgroup, mount, numa, openat2, prctl, sandbox
from vcg.plan import UID_FIRST, Plan
from vcg.run import Run
from vcg.shm import Outcome
from vcg.workloads import hostile

pytestmark = pytest.mark.usefixtures("root")

HERE = str(Path(__file__).parent)
BAD = "d5"
AFTER = 20
FORGERIES = 5
PATIENCE_S = 60
WATCHED_S = 0.5
UID = UID_FIRST + 70


class Roots(Protocol):
    state_root: Path
    mount_root: Path


@pytest.fixture
def planned(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """The default testbed with one bad dimension, whose fields are given."""
    monkeypatch.syspath_prepend(HERE)

    def make(**fields: Any) -> Plan:
        places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
        overrides = {f"dimensions.{BAD}.{name}": value for name, value in fields.items()}
        return plan.make(config.load("default", {**places, **overrides}), numa.observe())

    return make


@pytest.fixture(autouse=True)
def clean_host(roots: Roots) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while (left := ours(roots)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def ours(roots: Roots) -> list[audit.Leftover]:
    """What is left of this test's roots, and of processes under the uids of this test; other runs may go on."""
    left = audit.leftovers(roots.state_root, roots.mount_root)
    return [item for item in left if item.kind in ("loop", "mount", "socket", "file")]


def wait_for(condition: Callable[[], object], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not after {PATIENCE_S} s"
        time.sleep(0.02)
    return found


def entered(raw: bytes) -> int:
    """How many of the windows of these records were entered."""
    words = memoryview(raw).cast("q")
    outcomes = words[shm.WINDOW.at("outcome") :: shm.WINDOW_WORDS].tolist()
    return sum(outcome <= Outcome.OVERRUN for outcome in outcomes)


def assert_the_others_go_on(run: Run) -> None:
    """Every other dimension enters windows, now, and its account has nothing to complain of."""
    run.drain()
    time.sleep(WATCHED_S)
    fresh = run.drain()
    others = [d for d in run.plan.dimensions if d.name != BAD]
    for d in others:
        assert entered(fresh[d.name]) >= WATCHED_S * 1e9 / d.period_ns / 3, f"{d.name} hardly enters any window"
    accounts = run.statistics()["tokens"]
    refused = {d.name: [accounts[d.name][name] for name in accounts[d.name] if "refused" in name] for d in others}
    assert refused == {d.name: [0, 0, 0] for d in others}


# ── 07, 08: what it writes ───────────────────────────────────────────────────────────────────────────────────────────


def test_forged_claims_are_refused_counted_and_cost_nobody_anything(planned: Callable[..., Plan]) -> None:
    fields = {"workload": "escape_workloads:forges", "args": {"after": AFTER, "forgeries": FORGERIES}}
    with Run(planned(**fields, enforce="none")) as run:
        run.start()
        last_kind = AFTER + 50
        latest_at = shm.LATEST_AT + run.plan.dimensions[4].index
        wait_for(lambda: run.ticks[latest_at] > last_kind, "the last forgery")
        assert_the_others_go_on(run)
        run.check()
        account = run.statistics()["tokens"][BAD]
    assert account["refused_epoch"] == FORGERIES
    assert account["refused_window"] >= 2 * FORGERIES  # and each true record of a window that was claimed before
    assert account["refused_value"] >= 2 * FORGERIES  # and each time that the head went back to where it was
    assert 0 <= account["used_ns"] < 10e9, "no claim was believed: neither to have used less than nothing, nor more"


def test_who_believes_every_claim_is_ruined_by_one(planned: Callable[..., Plan]) -> None:
    """The control: the same records, summed up by somebody who does not look."""
    fields = {"workload": "escape_workloads:forges", "args": {"after": AFTER, "forgeries": FORGERIES}}
    with Run(planned(**fields, enforce="none")) as run:
        run.start()
        believed_ns = 0

        def ruined() -> bool:
            nonlocal believed_ns
            words = memoryview(run.drain()[BAD]).cast("q")
            believed_ns += sum(words[shm.WINDOW.at("used_ns") :: shm.WINDOW_WORDS].tolist())
            return believed_ns < 0

        wait_for(ruined, "the claim to have used less than nothing")


def test_garbage_in_a_status_page_hurts_nobody_who_reads_it(planned: Callable[..., Plan]) -> None:
    fields = {"workload": "escape_workloads:corrupts", "args": {"after": AFTER}}
    with Run(planned(**fields, enforce="none")) as run:
        run.start()
        wait_for(lambda: run.statistics()["tokens"][BAD]["refused_value"], "a head out of range")
        assert_the_others_go_on(run)
        for _ in range(50):  # while the head jumps about
            assert all(len(raw) <= shm.WINDOW_SLOTS * shm.WINDOW_WORDS * shm.WORD for raw in run.drain().values())
            time.sleep(0.005)
        shm.read_message(run.regions.status[BAD])  # whatever length it claims
        run.check()


# ── 09: what it takes ────────────────────────────────────────────────────────────────────────────────────────────────


def group_of(run: Run, controller: str) -> Path:
    """The bad dimension's directory in the hierarchy of a controller."""
    found = cgroup.observe()
    above = found.unified if found.backend(controller) == "v2" else found.v1[controller]
    assert above is not None
    (directory,) = above.glob(f"vcg-{run.supervisor_pid}-*/{BAD}")
    return directory


def filesystem_of(run: Run) -> os.statvfs_result:
    return os.statvfs(f"/proc/{run.supervisor_pid}/root{run.plan.mount_root}/{BAD}")


def open_files(run: Run) -> int:
    return len(list(Path(f"/proc/{run.dimension_pids[BAD]}/fd").iterdir()))


REACHED: dict[str, Callable[[Run], object]] = {
    "fork": lambda run: int((group_of(run, "pids") / "pids.current").read_text()) == 64,
    "disk": lambda run: filesystem_of(run).f_bavail == 0,
    "inodes": lambda run: filesystem_of(run).f_ffree == 0,
    "descriptors": lambda run: open_files(run) == sandbox.LIMITS[resource.RLIMIT_NOFILE],
}


@pytest.mark.parametrize(
    ("kind", "storage"),
    [
        ("fork", "tmpfs"),
        ("disk", "tmpfs"),
        ("disk", "ext4"),
        ("inodes", "tmpfs"),
        ("inodes", "ext4"),
        ("descriptors", "tmpfs"),
    ],
)
def test_an_abuse_ends_at_its_own_limits_and_the_other_eight_go_on(
    kind: str, storage: str, planned: Callable[..., Plan]
) -> None:
    fields = {"workload": "hostile", "args": {"kind": kind, "after": AFTER}, "scheduling": "other", "enforce": "none"}
    with Run(planned(**fields, storage={"kind": storage, "size": "8M"})) as run:
        run.start()
        wait_for(lambda: REACHED[kind](run), f"the limit of {kind}")
        assert_the_others_go_on(run)
        run.check()


@pytest.mark.parametrize("storage", ["tmpfs", "ext4"])
def test_who_takes_too_much_memory_is_killed_alone(storage: str, planned: Callable[..., Plan]) -> None:
    fields = {"workload": "hostile", "args": {"kind": "memory", "after": AFTER}, "enforce": "none", "memory": "48M"}
    with Run(planned(**fields, scheduling="other", storage={"kind": storage, "size": "32M"})) as run:
        run.start()
        pid = run.dimension_pids[BAD]
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of the dimension")
        with pytest.raises(RunError, match=f"{BAD} was killed by SIGKILL"):
            run.check()
        assert_the_others_go_on(run)
        alive = {name for name, pid in run.dimension_pids.items() if Path(f"/proc/{pid}").exists()}
    assert alive == {d.name for d in run.plan.dimensions} - {BAD}


MEMORY, DISK, INODES, PIDS, FILES = 48 << 20, 8 << 20, 500, 20, 64


@pytest.mark.parametrize("generosity", [1, 2])
@pytest.mark.parametrize("kind", ["fork", "memory", "disk", "inodes", "descriptors"])
def test_it_is_that_limit_that_stops_it(kind: str, generosity: int, roots: Roots) -> None:
    """The control: the same abuse in the same place goes beyond the limit as soon as there is twice as much."""
    limit = {"fork": PIDS, "memory": MEMORY, "disk": DISK, "inodes": INODES, "descriptors": FILES}[kind]
    peak = 0
    with abused(kind, generosity, roots.mount_root) as taken:
        deadline = time.monotonic() + PATIENCE_S / 4
        while peak <= limit and time.monotonic() < deadline - (PATIENCE_S / 4 - WATCHED_S if generosity == 1 else 0):
            peak = max(peak, taken())
            time.sleep(0.001)
    assert (peak > limit) is (generosity > 1)
    assert peak > limit / 2


@contextlib.contextmanager
def abused(kind: str, generosity: int, root: Path) -> Iterator[Callable[[], int]]:
    """An abuse in a child with that many times the limits; yields what tells how much it has taken."""
    group = cgroup.Group(cgroup.observe(), f"vcg-test-{os.getpid()}", ("memory", "pids"))
    group.create()
    memory = group.directory("memory")
    assert memory is not None
    many = {one: generosity if one == kind else 8 for one in ("memory", "disk", "inodes", "descriptors")}
    group.limit(memory_bytes=MEMORY * many["memory"], pids=PIDS * (generosity if kind == "fork" else 8))
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            prctl.die_with_parent(parent)
            group.enter()
            mount.enter_private_namespace()
            inodes = INODES * many["inodes"]
            mount.mount("tmpfs", root, "tmpfs", 0, f"size={DISK * many['disk']},nr_inodes={inodes},mode=755")
            (root / "data").mkdir()
            (root / "data").chmod(0o777)
            sandbox.take(sandbox.enclosure(root, ()))
            steps = dict(sandbox.surrendering(UID, parent))
            steps["uid"]()
            prctl.close_from(3)
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES * many["descriptors"],) * 2)
            hostile.ABUSES[kind]()
        finally:
            os._exit(1)

    def taken() -> int:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = os.statvfs(f"/proc/{pid}/root/data")
            return {
                "fork": lambda: len(group.members()),
                "memory": lambda: usage(memory),
                "disk": lambda: (status.f_blocks - status.f_bfree) * status.f_frsize + (1 if status.f_bfree else 0),
                "inodes": lambda: status.f_files - status.f_ffree,
                "descriptors": lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())),
            }[kind]()
        return 0

    try:
        yield taken
    finally:
        deadline_ns = time.monotonic_ns() + 5_000_000_000
        assert cgroup.kill(group.directories, deadline_ns) == set()
        os.waitpid(pid, 0)
        assert cgroup.remove(group.directories, deadline_ns) == []


def usage(memory: Path) -> int:
    file = memory / "memory.current"
    return int((file if file.exists() else memory / "memory.usage_in_bytes").read_text())


# ── 11: what it holds, and what it leaves behind ─────────────────────────────────────────────────────────────────────


def test_who_stops_with_a_token_in_hand_loses_it_and_the_others_go_on(planned: Callable[..., Plan]) -> None:
    with Run(planned(workload="escape_workloads:stops", args={"after": AFTER})) as run:
        run.start()
        before = wait_for(lambda: is_stopped(run.dimension_pids[BAD]) and run.statistics()["tokens"], "its stop")
        account = wait_for(
            lambda: (now := run.statistics()["tokens"][BAD])["expired"] > before[BAD]["expired"] and now, "its expiry"
        )
        assert account["expired_ns"] > before[BAD]["expired_ns"]
        assert_the_others_go_on(run)
        run.check()


def test_who_does_not_stop_keeps_its_tokens(planned: Callable[..., Plan]) -> None:
    """The control: the same windows without the stop let no token expire that was entered."""
    with Run(planned(workload="idle")) as run:
        run.start()
        wait_for(lambda: run.statistics()["tokens"][BAD]["settled"] > 2 * AFTER, "its windows")
        account = run.statistics()["tokens"][BAD]
    assert account["expired"] < AFTER


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_daemon_that_ignores_all_signals_ends_with_the_run(planned: Callable[..., Plan]) -> None:
    with Run(planned(workload="escape_workloads:daemonises")) as run:
        run.start()
        root = os.open(f"/proc/{run.supervisor_pid}/root{run.plan.mount_root}/{BAD}", os.O_PATH | os.O_DIRECTORY)
        try:
            daemon = wait_for(lambda: written(root), "the daemon")
        finally:
            os.close(root)
        stat = Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[1]) == run.supervisor_pid, "an orphan by now"
        run.halt()
    assert not Path(f"/proc/{daemon}").exists()


def written(root: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        return int(openat2.read_file(root, "data/daemon", 100) or 0)
    return 0


def test_a_daemon_outlives_the_death_of_its_parent_where_nobody_sweeps(in_child: Callable[..., Any]) -> None:
    """The control: PDEATHSIG is not inherited, so it ends the dimension and not what that has left behind."""

    def act() -> list[bool]:
        prctl.adopt_orphans()
        told, tell = os.pipe()
        if (dimension := os.fork()) == 0:
            prctl.die_with_parent(os.getppid())
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.write(tell, os.getpid().to_bytes(4, "little"))
                    time.sleep(PATIENCE_S)
                os._exit(0)
            os.wait()
            signal.pause()
        daemon = int.from_bytes(os.read(told, 4), "little")
        os.kill(dimension, signal.SIGKILL)
        os.waitpid(dimension, 0)
        outlived = os.waitpid(daemon, os.WNOHANG) == (0, 0)
        os.kill(daemon, signal.SIGKILL)
        return [outlived, os.waitpid(daemon, 0)[0] == daemon]

    assert in_child(act) == [True, True]
