"""What the doctor concludes from what it is shown, and the rule by which the floor of the window is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import doctor, floor
from vcg.doctor import Check
from vcg.errors import HostError
from vcg.floor import Measurement

GOOD = Measurement(250_000, 4000, 0, 15_000.0, 40_000.0, 0.1)


def test_a_period_that_the_clock_keeps_up_is_sustained() -> None:
    assert GOOD.sustained


@pytest.mark.parametrize(
    "spoiled",
    [replace(GOOD, skipped=4), replace(GOOD, lateness_p99_ns=125_000.0), replace(GOOD, cpu_share=0.5)],
    ids=["0.1 % of the edges skipped", "p99 lateness of half a period", "half a CPU"],
)
def test_each_limit_alone_makes_a_period_too_short(spoiled: Measurement) -> None:
    assert not spoiled.sustained


@given(st.dictionaries(st.sampled_from(floor.PERIODS_NS), st.booleans()))
def test_the_floor_is_the_shortest_sustained_period(sustained: dict[int, bool]) -> None:
    tried = [
        replace(GOOD, period_ns=period_ns, lateness_p99_ns=0.0 if good else 1.0 * period_ns)
        for period_ns, good in sustained.items()
    ]
    assert floor.choose(tried) == min((period_ns for period_ns, good in sustained.items() if good), default=None)


def test_percentiles_are_taken_over_the_publications() -> None:
    alone = floor.Alone(1_000_000, 101, 1, 0.25, list(range(101)), [0] * 101)
    assert Measurement.of(alone) == Measurement(1_000_000, 101, 1, 50.0, 99.0, 0.25)


def test_a_stored_floor_is_read_back(tmp_path: Path) -> None:
    measured = floor.Floor(250_000, floor.identity(), "2026-01-01T00:00:00+00:00", (GOOD,))
    floor.store(measured, tmp_path)
    assert floor.load(tmp_path) == measured
    assert doctor.window_floor_ns(tmp_path) == 250_000


def test_no_floor_is_known_before_it_is_measured(tmp_path: Path) -> None:
    assert doctor.window_floor_ns(tmp_path / "nothing") is None


@pytest.mark.parametrize("other", [{"kernel": "5.0"}, {"cpu_model": "another"}])
def test_the_floor_of_another_kernel_or_cpu_is_not_used(tmp_path: Path, other: dict[str, str]) -> None:
    floor.store(floor.Floor(250_000, replace(floor.identity(), **other), "", (GOOD,)), tmp_path)
    assert doctor.window_floor_ns(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"floor_ns": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    with pytest.raises(HostError, match=r"host\.json.*vcg doctor"):
        floor.load(tmp_path)


@pytest.mark.parametrize(
    ("release", "version"), [("6.1.0-56-amd64", (6, 1)), ("6.18.44", (6, 18)), ("5.14-rc1", (5, 14)), ("odd", (0, 0))]
)
def test_kernel_releases_are_read(release: str, version: tuple[int, int]) -> None:
    assert doctor.kernel_version(release) == version


def test_steal_is_a_share_of_all_time() -> None:
    assert doctor.steal_share("cpu  10 0 10 70 0 0 0 10 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n") == 0.1


def test_only_a_fix_that_installs_packages_names_packages() -> None:
    install = Check("gcc", False, "not found", "bench", "apt-get install gcc libc6-dev", False)
    assert install.packages == ("gcc", "libc6-dev")
    assert replace(install, fix="run it as root").packages == ()


def test_nothing_is_installed_for_checks_that_passed_or_need_no_package() -> None:
    passed = Check("gcc", True, "/usr/bin/gcc", "bench", "apt-get install gcc", False)
    assert doctor.install([passed, replace(passed, ok=False, fix="run it as root")]) == []


def test_a_command_that_is_not_there_is_missing() -> None:
    check = doctor.check_command("no-such-command-of-ours", "nothing", "nothing", required=True)
    assert not check.ok
    assert check.found == "not found"
