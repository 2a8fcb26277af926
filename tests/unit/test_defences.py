"""Defences that a testbed may demand, and limits of I/O: read, refused with what to do, and planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vcg import config, defences, plan
from vcg.defences import NEEDED_FOR, Finding
from vcg.errors import ConfigError, HostError
from vcg.linux import cgroup, landlock, seccomp
from vcg.linux.cgroup import IO_LIMITS, Hierarchies
from vcg.plan import HostShape

HOST = HostShape((0, 1), {0: 0, 1: 0})


def load(**overrides: Any) -> config.Testbed:
    return config.load("default", {path.replace("__", "."): value for path, value in overrides.items()})


# ── what a testbed demands ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_defence_can_be_looked_for_on_any_host() -> None:
    for name in NEEDED_FOR:
        finding = defences.examine(name)
        assert finding.found
        assert finding.is_here or finding.fix


def test_every_controller_is_a_defence() -> None:
    assert set(cgroup.CONTROLLERS) <= set(NEEDED_FOR)


def test_a_demand_that_is_met_changes_nothing() -> None:
    demanding = load(require=list(NEEDED_FOR))
    made = plan.make(demanding, HOST, examine=lambda name: Finding(True, "here", ""))
    assert made.dimensions == plan.make(load(), HOST).dimensions


def test_what_is_missing_is_named_with_what_it_is_for_and_what_to_do_each_on_its_line() -> None:
    found = {
        "landlock": Finding(False, "none that can be used", "boot with lsm=landlock"),
        "memory": Finding(True, "v1", ""),
        "seccomp": Finding(False, "none", "CONFIG_SECCOMP_FILTER"),
    }
    with pytest.raises(HostError) as caught:
        plan.make(load(require=list(found)), HOST, examine=found.__getitem__)
    first, second = str(caught.value).splitlines()
    assert first.startswith("require landlock: none that can be used: expected it, for a second wall around")
    assert "boot with lsm=landlock" in first
    assert second.startswith("require seccomp: none: expected it, for refusing system calls")


def test_nothing_is_looked_for_that_nobody_demands() -> None:
    plan.make(load(), HOST, examine=lambda name: pytest.fail(f"looked for {name}"))


@pytest.mark.parametrize(("value", "message"), [("landlok", 'did you mean "landlock"'), (1, "known are landlock")])
def test_an_unknown_demand_is_refused_with_what_is_known(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match="expected a defence of the host") as caught:
        load(require=[value])
    assert message in str(caught.value)


def test_without_landlock_and_filters_the_findings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setattr(seccomp, "is_available", lambda: False)
    assert not defences.examine("landlock").is_here
    assert "CONFIG_SECURITY_LANDLOCK" in defences.examine("landlock-scopes").fix
    assert defences.examine("seccomp") == Finding(False, "none", "CONFIG_SECCOMP_FILTER")


def test_an_older_landlock_lacks_only_the_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 4)
    assert defences.examine("landlock").is_here
    assert defences.examine("landlock-scopes") == Finding(False, "ABI 4", "Linux 6.12 or newer")


def test_without_libseccomp_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bit: int | None) -> bytes:
        raise HostError("can't compile")

    monkeypatch.setattr(seccomp, "compile_policy", fail)
    assert defences.examine("seccomp") == Finding(False, "can't compile", "apt-get install libseccomp2")


def test_the_io_controller_of_v1_comes_with_a_reservation(tmp_path: Path) -> None:
    on_v1 = defences.controller(Hierarchies(None, frozenset(), {"io": tmp_path}), "io")
    on_v2 = defences.controller(Hierarchies(tmp_path, frozenset({"io"}), {}), "io")
    assert on_v1.is_here and "not of what the kernel writes back later" in on_v1.found
    assert on_v2.is_here and "writes" not in on_v2.found


# ── limits of I/O ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_limits_of_io_are_planned_in_bytes_and_operations_a_second() -> None:
    limits = {"read_bps": "20M", "write_bps": "512K", "read_iops": 100}
    made = plan.make(load(dimensions__d4__io=limits), HOST)
    assert made.dimensions[3].io == {"read_bps": 20 << 20, "write_bps": 512 << 10, "read_iops": 100}
    assert all(d.io == {} for d in made.dimensions if d.name != "d4")
    assert set(made.dimensions[3].io) < set(IO_LIMITS)
    assert plan.Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"write_bps": "1K"}, "expected at least 4K a second"),
        ({"write_bps": 100}, "expected a size"),
        ({"read_iops": 0}, "expected .*1"),
        ({"speed": "1M"}, "unknown field; known are read_bps, write_bps, read_iops, write_iops"),
    ],
)
def test_limits_that_mean_nothing_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(dimensions__d4__io=limits)


def test_a_tmpfs_takes_no_limits_of_io() -> None:
    with pytest.raises(ConfigError, match="a tmpfs does no I/O"):
        load(dimensions__d1__io={"write_bps": "1M"})


def test_a_testbed_with_demands_and_limits_survives_resolving() -> None:
    testbed = load(require=["seccomp"], dimensions__d4__io={"write_bps": "1M"})
    assert config.from_mapping(testbed.resolved()) == testbed
