"""The ledger: what every dimension may spend in every window, and what became of it.

Pure integer arithmetic: no clock, no memory layout, no kernel. The orchestrator feeds it with facts and publishes what
it answers. Credit is CPU time in nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Account:
    """One dimension's books.

    Attributes:
        credit_ns: minted for every window (from the amplitude, see ``vcg.plan``).
        minted, minted_ns: tokens issued, and their sum.
        settled, used_ns: tokens that came back, and the CPU time used under them.
        overruns, overrun_ns: windows that used more than their budget, and by how much.
        expired, expired_ns: tokens void before any use was reported, and their credit; the unused rest of a settled
            token expires too.
    """

    credit_ns: int
    minted: int = 0
    minted_ns: int = 0
    settled: int = 0
    used_ns: int = 0
    overruns: int = 0
    overrun_ns: int = 0
    expired: int = 0
    expired_ns: int = 0
    _next: int = 0
    _settled_through: int = -1

    @property
    def outstanding_ns(self) -> int:
        """Credit minted and neither settled nor expired yet."""
        return self.minted_ns - (self.used_ns - self.overrun_ns) - self.expired_ns

    def mint(self, window: int) -> int:
        """Issue the token of a window.

        Windows are minted in order, each once.

        Returns:
            Its budget in ns.

        Raises:
            ValueError: the window is not the next one.
        """
        if window != self._next:
            raise ValueError(f"window {window}: expected {self._next}, tokens are minted in order and once")
        self._next = window + 1
        self.minted += 1
        self.minted_ns += self.credit_ns
        return self.credit_ns

    def refuses(self, window: int) -> bool:
        """Whether a report for this window is stale (settled before) or foreign (never minted)."""
        return not self._settled_through < window < self._next

    def settle(self, window: int, used_ns: int) -> None:
        """Book the use of a window's token; windows passed over by the report expire unused.

        Raises:
            ValueError: the report is one that :meth:`refuses`, or its use is negative.
        """
        if self.refuses(window) or used_ns < 0:
            raise ValueError(
                f"window {window}, used {used_ns} ns: expected a window of "
                f"{self._settled_through + 1}..{self._next - 1} and no negative use"
            )
        self.expire_before(window)
        self._settled_through = window
        within = min(used_ns, self.credit_ns)
        self.settled += 1
        self.used_ns += used_ns
        self.expired_ns += self.credit_ns - within
        if used_ns > self.credit_ns:
            self.overruns += 1
            self.overrun_ns += used_ns - self.credit_ns

    def expire_before(self, window: int) -> None:
        """Void every outstanding token of windows before this one."""
        gone = max(0, min(window, self._next) - self._settled_through - 1)
        self._settled_through += gone
        self.expired += gone
        self.expired_ns += gone * self.credit_ns
