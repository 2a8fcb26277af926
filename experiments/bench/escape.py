"""``vcg bench escape``: every attack from inside all dimensions of the default testbed at once, and its controls.

The attacks are those of ``experiments.bench.attacks``. For each there is

* its outcome in nine real dimensions, which try it at the same time;
* its **positive control**: a process that is confined by the same steps in the same order, but for the defences that
  are said to stop the attack. There it must succeed, or it proves nothing;
* for each of those defences the same with that one switched on: it must stop the attack alone, and in the way that the
  attack names. So whatever stands in the table beside others could not have been switched off by itself: the others
  still stop the attack, as the table shows.

No testbed can switch a defence off: a control takes the list of steps from ``vcg.linux.sandbox`` and leaves some out.

Some steps of confinement are never the only one to stop anything. The bounding set and no_new_privs both bear on what
an exec may add, and on every mount of a dimension so does nosuid; ``entry``, ``pivot`` and ``directory`` each leave
nothing above the root for a working directory to be in.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import stat
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench import native, runtime
from experiments.bench.attacks import (
    ATTACKS,
    BAIT,
    OUTCOMES,
    TRAPS,
    Attack,
    Bait,
    Control,
    Outcome,
    Trap,
    attempt,
    proc_root,
    socket_of,
)
from experiments.bench.figures import Benchmark, Figure, Progress, Tally, figure
from experiments.bench.sieges import SIEGES, besiege
from vcg import shm, uids
from vcg.errors import RunError
from vcg.linux import futex, loop, mount, openat2, prctl, sandbox, sched, seccomp
from vcg.linux.libc import check, libc, syscall
from vcg.plan import Plan
from vcg.run import Run

ATTACKER, VICTIM, GROUP = uids.SPARE[:3]
DEFENCES: dict[str, frozenset[str]] = {
    "pivot": frozenset({"pivot"}),
    "chroot": frozenset({"chroot"}),
    "entry": frozenset({"entry"}),
    "directory": frozenset({"directory"}),
    "flags": frozenset({"flags"}),
    "session": frozenset({"session"}),
    "limits": frozenset({"limits"}),
    "bounding": frozenset({"bounding"}),
    "groups": frozenset({"groups"}),
    "uid": frozenset({"uid"}),
    "capabilities": frozenset({"capabilities"}),
    "no_new_privs": frozenset({"no_new_privs"}),
    "landlock": frozenset({"landlock"}),
    "network": frozenset({"network"}),
    "descriptors": frozenset({"descriptors"}),
    "seccomp": frozenset({"seccomp"}),
    "own uid": frozenset(),
    "dumpable": frozenset(),
    "cpuset": frozenset(),
    "write seal": frozenset(),
    "size seal": frozenset(),
}
"""Each defence, and the steps of confinement without which it is gone; one without steps lies in what is around it."""
PRECAUTIONS = {"beneath": 0x08, "no_symlinks": 0x04, "no_magiclinks": 0x02, "no_xdev": 0x01, "regular": 0, "nodev": 0}
"""Each precaution with which the host's side opens what a dimension has left, and its flag of openat2(2), if any."""
OVERRIDES: dict[str, Any] = {
    "base_window": "50ms",
    "dimensions.*.workload": "experiments.bench.attacks:run",
    "dimensions.*.args": {},
    "dimensions.*.scheduling": "other",
    "dimensions.*.enforce": "none",
    "dimensions.*.devices": ["/dev/null"],
}
"""What makes of any testbed one whose dimensions attack; at a cadence that leaves even an emulated host time for it."""
_HOSTILE_S = 300
_CONTROL_S = 30
_TRAP_S = 2
_PR_SET_DUMPABLE, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 4, 27, 28
_SECBIT_NO_SETUID_FIXUP = 4
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_FILE = struct.pack("<5I", 0x02000001, 1 << _CAP_DAC_OVERRIDE, 0, 0, 0)
"""As the attribute ``security.capability`` holds it: version 2, effective; permitted, inheritable (capabilities(7))."""
_POLL_S = 0.05
_PEER_S = 10
_MOST_BYTES = 1 << 20
_SECRET = "held outside, to be read by nobody inside"


# ── what there is outside ────────────────────────────────────────────────────────────────────────────────────────────
class Outside:
    """Something to be reached for every attack; a context manager, which leaves nothing behind.

    Args:
        place: a directory that everybody may enter.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.tools = place / "tools"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Outside:
        with contextlib.ExitStack() as stack:
            self._arrange(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _arrange(self, stack: contextlib.ExitStack) -> None:
        self.tools.mkdir()
        for name in ("raiser", "i386"):
            native.build(name, self.tools, "-static")
        _equip(self.tools)
        (self.tools / "shown").write_text(_SECRET)
        (self.place / "secret").write_text(_SECRET)
        (self.place / "secret").chmod(0o644)
        name = f"vcg-escape-{os.getpid()}"
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        abstract.bind(f"\0{name}")
        tcp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        tcp.bind(("127.0.0.1", 0))
        for listener in (abstract, tcp):
            listener.listen(256)
        segment = syscall(29, 0, 4096, 0o1666, name="shmget")
        stack.callback(syscall, 31, segment, 0, 0, name="shmctl")
        address = syscall(30, segment, 0, 0, name="shmat")
        ctypes.memmove(address, _SECRET.encode(), len(_SECRET))
        syscall(67, address, name="shmdt")
        queue = syscall(68, 0, 0o1666, name="msgget")
        stack.callback(syscall, 71, queue, 0, 0, name="msgctl")
        mailbox = ctypes.create_string_buffer(name.encode())
        before = os.umask(0)
        try:
            os.close(syscall(240, ctypes.addressof(mailbox), os.O_RDWR | os.O_CREAT, 0o666, 0, name="mq_open"))
        finally:
            os.umask(before)
        stack.callback(lambda: syscall(241, ctypes.addressof(mailbox), name="mq_unlink"))
        image = self.place / "disk"
        image.write_bytes(_SECRET.encode().ljust(1 << 20, b"\0"))
        disk = loop.attach(image)
        stack.callback(os.close, disk.fd)
        root = Path("/").stat()
        self.bait = Bait(
            root=(root.st_dev, root.st_ino),
            secret=_SECRET,
            secret_path=str(self.place / "secret"),
            victims=(os.getpid(),),
            sockets=(name,),
            passing="/data/passing",
            passing_region="/data/region",
            port=tcp.getsockname()[1],
            segment=segment,
            queue=queue,
            mailbox=name,
            disk=disk.device,
            raiser=str(self.tools / "raiser"),
            bearer=str(self.tools / "bearer"),
            plain=str(self.tools / "plain"),
            old_abi=str(self.tools / "i386"),
            device="/dev/null",
            of_group="/data/of_group",
            of_root="/data/of_root",
            of_another="/data/of_another",
        )


def _equip(tools: Path) -> None:
    """Make of one program three: setuid root, with a capability of its own, and as it is."""
    for name in ("plain", "bearer"):
        shutil.copy(tools / "raiser", tools / name)
    (tools / "raiser").chmod(0o4755)
    os.setxattr(tools / "bearer", "security.capability", _CAPABILITY_FILE)


def _plant(data: int, bait: Bait) -> None:
    """Put into a directory what nobody in the dimension may read, or could make."""
    kinds = {bait.of_group: (0, GROUP, 0o640), bait.of_root: (0, 0, 0o600), bait.of_another: (VICTIM, VICTIM, 0o600)}
    for path, (uid, gid, mode) in kinds.items():
        fd = os.open(Path(path).name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=data)
        os.write(fd, bait.secret.encode())
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
        os.close(fd)
    os.mknod("device", stat.S_IFBLK | 0o666, os.makedev(*bait.disk), dir_fd=data)


def _pass(listener: socket.socket, fd: int) -> None:
    """Hand a descriptor to everyone who comes, until the socket is closed."""
    try:
        while True:
            connection, _ = listener.accept()
            with connection:
                socket.send_fds(connection, [b"x"], [fd])
    except OSError:  # closed
        return


def _root_directory() -> int:
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _be_generous() -> Callable[[], None]:
    """Let what this process starts inherit a group, and securebits that keep capabilities over a change of uid.

    Returns:
        What undoes it.
    """
    groups, bits = os.getgroups(), check(libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0), "securebits")
    os.setgroups([*groups, GROUP])
    check(libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "securebits")

    def undo() -> None:
        check(libc.prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0), "securebits")
        os.setgroups(groups)

    return undo


# ── controls ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def control(attack: Attack, outside: Outside) -> Control:
    """Try an attack against all of the confinement but what stops it, then against each of that alone."""
    without = _controlled(attack, frozenset(attack.stopped_by), outside)
    alone = {one: _controlled(attack, frozenset(attack.stopped_by) - {one}, outside) for one in attack.stopped_by}
    return Control(without, alone, attack.stopped_by)


def _controlled(attack: Attack, off: frozenset[str], outside: Outside) -> Outcome:
    filter_ = seccomp.compile_policy(1)
    root = outside.place / "root"
    root.mkdir(exist_ok=True)
    controllers = ("cpuset",) if attack.needs == "two CPUs" else ()
    try:
        with runtime.group(controllers) as group:
            first = min(os.sched_getaffinity(0))
            if attack.needs == "two CPUs" and "cpuset" not in off:
                group.limit(cpus=[first])

            def act() -> Outcome:
                group.enter()
                sched.pin([first])
                if attack.needs == "generous launcher":
                    _be_generous()
                return _confine_and_attempt(attack, off, outside.bait, root, filter_)

            return _in_child(partial(_in_terminal, act) if attack.needs == "terminal" else act)
    finally:
        root.rmdir()


def _in_child(act: Callable[[], Outcome], *, patience_s: float = _CONTROL_S) -> Outcome:
    """What comes of an act in a child, which tells it over descriptor 1: the others are closed."""
    told, tell = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(tell, 1)
            prctl.die_with_parent(parent)
            try:
                outcome = act()
            except BaseException as error:
                outcome = Outcome("broken", f"{type(error).__name__}: {error}"[:1000])
            os.write(1, json.dumps(asdict(outcome)).encode())
        finally:
            os._exit(0)
    os.close(tell)
    try:
        is_over = bool(select.select([told], [], [], patience_s)[0])
        said = os.read(told, 1 << 16) if is_over else b""
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not is_over:
        return Outcome("stuck", f"no end in {patience_s:g} s")
    return Outcome(**json.loads(said)) if said else Outcome("broken", "it ended without a word")


def _in_terminal(act: Callable[[], Outcome]) -> Outcome:
    """Act as a child in the session of a terminal, which is its standard input."""
    os.setsid()
    _, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    os.dup2(terminal, 0)
    return _in_child(act)


def _confine_and_attempt(attack: Attack, off: frozenset[str], bait: Bait, root: Path, filter_: bytes) -> Outcome:
    mount.enter_private_namespace()
    flags = 0 if "flags" in off else mount.MS_NODEV | mount.MS_NOSUID
    mount.mount("tmpfs", root, "tmpfs", flags, "size=16m,mode=755")
    for name in ("data", "tmp"):
        (root / name).mkdir()
        (root / name).chmod(0o777)
    for tool in (bait.raiser, bait.old_abi):
        shutil.copy(tool, root)
    _equip(root)
    data = os.open(root / "data", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _plant(data, bait)
    os.close(data)
    victim = _bystander(signal.pause, uid=VICTIM, is_dumpable="dumpable" in off)
    region = os.memfd_create("vcg-region", os.MFD_ALLOW_SEALING)
    os.ftruncate(region, shm.PAGE)
    if "size seal" not in off:
        os.close(region)
        region = shm.allocate("vcg-region", shm.PAGE)
    if "write seal" not in off:
        shm.seal(region)
    words = shm.attach(region, inherited=True)
    peer = _bystander(partial(_read_for_ever, words))
    for path, passed in ((bait.passing, _root_directory()), (bait.passing_region, region)):
        with _listening(root / path.lstrip("/")) as listener:
            _bystander(partial(_pass, listener, passed))
        if passed != region:
            os.close(passed)
    if attack.needs != "region":
        os.close(region)
    for kind, how in (("directory", os.O_RDONLY), ("o_path", os.O_PATH)):
        if attack.needs == kind:
            os.open("/", how | os.O_DIRECTORY)
    uid = VICTIM if "own uid" in off else ATTACKER
    left_out = frozenset[str]().union(*(DEFENCES[one] for one in off))
    steps = sandbox.enclosure(root, [bait.device]) + sandbox.surrendering(uid, os.getppid(), filter_)
    for name, step in _without_promise(steps) if "no_new_privs" in off else steps:
        if name == "chroot" and {"entry", "pivot"} <= off:
            os.chroot(root)  # nobody has gone there, so "." is not the place
        elif name not in left_out:
            step()
    found = replace(
        bait,
        victims=(victim, *bait.victims),
        raiser="/raiser",
        bearer="/bearer",
        plain="/plain",
        old_abi="/i386",
        regions=(futex.address_of(words, 0),),
    )
    outcome = attempt(attack, found)
    return _seen_by(peer, outcome) if attack.needs in ("region", "peer") else outcome


def _without_promise(steps: sandbox.Steps) -> sandbox.Steps:
    """The steps in an order in which Landlock and the filter can do without no_new_privs: while it is still root."""
    early = [step for step in steps if step[0] in ("landlock", "seccomp")]
    others = [step for step in steps if step not in early]
    at = [name for name, _ in others].index("uid")
    return others[:at] + early + others[at:]


def _read_for_ever(words: memoryview) -> None:
    faulthandler.disable()  # how this ends is looked at, not to be reported
    while True:
        words[0]
        time.sleep(0.001)


def _seen_by(peer: int, outcome: Outcome) -> Outcome:
    """What came of an attack on a region as somebody sees it who reads there: it has succeeded only if he is dead."""
    deadline = time.monotonic() + _PEER_S
    pid, status = os.waitpid(peer, os.WNOHANG)
    while not pid and outcome.verdict == "escaped" and time.monotonic() < deadline:
        time.sleep(0.001)
        pid, status = os.waitpid(peer, os.WNOHANG)
    if pid and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS:
        return Outcome("escaped", f"{outcome.detail}; its peer ended by SIGBUS")
    if pid or outcome.verdict == "escaped":
        return Outcome("broken", f"{outcome.detail}; of its peer came {status:#x}, not SIGBUS")
    return outcome


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that is open to all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen(256)
        yield listener


def _bystander(act: Callable[[], object], *, uid: int = 0, is_dumpable: bool = True) -> int:
    """A process that is not confined; it ends with this one."""
    parent = os.getpid()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            check(libc.prctl(_PR_SET_DUMPABLE, int(is_dumpable), 0, 0, 0), "dumpable")
            prctl.die_with_parent(parent)
            os.write(tell, b"x")
            act()
        finally:
            os._exit(0)
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    return pid


# ── from inside all dimensions at once ───────────────────────────────────────────────────────────────────────────────
def assault(plan: Plan, outside: Outside) -> tuple[dict[str, dict[str, Outcome]], dict[str, Control]]:
    """Run a testbed whose dimensions all attack at once (see :data:`OVERRIDES`).

    Returns:
        For each attack and trap the outcome in every dimension; for each trap what a plain open makes of it.

    Raises:
        RunError: the run did not stay up, or its dimensions did not come to an end with their attacks.
    """
    with contextlib.ExitStack() as stack:
        undo = _be_generous()
        try:
            run = stack.enter_context(Run(plan))
        finally:
            undo()
        supervisor = run.service_pids["supervisor"]
        roots = {d.name: Path(f"/proc/{supervisor}/root{plan.mount_root}", d.name) for d in plan.dimensions}
        siblings = tuple(socket_of(name) for name in roots)
        victims = (*run.dimension_pids.values(), *outside.bait.victims)
        bait = replace(outside.bait, victims=victims, sockets=(*outside.bait.sockets, *siblings))
        if attempt(_OPEN_TO_THE_HOST, bait).verdict != "escaped":
            raise RunError(f"/proc/1/root{bait.secret_path} can't be read by the host itself: it would prove nothing")
        ticks = _region_of(supervisor, "vcg-ticks")
        stack.callback(os.close, ticks)
        directories = {}
        for d in plan.dimensions:
            directory = directories[d.name] = os.open(roots[d.name], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            stack.enter_context(_furnished(directory, bait, run.uids[d.name], ticks))
        run.start()
        left = _await_outcomes(run, directories)
        outcomes = {
            attack.name: {name: found[attack.name] for name, found in left.items() if attack.name in found}
            for attack in ATTACKS
        }
        controls = {}
        for trap in TRAPS:
            path = trap.path.format(secret=bait.secret_path.lstrip("/"), shown=str(outside.tools / "shown").lstrip("/"))
            seen = roots
            if trap.seen_from == "own":
                seen = {name: Path(f"/proc/{pid}/root") for name, pid in run.dimension_pids.items()}
            outcomes[trap.name] = {name: _guarded(trap, root, path) for name, root in seen.items()}
            first = plan.dimensions[0].name
            inside = Path(plan.mount_root, first) if "nodev" in trap.stopped_by else None
            controls[trap.name] = _trapped(trap, seen[first], path, supervisor, inside)
        run.check()  # nobody has died of it
    return outcomes, controls


_OPEN_TO_THE_HOST = Attack("02", "from outside", proc_root, {})


def _region_of(supervisor: int, name: str) -> int:
    """A region of a run, open for writing."""
    for fd in Path(f"/proc/{supervisor}/fd").iterdir():
        if str(fd.readlink()).startswith(f"/memfd:{name}"):
            return os.open(fd, os.O_RDWR | os.O_CLOEXEC)
    raise RunError(f"the supervisor (pid {supervisor}) has no descriptor of {name}")


@contextmanager
def _furnished(directory: int, bait: Bait, uid: int, region: int) -> Iterator[None]:
    """Give a dimension its bait, and somebody who passes a directory in, and a region."""
    data = openat2.open_beneath(directory, "data", os.O_PATH | os.O_DIRECTORY)
    inside = Path(f"/proc/self/fd/{data}")
    _plant(data, bait)
    file = os.open(Path(BAIT).name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=data)
    os.fchown(file, uid, uid)
    os.write(file, bait.to_json().encode())
    os.close(file)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, data)
        root = _root_directory()
        stack.callback(os.close, root)
        for path, fd in ((bait.passing, root), (bait.passing_region, region)):
            listener = stack.enter_context(_listening(inside / Path(path).name))
            thread = threading.Thread(target=_pass, args=(listener, fd))
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)  # to close it would not end the thread's wait
        yield


def _await_outcomes(run: Run, directories: dict[str, int]) -> dict[str, dict[str, Outcome]]:
    deadline = time.monotonic() + _HOSTILE_S
    left: dict[str, dict[str, Outcome]] = {}
    while len(left) < len(directories):
        run.check()
        for name in directories.keys() - left.keys():
            with contextlib.suppress(FileNotFoundError):
                raw = json.loads(openat2.read_file(directories[name], OUTCOMES, _MOST_BYTES))
                left[name] = {attack: Outcome(**told) for attack, told in raw.items()}
        if time.monotonic() > deadline:
            missing = ", ".join(directories.keys() - left.keys())
            raise RunError(f"{missing}: still not done with their attacks after {_HOSTILE_S} s")
        time.sleep(_POLL_S)
    return left


def _guarded(trap: Trap, root: Path, path: str) -> Outcome:
    """What the host's side makes of a trap."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        openat2.read_file(directory, path, _MOST_BYTES)
    except OSError as error:
        how = errno.errorcode.get(error.errno or 0, str(error))
        named = how in trap.stopped_by.values()
        return Outcome("refused", how) if named else Outcome("broken", f"{how}: the trap is not what it should be")
    finally:
        os.close(directory)
    return Outcome("escaped", f"{trap.name}: it was opened")


def _trapped(trap: Trap, root: Path, path: str, supervisor: int, inside: Path | None) -> Control:
    """What is made of a trap without any precaution, and with each of those that stop it.

    Args:
        inside: the dimension's root directory where the supervisor is, to be looked at without ``nodev``; else None.
    """

    def act(only: str) -> Outcome:
        here = root if inside is None else _as_seen_by(supervisor, inside, has_devices=only != "nodev")
        if only not in trap.stopped_by or only == "nodev":
            return _unguarded(trap, here / path)
        openat2._RESOLVE = PRECAUTIONS[only]
        return _guarded(trap, here, path) if only == "regular" else _resolved(trap, here, path)

    without = _in_child(partial(act, ""), patience_s=_TRAP_S)
    if without.verdict == "stuck":
        without = Outcome("escaped", "the host waits for ever")
    alone = {one: _in_child(partial(act, one), patience_s=_TRAP_S) for one in trap.stopped_by}
    return Control(without, alone, trap.stopped_by)


def _as_seen_by(supervisor: int, inside: Path, *, has_devices: bool) -> Path:
    """From now on this process sees the supervisor's mounts, with or without ``nodev`` on this one."""
    syscall(308, os.pidfd_open(supervisor), mount.CLONE_NEWNS, name="setns")
    mount.enter_private_namespace()
    flags = mount.MS_NOSUID if has_devices else mount.MS_NOSUID | mount.MS_NODEV
    mount.mount("", inside, flags=mount.MS_REMOUNT | mount.MS_BIND | flags)
    return inside


def _resolved(trap: Trap, root: Path, path: str) -> Outcome:
    """What becomes of its path by openat2 as it is now, whatever it leads to."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(openat2.open_beneath(directory, path, os.O_PATH))
    except OSError as error:
        return Outcome("refused", errno.errorcode.get(error.errno or 0, str(error)))
    return Outcome("escaped", f"{trap.name}: it was found")


def _unguarded(trap: Trap, path: Path) -> Outcome:
    """What a plain open makes of it."""
    try:
        with path.open("rb") as file:
            if file.read(len(_SECRET)).decode(errors="replace") == _SECRET:
                return Outcome("escaped", "the host read what lies outside")
            if os.fstat(file.fileno()).st_nlink > 1:
                return Outcome("escaped", "the host opened what has another name")
    except OSError as error:
        return Outcome("refused", errno.errorcode.get(error.errno or 0, str(error)))
    return Outcome("broken", f"{trap.name}: the host read what lies inside")


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """The table of attacks; how many escaped, and how many controls did not do what they should."""
    with runtime.directory() as place:
        place.chmod(0o755)
        with Outside(place) as outside:
            progress("controls")
            controls = {attack.name: control(attack, outside) for attack in ATTACKS}
            controls |= {siege.name: siege.control(_empty(place / "control")) for siege in SIEGES}
            attacking = runtime.plan_of("default", place, {**OVERRIDES, "dimensions.*.binds": [str(outside.tools)]})
            plans = [runtime.plan_of("default", place, siege.overrides) for siege in SIEGES]
            tables = []
            for number in range(runs):
                progress(f"attacks, run {number + 1} of {runs}")
                outcomes, of_traps = assault(attacking, outside)
                controls |= of_traps
                for siege, plan in zip(SIEGES, plans, strict=True):
                    progress(f"{siege.name}, run {number + 1} of {runs}")
                    outcomes[siege.name] = besiege(siege, plan)
                tables.append(outcomes)
    escaped = [sum(one.verdict != "refused" for row in table.values() for one in row.values()) for table in tables]
    unsound = sum(not one.is_sound for one in controls.values())
    rows = tuple(row_of(LINES[name], name, [table[name] for table in tables], controls[name]) for name in LINES)
    return [
        figure("attacks", "attempts", [float(sum(map(len, table.values()))) for table in tables]),
        Tally("escapes", sum(escaped), "attempts", min(escaped), max(escaped), HEADINGS, rows),
        figure("unsound_controls", "controls", [float(unsound)]),
    ]


def _empty(place: Path) -> Path:
    place.mkdir(exist_ok=True)
    return place


LINES = dict(
    sorted(
        [
            *((attack.name, attack.line) for attack in ATTACKS),
            *((trap.name, "06") for trap in TRAPS),
            *((siege.name, siege.line) for siege in SIEGES),
        ],
        key=lambda pair: pair[1],
    )
)
"""Everything that is tried, and which line of the list it belongs to, in the order of the list."""
HEADINGS = ("line", "attack", "escaped", "outcome", "without all of these", "stopped by each alone, with")


def row_of(line: str, name: str, runs: list[dict[str, Outcome]], beside: Control) -> tuple[str, ...]:
    """One row of the table: what came of an attack in all dimensions and runs, and its controls."""
    outcomes = [one for run in runs for one in run.values()]
    told = ", ".join(sorted({f"{one.verdict}: {one.detail}" for one in outcomes}))
    failing = "".join(f" NOT BY {one}" for one in beside.failing)
    without = f"{beside.without.verdict}: {beside.without.detail}"
    escaped = sum(one.verdict != "refused" for one in outcomes)
    alone = ", ".join(f"{one} ({found.detail})" for one, found in beside.alone.items())
    return line, name, f"{escaped} of {len(outcomes)}", told, without, alone + failing


BENCHMARK = Benchmark(
    "escape",
    "every attack from inside nine dimensions at once, each with its control",
    3,
    None,
    1 + len(SIEGES),
    measure,
)
