"""Lines 01 to 07 of what a dimension must not be able to do: tried from inside all nine at once, and each controlled.

The attacks and their controls are those of ``vcg bench escape``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.bench import attacks, escape
from experiments.bench.attacks import ATTACKS, TRAPS, Attack, Outcome
from vcg import audit, config, plan
from vcg.linux import numa, sandbox

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module")
def outside() -> Iterator[escape.Outside]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(prefix="vcg-", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        with escape.Outside(place) as made:
            yield made
        left = audit.leftovers(place / "s", place / "m")
        assert [item for item in left if item.kind in ("loop", "mount", "socket", "file")] == []


@pytest.fixture(scope="module")
def assaulted(outside: escape.Outside) -> tuple[dict[str, dict[str, Outcome]], dict[str, escape.Control]]:
    """What came of every attack in every dimension, and of every trap for the host's side."""
    overrides = {**roots(outside), **escape.OVERRIDES, "dimensions.*.binds": [str(outside.tools)]}
    return escape.assault(plan.make(config.load("default", overrides), numa.observe()), outside)


def roots(outside: escape.Outside) -> dict[str, str]:
    return {"state_root": str(outside.place / "s"), "mount_root": str(outside.place / "m")}


@pytest.mark.parametrize("name", [attack.name for attack in ATTACKS] + [trap.name for trap in TRAPS])
def test_no_dimension_succeeds(name: str, assaulted: tuple[dict[str, dict[str, Outcome]], object]) -> None:
    outcomes, _ = assaulted
    assert len(outcomes[name]) == 9
    assert {one.verdict for one in outcomes[name].values()} == {"refused"}, outcomes[name]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_attack_succeeds_without_its_defences_and_each_of_them_stops_it_alone(
    attack: Attack, outside: escape.Outside
) -> None:
    if attack.needs == "two CPUs" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    found = escape.control(attack, outside)
    assert found.without.verdict == "escaped", found.without
    assert {one: (outcome.verdict, outcome.detail) for one, outcome in found.alone.items()} == {
        one: ("refused", how) for one, how in attack.stopped_by.items()
    }


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_a_plain_open_is_led_astray_and_each_precaution_stops_that_alone(
    trap: attacks.Trap, assaulted: tuple[object, dict[str, escape.Control]]
) -> None:
    _, controls = assaulted
    found = controls[trap.name]
    assert found.without.verdict == "escaped", found.without
    assert {one: outcome.detail for one, outcome in found.alone.items()} == trap.stopped_by


def test_every_step_that_takes_something_away_is_there_for_an_attack_that_it_stops() -> None:
    """But for those that only arrange, and PDEATHSIG, dumpable and umask, whose attackers are no dimensions."""
    arranging = {"namespace", "root", "devices", "binds", "umask", "death", "dumpable"}
    steps = {name for name, _ in (*sandbox.enclosure(Path("/"), ()), *sandbox.surrendering(0, 0))}
    tried = set().union(*(escape.DEFENCES[one] for attack in ATTACKS for one in attack.stopped_by))
    assert steps - arranging == tried


def test_an_attack_that_is_itself_at_fault_does_not_pass_for_a_defence(outside: escape.Outside) -> None:
    def act(bait: attacks.Bait) -> str:
        raise KeyError("a mistake")

    assert attacks.attempt(Attack("01", "mistaken", act, {}), outside.bait).verdict == "broken"


def test_an_error_that_an_attack_does_not_name_does_not_pass_for_a_refusal(outside: escape.Outside) -> None:
    def act(bait: attacks.Bait) -> str:
        return Path("/a path that leads nowhere").read_text()

    assert attacks.attempt(Attack("01", "lost", act, {"uid": "EACCES"}), outside.bait).verdict == "broken"
    assert attacks.attempt(Attack("01", "lost", act, {"uid": "ENOENT"}), outside.bait).verdict == "refused"


def test_an_unmodified_program_behind_the_freezer_gate_is_confined_all_the_same(outside: escape.Outside) -> None:
    """Python itself is the program; what it attacks with it reads from the binds."""
    here = str(Path(attacks.__file__).parents[2])
    attack = (
        f"import sys; sys.path.insert(0, {here!r}); from experiments.bench import attacks\n"
        "with attacks.assail('d1', ()): attacks.signal.pause()"
    )
    program = {
        "gate": "freezer",
        "exec": ["/usr/bin/python3", "-I", "-c", attack],
        "binds": ["/usr", "/lib", "/lib64", here, str(outside.tools)],
        "devices": ["/dev/null"],
    }
    testbed = {"name": "program", "base_window": "20ms", "dimensions": {"d1": program}, **roots(outside)}
    outcomes, _ = escape.assault(plan.make(config.from_mapping(testbed), numa.observe()), outside)
    tried = [attack.name for attack in ATTACKS if attack.line != "07"]
    assert {name: outcomes[name]["d1"].verdict for name in tried} == dict.fromkeys(tried, "refused")
