"""What ``vcg probe`` shows, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from probes import cli
from probes.errors import ProbeError
from vcg.cli import app as vcg
from vcg.histogram import BUCKETS, OVERFLOW

HISTOGRAMS = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, 10**6))


@given(HISTOGRAMS)
def test_octaves_hold_every_value_once_and_have_no_gap(histogram: dict[int, int]) -> None:
    rows = cli.octaves(histogram)
    assert sum(count for _, _, count in rows) == sum(histogram.values())
    assert all(one[1] == other[0] for one, other in itertools.pairwise(rows))


def test_the_longest_bar_belongs_to_the_largest_count() -> None:
    lines = cli.bars(cli.octaves({100: 10, 200: 40, OVERFLOW: 1}))
    assert max(lines, key=lambda line: line.count("*")) == next(line for line in lines if " 40 " in line)
    assert "more" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["block"], "vcg probe block: nothing to observe - expected --device"),
        (["sched"], "vcg probe sched: nothing to observe - expected --pid"),
        (["sched", "--pid", "1", "--for", "10"], '--for: "10" - expected a duration'),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(vcg, ["probe", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1


def test_an_absent_device_is_named() -> None:
    with pytest.raises(ProbeError, match="device nosuch0: not in /sys/class/block"):
        CliRunner().invoke(cli.app, ["block", "--device", "nosuch0"], catch_exceptions=False)


@pytest.mark.parametrize("command", ["sched", "block", "migrate", "all"])
def test_help_gives_examples(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"vcg probe {command}" in result.output
