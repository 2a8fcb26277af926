"""Durations, sizes and ratios as people write them, read exactly and written back exactly.

No float takes part: a duration is a whole number of nanoseconds, a size a whole number of bytes, a ratio a Fraction
that is equal to its text ("1.618" is 809/500). Each ``parse_*`` raises ValueError with a clause that starts with
"expected", fit to be shown after the offending value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from math import inf
from typing import Any

NS_PER = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
BYTES_PER = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ns|us|ms|s)$"
SIZE_PATTERN = r"^[0-9]+[KMG]$"
RATIO_PATTERN = r"^[0-9]+(\.[0-9]+|/[0-9]+)?$"

AMPLITUDE_MIN, AMPLITUDE_MAX = 0.000001, 1_000_000
"""In shared memory an amplitude is a number of millionths."""

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s)")
_SIZE = re.compile(r"([0-9]+)([KMG])")
_RATIO = re.compile(r"[0-9]+(?:\.[0-9]+|/0*[1-9][0-9]*)?")


def parse_duration(value: Any) -> int:
    """Nanoseconds from text such as "5ms", "200us", "1.5s" or "250ns"; more than zero."""
    if isinstance(value, int | float | Decimal) and value > 0:
        raise ValueError(f'expected a duration with its unit, in quotes, such as "{value}ms"')
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a duration such as "5ms", "200us" or "1s"')
    duration_ns = Fraction(match[1]) * NS_PER[match[2]]
    if duration_ns.denominator != 1 or duration_ns == 0:
        raise ValueError('expected a whole number of nanoseconds, at least "1ns"')
    return duration_ns.numerator


def format_duration(duration_ns: int) -> str:
    """The shortest exact text: 1500000 becomes "1.5ms"."""
    unit = next((u for u in ("s", "ms", "us") if duration_ns >= NS_PER[u]), "ns")
    whole, rest = divmod(duration_ns, NS_PER[unit])
    digits = str(rest).zfill(len(str(NS_PER[unit])) - 1).rstrip("0") if rest else ""
    return f"{whole}{'.' if digits else ''}{digits}{unit}"


def show_duration(duration_ns: Fraction | float) -> str:
    """Text for people, with four significant digits: not exact."""
    for unit in ("s", "ms", "us"):
        if round(float(duration_ns / NS_PER[unit]), 4) >= 1:
            return f"{float(duration_ns / NS_PER[unit]):.4g}{unit}"
    return f"{float(duration_ns):.4g}ns"


def parse_size(value: Any) -> int:
    """Bytes from text such as "4K", "64M" or "1G" (binary multiples); more than zero."""
    if isinstance(value, int | float | Decimal) and value > 0:
        raise ValueError(f'expected a size with its unit, in quotes, such as "{value}M"')
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError('expected a size such as "64M", "4K" or "1G"')
    return int(match[1]) * BYTES_PER[match[2]]


def format_size(size_bytes: int) -> str:
    """The shortest exact text of a whole number of KiB: 67108864 becomes "64M"."""
    unit = next(u for u in ("G", "M", "K") if size_bytes % BYTES_PER[u] == 0)
    return f"{size_bytes // BYTES_PER[unit]}{unit}"


def parse_ratio(value: Any) -> Fraction:
    """An exact ratio, zero or more, from "3", "1/3", "1.618", a whole number or a Decimal."""
    if isinstance(value, float):
        raise ValueError(f'expected a ratio in quotes, such as "{value}", so that it stays exact')
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal | Fraction):
        raise ValueError('expected a ratio such as "3", "1/3" or "1.618"')
    if not _RATIO.fullmatch(f"{value:f}" if isinstance(value, Decimal) else str(value)):
        raise ValueError('expected a ratio such as "3", "1/3" or "1.618"')
    return Fraction(value)


def parse_amplitude(value: Any) -> float:
    """A weight: a number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError("expected a number above 0")
    amplitude = value if isinstance(value, int) else float(value)
    if not 0 < amplitude < inf:
        raise ValueError("expected a number above 0")
    if not AMPLITUDE_MIN <= amplitude <= AMPLITUDE_MAX:
        raise ValueError(f"expected a number from {AMPLITUDE_MIN:f} to {AMPLITUDE_MAX}")
    return float(amplitude)


def format_ratio(ratio: Fraction) -> str:
    """Exact text: a whole number or a fraction where that is short ("1/3"), else a decimal where there is one."""
    short = ratio.denominator < 10
    decimal = None if short else _terminating(ratio)
    return decimal or str(ratio)


def _terminating(ratio: Fraction) -> str | None:
    twos = fives = 0
    rest = ratio.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return None
    places = max(twos, fives)
    digits = str(ratio.numerator * 10**places // ratio.denominator).zfill(places + 1)
    return f"{digits[:-places]}.{digits[-places:]}"
