"""A run's windows summed up: every record is counted once, and quantiles are as exact as their buckets."""

from __future__ import annotations

import struct
from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import shm
from vcg.run import told_of
from vcg.shm import Cause, Outcome
from vcg.watch import Tally, changes, lost_services, restarts

PLANNED_NS = 10**12
LATENESS = st.integers(min_value=0, max_value=10**10)
ENTERED = st.sampled_from([Outcome.DONE, Outcome.OVERRUN])


def record(
    outcome: int, cause: int = Cause.NONE, lateness_ns: int = 0, budget_ns: int = 1000, used_ns: int = 400
) -> bytes:
    """One window record as a dimension writes it."""
    entered = outcome in (Outcome.DONE, Outcome.OVERRUN)
    fields = dict.fromkeys(shm.WINDOW.fields, 0) | {
        "outcome": outcome,
        "cause": cause,
        "planned_ns": PLANNED_NS,
        "entry_ns": PLANNED_NS + lateness_ns if entered else 0,
        "budget_ns": budget_ns,
        "used_ns": used_ns,
    }
    return struct.pack(f"={shm.WINDOW_WORDS}q", *fields.values())


def tally_of(*records: bytes) -> Tally:
    tally = Tally()
    tally.add(b"".join(records))
    return tally


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.sampled_from(Cause)), max_size=40), st.integers(0, 40))
def test_every_window_is_counted_once_however_the_records_are_delivered(
    windows: list[tuple[Outcome, Cause]], cut: int
) -> None:
    records = [record(outcome, cause) for outcome, cause in windows]
    tally = tally_of(*records[:cut])
    tally.add(b"".join(records[cut:]))
    assert tally.windows == len(windows)
    assert {outcome: count for outcome, count in tally.outcomes.items() if count} == Counter(o for o, _ in windows)
    assert {cause: count for cause, count in tally.causes.items() if count} == Counter(c for _, c in windows)
    assert tally.refused == 0


@given(st.lists(LATENESS, min_size=1, max_size=200), st.floats(min_value=0, max_value=1))
def test_a_quantile_is_at_most_a_thirty_second_above_the_true_one(lateness_ns: list[int], share: float) -> None:
    tally = tally_of(*(record(Outcome.DONE, lateness_ns=late) for late in lateness_ns))
    true_ns = sorted(lateness_ns)[max(1, ceil(share * len(lateness_ns))) - 1]
    told_ns = tally.lateness_ns(share)
    assert told_ns is not None
    assert true_ns <= told_ns <= true_ns + max(1, true_ns / 32)
    assert tally.lateness_max_ns == max(lateness_ns)


def test_only_entered_windows_have_a_lateness_and_use_credit() -> None:
    tally = tally_of(
        record(Outcome.DONE, lateness_ns=100, budget_ns=1000, used_ns=250),
        record(Outcome.OVERRUN, lateness_ns=300, budget_ns=1000, used_ns=1500),
        record(Outcome.MISSED, Cause.LATE),
        record(Outcome.SKIPPED),
    )
    assert sum(tally.lateness.values()) == 2
    assert (tally.budget_ns, tally.used_ns, tally.lateness_max_ns) == (2000, 1750, 300)


def test_an_entry_before_the_edge_is_no_lateness() -> None:
    tally = tally_of(record(Outcome.DONE, lateness_ns=-50))
    assert tally.lateness_ns(0.5) == 0


@pytest.mark.parametrize(("outcome", "cause"), [(99, 0), (-1, 0), (Outcome.MISSED, 99), (2**62, -(2**62))])
def test_a_record_with_unknown_values_is_refused_and_counted_as_nothing_else(outcome: int, cause: int) -> None:
    tally = tally_of(record(Outcome.DONE, lateness_ns=100), record(outcome, cause), record(Outcome.SKIPPED))
    assert tally.refused == 1
    assert tally.windows == sum(tally.causes.values()) == 2
    assert tally.summary()["refused_records"] == 1


def test_the_summary_of_a_run_without_windows_has_no_lateness() -> None:
    summary = Tally().summary()
    assert [summary[f"lateness_{name}_ns"] for name in ("p50", "p99", "max")] == [None, None, None]
    assert summary["windows"] == 0


def test_the_summary_names_every_outcome_and_every_cause_of_a_miss() -> None:
    summary = tally_of(record(Outcome.MISSED, Cause.BUSY), record(Outcome.DONE)).summary()
    assert [summary[outcome.name.lower()] for outcome in Outcome] == [1, 0, 1, 0]
    assert {name: count for name, count in summary.items() if name.startswith("missed_")} == {
        "missed_busy": 1,
        "missed_late": 0,
        "missed_no_token": 0,
        "missed_down": 0,
        "missed_unrecorded": 0,
    }


def test_windows_that_nobody_recorded_count_as_missed() -> None:
    tally = tally_of(record(Outcome.MISSED, Cause.BUSY), record(Outcome.DONE))
    tally.unrecorded = 5
    summary = Tally.of([tally, tally]).summary()
    assert {name: summary[name] for name in ("windows", "done", "missed", "missed_busy", "missed_unrecorded")} == {
        "windows": 14,
        "done": 2,
        "missed": 12,
        "missed_busy": 2,
        "missed_unrecorded": 10,
    }


@given(st.lists(st.lists(st.sampled_from(Outcome), max_size=10), max_size=5))
def test_a_sum_of_tallies_is_the_tally_of_all_their_windows(parts: list[list[Outcome]]) -> None:
    records = [[record(outcome, lateness_ns=100 * k) for k, outcome in enumerate(part)] for part in parts]
    whole = tally_of(*(one for part in records for one in part))
    assert vars(Tally.of(tally_of(*part) for part in records)) == vars(whole)


def test_changes_of_amplitudes_are_told_with_their_times() -> None:
    retuned = [
        {"at_ns": 500, "name": "d9", "amplitude": 3},
        {"at_ns": 2_000_001_000, "name": "d1", "amplitude": 2.5},
        {"at_ns": 2_000_001_000, "name": "d2", "amplitude": 2.5},
    ]
    assert changes(retuned, 1000) == "amplitude of d9 to 3 before the start; amplitude of d1, d2 to 2.5 after 2s"


def test_processes_that_were_replaced_are_told_a_line_each() -> None:
    failed = {"name": "d4", "generation": 2, "how": "exited with 1", "message": "workload x raised Y\nat line 1"}
    lines = restarts(
        [
            {**failed, "died_ns": 2_000_001_000, "up_ns": 2_150_001_000},
            {**failed, "died_ns": 500, "up_ns": None},
            {**failed, "died_ns": 500, "up_ns": None, "stuck": "process 7 survives SIGKILL"},
        ],
        1000,
    )
    assert list(lines) == [
        "d4 exited with 1 after 2s: workload x raised Y; restarted after 150ms (generation 2)",
        "d4 exited with 1 before the start: workload x raised Y; the run ended before another could take its place",
        "d4 exited with 1 before the start: workload x raised Y; the run ended before another could take its place "
        "(process 7 survives SIGKILL)",
    ]


def test_last_words_are_shown_and_not_obeyed() -> None:
    failed = {"name": "d4", "generation": 2, "how": "exited with 1", "message": "\x1b[2Jgone", "up_ns": None}
    (line,) = restarts([{**failed, "died_ns": 500}], 1000)
    assert r"exited with 1 before the start: \x1b[2Jgone;" in line
    assert (
        told_of({"error": "d4: no snapshot (crash): data/\x1b]0;x\x07"})
        == r"d4: no snapshot (crash): data/\x1b]0;x\x07"
    )


def test_services_that_the_run_went_on_without_are_told_a_line_each() -> None:
    lost = [{"name": "relay", "how": "was killed by SIGKILL", "at_ns": 3_000_001_000}]
    assert list(lost_services(lost, 1000)) == ["relay was killed by SIGKILL after 3s; the run went on without it"]
