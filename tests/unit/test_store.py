"""Results directories: whole trials or none, documented columns, one writer."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import experiments
from experiments import store
from experiments.store import ResultsError

Maker = Callable[..., Path]


def test_results_come_back_as_frames(make_results: Maker, tmp_path: Path) -> None:
    results = experiments.load(make_results(tmp_path / "r", void=1))
    assert len(results.records) == 9
    assert results.metadata["name"] == "synthetic"
    assert results.axes == ["ratio", "base_window"]
    trials = results.trials
    assert list(trials["void"]).count(True) == 1
    assert {"axis_ratio", "axis_base_window", "steal_share", "void_reasons"} <= set(trials.columns)
    assert len(results.summary) == 9 * 9
    assert results.windows["trial"].nunique() == 9
    one = results.table("windows", str(trials["trial"].iloc[0]))
    assert len(one) == (results.windows["trial"] == trials["trial"].iloc[0]).sum()
    assert set(results.histograms["dimension"]) == {f"d{n}" for n in range(1, 10)}
    assert (results.reference["lateness_ns"] == results.reference["wake_ns"] - results.reference["planned_ns"]).all()
    assert set(results.agreement["probe"]) == {"sched"}
    assert set(results.probe_cost["program"]) == {"sched_switch"}


def test_the_stored_summary_is_that_of_the_trials(make_results: Maker, tmp_path: Path) -> None:
    results = experiments.load(make_results(tmp_path / "r"))
    stored = results.summary
    (results.path / "summary.parquet").unlink()
    pd.testing.assert_frame_equal(experiments.load(results.path).summary, stored)


def test_a_summary_that_misses_trials_is_not_believed(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r")
    shutil.rmtree(path / "trials" / experiments.load(path).records[0].trial)
    assert experiments.load(path).summary["trial"].nunique() == 7


@pytest.mark.parametrize("name", store.TRIAL_TABLES)
def test_units_and_meanings_are_in_the_files(make_results: Maker, tmp_path: Path, name: str) -> None:
    path = make_results(tmp_path / "r", repetitions=1)
    file = next((path / "trials").glob(f"*/{name}.parquet"))
    for field in pq.read_schema(file):
        assert field.metadata[b"meaning"]
        if field.name.endswith("_ns"):
            assert field.metadata[b"unit"] == b"ns"


def test_every_column_in_ns_says_so() -> None:
    for columns in store.TABLES.values():
        for column in columns:
            assert (column.unit == "ns") == column.name.endswith("_ns"), column.name
    assert set(experiments.store.Results.columns("windows")["column"]) >= {"planned_ns", "lateness_ns", "outcome"}


def test_a_half_written_trial_is_no_trial(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=1)
    trials = path / "trials"
    torn = trials / ".deadbeef-b01.partial"
    shutil.copytree(trials / experiments.load(path).records[0].trial, torn)
    assert len(experiments.load(path).records) == 4
    with store.exclusive(path):
        assert not torn.exists()
    assert len(experiments.load(path).records) == 4


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.mkdir()
    with pytest.raises(ResultsError, match=rf"{path}: cannot be written \(Is a directory\); .* again"):
        store.write_durably(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_json_is_not_stored(make_results: Maker, tmp_path: Path) -> None:
    results = experiments.load(make_results(tmp_path / "r", repetitions=1))
    record = dataclasses.replace(results.records[0], trial="x", facts={"steal_share": float("nan")})
    tables = {name: results.table(name, results.records[0].trial) for name in store.TRIAL_TABLES}
    with pytest.raises(ValueError, match="JSON"):
        store.write_trial(results.path, record, tables)
    assert not list((results.path / "trials").glob("*x*"))


def test_undeclared_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="surprise"):
        store.to_arrow("reference", pd.DataFrame({"surprise": [1]}))


HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ResultsError, match="another sweep is writing"), store.exclusive(tmp_path):
            pass
        other.communicate()
    with store.exclusive(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_directory_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no results here"):
        experiments.load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ResultsError, match="format 99, expected 1"):
        experiments.load(tmp_path)


def test_an_unknown_trial_is_named(make_results: Maker, tmp_path: Path) -> None:
    results = experiments.load(make_results(tmp_path / "r", repetitions=1))
    with pytest.raises(ResultsError, match="no trial 'nope'"):
        results.table("windows", "nope")
