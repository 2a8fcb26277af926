"""Sweeps on the real kernel: whole trials, resumed after any end, with probes, oracles and the reference thread."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

import experiments
from experiments import plan, report, runner, trial
from experiments.reference import PERIOD_NS, SAMPLE, Reference
from experiments.store import ResultsError
from vcg.linux import mount

pytestmark = pytest.mark.usefixtures("root")

VCG = str(Path(sys.executable).with_name("vcg"))


class Roots(Protocol):
    state_root: Path
    mount_root: Path


TESTBED = """
base_window = "10ms"
state_root = "{state}"
mount_root = "{mount}"
[triads.only]
members = ["d1", "d2", "d3"]
harmonic = "1"
scheduling = "fifo:20"
workload = "spin"
storage = {{ kind = "tmpfs", size = "1M" }}
[dimensions]
d3.storage = {{ kind = "ext4", size = "4M" }}
d3.workload = "fsync"
"""
SWEEP = """
testbed = "bed.toml"
duration = "{duration}"
warmup = "100ms"
repetitions = {repetitions}
seed = 5
max_reruns = 0
[void]
steal_share = 1.0
foreign_cpu_share = 1.0
reference_p99 = "10s"
reference_p99_factor = 1000000
[axes.stagger.on]
stagger = true
[axes.stagger.off]
stagger = false
probes = ["sched", "block"]
"""


@pytest.fixture
def write_sweep(roots: Roots, tmp_path: Path) -> Callable[..., Path]:
    """Write a small testbed in this test's own roots and a sweep over it."""

    def write(duration: str = "600ms", repetitions: int = 1) -> Path:
        (tmp_path / "bed.toml").write_text(TESTBED.format(state=roots.state_root, mount=roots.mount_root))
        path = tmp_path / "small.toml"
        path.write_text(SWEEP.format(duration=duration, repetitions=repetitions))
        return path

    return write


def vcg(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VCG, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def stored(directory: Path) -> list[Path]:
    return sorted(directory.glob("trials/[!.]*/trial.json"))


def start_and_wait_for_a_trial(sweep: Path, out: Path, trials: int) -> subprocess.Popen[str]:
    """A sweep in its own process that has stored some trials and is inside the next one."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [VCG, "sweep", "run", str(sweep), "--out", str(out)], stdout=pipe, stderr=pipe, text=True
    )
    wait_for(lambda: len(stored(out)) >= trials or process.poll() is not None, f"{trials} trials")
    assert process.poll() is None, process.communicate()
    time.sleep(1.0)
    return process


def test_a_sweep_from_file_to_report(write_sweep: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = vcg("sweep", "run", write_sweep(), "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert str(out / "report.html") in ran.stdout
    assert (out / "report.html").stat().st_size > 100_000

    results = experiments.load(out)
    assert len(results.trials) == 2
    for record in results.records:
        assert not any(record.lost.values())
        assert record.refused == []
        assert not [reason for reason in record.void_reasons if "lost" in reason or "refused" in reason]
        assert record.facts["reference_p99_ns"] > 0
    windows = results.windows
    per_dimension = windows.groupby(["trial", "dimension"], observed=True)["window"]
    assert (per_dimension.count() == 70).all()
    assert (per_dimension.max() == 69).all()
    entered = windows["outcome"].isin(["done", "overrun"])
    assert entered.mean() > 0.5
    assert (windows.loc[entered, "lateness_ns"] >= 0).all()
    assert (windows["lateness_ns"].notna() == entered).all()

    agreement = results.agreement
    assert set(agreement["probe"]) == {"sched", "block", "migrate"}
    of_dimensions = agreement.groupby("probe")["dimension"].agg(set)
    assert of_dimensions["sched"] == of_dimensions["migrate"] == {"d1", "d2", "d3"}
    assert of_dimensions["block"] == {"d3"}
    counted_alike = agreement.loc[agreement["probe"].isin(["block", "migrate"])]
    disagreeing = counted_alike.loc[[agrees is False for agrees in counted_alike["agrees"]]]
    assert disagreeing.empty, disagreeing
    page = re.sub(r"\s+", " ", (out / "report.html").read_text())
    for row in report.agreement_rows(agreement):
        ended = "".join(f"<td[^>]*>{row[key]}</td>" for key in ("within", "agreed", "not_comparable", "disagreed"))
        assert re.search(f">{row['quantity']}</td>.*?{ended}", page), row
    if any(agrees is None for agrees in counted_alike["agrees"]):
        assert "I/O was in flight at an end of the interval" in page
    by_level = {record.levels["stagger"]: record for record in results.records}
    assert by_level["off"].probes == ["sched", "block"]
    assert {row["probe"] for row in by_level["off"].agreement} == {"sched", "block"}
    latencies = results.histograms.groupby(["probe", "dimension"], observed=True)["count"].sum()
    assert (latencies.loc["sched"] >= 70).all()
    assert latencies.loc["block", "d3"] > 0
    assert results.probe_cost["run_ns"].sum() > 0
    assert (results.probe_cost["missed"] >= 0).all()

    reference = results.reference
    assert (reference.groupby("trial", observed=True)["planned_ns"].diff().dropna() == PERIOD_NS).all()
    assert results.trials["wall_ns"].between(700_000_000, 5_000_000_000).all()
    host = results.metadata["starts"][0]
    assert host["kernel"] == os.uname().release
    assert host["clocksource"]
    assert host["packages"]["pandas"]


def test_a_complete_sweep_is_not_run_again(write_sweep: Callable[..., Path], tmp_path: Path) -> None:
    sweep, out = write_sweep(duration="600ms"), tmp_path / "out"
    assert vcg("sweep", "run", sweep, "--out", out).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in stored(out)}
    again = vcg("sweep", "run", sweep, "--out", out, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["trials"] == 2
    assert {path: path.stat().st_mtime_ns for path in stored(out)} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_keeps_what_is_finished_and_goes_on(
    write_sweep: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    sweep, out = write_sweep(duration="2s"), tmp_path / "out"
    process = start_and_wait_for_a_trial(sweep, out, 1)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"vcg sweep run {sweep} --out {out}" in output
    before = {path: path.stat().st_mtime_ns for path in stored(out)}
    assert len(before) == 1
    assert vcg("sweep", "run", sweep, "--out", out).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in stored(out)}
    assert len(after) == 2
    assert before.items() <= after.items()


def test_a_killed_sweep_leaves_whole_trials_and_goes_on(write_sweep: Callable[..., Path], tmp_path: Path) -> None:
    sweep, out = write_sweep(duration="2s"), tmp_path / "out"
    process = start_and_wait_for_a_trial(sweep, out, 1)
    process.kill()
    process.communicate()
    assert len(experiments.load(out).records) == 1
    resumed = vcg("sweep", "run", sweep, "--out", out)
    assert resumed.returncode == 0, resumed.stderr
    results = experiments.load(out)
    assert len(results.records) == 2
    assert len(results.metadata["starts"]) == 2


def test_another_sweep_is_refused_and_told_what_differs(write_sweep: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert vcg("sweep", "run", write_sweep(duration="600ms"), "--out", out).returncode == 0
    other = vcg("sweep", "run", write_sweep(duration="700ms"), "--out", out)
    assert other.returncode == 1
    assert 'sweep.duration: recorded "600ms", now "700ms"' in other.stderr
    assert "Traceback" not in other.stderr


def test_a_workload_that_fails_stops_the_sweep_with_its_message(
    write_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    sweep, out = write_sweep(), tmp_path / "out"
    bed = tmp_path / "bed.toml"
    bed.write_text(bed.read_text().replace('"spin"', '"json:loads"'))
    ran = vcg("sweep", "run", sweep, "--out", out)
    assert ran.returncode == 1
    assert "workload json:loads raised TypeError" in ran.stderr
    assert not stored(out)


def test_a_window_below_the_floor_is_refused_before_the_first_trial(
    write_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    sweep, out = write_sweep(), tmp_path / "out"
    sweep.write_text(sweep.read_text() + '[axes.window.short]\n"base_window" = "10us"\n')
    ran = vcg("sweep", "run", sweep, "--out", out)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "10us" in line
    assert not out.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for a few trials."""
    place = tmp_path / "disk"
    place.mkdir()
    mount.mount("tmpfs", place, "tmpfs", options="size=8M")
    try:
        yield place
    finally:
        mount.unmount(place)


def fill(disk: Path) -> Path:
    """Leave no room on a file system; returns the file that takes it."""
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_full_disk_loses_nothing_and_the_sweep_goes_on_when_there_is_room(
    write_sweep: Callable[..., Path], small_disk: Path
) -> None:
    sweep, out = write_sweep(duration="2s"), small_disk / "out"
    process = start_and_wait_for_a_trial(sweep, out, 1)
    ballast = fill(small_disk)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert f"{out}/trials/" in errors
    assert "No space left on device" in errors
    before = {path: path.stat().st_mtime_ns for path in stored(out)}
    assert len(before) == 1
    assert not list(out.rglob(".*.partial"))

    ballast.unlink()
    resumed = vcg("sweep", "run", sweep, "--out", out)
    assert resumed.returncode == 0, resumed.stderr
    assert len(stored(out)) == 2
    assert before.items() <= {path: path.stat().st_mtime_ns for path in stored(out)}.items()

    page = (out / "report.html").read_bytes()
    fill(small_disk)
    again = vcg("report", out)
    assert again.returncode == 1
    assert "No space left on device" in again.stderr
    assert "Traceback" not in again.stderr
    assert (out / "report.html").read_bytes() == page


def test_a_sweep_that_cannot_even_begin_for_lack_of_room_can_be_given_again(
    write_sweep: Callable[..., Path], small_disk: Path
) -> None:
    sweep, out = write_sweep(), small_disk / "out"
    ballast = fill(small_disk)
    ran = vcg("sweep", "run", sweep, "--out", out)
    assert ran.returncode == 1
    assert f"{out}" in ran.stderr
    assert "No space left on device" in ran.stderr
    ballast.unlink()
    assert vcg("sweep", "run", sweep, "--out", out).returncode == 0
    assert len(stored(out)) == 2


def test_a_directory_with_something_else_in_it_is_refused(write_sweep: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(ResultsError, match="not empty"):
        runner.run(plan.load(write_sweep()), tmp_path / "other", lambda event: None)


def test_the_reference_thread_records_every_timer() -> None:
    with Reference(cpu=max(os.sched_getaffinity(0)), seconds=5) as reference:
        assert os.sched_getscheduler(reference.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        assert os.sched_getaffinity(reference.pid) == {max(os.sched_getaffinity(0))}
        time.sleep(0.3)
        samples = np.array(reference.stop()).reshape(-1, SAMPLE.words)
    planned, wake = samples.T
    assert len(samples) > 100
    assert (np.diff(planned) == PERIOD_NS).all()
    assert (wake >= planned).all()


def test_the_reference_thread_dies_with_the_process_that_started_it() -> None:
    code = (
        "import time; from experiments.reference import Reference\n"
        f"with Reference({max(os.sched_getaffinity(0))}, 60) as r: print(r.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}/comm").read_text().strip() == "vcg:reference"
        parent.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the reference thread's end")


def test_the_reference_thread_does_not_outlive_a_parent_that_is_gone_already() -> None:
    command = [sys.executable, "-m", "experiments.reference", str(2**22), "0", "0", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode != 0
    assert f"parent {2**22} ended" in ended.stderr


def test_the_reference_thread_reports_why_it_cannot_start() -> None:
    with pytest.raises(experiments.reference.ReferenceThreadError, match="cpu 999"), Reference(cpu=999, seconds=1):
        pass


def test_foreign_work_is_seen_as_foreign() -> None:
    seconds = 1.5
    busy = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    # setsid --fork leaves a process that does not descend from this one any more.
    subprocess.run(["setsid", "--fork", sys.executable, "-c", busy], check=True)
    time.sleep(0.2)
    before = trial.sample_host([])
    time.sleep(seconds - 0.5)
    _, foreign = trial.host_shares(before, trial.sample_host([]))
    assert foreign > 0.2 / (os.cpu_count() or 1)
    time.sleep(0.5)
