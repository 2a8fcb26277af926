"""Programs that know nothing of windows: frozen but for their tokens, confined, and ended with the run."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from vcg import audit, config, gate, plan, service, shm, supervisor
from vcg.attach import Attached
from vcg.errors import RunError
from vcg.linux import cgroup, numa
from vcg.plan import Plan
from vcg.regions import WindowRecord, windows_of
from vcg.run import Run
from vcg.shm import Outcome, State
from vcg.state import StateRoot

pytestmark = pytest.mark.usefixtures("root", "clean_host")

BINDS = ["/usr", "/lib", "/lib64"]
CPU = max(os.sched_getaffinity(0))
PATIENCE_S = 20
SPIN = "while :; do :; done"
SPINNERS = f"setsid sh -c '{SPIN}' & {SPIN}"
NULL = ["/dev/null"]
"""A shell starts nothing in the background without it."""


class Roots(Protocol):
    state_root: Path
    mount_root: Path


Resolve = Callable[..., Plan]


@pytest.fixture
def resolve(roots: Roots) -> Resolve:
    """One dimension ``d1`` that runs a program, or a line of shell, under the freezer gate."""

    def make(program: str | list[str], base_window: str = "20ms", **fields: Any) -> Plan:
        words = ["/usr/bin/sh", "-c", program] if isinstance(program, str) else program
        dimension = {"gate": "freezer", "exec": words, "binds": BINDS, "cpus": [CPU], **fields}
        places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
        document = {"name": "gate", "base_window": base_window, **places, "dimensions": {"d1": dimension}}
        return plan.make(config.from_mapping(document), numa.observe())

    return make


def group_of(run: Run) -> Path:
    directory = cgroup.observe(run.dimension_pids["d1"]).unified
    assert directory is not None
    assert directory.name == "d1"
    return directory


@contextmanager
def watched(run: Run) -> Iterator[cgroup.Freezer]:
    """The switch and the account of the dimension's group."""
    group = cgroup.Freezer(group_of(run))
    yield group
    group.close()


def inside(run: Run) -> Path:
    """The dimension's root as the host sees it."""
    return Path(f"/proc/{run.service_pids['supervisor']}/root{run.plan.mount_root}/d1")


def wait_for(run: Run, condition: Callable[[], object]) -> None:
    """Let the run go on until something is so; whatever happens to the run is raised."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
        run.check()


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def drained(run: Run) -> list[WindowRecord]:
    return windows_of(run.drain()["d1"])


def state_of(run: Run) -> State:
    with Attached(Path(run.plan.state_root)) as attached:
        return State(attached.regions.status["d1"][shm.STATUS_HEADER.at("state")])


def is_executed(run: Run) -> bool:
    """Whether the dimension's process has become its program."""
    return not Path(f"/proc/{run.dimension_pids['d1']}/comm").read_text().startswith("vcg:")


# ── frozen and thawed ────────────────────────────────────────────────────────────────────────────────────────────────


def test_until_the_first_window_the_dimension_is_frozen_and_not_yet_its_program(resolve: Resolve) -> None:
    with Run(resolve(SPIN)) as run, watched(run) as group:
        assert group.is_frozen()
        before_ns = group.usage_ns()
        time.sleep(0.1)
        assert group.usage_ns() == before_ns
        assert not is_executed(run)
        run.start()
        wait_for(run, lambda: is_executed(run))
        wait_for(run, lambda: group.usage_ns() > before_ns)


def test_a_program_that_has_spent_its_credit_gets_no_cpu_until_its_next_window(resolve: Resolve) -> None:
    other = {"harmonic": "1", "cpus": [CPU], "amplitude": 9, "workload": "idle"}
    made = resolve(SPIN, "400ms", ceiling="1")
    document = {**made.testbed, "dimensions": {**made.testbed["dimensions"], "d2": other}}
    rests = 0
    with Run(plan.make(config.from_mapping(document), numa.observe())) as run, watched(run) as group:
        run.start()
        wait_for(run, lambda: is_executed(run))

        def newest() -> int:
            return run.ticks[shm.LATEST_AT]

        while rests < 3:
            last = newest()
            wait_for(run, lambda: newest() > last)  # noqa: B023 (called at once, as below)
            window, resting_ns = newest(), group.usage_ns()
            # At its edge it is still frozen from the window before: only when it has run is it at rest in this one.
            wait_for(run, lambda: group.usage_ns() > resting_ns and group.is_frozen())  # noqa: B023
            before_ns = group.usage_ns()
            time.sleep(0.05)
            after_ns = group.usage_ns()
            if newest() == window and group.is_frozen() and newest() == window:
                assert after_ns == before_ns
                rests += 1


@pytest.mark.parametrize("cpus", [[CPU], sorted(os.sched_getaffinity(0))], ids=["one CPU", "every CPU"])
@pytest.mark.parametrize("scheduling", ["other", "fifo:10"])
def test_what_a_program_uses_is_what_the_kernel_accounts_and_what_it_is_charged_with(
    resolve: Resolve, cpus: list[int], scheduling: str
) -> None:
    made = resolve(SPINNERS, cpus=cpus, scheduling=scheduling, devices=NULL)
    with Run(made) as run, watched(run) as group:
        before_ns = group.usage_ns()
        run.start()
        wait_for(run, lambda: run.ticks[shm.LATEST_AT] >= 40)
        run.halt()
        wait_for(run, group.is_frozen)
        accounted_ns = group.usage_ns() - before_ns
        rows = drained(run)
        account = run.statistics()["tokens"]["d1"]
    entered = [row for row in rows if row.outcome in (Outcome.DONE, Outcome.OVERRUN)]
    used_ns = sum(row.used_ns for row in entered)
    after_the_last_freeze_ns = accounted_ns - used_ns
    longest_ns = max(row.used_ns for row in entered)
    assert used_ns > 0
    assert 0 <= after_the_last_freeze_ns < longest_ns
    assert [row.window for row in rows] == list(range(len(rows)))
    assert all(row.outcome == Outcome.OVERRUN for row in entered if row.used_ns > row.budget_ns)
    settled = entered[: account["settled"]]
    assert account["used_ns"] == sum(row.used_ns for row in settled)
    assert account["overruns"] == sum(row.used_ns > row.budget_ns for row in settled)
    assert account["refused_value"] == account["refused_window"] == account["refused_epoch"] == 0
    # What was used over the budget has been taken back from later windows, but for what came last.
    assert used_ns <= len(rows) * run.plan.dimensions[0].credit_ns + longest_ns


def test_a_credit_below_the_shortest_thaw_is_kept_on_the_whole(resolve: Resolve) -> None:
    other = {"cpus": [CPU], "amplitude": 99, "workload": "idle"}
    made = resolve(SPIN, "5ms", ceiling="1")
    document = {**made.testbed, "dimensions": {**made.testbed["dimensions"], "d2": other}}
    with Run(plan.make(config.from_mapping(document), numa.observe())) as run:
        assert run.plan.dimensions[0].credit_ns < gate.REST_MIN_NS / 2
        run.start()
        wait_for(run, lambda: is_executed(run))
        before = run.statistics()["tokens"]["d1"]
        wait_for(run, lambda: run.statistics()["tokens"]["d1"]["settled"] > before["settled"] + 400)
        after = run.statistics()["tokens"]["d1"]
    used_ns, own_ns = (after[name] - before[name] for name in ("used_ns", "own_ns"))
    assert 0 < used_ns < 1.5 * own_ns


def test_what_a_program_forks_is_frozen_with_it(resolve: Resolve) -> None:
    with Run(resolve(SPINNERS, devices=NULL)) as run, watched(run) as group:
        run.start()
        procs = group_of(run) / "cgroup.procs"
        wait_for(run, lambda: len(procs.read_text().split()) >= 2)
        run.halt()
        wait_for(run, group.is_frozen)
        pids = {int(pid) for pid in procs.read_text().split()}
        assert len(pids) == 2
        assert run.dimension_pids["d1"] in pids
        before = {pid: Path(f"/proc/{pid}/schedstat").read_text() for pid in pids}
        time.sleep(0.1)
        assert {pid: Path(f"/proc/{pid}/schedstat").read_text() for pid in pids} == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_real_time_program_holds_nobody_back_while_it_is_being_frozen(resolve: Resolve) -> None:
    """Frozen it is of the idle class, because it was demoted before; running it has its own again."""
    with Run(resolve(SPINNERS, scheduling="fifo:10", devices=NULL)) as run, watched(run) as group:
        procs = group_of(run) / "cgroup.procs"

        def classes() -> set[int]:
            return {os.sched_getscheduler(int(pid)) & ~os.SCHED_RESET_ON_FORK for pid in procs.read_text().split()}

        assert classes() == {os.SCHED_IDLE}
        run.start()
        wait_for(run, lambda: len(procs.read_text().split()) == 2 and classes() == {os.SCHED_FIFO})
        run.halt()
        wait_for(run, group.is_frozen)
        assert classes() == {os.SCHED_IDLE}


def test_a_program_that_waits_uses_nothing_and_its_windows_are_done(resolve: Resolve) -> None:
    with Run(resolve(["/usr/bin/sleep", "1000"])) as run:
        run.start()
        wait_for(run, lambda: is_executed(run))
        reached = run.ticks[shm.LATEST_AT] + 2
        wait_for(run, lambda: run.ticks[shm.LATEST_AT] >= reached + 10)
        run.halt()
        rows = [row for row in drained(run) if row.window >= reached and row.outcome == Outcome.DONE]
    assert rows
    for row in rows:
        assert row.used_ns <= row.budget_ns
        assert row.planned_ns <= row.wake_ns <= row.entry_ns <= row.finish_ns <= row.expires_ns


def test_the_gate_stands_above_every_dimension_on_its_cpus_and_alone_writes_its_page(resolve: Resolve) -> None:
    with Run(resolve(SPIN)) as run:
        run.start()
        wait_for(run, lambda: is_executed(run))
        pid = run.service_pids["gate-d1"]
        assert Path(f"/proc/{pid}/comm").read_text() == "vcg:gate-d1\n"
        assert os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        assert os.sched_getparam(pid).sched_priority == gate.PRIORITY
        assert config.DIMENSION_PRIORITY_MAX < gate.PRIORITY < supervisor.PRIORITY
        assert os.sched_getaffinity(pid) == {CPU}
        group = cgroup.observe(pid).unified
        assert group is not None
        assert group.name == "services"
        assert "memfd:vcg" not in Path(f"/proc/{run.dimension_pids['d1']}/maps").read_text()


# ── the limit behind the tokens ──────────────────────────────────────────────────────────────────────────────────────


def test_the_cpu_limit_is_the_ceiling_and_follows_the_amplitude_while_the_run_goes_on(resolve: Resolve) -> None:
    other = {"cpus": [CPU], "scheduling": "fifo:10", "workload": "idle", "amplitude": 3}
    made = resolve(SPIN, amplitude=1, ceiling="2")
    document = {**made.testbed, "dimensions": {**made.testbed["dimensions"], "d2": other}}
    with Run(plan.make(config.from_mapping(document), numa.observe())) as run:
        hierarchies = cgroup.observe(run.dimension_pids["d1"])

        def limits() -> tuple[int, int, int]:
            """Weight, period and quota of the group as the kernel has them."""
            if (place := hierarchies.v1.get("cpu")) is not None:
                files = ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us")
                shares, period, quota = (int((place / name).read_text()) for name in files)
                return round(shares / 1024), period, quota
            assert hierarchies.unified is not None
            quota, period = map(int, (hierarchies.unified / "cpu.max").read_text().split())
            return round(int((hierarchies.unified / "cpu.weight").read_text()) / 100), period, quota

        credit_ns = run.plan.dimensions[0].credit_ns
        assert limits() == (1, 100_000, -1)  # what it needs to start is not capped
        run.start()
        assert limits() == (1, 20_000, 2 * credit_ns // 1000)
        for turned, weight in (("d1", 9), ("d2", 9)):
            with Attached(Path(run.plan.state_root)) as attached:
                changes = {change.name: change.credit_ns for change in attached.set_amplitudes({turned: 9})}
            assert limits() == (weight, 20_000, min(20_000, 2 * changes["d1"] // 1000))
        wait_for(run, lambda: is_executed(run))


# ── confinement ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_program_sees_its_binds_read_only_and_nothing_else_of_the_host(resolve: Resolve) -> None:
    look = """
        ls -a / >/data/root; ls /etc /proc /home >/data/others 2>&1
        : >/usr/planted; echo $? >/data/planted; : >/lib/planted || : >/lib64/planted; echo $? >>/data/planted
        touch /mine; echo $? >>/data/planted; touch /tmp/mine /data/mine; echo $? >>/data/planted
        env >/data/environment; id -u >/data/uid; exec sleep 1000
    """
    with Run(resolve(look.replace(": >", "touch "))) as run:
        run.start()
        wait_for(run, lambda: Path(f"/proc/{run.dimension_pids['d1']}/comm").read_text() == "sleep\n")
        pid = run.dimension_pids["d1"]
        data = inside(run) / "data"
        assert set(lines_of(data / "root")) == {".", "..", "data", "dev", "lib", "lib64", "log", "tmp", "usr"}
        assert len(re.findall("No such file", (data / "others").read_text())) == 3
        failed, mine = lines_of(data / "planted")[:-1], lines_of(data / "planted")[-1]
        assert failed == ["1", "1", "1"]
        assert mine == "0"
        assert {line.partition("=")[0] for line in lines_of(data / "environment")} <= {"PWD", "OLDPWD", "_", "SHLVL"}
        assert lines_of(data / "uid") == [str(run.uids["d1"])]
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert {words[4] for words in mounts} == {"/", *BINDS}
        for words in mounts:
            flags = set(words[5].split(","))
            assert {"nodev", "nosuid"} <= flags
            assert ("ro" in flags) == (words[4] != "/")
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Uid"].split() == status["Gid"].split() == [str(run.uids["d1"])] * 4
        ignored = int(status["SigIgn"], 16)
        assert not any(ignored >> number - 1 & 1 for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ))
        assert {entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()} == {"0", "1", "2"}


# ── how programs end ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_program_that_has_done_its_work_leaves_a_finished_dimension_whose_windows_go_on(resolve: Resolve) -> None:
    with Run(resolve("echo done >/data/said")) as run:
        run.start()
        wait_for(run, lambda: state_of(run) == State.FINISHED)
        assert lines_of(inside(run) / "data" / "said") == ["done"]
        reached = run.ticks[shm.LATEST_AT] + 2
        wait_for(run, lambda: run.ticks[shm.LATEST_AT] >= reached + 5)
        run.halt()
        rows = [row for row in drained(run) if row.window >= reached]
        run.check()
    assert len(rows) >= 5
    assert {row.used_ns for row in rows} == {0}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("echo all is well; echo going wrong >&2; exit 3", r"d1 exited with 3: all is well\ngoing wrong$"),
        ("kill -SEGV $$", r"d1 was killed by SIGSEGV$"),
    ],
)
def test_a_program_that_fails_is_reported_with_its_last_words(resolve: Resolve, program: str, words: str) -> None:
    with pytest.raises(RunError, match=words), Run(resolve(program)) as run:
        run.start()
        wait_for(run, lambda: False)


def test_a_program_without_its_loader_is_named_with_the_error(resolve: Resolve) -> None:
    words = r"d1 exited with 1: exec /usr/bin/true: No such file or directory: .* below the binds: /usr$"
    with pytest.raises(RunError, match=words), Run(resolve(["/usr/bin/true"], binds=["/usr"])) as run:
        run.start()
        wait_for(run, lambda: False)


def test_a_dead_gate_is_noticed(resolve: Resolve) -> None:
    with pytest.raises(RunError, match="gate-d1 was killed by SIGKILL"), Run(resolve(SPIN)) as run:
        run.start()
        os.kill(run.service_pids["gate-d1"], signal.SIGKILL)
        wait_for(run, lambda: False)


def test_the_audit_sees_a_program_whatever_its_name(resolve: Resolve) -> None:
    with Run(resolve(["/usr/bin/sleep", "1000"])) as run:
        run.start()
        wait_for(run, lambda: is_executed(run))
        pid = str(run.dimension_pids["d1"])
        assert "sleep" in {item.detail.partition(",")[0] for item in audit.processes() if item.name == pid}


# ── how runs end ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("started", [False, True], ids=["before the start", "after windows"])
def test_a_run_goes_down_at_once_while_its_program_is_frozen(resolve: Resolve, started: bool) -> None:
    with Run(resolve(SPINNERS, devices=NULL)) as run:
        if started:
            run.start()
            wait_for(run, lambda: is_executed(run))
            run.halt()
        with watched(run) as group:
            wait_for(run, group.is_frozen)
        pid = run.dimension_pids["d1"]
    assert not Path(f"/proc/{pid}").exists()


def test_a_killed_supervisor_takes_the_frozen_program_with_it(resolve: Resolve) -> None:
    with pytest.raises(RunError, match="supervisor"), Run(resolve(SPINNERS, devices=NULL)) as run:
        run.start()
        wait_for(run, lambda: is_executed(run))
        run.halt()
        os.kill(run.service_pids["supervisor"], signal.SIGKILL)
        time.sleep(0.1)
        run.check()


def test_without_a_v2_tree_nothing_is_built(
    resolve: Resolve, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "observe", lambda: cgroup.Hierarchies(None, frozenset(), {}))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, StateRoot(roots.state_root) as state:
        before = sorted(roots.state_root.iterdir())
        with pytest.raises(RunError, match="d1: the freezer gate needs a cgroup v2 tree, none is mounted"):
            supervisor.Supervisor(resolve(SPIN), state, service.Outbox(ours)).up()
        assert sorted(roots.state_root.iterdir()) == before
