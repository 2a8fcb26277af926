"""cyclictest (rt-tests): the yardstick for wake lateness of an absolute-timer loop.

It runs with ``-N`` and a histogram of one nanosecond a bucket, so its quantiles are as fine as ours: in its default of
microseconds every value is cut to the microsecond below it.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from vcg.errors import HostError

BUCKETS = 1_000_000
"""The most that cyclictest takes: 1 ms. What is later than that is counted as overflow."""
_LINE = re.compile(r"(\d+)\s+(\d+)")
_OVERFLOWS = re.compile(r"# Histogram Overflows:\s*(\d+)")


@dataclass(frozen=True)
class Histogram:
    """Counts of latencies in ns; ``overflows`` were later than the last bucket."""

    counts: dict[int, int]
    overflows: int

    @property
    def total(self) -> int:
        return sum(self.counts.values()) + self.overflows

    def quantile(self, q: float) -> float:
        """Nearest rank; infinite if it falls among the overflows.

        Raises:
            ValueError: the histogram is empty.
        """
        if not self.total:
            raise ValueError("a quantile of no samples")
        rank, seen = min(int(q * self.total), self.total - 1), 0
        for latency_ns, count in sorted(self.counts.items()):
            seen += count
            if seen > rank:
                return latency_ns
        return float("inf")


def parse(output: str) -> Histogram:
    """The histogram of a single thread from what ``cyclictest -q -h`` printed.

    Raises:
        ValueError: there is none in it.
    """
    overflows = _OVERFLOWS.search(output)
    if not overflows:
        raise ValueError(f"no histogram of cyclictest in: {output[:200]!r}")
    lines = (_LINE.fullmatch(line.strip()) for line in output.splitlines())
    counts = {int(match[1]): int(match[2]) for match in lines if match and int(match[2])}
    return Histogram(counts, int(overflows[1]))


def run(cpu: int, priority: int, period_ns: int, seconds: float) -> Histogram:
    """One thread of cyclictest, pinned, as long as the given number of periods lasts.

    Raises:
        HostError: it is not installed, or failed.
    """
    loops = round(seconds * 1e9 / period_ns)
    placed = ["-m", "-p", str(priority), "-i", str(period_ns // 1000), "-a", str(cpu), "-t", "1"]
    command = ["cyclictest", *placed, "-l", str(loops), "-q", "-N", "-h", str(BUCKETS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise HostError("cyclictest is not installed (apt-get install rt-tests)") from None
    except subprocess.CalledProcessError as error:
        raise HostError(f"{' '.join(command)}: exit code {error.returncode}: {error.stderr.strip()}") from None
    return parse(done.stdout)
