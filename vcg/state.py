"""The state root: whose it is, what the run in it has built, and how a start clears away what the last one left.

Normally a run takes everything with it: mounts live in a namespace that dies with its processes, loop devices clear
themselves at their last close. What survives a SIGKILL of the supervisor are processes that it could not end, cgroup
directories and files. The journal names them *before* they are made, so :func:`reconcile` finds whatever there is.

Trap: the lock is a POSIX record lock (fcntl(2)), because a surviving fork would keep a flock; in return, closing *any*
descriptor of the lock file in this process gives the lock up.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vcg.errors import RunError
from vcg.linux import cgroup, loop, mount

RECONCILE_S = 10.0
_POLL_S = 0.002


class StateRoot:
    """The locked state root of a run. A context manager: the lock is held inside the block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    @property
    def journal(self) -> Path:
        return self.path / "run.json"

    def image(self, name: str) -> Path:
        return self.path / f"{name}.img"

    @property
    def socket(self) -> Path:
        """Where subscribers of the RTD connect."""
        return self.path / "rtd.sock"

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode().strip() or "unknown"
            os.close(self._fd)
            raise RunError(
                f"state root {self.path} is in use by another run (pid {holder}): "
                "wait for it, stop it, or give this one its own state_root and mount_root"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def next_epoch(self) -> int:
        """Raise the boot epoch, durably, and return it: tokens and reports of earlier runs are told apart by it."""
        path = self.path / "epoch"
        epoch = int(path.read_text()) + 1 if path.exists() else 1
        self._replace(path, str(epoch))
        return epoch

    def note(self, epoch: int, cgroups: Sequence[Path], mount_root: Path, made_mount_root: bool) -> None:
        """Journal what is about to be built."""
        content = {
            "epoch": epoch,
            "supervisor": os.getpid(),
            "cgroups": [str(path) for path in cgroups],
            "mount_root": str(mount_root),
            "made_mount_root": made_mount_root,
        }
        self._replace(self.journal, json.dumps(content))

    def _replace(self, path: Path, text: str) -> None:
        fresh = path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def reconcile(self) -> list[str]:
        """Undo whatever an earlier run left behind; idempotent, and safe to be killed in the middle.

        Only under the lock. Processes first, since they hold the rest.

        Returns:
            What could not be undone, a line each; empty is the normal case.
        """
        deadline_ns = time.monotonic_ns() + int(RECONCILE_S * 1e9)
        problems: list[str] = []
        noted = json.loads(self.journal.read_text()) if self.journal.exists() else {}
        directories = [Path(path) for path in noted.get("cgroups", ())]
        alive = cgroup.kill(directories, deadline_ns, spare=frozenset({os.getpid()}))
        problems += [f"process {pid} of an earlier run survives SIGKILL" for pid in alive]
        for point in _mounts_below(Path(noted["mount_root"])) if noted else ():
            mount.unmount(point, detach=True)
        for device in loop.backed_by(self.path):
            loop.detach(device)
        while (bound := loop.backed_by(self.path)) and time.monotonic_ns() < deadline_ns:
            time.sleep(_POLL_S)
        problems += [f"{device} is still bound to {image}" for device, image in bound.items()]
        problems += [f"cgroup {path} can't be removed" for path in cgroup.remove(directories, deadline_ns)]
        for leftover in [*self.path.glob("*.img"), self.socket]:
            leftover.unlink(missing_ok=True)
        if noted.get("made_mount_root") and not problems:
            root = Path(noted["mount_root"])
            if root.is_dir() and not any(root.iterdir()):
                root.rmdir()
        if not problems:
            self.journal.unlink(missing_ok=True)
        return problems


def clear(path: Path) -> list[str]:
    """Take the lock of a state root whose supervisor died, and reconcile it."""
    with StateRoot(path) as state:
        return state.reconcile()


def _mounts_below(root: Path) -> list[Path]:
    """Mount points at or under ``root`` in our own namespace, innermost first."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((p for p in points if p == root or root in p.parents), reverse=True)


def free_bytes(path: Path) -> int:
    """Space that is left on the filesystem of ``path``."""
    return shutil.disk_usage(path).free
