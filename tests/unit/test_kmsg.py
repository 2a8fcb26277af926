"""Records of the kernel's log, and which of them are about a dimension."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.linux import kmsg
from vcg.linux.kmsg import Line


def test_a_record_is_its_time_its_level_and_its_first_line() -> None:
    record = b"6,814,1844771853,-;EXT4-fs (loop4): unmounting filesystem\n SUBSYSTEM=block\n DEVICE=b7:4\n"
    assert kmsg.parse(record) == Line(1_844_771_853_000, 6, "EXT4-fs (loop4): unmounting filesystem")
    assert kmsg.parse(b"30,1,5,-,more;said by user space") == Line(5000, 6, "said by user space")


@given(st.binary(max_size=60))
def test_whatever_else_is_read_is_no_record_or_one(record: bytes) -> None:
    line = kmsg.parse(record)
    assert line is None or (line.at_ns >= 0 and 0 <= line.level <= 7)


@pytest.mark.parametrize(
    ("text", "is_it"),
    [
        ("Memory cgroup out of memory: Killed process 1234 (vcg:d1) total-vm:1kB", True),
        ("python[1234]: segfault at 0 ip 00007f", True),
        ("CPU: 1 PID: 1234 Comm: python Not tainted", True),
        ("EXT4-fs error (device loop3): ext4_lookup", True),
        ("loop3: detected capacity change", True),
        ("oom-kill:task_memcg=/vcg-7-1/d1,task=sh,pid=9,uid=64100", True),
        ("Killed process 12345 (vcg:d11)", False),
        ("loop31: detected capacity change", False),
        ("oom-kill:task_memcg=/vcg-7-1/d11,task=sh,pid=9", False),
        ("read 1234 blocks", False),
    ],
)
def test_a_line_is_about_a_dimension_if_it_names_its_process_device_or_group(text: str, is_it: bool) -> None:
    assert kmsg.mentions(text, ["vcg:d1", "loop3", "vcg-7-1/d1"], [1234]) == is_it
