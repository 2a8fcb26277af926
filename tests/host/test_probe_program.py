"""Loading BPF programs leaves the host as it was, and the C texts do what their Python sides say."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import probes
from probes import headers, program
from probes.headers import checks
from vcg.histogram import BUCKETS, SUB_BITS, TOP_BITS, bucket_of
from vcg.linux.libc import syscall

pytestmark = pytest.mark.usefixtures("root")
_SYS_BPF = 321
_BPF_PROG_GET_NEXT_ID = 11


def loaded_programs() -> set[int]:
    """Ids of all BPF programs in the kernel (BPF_PROG_GET_NEXT_ID of bpf(2))."""
    found: set[int] = set()
    attributes = (ctypes.c_uint32 * 4)()
    try:
        while True:
            syscall(_SYS_BPF, _BPF_PROG_GET_NEXT_ID, ctypes.addressof(attributes), 16, name="bpf")
            found.add(attributes[1])
            attributes[0] = attributes[1]
    except FileNotFoundError:
        return found


def held_programs() -> int:
    """How many BPF programs this process holds a descriptor of."""
    return sum("prog_id:" in entry.read_text() for entry in list(Path("/proc/self/fdinfo").iterdir()) if entry.exists())


def test_programs_are_loaded_while_a_session_is_open_and_gone_after_it() -> None:
    with probes.attach(["sched", "block", "migrate"], dimensions=["d1"]) as session:
        ours = set(session.program_ids)
        assert len(ours) == len(session.program_ids) > 10
        assert ours <= loaded_programs()
        assert held_programs() == len(ours)
    assert not ours & loaded_programs()


def test_the_mounts_that_loading_needs_are_seen_by_nobody_else() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with probes.attach(["migrate"], dimensions=["d1"]):
        assert Path("/proc/self/mountinfo").read_text() == before
    found = headers.find()
    if not found.in_place:
        assert not (headers.MODULES / os.uname().release / "build").exists()


def test_the_working_directory_and_the_namespace_of_the_process_stay() -> None:
    before = (Path.cwd(), Path("/proc/self/ns/mnt").readlink())
    with probes.attach(["migrate"], dimensions=["d1"]):
        assert (Path.cwd(), Path("/proc/self/ns/mnt").readlink()) == before


def test_a_probe_that_this_kernel_cannot_have_leaves_those_before_it_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = program.missing

    def without_block(wanted: Iterable[str]) -> list[str]:
        return [name for name in wanted if name.startswith("block:")] + real(wanted)

    monkeypatch.setattr(program, "missing", without_block)
    with pytest.raises(probes.ProbeError, match="block: this kernel has no tracepoint block:block_getrq"):
        probes.attach(["sched", "block"], dimensions=["d1"])
    assert held_programs() == 0


def test_a_missing_tracepoint_is_named() -> None:
    assert program.in_private_namespace(lambda: program.missing(["sched:sched_switch", "sched:no_such"])) == [
        "sched:no_such"
    ]


def test_the_checks_for_the_doctor_find_what_these_tests_use() -> None:
    assert {check.name for check in checks() if check.ok} == {"bcc", "kernel headers", "bpf(2)", "tracepoints"}


def test_unknown_probes_and_dimensions_are_refused() -> None:
    with pytest.raises(probes.ProbeError, match="expected one of sched, block, migrate"):
        probes.attach(["disk"], dimensions=["d1"])
    with pytest.raises(probes.ProbeError, match="each once"):
        probes.attach(["sched"], dimensions=["d1", "d1"])
    with probes.attach(["migrate"], dimensions=["d1"]) as session:
        with pytest.raises(probes.ProbeError, match="dimension 'd2': expected one of d1"):
            session.follow(os.getpid(), "d2")
        with pytest.raises(probes.ProbeError, match="not found in /proc"):
            session.follow(2**22 + 1, "d1")


@pytest.fixture(scope="module")
def bucket_in_c(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], int]:
    """``bucket_of`` of ``histogram.h``, compiled for this machine."""
    text = (program.SOURCES / "histogram.h").read_text()
    function = re.search(r"static inline (u32 bucket_of\(.*?\n}\n)", text, re.DOTALL)
    assert function is not None
    folder = tmp_path_factory.mktemp("bucket")
    (folder / "bucket.c").write_text(f"typedef unsigned u32; typedef unsigned long long u64;\n{function[1]}")
    macros = [f"-D{name}={value}" for name, value in (("SUB_BITS", SUB_BITS), ("TOP_BITS", TOP_BITS))]
    command = ["gcc", "-shared", "-fPIC", *macros, f"-DBUCKETS={BUCKETS}", "-o", "bucket.so", "bucket.c"]
    subprocess.run(command, cwd=folder, check=True)
    compiled = ctypes.CDLL(str(folder / "bucket.so")).bucket_of
    compiled.argtypes = [ctypes.c_ulonglong]
    compiled.restype = ctypes.c_uint32
    return lambda value_ns: int(compiled(value_ns))


@settings(max_examples=2000)
@given(value_ns=st.integers(0, 2**63 - 1) | st.integers(0, 2**TOP_BITS) | st.integers(0, 70).map(lambda bit: 1 << bit))
def test_both_languages_put_a_value_into_the_same_bucket(bucket_in_c: Callable[[int], int], value_ns: int) -> None:
    value_ns &= 2**63 - 1
    assert bucket_in_c(value_ns) == bucket_of(value_ns)
