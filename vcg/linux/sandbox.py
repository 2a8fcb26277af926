"""The order of confinement of a dimension's process.

Each step takes away something that a later one would need; the order is the design. While still root and unconfined:
cgroups, scheduling class, affinity, memory policy (the caller's part). Then :func:`enclose` changes what the process
can see, and :func:`surrender` what it may do.

Traps: a bind-mounted device node works on a ``nodev`` root, a node made there with mknod does not; PDEATHSIG is lost at
a change of uid; after the change of uid there is no way back, so everything that needs a capability comes before.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

from vcg.linux import mount, prctl

OPEN_FILES = 256


def enclose(root: Path, devices: Sequence[str]) -> None:
    """Make ``root`` (a mount point) all there is: own mount namespace, pivot, chroot.

    Args:
        devices: host paths of the device nodes to show under the same name; bind-mounted, never made.
    """
    os.setsid()
    mount.enter_private_namespace()
    mount.bind(root, root)
    mount.mount("", root, flags=mount.MS_REMOUNT | mount.MS_BIND | mount.MS_NODEV | mount.MS_NOSUID | mount.MS_NOATIME)
    for device in devices:
        target = root / device.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        mount.bind(device, target)
    mount.pivot_into(root)
    os.chroot(".")
    os.chdir("/")


def surrender(uid: int, parent: int) -> None:
    """Give up everything that root is, for good: limits, capabilities, groups, uid, descriptors.

    Args:
        uid: also the gid; the dimension's own.
        parent: when it ends, so does this process.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    os.umask(0o077)
    prctl.drop_bounding_set()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    prctl.die_with_parent(parent)
    prctl.forbid_new_privileges()
    prctl.forbid_inspection()
    prctl.close_from(3)
