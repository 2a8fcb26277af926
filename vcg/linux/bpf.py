"""bpf(2): which programs and maps are loaded. (Loading and attaching is bcc's business, in the package ``probes``.)

Needs CAP_SYS_ADMIN. The kernel keeps the first 15 characters of a program's name.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from vcg.linux.libc import syscall

NAME_BYTES = 15  # linux/bpf.h: BPF_OBJ_NAME_LEN with its final zero is 16
_SYS_BPF = 321
_BPF_PROG_GET_NEXT_ID = 11
_BPF_MAP_GET_NEXT_ID = 12
_BPF_PROG_GET_FD_BY_ID = 13
_BPF_OBJ_GET_INFO_BY_FD = 15
_NAME_AT = 64  # struct bpf_prog_info: name


def programs() -> Iterator[tuple[int, str]]:
    """Id and name of every loaded program."""
    for identifier in _identifiers(_BPF_PROG_GET_NEXT_ID):
        try:
            yield identifier, _name(identifier)
        except FileNotFoundError:  # unloaded since it was listed
            continue


def maps() -> Iterator[int]:
    """Id of every map."""
    return _identifiers(_BPF_MAP_GET_NEXT_ID)


def held_by(pid: int) -> tuple[set[int], set[int]]:
    """Ids of the programs and of the maps that a process has descriptors of (proc_pid_fdinfo(5)).

    Raises:
        OSError: the process is gone.
    """
    found: dict[str, set[int]] = {"prog_id:": set(), "map_id:": set()}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:  # closed since it was listed
            continue
        for line in lines:
            key, _, value = line.partition("\t")
            if key in found:
                found[key].add(int(value))
    return found["prog_id:"], found["map_id:"]


def _identifiers(command: int) -> Iterator[int]:
    identifier = 0
    while True:
        try:
            _, answer = _bpf(command, struct.pack("=III", identifier, 0, 0))
        except FileNotFoundError:  # that was the last one
            return
        (_, identifier, _) = struct.unpack("=III", answer)
        yield identifier


def _name(identifier: int) -> str:
    fd, _ = _bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("=III", identifier, 0, 0))
    try:
        info = ctypes.create_string_buffer(_NAME_AT + NAME_BYTES + 1)
        _bpf(_BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
        return info.raw[_NAME_AT:].rstrip(b"\0").decode()
    finally:
        os.close(fd)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The result, and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = syscall(_SYS_BPF, command, ctypes.addressof(buffer), len(attributes), name=f"bpf command {command}")
    return result, buffer.raw
