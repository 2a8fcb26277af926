"""The state root: whose it is, what the run in it has built, and how a start clears away what the last one left.

Normally a run takes everything with it: mounts live in a namespace that dies with its processes, loop devices clear
themselves at their last close. What survives a SIGKILL of the supervisor are processes that it could not end, cgroup
directories and files. The journal names them *before* they are made, so :meth:`StateRoot.reconcile` finds whatever
there is, and touches nothing else: a state root may hold files of others, too.

Traps: the lock of the state root is a POSIX record lock (fcntl(2)), because a surviving fork would keep a flock; in
return, closing *any* descriptor of the lock file in this process gives the lock up. The mount root is a directory,
which only flock(2) can lock; to remove it under another run would detach that run's mounts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vcg import audit, snapshot, uids
from vcg.errors import RunError
from vcg.linux import cgroup, loop, mount

RECONCILE_S = 10.0
SOCKET_PATH_BYTES = 107
"""unix(7): the longest path of a socket."""
_POLL_S = 0.002
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StateRoot:
    """The locked state root of a run. A context manager: the lock is held inside the block.

    Args:
        path: of the directory; made if it does not exist. Symlinks are resolved, because the kernel names the backing
            files of loop devices so.

    Attributes:
        epoch: of this run; 0 before :meth:`next_epoch`.

    Raises:
        RunError: (on entry) another run holds it, or its path is too long for a socket in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.epoch = 0
        self._fd = -1
        self._own: dict[str, Any] = {}

    @property
    def journal(self) -> Path:
        return self.path / "run.json"

    def image(self, name: str) -> Path:
        """Where the filesystem of a dimension lies in this run; no other run has a file of the same name."""
        return self.path / f"{name}.{self.epoch}.img"

    @property
    def socket(self) -> Path:
        """Where subscribers of the RTD connect."""
        return self.path / "rtd.sock"

    @property
    def control(self) -> Path:
        """Where requests to the run are made, see ``vcg.control``."""
        return control_socket(self.path)

    def __enter__(self) -> Self:
        longest = max(len(os.fsencode(path)) for path in (self.socket, self.control))
        if longest > SOCKET_PATH_BYTES:
            raise RunError(
                f"state root {self.path}: a socket's path in it would have {longest} bytes, "
                f"expected at most {SOCKET_PATH_BYTES}: choose a shorter one"
            )
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
        self.epoch = self._read(path, int) + 1 if path.exists() else 1
        self._replace(path, str(self.epoch))
        return self.epoch

    def note(
        self,
        epoch: int,
        cgroups: Sequence[Path],
        mount_root: Path,
        made_mount_root: bool,
        snapshots: Path | None = None,
        first_uid: int | None = None,
        images: Sequence[Path] = (),
    ) -> None:
        """Journal what is about to be built.

        Args:
            snapshots: where the run will make some, if asked to.
            first_uid: of the range of its dimensions, see ``vcg.uids``.
            images: files directly in the state root.

        Raises:
            RunError: there is a file in the place of an image, so it is somebody else's.
        """
        if foreign := [str(path) for path in images if os.path.lexists(path)]:
            raise RunError(
                f"{', '.join(foreign)}: there already, and of no run that the journal names: move it away, "
                "or choose another state_root"
            )
        self._own = {
            "epoch": epoch,
            "supervisor": os.getpid(),
            "cgroups": [str(path) for path in cgroups],
            "mount_root": str(mount_root),
            "made_mount_root": made_mount_root,
            "snapshots": None if snapshots is None else str(snapshots),
            "first_uid": first_uid,
            "images": [str(path) for path in images],
            "boot": _BOOT_ID.read_text(),
        }
        self._replace(self.journal, json.dumps(self._own))

    def _read(self, path: Path, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(path.read_text())
        except (ValueError, RecursionError) as error:
            raise _damaged(path, str(error)) from None

    def _noted(self) -> dict[str, Any]:
        """What the journal says; nothing if there is none.

        Raises:
            RunError: it is not what :meth:`note` wrote, in whatever version.
        """
        if not self.journal.exists():
            return {}
        noted = self._read(self.journal, json.loads)
        if not isinstance(noted, dict):
            raise _damaged(self.journal, "expected an object")
        if wrong := [field for field, is_right in _JOURNAL.items() if not is_right(noted.get(field))]:
            raise _damaged(self.journal, f"{', '.join(wrong)}: missing, or not as written")
        return noted

    def _replace(self, path: Path, text: str) -> None:
        """Let a file have another content, all of it or nothing.

        Raises:
            OSError: with the path; ENOSPC if the disk is full.
        """
        fresh = _fresh(path)
        try:
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from None

    def reconcile(self) -> list[str]:
        """Undo whatever an earlier run left behind; idempotent, and safe to be killed in the middle.

        Only under the lock. Processes first, since they hold the rest.

        Returns:
            What could not be undone, a line each; empty is the normal case.
        """
        deadline_ns = time.monotonic_ns() + int(RECONCILE_S * 1e9)
        noted = self._own or self._noted()  # our own also if somebody has removed the journal, or all of the state root
        directories = [Path(path) for path in noted.get("cgroups", ())]
        images = [Path(path) for path in noted.get("images") or ()]
        mount_root = Path(noted["mount_root"]) if noted else None
        steps: list[Callable[[], list[str]]] = [
            lambda: [f"process {pid} of a run survives SIGKILL" for pid in cgroup.kill(directories, deadline_ns)],
            lambda: _unmount_below(mount_root) if mount_root else [],
            lambda: self._give_loops_back(images, deadline_ns),
            lambda: [f"cgroup {path} can't be removed" for path in cgroup.remove(directories, deadline_ns)],
            lambda: self._remove_files(images),
            lambda: _sweep_uids(noted),
            lambda: _discard_parts(noted) if noted else [],
            lambda: _remove_mount_root(mount_root) if mount_root and noted["made_mount_root"] else [],
        ]
        problems = [problem for step in steps for problem in attempt(step)]
        if noted and not problems:
            problems = attempt(lambda: _verify(noted, deadline_ns))
        if not problems:
            self.journal.unlink(missing_ok=True)
            self._own = {}
        return problems

    def _give_loops_back(self, images: Sequence[Path], deadline_ns: int) -> list[str]:
        for device in self._loops(images):
            loop.detach(device)
        while (bound := self._loops(images)) and time.monotonic_ns() < deadline_ns:
            time.sleep(_POLL_S)
        return [f"{device} is still bound to {image}" for device, image in bound.items()]

    def _loops(self, images: Sequence[Path]) -> dict[Path, Path]:
        """Devices bound to these images."""
        return {device: image for device, image in loop.backed_by(self.path).items() if image in images}

    def _remove_files(self, images: Sequence[Path]) -> list[str]:
        half_written = (_fresh(path) for path in (self.journal, self.path / "epoch"))
        for leftover in (*images, *half_written, self.socket, self.control):
            leftover.unlink(missing_ok=True)
        return []


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_JOURNAL: dict[str, Callable[[object], bool]] = {
    "epoch": _is_number,
    "supervisor": _is_number,
    "cgroups": _are_texts,
    "mount_root": _is_text,
    "made_mount_root": lambda value: isinstance(value, bool),
    "snapshots": lambda value: value is None or _is_text(value),
    "first_uid": lambda value: value is None or _is_number(value),
    "images": lambda value: value is None or _are_texts(value),
}
"""What the fields of the journal must be; those that an older version did not have may be missing."""


def _damaged(path: Path, how: str) -> RunError:
    return RunError(f"{path}: damaged ({how}): look at it, then remove it")


def _fresh(path: Path) -> Path:
    """Where a file is written before it replaces the one of before."""
    return path.with_suffix(".new")


def control_socket(state_root: Path) -> Path:
    """Where a run with this state root takes requests."""
    return state_root / "control.sock"


def _sweep_uids(noted: dict[str, Any]) -> list[str]:
    """Remove what outlives the processes of its users."""
    if noted.get("first_uid") is not None:
        uids.sweep(noted["first_uid"])
    return []


def _discard_parts(noted: dict[str, Any]) -> list[str]:
    """Remove snapshots that a run has begun and not finished; the others stay."""
    if noted.get("snapshots"):
        run = snapshot.run_name(noted["supervisor"], noted["epoch"])
        snapshot.discard_parts(Path(noted["snapshots"]), run)
    return []


def _verify(noted: dict[str, Any], deadline_ns: int) -> list[str]:
    """What the host still lists of a dead run although all that was journalled is gone, a line each."""
    while (left := _listed(noted)) and time.monotonic_ns() < deadline_ns:
        time.sleep(_POLL_S)
    return left


def _listed(noted: dict[str, Any]) -> list[str]:
    """Groups that bear a dead run's name, and processes of the session that its supervisor led.

    A service may have been killed, or kill itself, on its way into its group. The kernel gives the number of a session
    to nobody else while anything is in it; so it means nothing once somebody else has it, or after a boot. Zombies hold
    nothing.
    """
    supervisor = noted["supervisor"]
    if noted.get("boot") != _BOOT_ID.read_text() or Path(f"/proc/{supervisor}").exists():
        return []
    name = f"{audit.CGROUP_PREFIX}{supervisor}-{noted['epoch']}"
    groups = [item.name for item in audit.cgroups() if Path(item.name).name == name]
    processes = [item for item in audit.members(supervisor) if not item.detail.endswith(", Z")]
    return [
        *(f"cgroup {group} of a run is left, and was never journalled: remove it" for group in groups),
        *(f"process {item.name} ({item.detail}) of a run is left, outside its groups: end it" for item in processes),
    ]


def attempt(step: Callable[[], list[str] | None]) -> list[str]:
    """Do one step of undoing; what keeps it from being done becomes a line, so that the others are still done."""
    try:
        return step() or []
    except OSError as error:
        return [f"{error.filename}: {error.strerror}" if error.filename else str(error)]


def clear(path: Path) -> list[str]:
    """Take the lock of a state root whose supervisor died, and reconcile it."""
    with StateRoot(path) as state:
        return state.reconcile()


def lock_mount_root(path: Path) -> int:
    """Claim the directory under which a run mounts; the claim ends with the returned descriptor.

    Raises:
        RunError: another run has it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RunError(
            f"mount root {path} is in use by another run: wait for it, stop it, or give this one its own mount_root"
        ) from None
    return fd


def _unmount_below(root: Path) -> list[str]:
    """Detach mounts at or under ``root`` in our own namespace, innermost first; normally there are none."""
    points = {one.point for one in mount.mounts()}
    for point in sorted((p for p in points if p == root or root in p.parents), reverse=True):
        mount.unmount(point, detach=True)
    return []


def _remove_mount_root(root: Path) -> list[str]:
    """Remove a mount root that a run of ours made, unless it has come to be used by somebody else."""
    if not root.is_dir() or any(root.iterdir()):
        return []
    try:
        fd = lock_mount_root(root)
    except RunError:
        return []
    try:
        root.rmdir()
    finally:
        os.close(fd)
    return []
