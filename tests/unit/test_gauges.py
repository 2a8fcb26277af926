"""The gauges: a reader sees whole samples or none, and what is not there is -1."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import gauges, shm
from vcg.gauges import ABSENT, Meter, Sample

WORD = st.integers(-(1 << 63), (1 << 63) - 1)


def region() -> memoryview:
    return memoryview(bytearray(shm.GAUGES_BYTES)).cast("q")


def test_before_the_first_sample_there_is_none() -> None:
    assert gauges.read(region(), 0) is None


@given(st.lists(st.builds(Sample, *[WORD] * len(Sample._fields)), min_size=1, max_size=4), st.integers(0, 31))
def test_the_newest_sample_of_each_dimension_is_read_back(samples: list[Sample], index: int) -> None:
    words = region()
    for sample in samples:
        gauges.write(words, index, sample)
    assert gauges.read(words, index) == samples[-1]
    assert all(gauges.read(words, other) is None for other in range(shm.MAX_DIMENSIONS) if other != index)


def test_a_sample_that_is_being_written_is_not_read() -> None:
    words = region()
    gauges.write(words, 3, Sample(*range(8)))
    words[shm.GAUGES_AT + 3 * shm.GAUGE_WORDS] += 1
    assert gauges.read(words, 3) is None


def test_the_samples_fields_are_those_of_the_layout() -> None:
    assert ("version", *Sample._fields) == shm.GAUGE.fields
    assert shm.GAUGE.words <= shm.GAUGE_WORDS


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str | None]:
    """Files as the kernel writes them, of one dimension on a loop device."""
    texts = {
        "cpu": "usage_usec 78348\nuser_usec 70000\nsystem_usec 8348\n",
        "block": "     140       20      596       11     1184     5000    14204      301        0      400      312\n",
        "memory": "11272192\n",
        "tasks": "3\n",
        "processes": f"{os.getpid()}\n",
        "threads": f"{os.getpid()}\n1\n2\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {**{name: str(tmp_path / name) for name in texts}, "filesystem": str(tmp_path)}


def test_a_meter_reads_what_the_kernel_accounts(sources: dict[str, str | None], tmp_path: Path) -> None:
    sample = Meter(sources).sample()
    assert sample.cpu_usage_ns == 78_348_000
    assert (sample.read_bytes, sample.written_bytes, sample.requests) == (596 * 512, 14204 * 512, 1324)
    assert (sample.memory_bytes, sample.tasks) == (11_272_192, 3)
    found = os.statvfs(tmp_path)
    assert 0 < sample.used_bytes <= found.f_blocks * found.f_frsize


def test_what_a_dimension_does_not_have_is_absent(sources: dict[str, str | None]) -> None:
    sample = Meter(dict.fromkeys(sources)).sample()
    assert sample[1:] == (ABSENT,) * 7
    assert sample.sampled_ns > 0


def test_without_controllers_its_processes_are_summed_up(sources: dict[str, str | None]) -> None:
    sample = Meter({**sources, "memory": None, "tasks": None}).sample()
    assert sample.tasks == 3
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * shm.PAGE
    assert sample.memory_bytes == pytest.approx(resident, rel=0.2)


def test_a_filesystem_that_is_gone_is_absent_from_then_on(sources: dict[str, str | None], tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    meter = Meter({**sources, "filesystem": str(folder)})
    assert meter.sample().used_bytes >= 0
    folder.rmdir()
    assert [meter.sample().used_bytes for _ in range(2)] == [ABSENT, ABSENT]
