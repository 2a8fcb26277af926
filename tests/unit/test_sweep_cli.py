"""The commands of sweeps that need neither root nor a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from experiments import cli, plan, runner
from vcg.cli import app
from vcg.errors import HostError

Maker = Callable[..., Path]


def vcg(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "140"})


def test_ready_sweeps_are_listed_with_the_time_they_take() -> None:
    shown = vcg("sweep", "list")
    assert shown.exit_code == 0
    for name in ("quick", "harmonics", "storage", "oracle"):
        assert name in shown.output
    rows = json.loads(vcg("sweep", "list", "--json").output)
    assert {row["name"]: row["trials"] for row in rows}["quick"] == 16
    assert all(row["estimate_s"] > 0 for row in rows)


def test_the_tour_takes_under_ninety_seconds() -> None:
    rows = {row["name"]: row for row in json.loads(vcg("sweep", "list", "--json").output)}
    assert rows["quick"]["estimate_s"] < 90


def test_a_dry_run_shows_the_trials_in_order_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = vcg("sweep", "run", "harmonics", "--out", out, "--dry-run", "--json")
    assert shown.exit_code == 0, shown.output
    planned = json.loads(shown.output)
    file = plan.load("harmonics")
    expected = plan.trials(plan.configurations(file), file.sweep.repetitions, planned["seed"])
    assert [row["trial"] for row in planned["trials"]] == [trial.id for trial in expected]
    assert not out.exists()
    text = vcg("sweep", "run", "quick", "--out", out, "--dry-run").output
    assert "16 trials, about" in text
    assert text.count("ingress-heavy") == 8


def test_a_dry_run_into_the_results_of_another_sweep_is_refused(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r")
    shown = vcg("sweep", "run", path / "sweep.toml", "--out", path, "--dry-run")
    assert shown.exit_code == 1
    assert "configurations" in shown.output


def test_a_wrong_sweep_file_is_reported_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('testbed = "default"\nduration = 3\nrepetitions = "many"\n')
    shown = vcg("sweep", "run", tmp_path / "bad.toml", "--dry-run")
    assert shown.exit_code == 2
    assert "bad.toml:2: duration" in shown.output
    assert "bad.toml:3: repetitions" in shown.output


def test_an_unknown_sweep_offers_the_nearest() -> None:
    shown = vcg("sweep", "run", "harmonic", "--dry-run")
    assert shown.exit_code == 2
    assert 'did you mean "harmonics"?' in shown.output


def test_a_run_without_root_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostError, match="needs root"):
        runner.run(plan.load("quick"), tmp_path / "out", lambda event: None)
    assert not (tmp_path / "out").exists()


def test_the_report_command_prints_the_path(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=1)
    shown = vcg("report", path)
    assert shown.exit_code == 0, shown.output
    assert shown.output.strip() == str(path / "report.html")


def test_figures_that_do_not_exist_are_null_in_json() -> None:
    assert cli._without_nan({"a": [float("nan"), 1.5], "b": float("inf")}) == {"a": [None, 1.5], "b": None}
