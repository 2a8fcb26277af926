"""Whether another process may take the place of one that failed, and when; pure.

The rule: failures count in a row. A process that has kept :data:`GOOD_WINDOWS` windows (reported, and not overrun, by
the orchestrator's books) has made good, and the next failure is a first one again. The first restart waits for the
backoff, each further one in a row twice as long as the one before, up to :data:`BACKOFF_MAX_NS`. After ``limit``
restarts in a row the next failure is the last.
"""

from __future__ import annotations

from dataclasses import dataclass

GOOD_WINDOWS = 100
BACKOFF_MAX_NS = 30_000_000_000


@dataclass
class Succession:
    """The processes of one dimension.

    Attributes:
        limit: restarts in a row at most; 0 is none at all.
        backoff_ns: before the first of them.
        generation: of the present process, or of the dead one that is to be replaced; from 1.
        failures: in a row.
    """

    limit: int
    backoff_ns: int
    generation: int = 1
    failures: int = 0

    def fail(self, good_windows: int) -> int | None:
        """The present process has failed.

        Args:
            good_windows: that it has kept.

        Returns:
            How long to wait before the next one is launched, in ns; None: no other may be.
        """
        if good_windows >= GOOD_WINDOWS:
            self.failures = 0
        self.failures += 1
        if self.failures > self.limit:
            return None
        doublings = min(self.failures - 1, BACKOFF_MAX_NS.bit_length())
        return min(self.backoff_ns << doublings, BACKOFF_MAX_NS)
