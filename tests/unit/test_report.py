"""The report: words that the figures bear out, in one file that needs nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

import experiments
from experiments import report
from experiments.store import ResultsError
from probes import AgreementRow

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


def test_trials_that_do_not_count_are_in_the_headlines(make_results: Maker, tmp_path: Path) -> None:
    page = report.write(make_results(tmp_path / "r", void=2))
    (headlines,) = re.findall(r'<div class="verdict">(.*?)</div>', page.read_text(), flags=re.S)
    assert re.search(r"\d+ of \d+ planned trials count; 2 of \d+ that were run are void", headlines)
    clean = report.write(make_results(tmp_path / "clean"))
    assert "planned trials count" not in words(clean)


def test_the_commands_that_repeat_it_name_the_results_wherever_one_is(make_results: Maker, tmp_path: Path) -> None:
    said = words(report.write(make_results(tmp_path / "r")))
    assert f"vcg report {tmp_path / 'r'} " in said
    assert f"vcg sweep run {tmp_path / 'r'}/sweep.toml " in said


def test_a_sweep_of_void_trials_alone_still_has_a_report(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=1, void=99)
    for trial in (path / "trials").glob("*-r1"):
        for file in trial.iterdir():
            file.unlink()
        trial.rmdir()
    said = words(report.write(path))
    assert "0 of 4 run" in said
    assert "every trial is void" in said


AGREEMENT = pd.DataFrame(
    [
        ("t1", "sched", "run_delay_ns", "d1", 102, 100, 2, 2, True, ""),
        ("t2", "sched", "run_delay_ns", "d1", 130, 100, 30, 40, True, "within 500 ns for each of 7 waits"),
        ("t1", "sched", "run_delay_ns", "d2", 40, 20, 20, 4, None, "left open by tracepoints: 30ns of 20ns"),
        ("t2", "sched", "run_delay_ns", "d2", 60, 20, 40, 4, None, "left open by tracepoints: 50ns of 20ns"),
        ("t1", "block", "requests_read", "d2", 9, 10, -1, 0, False, ""),
        ("t2", "block", "requests_read", "d2", 0, 0, 0, 0, True, ""),
        ("t3", "block", "requests_read", "d2", 3, 0, 3, 0, False, ""),
    ],
    columns=["trial", *(field.name for field in fields(AgreementRow))],
)


def test_agreement_is_counted_by_verdict_and_beside_that_by_a_flat_two_percent() -> None:
    delay, reads = report.agreement_rows(AGREEMENT)
    assert (delay["probe"], delay["quantity"]) == ("sched", "run_delay_ns")
    assert (delay["measured"], delay["oracle"], delay["difference"]) == (332, 240, pytest.approx(92 / 240))
    counts = ("rows", "within", "agreed", "not_comparable", "disagreed")
    assert [delay[count] for count in counts] == [4, 1, 2, 2, 0]
    assert [reads[count] for count in counts] == [3, 1, 1, 0, 2]
    assert delay["why"] == [
        "2 not comparable: left open by tracepoints: 50ns of 20ns (worst: +200.0 %, d2 in t2)",
        "1 agree, but with a remark: within 500 ns for each of 7 waits (+30.0 %, d1 in t2)",
    ]
    assert reads["why"] == ["2 disagree: differs by 3, allowed 0 (worst: –, d2 in t3)"]


def test_run_delay_is_told_by_dimension() -> None:
    one, other = report.run_delay_rows(AGREEMENT)
    assert (one["dimension"], one["within"], one["agreed"]) == ("d1", 1, 2)
    assert (other["dimension"], other["within"], other["not_comparable"]) == ("d2", 0, 2)
    assert report.agreement_rows(AGREEMENT.iloc[:0]) == report.run_delay_rows(AGREEMENT.iloc[:0]) == []


def test_the_page_shows_what_is_not_comparable_and_what_was_missed(make_results: Maker, tmp_path: Path) -> None:
    said = words(report.write(make_results(tmp_path / "r", repetitions=1)))
    assert "sched run_delay_ns 414 ms 408 ms +1.5 % 8 4 4 4 0 4 not comparable: left open by tracepoints" in said
    assert "D1 404 ms 400 ms +1 % 4 4 4 0 0" in said
    assert "missed sched sched_switch 1000 900 ns" in said


def test_a_trial_without_a_reference_p99_does_not_spoil_the_report(make_results: Maker, tmp_path: Path) -> None:
    path = make_results(tmp_path / "r", repetitions=1)
    for file in (path / "trials").glob("*/trial.json"):
        record = json.loads(file.read_text())
        record["facts"] |= {"reference_p50_ns": None, "reference_p99_ns": None}
        file.write_text(json.dumps(record))
    assert "reference thread p99 –" in words(report.write(path))


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
