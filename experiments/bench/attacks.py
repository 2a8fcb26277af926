"""What a dimension must not be able to do, each as something that it tries (``vcg bench escape``, ``test_escape_*``).

An :class:`Attack` is a function that runs in a process of its own, inside: it returns the evidence of its success, or
raises what refused it. It names the defences that stop it, **each of them alone**; where those are switched off and
everything else is on, it must succeed, or it proves nothing (its positive control, see ``experiments.bench.escape``).

As a workload (``experiments.bench.attacks:run``) or as a program, a dimension tries them all and leaves what came of
them in its own filesystem. It is imported by dimensions: the standard library and ``vcg.linux`` only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vcg import shm
from vcg.dimension import Dimension
from vcg.linux import futex, mount
from vcg.linux.libc import libc, syscall

BAIT = "data/bait.json"
OUTCOMES = "data/outcomes.json"
"""Below a dimension's root directory: what it is given, and what it leaves."""
PATIENCE_S = 10
_HIGHEST_FD = 1024
_CLIMB = 64
_CPUS = 1024
_AT_FDCWD = -100
_PAGE = 4096


@dataclass(frozen=True)
class Bait:
    """What there is outside to be reached, for those inside.

    Attributes:
        root: device and inode of the host's root directory.
        secret: what the file ``secret_path`` holds; nothing inside holds it.
        secret_path: absolute, on the host.
        victims: processes outside: siblings, and one of the host.
        sockets: names of abstract sockets on which somebody outside listens.
        passing: path of a Unix socket inside, on which somebody outside passes a directory of the host.
        port: of TCP on the loopback, on which somebody outside listens.
        segment, queue, mailbox: a System V shared memory and message queue, and a POSIX message queue, open to all.
        disk: major and minor number of a block device that begins with the secret.
        raiser, old_abi: programs: one that is setuid root, one that makes a system call of i386.
        device: a granted device node, which is a mount inside.
        regions: addresses of shared memory that is mapped read-only here; the first is that of the clock's futex word.
    """

    root: tuple[int, int] = (0, 0)
    secret: str = ""
    secret_path: str = ""
    victims: tuple[int, ...] = ()
    sockets: tuple[str, ...] = ()
    passing: str = ""
    port: int = 0
    segment: int = -1
    queue: int = -1
    mailbox: str = ""
    disk: tuple[int, int] = (0, 0)
    raiser: str = ""
    old_abi: str = ""
    device: str = ""
    regions: tuple[int, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Bait:
        raw: dict[str, Any] = json.loads(text)
        lists = {name: tuple(value) for name, value in raw.items() if isinstance(value, list)}
        return cls(**{**raw, **lists})


@dataclass(frozen=True)
class Attack:
    """One thing that must not be possible.

    Attributes:
        line: of the list of what a dimension must not be able to do.
        name: stable, for comparison between commits.
        act: tries it.
        stopped_by: the defences (``experiments.bench.escape.DEFENCES``) that stop it, each of them alone.
        needs: what has to be arranged around its control, beyond the bait.
    """

    line: str
    name: str
    act: Callable[[Bait], str]
    stopped_by: tuple[str, ...]
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of an attack: ``escaped``, ``refused``, ``stuck``, or ``broken`` if the attack itself is at fault."""

    verdict: str
    detail: str


class Refused(Exception):
    """It went without an error, and without effect."""


def attempt(attack: Attack, bait: Bait) -> Outcome:
    """Try an attack in a child of this process, and wait for what comes of it."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(tell, json.dumps(asdict(_try(attack, bait))).encode())
        finally:
            os._exit(0)
    os.close(tell)
    is_over = bool(select.select([told], [], [], PATIENCE_S)[0])
    said = os.read(told, _PAGE) if is_over else b""
    os.close(told)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if said:
        return Outcome(**json.loads(said))
    if is_over and os.WIFSIGNALED(status):
        return Outcome("refused", f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    return Outcome("broken" if is_over else "stuck", "it says nothing")


def _try(attack: Attack, bait: Bait) -> Outcome:
    try:
        return Outcome("escaped", attack.act(bait))
    except Refused as refusal:
        return Outcome("refused", str(refusal))
    except OSError as error:
        return Outcome("refused", errno.errorcode.get(error.errno or 0, str(error)))
    except BaseException as error:  # a defect of the attack itself, which must not pass for a defence
        return Outcome("broken", f"{type(error).__name__}: {error}"[:1000])


# ── 01: out of the root directory ────────────────────────────────────────────────────────────────────────────────────
def _climb(bait: Bait) -> str:
    for _ in range(_CLIMB):
        os.chdir("..")
    here = Path().stat()
    if (here.st_dev, here.st_ino) != bait.root:
        raise Refused("arrived at its own root")
    return "stands in the host's root directory"


def nested_chroot(bait: Bait) -> str:
    """The classic way out: another chroot, while the working directory stays above it."""
    Path("/tmp/inner").mkdir(exist_ok=True)
    os.chroot("/tmp/inner")
    return _climb(bait)


def climb(bait: Bait) -> str:
    """Up, as far as it goes."""
    return _climb(bait)


def _read_secret(bait: Bait, path: str, directory: int | None = None) -> str:
    fd = os.open(path, os.O_RDONLY, dir_fd=directory)
    if os.read(fd, len(bait.secret)).decode() != bait.secret:
        raise Refused("another file of that name")
    return f"read {bait.secret_path}"


def inherited_directory(bait: Bait) -> str:
    """A directory among the descriptors: whatever the root is, paths may begin there."""
    for fd in range(3, _HIGHEST_FD):
        try:
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        except OSError:
            continue
        if is_directory:
            return _read_secret(bait, bait.secret_path.lstrip("/"), fd)
    raise Refused("no directory is open")


def passed_directory(bait: Bait) -> str:
    """The same, when somebody outside hands it in over a Unix socket that lies inside."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(bait.passing)
        _, (directory, *_), _, _ = socket.recv_fds(connection, 1, 1)
    return _read_secret(bait, bait.secret_path.lstrip("/"), directory)


# ── 02: into other processes ─────────────────────────────────────────────────────────────────────────────────────────
def _any_victim(bait: Bait, act: Callable[[int], str]) -> str:
    last: OSError | None = None
    for victim in bait.victims:
        try:
            return f"pid {victim}: {act(victim)}"
        except OSError as error:
            last = error
    raise last or Refused("no victims")


def proc_root(bait: Bait) -> str:
    """Through the root directory of init, or of another process of the host."""
    everywhere = replace(bait, victims=(1, *bait.victims))
    return _any_victim(everywhere, lambda victim: _read_secret(bait, f"/proc/{victim}/root{bait.secret_path}"))


def trace(bait: Bait) -> str:
    """Seize a process with ptrace."""
    return _any_victim(bait, lambda victim: f"seized {syscall(101, 0x4206, victim, 0, 0, name='ptrace')}")


def read_memory(bait: Bait) -> str:
    """Read a process's code, whose place is the same in all that come of one fork."""
    address = ctypes.cast(libc.getpid, ctypes.c_void_p).value or 0
    found = ctypes.create_string_buffer(8)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(found), 8)
    there = (ctypes.c_size_t * 2)(address, 8)

    def act(victim: int) -> str:
        syscall(310, victim, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0, name="process_vm_readv")
        return f"read {found.raw.hex()}"

    return _any_victim(bait, act)


def take_descriptor(bait: Bait) -> str:
    """Take a copy of a process's descriptor."""
    return _any_victim(bait, lambda victim: f"got {syscall(438, os.pidfd_open(victim), 1, 0, name='pidfd_getfd')}")


def signal_neighbour(bait: Bait) -> str:
    """Signal a process."""

    def act(victim: int) -> str:
        os.kill(victim, signal.SIGCONT)
        return "continued"

    return _any_victim(bait, act)


def read_limits(bait: Bait) -> str:
    """Get at a process's limits, to lower them."""
    found = (ctypes.c_uint64 * 2)()

    def act(victim: int) -> str:
        syscall(302, victim, 7, 0, ctypes.addressof(found), name="prlimit64")
        return f"may open {found[0]} files"

    return _any_victim(bait, act)


def enter_namespace(bait: Bait) -> str:
    """Enter the mount namespace of a process of the host."""
    syscall(308, os.pidfd_open(bait.victims[-1]), mount.CLONE_NEWNS, name="setns")
    return _climb(bait)


# ── 03: through the kernel's back doors ──────────────────────────────────────────────────────────────────────────────
def _text(text: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(text.encode())


def make_disk(bait: Bait) -> str:
    """Make the node of a disk, and open it."""
    os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(*bait.disk))
    return f"on the disk: {_read_secret(bait, '/tmp/disk')}"


def mount_something(bait: Bait) -> str:
    """Mount a filesystem of its own."""
    mount.mount("tmpfs", "/tmp", "tmpfs")
    return "mounted a tmpfs"


def open_filesystem(bait: Bait) -> str:
    """The same by the newer interface."""
    kind = _text("tmpfs")
    return f"context {syscall(430, ctypes.addressof(kind), 0, name='fsopen')}"


def clone_tree(bait: Bait) -> str:
    """Take a copy of the tree of mounts."""
    path = _text("/")
    return f"tree {syscall(428, _AT_FDCWD, ctypes.addressof(path), 1, name='open_tree')}"


def unmount_device(bait: Bait) -> str:
    """Unmount what was granted, to see what lies below."""
    mount.unmount(bait.device)
    return f"unmounted {bait.device}"


def open_by_handle(bait: Bait) -> str:
    """Open a file by its handle, past every path."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    path, mount_id = _text("/tmp"), ctypes.c_int()
    where = (ctypes.addressof(path), ctypes.addressof(handle), ctypes.addressof(mount_id))
    syscall(303, _AT_FDCWD, *where, 0, name="name_to_handle_at")
    root = os.open("/", os.O_RDONLY)
    fd = syscall(304, root, ctypes.addressof(handle), os.O_RDONLY | os.O_DIRECTORY, name="open_by_handle_at")
    return f"opened {fd}"


def load_program(bait: Bait) -> str:
    """Make a map for BPF programs."""
    order = ctypes.create_string_buffer(struct.pack("IIIII", 2, 4, 4, 1, 0) + bytes(128))
    return f"map {syscall(321, 0, ctypes.addressof(order), 72, name='bpf')}"


def observe_cpu(bait: Bait) -> str:
    """Watch all that happens on a CPU."""
    order = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0) + bytes(128))
    return f"event {syscall(298, ctypes.addressof(order), -1, 0, -1, 0, name='perf_event_open')}"


def add_key(bait: Bait) -> str:
    """Keep something in a keyring."""
    kind, name = _text("user"), _text("vcg")
    return f"key {syscall(248, ctypes.addressof(kind), ctypes.addressof(name), ctypes.addressof(name), 3, -2, name='')}"


def read_keyring(bait: Bait) -> str:
    """Look for its keyring of the session."""
    return f"keyring {syscall(250, 0, -3, 1, name='keyctl')}"


def handle_faults(bait: Bait) -> str:
    """Handle page faults, and so stall whoever makes them."""
    return f"descriptor {syscall(323, 1, name='userfaultfd')}"


def use_ring(bait: Bait) -> str:
    """Have system calls made without making them."""
    order = ctypes.create_string_buffer(120)
    return f"ring {syscall(425, 4, ctypes.addressof(order), name='io_uring_setup')}"


def watch_files(bait: Bait) -> str:
    """Be told what others do to a filesystem."""
    return f"group {syscall(300, 0x200, 0, name='fanotify_init')}"


def unshare_user(bait: Bait) -> str:
    """Become root in a user namespace of its own."""
    syscall(272, 0x10000000, name="unshare")
    return "root of a user namespace"


def _child_in_namespace(pid: int) -> str:
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "had a child in a user namespace"


def clone_user(bait: Bait) -> str:
    """The same at a fork."""
    return _child_in_namespace(syscall(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0, name="clone"))


def clone3_user(bait: Bait) -> str:
    """The same with the flags in memory, where no filter looks."""
    order = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    return _child_in_namespace(syscall(435, ctypes.addressof(order), 64, name="clone3"))


def odd_personality(bait: Bait) -> str:
    """Switch address space randomisation off."""
    return f"was {syscall(135, 0x0040000, name='personality'):#x} before"


def young_call(bait: Bait) -> str:
    """A system call that is younger than the policy (statmount, Linux 6.8)."""
    try:
        syscall(457, 0, 0, 0, 0, name="statmount")
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
    return "the kernel looked at its arguments"


def old_abi(bait: Bait) -> str:
    """A system call by the numbers of i386."""
    done = subprocess.run([bait.old_abi], capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise Refused(f"killed by {signal.Signals(-done.returncode).name}")
    return f"getpid says {done.stdout.strip()}"


def raise_by_exec(bait: Bait) -> str:
    """Execute a program that is setuid root."""
    done = subprocess.run([bait.raiser], capture_output=True, text=True, check=False)
    if done.stdout.strip() != "0":
        raise Refused("it runs as anybody")
    return "it runs as root"


# ── 04: what crosses a chroot ────────────────────────────────────────────────────────────────────────────────────────
def abstract_socket(bait: Bait) -> str:
    """Connect to an abstract Unix socket of somebody outside."""
    last: OSError | None = None
    for name in bait.sockets:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(f"\0{name}")
            except ConnectionRefusedError:  # that one is not there
                continue
            except OSError as error:
                last = error
                continue
            return f"connected to @{name}"
    raise last or Refused("nobody listens")


def shared_memory(bait: Bait) -> str:
    """Read a System V segment of somebody outside."""
    address = syscall(30, bait.segment, 0, 0o10000, name="shmat")
    if ctypes.string_at(address, len(bait.secret)).decode() != bait.secret:
        raise Refused("another segment")
    return "read what it holds"


def message_queue(bait: Bait) -> str:
    """Leave a message in a System V queue."""
    message = ctypes.create_string_buffer(struct.pack("l", 1) + b"x")
    syscall(69, bait.queue, ctypes.addressof(message), 1, 0o4000, name="msgsnd")
    return "left a message"


def posix_queue(bait: Bait) -> str:
    """Open a POSIX message queue, whose name crosses every chroot."""
    name = _text(bait.mailbox)
    return f"opened {syscall(240, ctypes.addressof(name), os.O_RDWR, 0, 0, name='mq_open')}"


def tcp(bait: Bait) -> str:
    """Connect by TCP over the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.connect(("127.0.0.1", bait.port))
    return f"connected to port {bait.port}"


def udp(bait: Bait) -> str:
    """Send a datagram over the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", bait.port))
    return "sent it"


def vsock(bait: Bait) -> str:
    """A socket to the hypervisor."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as one:
        return f"descriptor {one.fileno()}"


def netlink(bait: Bait) -> str:
    """A socket to the kernel's network configuration."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        return f"descriptor {one.fileno()}"


def packets(bait: Bait) -> str:
    """A socket that sees every packet."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as one:
        return f"descriptor {one.fileno()}"


# ── 05: more of the machine ──────────────────────────────────────────────────────────────────────────────────────────
def widen_affinity(bait: Bait) -> str:
    """Use more CPUs than it was given."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(_CPUS))
    after = os.sched_getaffinity(0)
    if after <= before:
        raise Refused(f"still on {sorted(after)}")
    return f"on {sorted(after)}"


def real_time(bait: Bait) -> str:
    """Become a real-time process of the highest priority."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    return "runs at 99"


def less_nice(bait: Bait) -> str:
    """Become less nice."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "runs at -20"


def tune_clock(bait: Bait) -> str:
    """Set the clock's frequency (to what it is)."""
    state = ctypes.create_string_buffer(208)
    syscall(159, ctypes.addressof(state), name="adjtimex")
    struct.pack_into("I", state, 0, 2)
    syscall(159, ctypes.addressof(state), name="adjtimex")
    return "set it"


def type_in_terminal(bait: Bait) -> str:
    """Type into the terminal that it was started from."""
    fcntl.ioctl(0, 0x5412, b"x")
    return "typed x"


# ── 07: damage to what it shares ─────────────────────────────────────────────────────────────────────────────────────
def write_region(bait: Bait) -> str:
    """Make a mapping of somebody else's region writable, and write."""
    last: OSError | None = None
    for address in bait.regions:
        try:
            syscall(10, address & -_PAGE, _PAGE, 3, name="mprotect")
        except OSError as error:
            last = error
            continue
        word = ctypes.c_uint8.from_address(address)
        word.value = word.value
        return "wrote to it"
    raise last or Refused("no regions")


def truncate_region(bait: Bait) -> str:
    """Cut a region short below somebody who has it mapped, who gets SIGBUS."""
    last: OSError | None = None
    for fd in range(3, _HIGHEST_FD):
        try:
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:  # no region
            continue
        try:
            os.ftruncate(fd, 0)
        except OSError as error:
            last = error
            continue
        return f"descriptor {fd} has no byte left"
    raise last or Refused("no region is open")


def _clock_futex(bait: Bait, operation: int, value: int, timeout: ctypes.Array[ctypes.c_long] | None) -> int:
    pointer = ctypes.addressof(timeout) if timeout else 0
    return syscall(202, bait.regions[0], operation, value, pointer, 0, futex.MATCH_ANY, name="futex")


def park_on_clock(bait: Bait) -> str:
    """Wait for every edge of everybody, which makes each of the clock's wake-ups longer."""
    word = ctypes.c_uint32.from_address(bait.regions[0])
    for operation in (0, 9):  # FUTEX_WAIT, with a relative timeout; FUTEX_WAIT_BITSET, with an absolute one
        for _ in range(100):
            until = divmod(1_000_000 if operation == 0 else time.monotonic_ns() + 1_000_000, 1_000_000_000)
            try:
                _clock_futex(bait, operation, word.value, (ctypes.c_long * 2)(*until))
            except OSError as error:
                if error.errno == errno.ETIMEDOUT:
                    return "waited until its time was up"
                if error.errno != errno.EAGAIN:  # the word may have changed in between: try again
                    raise
            else:
                return "was woken at somebody's edge"
    raise Refused("EAGAIN, 200 times")


def wake_neighbours(bait: Bait) -> str:
    """Wake everybody out of turn."""
    return f"woke {_clock_futex(bait, 10, 2**31 - 1, None)}"


# What keeps neighbours apart (nobody traces beyond a Landlock domain), and what keeps back what only root may do.
_AS_NEIGHBOUR = ("own uid", "dumpable", "landlock", "seccomp")
_AS_ROOT = ("unprivileged", "seccomp")

ATTACKS = (
    Attack("01", "nested_chroot", nested_chroot, ("pivot", "unprivileged", "seccomp")),
    Attack("01", "climb", climb, ("pivot", "chroot")),
    Attack("01", "chroot_without_chdir", climb, ("directory",)),
    Attack("01", "inherited_directory", inherited_directory, ("descriptors", "landlock"), needs="directory"),
    Attack("01", "inherited_o_path", inherited_directory, ("descriptors", "landlock"), needs="o_path"),
    Attack("01", "passed_directory", passed_directory, ("landlock",)),
    Attack("02", "proc_root", proc_root, ("enclosure", "unprivileged", "landlock")),
    Attack("02", "ptrace", trace, _AS_NEIGHBOUR),
    Attack("02", "process_vm_readv", read_memory, _AS_NEIGHBOUR),
    Attack("02", "pidfd_getfd", take_descriptor, _AS_NEIGHBOUR),
    Attack("02", "signal", signal_neighbour, ("own uid", "landlock")),
    Attack("02", "prlimit", read_limits, ("own uid",)),
    Attack("02", "setns", enter_namespace, ("unprivileged", "landlock", "seccomp")),
    Attack("03", "mknod_disk", make_disk, ("flags", "unprivileged", "landlock", "seccomp")),
    Attack("03", "mount", mount_something, (*_AS_ROOT, "landlock")),
    Attack("03", "fsopen", open_filesystem, _AS_ROOT),
    Attack("03", "open_tree", clone_tree, _AS_ROOT),
    Attack("03", "umount2", unmount_device, (*_AS_ROOT, "landlock")),
    Attack("03", "open_by_handle_at", open_by_handle, _AS_ROOT),
    Attack("03", "bpf", load_program, _AS_ROOT),
    Attack("03", "perf_event_open", observe_cpu, _AS_ROOT),
    Attack("03", "add_key", add_key, ("seccomp",)),
    Attack("03", "keyctl", read_keyring, ("seccomp",)),
    Attack("03", "userfaultfd", handle_faults, ("seccomp",)),
    Attack("03", "io_uring", use_ring, ("limits", "seccomp")),
    Attack("03", "fanotify", watch_files, ("seccomp",)),
    Attack("03", "unshare_user", unshare_user, ("seccomp",)),
    Attack("03", "clone_user", clone_user, ("seccomp",)),
    Attack("03", "clone3_user", clone3_user, ("seccomp",)),
    Attack("03", "personality", odd_personality, ("seccomp",)),
    Attack("03", "young_call", young_call, ("seccomp",)),
    Attack("03", "i386", old_abi, ("seccomp",)),
    Attack("03", "setuid_program", raise_by_exec, ("flags", "no_new_privs")),
    Attack("04", "abstract_socket", abstract_socket, ("landlock",)),
    Attack("04", "shmat", shared_memory, ("seccomp",)),
    Attack("04", "msgsnd", message_queue, ("seccomp",)),
    Attack("04", "mq_open", posix_queue, ("landlock", "seccomp")),
    Attack("04", "tcp", tcp, ("landlock", "seccomp")),
    Attack("04", "udp", udp, ("seccomp",)),
    Attack("04", "vsock", vsock, ("seccomp",)),
    Attack("04", "netlink", netlink, ("seccomp",)),
    Attack("04", "packets", packets, _AS_ROOT),
    Attack("05", "affinity", widen_affinity, ("cpuset", "seccomp"), needs="two CPUs"),
    Attack("05", "sched_fifo", real_time, _AS_ROOT),
    Attack("05", "nice", less_nice, _AS_ROOT),
    Attack("05", "adjtimex", tune_clock, _AS_ROOT),
    Attack("05", "tiocsti", type_in_terminal, ("session", "seccomp"), needs="terminal"),
    Attack("07", "mprotect_region", write_region, ("write seal",)),
    Attack("07", "truncate_region", truncate_region, ("descriptors", "size seal"), needs="region"),
    Attack("07", "park_on_clock", park_on_clock, ("seccomp",)),
    Attack("07", "wake_neighbours", wake_neighbours, ("seccomp",)),
)
"""Line 06 is about what the host does with what it finds: :data:`TRAPS`. Lines 08 to 11 take whole runs."""


# ── 06: traps for the host's side ────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Trap:
    """Something in a dimension's filesystem that leads astray whoever opens it from outside.

    Attributes:
        name: stable, for comparison between commits.
        path: what the host is told to read, from the dimension's root directory; ``{secret}`` is where the secret is.
        lay: makes it.
    """

    name: str
    path: str
    lay: Callable[[Bait], object]


def _link_to(target: str, path: str) -> None:
    Path(path).symlink_to(target)


TRAPS = (
    Trap("symlink", "data/symlink", lambda bait: _link_to(bait.secret_path, "/data/symlink")),
    Trap(
        "relative_symlink",
        "data/relative",
        lambda bait: _link_to("../" * _CLIMB + bait.secret_path.lstrip("/"), "/data/relative"),
    ),
    Trap(
        "swapped_directory",
        "data/folder/secret",
        lambda bait: _link_to(str(Path(bait.secret_path).parent), "/data/folder"),
    ),
    Trap("dotdot", "data/" + "../" * _CLIMB + "{secret}", lambda bait: None),
    Trap("hard_link", "data/hard", lambda bait: Path("/data/hard").hardlink_to("/log/workload.log")),
    Trap("fifo", "data/fifo", lambda bait: os.mkfifo("/data/fifo")),
)


def socket_of(dimension: str) -> str:
    """The abstract socket on which a dimension listens for its siblings."""
    return f"vcg-escape-{dimension}"


def assail(name: str, regions: tuple[int, ...]) -> None:
    """Lay the traps, try all attacks, leave what came of them; as the dimension of that name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{socket_of(name)}")
        listener.listen()
        given = Bait.from_json(Path("/", BAIT).read_text())
        bait = replace(
            given,
            victims=tuple(pid for pid in given.victims if pid != os.getpid()),
            sockets=tuple(sibling for sibling in given.sockets if sibling != socket_of(name)),
            regions=regions,
        )
        for trap in TRAPS:
            trap.lay(bait)
        # Who was given no region has nothing to damage.
        tried = [attack for attack in ATTACKS if regions or attack.line != "07"]
        outcomes = {attack.name: asdict(attempt(attack, bait)) for attack in tried}
        fresh = Path("/", OUTCOMES).with_suffix(".new")
        fresh.write_text(json.dumps(outcomes))
        fresh.rename(Path("/", OUTCOMES))


def run(dimension: Dimension) -> None:
    """As a workload: attack in the first window, and be good ever after."""
    ticks, tokens, control = dimension._ticks, dimension._tokens, dimension._control
    regions = (
        futex.address_of(ticks, shm.TICKS_HEADER.at("futex")),
        *(futex.address_of(words, 0) for words in (tokens, control)),
    )
    windows = dimension.windows()
    next(windows)
    assail(dimension.name, regions)
    for _ in windows:
        pass


if __name__ == "__main__":  # as a program, behind the freezer gate
    assail(sys.argv[1], ())
