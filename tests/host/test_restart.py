"""Processes of a run that die: dimensions that another process follows, and services without which it goes on, or not.

Never asserted are times; that each window has exactly one record always is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vcg import config, plan, shm
from vcg.attach import Attached
from vcg.errors import RunError
from vcg.linux import cgroup, mount, numa
from vcg.plan import Plan
from vcg.regions import WindowRecord, windows_of
from vcg.run import Run
from vcg.shm import Cause, Outcome, State
from vcg.warden import Standing

pytestmark = pytest.mark.usefixtures("root", "clean_roots")

HERE = str(Path(__file__).parent)
VCG = str(Path(sys.executable).with_name("vcg"))
PATIENCE_S = 20.0
AGAIN = {"policy": "on-failure", "limit": 3, "backoff": "5ms"}
LIVING = {"workload": "restart_workloads:lives", "restart": AGAIN}
HONEST = {"workload": "spin", "args": {"share": 0.2}}
SHELL = {"gate": "freezer", "binds": ["/usr", "/lib", "/lib64"], "devices": ["/dev/null"], "restart": AGAIN}
SPIN = "while :; do :; done"
Testbed = Callable[..., Plan]


class Story:
    """A run, and every record that its dimensions have left so far."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.raw = {d.name: b"" for d in run.plan.dimensions}

    def drain(self) -> None:
        for name, fresh in self.run.drain().items():
            self.raw[name] += fresh

    def rows(self, name: str) -> list[WindowRecord]:
        return windows_of(self.raw[name])

    def until(self, condition: Callable[[], object]) -> None:
        """Let it go on until something holds.

        Raises:
            RunError: it has ended.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.002)
            self.drain()
            self.run.check()

    def latest(self, name: str) -> int:
        """The newest window of a dimension that has begun."""
        index = next(d.index for d in self.run.plan.dimensions if d.name == name)
        return self.run.ticks[shm.LATEST_AT + index]

    def goes_on(self, name: str, windows: int = 10) -> None:
        """Until a dimension has entered so many more windows."""
        before = self.entered(name)
        self.until(lambda: self.entered(name) >= before + windows)

    def entered(self, name: str) -> int:
        return sum(row.outcome in (Outcome.DONE, Outcome.OVERRUN) for row in self.rows(name))

    def kill(self, name: str) -> int:
        """SIGKILL to a dimension; returns when another process is there, its pid."""
        before = len(self.run.restarts)
        os.kill(self.run.dimension_pids[name], signal.SIGKILL)
        self.until(lambda: len(self.run.restarts) > before and self.run.restarts[-1]["up_ns"])
        return self.run.dimension_pids[name]

    def halt(self) -> None:
        self.run.halt()
        self.drain()

    def account(self, name: str) -> dict[str, int]:
        return self.run.regions.accounts()[name]

    def generation(self, name: str) -> int:
        index = next(d.index for d in self.run.plan.dimensions if d.name == name)
        return self.run.regions.control[shm.GENERATIONS_AT + index]

    def lives(self, name: str) -> list[int]:
        """Pids of the processes that a workload of ours has had."""
        supervisor, root = self.run.service_pids["supervisor"], self.run.plan.mount_root
        return list(map(int, Path(f"/proc/{supervisor}/root{root}/{name}/data/lives").read_text().split()))


@pytest.fixture
def testbed(roots: Any, monkeypatch: pytest.MonkeyPatch) -> Testbed:
    """A plan of the dimensions that are given."""
    monkeypatch.syspath_prepend(HERE)

    def make(base_window: str = "4ms", **dimensions: dict[str, Any]) -> Plan:
        data = {
            "name": "test",
            "base_window": base_window,
            "state_root": str(roots.state_root),
            "mount_root": str(roots.mount_root),
            "dimensions": dimensions,
        }
        return plan.make(config.from_mapping(data), numa.observe())

    return make


@contextmanager
def story_of(the_plan: Plan) -> Iterator[Story]:
    """A run that has gone on for a while."""
    with Run(the_plan) as run:
        story = Story(run)
        run.start()
        story.goes_on(the_plan.dimensions[0].name, 5)
        yield story


def assert_one_record_each(story: Story) -> None:
    """After the halt: every window that has begun has exactly one record."""
    for name in story.raw:
        assert [row.window for row in story.rows(name)] == list(range(story.latest(name) + 1)), name
    assert not any(story.run.records_lost.values())


def causes(rows: list[WindowRecord]) -> list[int]:
    return [row.cause for row in rows if row.outcome == Outcome.MISSED]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def group_of(pid: int) -> Path:
    (line,) = [line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")]
    return next(one.point for one in mount.mounts() if one.fstype == "cgroup2") / line.removeprefix("0::/")


# ── one process in the place of another ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("storage", ["tmpfs", "ext4"])
def test_another_process_goes_on_in_the_same_place_and_no_window_is_lost_or_told_twice(
    testbed: Testbed, storage: str
) -> None:
    d1 = {**LIVING, "storage": {"kind": storage}, "scheduling": "fifo:20"}
    with story_of(testbed(d1=d1, d2=HONEST)) as story:
        old = story.run.dimension_pids["d1"]
        group, neighbour = group_of(old), story.run.dimension_pids["d2"]
        new = story.kill("d1")
        assert new != old
        assert story.generation("d1") == 2
        story.goes_on("d1")
        assert story.lives("d1") == [old, new]
        assert group_of(new) == group
        (d, _) = story.run.plan.dimensions
        status = status_of(new)
        assert status["Name"] == "vcg:d1"
        assert status["Uid"].split() == [str(story.run.uids["d1"])] * 4
        assert status["NoNewPrivs"] == "1"
        assert status["CapEff"] == status["CapBnd"] == "0" * 16
        assert status["Seccomp"] == "2"
        assert os.sched_getscheduler(new) == os.SCHED_FIFO
        assert os.sched_getparam(new).sched_priority == 20
        assert os.sched_getaffinity(new) == set(d.cpus)
        assert {entry.name for entry in Path(f"/proc/{new}/fd").iterdir()} == {"0", "1", "2"}
        assert story.run.dimension_pids["d2"] == neighbour
        story.halt()
        assert_one_record_each(story)
        assert set(causes(story.rows("d1"))) >= {Cause.DOWN}
        assert Cause.DOWN not in causes(story.rows("d2"))
        (told,) = story.run.statistics()["restarts"]
    assert (told["name"], told["generation"], told["how"]) == ("d1", 2, "was killed by SIGKILL")
    assert told["died_ns"] < told["up_ns"]


def test_who_attaches_finds_the_process_that_is_there_now(testbed: Testbed, roots: Any) -> None:
    with story_of(testbed(d1=LIVING)) as story:
        new = story.kill("d1")
        with Attached(roots.state_root) as attached:
            assert attached.dimension_pids == {"d1": new}
            assert attached.regions.status["d1"][shm.STATUS_HEADER.at("generation")] == 2
            assert attached.regions.status["d1"][shm.STATUS_HEADER.at("pid")] == new


def test_a_status_page_is_inherited_by_its_own_next_process_alone(testbed: Testbed) -> None:
    """Each one maps its own page, made writable, and no other's; whoever else was forked before or after."""
    with story_of(testbed(d1=LIVING, d2=LIVING, d3=LIVING)) as story:
        for name in ("d1", "d2", "d1"):
            story.kill(name)
        for name, pid in story.run.dimension_pids.items():
            writable: dict[str, bool] = {}
            region = None
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    found = re.search(r"/memfd:vcg-(\S+)", line)
                    region = found[1] if found else None
                elif region and line.startswith("VmFlags:"):
                    writable[region] = writable.get(region, False) or "mw" in line.split()
            assert writable == {"control": False, "ticks": False, "tokens": False, f"status-{name}": True}


def test_what_the_dead_one_has_forked_is_gone_before_the_next_is_there(testbed: Testbed) -> None:
    daemon = {**LIVING, "workload": "restart_workloads:leaves_a_daemon"}
    with story_of(testbed(d1=daemon)) as story:
        group = group_of(story.run.dimension_pids["d1"])
        before = set((group / "cgroup.procs").read_text().split())
        assert len(before) == 2
        new = story.kill("d1")
        story.goes_on("d1")
        after = set((group / "cgroup.procs").read_text().split())
        assert str(new) in after
        assert not before & after
        supervisor = story.run.service_pids["supervisor"]
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        assert not [pid for pid in children if status_of(int(pid))["State"].startswith("Z")]


def test_one_that_dies_before_the_run_ticks_misses_no_window_for_it(testbed: Testbed) -> None:
    with Run(testbed(d1=LIVING)) as run:
        story = Story(run)
        story.kill("d1")
        run.start()
        story.goes_on("d1")
        story.halt()
        assert_one_record_each(story)
        assert Cause.DOWN not in causes(story.rows("d1"))


def test_windows_up_to_the_halt_are_told_although_nobody_came_any_more(testbed: Testbed) -> None:
    slow = {**LIVING, "restart": {**AGAIN, "backoff": "30s"}}
    with story_of(testbed(d1=slow, d2=HONEST)) as story:
        os.kill(story.run.dimension_pids["d1"], signal.SIGKILL)
        story.until(lambda: story.run.restarts)
        story.goes_on("d2", 20)
        story.halt()
        assert_one_record_each(story)
        assert causes(story.rows("d1"))[-15:] == [Cause.DOWN] * 15
        assert story.run.restarts[0]["up_ns"] is None


@pytest.mark.parametrize("head", [0, 5, -(2**62), 2**62, 10_000])
def test_what_the_dead_one_left_in_its_page_is_not_believed(testbed: Testbed, head: int) -> None:
    vandal = {**LIVING, "workload": "restart_workloads:wrecks_its_page", "args": {"head": head}}
    with story_of(testbed(d1=vandal, d2=HONEST)) as story:
        story.until(lambda: story.run.restarts and story.run.restarts[0]["up_ns"])
        story.goes_on("d2", 20)
        story.halt()
        newest = story.latest("d1")
        page = story.run.regions.status["d1"]
        assert page[shm.STATUS_HEADER.at("head")] == newest + 1
        for window in range(newest + 1):
            at = shm.WINDOWS_AT + window * shm.WINDOW_WORDS
            assert page[at + shm.WINDOW.at("window")] == window
        assert story.run.restarts[0]["how"] == "exited with 7"
        assert story.account("d2")["refused_value"] == story.account("d2")["refused_window"] == 0


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_the_limit_of_failures_in_a_row_the_run_ends_with_its_last_words(testbed: Testbed) -> None:
    failing = {"workload": "restart_workloads:fails", "restart": {**AGAIN, "limit": 2}}
    words = r"d1 exited with 1, its failure number 3 in a row: .*ValueError: life 3 is over"
    with pytest.raises(RunError, match=words), Run(testbed(d1=failing)) as run:
        story = Story(run)
        run.start()
        story.until(lambda: False)
    assert [(one["generation"], one["how"]) for one in run.restarts] == [(2, "exited with 1"), (3, "exited with 1")]
    assert "life 1 is over" in run.restarts[0]["message"]


def test_one_that_has_kept_enough_windows_begins_to_count_anew(testbed: Testbed) -> None:
    failing = {"workload": "restart_workloads:fails", "args": {"after": 160, "times": 3}}
    with story_of(testbed("2ms", d1={**failing, "restart": {**AGAIN, "limit": 1}})) as story:
        story.until(lambda: len(story.run.restarts) == 3 and story.run.restarts[-1]["up_ns"])
        story.goes_on("d1")
        assert story.generation("d1") == 4


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A workload that is this text after its import; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(text: str) -> str:
        idle = "def run(dimension):\n    for _ in dimension.windows():\n        pass\n"
        (tmp_path / "made_here.py").write_text(f"{text}\n{idle}")
        return "made_here:run"

    return make


def test_one_that_does_not_even_start_makes_no_good_by_the_windows_of_the_one_before(
    testbed: Testbed, tmp_path: Path, module: Callable[[str], str]
) -> None:
    module(f"open({str(tmp_path / 'began')!r}, 'x').close()\nfrom restart_workloads import fails")
    failing = {"workload": "made_here:fails", "args": {"after": 160}}
    words = "d1 exited with 1, its failure number 3 in a row: .*FileExistsError"
    with (
        pytest.raises(RunError, match=words),
        story_of(testbed("2ms", d1={**failing, "restart": {**AGAIN, "limit": 2}})) as story,
    ):
        story.until(lambda: False)
    assert story.entered("d1") >= 100


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            r"its import has started 1 threads, which would stay unconfined: .*OPENBLAS_NUM_THREADS",
        ),
        (
            "import os, signal\nif os.fork() == 0:\n    signal.pause()",
            r"its import has left processes, which would stay unconfined \(pid \d+\)",
        ),
        (
            "import os, signal\nif os.fork() == 0:\n    os.fork() or signal.pause()\n    os._exit(0)\nos.wait()",
            r"its import has left processes, which would stay unconfined \(pid \d+\)",
        ),
    ],
    ids=["a thread", "a child", "an orphan"],
)
def test_what_a_workload_begins_when_it_is_imported_is_refused(
    testbed: Testbed, module: Callable[[str], str], begun: str, words: str
) -> None:
    """It would escape all that is done to a thread or a process."""
    with (
        pytest.raises(RunError, match=rf"^d1: workload made_here:run: {words}"),
        Run(testbed(d1={"workload": module(begun)})),
    ):
        pass


def test_one_whose_remains_do_not_end_stays_down_until_they_do_and_the_run_goes_on(testbed: Testbed) -> None:
    """What is frozen in the v1 freezer obeys SIGKILL no more than what waits for a disk that does not answer."""
    freezer = cgroup.observe().v1.get(cgroup.FREEZER)
    if freezer is None:
        pytest.skip("needs the v1 freezer")
    ice = freezer / f"vcg-test-{os.getpid()}"
    ice.mkdir()
    try:
        daemon = {**LIVING, "workload": "restart_workloads:leaves_a_daemon"}
        with story_of(testbed(d1=daemon, d2=HONEST)) as story:
            d1 = story.run.dimension_pids["d1"]
            (left,) = set(map(int, (group_of(d1) / "cgroup.procs").read_text().split())) - {d1}
            (ice / "cgroup.procs").write_text(str(left))
            (ice / "freezer.state").write_text("FROZEN")
            os.kill(d1, signal.SIGKILL)
            story.until(lambda: story.run.restarts and "stuck" in story.run.restarts[0])
            assert f"process {left} survives SIGKILL" in story.run.restarts[0]["stuck"]
            story.goes_on("d2", 20)
            assert story.run.restarts[0]["up_ns"] is None
            (ice / "freezer.state").write_text("THAWED")
            story.until(lambda: story.run.restarts[0]["up_ns"])
            story.goes_on("d1")
            story.halt()
            assert_one_record_each(story)
    finally:
        (ice / "freezer.state").write_text("THAWED")
        assert cgroup.remove([ice], time.monotonic_ns() + 5 * 10**9) == []


def test_by_default_a_death_is_the_end_of_the_run(testbed: Testbed) -> None:
    plain = {key: value for key, value in LIVING.items() if key != "restart"}
    with pytest.raises(RunError, match="d1 was killed by SIGKILL"), story_of(testbed(d1=plain)) as story:
        os.kill(story.run.dimension_pids["d1"], signal.SIGKILL)
        story.until(lambda: False)
    assert story.run.restarts == []


def test_a_death_right_before_the_halt_is_not_overlooked(testbed: Testbed) -> None:
    with pytest.raises(RunError, match="d1 was killed by SIGKILL"), story_of(testbed(d1=HONEST)) as story:
        pid = story.run.dimension_pids["d1"]
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # reaped already
            while not status_of(pid)["State"].startswith("Z"):
                time.sleep(0.001)
        story.run.halt()


# ── credit and custody ───────────────────────────────────────────────────────────────────────────────────────────────


def test_who_is_held_is_not_replaced_before_its_debt_is_paid(testbed: Testbed) -> None:
    bad = {"workload": "workloads_under_test:loses_its_temper", "scheduling": "fifo:20", "restart": AGAIN}
    cpu = numa.observe().cpus[-1]
    with story_of(testbed(d1={**bad, "cpus": [cpu]}, d2={**HONEST, "cpus": [cpu]})) as story:
        story.until(lambda: story.account("d1")["held"] != Standing.FREE)
        os.kill(story.run.dimension_pids["d1"], signal.SIGKILL)
        story.until(lambda: story.account("d1")["generation"] == -1)
        held_first = story.account("d1")["held"]

        def is_there() -> bool:
            held, balance_ns = story.account("d1")["held"], story.account("d1")["balance_ns"]
            if story.run.restarts and story.run.restarts[0]["up_ns"]:
                return True
            if held != Standing.FREE or balance_ns < 0:
                assert story.generation("d1") == -1
            return False

        story.until(is_there)
        assert held_first != Standing.FREE
        assert os.sched_getscheduler(story.run.dimension_pids["d1"]) == os.SCHED_FIFO
        story.goes_on("d1")


def test_the_lease_of_one_that_stops_itself_expires_and_its_credit_goes_to_others(testbed: Testbed) -> None:
    cpu = numa.observe().cpus[-1]
    greedy = {"workload": "spin", "args": {"share": 1.0}}
    stopper = {"workload": "restart_workloads:stops_itself"}
    with story_of(testbed(d1={**stopper, "cpus": [cpu]}, d2={**greedy, "cpus": [cpu]})) as story:
        pid = story.run.dimension_pids["d1"]
        story.until(lambda: status_of(pid)["State"].startswith("T"))
        at_stop = story.account("d1"), story.account("d2")
        story.until(lambda: story.account("d1")["expired"] > at_stop[0]["expired"] + 20)
        story.until(lambda: story.account("d2")["borrowed_ns"] > at_stop[1]["borrowed_ns"])
        after = story.account("d1")
        assert after["settled"] <= at_stop[0]["settled"] + 1
        assert after["expired_ns"] > at_stop[0]["expired_ns"]
        assert after["behind"] >= 20
        assert after["lent_ns"] > at_stop[0]["lent_ns"]


# ── behind the freezer gate ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_program_that_fails_is_launched_again_behind_its_gate(testbed: Testbed) -> None:
    script = f"echo x >>/data/lives; read n </data/lives; set -- $(wc -l </data/lives); [ $1 -ge 3 ] || exit 9; {SPIN}"
    program = {**SHELL, "exec": ["/usr/bin/dash", "-c", script]}
    with story_of(testbed("6ms", d1=HONEST, d2=program)) as story:
        gate = story.run.service_pids["gate-d2"]
        story.until(lambda: len(story.run.restarts) == 2 and story.run.restarts[1]["up_ns"])
        assert [one["how"] for one in story.run.restarts] == ["exited with 9"] * 2
        assert story.generation("d2") == 3
        pid = story.run.dimension_pids["d2"]
        story.goes_on("d2", 30)
        events = group_of(pid) / "cgroup.events"
        story.until(lambda: "frozen 1" in events.read_text())
        story.until(lambda: "frozen 0" in events.read_text())
        assert story.run.service_pids["gate-d2"] == gate
        assert status_of(gate)["Name"] == "vcg:gate-d2"
        story.halt()
        assert_one_record_each(story)
        rows = story.rows("d2")
        assert Cause.DOWN in causes(rows)
        assert sum(row.used_ns for row in rows[-20:]) > 0


def test_a_program_that_is_killed_while_it_is_frozen_is_replaced_too(testbed: Testbed) -> None:
    program = {**SHELL, "exec": ["/usr/bin/dash", "-c", f"{SPIN} & {SPIN}"]}
    with story_of(testbed("6ms", d1=HONEST, d2=program)) as story:
        old = group_of(story.run.dimension_pids["d2"])
        story.goes_on("d2", 5)
        before = set((old / "cgroup.procs").read_text().split())
        new = story.kill("d2")
        story.goes_on("d2", 20)
        after = set((old / "cgroup.procs").read_text().split())
        assert str(new) in after
        assert not before & after
        story.halt()
        assert_one_record_each(story)


def test_a_program_that_has_done_its_work_is_not_launched_again(testbed: Testbed) -> None:
    program = {**SHELL, "exec": ["/usr/bin/dash", "-c", "exit 0"]}
    with story_of(testbed("6ms", d1=HONEST, d2=program)) as story:
        page = story.run.regions.status["d2"]
        story.until(lambda: page[shm.STATUS_HEADER.at("state")] == State.FINISHED)
        story.goes_on("d1", 20)
        assert story.run.restarts == []
        assert story.generation("d2") == 1
        story.halt()
        assert_one_record_each(story)


def test_a_program_whose_log_is_not_to_be_trusted_any_more_fails_alone(testbed: Testbed) -> None:
    script = "ln /log/workload.log /data/x; exit 1"
    program = {**SHELL, "exec": ["/usr/bin/dash", "-c", script], "restart": {**AGAIN, "limit": 99}}
    with story_of(testbed("6ms", d1=HONEST, d2=program)) as story:
        story.until(lambda: story.run.restarts)
        story.goes_on("d1", 20)
        assert story.run.restarts[0]["how"] == "exited with 1"
        said = "its log could not be read: expected a regular file with one name"
        assert story.run.restarts[0]["message"] == said


def test_the_supervisor_waits_for_no_client_and_what_that_has_not_read_is_told_later(
    testbed: Testbed, roots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's socket has little room here, and nobody reads it, as if the client had been stopped."""
    with_little_room(monkeypatch)
    failing = {"workload": "restart_workloads:fails", "args": {"after": 1}, "restart": {**AGAIN, "limit": 99}}
    failing["restart"]["backoff"] = "1ms"
    with Run(testbed(d1=failing, d2=HONEST)) as run:
        run.start()
        page, index = run.regions.status["d2"], run.plan.dimensions[0].index
        deadline = time.monotonic() + PATIENCE_S
        while run.regions.control[shm.GENERATIONS_AT + index] < 8:
            assert time.monotonic() < deadline, "nobody brings d1 back any more"
            time.sleep(0.01)
        with Attached(roots.state_root) as attached:
            assert attached.plan == run.plan
        before = page[shm.STATUS_HEADER.at("head")]
        time.sleep(0.2)
        assert page[shm.STATUS_HEADER.at("head")] > before + 20
        story = Story(run)
        story.until(lambda: len(run.restarts) > 8)
        assert [one["generation"] for one in run.restarts] == list(range(2, len(run.restarts) + 2))
        assert all(one["up_ns"] for one in run.restarts[:7])


def test_a_run_whose_client_does_not_read_is_taken_down_all_the_same(
    testbed: Testbed, roots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_room(monkeypatch)
    failing = {"workload": "restart_workloads:fails", "args": {"after": 1}, "restart": {**AGAIN, "limit": 9}}
    failing["restart"]["backoff"] = "1ms"
    with pytest.raises(RunError, match="asked to end"), Run(testbed(d1=failing, d2=HONEST)) as run:
        run.start()
        pid = run.dimension_pids["d2"]
        index = run.plan.dimensions[0].index
        deadline = time.monotonic() + PATIENCE_S
        while run.regions.control[shm.GENERATIONS_AT + index] != 10:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)  # d1 has failed for the last time
        os.kill(run.supervisor_pid, signal.SIGTERM)
        while Path(f"/proc/{pid}").exists() or (roots.state_root / "run.json").exists():
            assert time.monotonic() < deadline, "it waits for its client"
            time.sleep(0.01)
        Story(run).until(lambda: False)
    assert [one["generation"] for one in run.restarts] == list(range(2, 11))


def with_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sockets between a client and its supervisor have room for a few messages only."""
    pair = socket.socketpair

    def narrow(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        both = pair(*arguments)
        for end in both:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)
        return both

    monkeypatch.setattr(socket, "socketpair", narrow)


# ── services ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("victim", ["relay", "gauges"])
def test_the_run_goes_on_without_a_service_that_only_serves_readers(testbed: Testbed, roots: Any, victim: str) -> None:
    with story_of(testbed(d1=LIVING, d2=HONEST)) as story:
        os.kill(story.run.service_pids[victim], signal.SIGKILL)
        story.until(lambda: story.run.lost_services)
        story.goes_on("d1", 20)
        if victim == "relay":
            with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as subscriber:
                subscriber.connect(str(roots.state_root / "rtd.sock"))
        story.halt()
        assert_one_record_each(story)
        assert victim not in story.run.statistics()["cpu_ns"]
    (lost,) = story.run.lost_services
    assert (lost["name"], lost["how"]) == (victim, "was killed by SIGKILL")


@pytest.mark.parametrize("victim", ["rtd", "orchestrator", "gate-d2"])
def test_a_service_that_the_run_cannot_do_without_stops_it(testbed: Testbed, victim: str) -> None:
    program = {**SHELL, "exec": ["/usr/bin/dash", "-c", SPIN]}
    words = f"^{victim} was killed by SIGKILL: the run can't go on without it, and has been stopped$"
    with pytest.raises(RunError, match=words), story_of(testbed("6ms", d1=LIVING, d2=program)) as story:
        os.kill(story.run.service_pids[victim], signal.SIGKILL)
        story.until(lambda: False)


def test_an_rtd_that_hangs_is_told_at_the_halt(testbed: Testbed) -> None:
    """Alive, but it does nothing: the run has not had the windows that it seems to have had."""
    words = "^rtd: has not obeyed the order to stop the ticks"
    with pytest.raises(RunError, match=words), story_of(testbed(d1=HONEST)) as story:
        os.kill(story.run.service_pids["rtd"], signal.SIGSTOP)
        story.run.halt()


@pytest.mark.parametrize("victim", ["rtd", "orch"])
def test_vcg_run_says_in_one_line_who_has_died_and_leaves_nothing(roots: Any, victim: str) -> None:
    places = ["--set", f"state_root={roots.state_root}", "--set", f"mount_root={roots.mount_root}"]
    command = [VCG, "run", "tmpfs", "--for", "60s", "--json", *places]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (roots.state_root / "control.sock").exists() or not (found := members_of(process.pid, victim)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(found[0], signal.SIGKILL)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    name = {"orch": "orchestrator"}.get(victim, victim)
    said = f"{name} was killed by SIGKILL: the run can't go on without it, and has been stopped"
    assert errors.splitlines() == [said]
    result = json.loads(output)
    assert (result["failed"], result["clock_cpu_share"]) == (said, None)


def members_of(client: int, name: str) -> list[int]:
    """Services of a client's run by their name in ``comm``."""
    found = []
    for supervisor in Path(f"/proc/{client}/task/{client}/children").read_text().split():
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
        for pid in children.read_text().split() if children.exists() else ():
            if Path(f"/proc/{pid}/comm").read_text().strip() == f"vcg:{name}":
                found.append(int(pid))
    return found
