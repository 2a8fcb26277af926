"""The default of D1-D3 (ingress, parsing, light transforms): short work, a small record to its own filesystem.

Arguments: ``share`` (0.2) of the credit to burn, ``bytes`` (512) of each record.
"""

from __future__ import annotations

import os

from vcg.dimension import Dimension
from vcg.workloads.spin import burn

_KEEP = 1024


def run(dimension: Dimension) -> None:
    share, size = float(dimension.args.get("share", 0.2)), int(dimension.args.get("bytes", 512))
    record = b"\x5a" * size
    fd = os.open("/data/queue", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for window in dimension.windows():
        burn(window, share)
        os.pwrite(fd, record, window.number % _KEEP * size)
