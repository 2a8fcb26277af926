"""``vcg run`` as its users meet it: the console script, on the real kernel, from the first line to a clean host."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from vcg import audit
from vcg.attach import Attached
from vcg.errors import RunError
from vcg.linux import mount

pytestmark = pytest.mark.usefixtures("root")

VCG = str(Path(sys.executable).with_name("vcg"))
NAMES = [f"d{number}" for number in range(1, 10)]
PATIENCE_S = 20
TICKS = 200
Begin = Callable[..., subprocess.Popen[str]]


class Roots(Protocol):
    state_root: Path
    mount_root: Path


def command(roots: Roots, *arguments: str) -> list[str]:
    """``vcg run`` with these arguments, in the roots of the test."""
    places = ("--set", f"state_root={roots.state_root}", "--set", f"mount_root={roots.mount_root}")
    return [VCG, "run", *arguments, *places]


def run(roots: Roots, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(roots, *arguments), capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd="/"
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def begin(roots: Roots) -> Iterator[Begin]:
    """The same without waiting for its end, which comes with that of the test at the latest."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command(roots, *arguments), stdout=pipe, stderr=pipe, text=True, cwd="/"))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], number: int) -> tuple[str, str]:
    """Send a signal and wait; what was written to standard output and standard error."""
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in said[1]
    return said


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_ticking(roots: Roots) -> bool:
    """Whether this test's run has been ticking for a while, so that its client knows of it, too."""
    try:
        with Attached(roots.state_root) as attached:
            return attached.regions.clock()["head"] > TICKS
    except (RunError, OSError):
        return False


def status_of(pid: int) -> dict[str, str]:
    """Its ``/proc/PID/status``; empty if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def supervisor_of(roots: Roots) -> int:
    """Pid of the last supervisor that held the state root, 0 if none did."""
    lock = roots.state_root / "lock"
    return int(lock.read_text() or 0) if lock.exists() else 0


def left_behind(roots: Roots) -> list[audit.Leftover]:
    """What the host holds of this test's runs; other runs on it are not ours to judge."""
    supervisor = supervisor_of(roots)

    def is_ours(item: audit.Leftover) -> bool:
        if item.kind == "process":
            return int(item.name) == supervisor or status_of(int(item.name)).get("PPid") in ("1", str(supervisor))
        if item.kind == "cgroup":
            return Path(item.name).name.startswith(f"{audit.CGROUP_PREFIX}{supervisor}-")
        return True

    return [item for item in audit.leftovers(roots.state_root, roots.mount_root) if is_ours(item)]


@pytest.fixture(autouse=True)
def clean_host(roots: Roots) -> Iterator[None]:
    """Nothing is left; the kernel detaches loops and mounts a moment after the last process is gone."""
    yield
    deadline = time.monotonic() + 5
    while (left := left_behind(roots)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


# ── runs that go well ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_prints_one_object_with_nine_dimensions(roots: Roots) -> None:
    done = run(roots, "tmpfs", "--for", "1s", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert list(result["dimensions"]) == NAMES
    for counts in result["dimensions"].values():
        assert counts["windows"] > 0
        assert sum(counts[outcome] for outcome in ("done", "overrun", "missed", "skipped")) == counts["windows"]
    assert (result["testbed"], result["interrupted"]) == ("tmpfs", False)
    assert result["records_lost"] == dict.fromkeys(NAMES, 0)
    assert result["ticked_ns"] >= 1_000_000_000


def test_a_run_on_loop_devices_shows_a_table_and_a_summary(roots: Roots) -> None:
    done = run(roots, "default", "--for", "1s")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("d") and not line.startswith("default")] == NAMES
    assert any(line.startswith("default: up in ") and "of one CPU" in line for line in lines)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("length", "code"), [(("--for", "50s"), 130), ((), 0)], ids=["with --for", "without"])
def test_a_signal_ends_a_run_in_order(
    roots: Roots, begin: Begin, number: int, length: tuple[str, ...], code: int
) -> None:
    process = begin("tmpfs", *length)
    wait_for(lambda: is_ticking(roots))
    said, complaint = end(process, number)
    assert (process.returncode, complaint) == (code, "")
    assert "tmpfs: up in " in said


def test_an_interrupted_run_still_prints_its_object(roots: Roots, begin: Begin) -> None:
    process = begin("default", "--for", "50s", "--json")
    wait_for(lambda: is_ticking(roots))
    said, _ = end(process, signal.SIGTERM)
    assert process.returncode == 130
    result = json.loads(said)
    assert result["interrupted"]
    assert all(counts["windows"] > 0 for counts in result["dimensions"].values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_is_being_brought_up_leaves_nothing(roots: Roots, begin: Begin, number: int) -> None:
    process = begin("default", "--for", "50s")
    wait_for(lambda: (roots.state_root / "run.json").exists())
    end(process, number)
    assert process.returncode == 130


# ── runs in which something fails ────────────────────────────────────────────────────────────────────────────────────

HERE = Path(__file__).parent
FAILING = ("tmpfs", "--set", "dimensions.d4.workload=workloads_under_test:raises")


def test_a_dimension_that_fails_ends_the_run_and_what_was_seen_until_then_is_printed(roots: Roots) -> None:
    done = subprocess.run(command(roots, *FAILING), capture_output=True, text=True, timeout=PATIENCE_S, cwd=HERE)
    assert done.returncode == 1
    assert done.stderr.startswith("d4 exited with 1: workload workloads_under_test:raises raised")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if re.match(r"d\d +\d+ms ", line)] == NAMES
    assert any(line.startswith("tmpfs: up in ") for line in lines)


def test_a_failure_is_part_of_the_object_that_is_printed(roots: Roots) -> None:
    arguments = command(roots, *FAILING, "--json")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S, cwd=HERE)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert result["failed"].startswith("d4 exited with 1: workload")
    assert done.stderr.strip() == result["failed"].strip()
    assert list(result["dimensions"]) == NAMES


def test_ctrl_c_while_a_failed_run_is_taken_down_hides_nothing(roots: Roots) -> None:
    failing = ("--set", "dimensions.d4.workload=restart_workloads:fails", "--set", "dimensions.d4.args={ after = 150 }")
    pipe = subprocess.PIPE
    with subprocess.Popen(command(roots, "tmpfs", *failing), stdout=pipe, stderr=pipe, text=True, cwd=HERE) as process:
        wait_for(lambda: is_ticking(roots))
        wait_for(lambda: not is_ticking(roots))  # the failure has been seen
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "d4 exited with 1: workload restart_workloads:fails raised" in said[1]


def test_windows_of_a_dimension_that_hangs_are_missed_and_it_is_named(roots: Roots) -> None:
    hanging = ("--set", "dimensions.d4.workload=hostile", "--set", 'dimensions.d4.args={ kind = "spin", after = 20 }')
    done = run(roots, "tmpfs", "--for", "2s", *hanging)
    assert (done.returncode, done.stderr) == (0, "")
    assert "d4 hung: " in done.stdout
    counts = json.loads(run(roots, "tmpfs", "--for", "2s", *hanging, "--json").stdout)["dimensions"]
    assert counts["d4"]["windows"] > counts["d7"]["windows"]
    assert counts["d4"]["missed"] >= counts["d4"]["missed_unrecorded"] > 100
    assert counts["d5"]["missed_unrecorded"] == 0


def test_a_dimension_that_the_kernel_killed_for_its_memory_is_said_to_be_short_of_it(roots: Roots) -> None:
    greedy = ("--set", "dimensions.d4.workload=hostile", "--set", 'dimensions.d4.args={ kind = "memory", after = 20 }')
    done = run(roots, "tmpfs", *greedy, "--set", "dimensions.d4.memory=48M", "--set", "dimensions.d4.enforce=none")
    assert done.returncode == 1
    assert done.stderr == "d4 was killed by SIGKILL, short of memory (at most 48M)\n"


def test_a_program_that_has_done_its_work_before_the_end_is_named(roots: Roots) -> None:
    program = {"gate": "freezer", "exec": '["/usr/bin/true"]', "binds": '["/usr", "/lib", "/lib64"]'}
    settings = [word for name, value in program.items() for word in ("--set", f"dimensions.d9.{name}={value}")]
    done = run(roots, "tmpfs", "--for", "1s", *settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "d9: its program ended with 0 before the run did" in done.stdout


# ── runs that are refused: one line, and nothing is left ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "code", "beginning"),
    [
        ("base_window=10us", 1, "d1, d2, d3: window 3.333us; d4, d5, d6: window 10us; d7, d8, d9: window 30us: exp"),
        ("dimensions.d3.workload=nowhere:run", 1, "d3: unknown workload 'nowhere:run': expected module:function"),
        ("dimensions.d3.workload=nothing", 2, 'tmpfs.toml: override dimensions.d3.workload: "nothing" - expected'),
        ("dimensions.d3.cpus=[4000]", 1, "d3: cpus 4000: expected CPUs that may be used on this host"),
        ("base_window=6", 2, "tmpfs.toml: override base_window: 6 - expected a duration with its unit"),
    ],
)
def test_what_cannot_be_run_is_one_line(roots: Roots, override: str, code: int, beginning: str) -> None:
    done = run(roots, "tmpfs", "--for", "1s", "--set", override)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(beginning)
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_testbed_is_named_with_file_and_line(roots: Roots, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base_window = "6ms"\n\n[dimensions.d1]\namplitude = 0\nstorage = { kind = "xfs" }\n')
    done = run(roots, str(file), "--for", "1s")
    assert (done.returncode, done.stdout) == (2, "")
    amplitude, storage = done.stderr.splitlines()
    assert amplitude.startswith(f"{file}:4: dimensions.d1.amplitude: 0 - expected")
    assert storage.startswith(f"{file}:5: dimensions.d1.storage.kind: ")


def test_a_length_that_is_no_duration_is_refused(roots: Roots) -> None:
    done = run(roots, "tmpfs", "--for", "10")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith('command line: --for: "10" - expected a duration')


def test_a_state_root_in_use_is_refused_and_the_other_run_goes_on(roots: Roots, begin: Begin) -> None:
    first = begin("tmpfs", "--for", "50s", "--json")
    wait_for(lambda: is_ticking(roots))
    holder = supervisor_of(roots)
    second = run(roots, "tmpfs", "--for", "1s")
    said, complaint = end(first, signal.SIGINT)
    assert (second.returncode, second.stdout.strip()) == (1, "")
    assert second.stderr.startswith(f"state root {roots.state_root} is in use by another run (pid {holder}): ")
    assert len(second.stderr.splitlines()) == 1
    assert (first.returncode, complaint) == (130, "")
    assert all(counts["windows"] > 0 for counts in json.loads(said)["dimensions"].values())


def test_a_full_disk_is_one_line(roots: Roots) -> None:
    mount.mount("tmpfs", roots.state_root, "tmpfs", options="size=100M")
    try:
        done = run(roots, "default", "--for", "1s")
        left = left_behind(roots)
    finally:
        mount.unmount(roots.state_root)
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert done.stderr.startswith(f"{roots.state_root}/d5.1.img: no room for 64 MiB on its filesystem")
    assert len(done.stderr.splitlines()) == 1
    assert [item for item in left if item.kind != "mount"] == []


def test_without_root_a_run_is_refused(roots: Roots) -> None:
    done = subprocess.run(
        command(roots, "tmpfs", "--for", "1s"), capture_output=True, text=True, check=False, user=65534, cwd="/"
    )
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert "needs root" in done.stderr
    assert len(done.stderr.splitlines()) == 1
