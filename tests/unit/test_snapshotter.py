"""What a death is an occasion for, and how windows are told of."""

from __future__ import annotations

import pytest

from vcg import shm, snapshotter
from vcg.shm import Cause, Outcome


@pytest.mark.parametrize(
    ("wanted", "code", "short", "reason"),
    [
        (("crash",), -9, False, "crash"),
        (("crash",), 1, False, "crash"),
        (("crash",), -9, True, "crash"),
        (("crash", "oom"), -9, True, "oom"),
        (("oom",), -9, True, "oom"),
        (("oom",), -9, False, None),
        (("watchdog",), 1, True, None),
        (("crash",), 0, False, None),
        ((), 1, True, None),
    ],
)
def test_what_a_death_is_an_occasion_for(wanted: tuple[str, ...], code: int, short: bool, reason: str | None) -> None:
    assert snapshotter.reason_of_death(wanted, code, short) == reason


def test_windows_have_names_and_what_is_no_outcome_stays_a_number() -> None:
    record = [7, 1, Outcome.MISSED, 10, 0, 0, 0, 0, 0, 0, 0, Cause.BUSY]
    assert snapshotter.named(record) | {"outcome": "missed", "cause": "busy"} == snapshotter.named(record)
    assert list(snapshotter.named(record)) == list(shm.WINDOW.fields)
    record[shm.WINDOW.at("outcome")] = 77
    assert snapshotter.named(record)["outcome"] == 77
