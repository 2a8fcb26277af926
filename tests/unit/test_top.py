"""``vcg top``: what its figures are made of, and that they fit where they are shown."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vcg import config, plan, shm, top
from vcg.gauges import ABSENT, Sample
from vcg.plan import HostShape, Plan
from vcg.shm import Outcome, State
from vcg.top import Reading, Row
from vcg.watch import Tally

SECOND = 1_000_000_000
MADE = plan.make(config.load("default"), HostShape((0, 1), {0: 0, 1: 0}))
NOTHING = dict.fromkeys(shm.COUNTERS.fields, 0)


def reading(at_ns: int, *, made: Plan = MADE, **of_d4: Any) -> Reading:
    """A reading in which nothing has happened, but to d4: ``account``, ``sample``, ``state``, ``records``."""
    names = [d.name for d in made.dimensions]
    tallies = {name: Tally() for name in names}
    tallies["d4"].add(of_d4.get("records", b""))
    head = at_ns // 1_000_000
    return Reading(
        at_ns=at_ns,
        clock={"head": head, "superseded": 0, "coalesced": 0, "behind_ns_max": 45_000},
        rounds={"rounds": head, "round_ns_max": 90_000, "round_ns_total": 34_000 * head},
        accounts=dict.fromkeys(names, NOTHING) | {"d4": NOTHING | of_d4.get("account", {})},
        tallies=tallies,
        samples=dict.fromkeys(names) | {"d4": of_d4.get("sample")},
        states=dict.fromkeys(names, int(State.READY)) | {"d4": of_d4.get("state", int(State.READY))},
        amplitudes=dict.fromkeys(names, 1.0),
        credits_ns=dict.fromkeys(names, 1_000_000),
    )


def d4_of(*readings: Reading) -> Row:
    return next(row for row in top.rows(MADE, readings) if row.name == "d4")


def printed(readings: list[Reading], width: int, start_ns: int = 1) -> str:
    file = StringIO()
    Console(width=width, file=file).print(top.picture(MADE, start_ns, readings, width))
    return file.getvalue()


def record(outcome: Outcome, lateness_ns: int = 0) -> bytes:
    fields = dict.fromkeys(shm.WINDOW.fields, 0)
    fields |= {"outcome": outcome, "planned_ns": SECOND, "entry_ns": SECOND + lateness_ns}
    return struct.pack(f"={shm.WINDOW_WORDS}q", *fields.values())


# ── what the figures are made of ─────────────────────────────────────────────────────────────────────────────────────


def test_borrowed_and_lent_are_shares_of_the_own_credit_minted_meanwhile() -> None:
    row = d4_of(
        reading(0, account={"own_ns": 1_000, "borrowed_ns": 500, "lent_ns": 900}),
        reading(SECOND, account={"own_ns": 5_000, "borrowed_ns": 1_500, "lent_ns": 900}),
    )
    assert (row.borrowed_share, row.lent_share) == (0.25, 0.0)


def test_a_balance_and_a_debt_are_shares_of_one_windows_credit() -> None:
    assert d4_of(reading(0, account={"balance_ns": 250_000})).balance_share == 0.25
    row = d4_of(reading(0, account={"balance_ns": -3_000_000, "owed_ns": 500_000}))
    assert (row.balance_share, row.owed_share) == (-3.0, 0.5)


def test_before_anything_is_minted_no_share_of_it_is_shown() -> None:
    row = d4_of(reading(0), reading(SECOND))
    assert (row.borrowed_share, row.lent_share, row.lateness_p50_ns) == (None, None, None)


def test_rates_come_from_the_times_of_the_samples_not_from_those_of_the_readings() -> None:
    before = Sample(SECOND, 100, 4096, 0, 1, 10, 20, 3)
    after = Sample(SECOND * 3 // 2, 100 + SECOND // 4, 4096 + 5000, 0, 11, 10, 20, 3)
    row = d4_of(reading(0, sample=before), reading(10 * SECOND, sample=after))
    assert row.cpu_share == 0.5
    assert (row.read_bytes_per_s, row.written_bytes_per_s, row.requests_per_s) == (10_000, 0, 20)
    assert (row.used_bytes, row.memory_bytes, row.tasks) == (10, 20, 3)


@pytest.mark.parametrize("before", [None, Sample(SECOND, 1, 1, 1, 1, 1, 1, 1)])
def test_without_two_different_samples_there_is_no_rate(before: Sample | None) -> None:
    row = d4_of(reading(0, sample=before), reading(SECOND, sample=Sample(SECOND, 1, 1, 1, 1, 1, 1, 1)))
    assert (row.cpu_share, row.read_bytes_per_s, row.requests_per_s) == (None, None, None)


def test_a_figure_that_the_kernel_does_not_have_is_none() -> None:
    before, after = (Sample(at, at, ABSENT, ABSENT, ABSENT, 7, ABSENT, ABSENT) for at in (SECOND, 2 * SECOND))
    row = d4_of(reading(0, sample=before), reading(SECOND, sample=after))
    assert (row.cpu_share, row.read_bytes_per_s, row.requests_per_s) == (1.0, None, None)
    assert (row.used_bytes, row.memory_bytes, row.tasks) == (7, None, None)


def test_the_windows_of_all_readings_are_shown() -> None:
    row = d4_of(
        reading(0, records=record(Outcome.DONE, 10_000) + record(Outcome.MISSED)),
        reading(SECOND, records=record(Outcome.OVERRUN, 30_000)),
        reading(2 * SECOND, records=record(Outcome.SKIPPED) + record(Outcome.DONE, 20_000)),
    )
    assert (row.windows, row.overrun, row.missed, row.skipped) == (5, 1, 1, 1)
    assert row.lateness_p50_ns == pytest.approx(20_000, rel=1 / 32)
    assert row.lateness_p99_ns == 30_000


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ({}, "ok"),
        ({"account": {"behind": 3}}, "behind"),
        ({"account": {"behind": 3, "held": 1}}, "held"),
        ({"account": {"held": 1}, "state": State.FINISHED}, "ended"),
        ({"sample": Sample(1, 1, 1, 1, 1, 1, 1, 0)}, "ended"),
        ({"state": State.FAILED, "sample": Sample(1, 1, 1, 1, 1, 1, 1, 0)}, "failed"),
        ({"state": 77}, "ok"),
    ],
)
def test_the_worst_that_is_to_be_said_of_a_dimension_is_its_state(told: dict[str, Any], state: str) -> None:
    assert d4_of(reading(0, **told)).state == state


def test_a_dimension_that_was_held_meanwhile_says_how_often() -> None:
    readings = [reading(0, account={"contained": 2}), reading(SECOND, account={"contained": 5})]
    assert d4_of(*readings).contained == 3
    assert printed(readings, 100).count("held 3") == 1


def test_the_summary_is_plain_data_about_every_dimension() -> None:
    told = top.summary(MADE, SECOND, [reading(2 * SECOND), reading(4 * SECOND)])
    assert json.loads(json.dumps(told)) == told
    assert list(told["dimensions"]) == [d.name for d in MADE.dimensions]
    assert told["up_ns"] == 3 * SECOND
    assert told["windows_span_ns"] == 3 * SECOND  # it had only begun
    assert (told["ticks_per_s"], told["orchestrator"]["round_ns_mean"]) == (1000, 34_000)
    assert told["dimensions"]["d4"]["totals"] == NOTHING


def test_a_run_that_was_not_started_has_no_age() -> None:
    told = top.summary(MADE, 0, [reading(2 * SECOND), reading(4 * SECOND)])
    assert (told["up_ns"], told["windows_span_ns"]) == (0, 0)
    assert "not started" in printed([reading(0)], 100, start_ns=0)


# ── how it looks ─────────────────────────────────────────────────────────────────────────────────────────────────────

DURATIONS = st.floats(0, 999 * SECOND)


@given(DURATIONS)
def test_a_short_duration_has_at_most_five_characters(duration_ns: float) -> None:
    assert len(top._short(duration_ns)) <= 5


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0"),
        (7, "7ns"),
        (999.6, "1us"),
        (1_234, "1.2us"),
        (9_940, "9.9us"),
        (9_960, "10us"),
        (18_000_000, "18ms"),
        (SECOND, "1s"),
        (90 * SECOND, "90s"),
    ],
)
def test_a_short_duration_has_two_digits(duration_ns: float, text: str) -> None:
    assert top._short(duration_ns) == text


@given(st.integers(0, 1 << 49))
def test_a_number_of_bytes_has_at_most_five_characters(count: int) -> None:
    assert len(top._bytes(count)) <= 5


def test_an_age_is_told_in_its_two_largest_units() -> None:
    assert [top._age(s * SECOND) for s in (0, 59, 61, 3599, 3600, 90061)] == [
        "0s",
        "59s",
        "1m01s",
        "59m59s",
        "1h00m",
        "25h01m",
    ]


LOUD = Row(
    name="d31",
    role="ingress",
    window_ns=18e6,
    amplitude=0.25,
    credit_ns=3_240_000,
    balance_ns=-4_000_000,
    balance_share=-1.23,
    borrowed_share=3.0,
    lent_share=0.75,
    owed_ns=1,
    owed_share=4.16,
    windows=1500,
    overrun=1000,
    missed=1000,
    skipped=999,
    lateness_p50_ns=852_000,
    lateness_p99_ns=7_100_000,
    state="behind",
    contained=0,
    behind=12,
    cpu_share=0.999,
    read_bytes_per_s=1.2e6,
    written_bytes_per_s=908_000,
    requests_per_s=1000,
    used_bytes=1,
    memory_bytes=128 << 20,
    tasks=64,
    totals=NOTHING,
)


def test_everything_fits_into_100_columns() -> None:
    heading, *lines = top.lines([LOUD, replace(LOUD, name="d1", state="ok", contained=12)], 100)
    assert max(map(len, [heading, *lines])) <= 100
    assert heading.plain.split() == [name for name in top._COLUMNS if name]


@pytest.mark.parametrize("width", [60, 80, 90])
def test_a_narrow_terminal_is_spared_columns_not_rows(width: int) -> None:
    heading, *lines = top.lines([LOUD] * 31, width)
    assert len(lines) == 31
    assert max(map(len, [heading, *lines])) <= width
    assert {"own", "bal", "borr", "lent", "p50", "p99", "miss", "state", "cpu%"} <= set(heading.plain.split())


@pytest.mark.parametrize("width", [20, 60, 100, 200])
def test_a_picture_has_a_line_for_each_dimension_however_narrow(width: int) -> None:
    lines = printed([reading(0), reading(SECOND)], width).splitlines()
    assert len(lines) == 2 + len(MADE.dimensions)
    assert max(map(len, lines)) <= min(width, 120)


def test_columns_stand_apart_where_there_is_room_and_never_over_120() -> None:
    narrow, wide = (top.lines([replace(LOUD, overrun=0, missed=0)], width)[0] for width in (100, 400))
    assert len(narrow) < len(wide) <= 120
