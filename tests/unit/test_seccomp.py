"""The policy as a table: nothing is refused twice over, everything has a reason, and it compiles."""

from __future__ import annotations

import errno
import struct
from itertools import chain

import pytest

from vcg.linux import seccomp
from vcg.linux.seccomp import POLICY, clock_rules

RULES = (*POLICY, *clock_rules(1 << 4))


def test_every_verdict_is_an_errno_and_every_rule_has_a_reason() -> None:
    for rule in RULES:
        assert hasattr(errno, rule.verdict)
        assert rule.why and rule.topic and rule.calls
        assert bool(rule.when) == (rule.conditions != ((),)), f"{rule.calls}: a condition, and its words"


def test_no_call_is_refused_under_two_verdicts_or_twice_for_nothing() -> None:
    always = list(chain.from_iterable(rule.calls for rule in RULES if rule.conditions == ((),)))
    assert len(always) == len(set(always))
    assert not set(always) & set(chain.from_iterable(rule.calls for rule in RULES if rule.conditions != ((),)))


def test_a_denied_value_is_compared_as_the_kernel_reads_it() -> None:
    """The kernel takes the lower half of an int: a value compared over 64 bits would pass with a bit set above."""
    for match in chain.from_iterable(chain.from_iterable(rule.conditions for rule in RULES)):
        assert not match.equal or match.mask < 1 << 32


def test_people_read_the_same_policy() -> None:
    lines = list(seccomp.describe())
    named = set(chain.from_iterable(line.calls.split(", ") for line in lines))
    assert set(chain.from_iterable(rule.calls for rule in RULES)) <= named
    assert [line.verdict for line in lines[-2:]] == ["ENOSYS", "killed"]


@pytest.mark.parametrize("bit", [None, 1, 1 << 30])
def test_it_compiles_to_whole_instructions_and_the_clock_adds_some(bit: int | None) -> None:
    program, without = seccomp.compile_policy(bit), seccomp.compile_policy(None)
    size = struct.calcsize("HBBI")
    assert len(program) % size == 0
    assert len(program) // size < 4096  # the kernel's limit
    assert (len(program) > len(without)) is (bit is not None)
