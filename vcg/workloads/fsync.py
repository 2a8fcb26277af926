"""Write and fsync records in the dimension's own filesystem.

Arguments: ``bytes`` (4096) for each record, ``records`` (1) for each window, ``keep`` (256) records in the file before
it is overwritten from its start.
"""

from __future__ import annotations

import os

from vcg.dimension import Dimension

PATH = "/data/records"


def run(dimension: Dimension) -> None:
    size, records = int(dimension.args.get("bytes", 4096)), int(dimension.args.get("records", 1))
    keep = int(dimension.args.get("keep", 256))
    record = b"\xa5" * size
    fd = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    written = 0
    for window in dimension.windows():
        for _ in range(records):
            if window.expired:
                break
            os.pwrite(fd, record, written % keep * size)
            os.fsync(fd)
            written += 1
