"""The filter on the real kernel: every line of the policy refuses what it says, and nothing else is lost."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyseccomp
import pytest

from vcg import shm, uids
from vcg.linux import futex, prctl, seccomp
from vcg.linux.libc import syscall
from vcg.linux.seccomp import POLICY, Match, Rule, clock_rules

pytestmark = pytest.mark.usefixtures("root")
BIT = 1 << 4
UID = uids.SPARE[4]
RULES = (*POLICY, *clock_rules(BIT))
UNCONDITIONAL = [(call, rule) for rule in RULES for call in rule.calls if rule.conditions == ((),)]
CONDITIONAL = [
    (call, rule, condition) for rule in RULES for call in rule.calls for condition in rule.conditions if condition
]


@pytest.fixture
def filtered(in_child: Any) -> Callable[..., Any]:
    """``filtered(act, bit)``: act in a child under the filter, which is nobody in particular."""

    def make(act: Callable[[], object], bit: int | None = BIT) -> Any:
        program = seccomp.compile_policy(bit)

        def inside() -> object:
            os.setresuid(UID, UID, UID)
            prctl.forbid_new_privileges()
            seccomp.install(program)
            return act()

        return in_child(inside)

    return make


def refusal(call: str, arguments: tuple[int, ...]) -> str | None:
    """The errno of a call with these arguments, None if it succeeds."""
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call)
    try:
        syscall(number, *arguments, name=call)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


@pytest.mark.parametrize(("call", "rule"), UNCONDITIONAL, ids=[call for call, _ in UNCONDITIONAL])
def test_a_call_is_refused_whatever_its_arguments(call: str, rule: Rule, filtered: Any) -> None:
    assert filtered(lambda: refusal(call, (0,) * 6)) == rule.verdict


@pytest.mark.parametrize(
    ("call", "rule", "condition"), CONDITIONAL, ids=[f"{call}-{condition}" for call, _, condition in CONDITIONAL]
)
def test_a_call_is_refused_with_the_arguments_of_a_condition(
    call: str, rule: Rule, condition: tuple[Match, ...], filtered: Any
) -> None:
    arguments = [0] * 6
    for match in condition:
        arguments[match.argument] = match.value if match.equal else match.value + 1
    assert filtered(lambda: refusal(call, tuple(arguments))) == rule.verdict
    high = [value | (1 << 40) for value in arguments]
    assert filtered(lambda: refusal(call, tuple(high))) == rule.verdict, "a bit above an int's makes no difference"


@pytest.mark.parametrize("bit", [BIT, None])
def test_what_a_program_needs_is_left_to_it(
    filtered: Any, bit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)  # nobody in particular may not come this way

    def act() -> list[str]:
        done = []
        os.mkfifo("fifo")
        os.mknod("file")
        one, other = socket.socketpair()
        one.send(b"x")
        done.append(other.recv(1).decode())
        thread = threading.Thread(target=lambda: done.append("thread"))  # clone3 is refused, so by clone
        thread.start()
        thread.join()
        done.append(subprocess.run(["/bin/echo", "exec"], capture_output=True, text=True, check=True).stdout.strip())
        os.sched_yield()
        os.kill(os.getpid(), signal.SIGCONT)
        return done

    assert filtered(act, bit) == ["x", "thread", "exec"]


def test_a_dimension_waits_for_its_own_edges_only(filtered: Any) -> None:
    fd, words = shm.create("vcg-test", shm.PAGE)
    clock = shm.attach(fd, inherited=True)
    os.close(fd)
    address = futex.address_of(clock, 0)
    timeout = (ctypes.c_long * 2)()

    def wait(operation: int, bits: int) -> str | None:
        timeout[:] = divmod(time.monotonic_ns() + 5_000_000, 1_000_000_000)
        return refusal("futex", (address, operation, 0, ctypes.addressof(timeout), 0, bits))

    private, wait_bitset = 128, 9
    own = filtered(lambda: wait(wait_bitset, BIT))
    others = filtered(lambda: [wait(wait_bitset, bits) for bits in (BIT << 1, BIT | 1, futex.MATCH_ANY)])
    assert own == "ETIMEDOUT"
    assert others == ["EAGAIN"] * 3
    assert filtered(lambda: wait(wait_bitset | private, futex.MATCH_ANY)) == "ETIMEDOUT", "its own threads' locks"
    assert filtered(lambda: wait(wait_bitset, futex.MATCH_ANY), None) == "ETIMEDOUT", "a program knows no clock"
    del words


def test_without_no_new_privs_a_filter_is_refused(in_child: Any) -> None:
    program = seccomp.compile_policy(None)

    def act() -> None:
        os.setresuid(UID, UID, UID)
        seccomp.install(program)

    with pytest.raises(PermissionError):
        in_child(act)


def test_where_the_kernel_has_no_filters_nothing_is_installed(in_child: Any) -> None:
    def act() -> str:
        seccomp.install(b"")
        return Path("/proc/self/status").read_text()

    assert seccomp.is_available()
    assert "Seccomp:\t0" in in_child(act)
