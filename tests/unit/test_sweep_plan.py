"""Sweep files: what they span, in which order, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import plan, reference, stats
from experiments.plan import Configuration, Done, Trial
from vcg.errors import ConfigError

HEAD = 'testbed = "default"\nduration = "1s"\nrepetitions = 3\n'
TWO_AXES = """
[axes.window.short]
"base_window" = "6ms"
[axes.window.long]
"base_window" = "12ms"
[axes.stagger.on]
"stagger" = true
[axes.stagger.off]
"stagger" = false
"""


def read(path: Path, text: str) -> plan.SweepFile:
    file = path / "sweep.toml"
    file.write_text(text)
    return plan.load(file)


def made_up(count: int) -> list[Configuration]:
    return [Configuration(f"{n:08x}", {"axis": str(n)}, (), 0, 1, {"n": n}) for n in range(count)]


def problems_of(path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan.configurations(read(path, text))
    return str(caught.value).splitlines()


# ── the order ────────────────────────────────────────────────────────────────────────────────────────────────────────
@given(count=st.integers(1, 12), repetitions=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_every_block_runs_each_configuration_once(count: int, repetitions: int, seed: int) -> None:
    planned = plan.trials(made_up(count), repetitions, seed)
    runs = Counter((trial.block, trial.configuration.id) for trial in planned)
    assert set(runs.values()) == {1}
    assert len(runs) == count * repetitions
    assert len({trial.id for trial in planned}) == len(planned)
    assert [t.block for t in planned] == sorted(t.block for t in planned)


@given(count=st.integers(1, 12), repetitions=st.integers(1, 8), seed=st.integers(0, 2**32), data=st.data())
def test_the_seed_alone_settles_the_order(count: int, repetitions: int, seed: int, data: st.DataObject) -> None:
    found = made_up(count)
    shuffled = data.draw(st.permutations(found))
    first, again = plan.trials(found, repetitions, seed), plan.trials(shuffled, repetitions, seed)
    assert [trial.id for trial in first] == [trial.id for trial in again]


@given(repetitions=st.integers(1, 10), seed=st.integers(0, 2**32))
def test_two_arms_run_as_abba(repetitions: int, seed: int) -> None:
    planned = plan.trials(made_up(2), repetitions, seed)
    blocks = [[t.configuration.id for t in planned if t.block == b + 1] for b in range(repetitions)]
    assert all(second == first[::-1] for first, second in zip(blocks[0::2], blocks[1::2], strict=False))


def test_blocks_have_orders_of_their_own() -> None:
    planned = plan.trials(made_up(8), 4, seed=1)
    orders = {tuple(t.configuration.id for t in planned if t.block == b) for b in range(1, 5)}
    assert len(orders) == 4


# ── what comes next ──────────────────────────────────────────────────────────────────────────────────────────────────
def run_to_the_end(planned: list[Trial], max_reruns: int, voids: list[bool], stop_after: int = 10**6) -> list[Done]:
    done: list[Done] = []
    while (chosen := plan.next_trial(planned, done, max_reruns)) and len(done) < stop_after:
        trial, attempt = chosen
        done.append(Done(trial.id, attempt, voids[len(done) % len(voids)]))
    return done


@given(
    count=st.integers(1, 6),
    repetitions=st.integers(1, 4),
    max_reruns=st.integers(0, 3),
    voids=st.lists(st.booleans(), min_size=1, max_size=30),
)
def test_a_trial_is_rerun_while_void_and_at_most_so_often(
    count: int, repetitions: int, max_reruns: int, voids: list[bool]
) -> None:
    planned = plan.trials(made_up(count), repetitions, 1)
    done = run_to_the_end(planned, max_reruns, voids)
    assert len({(one.id, one.attempt) for one in done}) == len(done)
    for trial in planned:
        outcomes = [one.void for one in done if one.id == trial.id]
        assert 1 <= len(outcomes) <= 1 + max_reruns
        assert all(outcomes[:-1])
        assert not outcomes[-1] or len(outcomes) == 1 + max_reruns


@given(
    count=st.integers(1, 6),
    max_reruns=st.integers(0, 2),
    voids=st.lists(st.booleans(), min_size=1, max_size=30),
    stop_after=st.integers(0, 20),
)
def test_a_resumed_sweep_goes_on_as_if_it_had_not_stopped(
    count: int, max_reruns: int, voids: list[bool], stop_after: int
) -> None:
    planned = plan.trials(made_up(count), 3, 1)
    whole = run_to_the_end(planned, max_reruns, voids)
    part = run_to_the_end(planned, max_reruns, voids, stop_after)
    while chosen := plan.next_trial(planned, part, max_reruns):
        trial, attempt = chosen
        part.append(Done(trial.id, attempt, voids[len(part) % len(voids)]))
    assert part == whole


def test_void_trials_are_rerun_at_the_end_of_their_own_block() -> None:
    planned = plan.trials(made_up(3), 2, 1)
    done = run_to_the_end(planned, 1, [True, False, False, False, False, False, False])
    assert [(one.id, one.attempt) for one in done[:4]] == [
        *((trial.id, 0) for trial in planned[:3]),
        (planned[0].id, 1),
    ]
    assert done[4].id == planned[3].id


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_axes_span_every_combination(tmp_path: Path) -> None:
    found = plan.configurations(read(tmp_path, HEAD + TWO_AXES))
    assert [tuple(c.levels.values()) for c in found] == [
        ("short", "on"),
        ("short", "off"),
        ("long", "on"),
        ("long", "off"),
    ]
    assert [(c.testbed["base_window"], c.testbed["stagger"]) for c in found] == [
        ("6ms", True),
        ("6ms", False),
        ("12ms", True),
        ("12ms", False),
    ]


def test_a_sweep_without_axes_has_one_configuration(tmp_path: Path) -> None:
    (only,) = plan.configurations(read(tmp_path, HEAD))
    assert only.levels == {}
    assert only.probes == plan.PROBES


def test_ids_outlive_edits_that_change_nothing(tmp_path: Path) -> None:
    before = plan.configurations(read(tmp_path, HEAD + TWO_AXES))
    edited = 'description = "better words"\nseed = 9\n' + HEAD.replace("3", "7") + "max_reruns = 4\n" + TWO_AXES
    after = plan.configurations(read(tmp_path, edited + '[axes.window.longer]\n"base_window" = "24ms"\n'))
    assert {c.id for c in before} < {c.id for c in after}


def test_ids_change_with_the_configuration(tmp_path: Path) -> None:
    before = {c.id for c in plan.configurations(read(tmp_path, HEAD + TWO_AXES))}
    longer = {c.id for c in plan.configurations(read(tmp_path, HEAD.replace('"1s"', '"2s"') + TWO_AXES))}
    other = {c.id for c in plan.configurations(read(tmp_path, HEAD + TWO_AXES.replace("12ms", "13ms")))}
    assert not before & longer
    assert len(before & other) == 2


def test_equal_levels_are_two_arms(tmp_path: Path) -> None:
    found = plan.configurations(read(tmp_path, HEAD + "[axes.arm.a]\n[axes.arm.again]\n" + TWO_AXES))
    assert len({c.id for c in found}) == 8
    assert plan.identical_levels(found) == {("arm", "a", "again")}


def test_a_level_may_set_its_own_probes(tmp_path: Path) -> None:
    text = HEAD + "[axes.probes.all]\n[axes.probes.off]\nprobes = []\n[axes.probes.one]\nprobes = ['block']\n"
    found = plan.configurations(read(tmp_path, text))
    assert [c.probes for c in found] == [("sched", "block", "migrate"), (), ("block",)]
    assert plan.identical_levels(found) == frozenset()


def test_ratios_stay_exact(tmp_path: Path) -> None:
    text = (
        HEAD
        + '[axes.ratio.text]\n"triads.inner.harmonic" = "1.618"\n[axes.ratio.number]\n"triads.inner.harmonic" = 1.618\n'
    )
    found = plan.configurations(read(tmp_path, text))
    assert plan.identical_levels(found) == {("ratio", "text", "number")}


def test_a_testbed_is_found_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('base_window = "8ms"\n[dimensions.d1]\n')
    (only,) = plan.configurations(read(tmp_path, HEAD.replace('"default"', '"own.toml"')))
    assert only.testbed["base_window"] == "8ms"


@pytest.mark.parametrize("name", plan.ready_sweeps())
def test_ready_sweeps_resolve(name: str) -> None:
    file = plan.load(name)
    found = plan.configurations(file)
    assert len(found) == prod(map(len, file.sweep.axes.values())) > 1
    assert len({c.id for c in found}) == len(found)
    assert file.sweep.description


def test_the_quick_sweep_is_the_promised_one() -> None:
    file = plan.load("quick")
    assert {axis: len(levels) for axis, levels in file.sweep.axes.items()} == {
        "ratio": 2,
        "amplitude": 2,
        "base_window": 2,
    }
    assert file.sweep.repetitions == 2


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_all_problems_of_a_file_are_reported_with_their_lines(tmp_path: Path) -> None:
    text = """testbed = "default"
duration = "soon"
repetitions = 0
sede = 4
probes = ["sched", "disk"]
[void]
steal_share = 3
[axes.window]
"""
    lines = problems_of(tmp_path, text)
    file = tmp_path / "sweep.toml"
    for number, word in [
        (2, "duration"),
        (3, "repetitions"),
        (4, "sede"),
        (5, "probes"),
        (7, "steal_share"),
        (8, "axes"),
    ]:
        assert any(line.startswith(f"{file}:{number}: ") and word in line for line in lines), (number, lines)
    assert any('did you mean "seed"?' in line for line in lines)


def test_problems_of_overrides_are_reported_at_their_lines(tmp_path: Path) -> None:
    text = (
        HEAD
        + """
[axes.window.good]
"base_window" = "6ms"
[axes.window.bad]
"base_window" = "six"
[axes.which.one]
"dimensions.d44.amplitude" = 2
[axes.which.two]
"dimensions.d4.amplitude" = -1
"""
    )
    lines = problems_of(tmp_path, text)
    file = tmp_path / "sweep.toml"
    assert [line.split(": ")[0] for line in lines] == [f"{file}:8", f"{file}:10", f"{file}:12"]
    assert '"six"' in lines[0]
    assert "d44" in lines[1]


def test_two_axes_may_not_set_the_same_thing(tmp_path: Path) -> None:
    text = HEAD + '[axes.a.x]\n"base_window" = "6ms"\n[axes.b.y]\n"base_window" = "7ms"\n'
    (line,) = problems_of(tmp_path, text)
    assert "sweep.toml:7" in line
    assert 'the axis "a" sets it too' in line


def test_unknown_names_offer_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='did you mean "quick"'):
        plan.load("quik")
    (line,) = problems_of(tmp_path, HEAD.replace('"default"', '"defualt"'))
    assert "sweep.toml:1: testbed" in line
    assert 'did you mean "default"' in line


def test_a_trial_too_short_for_a_reference_p99_is_refused(tmp_path: Path) -> None:
    (line,) = problems_of(tmp_path, HEAD.replace('"1s"', '"500ms"'))
    assert 'sweep.toml:2: duration: "500ms" - expected at least 600ms' in line
    assert stats.minimum_samples(0.99) + 10 < plan.SHORTEST_NS / reference.PERIOD_NS


# ── resuming ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_differences_name_the_place_and_both_values() -> None:
    recorded = {"a": {"b": 1, "gone": True}, "same": [1, 2]}
    wanted = {"a": {"b": 2}, "same": [1, 2], "new": "x"}
    assert plan.differences(recorded, recorded) == []
    assert plan.differences(recorded, wanted) == [
        "a.b: recorded 1, now 2",
        "a.gone: recorded true, now absent",
        'new: not recorded, now "x"',
    ]
