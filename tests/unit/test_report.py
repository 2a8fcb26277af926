"""The report: words that the figures bear out, in one file that needs nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import experiments
from experiments import report
from experiments.store import ResultsError

Maker = Callable[..., Path]
ROOT = Path(__file__).parents[2]


def words(page: Path) -> str:
    text = re.sub(r"<style.*?</style>|<details>.*?</details>", "", page.read_text(), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_two_repetitions_decide_nothing_and_the_report_says_so(make_results: Maker, tmp_path: Path) -> None:
    page = report.write(make_results(tmp_path / "r", repetitions=2, factors={"golden": 3.0}))
    said = words(page)
    assert "With two repetitions these intervals decide nothing" in said
    assert "has higher" not in said
    assert "Lowest p90 lateness: harmonic" in said
    assert "Highest p90 lateness: golden" in said


def test_a_clear_effect_over_enough_blocks_is_claimed(make_results: Maker, tmp_path: Path) -> None:
    said = words(report.write(make_results(tmp_path / "r", repetitions=7, factors={"golden": 3.0})))
    assert "ratio: golden has higher p90 lateness than harmonic" in said
    assert "decide nothing:" not in said


def test_quantiles_of_a_dimension_never_cross(make_results: Maker, tmp_path: Path) -> None:
    results = experiments.load(make_results(tmp_path / "r", repetitions=1))
    rows = report.dimension_rows(results)
    some_support_it = results.summary.groupby("dimension", observed=True)["lateness_p99_ns"].count()
    assert some_support_it["d1"] > 0
    for row in rows:
        known = [row[f"lateness_{name}_ns"] for name in ("p50", "p90", "p99") if row[f"lateness_{name}_ns"] > 0]
        assert known == sorted(known)


def test_a_quantile_that_only_some_trials_support_is_not_shown(make_results: Maker, tmp_path: Path) -> None:
    results = experiments.load(make_results(tmp_path / "r", repetitions=1))
    first = results.summary.index[results.summary["dimension"] == "d1"][0]
    results.summary.loc[first, "lateness_p50_ns"] = float("nan")
    (d1,) = [row for row in report.dimension_rows(results) if row["dimension"] == "d1"]
    assert not d1["lateness_p50_ns"] > 0
    assert d1["lateness_p90_ns"] > 0


def test_the_report_needs_nothing_else(make_results: Maker, tmp_path: Path) -> None:
    page = report.write(make_results(tmp_path / "r"))
    html = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in html
    assert "@import" not in html
    assert sorted(path.stem for path in (page.parent / "plots").iterdir()) == sorted(
        report.draw(experiments.load(page.parent))
    )


def test_void_trials_are_listed_with_their_reasons(make_results: Maker, tmp_path: Path) -> None:
    said = words(report.write(make_results(tmp_path / "r", void=2)))
    assert "8 of 10 run" in said
    assert said.count("3 events lost (limit 0)") == 2


def test_a_sweep_of_void_trials_alone_still_has_a_report(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=1, void=99)
    for trial in (path / "trials").glob("*-r1"):
        for file in trial.iterdir():
            file.unlink()
        trial.rmdir()
    said = words(report.write(path))
    assert "0 of 4 run" in said
    assert "every trial is void" in said


def test_names_from_files_cannot_become_markup(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=1)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made up"', '"<img src=x>"'))
    assert "<img src=x>" not in report.write(path).read_text()


def test_a_directory_without_trials_is_named(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=1)
    (path / "trials").rename(path / "elsewhere")
    with pytest.raises(ResultsError, match="no finished trial yet"):
        report.write(path)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0 %"), (0.00123, "0.12 %"), (0.5, "50.0 %"), (float("nan"), "–")])
def test_shares_read_as_percent(value: float, text: str) -> None:
    assert report.format_share(value) == text


def test_the_notebook_runs_as_a_script(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=2)
    environment = {**os.environ, "VCG_RESULTS": str(path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "jitter.py"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert "edge to wake" in ran.stdout
