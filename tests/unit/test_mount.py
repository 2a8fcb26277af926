"""Reading a table of mounts as the kernel prints it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vcg.linux.mount import Mount, parse_mountinfo

TABLE = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
41 27 7:3 /inner /vcg/d\\0401 ro,noatime shared:1 master:2 - ext4 /dev/loop3 rw,errors=remount-ro
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup none rw,pids
"""
PRINTABLE = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1
)


def test_every_field_is_read_whatever_optional_ones_stand_between() -> None:
    assert parse_mountinfo(TABLE) == [
        Mount(27, "/", Path("/"), "ext4", "/dev/vda", ("rw", "relatime", "rw", "discard")),
        Mount(41, "/inner", Path("/vcg/d 1"), "ext4", "/dev/loop3", ("ro", "noatime", "rw", "errors=remount-ro")),
        Mount(39, "/", Path("/sys/fs/cgroup/pids"), "cgroup", "none", ("rw", "rw", "pids")),
    ]


@given(PRINTABLE, PRINTABLE)
def test_any_name_comes_back_as_it_was(directory: str, source: str) -> None:
    line = f"1 2 0:3 / /{escaped(directory)} rw - tmpfs {escaped(source)} rw"
    (entry,) = parse_mountinfo(line)
    assert (str(entry.point), entry.source) == (str(Path(f"/{directory}")), source)


def escaped(name: str) -> str:
    """As the kernel does it (seq_file.h, mangle): blanks, the backslash and # in octal."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in name)
