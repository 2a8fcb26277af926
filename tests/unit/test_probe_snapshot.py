"""Differences of snapshots, and what of them can be compared with the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.block import Block
from probes.errors import ProbeError
from probes.migrate import Migrate, node_of_cpu
from probes.sched import Sched, judge_run_delay
from probes.snapshot import CostRow, CounterRow, HistogramRow, Reading, Snapshot, changes


def reading(
    measured: int, oracle: int | None, *, name: str = "migrations", since_ns: int = 1, origin: int = 0, **flags: bool
) -> Reading:
    theirs = None if oracle is None else {name: oracle}
    return Reading("d1", since_ns, {name: measured}, theirs, {name: origin}, **flags)


def snapshot(
    time_ns: int, readings: Mapping[str, Reading] = {}, *, probe: str = "migrate", exits: int = 0, missed: int = 0
) -> Snapshot:
    return Snapshot(
        time_ns=time_ns,
        duration_ns=0,
        histograms=(HistogramRow(probe, "runq_latency_ns", "d1", None, 64, 66, time_ns),),
        counters=(CounterRow(probe, "exits", "d1", None, exits),),
        cost=(CostRow(probe, "sched:sched_switch", time_ns, 100 * time_ns, 2 * time_ns),),
        lost={probe: 0},
        missed={probe: missed},
        readings={probe: readings},
    )


def test_a_difference_holds_what_happened_in_between() -> None:
    delta = snapshot(30, exits=5, missed=2) - snapshot(10, exits=1)
    assert delta.duration_ns == 20
    assert [row.count for row in delta.histograms] == [20]
    assert [row.value for row in delta.counters] == [4]
    assert [(row.runs, row.run_ns, row.missed) for row in delta.cost] == [(20, 2000, 40)]
    assert delta.missed == {"migrate": 2}


def test_snapshots_out_of_order_or_across_a_reset_are_refused() -> None:
    with pytest.raises(ProbeError, match="later one minus an earlier"):
        snapshot(10) - snapshot(30)
    with pytest.raises(ProbeError, match="reset"):
        snapshot(30, exits=0) - snapshot(10, exits=3)


def test_a_task_followed_since_the_middle_counts_from_there() -> None:
    late = {"7": reading(3, 103, since_ns=15, origin=100)}
    change = changes("migrate", snapshot(10), snapshot(30, late))["d1"]
    assert (change.measured["migrations"], change.oracle["migrations"]) == (3, 3)


def test_a_reused_task_id_is_another_task() -> None:
    before = {"7": reading(50, 80, since_ns=1)}
    after = {"7": reading(2, 2, since_ns=20)}
    change = changes("migrate", snapshot(10, before), snapshot(30, after))["d1"]
    assert (change.measured["migrations"], change.oracle["migrations"], change.gone) == (2, 2, 1)


def test_tasks_that_came_and_went_in_between_are_told_of() -> None:
    stays = {"7": reading(1, 1)}
    (row,) = Migrate.agreement(snapshot(10, stays), snapshot(30, stays, exits=4))
    assert row.agrees is True
    assert row.reason == "4 exited and left out"


def test_nothing_left_to_compare_is_neither_agreement_nor_disagreement() -> None:
    (row,) = Migrate.agreement(snapshot(10, {"7": reading(1, 1)}), snapshot(30, {}))
    assert row.agrees is None


@pytest.mark.parametrize(("ours", "missed", "agrees"), [(10, 0, True), (9, 0, False), (9, 1, True), (11, 1, False)])
def test_migrations_are_equal_but_for_events_that_the_kernel_missed(ours: int, missed: int, agrees: bool) -> None:
    before, after = snapshot(10, {"7": reading(0, 0)}), snapshot(30, {"7": reading(ours, 10)}, missed=missed)
    (row,) = Migrate.agreement(before, after)
    assert row.agrees is agrees


@pytest.mark.parametrize(
    ("ours_ns", "open_ns", "agrees", "words"),
    [
        (1_020_000_000, 0, True, ""),
        (1_020_000_001, 0, True, "beyond 2%, within 500 ns for each of 1000 waits"),
        (1_020_500_000, 0, True, "within 500 ns"),
        (1_020_500_001, 0, False, "left open by tracepoints: 0ns of 1s"),
        (1_020_500_001, 20_500_000, False, "left open by tracepoints: 20.5ms of 1s"),
        (1_020_500_001, 20_500_001, None, "left open by tracepoints: 20.5ms of 1s"),
        (979_500_000 - 30_000_000, 30_000_000, None, "left open by tracepoints: 30ms of 1s"),
        (979_500_000 - 30_000_001, 30_000_000, False, "beyond 2% and 500 ns for each wait"),
    ],
)
def test_run_delay_agrees_within_two_percent_and_half_a_microsecond_a_wait_or_is_left_open(
    ours_ns: int, open_ns: int, agrees: bool | None, words: str
) -> None:
    def task(delay_ns: int, open_ns: int, waits: int, oracle_ns: int) -> dict[str, Reading]:
        measured = {"delay_ns": delay_ns, "open_ns": open_ns, "waits": waits}
        return {"7": Reading("d1", 1, measured, {"delay_ns": oracle_ns, "waits": waits}, {})}

    before = snapshot(10, task(0, 0, 0, 0), probe="sched")
    after = snapshot(30, task(ours_ns, open_ns, 1000, 1_000_000_000), probe="sched")
    rows = {row.quantity: row for row in Sched.agreement(before, after)}
    assert rows["run_delay_ns"].agrees is agrees
    assert words in rows["run_delay_ns"].reason
    assert bool(words) == bool(rows["run_delay_ns"].reason)
    assert rows["waits"].agrees is True


@given(
    ours_ns=st.integers(0, 10**10),
    kernels_ns=st.integers(0, 10**10),
    waits=st.integers(0, 10**6),
    open_ns=st.integers(0, 10**10),
)
def test_what_is_open_never_makes_agreement(ours_ns: int, kernels_ns: int, waits: int, open_ns: int) -> None:
    found = judge_run_delay(ours_ns, kernels_ns, waits, open_ns)
    assert (found.agrees is True) == (abs(ours_ns - kernels_ns) <= found.tolerance)
    assert found.tolerance == judge_run_delay(ours_ns, kernels_ns, waits, 0).tolerance


def test_waits_that_nobody_saw_are_a_disagreement() -> None:
    def task(waits: int, oracle: int) -> dict[str, Reading]:
        return {
            "7": Reading("d1", 1, {"delay_ns": 0, "open_ns": 0, "waits": waits}, {"delay_ns": 0, "waits": oracle}, {})
        }

    rows = Sched.agreement(snapshot(10, task(0, 0), probe="sched"), snapshot(30, task(950, 1000), probe="sched"))
    assert {row.quantity: row.agrees for row in rows}["waits"] is False


def test_block_counts_are_compared_only_between_quiet_moments() -> None:
    def device(count: int, **flags: bool) -> dict[str, Reading]:
        return {"7:3": reading(count, 5, name="requests_read", **flags)}

    before = snapshot(10, {"7:3": reading(0, 0, name="requests_read")}, probe="block")
    equal = Block.agreement(before, snapshot(30, device(5), probe="block"))
    unequal = Block.agreement(before, snapshot(30, device(4), probe="block"))
    moving = Block.agreement(before, snapshot(30, device(4, busy=True), probe="block"))
    assert [row.agrees for row in (*equal, *unequal, *moving)] == [True, False, None]


def test_the_node_of_each_cpu_comes_from_the_lists_of_the_nodes(tmp_path: Path) -> None:
    nodes = tmp_path
    for node, cpus in {"node0": "0-2,6\n", "node1": "3-5\n", "node2": "\n"}.items():
        (nodes / node).mkdir()
        (nodes / node / "cpulist").write_text(cpus)
    assert node_of_cpu(nodes) == {0: 0, 1: 0, 2: 0, 6: 0, 3: 1, 4: 1, 5: 1}
