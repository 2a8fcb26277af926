"""seccomp(2): the system calls that a dimension is refused, in one table, and the filter that the table becomes.

The table denies and everything else is allowed, because a dimension may run any unmodified program. What the kernel
has learned after :data:`YOUNGEST_CALL` was not looked at when the table was written: a program is told that it does not
exist (ENOSYS), as an older kernel would.

libseccomp compiles the table (:func:`compile_policy`, some 30 ms with the import, so once for a run and not in the
launcher); :func:`install` is all that a fresh fork has to do. The filter stays over fork and exec.

Traps: the kernel reads only the lower half of an int argument, so a denied value is compared under a mask, or it would
pass with a bit set above; a filter can't follow pointers, so clone3 has to go, and libc falls back to clone; x32 shares
the numbers of x86-64 with bit 30 set, and is refused with the other ABIs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vcg.errors import HostError
from vcg.linux.libc import syscall

YOUNGEST_CALL = 453
"""map_shadow_stack, Linux 6.6."""
_INT = 0xFFFFFFFF
_SYS_SECCOMP = 317
_SET_MODE_FILTER = 1
_GET_ACTION_AVAIL = 2
_RET_KILL_PROCESS = 0x80000000
_RET_ERRNO = 0x00050000
_X32_BIT = 0x40000000
_LOAD_NUMBER, _JUMP_IF_GE, _JUMP_IF_GT, _RETURN = 0x20, 0x35, 0x25, 0x06


class Match(NamedTuple):
    """A condition on one argument: ``argument & mask == value``, or with ``equal`` false ``argument != value``."""

    argument: int
    value: int
    mask: int = _INT
    equal: bool = True


@dataclass(frozen=True)
class Rule:
    """One line of the policy.

    Attributes:
        topic: what it is about, in a few words.
        calls: names of system calls.
        verdict: the name of the errno that the caller gets.
        why: what an attacker would do with it.
        when: the condition in words; empty if there is none.
        conditions: alternatives, each of which is a set of matches that must all hold; none: always.
    """

    topic: str
    calls: tuple[str, ...]
    verdict: str
    why: str
    when: str = ""
    conditions: tuple[tuple[Match, ...], ...] = ((),)


_AF_UNIX = 1
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
_NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_MAP_HUGETLB, _MFD_HUGETLB = 0x40000, 0x4
_SOL_SOCKET = 1
_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF = 26, 50, 51, 52
_PR_SCHED_CORE = 62
_FUTEX_REALTIME = 256
_FUTEX_SHARED = _INT & ~_FUTEX_REALTIME
"""Under this mask an operation equals its plain number only if the flag FUTEX_PRIVATE is not set."""
_FUTEX_WAIT, _FUTEX_WAIT_BITSET = 0, 9
_CLOCK = "the clock's word (with the cooperative gate)"
_FUTEX_OTHERS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13)

POLICY = (
    Rule(
        "another view of the files",
        (
            *("mount", "umount2", "mount_setattr", "move_mount", "open_tree", "pivot_root", "chroot"),
            *("fsopen", "fsconfig", "fsmount", "fspick"),
        ),
        "EPERM",
        "what a dimension sees was arranged before it began; a nested chroot is the classic way out",
    ),
    Rule(
        "crashes",
        ("setrlimit",),
        "EPERM",
        "at a limit of 0 the kernel starts a helper outside, as root, for whoever crashes, if core_pattern names one",
        "of RLIMIT_CORE",
        ((Match(0, resource.RLIMIT_CORE),),),
    ),
    Rule(
        "crashes",
        ("prlimit64",),
        "EPERM",
        "the same",
        "to set RLIMIT_CORE",
        ((Match(1, resource.RLIMIT_CORE), Match(2, 0, equal=False)),),
    ),
    Rule("namespaces", ("unshare", "setns"), "EPERM", "inside a user namespace it would be root again"),
    Rule(
        "namespaces",
        ("clone",),
        "EPERM",
        "the same at a fork",
        f"with a flag for a new namespace ({', '.join(_NAMESPACES)})",
        tuple((Match(0, bit, mask=bit),) for bit in _NAMESPACES.values()),
    ),
    Rule(
        "namespaces",
        ("clone3",),
        "ENOSYS",
        "its flags lie in memory, out of a filter's sight; libc falls back to clone",
    ),
    Rule(
        "device nodes",
        ("mknod",),
        "EPERM",
        "granted devices are bound, never made",
        "of a character or block device",
        tuple((Match(1, kind, mask=_S_IFMT),) for kind in (_S_IFCHR, _S_IFBLK)),
    ),
    Rule(
        "device nodes",
        ("mknodat",),
        "EPERM",
        "granted devices are bound, never made",
        "of a character or block device",
        tuple((Match(2, kind, mask=_S_IFMT),) for kind in (_S_IFCHR, _S_IFBLK)),
    ),
    Rule(
        "files without a path",
        ("open_by_handle_at", "fanotify_init", "fanotify_mark", "lookup_dcookie"),
        "EPERM",
        "a handle opens any file of a filesystem, whatever the root directory is",
    ),
    Rule(
        "other processes",
        (
            *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
            *("process_madvise", "process_mrelease"),
        ),
        "EPERM",
        "reading, writing or steering what a neighbour does",
    ),
    Rule(
        "sockets",
        ("socket", "socketpair"),
        "EAFNOSUPPORT",
        "outside traffic goes through the gateway only: no TCP, UDP, netlink, packet or vsock",
        "of another family than AF_UNIX",
        ((Match(0, _AF_UNIX, equal=False),),),
    ),
    Rule(
        "System V and POSIX IPC",
        (
            *("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semctl", "semtimedop"),
            *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink"),
        ),
        "EPERM",
        "they have names of their own, which cross every chroot",
    ),
    Rule(
        "keys",
        ("keyctl", "add_key", "request_key"),
        "EPERM",
        "keyrings cross a chroot, and their code is a wide target",
    ),
    Rule(
        "the kernel's inside",
        ("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
        "EPERM",
        "observing or stalling the kernel; io_uring acts without passing this filter",
    ),
    Rule(
        "the kernel's inside",
        ("setsockopt",),
        "EPERM",
        "becomes machine code of the kernel's, which no memory limit counts and one limit of the host's ends",
        "of SO_ATTACH_FILTER and its like",
        tuple(
            (Match(1, _SOL_SOCKET), Match(2, option))
            for option in (_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF)
        ),
    ),
    Rule(
        "stores of the host",
        ("io_setup",),
        "ENOSYS",
        "one number (fs.aio-max-nr) limits what all users of the host together may have in flight",
    ),
    Rule(
        "clocks",
        ("clock_settime", "clock_adjtime", "settimeofday", "adjtimex"),
        "EPERM",
        "there is one clock for all",
    ),
    Rule(
        "CPUs and priorities",
        ("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr", "setpriority", "ioprio_set"),
        "EPERM",
        "where and how urgently it runs is the plan's to say, narrower or lower as well",
    ),
    Rule(
        "memory nodes",
        ("set_mempolicy", "mbind", "set_mempolicy_home_node", "migrate_pages", "move_pages"),
        "EPERM",
        "where its memory lies is the plan's to say",
    ),
    Rule(
        "CPUs and priorities",
        ("prctl",),
        "EPERM",
        "a cookie of its own keeps the other thread of its core idle while it runs",
        "PR_SCHED_CORE",
        ((Match(0, _PR_SCHED_CORE),),),
    ),
    Rule(
        "huge pages",
        ("mmap",),
        "EPERM",
        "huge pages are the host's own store, and no memory limit counts them",
        "with MAP_HUGETLB",
        ((Match(3, _MAP_HUGETLB, mask=_MAP_HUGETLB),),),
    ),
    Rule(
        "huge pages",
        ("memfd_create",),
        "EPERM",
        "the same by a descriptor",
        "with MFD_HUGETLB",
        ((Match(1, _MFD_HUGETLB, mask=_MFD_HUGETLB),),),
    ),
    Rule(
        "terminals",
        ("ioctl",),
        "EPERM",
        "typing into somebody else's shell",
        "TIOCSTI or TIOCLINUX",
        ((Match(1, _TIOCSTI),), (Match(1, _TIOCLINUX),)),
    ),
    Rule("terminals", ("vhangup",), "EPERM", "hanging up somebody else's shell"),
    Rule(
        "the host itself",
        (
            *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot"),
            *("swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "sethostname", "setdomainname"),
            *("syslog", "iopl", "ioperm", "modify_ldt", "uselib", "sync", "syncfs", "ustat"),
        ),
        "EPERM",
        "administration; sync and ustat reach every filesystem, syncfs that of a bind (fsync flushes its own)",
    ),
    Rule(
        "odd personalities",
        ("personality",),
        "EPERM",
        "old ABIs bring old holes",
        "other than 0",
        ((Match(0, 0, equal=False),),),
    ),
)
"""What every dimension is refused. A foreign ABI (i386, x32) is no errno but the end of the process."""


def clock_rules(bit: int) -> tuple[Rule, ...]:
    """What else a dimension is refused that shares the clock's futex word: everything but waiting for its own edges.

    A wait or a wake that is refused looks like one of those that futex(2) allows at any time for no reason, so that a
    libc which joins a thread or posts a shared semaphore goes round its loop once more, and does not abort.
    """
    other_waits = (
        (Match(1, _FUTEX_WAIT, mask=_FUTEX_SHARED),),
        (Match(1, _FUTEX_WAIT_BITSET, mask=_FUTEX_SHARED), Match(5, bit, equal=False)),
    )
    return (
        Rule(
            _CLOCK,
            ("futex",),
            "EAGAIN",
            "threads parked on every edge would make each of the clock's wake-ups long",
            "a wait that is not private, for other bits than its own",
            other_waits,
        ),
        Rule(
            _CLOCK,
            ("futex",),
            "EINVAL",
            "waking the neighbours out of turn would burn their credit",
            "any operation that is neither private nor a wait",
            tuple((Match(1, operation, mask=_FUTEX_SHARED),) for operation in _FUTEX_OTHERS),
        ),
        Rule(_CLOCK, ("futex_waitv",), "ENOSYS", "a wait without bits"),
    )


def is_available() -> bool:
    """Whether this kernel filters system calls."""
    action = ctypes.c_uint32(_RET_KILL_PROCESS)
    try:
        syscall(_SYS_SECCOMP, _GET_ACTION_AVAIL, 0, ctypes.addressof(action), name="seccomp")
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return True


def compile_policy(clock_bit: int | None) -> bytes:
    """The table as a program for the kernel.

    Args:
        clock_bit: of the dimension on the clock's futex; None for one that never waits for the clock.

    Raises:
        HostError: libseccomp is not installed, or does not know a call of the table.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:  # RuntimeError: the binding is there, the library is not
        raise HostError(f"can't compile the filter of system calls: {error} (apt-get install libseccomp2)") from None

    made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    made.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    made.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree: the last call of a list is as fast as the first
    for rule in (*POLICY, *(clock_rules(clock_bit) if clock_bit else ())):
        action = pyseccomp.ERRNO(getattr(errno, rule.verdict))
        for call in rule.calls:
            if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call) < 0:
                raise HostError(f"libseccomp does not know the system call {call}: expected version 2.5.4 or newer")
            for condition in rule.conditions:
                arguments = [
                    pyseccomp.Arg(match.argument, pyseccomp.MASKED_EQ, match.mask, match.value)
                    if match.equal
                    else pyseccomp.Arg(match.argument, pyseccomp.NE, match.value)
                    for match in condition
                ]
                made.add_rule(action, call, *arguments)
    with os.fdopen(os.memfd_create("vcg-filter", os.MFD_CLOEXEC), "r+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return _hide_younger_calls() + file.read()


def _hide_younger_calls() -> bytes:
    """Instructions to stand before a program: ENOSYS for what came after :data:`YOUNGEST_CALL`, x32 aside."""
    return b"".join(
        (
            struct.pack("HBBI", _LOAD_NUMBER, 0, 0, 0),
            struct.pack("HBBI", _JUMP_IF_GE, 2, 0, _X32_BIT),
            struct.pack("HBBI", _JUMP_IF_GT, 0, 1, YOUNGEST_CALL),
            struct.pack("HBBI", _RETURN, 0, 0, _RET_ERRNO | errno.ENOSYS),
        )
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Put the calling thread, and everything that it will start, under a filter, for good.

    Args:
        program: as :func:`compile_policy` made it; nothing is done if it is empty.

    Raises:
        OSError: EACCES without no_new_privs.
    """
    if program:
        filter_ = _Program(len(program) // struct.calcsize("HBBI"), program)
        syscall(_SYS_SECCOMP, _SET_MODE_FILTER, 0, ctypes.addressof(filter_), name="seccomp")


class Line(NamedTuple):
    """One line of the policy as people read it."""

    topic: str
    calls: str
    when: str
    verdict: str
    why: str


def describe() -> Iterator[Line]:
    """The whole policy, with what only those are refused that wait for the clock, and what is in no table."""
    for rule in (*POLICY, *clock_rules(1)):
        yield Line(rule.topic, ", ".join(rule.calls), rule.when, rule.verdict, rule.why)
    yield Line("young calls", f"all after number {YOUNGEST_CALL}", "", "ENOSYS", "nobody has judged them yet")
    yield Line("foreign ABIs", "all of i386 and x32", "", "killed", "their numbers mean other calls than these")
