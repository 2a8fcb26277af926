"""What a dimension writes down of windows for which none of its processes was there."""

from __future__ import annotations

import mmap
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from vcg import config, plan, shm
from vcg.dimension import Dimension
from vcg.plan import DimensionPlan, HostShape
from vcg.shm import Cause, Outcome, Phase

EPOCH, START_NS = 3, 10**12
(PLAN,) = plan.make(
    config.from_mapping({"name": "one", "base_window": "4ms", "dimensions": {"d1": {"phase": "1/3"}}}),
    HostShape((0,), {0: 0}),
).dimensions


class Record(NamedTuple):
    window: int
    epoch: int
    outcome: int
    planned_ns: int
    entry_ns: int
    cause: int


def words(size_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size_bytes)).cast("q")


class Scene:
    """A run whose clock has published windows up to ``latest``, all but the ``skipped`` ones, and stopped."""

    def __init__(self, latest: int, skipped: frozenset[int] = frozenset(), d: DimensionPlan = PLAN) -> None:
        self.control, self.ticks = words(shm.CONTROL_BYTES), words(shm.TICKS_BYTES)
        self.tokens, self.status = words(shm.TOKENS_BYTES), words(shm.STATUS_BYTES)
        self.d = d
        self.control[shm.CONTROL.at("start_ns")] = START_NS
        self.ticks[shm.TICKS_HEADER.at("phase")] = Phase.FINISH
        self.ticks[shm.LATEST_AT + d.index] = latest
        history = sum(1 << back for back in range(62) if latest - back >= 0 and latest - back not in skipped)
        at = shm.EDGES_AT + (d.index * shm.EDGE_SLOTS + latest % shm.EDGE_SLOTS) * shm.EDGE_WORDS
        for offset, value in enumerate((latest, self.planned_ns(latest), 0, history)):
            self.ticks[at + offset] = value

    def planned_ns(self, window: int) -> int:
        return START_NS + int(Fraction(*self.d.phase) + window * Fraction(*self.d.period))

    def process(self, generation: int) -> Dimension:
        return Dimension(
            self.d, EPOCH, self.control, self.ticks, self.tokens, self.status, lambda: 0, generation=generation
        )

    def lay_token(self, window: int) -> None:
        at = shm.TOKENS_AT + (self.d.index * shm.TOKEN_SLOTS + window % shm.TOKEN_SLOTS) * shm.TOKEN_WORDS
        token = {"window": window, "epoch": EPOCH, "budget_ns": 1000, "expires_ns": 1 << 62}
        for name, value in token.items():
            self.tokens[at + shm.TOKEN.at(name)] = value

    @property
    def head(self) -> int:
        return self.status[shm.STATUS_HEADER.at("head")]

    @head.setter
    def head(self, head: int) -> None:
        self.status[shm.STATUS_HEADER.at("head")] = head

    def record(self, window: int) -> Record:
        at = shm.WINDOWS_AT + window % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
        return Record(*(self.status[at + shm.WINDOW.at(name)] for name in Record._fields))


@given(st.integers(0, 50), st.integers(0, 50), st.sets(st.integers(0, 100)))
def test_every_window_without_a_record_gets_one_and_only_those(recorded: int, absent: int, skipped: set[int]) -> None:
    latest = recorded + absent - 1
    scene = Scene(latest, frozenset(skipped - {latest}))
    scene.head = recorded
    assert list(scene.process(2).windows()) == []
    assert scene.head == recorded + absent
    for window in range(recorded, latest + 1):
        skips = window in skipped and window != latest
        told = scene.record(window)
        assert told == Record(
            window,
            EPOCH,
            Outcome.SKIPPED if skips else Outcome.MISSED,
            scene.planned_ns(window),
            0,
            Cause.NONE if skips else Cause.DOWN,
        )
    assert all(scene.record(window).epoch == 0 for window in range(recorded))


def test_a_first_process_was_there_for_every_window_that_it_missed() -> None:
    scene = Scene(4)
    assert list(scene.process(1).windows()) == []
    assert [scene.record(window).cause for window in range(5)] == [Cause.LATE] * 4 + [Cause.NO_TOKEN]


def test_absence_is_recorded_once() -> None:
    scene = Scene(9)
    process = scene.process(2)
    process.record_absence()
    scene.status[shm.WINDOWS_AT + shm.WINDOW.at("cause")] = Cause.BUSY
    process.record_absence()
    assert scene.head == 10
    assert scene.record(0).cause == Cause.BUSY


def test_of_an_absence_that_is_longer_than_the_ring_the_newest_windows_are_kept() -> None:
    latest = 3 * shm.WINDOW_SLOTS + 17
    scene = Scene(latest, d=replace(PLAN, index=5))
    scene.head = 100
    scene.process(2).record_absence()
    assert scene.head == latest + 1
    kept = range(latest + 1 - shm.WINDOW_SLOTS, latest + 1)
    assert [scene.record(window).window for window in kept] == list(kept)


def test_who_asks_for_its_windows_again_goes_on_where_it_stopped() -> None:
    scene = Scene(6)
    process = scene.process(1)
    assert list(process.windows()) == list(process.windows()) == []
    assert scene.head == 7


def test_a_window_in_which_nobody_was_let_work_after_all_is_missed_and_its_cpu_time_counts_in_the_next() -> None:
    scene = Scene(0)
    cpu_ns = iter(range(0, 10_000, 7))
    process = Dimension(
        scene.d, EPOCH, scene.control, scene.ticks, scene.tokens, scene.status, cpu_ns=lambda: next(cpu_ns)
    )
    scene.lay_token(0)
    scene.lay_token(1)
    for window in process.windows():
        if window.number == 0:
            window.entry_ns = 0
            latest_at = shm.EDGES_AT + (scene.d.index * shm.EDGE_SLOTS + 1) * shm.EDGE_WORDS
            for offset, value in enumerate((1, scene.planned_ns(1), 0, 3)):
                scene.ticks[latest_at + offset] = value
            scene.ticks[shm.LATEST_AT + scene.d.index] = 1
    missed, done = scene.record(0), scene.record(1)
    assert (missed.outcome, missed.entry_ns, missed.cause) == (Outcome.MISSED, 0, Cause.LATE)
    assert (done.outcome, done.cause) == (Outcome.DONE, Cause.NONE)
    used_at = shm.WINDOWS_AT + shm.WINDOW.at("used_ns")
    assert (scene.status[used_at], scene.status[used_at + shm.WINDOW_WORDS]) == (0, 7)
