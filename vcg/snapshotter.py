"""The snapshotter: takes snapshots of dimensions (``python -m vcg.snapshotter``), at normal priority.

A snapshot is taken of a dimension that has died, on demand, and, for those whose testbed wants it, when the kernel has
killed something in it for want of memory or when it has missed so many windows in a row. The last two this process
finds out by looking ten times a second.

The order: write out what the filesystem holds back while its dimension still runs, because that takes longest; freeze
it; write out the rest; copy; thaw. Writing its evidence down comes after that. Nothing is frozen but the processes:
FIFREEZE would stay if we were killed.

A dimension is frozen by a control group around its own (:attr:`vcg.linux.cgroup.Group.cell`), because its own is the
gate's and the orchestrator's to freeze and thaw, whatever we are doing. Should this process die, the supervisor thaws
it.

So an image is at rest and complete when it is copied, and e2fsck has nothing to say to it, but that it is of a mounted
filesystem, and one thing more: a file that a process still had open after it was removed is damage to e2fsck (exit
code 4). Of a dimension whose processes have all died there is no such file.

Whatever a dimension wrote is hostile input: its status page is copied before it is read, and its files are opened
through ``vcg.linux.openat2``. It lives in the supervisor's mount namespace, and holds descriptors in a dimension's
filesystem only while it copies it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vcg import archive, service, shm, snapshot, storage
from vcg.errors import RunError
from vcg.linux import clock, copying, kmsg, openat2, sched
from vcg.linux.cgroup import Freezer
from vcg.lookout import Lookout, record_at
from vcg.plan import DimensionPlan, Plan
from vcg.shm import Cause, Outcome, Phase
from vcg.snapshot import Part

FORMAT = 1
"""Of the JSON; raised when a field changes its meaning."""
WINDOWS_KEPT = 1000
TOKENS_KEPT = 16
LOG_BYTES = 1 << 16
KERNEL_LINES = 1000
PAPERS_BYTES = 2 << 20
"""Room for what lies beside the copy."""
REST = 10
"""After a snapshot of its own accord it takes no other of the same dimension for so many times as long as that took."""
_LOOK_S = 0.1
_AT_REST_S = 5.0
_ENTRY_BYTES = 4096
"""Room for the headers of one entry of an archive."""
_ZSTD = ("zstd", "--quiet", "--stdout")
_PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@dataclass(frozen=True)
class Source:
    """What the supervisor knows of a dimension.

    Attributes:
        root: where its filesystem is mounted.
        image: the file behind it; None for a tmpfs.
        device: the kernel's name of its loop device; None for a tmpfs.
        group: of its control group, as the kernel's log names it.
        cell: the group around its own, by which it is frozen; None without a v2 tree.
        memory: the file that counts what the kernel has killed in it for want of memory; None without the controller.
        pid, generation: of its main process; 0: it has none at the moment.
    """

    root: str
    image: str | None
    device: str | None
    group: str
    cell: str | None
    memory: str | None
    pid: int
    generation: int


def reason_of_death(wanted: Sequence[str], code: int, was_short_of_memory: bool) -> str | None:
    """Why a snapshot is taken of a dimension whose process has ended; None if its testbed wants none.

    Args:
        wanted: of the testbed: "crash", "oom", "watchdog".
        code: how it ended, as :func:`os.waitstatus_to_exitcode` says it.
        was_short_of_memory: the kernel has killed something in it for that.
    """
    if was_short_of_memory and "oom" in wanted:
        return "oom"
    return "crash" if "crash" in wanted and code != 0 else None


def named(record: Sequence[int]) -> dict[str, Any]:
    """A window's record with the names of its fields, of its outcome and its cause."""
    fields: dict[str, Any] = dict(zip(shm.WINDOW.fields, record, strict=True))
    for field, names in (("outcome", Outcome), ("cause", Cause)):
        with contextlib.suppress(ValueError):  # a dimension writes what it likes
            fields[field] = names(fields[field]).name.lower()
    return fields


class Snapshotter:
    """Takes snapshots.

    Args:
        control, ticks, tokens: regions of the run.
        statuses: status page of each dimension.
        supervisor: what is told goes there.
    """

    def __init__(
        self,
        plan: Plan,
        control: memoryview,
        ticks: memoryview,
        tokens: memoryview,
        statuses: Sequence[memoryview],
        supervisor: socket.socket,
    ) -> None:
        self.plan = plan
        self.dimensions = {d.name: d for d in plan.dimensions}
        self.directory = Path(plan.snapshots.directory)
        self._control, self._tokens = control, tokens
        self._statuses = {d.name: status for d, status in zip(plan.dimensions, statuses, strict=True)}
        self._supervisor = supervisor
        self._epoch = control[shm.CONTROL.at("epoch")]
        self._run = snapshot.run_name(os.getppid(), self._epoch)
        self._began_ns = 0
        self._sources: dict[str, Source] = {}
        self._orders: deque[dict[str, Any]] = deque()
        self._lookouts = {
            d.name: Lookout(d, plan.snapshots.watchdog, self._statuses[d.name], ticks)
            for d in plan.dimensions
            if d.snapshot
        }
        snapshot.discard_parts(self.directory, self._run)  # of one before us, which died

    # ── what there is to do ──────────────────────────────────────────────────────────────────────────────────────────

    def serve(self) -> None:
        """Obey the supervisor, and look out, until it goes away."""
        looks = any({"oom", "watchdog"} & set(d.snapshot) for d in self.plan.dimensions)
        while self._hear(_LOOK_S if looks else None):
            if self._orders:
                self._obey(self._orders.popleft())
            elif looks:
                self._look()

    def _hear(self, patience_s: float | None) -> bool:
        """Take in what the supervisor wants, waiting for it if there is nothing to do; False if it has gone."""
        timeout_s = 0 if self._orders else patience_s
        while select.select([self._supervisor], [], [], timeout_s)[0]:
            message, _ = service.receive(self._supervisor)
            if message is None:
                return False
            if "sources" in message:
                self._began_ns = message["began_ns"]
                for name, source in message["sources"].items():
                    self._sources[name] = Source(**source)
                    if name in self._lookouts:
                        self._lookouts[name].begin(self._sources[name].memory)
            else:
                self._orders.append(message)
            timeout_s = 0
        return True

    def _obey(self, order: dict[str, Any]) -> None:
        name, why, process = order["dimension"], order["why"], order["process"]
        d, detail = self.dimensions[name], process.get("how", "")
        if why == "death":
            is_short = self._lookouts[name].was_short_of_memory(self._sources[name].memory)
            reason = reason_of_death(d.snapshot, process["code"], is_short)
            if reason is None:
                self._thaw(name)
                self._say({"event": "declined", "number": order["number"]})
                return
            why = reason
        self._try(d, why, detail, process, order["number"])

    def _look(self) -> None:
        """Find out whether a dimension is in trouble that nobody else notices."""
        if self._control[shm.CONTROL.at("phase")] != Phase.RUN:
            return
        for name, lookout in self._lookouts.items():
            source, wanted = self._sources[name], lookout.d.snapshot
            if not source.pid:
                continue
            is_short = "oom" in wanted and lookout.runs_short_of_memory(source.memory, source.pid)
            has_missed = "watchdog" in wanted and lookout.misses()
            if clock.now_ns() < lookout.quiet_until_ns:
                continue
            if is_short:
                self._on_own_account(lookout, "oom", "the kernel killed something in it for want of memory")
            elif has_missed:
                missed = f"it missed {self.plan.snapshots.watchdog} windows in a row"
                self._on_own_account(lookout, "watchdog", missed)

    def _on_own_account(self, lookout: Lookout, why: str, detail: str) -> None:
        begun_ns = clock.now_ns()
        self._try(lookout.d, why, detail, {}, None)
        now_ns = clock.now_ns()
        lookout.quiet_until_ns = now_ns + REST * (now_ns - begun_ns)

    def _say(self, message: dict[str, Any]) -> None:
        service.send(self._supervisor, message)

    def _try(self, d: DimensionPlan, why: str, detail: str, process: Mapping[str, Any], number: int | None) -> None:
        """Take a snapshot and tell what has come of it; nothing that goes wrong with it goes further than that."""
        told = {"event": "snapshot", "number": number, "dimension": d.name, "why": why, "detail": detail}
        try:
            told |= self.take(d, why, detail, process)
        except (RunError, OSError, subprocess.SubprocessError) as error:
            told["error"] = f"{d.name}: no snapshot ({why}): {_told(error)}"
        finally:
            self._thaw(d.name)
        if d.name in self._lookouts:
            self._lookouts[d.name].forgive()
        self._say(told)

    # ── taking one ───────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, d: DimensionPlan, why: str, detail: str, process: Mapping[str, Any]) -> dict[str, Any]:
        """Take one; what there is to say about it. Where the disk is full, old ones are given up for it.

        Raises:
            RunError: it is larger than the quota, or cannot be packed.
            OSError: ENOSPC, if that would not help, and whatever else the copying meets.
        """
        begun_ns = clock.now_ns()
        while True:
            self._step(d, "sync")
            most_bytes = self._sync_and_measure(self._sources[d.name]) + PAPERS_BYTES
            snapshot.expect_to_fit(most_bytes, self.plan.snapshots.quota_bytes)
            try:
                taken = self._take(d, why, detail, process)
            except OSError as error:
                if error.errno != errno.ENOSPC or not snapshot.give_up_for(self.directory, most_bytes, self._run):
                    raise
            else:
                return {**taken, "took_ns": clock.now_ns() - begun_ns}

    def _take(self, d: DimensionPlan, why: str, detail: str, process: Mapping[str, Any]) -> dict[str, Any]:
        """As :meth:`take`, with the room that there is. It costs no other one unless it is whole itself."""
        begun_ns, at = clock.now_ns(), datetime.now(UTC)
        source = self._sources[d.name]
        name = snapshot.name_of(at, d.name, why)
        with Part(self.directory, name, self._run) as part:
            self._step(d, "freeze")
            freeze_ns = clock.now_ns()
            with self._frozen(d.name) as is_at_rest:
                processes = describe_processes(source.cell)
                records, ledger = self._windows(d), self._ledger(d)
                self._step(d, "copy")
                contents = self._copy(d, source, part)
                log = self._keep_log(source, part)
                self._step(d, "thaw")
            thawed_ns = clock.now_ns()
            self._step(d, "papers")
            start_ns = self._control[shm.CONTROL.at("start_ns")]
            papers = {
                "format": FORMAT,
                "dimension": d.name,
                "why": why,
                "detail": detail,
                "utc": at.isoformat(),
                "monotonic_ns": begun_ns,
                "run_start_ns": start_ns,
                "testbed": self.plan.name,
                "epoch": self._epoch,
                "generation": process.get("generation", source.generation),
                "process": dict(process) or {"pid": source.pid},
                "processes": processes,
                "at_rest": is_at_rest,
                "frozen_for_ns": thawed_ns - freeze_ns,
                "contents": contents,
                "log": log,
                "open": how_to_open(d, self.directory / name),
                "windows": [named(record) for record in records],
                "ledger": ledger,
                "kernel": self._kernel_lines(d, source, process),
                "plan": asdict(self.plan),
            }
            part.write(snapshot.PAPERS, json.dumps(papers).encode())
            size_bytes = part.allocated_bytes()
            snapshot.make_room(self.directory, d.name, size_bytes, self.plan.snapshots.quota_bytes, self._run)
            self._step(d, "seal")
            path = part.seal()
        return {
            "path": str(path),
            "bytes": size_bytes,
            "frozen_for_ns": thawed_ns - freeze_ns,
        }

    def _step(self, d: DimensionPlan, name: str) -> None:
        self._say({"event": "step", "name": f"snapshot {name}", "dimension": d.name})

    def _sync_and_measure(self, source: Source) -> int:
        """Write out what the filesystem holds back; the bytes that its copy will take at most, as things stand."""
        with opened(source.root, os.O_RDONLY | os.O_DIRECTORY) as root:
            copying.sync_filesystem(root, source.root)
            found = os.fstatvfs(root)
        if source.image is None:
            inodes = found.f_files - found.f_ffree
            return (found.f_blocks - found.f_bfree) * found.f_frsize + inodes * _ENTRY_BYTES
        with opened(source.image, os.O_RDONLY) as image:
            return sum(length for _, length in copying.data(image, os.fstat(image).st_size))

    @contextmanager
    def _frozen(self, name: str) -> Iterator[bool]:
        """Freeze a dimension in the block, unless the next order is for it; yields whether all of it came to rest.

        A task in the middle of a system call freezes at its end. One that has not come to that after some time is what
        the snapshot may be about: it is taken as things are. After a failure it is still frozen, for another attempt.
        """
        cell = self._sources[name].cell
        if cell is None:
            yield False
            return
        group = Freezer(Path(cell))
        try:
            group.freeze()
            deadline = time.monotonic() + _AT_REST_S
            while not (is_at_rest := group.is_frozen()) and time.monotonic() < deadline:
                time.sleep(0.001)
            yield is_at_rest
        finally:
            group.close()
        self._thaw(name)

    def _thaw(self, name: str) -> None:
        """Let a dimension go on, unless it is to be frozen again already.

        The supervisor orders first and freezes then: so whoever has been frozen in between is found in the orders.
        """
        cell = self._sources[name].cell
        if cell is None or self._is_next(name):
            return
        with contextlib.suppress(FileNotFoundError):
            Path(cell, "cgroup.freeze").write_text("0")
            if self._is_next(name):
                Path(cell, "cgroup.freeze").write_text("1")

    def _is_next(self, name: str) -> bool:
        self._hear(0)
        return any(order["dimension"] == name and order["why"] == "death" for order in self._orders)

    def _copy(self, d: DimensionPlan, source: Source, part: Part) -> dict[str, Any]:
        """Copy the image, or pack the tree; what has been done."""
        if source.image is None:
            return self._pack(d, source, part)
        with opened(source.root, os.O_RDONLY | os.O_DIRECTORY) as root:
            copying.sync_filesystem(root, source.root)
        storage.complete_superblock(Path(source.root))
        name = file_of(d)
        with opened(source.image, os.O_RDONLY) as image, closing(part.create(name)) as target:
            is_clone = copying.clone(image, target)
            if not is_clone:
                copying.copy(image, target)
        return {"file": name, "method": "reflink" if is_clone else "sparse copy"}

    def _pack(self, d: DimensionPlan, source: Source, part: Part) -> dict[str, Any]:
        """Pack the tree of a tmpfs with zstd(1).

        Raises:
            RunError: zstd is not here, or complains.
            OSError: ENOSPC.
        """
        name, quota_bytes = file_of(d), self.plan.snapshots.quota_bytes
        with closing(part.create(name)) as target, opened(source.root, os.O_RDONLY | os.O_DIRECTORY) as root:
            try:
                zstd = subprocess.Popen(
                    _ZSTD, stdin=subprocess.PIPE, stdout=target, stderr=subprocess.PIPE, env=_PATH, cwd="/"
                )
            except FileNotFoundError:
                raise RunError(f"{_ZSTD[0]}: not found (apt-get install zstd)") from None
            resource.prlimit(zstd.pid, resource.RLIMIT_FSIZE, (quota_bytes, quota_bytes))
            assert zstd.stdin is not None and zstd.stderr is not None
            with zstd:
                writer = archive.Writer(zstd.stdin)
                try:
                    writer.write_tree(root)
                    zstd.stdin.close()
                except BrokenPipeError:  # it has ended, and says why
                    pass
                complaints = zstd.stderr.read().decode(errors="replace").strip()
            if zstd.returncode != 0 and os.strerror(errno.ENOSPC) in complaints:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part.path / name))
            if zstd.returncode != 0:
                raise RunError(f"{_ZSTD[0]} ended with {zstd.returncode}: {complaints or 'larger than the quota'}")
        return {"file": name, "method": "tar, zstd", "omitted": writer.omitted, "omitted_first": writer.told}

    # ── evidence ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _windows(self, d: DimensionPlan) -> list[list[int]]:
        status = self._statuses[d.name]
        head = status[shm.STATUS_HEADER.at("head")]
        return [record_at(status, number) for number in range(max(0, head - WINDOWS_KEPT), head)]

    def _ledger(self, d: DimensionPlan) -> dict[str, Any]:
        """The orchestrator's account of a dimension, and its newest tokens, in the order of their windows."""
        at = shm.COUNTERS_AT + d.index * shm.COUNTER_WORDS
        account = dict(zip(shm.COUNTERS.fields, self._tokens[at : at + shm.COUNTERS.words], strict=True))
        first = shm.TOKENS_AT + d.index * shm.TOKEN_SLOTS * shm.TOKEN_WORDS
        tokens = [
            dict(zip(shm.TOKEN.fields, self._tokens[at : at + shm.TOKEN.words], strict=True))
            for at in range(first, first + shm.TOKEN_SLOTS * shm.TOKEN_WORDS, shm.TOKEN_WORDS)
        ]
        mine = sorted((token for token in tokens if token["epoch"] == self._epoch), key=lambda token: token["window"])
        return {"account": account, "tokens": mine[-TOKENS_KEPT:]}

    def _keep_log(self, source: Source, part: Part) -> dict[str, Any]:
        """The end of what the workload has written, into a file of its own; what is to be said about it."""
        try:
            with opened(source.root, os.O_PATH | os.O_DIRECTORY) as root:
                fd = openat2.open_regular(root, "log/workload.log", os.O_RDONLY)
            with closing(fd):
                size_bytes = os.fstat(fd).st_size
                part.write(snapshot.LOG, os.pread(fd, LOG_BYTES, max(0, size_bytes - LOG_BYTES)))
        except OSError as error:
            return {"error": f"log/workload.log: {error.strerror}"}
        return {"file": snapshot.LOG, "size_bytes": size_bytes, "kept_bytes": min(size_bytes, LOG_BYTES)}

    def _kernel_lines(self, d: DimensionPlan, source: Source, process: Mapping[str, Any]) -> dict[str, Any]:
        """What the kernel has said of a dimension since the run began."""
        names = [f"vcg:{d.name}", source.group, *([source.device] if source.device else ())]
        names += [os.path.basename(d.program[0])[:15]] if d.program else []  # noqa: PTH119
        pids = {pid for pid in (process.get("pid", 0), source.pid) if pid}
        try:
            lines = [line for line in kmsg.since(self._began_ns) if kmsg.mentions(line.text, names, pids)]
        except OSError as error:
            return {"error": f"/dev/kmsg: {error.strerror}"}
        kept = lines[-KERNEL_LINES:]
        return {"lines": [line._asdict() for line in kept], "left_out": len(lines) - len(kept)}


def file_of(d: DimensionPlan) -> str:
    """The name of the copy in a snapshot of a dimension."""
    return f"{d.name}.img" if d.storage == "ext4" else f"{d.name}.tar.zst"


def how_to_open(d: DimensionPlan, path: Path) -> list[str]:
    """Commands that look into a snapshot without mounting it, to be used as they are; one takes all files out of it."""
    copy = shlex.quote(str(path / file_of(d)))
    if d.storage == "ext4":
        take_out = f"mkdir {d.name} && debugfs -R 'rdump / {d.name}' {copy}"
        return [f"debugfs -R 'ls -l /data' {copy}", take_out, f"e2fsck -fn {copy}"]
    return [f"tar --zstd -tvf {copy}", f"mkdir {d.name} && tar --zstd -xf {copy} -C {d.name}"]


def describe_processes(cell: str | None) -> list[dict[str, Any]]:
    """What is in the group of a dimension: pid, name, state and where in the kernel it waits."""
    found = []
    for file in Path(cell).rglob("cgroup.procs") if cell else ():
        for pid in file.read_text().split():
            try:
                stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
                wchan = Path(f"/proc/{pid}/wchan").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            name, _, rest = stat.partition("(")[2].rpartition(") ")
            found.append({"pid": int(pid), "name": name, "state": rest.split()[0], "waits_in": wchan})
    return found


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """A file of the host, open in the block."""
    with closing(os.open(path, flags | os.O_CLOEXEC)) as fd:
        yield fd


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def main(arguments: list[str]) -> None:
    """The process: obey and look out until the supervisor closes its end."""
    plan, control, supervisor, more = service.begin("vcg:snapshot", arguments)
    os.sched_setaffinity(0, plan.housekeeping.cpus)
    sched.idle_io()
    ticks, tokens, *statuses = (shm.attach(fd) for fd in more)
    for fd in more:
        os.close(fd)
    Snapshotter(plan, control, ticks, tokens, statuses, supervisor).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
