"""Testbed files: ready ones load, wrong ones are told all that is wrong with them, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import config, quantities
from vcg.config import Restart, Scheduling, Testbed
from vcg.errors import ConfigError
from vcg.quantities import format_duration, format_ratio

Load = Callable[..., Testbed]

MINIMAL = 'base_window = "6ms"\n[dimensions.d1]\n'


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Load a testbed from text; its messages name ``mine.toml``."""

    def load(text: str, overrides: dict[str, Any] | None = None) -> Testbed:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        try:
            return config.load(path, overrides)
        except ConfigError as error:
            raise AssertionError("\n".join(str(p).removeprefix(f"{tmp_path}/") for p in error.problems)) from error

    return load


def messages(load: Load, text: str, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(AssertionError) as caught:
        load(text, overrides)
    return str(caught.value).splitlines()


# ── ready testbeds ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", config.ready_testbeds())
def test_ready_testbed_survives_resolving(name: str) -> None:
    testbed = config.load(name)
    assert testbed.name == name
    assert len(testbed.dimensions) == (3 if name == "programs" else 9)
    assert config.from_mapping(testbed.resolved()) == testbed
    by_json = json.loads(json.dumps(testbed.resolved(), sort_keys=True))
    assert list(config.from_mapping(by_json).dimensions) == list(testbed.dimensions)
    assert config.from_mapping(by_json) == testbed


def test_the_ready_testbeds_are_these() -> None:
    assert config.ready_testbeds() == ("default", "edge", "ext4", "programs", "tmpfs")


def test_default_has_the_roles_and_cadences_of_the_architecture() -> None:
    testbed = config.load("default")
    assert testbed.base_window_ns == 6_000_000
    assert testbed.stagger
    table = [
        (d.role, format_ratio(d.harmonic), d.storage.kind, d.scheduling, d.workload.split(".")[-1])
        for d in testbed.dimensions.values()
    ]
    fast, base, slow = Scheduling("fifo", 30), Scheduling("fifo", 20), Scheduling("fifo", 10)
    assert table == [
        ("ingress", "3", "tmpfs", fast, "ingress:run"),
        ("parse", "3", "tmpfs", fast, "ingress:run"),
        ("transform", "3", "tmpfs", fast, "ingress:run"),
        ("retrieval", "1", "ext4", base, "service:run"),
        ("state", "1", "ext4", base, "service:run"),
        ("serving", "1", "ext4", base, "service:run"),
        ("aggregate", "1/3", "ext4", slow, "archive:run"),
        ("reconcile", "1/3", "ext4", slow, "archive:run"),
        ("archive", "1/3", "ext4", slow, "archive:run"),
    ]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_storage_testbeds_differ_from_each_other_in_storage_only(kind: str) -> None:
    default, testbed = config.load("default"), config.load(kind)
    assert {d.storage.kind for d in testbed.dimensions.values()} == {kind}
    assert {d.storage.size_bytes for d in testbed.dimensions.values()} == {32 << 20}
    for ours, theirs in zip(testbed.dimensions.values(), default.dimensions.values(), strict=True):
        assert ours.model_copy(update={"storage": theirs.storage}) == theirs


def test_edge_starts_nine_idle_dimensions_at_once() -> None:
    testbed = config.load("edge")
    kinds = {(d.harmonic, d.workload, d.scheduling, d.storage.kind) for d in testbed.dimensions.values()}
    assert kinds == {(Fraction(1), "vcg.workloads.idle:run", Scheduling("fifo", 20), "tmpfs")}
    assert not testbed.stagger


def test_published_schema_is_current() -> None:
    published = Path(config.__file__).with_name("testbeds") / "testbed.schema.json"
    assert json.loads(published.read_text()) == config.json_schema()


# ── merging ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_defaults_in_the_schema_are_what_one_may_write() -> None:
    schema = config.json_schema()

    def defaults(name: str) -> dict[str, Any]:
        fields = schema["$defs"][name]["properties"]
        return {field: told["default"] for field, told in fields.items() if "default" in told}

    spelt_out = {
        **{field: told["default"] for field, told in schema["properties"].items() if "default" in told},
        "placement": defaults("Placement"),
        "snapshots": defaults("Snapshots"),
        "dimensions": {"d1": {**defaults("Dimension"), "storage": defaults("Storage")}},
    }
    bare = {"name": "t", "base_window": "6ms", "dimensions": {"d1": {}}}
    assert spelt_out["dimensions"]["d1"]["memory"] == "128M"
    assert config.from_mapping({**bare, **spelt_out}) == config.from_mapping(bare)


@pytest.mark.parametrize("parse", [quantities.parse_size, quantities.parse_duration])
def test_no_negative_number_is_proposed(parse: Callable[[Any], int]) -> None:
    with pytest.raises(ValueError, match=r"^expected a") as raised:
        parse(-1)
    assert "-1" not in str(raised.value)


def test_minimal_testbed_is_one_idle_dimension(load_text: Load) -> None:
    testbed = load_text(MINIMAL)
    assert testbed.name == "mine"
    assert testbed.dimensions["d1"].workload == "vcg.workloads.idle:run"
    assert testbed.dimensions["d1"].scheduling == Scheduling("other", 0)
    assert (testbed.state_root, testbed.mount_root) == ("/var/lib/vcg", "/vcg")


def test_dimension_overrides_what_its_triad_shares(load_text: Load) -> None:
    testbed = load_text("""
base_window = "1ms"
[triads.t]
members = ["a", "b", "c"]
amplitude = 2
storage = { kind = "ext4", size = "8M" }
[dimensions]
b = { amplitude = 3, storage.size = "4M" }
""")
    assert [d.amplitude for d in testbed.dimensions.values()] == [2, 3, 2]
    assert [d.storage.size_bytes >> 20 for d in testbed.dimensions.values()] == [8, 4, 8]
    assert {d.storage.kind for d in testbed.dimensions.values()} == {"ext4"}


def test_triads_without_harmonic_nest_in_their_order(load_text: Load) -> None:
    triads = [f'[triads.{n}]\nmembers = ["{n}1", "{n}2", "{n}3"]\n' for n in "zyx"]
    testbed = load_text('base_window = "1ms"\n' + "".join(triads))
    assert {name: d.harmonic for name, d in testbed.dimensions.items() if name.endswith("1")} == {
        "z1": 3,
        "y1": 1,
        "x1": Fraction(1, 3),
    }


def test_dimensions_are_numbered_in_natural_order(load_text: Load) -> None:
    testbed = load_text(
        'base_window = "1ms"\n[dimensions]\n' + "".join(f"d{n}.amplitude = {n}\n" for n in (10, 2, 1, 9))
    )
    assert list(testbed.dimensions) == ["d1", "d2", "d9", "d10"]


def test_decimal_numbers_are_exact_ratios(load_text: Load) -> None:
    assert load_text(f"{MINIMAL}harmonic = 1.618").dimensions["d1"].harmonic == Fraction(809, 500)


@given(
    st.integers(10_000, 10**9),
    st.lists(
        st.tuples(
            st.builds(Fraction, st.integers(1, 9), st.integers(1, 9)),
            st.none() | st.fractions(0, Fraction(23, 24), max_denominator=24),
            st.floats(0.01, 100),
            st.sampled_from(["tmpfs", "ext4"]),
            st.none() | st.integers(1, 80),
        ),
        min_size=1,
        max_size=31,
    ),
)
def test_any_testbed_survives_resolving(base_window_ns: int, rows: list[tuple[Any, ...]]) -> None:
    data = {
        "name": "any",
        "base_window": format_duration(base_window_ns),
        "dimensions": {
            f"d{number}": {
                "harmonic": format_ratio(harmonic),
                "phase": "auto" if phase is None else str(phase),
                "amplitude": amplitude,
                "storage": {"kind": kind, "size": "1M"},
                "scheduling": "other" if priority is None else f"fifo:{priority}",
            }
            for number, (harmonic, phase, amplitude, kind, priority) in enumerate(rows)
        },
    }
    testbed = config.from_mapping(data)
    assert config.from_mapping(json.loads(json.dumps(testbed.resolved(), sort_keys=True))) == testbed
    assert [d.phase for d in testbed.dimensions.values()] == [row[1] for row in rows]


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_all_problems_of_a_file_are_reported_at_once_with_their_lines(load_text: Load) -> None:
    text = """\
base_window = 5
stagger = "yes"

[triads.inner]
members = ["d1", "d2", "d3"]
harmonik = "3"
scheduling = "fifo:95"

[dimensions.d3]
cpus = [0, 0]
storage = { kind = "tmpfs",  size = "64Q" }
[dimensions.d4]
phase = "3/2"
workload = "spinn"
devices = [
  "/dev/null",
  "/etc/passwd",
]
pids = 0
[placement]
rtd_priority = 80
"""
    assert messages(load_text, text) == [
        'mine.toml:1: base_window: 5 - expected a duration with its unit, in quotes, such as "5ms"',
        'mine.toml:2: stagger: "yes" - expected true or false',
        'mine.toml:6: triads.inner.harmonik: "3" - unknown field; did you mean "harmonic"?',
        'mine.toml:7: triads.inner.scheduling: "fifo:95" - expected "other", or "fifo:30" with a priority from 1 to 80',
        "mine.toml:10: dimensions.d3.cpus: [0, 0] - expected a list of different CPU numbers, such as [0, 1]",
        'mine.toml:11: dimensions.d3.storage.size: "64Q" - expected a size such as "64M", "4K" or "1G"',
        'mine.toml:13: dimensions.d4.phase: "3/2" - expected a fraction of the window, from 0 to less than 1, such as '
        '"1/3", or "auto"',
        'mine.toml:14: dimensions.d4.workload: "spinn" - expected "module:function" or the name of a workload; did you '
        'mean "spin"?',
        'mine.toml:17: dimensions.d4.devices[1]: "/etc/passwd" - expected a device node below /dev, such as '
        '"/dev/null"',
        "mine.toml:19: dimensions.d4.pids: 0 - expected a number greater than or equal to 1",
        "mine.toml:21: placement.rtd_priority: 80 - expected a number greater than 80",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("amplitude = 0", "amplitude: 0 - expected a number above 0"),
        ("amplitude = inf", "amplitude: Infinity - expected a number above 0"),
        ("amplitude = true", "amplitude: true - expected a number above 0"),
        ('harmonic = "0"', 'harmonic: "0" - expected a ratio above 0, such as "3", "1/3" or "1.618"'),
        ('harmonic = "99999"', 'harmonic: "99999" - expected a window of at least 1us'),
        (
            'harmonic = "32"',
            'harmonic: "32" - expected at most 31 windows in a base window: make base_window shorter instead',
        ),
        ('scheduling = "fifo"', 'scheduling: "fifo" - expected "other", or "fifo:30" with a priority from 1 to 80'),
        ("cpus = []", "cpus: [] - expected a list of different CPU numbers, such as [0, 1]"),
        ("node = -1", "node: -1 - expected a number greater than or equal to 0"),
        ("node = true", "node: true - expected a whole number"),
        ("role = 1", "role: 1 - expected text in quotes"),
        ('devices = "/dev/null"', 'devices: "/dev/null" - expected a list'),
        ('storage = "tmpfs"', 'storage: "tmpfs" - expected a table'),
        ('storage.kind = "xfs"', "storage.kind: \"xfs\" - expected 'tmpfs' or 'ext4'"),
        (
            'storage = { kind = "ext4", size = "64K" }',
            'storage: {"kind": "ext4", "size": "64K"} - expected a size of at least 128K for ext4',
        ),
        ('storage.size = "6K"', 'storage: {"size": "6K"} - expected a size in whole pages of 4K'),
        (
            'storage.size = "1G"',
            'dimensions.d1: {"storage": {"size": "1G"}} - expected memory (128M) above storage.size (1G): a tmpfs '
            "counts as memory",
        ),
        (
            "args = { at = 2020-01-01 }",
            'args: {"at": "2020-01-01"} - expected text, numbers, true or false, lists and tables; found "2020-01-01"',
        ),
    ],
)
def test_a_wrong_field_of_a_dimension_is_refused(load_text: Load, line: str, message: str) -> None:
    field = message if message.startswith("dimensions") else f"dimensions.d1.{message}"
    place = "mine.toml:2" if message.startswith("dimensions") else "mine.toml:3"
    assert messages(load_text, MINIMAL + line) == [f"{place}: {field}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'mine.toml:1: base_window: missing - expected a duration such as "6ms": 1/f'),
        ('base_window = "1ms"\n[dimensions]', "mine.toml:2: dimensions: 0 - expected 1 to 31 dimensions"),
        ('state_rot = "/x"\n', 'mine.toml:1: state_rot: "/x" - unknown field; did you mean "state_root"?'),
        ('base_window = "1ms"\ndimensions = 3', "mine.toml:2: dimensions: 3 - expected a table"),
        ('base_window = "1ms"\ndimensions.d1 = 3', "mine.toml:2: dimensions.d1: 3 - expected a table"),
        ('base_window = "1ms"\ntriads.t = 3', "mine.toml:2: triads.t: 3 - expected a table"),
        (
            'base_window = "1ms"\n[dimensions.D1]',
            'mine.toml:2: dimensions.D1: "D1" - expected a name of at most 15 small letters, digits and _, that starts '
            "with a letter",
        ),
        (
            f'mount_root = "vcg"\n{MINIMAL}',
            'mine.toml:1: mount_root: "vcg" - expected an absolute path below /, without "..", such as "/var/lib/vcg"',
        ),
        (
            'base_window = "1ms"\n[triads.t]\nmembers = ["a", "b"]',
            'mine.toml:3: triads.t.members: ["a", "b"] - expected the names of three different dimensions, such as '
            '["d1", "d2", "d3"]',
        ),
        (
            'base_window = "1ms"\n[triads.t]\nmembers = ["a", "b", "c"]\n[triads.u]\nmembers = ["d",\n"c", "e"]',
            'mine.toml:6: triads.u.members[1]: "c" - expected each dimension in one triad; it is in "t" too',
        ),
        (
            'base_window = "1ms"\n[triads.t]\nmembers = ["a", "b", "c"]\n[dimensions.b]\nharmonic = "2"',
            'mine.toml:3: triads.t.members: "a 1, b 2, c 1" - expected the same harmonic of all three: a triad shares '
            "a cadence",
        ),
        (
            f"placement.orchestrator_priority = 95\n{MINIMAL}",
            'mine.toml:1: placement: {"orchestrator_priority": 95} - expected rtd_priority (90) above '
            "orchestrator_priority (95): nothing may hold up the clock",
        ),
    ],
)
def test_a_wrong_testbed_is_refused(load_text: Load, text: str, message: str) -> None:
    assert message in messages(load_text, text)


def test_roots_inside_each_other_are_refused(load_text: Load) -> None:
    (message,) = messages(load_text, f'state_root = "/vcg/state"\n{MINIMAL}')
    assert "expected state_root (/vcg/state) and mount_root (/vcg) outside each other" in message


def test_at_most_31_dimensions_fit_the_futex(load_text: Load) -> None:
    def text(count: int) -> str:
        return 'base_window = "1ms"\n' + "".join(f"dimensions.d{n} = {{}}\n" for n in range(count))

    assert len(load_text(text(31)).dimensions) == 31
    assert messages(load_text, text(32)) == ["mine.toml:2: dimensions: 32 - expected 1 to 31 dimensions"]


def test_a_name_defined_twice_is_refused_with_its_line(load_text: Load) -> None:
    (message,) = messages(load_text, f"{MINIMAL}[dimensions.d1]\n")
    assert message.startswith("mine.toml:3: TOML syntax: ")


def test_unknown_name_offers_the_nearest_ready_testbed() -> None:
    with pytest.raises(ConfigError, match=r'^defualt: .* did you mean "default"\?$'):
        config.load("defualt")


def test_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^none\.toml: file: No such file"):
        config.load("none.toml")


def test_plain_data_is_refused_without_line_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_mapping({"name": "x", "base_window": "6", "dimensions": {"d1": {}}}, source="manifest")
    assert str(caught.value) == 'manifest: base_window: "6" - expected a duration such as "5ms", "200us" or "1s"'


# ── overrides ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_overrides_select_by_range_all_name_and_triad() -> None:
    overrides = {
        "base_window": "5ms",
        "dimensions.d1-d3.harmonic": "1.618",
        "dimensions.*.storage.kind": "tmpfs",
        "dimensions.d4.amplitude": 2.5,
        "triads.outer.scheduling": "other",
        "dimensions.d5.args.share": 0.25,
        "placement.rtd_cpu": 1,
    }
    before, after = config.load("default"), config.load("default", overrides)
    assert after.base_window_ns == 5_000_000
    assert [d.harmonic for d in after.dimensions.values()][:4] == [Fraction(809, 500)] * 3 + [Fraction(1)]
    assert {d.storage.kind for d in after.dimensions.values()} == {"tmpfs"}
    assert [d.storage.size_bytes for d in after.dimensions.values()] == [
        d.storage.size_bytes for d in before.dimensions.values()
    ]
    assert [d.amplitude for d in after.dimensions.values()] == [1, 1, 1, 2.5, 1, 1, 1, 1, 1]
    assert [d.scheduling.policy for d in after.dimensions.values()] == ["fifo"] * 6 + ["other"] * 3
    assert [d.args for d in after.dimensions.values()][3:6] == [{}, {"share": 0.25}, {}]
    assert after.placement.rtd_cpu == 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dimensions.d12.amplitude", 1, 'nothing is selected by "d12"; known are d1, d2, d3'),
        ("dimensions.d1-d12.amplitude", 1, 'nothing is selected by "d1-d12"'),
        ("triads.zzz.amplitude", 1, 'nothing is selected by "zzz"; known are inner, middle, outer'),
        ("dimensions.*", 1, "expected the path of a field, such as dimensions.*.harmonic"),
        ("triads.inner.members", ["a"], "expected the path of a field, such as triads.inner.harmonic"),
        ("dimensions.d1.amplitud", 1, '1 - unknown field; did you mean "amplitude"?'),
        ("base_windw", "1ms", '"1ms" - unknown field; did you mean "base_window"?'),
        ("placement.x.y", 1, '{"y": 1} - unknown field'),
        ("base_window.x", 1, "1 - base_window has no fields of its own"),
        ("base_window", 5, '5 - expected a duration with its unit, in quotes, such as "5ms"'),
        ("dimensions.*.harmonic", 1.618, '1.618 - expected a ratio in quotes, such as "1.618"'),
        ("dimensions.d4.storage.size", "64Q", '"64Q" - expected a size such as "64M"'),
    ],
)
def test_a_wrong_override_is_refused_by_its_own_path(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load("default", {path: value})
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"default.toml: override {path}: {message}")


def test_override_of_a_whole_table_replaces_it() -> None:
    testbed = config.load("default", {"dimensions.d4.storage": {"kind": "tmpfs", "size": "1M"}})
    assert testbed.dimensions["d4"].storage.size_bytes == 1 << 20
    with pytest.raises(ConfigError, match=r"override dimensions\.d4\.storage: \"64Q\""):
        config.load("default", {"dimensions.d4.storage": {"size": "64Q"}})


def test_overriding_one_member_does_not_leak_to_its_triad() -> None:
    testbed = config.load("default", {"dimensions.d4.storage.size": "1M"})
    assert [d.storage.size_bytes >> 20 for d in testbed.dimensions.values()][3:6] == [1, 64, 64]


# ── restarts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("written", "limit", "backoff_ns"),
    [
        ('"never"', 0, 100_000_000),
        ('"on-failure"', 3, 100_000_000),
        ('{ policy = "on-failure" }', 3, 100_000_000),
        ('{ policy = "on-failure", limit = 7, backoff = "20ms" }', 7, 20_000_000),
    ],
)
def test_a_restart_policy_in_each_of_its_forms(load_text: Load, written: str, limit: int, backoff_ns: int) -> None:
    testbed = load_text(f"{MINIMAL}restart = {written}\n")
    assert testbed.dimensions["d1"].restart == Restart(limit, backoff_ns)
    assert config.from_mapping(testbed.resolved()) == testbed


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('"always"', 'expected "never", "on-failure", or { policy = "on-failure", limit = 3, backoff = "100ms" }'),
        ("{ limit = 3 }", 'expected "never", "on-failure", or {'),
        ('{ policy = "on-failure", tries = 3 }', "and no other keys"),
        ('{ policy = "on-failure", limit = 0 }', "expected a limit of at least 1 restart in a row"),
        ('{ policy = "on-failure", backoff = 100 }', "expected a duration"),
        ('{ policy = "on-failure", backoff = "10us" }', "expected a backoff from 1ms to 30s"),
        ('{ policy = "on-failure", backoff = "31s" }', "expected a backoff from 1ms to 30s"),
    ],
)
def test_a_wrong_restart_policy_is_refused_where_it_stands(load_text: Load, written: str, message: str) -> None:
    (problem,) = messages(load_text, f"{MINIMAL}restart = {written}\n")
    assert problem.startswith("mine.toml:3: dimensions.d1.restart: ")
    assert message in problem


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_snapshots_are_taken_only_where_they_are_wanted(load_text: Load) -> None:
    testbed = load_text(f'{MINIMAL}snapshot = ["watchdog", "crash"]\n[dimensions.d2]\n')
    assert testbed.dimensions["d1"].snapshot == ("crash", "watchdog")
    assert testbed.dimensions["d2"].snapshot == ()
    assert (testbed.snapshots.directory, testbed.snapshots.quota_bytes, testbed.snapshots.watchdog) == (
        None,
        1 << 30,
        10,
    )
    assert config.from_mapping(testbed.resolved()) == testbed


def test_where_snapshots_go_and_how_many_can_be_said(load_text: Load) -> None:
    text = f'{MINIMAL}[snapshots]\ndirectory = "/srv/kept"\nquota = "8M"\nwatchdog = 3\n'
    testbed = load_text(text)
    snapshots = testbed.snapshots
    assert (snapshots.directory, snapshots.quota_bytes, snapshots.watchdog) == ("/srv/kept", 8 << 20, 3)
    assert config.from_mapping(testbed.resolved()) == testbed


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (f'{MINIMAL}snapshot = "crash"\n', "dimensions.d1.snapshot", "expected a list of some of crash, oom, watchdog"),
        (f'{MINIMAL}snapshot = ["panic"]\n', "dimensions.d1.snapshot", "expected a list of some of"),
        (f'{MINIMAL}snapshot = ["oom", "oom"]\n', "dimensions.d1.snapshot", "expected a list of some of"),
        (f'{MINIMAL}[snapshots]\nquota = "1M"\n', "snapshots", "expected a quota of at least 4M"),
        (f"{MINIMAL}[snapshots]\nwatchdog = 0\n", "snapshots.watchdog", ""),
        (f'{MINIMAL}[snapshots]\ndirectory = "here"\n', "snapshots.directory", "expected an absolute path"),
        (f'mount_root = "/vcg"\n{MINIMAL}[snapshots]\ndirectory = "/vcg/x"\n', "", "outside mount_root (/vcg)"),
    ],
)
def test_what_is_wrong_about_snapshots_is_told(load_text: Load, text: str, place: str, message: str) -> None:
    (problem,) = messages(load_text, text)
    assert place in problem
    assert message in problem


# ── enforcement ──────────────────────────────────────────────────────────────────────────────────────────────────────
FROZEN = 'gate = "freezer"\nexec = ["/bin/sh"]\n'


@pytest.mark.parametrize(("field", "value"), [("enforce", '"demote"'), ("enforce", '"none"'), ("grace", '"1ms"')])
def test_enforcement_of_a_dimension_behind_the_freezer_gate_is_refused(load_text: Load, field: str, value: str) -> None:
    assert messages(load_text, f"{MINIMAL}{FROZEN}{field} = {value}\n") == [
        f"mine.toml:5: dimensions.d1.{field}: {value} - expected none for d1: the freezer gate alone holds a program "
        f"to its tokens: remove {field}"
    ]


TRIAD = 'base_window = "20ms"\n[triads.t]\nmembers = ["a", "b", "c"]\nenforce = "freeze"\n'


def test_a_triad_enforces_where_it_can(load_text: Load) -> None:
    testbed = load_text(f"{TRIAD}[dimensions.b]\n{FROZEN}")
    assert {name: d.enforce for name, d in testbed.dimensions.items()} == {"a": "freeze", "b": "demote", "c": "freeze"}


def test_a_triad_that_can_enforce_nowhere_is_refused_once(load_text: Load) -> None:
    assert messages(load_text, TRIAD + FROZEN) == [
        'mine.toml:4: triads.t.enforce: "freeze" - expected none for a, b, c: the freezer gate alone holds a program '
        "to its tokens: remove enforce"
    ]


def test_an_override_of_several_enforces_where_it_can(load_text: Load) -> None:
    text = f"{MINIMAL}{FROZEN}[dimensions.d2]\n"
    testbed = load_text(text, {"dimensions.*.grace": "1ms"})
    assert [d.grace_ns for d in testbed.dimensions.values()] == [500_000, 1_000_000]
    (message,) = messages(load_text, text, {"dimensions.d1.grace": "1ms"})
    assert message.startswith('mine.toml: override dimensions.d1.grace: "1ms" - expected none for d1: ')


def test_enforcement_is_refused_also_where_an_override_brings_the_gate(load_text: Load) -> None:
    gate = {"dimensions.d1.gate": "freezer", "dimensions.d1.exec": ["/bin/sh"]}
    (message,) = messages(load_text, f'{MINIMAL}enforce = "none"\n', gate)
    assert message.startswith('mine.toml:3: dimensions.d1.enforce: "none" - expected none for d1: ')


def test_a_resolved_testbed_says_nothing_of_enforcement_behind_the_gate(load_text: Load) -> None:
    testbed = load_text(f"{TRIAD}[dimensions.b]\n{FROZEN}")
    resolved = testbed.resolved()
    assert {name for name, table in resolved["dimensions"].items() if {"enforce", "grace"} & table.keys()} == {"a", "c"}
    assert config.from_mapping(resolved) == testbed
