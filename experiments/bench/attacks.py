"""What a dimension must not be able to do, each as something that it tries (``vcg bench escape``, ``test_escape_*``).

An :class:`Attack` is a function that runs in a process of its own, inside: it returns the evidence of its success, or
raises what refused it. It names the defences that stop it, **each of them alone**, and how each refusal shows; where
those are switched off and everything else is on, it must succeed, or it proves nothing (its positive control, see
``experiments.bench.escape``). An attack that fails in any other way than those has not been tried: that is its own
fault, and no defence.

As a workload (``experiments.bench.attacks:run``) or as a program, a dimension tries them all and leaves what came of
them in its own filesystem. It is imported by dimensions: the standard library and ``vcg.linux`` only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from vcg import shm
from vcg.dimension import Dimension
from vcg.linux import futex, landlock, mount
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
_SIBLING_S = 5
_One = TypeVar("_One")


@dataclass(frozen=True)
class Bait:
    """What there is outside to be reached, for those inside.

    Attributes:
        root: device and inode of the host's root directory.
        secret: what the file ``secret_path`` holds; but for what traps lead to, nothing that may be read inside does.
        secret_path: absolute, on the host.
        victims: processes outside: siblings, and one of the host.
        sockets: names of abstract sockets on which somebody outside listens, or will before long.
        passing: path of a Unix socket inside, on which somebody outside passes a directory of the host.
        passing_region: the same for a shared region, open for writing, which others have mapped.
        port: of TCP on the loopback, on which somebody outside listens.
        segment, queue, mailbox: a System V shared memory and message queue, and a POSIX message queue, open to all.
        disk: major and minor number of a block device that begins with the secret.
        raiser, bearer, plain: one program three times, which says as whom it runs and reads a file: setuid root, with
            capabilities of its own, and as any other.
        old_abi: a program that makes a system call of i386.
        device: a granted device node, which is a mount inside.
        of_group, of_root, of_another: files inside that hold the secret: one for root and a group of the launcher's,
            one for root, one for another user.
        regions: addresses of shared memory that is mapped read-only here; the first is that of the clock's futex word.
    """

    root: tuple[int, int] = (0, 0)
    secret: str = ""
    secret_path: str = ""
    victims: tuple[int, ...] = ()
    sockets: tuple[str, ...] = ()
    passing: str = ""
    passing_region: str = ""
    port: int = 0
    segment: int = -1
    queue: int = -1
    mailbox: str = ""
    disk: tuple[int, int] = (0, 0)
    raiser: str = ""
    bearer: str = ""
    plain: str = ""
    old_abi: str = ""
    device: str = ""
    of_group: str = ""
    of_root: str = ""
    of_another: str = ""
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
        stopped_by: the defences (``experiments.bench.escape.DEFENCES``) that stop it, each of them alone, and how that
            shows: the name of an errno, or what :class:`Refused` says. Nothing else counts as a refusal.
        needs: what has to be arranged around its control, beyond the bait.
    """

    line: str
    name: str
    act: Callable[[Bait], str]
    stopped_by: Mapping[str, str]
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of an attack: ``escaped``, ``refused``, ``stuck``, or ``broken`` if the attack itself is at fault."""

    verdict: str
    detail: str


@dataclass(frozen=True)
class Control:
    """An attack without the defences that stop it, and with each of them alone.

    Where there are several, to switch one off is not enough: each of the others still stops it, as ``alone`` shows.

    Attributes:
        expected: how each of them is to show, if that is told.
    """

    without: Outcome
    alone: dict[str, Outcome]
    expected: Mapping[str, str] | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the attack works, and each of its defences does, too."""
        return self.without.verdict == "escaped" and not self.failing

    @property
    def failing(self) -> list[str]:
        """The defences that do not stop it alone, or not in the way that is told."""
        return [
            name
            for name, one in self.alone.items()
            if one.verdict != "refused" or (self.expected is not None and one.detail != self.expected[name])
        ]


class Refused(Exception):
    """It went without an error, and without effect."""


def attempt(attack: Attack, bait: Bait, *, patience_s: float = PATIENCE_S) -> Outcome:
    """Try an attack in a child of this process, and wait for what comes of it."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(tell, json.dumps(asdict(_try(attack, bait))).encode())
        finally:
            os._exit(0)
    os.close(tell)
    is_over = bool(select.select([told], [], [], patience_s)[0])
    said = os.read(told, _PAGE) if is_over else b""
    os.close(told)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if said:
        return Outcome(**json.loads(said))
    if is_over and os.WIFSIGNALED(status):
        return _judged(attack, f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    return Outcome("broken" if is_over else "stuck", "it says nothing")


def _try(attack: Attack, bait: Bait) -> Outcome:
    try:
        return Outcome("escaped", attack.act(bait))
    except Refused as refusal:
        return _judged(attack, str(refusal))
    except OSError as error:
        return _judged(attack, _errno(error))
    except BaseException as error:  # a defect of the attack itself, which must not pass for a defence
        return Outcome("broken", f"{type(error).__name__}: {error}"[:1000])


def _judged(attack: Attack, how: str) -> Outcome:
    """A refusal, if it is one that the attack names: a wrong path or a listener that is gone refuses nothing."""
    if how in attack.stopped_by.values():
        return Outcome("refused", how)
    return Outcome("broken", f"{how}, where {', '.join(sorted({*attack.stopped_by.values()}))} would be a refusal")


def _errno(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def _any(ones: Iterable[_One], act: Callable[[_One], str]) -> str:
    """What the first act says that succeeds.

    Raises:
        Refused: every one has failed; how, each way once.
        ValueError: there is none.
    """
    refusals = set()
    for one in ones:
        try:
            return act(one)
        except OSError as error:
            refusals.add(_errno(error))
    if not refusals:
        raise ValueError("nothing to try it on")
    raise Refused(" and ".join(sorted(refusals)))


# ── 01: out of the root directory ────────────────────────────────────────────────────────────────────────────────────
def _climb(bait: Bait, own: os.stat_result) -> str:
    for _ in range(_CLIMB):
        os.chdir("..")
    here = Path().stat()
    if (here.st_dev, here.st_ino) == bait.root:
        return "stands in the host's root directory"
    if (here.st_dev, here.st_ino) != (own.st_dev, own.st_ino):
        raise RuntimeError(f"climbed to device {here.st_dev}, inode {here.st_ino}: neither the host's root nor its own")
    raise Refused("arrived at its own root")


def nested_chroot(bait: Bait) -> str:
    """The classic way out: another chroot, while the working directory stays above it."""
    own = Path("/").stat()
    Path("/tmp/inner").mkdir(exist_ok=True)
    os.chroot("/tmp/inner")
    return _climb(bait, own)


def climb(bait: Bait) -> str:
    """Up, as far as it goes."""
    return _climb(bait, Path("/").stat())


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
    return _any(bait.victims, lambda victim: f"pid {victim}: {act(victim)}")


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
    own = Path("/").stat()
    syscall(308, os.pidfd_open(bait.victims[-1]), mount.CLONE_NEWNS, name="setns")
    return _climb(bait, own)


def _read_inside(bait: Bait, path: str) -> str:
    if Path(path).read_text() != bait.secret:
        raise RuntimeError(f"{path} does not hold the secret")
    return f"read {path}"


def as_group(bait: Bait) -> str:
    """Read a file by a group that its launcher was in."""
    return _read_inside(bait, bait.of_group)


def as_root(bait: Bait) -> str:
    """Read root's file, without any capability, as its owner."""
    return _read_inside(bait, bait.of_root)


def as_anybody(bait: Bait) -> str:
    """Read another user's file by a capability that outlived the change of uid (SECBIT_NO_SETUID_FIXUP)."""
    return _read_inside(bait, bait.of_another)


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


def filter_socket(bait: Bait) -> str:
    """Put a program of its own before a socket, for which the kernel makes machine code."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(program)))
    return "attached it"


def free_space(bait: Bait) -> str:
    """Ask what is free on the filesystem of the host's root directory, by the number of its device."""
    found = ctypes.create_string_buffer(64)
    syscall(136, bait.root[0], ctypes.addressof(found), name="ustat")
    return f"{struct.unpack_from('i', found)[0]} blocks"


def flush_host(bait: Bait) -> str:
    """Have a filesystem of the host written out: that of a granted device, as it could be that of any bind."""
    fd = os.open(bait.device, os.O_RDONLY)
    syscall(306, fd, name="syncfs")
    return "flushed it"


def take_slots(bait: Bait) -> str:
    """Take some of the operations that all users of the host together may have in flight."""
    context = ctypes.c_ulong()
    syscall(206, 64, ctypes.addressof(context), name="io_setup")
    return f"context {context.value:#x}"


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
    return f"getpid says {_output_of(bait.old_abi)[0]}"


def _output_of(*command: str) -> list[str]:
    """The lines that a program prints.

    Raises:
        Refused: a signal has ended it.
        RuntimeError: it has failed by itself.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise Refused(f"killed by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout.splitlines()


def raise_by_exec(bait: Bait) -> str:
    """Execute a program that is setuid root."""
    (uid,) = _output_of(bait.raiser)
    if uid != "0":
        raise Refused("it runs as anybody")
    return "it runs as root"


def _read_by(program: str, bait: Bait) -> str:
    uid, found = _output_of(program, bait.of_another)
    if found == "EACCES":
        raise Refused("it may not read it")
    if found != bait.secret:
        raise RuntimeError(f"{program} read {found!r}")
    return f"as {uid} it read {bait.of_another}"


def override_by_exec(bait: Bait) -> str:
    """Read another user's file by the capabilities of a program that is setuid root."""
    return _read_by(bait.raiser, bait)


def capability_by_exec(bait: Bait) -> str:
    """The same by those that are noted on the program itself."""
    return _read_by(bait.bearer, bait)


def regain_by_exec(bait: Bait) -> str:
    """The same by those that root has again after any exec."""
    return _read_by(bait.plain, bait)


# ── 04: what crosses a chroot ────────────────────────────────────────────────────────────────────────────────────────
def abstract_socket(bait: Bait) -> str:
    """Connect to an abstract Unix socket of somebody outside."""
    deadline = time.monotonic() + _SIBLING_S

    def act(name: str) -> str:
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                try:
                    connection.connect(f"\0{name}")
                except ConnectionRefusedError:  # a sibling is not there yet; if it never comes, that is no refusal
                    if time.monotonic() > deadline:
                        raise
                else:
                    return f"connected to @{name}"
            time.sleep(0.01)

    return _any(bait.sockets, act)


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
        raise Refused("still on its own CPUs")
    return f"on {sorted(after)}"


def real_time(bait: Bait) -> str:
    """Become a real-time process of the highest priority."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
    return "runs at 99"


def less_nice(bait: Bait) -> str:
    """Become less nice."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "runs at -20"


def huge_page(bait: Bait) -> str:
    """Map memory that no limit of its group counts."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000 | 0x40000  # MAP_NORESERVE, MAP_HUGETLB
    return f"mapped at {syscall(9, 0, 2 << 20, 3, flags, -1, 0, name='mmap'):#x}"


def huge_file(bait: Bait) -> str:
    """The same as a file."""
    return f"descriptor {os.memfd_create('vcg', os.MFD_HUGETLB)}"


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

    def act(address: int) -> str:
        syscall(10, address & -_PAGE, _PAGE, 3, name="mprotect")
        word = ctypes.c_uint8.from_address(address)
        word.value = word.value
        return "wrote to it"

    return _any(bait.regions, act)


def truncate_region(bait: Bait) -> str:
    """Cut a region short below somebody who has it mapped, who gets SIGBUS."""
    for fd in range(3, _HIGHEST_FD):
        try:
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:  # no region
            continue
        os.ftruncate(fd, 0)
        return f"descriptor {fd} has no byte left"
    raise Refused("no region is open")


def _passed_region(bait: Bait) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(bait.passing_region)
        _, (region, *_), _, _ = socket.recv_fds(connection, 1, 1)
    fcntl.fcntl(region, fcntl.F_GET_SEALS)  # it is one
    return region


def truncate_passed_region(bait: Bait) -> str:
    """The same, when somebody outside hands in a descriptor that is open for writing."""
    os.ftruncate(_passed_region(bait), 0)
    return "it has no byte left"


def write_passed_region(bait: Bait) -> str:
    """Map such a region anew, writable, and write."""
    with mmap.mmap(_passed_region(bait), _PAGE) as mapping:
        mapping[0] = mapping[0]
    return "wrote to it"


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
    raise Refused("EAGAIN, every time")


def wake_neighbours(bait: Bait) -> str:
    """Wake everybody out of turn."""
    return f"woke {_clock_futex(bait, 10, 2**31 - 1, None)}"


_DENIED = {"seccomp": "EPERM"}
# What keeps neighbours apart (nobody traces beyond a Landlock domain), and what keeps back what only root may do.
_AS_NEIGHBOUR = {"own uid": "EPERM", "dumpable": "EPERM", "landlock": "EPERM", **_DENIED}
_AS_ROOT = {"uid": "EPERM", "capabilities": "EPERM", **_DENIED}
_NOT_TOPPING = {"uid": "EACCES", "capabilities": "EACCES", **_DENIED}
_NO_FAMILY = {"seccomp": "EAFNOSUPPORT"}
_IS_SCOPED = landlock.abi() >= landlock.SCOPES_SINCE
"""Whether Landlock keeps abstract sockets and signals apart, too."""
_NO_TCP = {"landlock": "EACCES"} if landlock.abi() >= landlock.TCP_SINCE else {}
_NO_SOCKET = {**({"landlock": "EPERM"} if _IS_SCOPED else {}), "network": "ECONNREFUSED"}
_NO_ROUTE = {"network": "ENETUNREACH"}
_AT_ROOT, _UNREAD = "arrived at its own root", "it may not read it"
_NO_DIRECTORY = {"descriptors": "no directory is open", "landlock": "EACCES"}

ATTACKS = (
    Attack("01", "nested_chroot", nested_chroot, {"pivot": _AT_ROOT, **_AS_ROOT}),
    Attack("01", "climb", climb, {"pivot": _AT_ROOT, "chroot": _AT_ROOT}),
    Attack("01", "chroot_without_chdir", climb, {"entry": _AT_ROOT, "pivot": _AT_ROOT, "directory": _AT_ROOT}),
    Attack("01", "inherited_directory", inherited_directory, _NO_DIRECTORY, needs="directory"),
    Attack("01", "inherited_o_path", inherited_directory, _NO_DIRECTORY, needs="o_path"),
    Attack("01", "passed_directory", passed_directory, {"landlock": "EACCES"}),
    Attack(
        "02",
        "proc_root",
        proc_root,
        {"pivot": "ENOENT", "chroot": "ENOENT", "uid": "EACCES", "capabilities": "EACCES", "landlock": "EACCES"},
    ),
    Attack("02", "ptrace", trace, _AS_NEIGHBOUR),
    Attack("02", "process_vm_readv", read_memory, _AS_NEIGHBOUR),
    Attack("02", "pidfd_getfd", take_descriptor, _AS_NEIGHBOUR),
    Attack("02", "signal", signal_neighbour, {"own uid": "EPERM", **({"landlock": "EPERM"} if _IS_SCOPED else {})}),
    Attack("02", "prlimit", read_limits, {"own uid": "EPERM"}),
    Attack("02", "setns", enter_namespace, {**_AS_ROOT, "landlock": "EPERM"}),
    Attack("02", "group_file", as_group, {"groups": "EACCES"}, needs="generous launcher"),
    Attack("02", "root_file", as_root, {"uid": "EACCES"}),
    Attack("02", "kept_capability", as_anybody, {"capabilities": "EACCES"}, needs="generous launcher"),
    Attack("03", "mknod_disk", make_disk, {"flags": "EACCES", **_AS_ROOT, "landlock": "EACCES"}),
    Attack("03", "mount", mount_something, {**_AS_ROOT, "landlock": "EPERM"}),
    Attack("03", "fsopen", open_filesystem, _AS_ROOT),
    Attack("03", "open_tree", clone_tree, _AS_ROOT),
    Attack("03", "umount2", unmount_device, {**_AS_ROOT, "landlock": "EPERM"}),
    Attack("03", "open_by_handle_at", open_by_handle, _AS_ROOT),
    Attack("03", "bpf", load_program, _AS_ROOT),
    Attack("03", "perf_event_open", observe_cpu, _NOT_TOPPING),
    Attack("03", "add_key", add_key, _DENIED),
    Attack("03", "keyctl", read_keyring, _DENIED),
    Attack("03", "userfaultfd", handle_faults, _DENIED),
    Attack("03", "io_uring", use_ring, {"limits": "ENOMEM", **_DENIED}),
    Attack("03", "fanotify", watch_files, _DENIED),
    Attack("03", "socket_filter", filter_socket, _DENIED),
    Attack("03", "ustat", free_space, _DENIED),
    Attack("03", "syncfs", flush_host, _DENIED),
    Attack("03", "unshare_user", unshare_user, _DENIED),
    Attack("03", "clone_user", clone_user, _DENIED),
    Attack("03", "clone3_user", clone3_user, {"seccomp": "ENOSYS"}),
    Attack("03", "personality", odd_personality, _DENIED),
    Attack("03", "young_call", young_call, {"seccomp": "ENOSYS"}),
    Attack("03", "i386", old_abi, {"seccomp": "killed by SIGSYS"}),
    Attack(
        "03", "setuid_program", raise_by_exec, {"flags": "it runs as anybody", "no_new_privs": "it runs as anybody"}
    ),
    Attack("03", "setuid_override", override_by_exec, dict.fromkeys(("flags", "no_new_privs", "bounding"), _UNREAD)),
    Attack(
        "03",
        "file_capability",
        capability_by_exec,
        {"flags": _UNREAD, "no_new_privs": _UNREAD, "bounding": "EPERM"},
    ),
    Attack("03", "regained_by_exec", regain_by_exec, dict.fromkeys(("uid", "no_new_privs", "bounding"), _UNREAD)),
    Attack("04", "abstract_socket", abstract_socket, _NO_SOCKET),
    Attack("04", "shmat", shared_memory, _DENIED),
    Attack("04", "msgsnd", message_queue, _DENIED),
    Attack("04", "mq_open", posix_queue, {"landlock": "EACCES", **_DENIED}),
    Attack("04", "tcp", tcp, {**_NO_TCP, **_NO_FAMILY, **_NO_ROUTE}),
    Attack("04", "udp", udp, {**_NO_FAMILY, **_NO_ROUTE}),
    Attack("04", "vsock", vsock, _NO_FAMILY),
    Attack("04", "netlink", netlink, _NO_FAMILY),
    Attack("04", "packets", packets, {**_AS_ROOT, **_NO_FAMILY}),
    Attack("05", "affinity", widen_affinity, {"cpuset": "still on its own CPUs", **_DENIED}, needs="two CPUs"),
    Attack("05", "sched_fifo", real_time, _AS_ROOT),
    Attack("05", "nice", less_nice, _NOT_TOPPING),
    Attack("05", "adjtimex", tune_clock, _AS_ROOT),
    Attack("05", "io_setup", take_slots, {"seccomp": "ENOSYS"}),
    Attack("05", "huge_page", huge_page, _DENIED),
    Attack("05", "huge_file", huge_file, _DENIED),
    Attack("05", "tiocsti", type_in_terminal, {"session": "EPERM", **_DENIED}, needs="terminal"),
    Attack("07", "mprotect_region", write_region, {"write seal": "EACCES"}),
    Attack("07", "map_passed_region", write_passed_region, {"write seal": "EPERM"}),
    Attack(
        "07",
        "truncate_region",
        truncate_region,
        {"descriptors": "no region is open", "size seal": "EPERM"},
        needs="region",
    ),
    Attack("07", "truncate_passed_region", truncate_passed_region, {"size seal": "EPERM"}, needs="peer"),
    Attack("07", "park_on_clock", park_on_clock, {"seccomp": "EAGAIN, every time"}),
    Attack("07", "wake_neighbours", wake_neighbours, {"seccomp": "EINVAL"}),
)
"""Line 06 is about what the host does with what it finds: :data:`TRAPS`. Lines 08 to 11 take whole runs."""


# ── 06: traps for the host's side ────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Trap:
    """Something in a dimension's filesystem that leads astray whoever opens it from outside.

    Attributes:
        name: stable, for comparison between commits.
        path: what the host is told to read, from the dimension's root directory; ``{secret}`` is where the secret is,
            and ``{shown}`` a file that holds it in a bind inside.
        lay: makes it, from inside; what nobody can make from inside the host has put there (``escape.assault``).
        stopped_by: the precautions (``escape.PRECAUTIONS``) that stop it, each of them alone, and with which errno.
        seen_from: whose mounts the host sees there: the supervisor's, or the dimension's own.
    """

    name: str
    path: str
    lay: Callable[[Bait], object]
    stopped_by: Mapping[str, str]
    seen_from: str = "supervisor"


def _link_to(target: str, path: str) -> None:
    Path(path).symlink_to(target)


_LEADS_OUT = {"beneath": "EXDEV", "no_xdev": "EXDEV", "no_symlinks": "ELOOP"}

TRAPS = (
    Trap("symlink", "data/symlink", lambda bait: _link_to(bait.secret_path, "/data/symlink"), _LEADS_OUT),
    Trap(
        "relative_symlink",
        "data/relative",
        lambda bait: _link_to("../" * _CLIMB + bait.secret_path.lstrip("/"), "/data/relative"),
        _LEADS_OUT,
    ),
    Trap(
        "swapped_directory",
        "data/folder/secret",
        lambda bait: _link_to(str(Path(bait.secret_path).parent), "/data/folder"),
        _LEADS_OUT,
    ),
    Trap(
        "magic_link",
        "data/magic",
        lambda bait: _link_to(f"/proc/self/root{bait.secret_path}", "/data/magic"),
        {**_LEADS_OUT, "no_magiclinks": "ELOOP"},
    ),
    Trap(
        "dotdot",
        "data/" + "../" * _CLIMB + "{secret}",
        lambda bait: None,
        {"beneath": "EXDEV", "no_xdev": "EXDEV"},
    ),
    Trap("bind", "{shown}", lambda bait: None, {"no_xdev": "EXDEV"}, seen_from="own"),
    Trap(
        "hard_link",
        "data/hard",
        lambda bait: Path("/data/hard").hardlink_to("/log/workload.log"),
        {"regular": "EINVAL"},
    ),
    Trap("fifo", "data/fifo", lambda bait: os.mkfifo("/data/fifo"), {"regular": "EINVAL"}),
    Trap("device", "data/device", lambda bait: None, {"nodev": "EACCES", "regular": "EINVAL"}),
)


def socket_of(dimension: str) -> str:
    """The abstract socket on which a dimension listens for its siblings."""
    return f"vcg-escape-{dimension}"


@contextmanager
def assail(name: str, regions: tuple[int, ...]) -> Iterator[None]:
    """Lay the traps, try all attacks, leave what came of them; as the dimension of that name.

    Until the block is left its siblings find it listening.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{socket_of(name)}")
        listener.listen(_HIGHEST_FD)
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
        yield


def run(dimension: Dimension) -> None:
    """As a workload: attack in the first window, and be good ever after."""
    ticks, tokens, control = dimension._ticks, dimension._tokens, dimension._control
    regions = (
        futex.address_of(ticks, shm.TICKS_HEADER.at("futex")),
        *(futex.address_of(words, 0) for words in (tokens, control)),
    )
    windows = dimension.windows()
    next(windows)
    with assail(dimension.name, regions):
        for _ in windows:
            pass
