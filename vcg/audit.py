"""What of ours the host still holds: loop devices, mounts, cgroups, processes, SysV objects, sockets, BPF programs.

Read-only, and it trusts no bookkeeping of ours: everything is read from what the kernel itself lists. After the end of
a run the list is empty. During a run it names what that run uses, so the caller decides what a finding means.

Assumes root: other users' ``/proc/PID/mountinfo`` and the list of BPF programs are closed to everybody else.

Traps:

- A lazily unmounted loop device is in no mount table but stays bound until its last descriptor closes. Therefore loops
  are found by ``/sys/block/loop*/loop/backing_file``, which shows a removed image with the suffix `` (deleted)``.
- Mounts live in private namespaces, so the table of every process is read, not only our own.
- The kernel detaches loops and mounts asynchronously: something found right after a run may be gone 200 ms later.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vcg import snapshot, uids
from vcg.linux import bpf, loop, mount, sysvipc

CGROUP_PREFIX = "vcg-"
PROCESS_PREFIX = "vcg:"
KEPT_FILES = frozenset({"host.json", "gate.json", "lock", "epoch"})
"""Files that stay in the state root between runs on purpose, besides snapshots."""

_DELETED = " (deleted)"


@dataclass(frozen=True, order=True)
class Leftover:
    """One object that the host holds for us.

    Attributes:
        kind: loop, mount, cgroup, process, sysv, socket, bpf or file.
        name: what the kernel calls it: a device, path, pid, id.
        detail: what it belongs to.
    """

    kind: str
    name: str
    detail: str


def leftovers(state_root: Path, mount_root: Path, programs: Iterable[str] = ()) -> list[Leftover]:
    """Everything of ours that the host holds, sorted by kind and name.

    Args:
        state_root: directory of the images; it need not exist.
        mount_root: directory under which the dimensions are mounted; it need not exist.
        programs: names of our BPF programs (the kernel keeps their first 15 characters); none means that BPF programs
            are not looked for.

    Raises:
        PermissionError: not root.
    """
    found = [
        *_below(state_root.resolve(), mount_root.resolve()),
        *cgroups(),
        *processes(),
        *sysv_objects(),
        *bpf_programs(programs),
    ]
    return sorted(set(found))


def leftovers_of(supervisor: int, state_root: Path, mount_root: Path) -> list[Leftover]:
    """The same for one run alone, on a host that may have others; and every process of it, whatever its name.

    A run's groups bear the number of its supervisor, and its processes are in one of them, or in the session that the
    supervisor leads.

    Args:
        supervisor: pid of the run's supervisor, dead or alive.

    Raises:
        PermissionError: not root.
    """
    found = [
        *_below(state_root.resolve(), mount_root.resolve()),
        *(item for item in cgroups() if _is_group_of(supervisor, Path(item.name).name)),
        *members(supervisor),
        *sysv_objects(),
    ]
    return sorted(set(found))


def _below(state: Path, mounted: Path) -> Iterator[Leftover]:
    """What belongs to the two roots."""
    bound = loop.backed_by(state).items()
    loops = {device: backing for device, backing in bound if not _is_kept(backing)}
    yield from (Leftover("loop", device.name, str(backing)) for device, backing in loops.items())
    yield from mounts(mounted, {str(device) for device in loops})
    yield from sockets(state)
    yield from files(state)


def members(supervisor: int) -> Iterator[Leftover]:
    """Processes of one run; zombies too."""
    for pid in _pids():
        name, _, fields = _read_or_gone(Path(f"/proc/{pid}/stat")).rpartition(")")
        state, _, _, session, *_ = fields.split() or ["", "", "", ""]
        groups = _read_or_gone(Path(f"/proc/{pid}/cgroup"))
        in_group = any(_is_group_of(supervisor, part) for line in groups.splitlines() for part in line.split("/"))
        if session == str(supervisor) or in_group:
            yield Leftover("process", pid, f"{name.partition('(')[2]}, {state}")


def _is_group_of(supervisor: int, name: str) -> bool:
    return name.startswith(f"{CGROUP_PREFIX}{supervisor}-")


def is_under(path: str, root: Path) -> bool:
    """Whether a path as the kernel prints it, perhaps of a removed file, is the root or lies below it."""
    return Path(path.removesuffix(_DELETED)).is_relative_to(root)


def mounts(mount_root: Path, loop_devices: set[str]) -> Iterator[Leftover]:
    """Mounts below the mount root, or of the given devices, in the mount namespace of any process."""
    seen = set()
    for pid in _views():
        for entry in _mounts_or_gone(pid):
            ours = is_under(str(entry.point), mount_root) or entry.source in loop_devices
            if ours and entry.identifier not in seen:
                seen.add(entry.identifier)
                yield Leftover("mount", str(entry.point), f"{entry.fstype} {entry.source}, seen by pid {pid}")


def cgroups() -> Iterator[Leftover]:
    """The topmost cgroups of ours in every mounted hierarchy."""
    hierarchies = {entry.point for entry in mount.mounts() if entry.fstype in ("cgroup", "cgroup2")}
    for hierarchy in hierarchies:
        for directory, children, _ in os.walk(hierarchy):
            for child in [child for child in children if child.startswith(CGROUP_PREFIX)]:
                children.remove(child)
                cgroup = Path(directory, child)
                members = len(_read_or_gone(cgroup / "cgroup.procs").split())
                yield Leftover("cgroup", str(cgroup), f"{members} processes directly inside")


def processes() -> Iterator[Leftover]:
    """Processes that bear our name, in ``comm`` or as the start of the command line, or a dimension's uid; zombies too.

    The uid tells a program, which bears its own name.
    """
    for pid in _pids():
        comm = _read_or_gone(Path(f"/proc/{pid}/comm")).rstrip("\n")
        command = _read_or_gone(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
        status = _read_or_gone(Path(f"/proc/{pid}/status"))
        uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
        named = comm.startswith(PROCESS_PREFIX) or command.startswith(PROCESS_PREFIX)
        if named or (uid and int(uid[1]) in uids.ALL):
            state = re.search(r"^State:\s+(.*)$", status, re.MULTILINE)
            yield Leftover("process", pid, f"{comm}, {state[1] if state else 'just gone'}")


def sysv_objects() -> Iterator[Leftover]:
    """Shared memory, semaphores and queues that a dimension's uid owns or created."""
    for one in sysvipc.objects():
        if one.uid in uids.ALL or one.creator in uids.ALL:
            yield Leftover("sysv", f"{one.kind} {one.identifier}", f"uid {one.uid}, created by {one.creator}")


def sockets(state_root: Path) -> Iterator[Leftover]:
    """Unix sockets below the state root: bound ones, and their files."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        address = (line.split(maxsplit=7)[7:] or [""])[0]
        if address.startswith("/") and is_under(address, state_root):
            yield Leftover("socket", address, "bound")
    for path, mode in _tree(state_root):
        if stat.S_ISSOCK(mode):
            yield Leftover("socket", str(path), "file")


def files(state_root: Path) -> Iterator[Leftover]:
    """What lies in the state root, but for sockets and what is kept between runs."""
    for path, mode in _tree(state_root):
        if path.name not in KEPT_FILES and not stat.S_ISSOCK(mode) and not _is_kept(path):
            yield Leftover("file", str(path), stat.filemode(mode))


def _is_kept(path: Path) -> bool:
    """Whether it lies in a snapshot, or in what somebody has unpacked there."""
    return any(map(snapshot.is_complete, path.parents))


def bpf_programs(names: Iterable[str]) -> Iterator[Leftover]:
    """Loaded BPF programs with one of these names, as far as the kernel keeps names."""
    wanted = {name[: bpf.NAME_BYTES] for name in names}
    if wanted:
        yield from (Leftover("bpf", str(identifier), name) for identifier, name in bpf.programs() if name in wanted)


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (names are all that is needed)


def _views() -> Iterator[str]:
    """One process for each different table of mounts: what it shows depends on the namespace and on the root."""
    seen = set()
    for pid in _pids():
        view: tuple[str, ...]
        try:
            view = tuple(os.readlink(f"/proc/{pid}/{name}") for name in ("ns/mnt", "root"))  # noqa: PTH115
        except PermissionError:  # one that may not be traced: look at its table itself
            view = (pid,)
        except OSError as error:
            if _is_gone(error):
                continue
            raise
        if view not in seen:
            seen.add(view)
            yield pid


def _tree(root: Path) -> Iterator[tuple[Path, int]]:
    """Every non-directory below a root with its mode; nothing if the root does not exist."""
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            try:
                yield path, path.lstat().st_mode
            except FileNotFoundError:
                continue


def _is_gone(error: OSError) -> bool:
    """Whether the error says that a process, device or cgroup ended while it was being read."""
    return error.errno in (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EINVAL)


def _read_or_gone(path: Path) -> str:
    """Text of a kernel file; empty if its object ended meanwhile."""
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        if _is_gone(error):
            return ""
        raise


def _mounts_or_gone(pid: str) -> list[mount.Mount]:
    """A process's mounts; none if it ended meanwhile."""
    try:
        return mount.mounts(pid)
    except OSError as error:
        if _is_gone(error):
            return []
        raise
