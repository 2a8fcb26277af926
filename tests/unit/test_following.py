"""What becomes of a dimension's lease, debt and custody when its process dies and another follows."""

from __future__ import annotations

import mmap
import os
from fractions import Fraction
from typing import cast

import pytest

from vcg import config, plan, shm
from vcg.orchestrator import new_tokens
from vcg.plan import HostShape
from vcg.rounds import Desk, Orchestrator
from vcg.shm import Outcome
from vcg.tokens import Ledger, Terms
from vcg.warden import Standing, Warden

EPOCH = 4
WINDOW_NS, CREDIT_NS = 1_000_000, 1000
ELAPSED_NS = 1_000_000_000
(PLAN,) = plan.make(
    config.from_mapping({"name": "one", "base_window": "1ms", "dimensions": {"d1": {"grace": "500ns"}}}),
    HostShape((0,), {0: 0}),
).dimensions


def words(size_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size_bytes)).cast("q")


class Kernel:
    """What a warden would read, and what it was told to do."""

    def __init__(self) -> None:
        self.used_ns = 5_000_000
        self.acts: list[Standing] = []

    def usage_ns(self) -> int:
        return self.used_ns

    def apply(self, before: Standing, after: Standing) -> bool:
        if before != after:
            self.acts.append(after)
        return True


class Scene:
    """A dimension with 1000 ns for each window, some of which it has entered already."""

    def __init__(self, windows: int = 10) -> None:
        self.ticks, self.status = words(shm.TICKS_BYTES), words(shm.STATUS_BYTES)
        fd, tokens = new_tokens(EPOCH)
        os.close(fd)
        terms = Terms(PLAN.name, PLAN.cpus, "", PLAN.period, Fraction(0), Fraction(1, 4), Fraction(4))
        self.account = Ledger([terms], [CREDIT_NS], [1], 40 * WINDOW_NS).accounts[0]
        self.desk = Desk(PLAN, self.account, EPOCH, self.ticks, tokens, self.status)
        self.kernel = Kernel()
        self.desk.watch_by(cast(Warden, self.kernel))
        self.window = -1
        for _ in range(windows):
            self.next()

    def next(self, used_ns: int = 600, reported_ns: int | None = 600) -> None:
        """A window begins, goes by and is reported (None: is not); the orchestrator looks."""
        self.window += 1
        self.ticks[shm.LATEST_AT + PLAN.index] = self.window
        end_ns = (self.window + 2) * WINDOW_NS
        self.desk.offer_through(0, end_ns + WINDOW_NS)
        self.kernel.used_ns += used_ns
        if reported_ns is not None:
            at = shm.WINDOWS_AT + self.window % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
            for name, value in (("window", self.window), ("epoch", EPOCH), ("outcome", Outcome.DONE)):
                self.status[at + shm.WINDOW.at(name)] = value
            self.status[at + shm.WINDOW.at("used_ns")] = reported_ns
            self.status[shm.STATUS_HEADER.at("head")] = self.window + 1
            self.desk.settle(ELAPSED_NS)
        self.desk.enforce(end_ns, 0, self.window * 20_000_000)

    def die(self, used_ns: int = 0) -> None:
        """In a window that has begun, after so much CPU time in it."""
        self.window += 1
        self.ticks[shm.LATEST_AT + PLAN.index] = self.window
        self.desk.offer_through(0, (self.window + 3) * WINDOW_NS)
        self.kernel.used_ns += used_ns
        self.desk.follow(-abs(self.desk.generation))


def test_the_lease_of_the_dead_is_taken_back_and_pays_for_what_they_used() -> None:
    scene = Scene()
    before = scene.account.expired_ns
    scene.die(used_ns=300)
    assert scene.account.settled_through == scene.window
    assert scene.account.balance_ns == 0
    assert scene.desk.unreported_ns == 300
    assert scene.account.expired_ns - before == CREDIT_NS - 300


def test_what_the_dead_used_beyond_their_lease_is_their_successors_debt() -> None:
    scene = Scene()
    scene.die(used_ns=3 * CREDIT_NS)
    assert scene.account.balance_ns == -2 * CREDIT_NS


def test_the_dead_want_nothing() -> None:
    scene = Scene()
    scene.next(used_ns=1000, reported_ns=1000)
    assert scene.account.hungry
    scene.die()
    assert not scene.account.hungry
    assert scene.account.demand_ns == 0


def test_what_a_successor_uses_to_start_is_nobodys_credit_and_what_it_uses_then_is_its_own() -> None:
    scene = Scene()
    scene.die()
    scene.kernel.used_ns += 40_000_000
    scene.desk.follow(2)
    scene.next()
    for _ in range(20):
        scene.next()
    assert scene.kernel.acts == []
    assert scene.account.balance_ns == 0
    for _ in range(2):
        scene.next(used_ns=5000, reported_ns=600)
    assert scene.kernel.acts == [Standing.DEMOTED]


def test_a_successor_that_never_reports_is_held_all_the_same() -> None:
    scene = Scene()
    scene.die()
    scene.desk.follow(2)
    for _ in range(20):
        scene.next(used_ns=5000, reported_ns=None)
    assert Standing.DEMOTED in scene.kernel.acts


def test_a_successor_that_spins_is_held_within_two_windows() -> None:
    scene = Scene()
    scene.die()
    for _ in range(3):
        scene.next(used_ns=0, reported_ns=None)
    scene.kernel.used_ns += 40_000_000
    scene.desk.follow(2)
    first = scene.window + 1
    for _ in range(2):
        scene.next(used_ns=WINDOW_NS, reported_ns=None)
    assert scene.kernel.acts == [Standing.DEMOTED]
    assert scene.desk.custody.since <= first + 1


def test_a_successor_may_go_on_to_start_until_the_next_edge() -> None:
    scene = Scene()
    scene.die()
    scene.desk.follow(2)
    for _ in range(3):
        scene.kernel.used_ns += 5_000_000
        scene.desk.enforce(0, 0, 0)
    scene.next()
    scene.next()
    assert scene.kernel.acts == []


def test_to_die_is_no_way_out_of_custody_but_its_time_passes_and_its_debt_is_paid() -> None:
    scene = Scene()
    scene.next(used_ns=10_000, reported_ns=None)
    assert scene.desk.custody.standing == Standing.DEMOTED
    scene.die()
    assert scene.desk.custody.standing == Standing.DEMOTED
    windows = 0
    while scene.desk.custody.standing:
        scene.next(used_ns=0, reported_ns=None)
        windows += 1
        assert windows < 50
    assert windows >= 8
    assert scene.account.balance_ns >= 0


@pytest.mark.parametrize("generations", [(-1,), (-1, 2), (2,)])
def test_the_orchestrator_says_which_death_it_has_acted_on(generations: tuple[int, ...]) -> None:
    """Also where a death and the restart after it came to its notice in one."""
    made = plan.make(config.load("default"), HostShape((0, 1), {0: 0, 1: 0}))
    ticks, control = words(shm.TICKS_BYTES), words(shm.CONTROL_BYTES)
    fd, tokens = new_tokens(EPOCH)
    os.close(fd)
    statuses = [words(shm.STATUS_BYTES) for _ in made.dimensions]
    for d in made.dimensions:
        ticks[shm.LATEST_AT + d.index] = -1
        control[shm.GENERATIONS_AT + d.index] = 1
    orchestrator = Orchestrator(made, EPOCH, control, ticks, tokens, statuses)
    victim = made.dimensions[3]
    for round_, generation in enumerate(generations):
        control[shm.GENERATIONS_AT + victim.index] = generation
        control[shm.CONTROL.at("lives")] += 1
        orchestrator.work(round_ - 1, 10**9)
        at = shm.COUNTERS_AT + victim.index * shm.COUNTER_WORDS + shm.COUNTERS.at("generation")
        assert tokens[at] == generation
    assert [desk.generation for desk in orchestrator.desks if desk is not orchestrator.desks[3]] == [1] * 8
