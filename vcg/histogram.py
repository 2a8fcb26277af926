"""Log-linear histograms of durations: the bucket of a value, the bounds of a bucket, and quantiles.

Each octave is cut into 32 buckets of equal width, so a bucket is at most 1/32 of its lower bound wide, from 32 ns to
137 s; below 32 ns the buckets are single nanoseconds, above 2^37 ns there is one last bucket that is open to the top.
(The scheme of HdrHistogram, G. Tene.) ``histogram.h`` is the same function in C; ``tests/host`` holds them together.

Pure: nothing here touches the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SUB_BITS = 5
SUB_BUCKETS = 1 << SUB_BITS
TOP_BITS = 37
"""Values of this many bits and more than that fall into the last bucket."""
OVERFLOW = (TOP_BITS - SUB_BITS + 1) * SUB_BUCKETS
"""Index of the last bucket, which has no width of its own."""
BUCKETS = OVERFLOW + 1
HIGHEST_NS = (1 << 63) - 1
"""Upper bound of the last bucket: the largest value that the tables of results can hold."""


def bucket_of(value_ns: int) -> int:
    """Index of the bucket that a duration falls into; a value below zero is an error of the caller.

    Raises:
        ValueError: the value is negative.
    """
    if value_ns < 0:
        raise ValueError(f"a duration of {value_ns} ns: expected 0 or more")
    if value_ns < SUB_BUCKETS:
        return value_ns
    octave = value_ns.bit_length() - 1
    if octave >= TOP_BITS:
        return OVERFLOW
    return (octave - SUB_BITS + 1) * SUB_BUCKETS + ((value_ns >> (octave - SUB_BITS)) & (SUB_BUCKETS - 1))


def bounds(bucket: int) -> tuple[int, int]:
    """The durations that a bucket holds: from the first (inclusive) to the second (exclusive), in ns.

    Raises:
        IndexError: there is no such bucket.
    """
    if not 0 <= bucket < BUCKETS:
        raise IndexError(f"bucket {bucket}: expected 0 to {BUCKETS - 1}")
    if bucket < SUB_BUCKETS:
        return bucket, bucket + 1
    if bucket == OVERFLOW:
        return 1 << TOP_BITS, HIGHEST_NS
    shift, position = divmod(bucket, SUB_BUCKETS)
    low = (SUB_BUCKETS + position) << (shift - 1)
    return low, low + (1 << (shift - 1))


def merge(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The sum of histograms, each a count for each bucket index."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def quantile(histogram: Mapping[int, int], share: float) -> tuple[int, int] | None:
    """The bucket that holds a quantile.

    Args:
        histogram: a count for each bucket index.
        share: 0 to 1; 1 is the largest value. The quantile is the smallest value that at least this share of the
            values does not exceed.

    Returns:
        Its bounds in ns, or None for an empty histogram.

    Raises:
        ValueError: the share is outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share}: expected 0 to 1")
    total = sum(histogram.values())
    if total == 0:
        return None
    filled = sorted(bucket for bucket, count in histogram.items() if count)
    below = 0
    for bucket in filled:
        below += histogram[bucket]
        if below >= share * total:
            return bounds(bucket)
    return bounds(filled[-1])
