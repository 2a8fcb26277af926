"""The defences that depend on the host's kernel: whether they are here, what each is for, and how to get them.

A run does with those that there are. ``vcg doctor`` says which are missing; a testbed that must not run without one
lists it: ``require = ["landlock"]``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vcg.errors import HostError
from vcg.linux import cgroup, landlock, seccomp

_LANDLOCK_FIX = "CONFIG_SECURITY_LANDLOCK, and landlock among lsm= on the kernel command line"
_ENTER_ROOT_GROUP = (
    "a group that holds processes can't hand controllers down, only the root of the tree can: start from there with "
    "sudo sh -c 'echo 0 >/sys/fs/cgroup/cgroup.procs && exec vcg …'"
)

NEEDED_FOR = {
    "landlock": "a second wall around a dimension's files, whatever descriptor it gets hold of",
    "landlock-scopes": "keeping abstract Unix sockets and signals inside; without it networks and uids of their own do",
    "seccomp": "refusing system calls to a dimension; without it there are TCP, System V IPC and keys between them",
    "cpu": "CPU weights of SCHED_OTHER dimensions; without it all weigh the same",
    "cpuset": "pinning by the kernel; without it by affinity and the filter of system calls",
    "io": "limits on I/O; without it there are none",
    "memory": "memory limits; without it there are none",
    "pids": "limits on forks; without it by the number of processes of a uid",
}
"""What a testbed may require, and what it is good for."""


class Finding(NamedTuple):
    """Whether a defence is here; what was found in its place; what to do about it."""

    is_here: bool
    found: str
    fix: str


def examine(name: str) -> Finding:
    """Look for one of :data:`NEEDED_FOR` on this host."""
    return _PROBES[name]() if name in _PROBES else controller(cgroup.observe(), name)


def _landlock(least: int) -> Finding:
    found = landlock.abi()
    fix = _LANDLOCK_FIX if not found else "Linux 6.12 or newer"
    return Finding(found >= least, f"ABI {found}" if found else "none that can be used", fix)


def _seccomp() -> Finding:
    if not seccomp.is_available():
        return Finding(False, "none", "CONFIG_SECCOMP_FILTER")
    try:
        seccomp.compile_policy(None)
    except HostError as error:
        return Finding(False, str(error), "apt-get install libseccomp2")
    return Finding(True, "filters of system calls", "")


_PROBES: dict[str, Callable[[], Finding]] = {
    "landlock": lambda: _landlock(landlock.RENAMES_SINCE),
    "landlock-scopes": lambda: _landlock(landlock.SCOPES_SINCE),
    "seccomp": _seccomp,
}


def controller(observed: cgroup.Hierarchies, name: str) -> Finding:
    """Whether one of :data:`cgroup.CONTROLLERS` serves our groups; if not, where it stops."""
    backend, unified = observed.backend(name), observed.unified
    if backend:
        where = unified if backend == "v2" else observed.v1[name]
        but = "; not of what the kernel writes back later" if name == "io" and backend == "v1" else ""
        return Finding(True, f"{backend}, below {where}{but}", "")
    fix = "mount its v1 hierarchy, or boot with the controller in the v2 tree (systemd.unified_cgroup_hierarchy=1)"
    found = "neither in the v2 tree nor mounted as v1"
    if unified and name in _words(unified / "cgroup.controllers"):
        handed_down = ", ".join(sorted(_words(unified / "cgroup.subtree_control"))) or "nothing"
        found = f"there, but {unified}, in which this process was started, hands down {handed_down}"
        is_root = not (unified / "cgroup.type").exists()  # only the root of the tree has no such file
        fix = f"echo +{name} >{unified / 'cgroup.subtree_control'}" if is_root else _ENTER_ROOT_GROUP
    return Finding(False, found, fix)


def _words(file: Path) -> set[str]:
    return set(file.read_text().split()) if file.exists() else set()
