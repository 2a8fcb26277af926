"""The default of D4-D6 (retrieval, stateful processing, serving): look a page up, work on it, write it back.

Arguments: ``share`` (0.3) of the credit to burn, ``pages`` (1024) of 4 KiB in the state file.
"""

from __future__ import annotations

import os

from vcg.dimension import Dimension
from vcg.workloads.spin import burn

_PAGE_BYTES = 4096
_STRIDE = 617  # prime, so that the pages are visited in a scattered order


def run(dimension: Dimension) -> None:
    share, pages = float(dimension.args.get("share", 0.3)), int(dimension.args.get("pages", 1024))
    fd = os.open("/data/state", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.posix_fallocate(fd, 0, pages * _PAGE_BYTES)
    page = bytearray(_PAGE_BYTES)
    for window in dimension.windows():
        at = window.number * _STRIDE % pages * _PAGE_BYTES
        os.preadv(fd, [page], at)
        burn(window, share)
        os.pwrite(fd, page, at)
