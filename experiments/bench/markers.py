"""The workload of ``vcg bench snapshot``: in each window it writes the window's number down, and fsyncs it.

Marker n is the n-th block of :data:`PATH`. When a window has a record, its marker has been synced: the record is
written after that. Argument ``abort_at``: in the first window from this one on it gives up, after having synced it.
"""

from __future__ import annotations

import os

from vcg.dimension import Dimension

PATH = "/data/markers"
BLOCK_BYTES = 4096


def run(dimension: Dimension) -> None:
    abort_at = dimension.args.get("abort_at")
    fd = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for window in dimension.windows():
        os.pwrite(fd, window.number.to_bytes(8, "little").ljust(BLOCK_BYTES, b"\x5a"), window.number * BLOCK_BYTES)
        os.fsync(fd)
        if abort_at is not None and window.number >= abort_at:
            os.abort()


def read(content: bytes) -> set[int]:
    """The markers that a copy of the file holds."""
    return {
        at // BLOCK_BYTES
        for at in range(0, len(content), BLOCK_BYTES)
        if int.from_bytes(content[at : at + 8], "little") == at // BLOCK_BYTES and content[at + 8 : at + 9] == b"\x5a"
    }
