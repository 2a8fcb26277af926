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
from vcg.linux.cgroup import Hierarchies

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


def searched(floor_ns: float, *, fails_once: bool = False) -> list[int]:
    """The periods that are tried, in order, on a host that sustains those from ``floor_ns`` on."""
    tried: list[int] = []

    def measure(period_ns: int) -> Measurement:
        tried.append(period_ns)
        good = period_ns >= floor_ns and not (fails_once and tried.count(period_ns) == 1)
        return replace(GOOD, period_ns=period_ns, skipped=0 if good else GOOD.edges)

    made = floor.search(measure)
    assert [m.period_ns for m in made] == tried
    every = [*floor.PERIODS_NS, *floor.SLOW_PERIODS_NS]
    assert floor.choose(made) == min((period_ns for period_ns in every if period_ns >= floor_ns), default=None)
    return tried


def test_a_fast_host_is_searched_down_to_the_first_period_that_fails_twice() -> None:
    assert searched(250_000) == [1_000_000, 500_000, 400_000, 300_000, 250_000, 200_000, 200_000]
    assert searched(0) == list(floor.PERIODS_NS)


def test_a_slow_host_is_searched_up_to_the_first_period_that_it_sustains() -> None:
    assert searched(4_000_000) == [1_000_000] * 2 + [2_000_000] * 2 + [5_000_000]
    assert searched(50_000_000)[-1] == 50_000_000
    assert len(searched(float("inf"))) == 2 * (1 + len(floor.SLOW_PERIODS_NS))


def test_a_passing_disturbance_does_not_raise_the_floor() -> None:
    assert searched(250_000, fails_once=True)[-3:] == [250_000, 200_000, 200_000]


def test_an_rtd_that_published_next_to_nothing_sustains_nothing() -> None:
    assert not Measurement.of(floor.Alone(1_000_000, 300, 299, 0.01, [5], [5])).sustained


def test_percentiles_are_taken_over_the_publications() -> None:
    alone = floor.Alone(1_000_000, 101, 1, 0.25, list(range(101)), [0] * 101)
    assert Measurement.of(alone) == Measurement(1_000_000, 101, 1, 50.0, 99.0, 0.25)


def test_a_stored_floor_is_read_back(tmp_path: Path) -> None:
    measured = floor.Floor(250_000, floor.identity(), "2026-01-01T00:00:00+00:00", (GOOD,))
    floor.store(measured, tmp_path)
    assert floor.load(tmp_path) == measured
    assert floor.window_floor_ns(tmp_path) == 250_000


def test_no_floor_is_known_before_it_is_measured(tmp_path: Path) -> None:
    assert floor.window_floor_ns(tmp_path / "nothing") is None


@pytest.mark.parametrize("other", [{"kernel": "5.0"}, {"cpu_model": "another"}])
def test_the_floor_of_another_kernel_or_cpu_is_not_used(tmp_path: Path, other: dict[str, str]) -> None:
    floor.store(floor.Floor(250_000, replace(floor.identity(), **other), "", (GOOD,)), tmp_path)
    assert floor.window_floor_ns(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"floor_ns": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    with pytest.raises(HostError, match=r"host\.json.*vcg doctor"):
        floor.load(tmp_path)


def test_a_floor_that_is_known_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "STATE_ROOT", tmp_path)
    monkeypatch.setattr(floor, "measure", lambda: pytest.fail("measured"))
    floor.store(floor.Floor(250_000, floor.identity(), "", (GOOD,)), tmp_path)
    assert floor.ensure() == 250_000


def test_a_host_that_sustains_nothing_is_measured_at_every_start_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = floor.Floor(None, floor.identity(), "", ())
    measured: list[floor.Floor] = []

    def measure() -> floor.Floor:
        measured.append(nothing)
        return nothing

    monkeypatch.setattr(floor, "STATE_ROOT", tmp_path)
    monkeypatch.setattr(floor, "measure", measure)
    for times in (1, 2):
        with pytest.raises(HostError, match=r"up to 50 ms .*vcg doctor"):
            floor.ensure()
        assert len(measured) == times


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


GCC = Check("gcc", False, "not found", "bench", "apt-get install gcc", False)


def test_packages_are_not_installed_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostError, match=r"needs root .*by hand: gcc"):
        doctor.install([GCC])


@pytest.mark.parametrize(
    ("program", "message"),
    [(None, "apt-get, which is not here: install by hand: gcc"), ("exit 100", "exit code 100: .*by hand: gcc")],
)
def test_an_installation_that_fails_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, message: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    if program:
        (tmp_path / "apt-get").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(HostError, match=message):
        doctor.install([GCC])


def test_a_service_that_comes_with_a_program_is_stopped_and_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("apt-get", "update-rc.d", "invoke-rc.d"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $* >>{tmp_path}/done\n")
        (tmp_path / name).chmod(0o755)
    redis = replace(GCC, name="redis-server", fix="apt-get install redis-server redis-tools")
    assert doctor.install([GCC, redis]) == ["gcc", "redis-server", "redis-tools"]
    assert (tmp_path / "done").read_text().splitlines()[-2:] == [
        "update-rc.d redis-server disable",
        "invoke-rc.d redis-server stop",
    ]


@given(st.lists(st.integers(1, 10**8), min_size=100, max_size=400))
def test_at_the_freezers_floor_the_window_is_twenty_times_the_p99(latencies_ns: list[int]) -> None:
    shortest_ns = doctor.freezer_floor_ns(latencies_ns)
    within = sum(latency <= shortest_ns * doctor.FREEZER_SHARE for latency in latencies_ns)
    assert within >= 0.99 * len(latencies_ns)
    assert shortest_ns <= max(latencies_ns) / doctor.FREEZER_SHARE + 1


def group(place: Path, *, root: bool, handed_down: str) -> Hierarchies:
    """A directory that looks like a v2 cgroup with cpu and memory, which hands down some of them."""
    (place / "cgroup.controllers").write_text("cpu memory\n")
    (place / "cgroup.subtree_control").write_text(f"{handed_down}\n")
    if not root:
        (place / "cgroup.type").write_text("domain\n")
    return Hierarchies(place, frozenset(handed_down.split()), {})


def test_a_controller_that_is_not_handed_down_is_missing_and_the_check_says_what_follows(tmp_path: Path) -> None:
    check = doctor.check_controller(group(tmp_path, root=False, handed_down=""), "memory")
    assert (check.ok, check.required) == (False, False)
    assert f"{tmp_path}, in which this process was started, hands down nothing" in check.found
    assert "without it there are none" in check.needed_for
    assert "echo 0 >/sys/fs/cgroup/cgroup.procs" in check.fix


def test_the_root_group_is_to_hand_it_down_itself(tmp_path: Path) -> None:
    check = doctor.check_controller(group(tmp_path, root=True, handed_down="cpu"), "memory")
    assert not check.ok
    assert "hands down cpu" in check.found
    assert check.fix == f"echo +memory >{tmp_path}/cgroup.subtree_control"


def test_a_controller_that_is_handed_down_is_there(tmp_path: Path) -> None:
    check = doctor.check_controller(group(tmp_path, root=False, handed_down="cpu memory"), "memory")
    assert check.ok
    assert check.found == f"v2, below {tmp_path}"


def test_a_controller_that_no_tree_has_is_missing(tmp_path: Path) -> None:
    check = doctor.check_controller(group(tmp_path, root=False, handed_down=""), "pids")
    assert not check.ok
    assert check.found == "neither in the v2 tree nor mounted as v1"
