"""The command line: what it prints, what it returns, and what a broken subcommand does to the others."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from vcg import attach, cli, config, floor, gatefloor, plan
from vcg.errors import ConfigError, RunError
from vcg.plan import HostShape, Plan


def vcg(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose floors nobody has measured: how busy it was when somebody did is not at issue here."""
    monkeypatch.setattr(floor, "window_floor_ns", lambda: None)
    monkeypatch.setattr(gatefloor, "shortest_window_ns", lambda: plan.FREEZER_WINDOW_MIN_NS)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Subcommands of a module: ``group``, ``single``, ``raises``, ``stops``, ``curses``; and ``broken``, not in it."""
    module = ModuleType("plugins_under_test")
    group = typer.Typer()

    @group.callback()
    def root() -> None: ...

    @group.command()
    def inner(number: int) -> None:
        print(f"inner {number}")

    def single(name: str) -> None:
        print(f"single {name}")

    def raises() -> None:
        raise RunError("d4: died")

    def stops() -> None:
        raise KeyboardInterrupt

    def curses() -> None:
        error = RunError("d4 exited with 1: \x1b[2J\nover\rwritten")
        error.add_note("no snapshot: data/\x07")
        raise error

    vars(module).update(group=group, single=single, raises=raises, stops=stops, curses=curses)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entries = {
        name: EntryPoint(name, f"{module.__name__}:{name}", cli.PLUGIN_GROUP)
        for name in ("group", "single", "raises", "stops", "curses", "broken")
    }
    monkeypatch.setattr(cli, "_plugins", lambda: entries)
    return module


@pytest.mark.parametrize("name", config.ready_testbeds())
def test_plan_shows_every_dimension_within_100_columns(name: str) -> None:
    result = vcg("plan", name)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for dimension in config.load(name).dimensions:
        assert any(line.startswith(f"{dimension} ") for line in lines)


def test_plan_summarises_the_edge_table_and_prints_all_of_it_on_demand() -> None:
    short, full = vcg("plan", "default").stdout, vcg("plan", "default", "--edges").stdout
    assert "hyperperiod 18ms with 27 edges for 39 windows" in short
    assert "… and 18 more: --edges" in short
    assert len(full.splitlines()) == len(short.splitlines()) + 17
    assert "17.33ms" in full


def test_plan_shows_cadence_credit_storage_and_workload() -> None:
    row = next(line for line in vcg("plan", "default").stdout.splitlines() if line.startswith("d7 "))
    for part in ("aggregate", "1/3", "18ms", "fifo:10", "ext4 64M", "archive", "%"):
        assert part in row


def test_plan_shows_what_each_dimension_may_use_and_see_and_what_becomes_of_it() -> None:
    settings = {
        "require": '["seccomp"]',
        "base_window": "20ms",
        "dimensions.d1-d3.devices": '["/dev/null"]',
        "dimensions.d4.gate": "freezer",
        "dimensions.d4.exec": '["/usr/bin/true"]',
        "dimensions.d4.binds": '["/usr", "/lib"]',
        "dimensions.d7.restart": "on-failure",
        "dimensions.d7.snapshot": '["crash", "oom"]',
        "dimensions.d8.io": '{ write_bps = "1M" }',
        "dimensions.d9.cpus": "[0, 1]",
        "snapshots.quota": "2G",
    }
    result = vcg("plan", "default", *(word for pair in settings.items() for word in ("--set", "=".join(pair))))
    assert result.stderr == ""
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "memory pids burst floor ceiling enforce restart snapshot",
        "d1 … d3 128M 64 0% 25% 400% demote after 500us never never",
        "d4 128M 64 0% 25% 400% freezer gate never never",
        "d7 128M 64 0% 25% 400% demote after 500us 3 x, after 100ms crash oom",
        "d1 … d3: has the devices /dev/null",
        "d4: sees of the host, read-only, /usr /lib",
        "d8: I/O of at most write_bps=1048576",
        "credit is lent among d1 d3 d5 d7; d2 d4 d6 d8",
        "snapshots in /var/lib/vcg/snapshots, at most 2G; watchdog after 10 windows missed in a row",
        "required of the host: seccomp",
    ):
        assert line in lines, line


def test_plan_as_json_holds_the_plan_and_its_edges() -> None:
    result = vcg("plan", "default", "--json", "--set", "base_window=3ms")
    printed = json.loads(result.stdout)
    shown = Plan.from_json(json.dumps(printed["plan"]))
    assert shown.base_window_ns == 3_000_000
    assert printed["edges_per_hyperperiod"] == len(printed["edges"]) == 27
    assert printed["edges"][0] == {"offset_ns": 0, "due": ["d1", "d4", "d7"]}


def test_plan_of_incommensurate_cadences_shows_the_longest_window() -> None:
    arguments = ("plan", "default", "--set", "dimensions.d1-d3.harmonic=1.6180339887")
    assert "generated edge by edge" in vcg(*arguments).stdout
    printed = json.loads(vcg(*arguments, "--json").stdout)
    assert printed["plan"]["hyperperiod_ns"] is None
    assert printed["edges_per_hyperperiod"] is None
    assert printed["edges"][-1]["offset_ns"] < 18_000_000


def test_override_values_read_as_toml_or_else_as_text() -> None:
    texts = ["a=5ms", "b=1.618", "c=true", "d=[0, 1]", 'e="3"', "f=1/3", "g= x=y "]
    assert cli.parse_overrides(texts) == {
        "a": "5ms",
        "b": Decimal("1.618"),
        "c": True,
        "d": [0, 1],
        "e": "3",
        "f": "1/3",
        "g": "x=y",
    }
    with pytest.raises(ConfigError, match="expected PATH=VALUE"):
        cli.parse_overrides(["base_window"])


def test_wrong_configuration_is_one_line_per_problem_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base_window = "6"\n[dimensions.d1]\namplitude = 0\n')
    result = vcg("plan", str(path))
    assert result.exit_code == 2
    assert [line.removeprefix(str(path)).split(" - ")[0] for line in result.stderr.splitlines()] == [
        ':1: base_window: "6"',
        ":3: dimensions.d1.amplitude: 0",
    ]
    assert result.stdout == ""


def test_what_the_host_lacks_is_exit_code_1() -> None:
    result = vcg("plan", "default", "--set", "dimensions.d4.cpus=[4000]")
    assert result.exit_code == 1
    assert result.stderr.startswith("d4: cpus 4000: expected CPUs")


def test_schema_is_printed_as_published() -> None:
    for arguments in (("schema",), ("schema", "--kind", "testbed")):
        assert json.loads(vcg(*arguments).stdout) == config.json_schema()
    assert vcg("schema", "--kind", "nothing").exit_code == 2


def test_help_gives_examples() -> None:
    result = vcg("plan", "--help")
    assert result.exit_code == 0
    assert "vcg plan default --set" in result.stdout


@pytest.mark.parametrize("arguments", [("top",), ("top", "--once"), ("amplitude",), ("amplitude", "d4", "2")])
def test_where_no_run_is_going_on_the_path_and_what_to_do_are_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = vcg(*arguments, "--state-root", str(tmp_path / "none"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"no run at {tmp_path / 'none'}: start one (vcg run TESTBED), "
        "or name the state root of the one you mean (--state-root PATH)\n"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", "expected a number above 0"),
        ("0", "expected a number above 0"),
        ("nan", "expected a number above 0"),
        ("inf", "expected a number above 0"),
        ("1e9", "expected a number from 0.000001 to 1000000"),
    ],
)
def test_a_value_that_is_no_amplitude_is_refused_before_anything_is_asked(value: str, expected: str) -> None:
    result = vcg("amplitude", "d4", value, "--state-root", "/nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f'command line: VALUE: "{value}" - {expected}\n'


@pytest.mark.parametrize(
    ("selector", "names"), [("d4", ["d4"]), ("d8-d9", ["d8", "d9"]), ("*", [f"d{n}" for n in range(1, 10)])]
)
def test_dimensions_of_a_run_are_selected_as_those_of_a_testbed(selector: str, names: list[str]) -> None:
    assert cli._select(plan.make(config.load("default"), HostShape((0, 1), {0: 0, 1: 0})), selector) == names


@pytest.mark.parametrize("selector", ["d44", "d1-d44", "", "d1,d2"])
def test_a_selector_of_nothing_is_refused_with_what_there_is(selector: str) -> None:
    with pytest.raises(ConfigError, match="nothing is selected; the run has d1, d2"):
        cli._select(plan.make(config.load("default"), HostShape((0, 1), {0: 0, 1: 0})), selector)


class FakeRun:
    """A run that goes on, with its snapshots in a place of its own; d2 and d4 cannot be taken."""

    plan = plan.make(config.load("default", {"snapshots.directory": "/srv/mine"}), HostShape((0, 1), {0: 0, 1: 0}))

    def __init__(self, state_root: Path) -> None:
        assert state_root == Path("/some/root")

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, *_: object) -> None: ...

    def snapshot(self, name: str) -> dict[str, Any]:
        if name in ("d2", "d4"):
            raise RunError("no space" if name == "d2" else "d4: no snapshot")
        return {"dimension": name, "path": f"/x/{name}", "bytes": 1, "took_ns": 1000, "frozen_for_ns": 1000}


def test_snapshots_that_were_taken_are_printed_although_others_were_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "Attached", FakeRun)
    result = vcg("snapshot", "d1-d5", "--state-root", "/some/root", "--json")
    assert [one["path"] for one in json.loads(result.stdout)["snapshots"]] == ["/x/d1", "/x/d3", "/x/d5"]
    assert (result.exit_code, result.stderr) == (1, "no space\nd4: no snapshot\n")
    assert vcg("snapshot", "d1", "--state-root", "/some/root").exit_code == 0


def test_snapshots_are_looked_for_where_the_run_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attach, "Attached", FakeRun)
    place = ("snapshot", "--list", "--json", "--state-root", "/some/root")
    assert json.loads(vcg(*place).stdout)["directory"] == "/srv/mine"
    assert json.loads(vcg(*place, "--directory", "/else").stdout)["directory"] == "/else"
    assert "/srv/mine/x: no snapshot" in vcg("snapshot", "--show", "x", "--state-root", "/some/root").stderr


def test_without_a_run_snapshots_are_looked_for_in_the_state_root(tmp_path: Path) -> None:
    listed = vcg("snapshot", "--list", "--json", "--state-root", str(tmp_path))
    assert json.loads(listed.stdout) == {"directory": str(tmp_path / "snapshots"), "snapshots": []}


def test_subcommands_of_other_packages_are_reached(plugins: ModuleType) -> None:
    assert vcg("group", "inner", "3").stdout == "inner 3\n"
    assert vcg("single", "x").stdout == "single x\n"
    listed = vcg("--help").stdout
    assert all(name in listed for name in ("plan", "schema", "group", "single"))


def test_a_broken_subcommand_is_named_when_used_and_spoils_no_other(plugins: ModuleType) -> None:
    result = vcg("broken", "--any", "option")
    assert result.exit_code == 1
    assert result.stderr.startswith("vcg broken: plugins_under_test:broken cannot be imported: AttributeError")
    assert len(result.stderr.splitlines()) == 1
    assert "not available" in vcg("--help").stdout
    assert vcg("plan", "edge").exit_code == 0


def test_errors_of_subcommands_are_one_message(plugins: ModuleType) -> None:
    result = vcg("raises")
    assert (result.exit_code, result.stderr, result.stdout) == (1, "d4: died\n", "")


def test_what_a_dimension_wrote_into_an_error_is_shown_and_not_obeyed(plugins: ModuleType) -> None:
    assert vcg("curses").stderr == "d4 exited with 1: \\x1b[2J\nover\\rwritten\nno snapshot: data/\\x07\n"


def test_interrupt_exits_130(plugins: ModuleType) -> None:
    assert vcg("stops").exit_code == 130


def test_help_of_plan_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from vcg import cli\n"
        "CliRunner().invoke(cli.app, ['plan', '--help'])\n"
        "print({'vcg.config', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"


@pytest.mark.parametrize("words", ["plan default", "plan default --json", "unit", "plan --help"])
def test_output_that_cannot_be_written_is_told_in_a_line(words: str) -> None:
    command = [Path(sys.executable).with_name("vcg"), *words.split()]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "standard output: No space left on device\n")


def test_the_policy_needs_no_testbed() -> None:
    assert "unshare, setns" in vcg("plan", "--policy").stdout
    lines = json.loads(vcg("plan", "--policy", "--json").stdout)["policy"]
    assert {"calls": "unshare, setns", "verdict": "EPERM"}.items() <= next(
        line for line in lines if line["calls"].startswith("unshare")
    ).items()
    result = vcg("plan")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "TESTBED: " in result.stderr


def test_a_plan_of_a_workload_that_is_not_there_is_refused_as_a_run_of_it_is() -> None:
    result = vcg("plan", "default", "--set", "dimensions.d4.workload=nosuch:run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("d4: unknown workload 'nosuch:run': expected module:function of a module in the")


def test_the_version_is_that_of_the_package() -> None:
    assert vcg("--version").stdout == f"vcg {metadata.version('vcg')}\n"
