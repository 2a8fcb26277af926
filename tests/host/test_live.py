"""A run that is going on: attached to, watched, its amplitudes changed, and none the worse for whoever comes."""

from __future__ import annotations

import json
import mmap
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from vcg import config, gauges, plan, service, shm, state, top
from vcg.attach import Attached, Change
from vcg.control import CLIENTS, REQUEST_BYTES
from vcg.errors import RunError
from vcg.gauges import ABSENT, Sample
from vcg.linux import cgroup, numa
from vcg.plan import Plan
from vcg.regions import windows_of
from vcg.run import Run
from vcg.shm import Phase

pytestmark = pytest.mark.usefixtures("root", "clean_roots")

VCG = str(Path(sys.executable).with_name("vcg"))
NAMES = [f"d{number}" for number in range(1, 10)]
SHOW_CURSOR = "\x1b[?25h"
PATIENCE_S = 20
QUIET = {
    "dimensions__*__workload": "idle",
    "dimensions__*__burst": "0",
    "dimensions__*__ceiling": "1",
    "dimensions__*__harmonic": "1",
    "base_window": "40ms",
}
"""Every window's token is its own credit: nobody borrows, nothing is carried on; and there is time to look."""


class Roots(Protocol):
    state_root: Path
    mount_root: Path


@pytest.fixture
def resolve(roots: Roots) -> Callable[..., Plan]:
    """A ready testbed in this test's own roots, some values replaced."""

    def make(name: str = "tmpfs", **overrides: Any) -> Plan:
        places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
        dotted = {path.replace("__", "."): value for path, value in overrides.items()}
        return plan.make(config.load(name, {**places, **dotted}), numa.observe())

    return make


def vcg(roots: Roots, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command about this test's run."""
    command = [VCG, *arguments, "--state-root", str(roots.state_root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd="/", **options)
    assert "Traceback" not in done.stderr
    return done


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def connect(roots: Roots) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(state.control_socket(roots.state_root)))
    return connection


# ── attaching ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_is_given_the_plan_the_processes_and_the_regions(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("default")) as run:
        with Attached(roots.state_root) as attached:
            assert (attached.phase, attached.start_ns) == (Phase.HOLD, 0)
            start_ns = run.start()
            assert (attached.phase, attached.start_ns) == (Phase.RUN, start_ns)
            assert attached.plan == run.plan
            assert attached.dimension_pids == run.dimension_pids
            assert attached.service_pids == run.service_pids
            assert attached.loops == run.loops
            assert attached.regions.amplitudes() == dict.fromkeys(NAMES, 1.0)
            assert attached.regions.credits_ns() == {d.name: d.credit_ns for d in run.plan.dimensions}
            time.sleep(0.3)
            assert all(attached.regions.drain().values())
            assert not attached.has_ended()
        run.halt()
        assert run.drain().keys() == run.dimension_pids.keys()


def test_no_region_can_be_written_by_who_attaches(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()), connect(roots) as client:
        service.send(client, {"do": "attach"})
        _, fds = service.receive(client)
        try:
            assert len(fds) == 5 + len(NAMES)
            for fd in fds:
                with pytest.raises(PermissionError):
                    mmap.mmap(fd, os.fstat(fd).st_size)
                with pytest.raises(PermissionError):
                    os.write(fd, b"x")
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, 0)
        finally:
            for fd in fds:
                os.close(fd)


def test_where_no_run_is_the_path_is_named(roots: Roots) -> None:
    with pytest.raises(RunError, match=rf"no run at {roots.state_root}: start one"), Attached(roots.state_root):
        pass


def test_a_run_that_was_killed_is_told_from_none_and_its_socket_goes_with_it(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    with pytest.raises(RunError, match="the supervisor ended with -9"), Run(resolve()) as run:
        with Attached(roots.state_root) as attached:
            os.kill(run.supervisor_pid, signal.SIGKILL)
            wait_for(attached.has_ended)
            with pytest.raises(RunError, match=rf"the run at {roots.state_root} has ended"):
                attached.set_amplitudes({"d4": 2})
        with (
            pytest.raises(RunError, match=rf"the run at {roots.state_root} was killed and has left its socket behind"),
            Attached(roots.state_root),
        ):
            pass
    assert not state.control_socket(roots.state_root).exists()


def test_who_is_attached_sees_the_end_of_the_run_and_can_still_read(resolve: Callable[..., Plan], roots: Roots) -> None:
    with ExitStack() as stack:
        with Run(resolve()) as run:
            attached = stack.enter_context(Attached(roots.state_root))
            run.start()
            time.sleep(0.2)
        assert attached.has_ended()
        assert attached.phase == Phase.FINISH
        assert all(account["minted"] > 0 for account in attached.regions.accounts().values())
        with pytest.raises(RunError, match="has ended"):
            attached.set_amplitudes({"d4": 2})


@pytest.mark.parametrize("arguments", [("top", "--once"), ("amplitude", "d4", "2")])
def test_another_user_is_refused(resolve: Callable[..., Plan], roots: Roots, arguments: tuple[str, ...]) -> None:
    for folder in (roots.state_root, *roots.state_root.parents[:2]):
        folder.chmod(0o755)
    with Run(resolve()) as run:
        run.start()
        done = vcg(roots, *arguments, user=65534)
        before = run.regions.amplitudes()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"the run at {roots.state_root} answers only root (try: sudo vcg …)\n"
    assert before == dict.fromkeys(NAMES, 1.0)


# ── amplitudes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_amplitude_is_in_the_tokens_of_the_next_window_but_one(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    with Run(resolve(**QUIET)) as run:
        run.start()
        time.sleep(0.5)
        with Attached(roots.state_root) as attached:
            changes = {change.name: change for change in attached.set_amplitudes({"d4": 2.5})}
            credits_ns = attached.regions.credits_ns()
        time.sleep(0.5)
        run.halt()
        rows = {name: windows_of(raw) for name, raw in run.drain().items()}
        dimensions, (retuned,) = run.plan.dimensions, run.retuned
    neighbours = {d.name for d in dimensions if d.cpus == dimensions[3].cpus}
    assert set(changes) == neighbours
    assert (changes["d4"].amplitude_before, changes["d4"].amplitude) == (1.0, 2.5)
    assert changes["d4"].credit_ns > changes["d4"].credit_before_ns
    assert credits_ns == {d.name: plan.retuned(run.plan, {"d4": 2.5})[d.index] for d in dimensions}
    for d in dimensions:
        budgets = {row.window: row.budget_ns for row in rows[d.name] if row.entry_ns}
        later = [row.window for row in rows[d.name] if row.planned_ns > retuned["at_ns"]]
        assert {budgets[n] for n in budgets if n < later[0]} == {d.credit_ns}
        assert {budgets[n] for n in budgets if n > later[1]} == {credits_ns[d.name]}
        assert budgets.get(later[1], credits_ns[d.name]) == credits_ns[d.name]


def test_changes_are_part_of_the_result(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()) as run:
        start_ns = run.start()
        with Attached(roots.state_root) as attached:
            attached.set_amplitudes({"d4": 2.5})
            attached.set_amplitudes({"d1": 0.5, "d2": 3})
        run.halt()
        told = run.statistics()["retuned"]
    assert [(change["name"], change["amplitude"]) for change in told] == [("d4", 2.5), ("d1", 0.5), ("d2", 3)]
    times_ns = [change["at_ns"] for change in told]
    assert times_ns == sorted(times_ns)
    assert abs(times_ns[0] - start_ns) < PATIENCE_S * 10**9


def test_amplitudes_can_be_changed_before_the_start_but_not_after_the_last_tick(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    with Run(resolve(**QUIET)) as run, Attached(roots.state_root) as attached:
        attached.set_amplitudes({"d4": 2.5})
        credit_ns = attached.regions.credits_ns()["d4"]
        run.start()
        time.sleep(0.3)
        run.halt()
        with pytest.raises(RunError, match="has stopped ticking"):
            attached.set_amplitudes({"d4": 1})
        rows = windows_of(run.drain()["d4"])
        assert attached.regions.amplitudes()["d4"] == 2.5
    assert {row.budget_ns for row in rows if row.entry_ns} == {credit_ns}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"d4": 0}, "d4: amplitude 0: expected a number above 0"),
        ({"d4": "2"}, 'd4: amplitude "2": expected a number above 0'),
        ({"d4": 2, "d5": -1}, "d5: amplitude -1: expected a number above 0"),
        ({"d4": 1e12}, "d4: amplitude 1000000000000.0: expected a number from 0.000001 to 1000000"),
        ({"d4": 2, "d12": 2}, "d12: no dimension of this run: expected one of d1, d2, d3, d4, d5, d6, d7, d8, d9"),
        ({}, "amplitudes: expected a number for each dimension"),
    ],
)
def test_a_wrong_amplitude_is_refused_and_changes_nothing(
    resolve: Callable[..., Plan], roots: Roots, wanted: dict[str, Any], message: str
) -> None:
    with Run(resolve()) as run, Attached(roots.state_root) as attached:
        run.start()
        with pytest.raises(RunError) as refused:
            attached.set_amplitudes(wanted)
        assert str(refused.value).startswith(message)
        assert attached.regions.amplitudes() == dict.fromkeys(NAMES, 1.0)
        assert attached.regions.control[shm.CONTROL.at("tuning")] == 0
        run.check()
        assert run.retuned == []


def test_the_cpu_weight_of_a_group_follows_its_amplitude(resolve: Callable[..., Plan], roots: Roots) -> None:
    hierarchies = cgroup.observe()
    file, unit = ("cpu.weight", 100) if hierarchies.backend("cpu") == "v2" else ("cpu.shares", 1024)
    with Run(resolve(**{"dimensions__*__scheduling": "other"})) as run, Attached(roots.state_root) as attached:
        groups = [path for path in directories_of(run.dimension_pids["d4"]) if (path / file).exists()]
        assert groups or hierarchies.backend("cpu") is None
        attached.set_amplitudes({"d4": 2.5})
        assert [int((path / file).read_text()) for path in groups] == [int(unit * 2.5)] * len(groups)


def directories_of(pid: int) -> list[Path]:
    """The cgroup directories of a process, in every hierarchy; some may be one through two mounts."""
    points = [
        Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines() if "cgroup" in line
    ]
    paths = [line.split(":", 2)[2].lstrip("/") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return [point / path for point in points for path in set(paths) if path and (point / path).is_dir()]


def test_a_client_of_the_run_that_does_not_listen_is_not_passed_over(
    resolve: Callable[..., Plan], roots: Roots
) -> None:
    """What the run's own client cannot be told is not done: its result would not be true."""
    with Run(resolve()) as run, Attached(roots.state_root) as attached:
        run.start()
        done = 0
        with pytest.raises(RunError, match="does not read its messages"):
            while done < 5000:
                attached.set_amplitudes({"d4": 1 + done})
                done += 1
        assert attached.regions.amplitudes()["d4"] == done
        run.check()
        assert [change["amplitude"] for change in run.retuned] == list(range(1, done + 1))
        attached.set_amplitudes({"d4": 7})
        assert attached.regions.amplitudes()["d4"] == 7


# ── clients of every kind ────────────────────────────────────────────────────────────────────────────────────────────


def test_no_client_stops_a_run(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()) as run:
        run.start()
        clients = []
        for raw in (
            b"garbage",
            b"{" * 5000,
            b"x" * (REQUEST_BYTES + 1),
            b"",
            b'{"do": "dance"}',
            b'{"do": "amplitude"}',
        ):
            clients.append(connect(roots))
            clients[-1].send(raw)
        for _ in range(3):  # they ask, never read, and do not stop asking
            clients.append(connect(roots))
            clients[-1].setblocking(False)
            with pytest.raises((BlockingIOError, BrokenPipeError)):
                for _ in range(5000):
                    clients[-1].send(b'{"do": "attach"}')
        connect(roots).close()
        time.sleep(0.5)
        run.check()
        with Attached(roots.state_root) as attached:
            before = attached.regions.clock()["head"]
            wait_for(lambda: attached.regions.clock()["head"] > before)
            assert isinstance(attached.set_amplitudes({"d4": 2})[0], Change)
        for client in clients:
            client.close()
        run.halt()
        rows = {name: windows_of(raw) for name, raw in run.drain().items()}
    for name in NAMES:
        assert [row.window for row in rows[name]] == list(range(len(rows[name])))


def test_when_too_many_are_attached_the_next_is_told_why(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()):
        clients = [connect(roots) for _ in range(CLIENTS)]
        for client in clients:
            service.send(client, {"do": "dance"})
            service.receive(client)
        done = vcg(roots, "top", "--once")
        for client in clients:
            client.close()
    assert done.stderr == f"{CLIENTS} others are attached to this run: wait until one has left\n"


# ── gauges ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def samples(run: Run) -> dict[str, Sample]:
    found = {d.name: gauges.read(run.regions.gauges, d.index) for d in run.plan.dimensions}
    assert all(found.values())
    return {name: sample for name, sample in found.items() if sample}


def newer_than(run: Run, before: dict[str, Sample]) -> dict[str, Sample]:
    """The first samples in which every dimension has been looked at again."""
    wait_for(lambda: all(sample.sampled_ns > before[name].sampled_ns for name, sample in samples(run).items()))
    return samples(run)


def test_the_gauges_tell_cpu_io_filesystem_memory_and_tasks(resolve: Callable[..., Plan]) -> None:
    busy = {"dimensions__d1__workload": "spin", "dimensions__d7__workload": "fsync"}
    with Run(resolve("default", **busy)) as run:
        run.start()
        before = newer_than(run, samples(run))
        time.sleep(0.5)
        after = newer_than(run, samples(run))
        cpu_after_ns = {name: cpu_time_ns(pid) for name, pid in run.dimension_pids.items()}
        run.halt()
    for d in run.plan.dimensions:
        mine, sample = before[d.name], after[d.name]
        assert sample.tasks == 1
        assert 1 << 20 < sample.memory_bytes <= d.memory_bytes
        assert 0 <= sample.used_bytes < d.storage_bytes
        # What the group used, its only process has used since, but for a tick of the kernel's accounting.
        assert mine.cpu_usage_ns < sample.cpu_usage_ns <= cpu_after_ns[d.name] + 10_000_000
        if d.storage == "tmpfs":
            assert (sample.read_bytes, sample.written_bytes, sample.requests) == (ABSENT, ABSENT, ABSENT)
    assert after["d7"].written_bytes > before["d7"].written_bytes
    assert after["d7"].requests > before["d7"].requests
    assert after["d7"].used_bytes >= 4096


def cpu_time_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def test_the_gauges_outlive_a_dimension(resolve: Callable[..., Plan]) -> None:
    with Run(resolve("default")) as run:
        run.start()
        os.kill(run.dimension_pids["d5"], signal.SIGKILL)
        wait_for(lambda: samples(run)["d5"].tasks == 0)
        later = newer_than(run, samples(run))
        assert {name for name, sample in later.items() if sample.tasks == 0} == {"d5"}
        assert later["d5"].cpu_usage_ns > 0
        with pytest.raises(RunError) as died:
            run.check()
        assert str(died.value).startswith("d5 was killed by SIGKILL")
        assert "gauges" not in str(died.value)


def test_the_cost_of_the_gauges_is_told_with_that_of_the_other_services(resolve: Callable[..., Plan]) -> None:
    with Run(resolve()) as run:
        run.start()
        newer_than(run, samples(run))
        statistics = run.statistics()
        policy = os.sched_getscheduler(run.service_pids["gauges"])
        cpus = os.sched_getaffinity(run.service_pids["gauges"])
    assert statistics["cpu_ns"]["gauges"] > 0
    assert statistics["resident_bytes"]["gauges"] > 0
    assert (policy, cpus) == (os.SCHED_OTHER, set(run.plan.housekeeping.cpus))


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_top_tells_of_every_dimension_as_one_object(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("default")) as run:
        run.start()
        time.sleep(0.7)
        done = vcg(roots, "top", "--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["testbed"], list(told["dimensions"])) == ("default", NAMES)
    assert told["up_ns"] > 700_000_000
    assert told["ticks_per_s"] > 0
    assert told["orchestrator"]["round_ns_mean"] > 0
    for d in run.plan.dimensions:
        mine = told["dimensions"][d.name]
        assert mine["state"] in ("ok", "behind", "held")
        assert (mine["amplitude"], mine["credit_ns"], mine["tasks"]) == (1.0, d.credit_ns, 1)
        assert mine["windows"] > 0
        assert 0 < mine["lateness_p50_ns"] <= mine["lateness_p99_ns"]
        assert 0 < mine["cpu_share"] < len(d.cpus)
        assert (mine["read_bytes_per_s"] is None) == (d.storage == "tmpfs")
        assert mine["totals"]["minted"] > 0


def test_a_reading_opens_nothing_and_asks_nothing(
    resolve: Callable[..., Plan], roots: Roots, in_child: Callable[[Callable[[], Any]], Any]
) -> None:
    """It comes from shared memory alone, so that a run cannot notice who watches it."""

    def read() -> tuple[list[str], int]:
        events: list[str] = []
        with Attached(roots.state_root) as attached:
            sys.addaudithook(lambda event, _: events.append(event))
            deadline, found = time.monotonic() + PATIENCE_S, 0
            while found == 0 and time.monotonic() < deadline:
                found = sum(tally.windows for tally in top.take(attached).tallies.values())
            seen = list(events)
        return seen, found

    with Run(resolve()) as run:
        run.start()
        time.sleep(0.2)
        events, windows_read = in_child(read)
    assert windows_read > 0
    assert [event for event in events if event.split(".")[0] in ("open", "os", "socket", "mmap", "subprocess")] == []


def test_top_in_a_pipe_is_one_table(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve("default")) as run:
        run.start()
        time.sleep(0.3)
        done = vcg(roots, "top")
    assert (done.returncode, done.stderr) == (0, "")
    headline, heading, *lines = done.stdout.splitlines()
    assert headline.startswith("default  up ")
    assert "ticks/s" in headline
    assert "RTD behind at most" in headline
    assert [line.split()[0] for line in lines] == NAMES
    assert {"own", "bal", "borr", "lent", "owed", "p50", "p99", "miss", "state", "cpu%"} <= set(heading.split())
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_top_before_the_start_says_so(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()):
        done = vcg(roots, "top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not started" in done.stdout.splitlines()[0]


def in_terminal(roots: Roots) -> tuple[subprocess.Popen[bytes], int]:
    """``vcg top`` in a terminal; the process, and our side of the terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    command = [VCG, "top", "--state-root", str(roots.state_root)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd="/")
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str) -> str:
    """What the terminal shows, up to this text or the end of the process."""
    shown = b""
    deadline = time.monotonic() + PATIENCE_S
    while text.encode() not in shown:
        assert time.monotonic() < deadline, f"no {text!r} in {shown.decode()}"
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # EIO: the other side has been closed
            break
        shown += piece
    return shown.decode()


def test_top_redraws_until_the_run_ends_and_says_that_it_has(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()) as run:
        run.start()
        process, terminal = in_terminal(roots)
        seen = [read_until(terminal, "d9 ") for _ in range(3)]
    rest = read_until(terminal, "\0")
    os.close(terminal)
    assert process.wait(PATIENCE_S) == 0
    assert all("ticks/s" in text for text in seen)
    assert rest.rstrip().splitlines()[-1].startswith("tmpfs: the run has ended after ")
    assert "Traceback" not in rest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_top_and_the_run_goes_on(resolve: Callable[..., Plan], roots: Roots, number: int) -> None:
    with Run(resolve()) as run:
        run.start()
        process, terminal = in_terminal(roots)
        read_until(terminal, "d9 ")
        process.send_signal(number)
        rest = read_until(terminal, "\0")
        os.close(terminal)
        assert process.wait(PATIENCE_S) == 0
        assert "Traceback" not in rest
        assert rest.count(SHOW_CURSOR) == 1
        run.check()
        run.halt()


def test_what_was_changed_while_it_ran_is_in_the_result_of_vcg_run(roots: Roots) -> None:
    places = ("--set", f"state_root={roots.state_root}", "--set", f"mount_root={roots.mount_root}")
    command = [VCG, "run", "tmpfs", "--for", "50s", "--json", *places]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        wait_for(lambda: state.control_socket(roots.state_root).exists())
        changed = vcg(roots, "amplitude", "d8-d9", "2.5")
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=PATIENCE_S)
    assert (changed.returncode, process.returncode, complaint) == (0, 130, "")
    told = [(change["name"], change["amplitude"]) for change in json.loads(said)["retuned"]]
    assert told == [("d8", 2.5), ("d9", 2.5)]


def test_amplitudes_are_shown_and_changed_from_the_command_line(resolve: Callable[..., Plan], roots: Roots) -> None:
    with Run(resolve()) as run:
        run.start()
        shown = vcg(roots, "amplitude")
        changed = vcg(roots, "amplitude", "d4-d5", "2.5")
        one = vcg(roots, "amplitude", "d4", "--json")
        refused = vcg(roots, "amplitude", "d12", "2")
        again = vcg(roots, "amplitude", "d4", "2", "--json")
        credit_ns, before = run.regions.credits_ns()["d4"], run.plan.dimensions[3]
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == NAMES
    lines = {line.split()[0]: line for line in changed.stdout.splitlines()[1:]}
    assert "1 → 2.5" in lines["d4"]
    assert "1 → 2.5" in lines["d5"]
    assert all("→" in line for line in lines.values())
    told = json.loads(one.stdout)["dimensions"]
    assert told["d4"]["amplitude"] == 2.5
    assert told["d4"]["credit_ns"] > before.credit_ns
    change = json.loads(again.stdout)["changed"]["d4"]
    assert (change["amplitude_before"], change["amplitude"]) == (2.5, 2.0)
    assert (change["credit_before_ns"], change["credit_ns"]) == (told["d4"]["credit_ns"], credit_ns)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith('command line: NAME: "d12" - nothing is selected; the run has d1, d2')
