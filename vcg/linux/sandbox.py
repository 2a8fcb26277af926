"""The order of confinement of a dimension's process.

Each step takes away something that a later one would need; the order is the design, and stands here as two lists of
named steps. While still root and unconfined: cgroups, the import of the workload (inside there is no Python), affinity,
memory policy (the caller's part). Then :func:`enclosure` changes what the process can see. Its scheduling class comes
only now, still as root: to mount takes a millisecond of CPU, and a dimension that is launched again would take that
from its neighbours' windows. Last, :func:`surrendering` changes what it may do. All of it stays over an exec, but for
the dumpable flag, which a program gets back with its new image; what that kept away from siblings, their different uids
do, and the filter.

Traps: a step counts for the calling thread or process alone, so no other may have been begun by then; a bind-mounted
device node works on a ``nodev`` root, a node made there with mknod does not; PDEATHSIG is lost at a change of uid;
after the change of uid there is no way back, so everything that needs a capability comes before; Landlock and the
filter need no_new_privs, and the filter comes last, because it refuses much of the rest.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vcg.linux import landlock, mount, netns, prctl, seccomp

Steps = list[tuple[str, Callable[[], object]]]
"""What is done, in this order, each under its name; a test leaves one out to see what it was good for."""

LIMITS: Mapping[int, int] = {
    resource.RLIMIT_CORE: 1,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 256,
}
"""Hard and soft; how large files may become is the filesystem's to say, and how much memory the cgroup's.

A core of at most one byte is none. At 0 the kernel would still start the helper of a piped ``core_pattern`` for whoever
crashes, as root and outside; at 1 it does not (core(5), fs/coredump.c). The filter refuses to lower it.
"""
_READ_ONLY = mount.MS_REMOUNT | mount.MS_BIND | mount.MS_RDONLY | mount.MS_NODEV | mount.MS_NOSUID


def take(steps: Steps) -> None:
    """Do them all."""
    for _, step in steps:
        step()


def enclosure(root: Path, devices: Sequence[str], binds: Sequence[str] = ()) -> Steps:
    """Make ``root`` (a mount point) all there is: own mount namespace, own network, pivot, chroot.

    Args:
        devices: host paths of the device nodes to show under the same name; bind-mounted, never made.
        binds: host paths of files and directories to show under the same name, read-only.
    """
    flags = mount.MS_REMOUNT | mount.MS_BIND | mount.MS_NODEV | mount.MS_NOSUID | mount.MS_NOATIME
    return [
        ("session", os.setsid),
        ("namespace", mount.enter_private_namespace),
        *([("network", netns.enter_own)] if netns.is_available() else []),
        ("root", lambda: mount.bind(root, root)),
        ("flags", lambda: mount.mount("", root, flags=flags)),
        ("devices", lambda: _show(devices, root)),
        ("binds", lambda: _show(binds, root, _READ_ONLY)),
        ("entry", lambda: os.chdir(root)),
        ("pivot", lambda: mount.pivot_into(root)),
        ("chroot", lambda: os.chroot(".")),
        ("directory", lambda: os.chdir("/")),
    ]


def _show(paths: Sequence[str], root: Path, flags: int = 0) -> None:
    for path in paths:
        target = root / path.lstrip("/")
        if Path(path).is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        mount.bind(path, target)
        if flags:
            mount.mount("", target, flags=flags)


def surrendering(
    uid: int, parent: int, filter_: bytes = b"", groups: Sequence[int] = (), processes: int | None = None
) -> Steps:
    """Give up everything that root is, for good: limits, capabilities, groups, uid, descriptors, system calls.

    Args:
        uid: also the gid; the dimension's own.
        parent: when it ends, so does this process.
        filter_: of system calls, see :func:`vcg.linux.seccomp.compile_policy`; empty where the kernel has none.
        groups: that the granted devices need, see :func:`groups_of`.
        processes: most of this uid on the whole host, where no cgroup limits them.
    """
    limits = {**LIMITS, **({} if processes is None else {resource.RLIMIT_NPROC: processes})}
    return [
        ("limits", lambda: _lower(limits)),
        ("umask", lambda: os.umask(0o077)),
        ("bounding", prctl.drop_bounding_set),
        ("groups", lambda: os.setgroups(groups)),
        ("uid", lambda: _become(uid)),
        ("capabilities", prctl.drop_capabilities),
        ("death", lambda: prctl.die_with_parent(parent)),
        ("no_new_privs", prctl.forbid_new_privileges),
        ("dumpable", prctl.forbid_inspection),
        ("landlock", lambda: landlock.restrict(landlock.abi())),
        ("descriptors", lambda: prctl.close_from(3)),
        ("seccomp", lambda: seccomp.install(filter_)),
    ]


def _lower(limits: Mapping[int, int]) -> None:
    """Set resource limits, hard and soft, none above what it is: raising a hard one takes a capability of its own."""
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _become(uid: int) -> None:
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def groups_of(devices: Sequence[str]) -> list[int]:
    """The groups without which granted devices could not be opened: those of nodes that are closed to all others.

    Root's own group is never among them: it opens more than devices.
    """
    found = [Path(device).stat() for device in devices]
    return sorted({node.st_gid for node in found if node.st_gid and not node.st_mode & (stat.S_IROTH | stat.S_IWOTH)})
