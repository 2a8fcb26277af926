"""The default of D7-D9 (aggregation, reconciliation, archival): work, append a block, now and then make them durable.

Arguments: ``share`` (0.3) of the credit to burn, ``bytes`` (16384) of each block, ``sync_every`` (4) windows.
"""

from __future__ import annotations

import os

from vcg.dimension import Dimension
from vcg.workloads.spin import burn

_KEEP = 512


def run(dimension: Dimension) -> None:
    share, size = float(dimension.args.get("share", 0.3)), int(dimension.args.get("bytes", 16384))
    sync_every = int(dimension.args.get("sync_every", 4))
    block = b"\x3c" * size
    fd = os.open("/data/archive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for window in dimension.windows():
        burn(window, share)
        os.pwrite(fd, block, window.number % _KEEP * size)
        if window.number % sync_every == 0:
            os.fdatasync(fd)
