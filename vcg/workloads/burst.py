"""Busy for some windows, at rest for others: units of always the same work, as many as the credit allows.

Arguments: ``busy`` (50) windows of work, then ``rest`` (50) windows without; ``rest`` of 0 is work without a pause. The
number of units done so far is kept in ``/data/work``, eight bytes, little-endian.
"""

from __future__ import annotations

import os
import zlib

from vcg.dimension import Dimension

UNIT_BYTES, UNIT_TIMES = 4096, 8
"""What one unit of work takes a checksum of, and how often: some ten microseconds, and a small part of the L1 cache."""


def run(dimension: Dimension) -> None:
    busy, rest = int(dimension.args.get("busy", 50)), int(dimension.args.get("rest", 50))
    if busy < 1 or rest < 0:
        raise ValueError(f"burst: busy = {busy}, rest = {rest}; expected at least 1 and 0 windows")
    fd = os.open("/data/work", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    material, done = bytes(UNIT_BYTES), 0
    for window in dimension.windows():
        if window.number % (busy + rest) < busy:
            while window.remaining_ns() > 0:
                for _ in range(UNIT_TIMES):
                    zlib.crc32(material)
                done += 1
        os.pwrite(fd, done.to_bytes(8, "little"), 0)
