"""The doctor on this host: it finds what the tests themselves rely on, changes nothing, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vcg import audit, config, doctor, floor, gatefloor, plan
from vcg.errors import HostError
from vcg.linux import numa, sched
from vcg.run import Run

pytestmark = pytest.mark.usefixtures("root")
NOBODY = 65534


@pytest.fixture
def known_floor(roots: Any) -> floor.Floor:
    """Floors in the state root, so that a test need not measure any."""
    measurement = floor.Measurement(250_000, 4000, 0, 15_000.0, 40_000.0, 0.1)
    known = floor.Floor(250_000, floor.identity(), "2026-01-01T00:00:00+00:00", (measurement,))
    floor.store(known, roots.state_root)
    held = gatefloor.Measurement(5_000_000, 100, 0, 1.0, 90_000.0)
    floor.store(replace(known, floor_ns=5_000_000, measurements=(held,)), roots.state_root, gatefloor.FILE)
    return known


@pytest.mark.usefixtures("known_floor")
def test_this_host_has_everything_that_is_required(roots: Any) -> None:
    checks = doctor.examine(*roots, measure_again=False)
    assert [check for check in checks if check.required and not check.ok] == []
    assert len({check.name for check in checks}) == len(checks)


def test_it_leaves_nothing_but_the_floor(roots: Any, known_floor: floor.Floor) -> None:
    policy, affinity = os.sched_getscheduler(0), os.sched_getaffinity(0)
    doctor.examine(*roots, measure_again=False)
    of_roots = [item for item in audit.leftovers(*roots) if item.kind not in ("process", "cgroup")]
    groups = [item for item in audit.cgroups() if item.name.endswith(f"doctor-{os.getpid()}")]
    assert (of_roots, groups) == ([], [])
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == (policy, affinity)
    assert floor.load(roots.state_root) == known_floor


@pytest.mark.usefixtures("known_floor")
def test_checks_of_other_packages_are_included(roots: Any) -> None:
    assert "kernel headers" in {check.name for check in doctor.examine(*roots, measure_again=False)}


def test_what_still_lies_in_the_state_root_is_shown(roots: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SHOWN", 1000)  # whatever other runs there are on this host
    (roots.state_root / "d4.img").touch()
    check = doctor.check_leftovers(*roots)
    assert not check.ok
    assert "d4.img" in check.found


def test_a_run_that_is_going_on_is_no_leftover_of_a_killed_one(roots: Any) -> None:
    places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
    testbed = {"name": "one", "base_window": "10ms", "dimensions": {"d1": {}}, **places}
    with Run(plan.make(config.from_mapping(testbed), numa.observe())) as run:
        elsewhere = roots.state_root.parent / "elsewhere"
        check = doctor.check_leftovers(elsewhere, elsewhere)
        assert check.ok
        assert "a run is going on (pid " in check.found
        assert str(run.supervisor_pid) in check.found


def test_a_state_root_without_room_for_an_image_is_no_place_for_loop_devices() -> None:
    check = doctor.check_loop_devices(Path("/proc"))
    assert (check.ok, check.required) == (False, True)


def test_the_freezer_gates_floor_is_measured_with_a_real_run_and_kept(
    roots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatefloor, "PERIODS_NS", (20_000_000, 200_000))
    monkeypatch.setattr(gatefloor, "MIN_WINDOWS", 20)
    measured = doctor.check_freezer(roots.state_root, measure_again=False)
    kept = gatefloor.load(roots.state_root)
    assert kept is not None
    first = kept.measurements[0]
    assert first.period_ns == 20_000_000
    assert first.windows >= gatefloor.MIN_WINDOWS
    assert 0 <= first.lost <= first.windows
    assert 0 < first.spent < 2
    assert first.lateness_p99_ns > 0
    # In windows as short as its clearance the gate thaws nothing.
    assert not any(m.sustained for m in kept.measurements if m.period_ns == 200_000)
    assert doctor.check_freezer(roots.state_root, measure_again=False) == measured
    assert audit.leftovers(*roots) == []


def test_an_attempt_that_dies_in_its_child_is_a_failed_check() -> None:
    check = doctor.attempt_in_child(lambda: os._exit(3), "name", "purpose", "fix", required=True)
    assert not check.ok
    assert "status" in check.found


def test_an_attempt_in_a_child_changes_nothing_here() -> None:
    def act() -> str:
        sched.set_fifo(1)
        return "granted"

    assert doctor.attempt_in_child(act, "name", "purpose", "fix", required=True).found == "granted"
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_without_root_it_says_so_and_fails() -> None:
    script = "import typer; from vcg.doctor import doctor; typer.run(doctor)"
    done = subprocess.run(
        [sys.executable, "-c", script, "--json"], user=NOBODY, capture_output=True, text=True, check=False, cwd="/"
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    assert [check["name"] for check in report["checks"] if check["required"] and not check["ok"]] == ["root"]


def as_nobody(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, user=NOBODY, capture_output=True, text=True, check=False, cwd="/")


def test_without_root_the_floor_is_not_measured_and_the_message_says_why() -> None:
    done = as_nobody(
        "from pathlib import Path; from vcg import errors, floor\n"
        "floor.STATE_ROOT = Path('/nonexistent')\n"
        "try: floor.ensure()\n"
        "except errors.HostError as error: print(error)"
    )
    assert done.stdout == "measuring the floor of the window needs root (try: sudo vcg doctor)\n"


def test_a_floor_that_may_not_be_read_is_not_known(roots: Any, known_floor: floor.Floor) -> None:
    place = str(roots.state_root)
    script = f"from pathlib import Path; from vcg import floor; print(floor.window_floor_ns(Path({place!r})))"
    roots.state_root.parent.parent.chmod(0o755)
    roots.state_root.parent.chmod(0o755)
    assert as_nobody(script).stdout == f"{known_floor.floor_ns}\n"
    roots.state_root.chmod(0o700)
    assert as_nobody(script).stdout == "None\n"


def test_filesystems_are_made_and_mounted_and_nothing_stays() -> None:
    before = sorted(Path("/sys/block").glob("loop*/loop/backing_file"))
    check = doctor.check_filesystems()
    assert check.ok, check.found
    assert not list(Path("/tmp").glob("vcg-doctor-*"))
    deadline = time.monotonic() + 5
    while sorted(Path("/sys/block").glob("loop*/loop/backing_file")) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [path for path in before if "vcg-doctor" in path.read_text()]


def test_a_kernel_without_ext4_or_its_tools_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcg.storage._PATH", {"PATH": "/nonexistent"})
    check = doctor.check_filesystems()
    assert (check.ok, check.required) == (False, True)
    assert "mkfs.ext4" in check.found


def test_a_damaged_floor_is_a_failed_check_that_names_the_file(roots: Any) -> None:
    (roots.state_root / "host.json").write_text("{")
    check = doctor.check_floor(roots.state_root, measure_again=False)
    assert (check.ok, check.required) == (False, True)
    assert "host.json" in check.found


def test_the_clock_alone_publishes_every_edge_or_says_that_it_skipped_it() -> None:
    alone = floor.run_alone(1_000_000, 0.2, max(os.sched_getaffinity(0)))
    assert alone.edges == 200
    assert len(alone.lateness_ns) + alone.skipped == alone.edges
    assert min(alone.lateness_ns) >= 0
    assert 0 < alone.cpu_share < 1


def test_a_clock_that_cannot_be_placed_says_why() -> None:
    with pytest.raises(HostError, match="CPU 4095 ended: OSError") as caught:
        floor.run_alone(1_000_000, 0.2, 4095)
    assert len(str(caught.value).splitlines()) == 1


def test_the_floor_is_measured_where_a_plan_puts_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def run_alone(period_ns: int, seconds: float, cpu: int) -> floor.Alone:
        places.append(cpu)
        return floor.Alone(period_ns, round(seconds * 1e9 / period_ns), 0, 0.1, [0, 0], [0, 0])

    monkeypatch.setattr(floor, "run_alone", run_alone)
    assert floor.measure().floor_ns == floor.PERIODS_NS[-1]
    assert set(places) == {plan.make(config.load("default"), numa.observe()).rtd.cpus[0]}


def test_the_floor_is_measured_once_and_kept(roots: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "PERIODS_NS", (5_000_000,))
    measured = doctor.check_floor(roots.state_root, measure_again=False)
    kept = floor.load(roots.state_root)
    assert kept is not None
    assert kept.measurements[0].period_ns == 5_000_000
    assert doctor.check_floor(roots.state_root, measure_again=False) == measured
