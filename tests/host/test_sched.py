"""Scheduling class and affinity of the calling thread."""

from __future__ import annotations

import os
from typing import Any

import pytest

from vcg.linux import sched

pytestmark = pytest.mark.usefixtures("root")


def in_fork_of(policy: Any) -> tuple[int, int]:
    """Set a scheduling class; the policy here and in a child forked afterwards."""
    policy()
    here = os.sched_getscheduler(0)
    if (pid := os.fork()) == 0:
        os._exit(os.sched_getscheduler(0))
    return here & ~os.SCHED_RESET_ON_FORK, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_real_time_priority_is_not_inherited(in_child: Any) -> None:
    assert in_child(lambda: in_fork_of(lambda: sched.set_fifo(10))) == (os.SCHED_FIFO, os.SCHED_OTHER)


def test_a_policy_is_inherited_unless_it_is_reset(in_child: Any) -> None:
    assert in_child(lambda: in_fork_of(lambda: sched.set_policy("fifo", 10))) == (os.SCHED_FIFO, os.SCHED_FIFO)
    assert in_child(lambda: in_fork_of(lambda: sched.set_policy("other", 0))) == (os.SCHED_OTHER, os.SCHED_OTHER)


def test_a_priority_is_the_one_that_was_asked_for(in_child: Any) -> None:
    def act() -> int:
        sched.set_fifo(17)
        return os.sched_getparam(0).sched_priority

    assert in_child(act) == 17


def test_a_priority_that_does_not_exist_is_named(in_child: Any) -> None:
    with pytest.raises(OSError, match="fifo 100"):
        in_child(lambda: sched.set_fifo(100))


def test_a_pinned_process_may_use_its_cpus_only(in_child: Any) -> None:
    cpu = max(os.sched_getaffinity(0))

    def act() -> set[int]:
        sched.pin([cpu])
        return os.sched_getaffinity(0)

    assert in_child(act) == {cpu}


def test_a_cpu_that_does_not_exist_is_named(in_child: Any) -> None:
    with pytest.raises(OSError, match=r"cpus \[999\]"):
        in_child(lambda: sched.pin([999]))
