"""Minting ahead, and what the orchestrator believes of a status page."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest

from vcg import shm
from vcg.orchestrator import Desk
from vcg.plan import DimensionPlan
from vcg.shm import Outcome

EPOCH = 7
ELAPSED_NS = 1_000_000_000
PLAN = DimensionPlan(
    index=2,
    name="d3",
    role="transform",
    harmonic="3",
    period=(10_000_000, 3),
    phase=(1, 2),
    storage="tmpfs",
    storage_bytes=1 << 20,
    amplitude=1.0,
    credit_ns=1000,
    cpus=(0,),
    node=0,
    policy="fifo",
    priority=10,
    workload="vcg.workloads.idle:run",
    args={},
    devices=(),
    uid=64102,
    memory_bytes=1 << 26,
    pids=8,
)


def words(size_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size_bytes)).cast("q")


class Counter:
    """A desk over private memory, and a dimension that writes what it likes."""

    def __init__(self, plan: DimensionPlan = PLAN) -> None:
        self.tokens, self.status = words(shm.TOKENS_BYTES), words(shm.STATUS_BYTES)
        self.desk = Desk(plan, EPOCH, self.tokens, self.status)
        self.written = 0

    def token(self, window: int) -> dict[str, int]:
        at = shm.TOKENS_AT + (PLAN.index * shm.TOKEN_SLOTS + window % shm.TOKEN_SLOTS) * shm.TOKEN_WORDS
        return dict(zip(shm.TOKEN.fields, self.tokens[at : at + shm.TOKEN_WORDS], strict=True))

    def report(self, window: int, used_ns: int, epoch: int = EPOCH, outcome: int = Outcome.DONE) -> None:
        at = shm.WINDOWS_AT + self.written % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
        for name, value in (("window", window), ("epoch", epoch), ("outcome", outcome), ("used_ns", used_ns)):
            self.status[at + shm.WINDOW.at(name)] = value
        self.written += 1
        self.status[shm.STATUS_HEADER.at("head")] = self.written


def test_tokens_cover_every_window_before_the_end_and_expire_at_the_next_edge() -> None:
    counter = Counter()
    counter.desk.mint_through(start_ns=100, end_ns=100 + 10_000_000, now_ns=5)
    assert counter.desk.account.minted == 3
    edges = [100 + int((1 + 2 * n * 10_000_000 / 3) // 2) for n in range(4)]
    for window in range(3):
        token = counter.token(window)
        assert (token["window"], token["epoch"], token["dimension"], token["budget_ns"]) == (window, EPOCH, 2, 1000)
        assert (token["planned_ns"], token["expires_ns"]) == (edges[window], edges[window + 1])


def test_minting_goes_on_where_it_stopped() -> None:
    once, twice = Counter(), Counter()
    once.desk.mint_through(0, 200_000_000, 0)
    for end_ns in (90_000_000, 90_000_001, 200_000_000):
        twice.desk.mint_through(0, end_ns, 0)
    assert once.desk.account.minted == twice.desk.account.minted == 60
    assert once.tokens[shm.TOKENS_AT :].tolist() == twice.tokens[shm.TOKENS_AT :].tolist()


def test_what_was_used_is_settled() -> None:
    counter = Counter()
    counter.desk.mint_through(0, 20_000_000, 0)
    counter.report(0, 400)
    counter.report(1, 1500, outcome=Outcome.OVERRUN)
    counter.report(2, 0, outcome=Outcome.MISSED)
    counter.desk.settle(ELAPSED_NS)
    account = counter.desk.account
    assert (account.settled, account.used_ns, account.overrun_ns, account.expired) == (2, 1900, 500, 1)


@pytest.mark.parametrize(
    ("forged", "counted"),
    [
        ({"window": 0, "used_ns": 1, "epoch": EPOCH - 1}, "refused_epoch"),
        ({"window": 99, "used_ns": 1}, "refused_window"),
        ({"window": -1, "used_ns": 1}, "refused_window"),
        ({"window": 0, "used_ns": -(2**60)}, "refused_value"),
        ({"window": 0, "used_ns": 2**63 - 1}, "refused_value"),
    ],
)
def test_a_stale_foreign_or_absurd_report_is_refused_and_counted(forged: dict[str, int], counted: str) -> None:
    counter = Counter()
    counter.desk.mint_through(0, 20_000_000, 0)
    counter.report(**forged)
    counter.desk.settle(ELAPSED_NS)
    assert getattr(counter.desk, counted) == 1
    assert counter.desk.account.settled == 0


def test_a_replayed_report_is_refused() -> None:
    counter = Counter()
    counter.desk.mint_through(0, 20_000_000, 0)
    counter.report(1, 10)
    counter.report(1, 10)
    counter.desk.settle(ELAPSED_NS)
    assert (counter.desk.account.settled, counter.desk.refused_window) == (1, 1)


@pytest.mark.parametrize("head", [-5, 2**62, shm.WINDOW_SLOTS + 1])
def test_a_head_out_of_range_costs_one_refusal(head: int) -> None:
    counter = Counter()
    counter.status[shm.STATUS_HEADER.at("head")] = head
    counter.desk.settle(ELAPSED_NS)
    assert counter.desk.refused_value == 1
    counter.desk.settle(ELAPSED_NS)
    assert counter.desk.refused_value == 1


def test_more_reports_than_a_round_takes_are_counted_as_lost() -> None:
    counter = Counter(replace(PLAN, period=(1000, 1)))
    counter.desk.mint_through(0, 1_000_000, 0)
    for window in range(600):
        counter.report(window, 1)
    counter.desk.settle(ELAPSED_NS)
    assert counter.desk.records_lost + counter.desk.account.settled == 600


def test_counters_are_exported_under_their_declared_names() -> None:
    counter = Counter()
    counter.desk.mint_through(0, 20_000_000, 0)
    counter.report(0, 400)
    counter.desk.settle(ELAPSED_NS)
    counter.desk.export()
    at = shm.COUNTERS_AT + PLAN.index * shm.COUNTER_WORDS
    exported = dict(zip(shm.COUNTERS.fields, counter.tokens[at : at + shm.COUNTERS.words], strict=True))
    assert exported["minted"] == counter.desk.account.minted == 6
    assert exported["used_ns"] == 400
    assert exported["refused_value"] == 0
