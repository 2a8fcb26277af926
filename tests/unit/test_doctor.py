"""What the doctor concludes from what it is shown, and the rule by which the floor of the window is chosen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import doctor, floor, gatefloor, shm
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

    made = floor.search(measure, floor.PERIODS_NS, floor.SLOW_PERIODS_NS)
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


# ── the freezer gate ─────────────────────────────────────────────────────────────────────────────────────────────────
CREDIT_NS, PERIOD_NS = 2_250_000, 5_000_000


def record(number: int, **fields: int) -> list[int]:
    """Of a window in which the program was thawed at once, and frozen when it had what its token held."""
    planned_ns = number * PERIOD_NS
    kept = {
        "window": number,
        "outcome": shm.Outcome.DONE,
        "planned_ns": planned_ns,
        "entry_ns": planned_ns + 50_000,
        "finish_ns": planned_ns + 2_300_000,
        "budget_ns": CREDIT_NS,
        "used_ns": CREDIT_NS,
        "expires_ns": planned_ns + PERIOD_NS,
    }
    given = {**kept, **fields}
    return [given.get(name, 0) for name in shm.WINDOW.fields]


def judged(*spoiled: dict[str, int], windows: int = 100) -> gatefloor.Measurement:
    """A try of so many windows, the first of which are spoiled."""
    fields = [*spoiled, *({} for _ in range(windows - len(spoiled)))]
    words = [word for number, own in enumerate(fields) for word in record(number, **own)]
    return gatefloor.Measurement.of(PERIOD_NS, CREDIT_NS, windows, words)


def test_a_period_at_which_the_program_has_its_credit_in_every_window_is_sustained() -> None:
    measured = judged()
    assert measured == gatefloor.Measurement(PERIOD_NS, 100, 0, 1.0, 50_000)
    assert measured.sustained


EIGHTH_NS = CREDIT_NS // 8


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"outcome": shm.Outcome.MISSED, "used_ns": 0, "budget_ns": 0}, 1),
        ({"outcome": shm.Outcome.SKIPPED, "used_ns": 0, "budget_ns": 0}, 1),
        ({"outcome": shm.Outcome.OVERRUN, "finish_ns": 10 * PERIOD_NS}, 1),
        ({"outcome": shm.Outcome.OVERRUN, "used_ns": CREDIT_NS + EIGHTH_NS + 1}, 1),
        ({"used_ns": CREDIT_NS - EIGHTH_NS - 1}, 1),
        ({"outcome": shm.Outcome.OVERRUN, "used_ns": CREDIT_NS + EIGHTH_NS}, 0),
        ({"budget_ns": CREDIT_NS - 700_000, "used_ns": CREDIT_NS - 700_000}, 0),
    ],
    ids=["missed", "skipped", "frozen after the edge", "too much", "too little", "a little more", "debt paid"],
)
def test_a_window_is_lost_that_is_not_the_programs_for_as_long_as_its_token(fields: dict[str, int], lost: int) -> None:
    assert judged(fields).lost == lost


def test_one_window_in_a_hundred_may_be_lost_and_no_more() -> None:
    spoiled = {"finish_ns": 10 * PERIOD_NS}
    assert judged(spoiled).sustained
    assert not judged(spoiled, spoiled).sustained


def test_a_program_that_always_has_somewhat_less_than_its_credit_is_not_held_to_it() -> None:
    measured = judged(*[{"used_ns": CREDIT_NS * 9 // 10}] * 100)
    assert (measured.lost, measured.spent) == (0, 0.9)
    assert not measured.sustained


def test_windows_without_a_record_are_lost() -> None:
    assert gatefloor.Measurement.of(PERIOD_NS, CREDIT_NS, 100, record(0)).lost == 99
    nothing = gatefloor.Measurement.of(PERIOD_NS, CREDIT_NS, 0, [])
    assert not nothing.sustained


def gate_floor(tmp_path: Path, period_ns: int | None) -> None:
    """A stored floor of the gate."""
    measurements = (replace(judged(), period_ns=period_ns),) if period_ns else (replace(judged(), lost=100),)
    known = floor.Floor(period_ns, floor.identity(), "2026-01-01T00:00:00+00:00", measurements)
    floor.store(known, tmp_path, gatefloor.FILE)


@pytest.mark.parametrize(
    ("floor_ns", "shortest_ns"), [(1_000_000, 5_000_000), (10_000_000, 10_000_000), (None, 5_000_000)]
)
def test_testbeds_may_have_five_milliseconds_behind_the_gate_or_the_floor_if_it_is_longer(
    tmp_path: Path, floor_ns: int | None, shortest_ns: int
) -> None:
    assert gatefloor.shortest_window_ns(tmp_path) == 5_000_000
    gate_floor(tmp_path, floor_ns)
    assert gatefloor.shortest_window_ns(tmp_path) == shortest_ns


def test_a_gate_that_keeps_five_milliseconds_is_there_with_what_it_was_judged_by(tmp_path: Path) -> None:
    gate_floor(tmp_path, 2_000_000)
    check = doctor.check_freezer(tmp_path, measure_again=False)
    assert check.ok
    assert check.found == (
        "windows from 2 ms (0 of 100 lost, 100.0% of the credit used, thawed 50 us after the edge at the p99), "
        "measured 2026-01-01T00:00:00+00:00; testbeds may have them from 5 ms"
    )


@pytest.mark.parametrize(
    ("floor_ns", "found"),
    [(10_000_000, r"windows from 10 ms .*; expected are those from 5 ms"), (None, "no window up to 5 ms is kept")],
)
def test_a_gate_that_does_not_keep_five_milliseconds_is_missing_and_the_check_says_so(
    tmp_path: Path, floor_ns: int | None, found: str
) -> None:
    gate_floor(tmp_path, floor_ns)
    check = doctor.check_freezer(tmp_path, measure_again=False)
    assert (check.ok, check.required) == (False, False)
    assert re.match(found, check.found)
    assert gatefloor.FILE in check.fix


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
