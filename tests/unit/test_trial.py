"""Trials: rows from records, facts of the host, and reasons why a trial does not count."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import store, trial
from experiments.plan import Limits
from experiments.trial import HostFacts, HostSample, Records, believable, void_reasons, window_rows
from probes import AgreementRow
from vcg import config, shm
from vcg import plan as testbed_plan
from vcg.plan import DimensionPlan, HostShape
from vcg.shm import Outcome

ROOT = Path(__file__).parents[2]
START_NS = 7_000_000_000
DIMENSION = testbed_plan.make(config.load("default"), HostShape((0, 1), {0: 0, 1: 0})).dimensions[1]
QUIET = HostFacts(10**9, 0.0, 0.0, 0, 15e3, 30e3, 0, 0, 0)


def record(dimension: DimensionPlan, window: int, outcome: Outcome, lateness_ns: int = 1000) -> list[int]:
    planned = START_NS + math.floor(Fraction(*dimension.phase) + window * Fraction(*dimension.period))
    entered = outcome in (Outcome.DONE, Outcome.OVERRUN)
    entry = planned + lateness_ns if entered else 0
    fields = {
        "window": window,
        "outcome": outcome,
        "planned_ns": planned,
        "wake_ns": entry,
        "entry_ns": entry,
        "finish_ns": entry,
        "budget_ns": 5000,
        "used_ns": 100,
    }
    return [int(fields.get(name, 0)) for name in shm.WINDOW.fields]


def believed(records: list[list[int]], duration_ns: int) -> tuple[Records, list[str]]:
    """What is believed of records that were read a while after the end of the trial, and what is not."""
    raw = np.array(records, dtype=np.int64).tobytes()
    return believable(raw, DIMENSION, START_NS, START_NS + duration_ns + 100_000_000)


def rows_of(records: list[list[int]], duration_ns: int, warmup_ns: int = 0) -> pd.DataFrame:
    found, _ = believed(records, duration_ns)
    return window_rows({DIMENSION.name: found}, [DIMENSION], START_NS, warmup_ns, duration_ns)


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@given(
    period=st.fractions(Fraction(1000), Fraction(10**8), max_denominator=5000),
    place=st.fractions(0, Fraction(8, 9), max_denominator=9),
    duration_ns=st.integers(1, 10**9),
)
def test_planned_windows_are_those_before_the_end(period: Fraction, place: Fraction, duration_ns: int) -> None:
    phase = period * place
    dimension = replace(
        DIMENSION,
        period=(period.numerator, period.denominator),
        phase=(phase.numerator, phase.denominator),
    )
    count = trial.planned_count(dimension, duration_ns)
    assert phase + count * period >= duration_ns
    assert count == 0 or phase + (count - 1) * period < duration_ns
    few = trial.planned_ns(dimension, min(count, 50), START_NS)
    assert list(few) == [START_NS + math.floor(phase + n * period) for n in range(len(few))]


@given(st.data())
def test_every_planned_window_has_one_row(data: st.DataObject) -> None:
    duration_ns = 100_000_000
    count = trial.planned_count(DIMENSION, duration_ns)
    numbers = data.draw(st.lists(st.integers(0, count + 5), unique=True))
    outcomes = {n: data.draw(st.sampled_from(list(Outcome))) for n in numbers}
    frame = rows_of([record(DIMENSION, n, o) for n, o in outcomes.items()] or [[0] * 0], duration_ns)
    assert list(frame["window"]) == list(range(count))
    expected = [outcomes[n].name.lower() if n in outcomes else "unrecorded" for n in range(count)]
    assert list(frame["outcome"]) == expected
    entered = frame["outcome"].isin(["done", "overrun"])
    assert (frame["lateness_ns"].notna() == entered).all()
    assert (frame["entry_ns"].notna() == entered).all()
    assert (frame.loc[entered, "lateness_ns"] == 1000).all()


def test_rows_fit_the_declared_table() -> None:
    frame = rows_of([record(DIMENSION, 0, Outcome.DONE)], 50_000_000, warmup_ns=10_000_000)
    table = store.to_arrow("windows", frame.assign(trial="t"))
    assert table.num_rows == len(frame)
    assert table.schema.field("lateness_ns").metadata[b"unit"] == b"ns"


def test_the_warm_up_ends_at_its_time() -> None:
    frame = rows_of([], 60_000_000, warmup_ns=30_000_000)
    assert (frame["warmup"] == (frame["planned_ns"] < START_NS + 30_000_000)).all()
    assert frame["warmup"].any()
    assert not frame["warmup"].all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"outcome": 4}, "window 3: unknown outcome"),
        ({"outcome": -1}, "window 3: unknown outcome"),
        ({"cause": 9}, "window 3: unknown cause"),
        ({"planned_ns": 1}, "window 3: not planned for this time"),
        ({"window": -1}, "window -1: not a window of this run"),
        ({"window": 2**62}, f"window {2**62}: not a window of this run"),
        ({"window": 2}, "window 2: not planned for this time"),
        ({"entry_ns": START_NS - 1}, "window 3: entry or end out of order"),
        ({"finish_ns": 1}, "window 3: entry or end out of order"),
        ({"entry_ns": 2**63 - 1, "finish_ns": 2**63 - 1}, "window 3: ends in the future"),
    ],
)
def test_a_record_that_cannot_be_is_refused_and_the_others_are_kept(change: dict[str, int], why: str) -> None:
    forged = record(DIMENSION, 3, Outcome.DONE)
    for field, value in change.items():
        forged[shm.WINDOW.at(field)] = value
    honest = record(DIMENSION, 4, Outcome.DONE)
    found, refused = believed([forged, honest], 100_000_000)
    assert refused == [f"{DIMENSION.name}: {why}"]
    assert list(found["window"]) == [4]
    frame = rows_of([forged, honest], 100_000_000)
    assert list(frame["outcome"][3:5]) == ["unrecorded", "done"]


def test_of_two_records_of_a_window_the_first_stays() -> None:
    twice = [record(DIMENSION, 3, Outcome.DONE), record(DIMENSION, 3, Outcome.MISSED)]
    found, refused = believed(twice, 100_000_000)
    assert refused == [f"{DIMENSION.name}: window 3: recorded twice"]
    assert list(found["outcome"]) == [Outcome.DONE]


WORD = st.integers(-(2**63), 2**63 - 1)
PLAUSIBLE = st.integers(-2, 12) | st.integers(START_NS - 10, START_NS + 10**8)


@given(st.lists(st.lists(PLAUSIBLE | WORD, min_size=shm.WINDOW.words, max_size=shm.WINDOW.words), max_size=20))
def test_whatever_a_dimension_writes_makes_rows(records: list[list[int]]) -> None:
    found, refused = believed(records, 100_000_000)
    assert len(found) + len(refused) == len(records)
    frame = rows_of(records, 100_000_000)
    assert list(frame["window"]) == list(range(trial.planned_count(DIMENSION, 100_000_000)))
    assert not (frame["lateness_ns"] < 0).any()
    assert store.to_arrow("windows", frame.assign(trial="t")).num_rows == len(frame)


# ── void ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_quiet_trial_counts() -> None:
    assert void_reasons(QUIET, Limits(), 20e3) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steal_share": 0.021}, "hypervisor"),
        ({"foreign_cpu_share": 0.11}, "foreign"),
        ({"throttled": 1}, "quota"),
        ({"reference_p99_ns": 1_000_001.0}, "1000 us"),
        ({"reference_p99_ns": 401e3}, "times that of the idle host"),
        ({"reference_p99_ns": None}, "too few samples"),
        ({"refused_records": 1}, "refused"),
        ({"restarted": 1}, "restarted"),
        ({"lost_events": 1}, "lost"),
        ({"disagreements": 1}, "oracle"),
    ],
)
def test_each_limit_voids_a_trial_by_name(change: dict[str, Any], word: str) -> None:
    reasons = void_reasons(replace(QUIET, **change), Limits(), 20e3)
    assert any(word in reason for reason in reasons)


def test_what_disagrees_with_its_oracle_is_named_and_by_how_much() -> None:
    row = AgreementRow("sched", "run_delay_ns", "d6", 894, 1000, -106, 20, False, "")
    (reason,) = void_reasons(replace(QUIET, disagreements=1), Limits(), 20e3, [row])
    assert reason == "a quantity disagrees with its oracle (limit 0): sched run_delay_ns of d6, by -10.6%"
    none = replace(row, quantity="waits", measured=3, oracle=0, difference=3)
    (reason,) = void_reasons(replace(QUIET, disagreements=2), Limits(), 20e3, [row, none])
    assert reason.startswith("2 quantities disagree with their oracles (limit 0): ")
    assert reason.endswith("; sched waits of d6, by +3 where the oracle has none")


def test_limits_themselves_are_still_allowed() -> None:
    limits = Limits()
    at_limit = replace(
        QUIET,
        steal_share=limits.steal_share,
        foreign_cpu_share=limits.foreign_cpu_share,
        reference_p99_ns=float(limits.reference_p99_ns),
    )
    assert void_reasons(at_limit, limits, 1e6) == []


def test_the_reference_thread_imports_the_standard_library_alone() -> None:
    code = "import sys, experiments.reference; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"numpy", "pandas", "pydantic", "typer", "rich"} & set(loaded.split())


# ── the host ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def sample(at_ns: int, idle_ns: int, steal_ns: int, ours: dict[int, int], kernel: dict[int, int]) -> HostSample:
    return HostSample(at_ns, 2, idle_ns, steal_ns, ours, kernel, 0)


def test_what_is_neither_idle_nor_ours_nor_the_kernels_is_foreign() -> None:
    before = sample(0, 0, 0, {10: 500, 11: 100}, {2: 50})
    after = sample(1000, 900, 100, {10: 900, 11: 100, 12: 200}, {2: 150})
    steal, foreign = trial.host_shares(before, after)
    assert steal == pytest.approx(100 / 2000)
    assert foreign == pytest.approx((2000 - 900 - 100 - 600 - 100) / 2000)


def test_the_running_host_is_sampled() -> None:
    first = trial.sample_host([])
    second = trial.sample_host([])
    steal, foreign = trial.host_shares(first, second)
    assert second.at_ns > first.at_ns
    assert 0 <= steal <= 1
    assert 0 <= foreign <= 1
