"""Each benchmark, as short as it gets: it gives its figures, and leaves nothing. How large they are is not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from experiments.bench import abuse, borrow, cyclictest, edge, hostile, mint, native, probe, rtd, runtime, shares, up
from experiments.bench.cli import bench, benchmarks
from experiments.bench.figures import Comparison
from vcg.errors import HostError
from vcg.run import Run

pytestmark = pytest.mark.usefixtures("root")


def quiet(arm: str) -> None:
    """Progress that nobody watches."""
    assert arm


def test_cyclictest_measures_every_period() -> None:
    assert cyclictest.run(0, 90, 1_000_000, 0.2).total == 200


def test_cyclictest_that_fails_is_reported() -> None:
    with pytest.raises(HostError, match="exit code"):
        cyclictest.run(4095, 90, 1_000_000, 0.1)


def test_the_clock_stands_beside_cyclictest() -> None:
    *compared, skipped = rtd.measure(1, 0.5, quiet)
    names = [f"{figure}_{name}" for figure in ("rtd_lateness", "rtd_timer_late") for name in ("p50", "p99")]
    assert [figure.name for figure in compared] == names
    assert skipped.name == "rtd_skipped_share"
    for p50, p99 in (compared[:2], compared[2:]):
        assert isinstance(p50, Comparison)
        assert isinstance(p99, Comparison)
        assert 0 < p50.value <= p99.value
        assert 0 < p50.peer_value <= p99.peer_value


def test_the_c_program_wakes_every_waiter_at_every_edge(tmp_path: Path) -> None:
    plan = runtime.plan_of("edge", tmp_path)
    late_ns = edge.peer(native.build("edge", tmp_path), plan, 0.3)
    assert 0 < late_ns < float("inf")


def test_nine_dimensions_stand_beside_the_c_program() -> None:
    figures = edge.measure(1, 0.5, quiet)
    assert [figure.name for figure in figures] == [
        "edge_lateness_p50",
        "edge_lateness_probed_p50",
        "edge_lateness_staggered_p50",
    ]
    assert all(isinstance(figure, Comparison) and 0 < figure.peer_value < float("inf") for figure in figures)


def test_bringing_up_is_timed_on_both_sides() -> None:
    (figure,) = up.measure(1, 0.0, quiet)
    assert isinstance(figure, Comparison)
    assert figure.value > 0
    assert figure.peer_value > 0


def test_a_shell_that_fails_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    plan = runtime.plan_of("default", tmp_path)
    (tmp_path / "d4").touch()  # where a directory is to be made
    with pytest.raises(HostError, match="d4"):
        up.peer(plan, tmp_path)
    assert not list(tmp_path.glob("*.img"))


def test_every_probe_has_a_cost_per_event_while_the_default_testbed_runs(tmp_path: Path) -> None:
    costs = probe.event_costs_ns(Run(runtime.plan_of("default", tmp_path)), 0.5)
    assert costs.keys() == set(runtime.PROBES)
    assert min(costs.values()) > 0


def test_a_round_trip_is_timed_with_a_probe_and_without(tmp_path: Path) -> None:
    program = native.build("pingpong", tmp_path)
    assert probe.bare_round_trip_ns(program) > 0
    assert probe.probed_round_trip_ns(program, "sched") > 0


def test_the_command_prints_one_object() -> None:
    app = Typer()
    app.command()(bench)
    result = CliRunner().invoke(app, ["up", "--runs", "1", "--json"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert (printed["bench"], printed["runs"]) == ("up", 1)
    assert {"kernel", "cpu_model", "cpus", "date"} <= printed["host"].keys()
    assert {"name", "value", "unit", "low", "high", "peer", "peer_value", "ratio"} <= printed["figures"][0].keys()


def test_the_command_lists_the_benchmarks() -> None:
    app = Typer()
    app.command()(bench)
    listed = CliRunner().invoke(app, ["--list"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(benchmarks())


@pytest.mark.parametrize("arguments", [["nothing"], [], ["up", "--seconds", "3"], ["up", "--seed", "3"]])
def test_what_cannot_be_run_is_refused(arguments: list[str]) -> None:
    app = Typer()
    app.command()(bench)
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_minting_is_measured_while_credit_is_lent() -> None:
    figures = mint.measure(1, 2.0, quiet)
    assert [figure.name for figure in figures] == ["mint_p50", "mint_quiet_p50", "mint_storm_p50", "compiled"]
    assert all(figure.value > 0 and figure.limit == mint.LIMIT for figure in figures[:3])
    assert figures[3].value == 1, "set-up has not compiled the sources as they are (run: make setup)"


def test_shares_are_read_from_the_kernel_for_both_gates_and_the_fair_scheduler() -> None:
    figures = {figure.name: figure for figure in shares.measure(1, 1.0, quiet)}
    arms = ("", "_frozen", "_mixed")
    assert list(figures) == [f"{name}{arm}" for name in ("share_error", "credit_spent") for arm in arms]
    assert all(0 <= figure.value < 1 for name, figure in figures.items() if name.startswith("share_error"))
    assert all(0.1 < figure.value < 1.5 for name, figure in figures.items() if name.startswith("credit_spent"))


def test_borrowing_is_measured_against_none() -> None:
    figures = {figure.name: figure for figure in borrow.measure(1, 2.5, quiet)}
    assert list(figures) == ["burst_work", "borrowed_part", "borrow_yield", "lender_back_windows"]
    assert figures["borrowed_part"].value > 0
    assert figures["lender_back_windows"].value >= 1


def test_the_other_eight_stand_beside_themselves_and_beside_each_abuse() -> None:
    figures = {figure.name: figure for figure in abuse.measure(1, 2.5, quiet)}
    kinds, triads = ("none", *abuse.KINDS), ("", "_inner", "_middle", "_outer")
    ratios = [f"abuse_{kind}{triad}_p99" for kind in kinds for triad in triads]
    assert list(figures) == [*ratios, *(f"abuse_{kind}_p99_change" for kind in kinds), "void_blocks"]
    assert all(figures[name].value > 0 for name in ratios)
    for kind in kinds:
        ours = figures[f"abuse_{kind}_p99"]
        assert isinstance(ours, Comparison)
        assert figures[f"abuse_{kind}_p99_change"].value == pytest.approx(ours.value - ours.peer_value)


def test_neighbours_of_a_spinner_and_of_a_fork_bomb_stand_beside_those_of_an_idle_dimension() -> None:
    figures = {figure.name: figure for figure in hostile.measure(3, 2.0, quiet)}  # a block or two may be void
    assert list(figures) == [
        "neighbour_lateness_p99",
        "contained_windows",
        "neighbour_lost_windows",
        "neighbour_lateness_fork_p99",
        "contained_fork_windows",
        "neighbour_fork_lost_windows",
        "neighbour_idle_lost_windows",
        "void_blocks",
    ]
    assert figures["neighbour_lateness_p99"].value > 0
    assert 0 <= figures["contained_windows"].value < 100
    assert figures["neighbour_lost_windows"].value < 100, "nearly every window that there was after the abuse began"
