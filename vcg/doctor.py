"""``vcg doctor``: can this host run the testbed, what is missing, and how short may a window be.

Every check tries the very thing that the runtime will do (a loop device is bound, a futex on a sealed mapping is waited
for), because names of features prove little. What is tried is undone at once; no setting of the kernel is changed, with
or without ``--fix``.

Assumes nothing: on a host that can do little, each check says so instead of failing the command. Other packages add
checks through the entry-point group ``vcg.checks``: a callable without arguments that returns an iterable of
:class:`Check`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcg import audit, compiled, defences, floor, gatefloor, shm, storage
from vcg.errors import HostError, VcgError
from vcg.floor import STATE_ROOT
from vcg.linux import cgroup, cpuidle, futex, loop, memory, mount, sched
from vcg.plan import FREEZER_WINDOW_MIN_NS
from vcg.printable import printable

MOUNT_ROOT = Path("/vcg")
OLDEST_KERNEL = (5, 14)
"""cgroup.kill (5.14) is the youngest interface that the runtime can't do without."""
NEEDED_DISK_BYTES = 1 << 30
NEEDED_MEMORY_BYTES = 1 << 30
_INSTALL = "apt-get install "
_SERVICES = frozenset({"redis-server"})
"""Packages that begin a service on installation, where only their program is wanted."""
_SHOWN = 3
_PROBE_IMAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    Attributes:
        name: of the feature.
        ok: whether it is there.
        found: what is there, or the error that says it is not.
        needed_for: what does not work without it.
        fix: what to do if it is missing. If it begins with ``apt-get install``, ``--fix`` does it.
        required: whether the runtime can't work without it.
    """

    name: str
    ok: bool
    found: str
    needed_for: str
    fix: str
    required: bool

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian packages that would mend it."""
        return tuple(self.fix.removeprefix(_INSTALL).split()) if self.fix.startswith(_INSTALL) else ()


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Install missing Debian packages; change nothing else.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Show only what is missing, and measure a floor only if it is not known.")
    ] = False,
) -> None:
    """Say whether this host can run the testbed, and measure the shortest windows that it sustains.

    Exit code 1 if something required is missing.
    """
    checks = examine(STATE_ROOT, MOUNT_ROOT, measure_again=not quick)
    done: list[str] = []
    if fix and (done := install(checks)):
        checks = examine(STATE_ROOT, MOUNT_ROOT, measure_again=False)
    missing = [check.name for check in checks if check.required and not check.ok]
    if as_json:
        report = {"ok": not missing, "fixed": done, "checks": [asdict(check) for check in checks]}
        print(json.dumps(report, indent=2))
    else:
        _print(checks, done, only_missing=quick)
    if missing:
        raise typer.Exit(1)


def examine(state_root: Path, mount_root: Path, *, measure_again: bool) -> list[Check]:
    """Run every check of this host, those of other packages included.

    Args:
        state_root: where images and the measured floors are kept.
        mount_root: where the dimensions are mounted.
        measure_again: measure the floors even if they are known.
    """
    root = check_root()
    checks = [
        root,
        check_kernel(),
        check_command("mkfs.ext4", "the images of loop-ext4 dimensions", "e2fsprogs", required=True),
        check_memfd_seals(),
        check_futex(),
        check_clocksource(),
        check_hypervisor(),
        check_cpus(),
        check_disk(state_root),
        check_memory(),
        check_defence("Landlock", "landlock"),
        check_defence("Landlock scopes", "landlock-scopes"),
        check_defence("seccomp", "seccomp"),
        check_cpu_dma_latency(),
        check_command("cyclictest", "vcg bench rtd", "rt-tests", required=False),
        check_command("gcc", "vcg bench edge", "gcc libc6-dev", required=False),
        check_command("redis-server", "vcg bench programs", "redis-server redis-tools", required=False),
        check_command("sqlite3", "vcg bench programs", "sqlite3", required=False),
        check_command("stress-ng", "vcg bench programs", "stress-ng", required=False),
        check_command("zstd", "snapshots of tmpfs dimensions", "zstd", required=False),
        check_compiled(),
    ]
    if root.ok:  # the others would only say again that root is missing
        checks += [
            check_private_mounts(),
            check_filesystems(),
            check_loop_devices(state_root),
            *check_cgroups(),
            check_freezer(state_root, measure_again=measure_again),
            check_fifo(),
            check_mlock(),
            check_memory_policy(),
            check_leftovers(state_root, mount_root),
        ]
        for point in entry_points(group="vcg.checks"):
            checks += point.load()()
        checks.append(check_floor(state_root, measure_again=measure_again))
    return checks


def install(checks: Iterable[Check]) -> list[str]:
    """Install the Debian packages that failed checks ask for.

    Returns:
        The packages, in order.

    Raises:
        HostError: not root, no apt-get, or it failed; then it has said why on the terminal.
    """
    packages = list(dict.fromkeys(package for check in checks if not check.ok for package in check.packages))
    if not packages:
        return []
    by_hand = f"install by hand: {' '.join(packages)}"
    if os.geteuid() != 0:
        raise HostError(f"--fix installs packages and needs root (try: sudo vcg doctor --fix), or {by_hand}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        command = ["apt-get", "--quiet", "--quiet", *arguments]
        try:
            subprocess.run(command, env=environment, check=True, stdout=2)
        except FileNotFoundError:
            raise HostError(f"--fix knows no other installer than apt-get, which is not here: {by_hand}") from None
        except subprocess.CalledProcessError as error:
            raise HostError(
                f"{' '.join(command)}: exit code {error.returncode}: are its sources reachable? Else {by_hand}"
            ) from None
    for service in _SERVICES & set(packages):
        _disable(service)
    return packages


def _disable(service: str) -> None:
    """Stop a service of the host that a package has just begun, for good."""
    for command in (["update-rc.d", service, "disable"], ["invoke-rc.d", service, "stop"]):
        code = subprocess.run(command, stdout=2).returncode
        if code != 0:
            raise HostError(f"{' '.join(command)}: exit code {code}: stop and disable {service} by hand")


def attempt(act: Callable[[], str], name: str, needed_for: str, fix: str, *, required: bool) -> Check:
    """A check that passes unless the act raises ``OSError`` or an error of ours; the act returns what was found."""
    try:
        return Check(name, True, act(), needed_for, fix, required)
    except (OSError, VcgError) as error:
        return Check(name, False, str(error), needed_for, fix, required)


def check_root() -> Check:
    uid = os.geteuid()
    return Check("root", uid == 0, f"uid {uid}", "cgroups, mounts, loop devices, BPF", "run it as root", True)


def check_kernel() -> Check:
    release, machine = platform.release(), platform.machine()
    ok = kernel_version(release) >= OLDEST_KERNEL and machine == "x86_64"
    fix = f"expected x86_64 and Linux {'.'.join(map(str, OLDEST_KERNEL))} or newer"
    return Check("kernel", ok, f"{release} {machine}", "everything", fix, True)


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor number of a kernel release; (0, 0) if it begins otherwise."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_command(name: str, needed_for: str, packages: str, *, required: bool) -> Check:
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    return Check(name, path is not None, path or "not found", needed_for, _INSTALL + packages, required)


def check_memfd_seals() -> Check:
    def act() -> str:
        fd, _ = shm.create("vcg-doctor", shm.PAGE)
        try:
            with contextlib.suppress(PermissionError):
                shm.attach(fd, writable=True)
                raise OSError("a sealed memfd could be mapped writable a second time")
        finally:
            os.close(fd)
        return "a sealed region refuses a second writer"

    return attempt(act, "memfd seals", "shared memory that readers can't damage", "Linux 5.1 or newer", required=True)


def check_futex() -> Check:
    def act() -> str:
        fd, words = shm.create("vcg-doctor", shm.PAGE)
        reader = shm.attach(fd)
        os.close(fd)
        deadline_ns = time.monotonic_ns() + 1_000_000_000
        waiting = threading.Thread(target=futex.wait_until, args=(futex.address_of(reader, 0), 0, deadline_ns, 1))
        waiting.start()
        wake, woken = futex.waker(futex.address_of(words, 0)), 0
        while not woken and waiting.is_alive():
            woken = wake(1)
            time.sleep(0.001)
        waiting.join()
        if woken != 1:
            raise OSError("nobody was woken from a wait on a read-only mapping")
        return "a waiter on a read-only mapping is woken by its bit"

    return attempt(act, "futex bitset", "waking the dimensions that are due", "CONFIG_FUTEX", required=True)


def check_clocksource() -> Check:
    def act() -> str:
        found = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip()
        if found != "tsc":
            raise OSError(found)
        return found

    fix = "boot with clocksource=tsc if the TSC is stable; else take a second look at every latency below 10 us"
    return attempt(act, "clock source", "reading the clock without a system call", fix, required=False)


def check_hypervisor() -> Check:
    flags = Path("/proc/cpuinfo").read_text()
    share = steal_share(Path("/proc/stat").read_text())
    where = "virtual machine" if re.search(r"^flags\s*:.*\bhypervisor\b", flags, re.MULTILINE) else "bare metal"
    found = f"{where}, {share:.2%} of CPU time stolen since boot"
    fix = "expect outliers of milliseconds that no setting of this host can prevent"
    return Check("steal", share < 0.01, found, "latencies that are this host's own", fix, False)


def steal_share(proc_stat: str) -> float:
    """Share of all CPU time since boot that the hypervisor gave to others (proc(5), ``/proc/stat``, first line)."""
    times = [int(word) for word in proc_stat.splitlines()[0].split()[1:9]]
    return times[7] / sum(times)


def check_cpus() -> Check:
    cpus = sorted(os.sched_getaffinity(0))
    nodes = [path.name for path in Path("/sys/devices/system/node").glob("node[0-9]*")]
    found = f"{len(cpus)} CPUs ({cpus[0]}-{cpus[-1]}), {max(len(nodes), 1)} memory nodes"
    fix = "the RTD shares its CPU with the dimensions"
    return Check("CPUs", len(cpus) > 1, found, "a CPU that the dimensions don't share with the RTD", fix, False)


def check_disk(state_root: Path) -> Check:
    existing = next(path for path in (state_root, *state_root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free in {existing}"
    fix = f"free {NEEDED_DISK_BYTES / 2**30:.0f} GiB there, or set another state root in the testbed"
    return Check("disk space", free >= NEEDED_DISK_BYTES, found, "images, allocated in full", fix, True)


def check_memory() -> Check:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    available = int(match[1]) * 1024 if match else 0
    found = f"{available / 2**30:.1f} GiB available"
    fix = f"free {NEEDED_MEMORY_BYTES / 2**30:.0f} GiB"
    return Check("memory", available >= NEEDED_MEMORY_BYTES, found, "tmpfs dimensions, locked processes", fix, True)


def check_defence(title: str, name: str) -> Check:
    """A defence of the kernel that is no cgroup controller, see :mod:`vcg.defences`."""
    finding = defences.examine(name)
    return Check(title, finding.is_here, finding.found, defences.NEEDED_FOR[name], finding.fix, False)


def check_cpu_dma_latency() -> Check:
    present = Path(cpuidle.DEVICE).exists()
    found = cpuidle.DEVICE if present else f"no {cpuidle.DEVICE}"
    return Check("idle latency", present, found, "keeping CPUs out of deep idle states", "CONFIG_PM and cpuidle", False)


def check_private_mounts() -> Check:
    def act() -> str:
        mount.enter_private_namespace()
        mount.mount("tmpfs", "/proc", "tmpfs")  # any directory will do: nobody else sees it
        return "a mount in a private namespace"

    fix = "CONFIG_NAMESPACES, CAP_SYS_ADMIN"
    return attempt_in_child(act, "private mounts", "mounts that the kernel undoes by itself", fix, required=True)


def check_filesystems() -> Check:
    """Make and mount both kinds, small, as a run does; an ext4 that is a module is loaded by that."""

    def act(place: Path) -> str:
        mount.enter_private_namespace()
        storage.mount_tmpfs(place, 2 * _PROBE_IMAGE_BYTES, None)
        image, target = place / "ext4.img", place / "ext4"
        target.mkdir()
        storage.allocate(image, _PROBE_IMAGE_BYTES)
        storage.make_filesystems([image])
        storage.mount_ext4(image, target)
        mount.unmount(target)
        mount.unmount(place)
        return "ext4 and tmpfs made and mounted"

    fix = "modprobe ext4 loop; apt-get install e2fsprogs"
    with tempfile.TemporaryDirectory(prefix="vcg-doctor-") as name:
        return attempt_in_child(partial(act, Path(name)), "filesystems", "the dimensions' storage", fix, required=True)


def check_loop_devices(state_root: Path) -> Check:
    def act() -> str:
        existing = next(path for path in (state_root, *state_root.parents) if path.exists())
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".vcg-doctor-") as image:
            os.posix_fallocate(image.fileno(), 0, _PROBE_IMAGE_BYTES)
            bound = loop.attach(Path(image.name))
            try:
                direct = Path("/sys/block", bound.path.name, "loop/dio").read_text().strip() == "1"
            finally:
                os.close(bound.fd)  # its last close clears it
        return f"{bound.path} bound and cleared, {'direct' if direct else 'buffered'} I/O"

    fix = "modprobe loop (a container needs /dev/loop-control and /dev/loop*)"
    return attempt(act, "loop devices", "loop-ext4 dimensions", fix, required=True)


def check_controller(observed: cgroup.Hierarchies, controller: str) -> Check:
    """Whether one of :data:`cgroup.CONTROLLERS` serves our groups; if not, what is not enforced, and where it stops."""
    finding = defences.controller(observed, controller)
    needed_for = defences.NEEDED_FOR[controller]
    return Check(f"cgroup {controller}", finding.is_here, finding.found, needed_for, finding.fix, False)


def check_cgroups() -> Iterator[Check]:
    """One check for each controller, and one that builds a group in every hierarchy below our own."""
    observed = cgroup.observe()
    unified = observed.unified
    for controller in cgroup.CONTROLLERS:
        yield check_controller(observed, controller)

    def build() -> str:
        if unified is None:
            raise OSError("no v2 tree is mounted (mount -t cgroup2 none /sys/fs/cgroup/unified)")
        group = cgroup.Group(observed, f"{audit.CGROUP_PREFIX}doctor-{os.getpid()}")
        try:
            group.create()
            killable = any((directory / "cgroup.kill").exists() for directory in group.directories)
        finally:
            cgroup.remove(group.directories, time.monotonic_ns() + 1_000_000_000)
        if not killable:
            raise OSError("no cgroup.kill in the v2 tree")
        return f"built and removed in {len(group.directories)} hierarchies; has cgroup.kill"

    fix = "root, a writable /sys/fs/cgroup, Linux 5.14 or newer"
    yield attempt(build, "cgroup trees", "accounting for every process of a run, and its end", fix, required=True)


def check_compiled() -> Check:
    """Whether the orchestrator works its rounds as machine code."""
    is_built = compiled.is_built()
    return Check(
        "compiled rounds",
        is_built,
        "compiled from the sources as they are" if is_built else "not compiled, or changed since: interpreted",
        "rounds of the orchestrator in a third of the time",
        "make setup",
        required=False,
    )


def check_freezer(state_root: Path, *, measure_again: bool) -> Check:
    """The floor of windows behind the freezer gate, measured and kept as that of the RTD is."""

    def act() -> str:
        known = None if measure_again else gatefloor.load(state_root)
        measured = known or gatefloor.measure()
        if known is None:
            floor.store(measured, state_root, gatefloor.FILE)
        promised = f"{FREEZER_WINDOW_MIN_NS / 1e6:g} ms"
        if measured.floor_ns is None:
            longest_ms = measured.measurements[-1].period_ns / 1e6
            raise HostError(f"no window up to {longest_ms:g} ms is kept, and expected are those from {promised}")
        at = next(m for m in measured.measurements if m.period_ns == measured.floor_ns and m.sustained)
        found = (
            f"windows from {at.period_ns / 1e6:g} ms ({at.lost} of {at.windows} lost, {at.spent:.1%} of the credit "
            f"used, thawed {at.lateness_p99_ns / 1000:.3g} us after the edge at the p99), measured {measured.date}"
        )
        if at.period_ns > FREEZER_WINDOW_MIN_NS:
            raise HostError(f"{found}; expected are those from {promised}: shorter ones than the floor are refused")
        return f"{found}; testbeds may have them from {promised}"

    fix = f"see the measurements in {state_root / gatefloor.FILE}; steal or a busy host are the usual reasons"
    return attempt(act, "freezer gate", "programs that know nothing of windows", fix, required=False)


def check_fifo() -> Check:
    def act() -> str:
        sched.set_fifo(floor.PRIORITY)
        budget_us = int(Path("/proc/sys/kernel/sched_rt_runtime_us").read_text())
        limit = "unlimited" if budget_us < 0 else f"{budget_us / 10_000:.0f} % of each CPU"
        return f"priority {floor.PRIORITY} granted; real-time tasks may take {limit}"

    fix = "CAP_SYS_NICE; in a v1 cpu cgroup with CONFIG_RT_GROUP_SCHED also a cpu.rt_runtime_us above 0"
    return attempt_in_child(act, "SCHED_FIFO", "the RTD and pinned dimensions", fix, required=True)


def check_mlock() -> Check:
    def act() -> str:
        memory.lock_all()
        return "mlockall granted"

    return attempt_in_child(act, "locked memory", "no page faults in the RTD", "CAP_IPC_LOCK", required=True)


def check_memory_policy() -> Check:
    def act() -> str:
        memory.bind_to_node(0)
        return "bound to node 0"

    return attempt_in_child(act, "NUMA policy", "memory on a dimension's own node", "CONFIG_NUMA", required=False)


def check_leftovers(state_root: Path, mount_root: Path) -> Check:
    needed_for = "a host as it was before"
    found = audit.leftovers(state_root, mount_root)
    supers = [item for item in found if item.kind == "process" and item.detail.startswith("vcg:super, ")]
    running = [item.name for item in supers if not item.detail.startswith("vcg:super, Z")]
    if running:
        return Check("clean host", True, f"a run is going on (pid {', '.join(running)})", needed_for, "", False)
    shown = ", ".join(f"{item.kind} {item.name}" for item in found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    fix = "left by a run that was killed: the next start with the same state root clears it"
    return Check("clean host", not found, shown or "holds nothing of ours", needed_for, fix, False)


def check_floor(state_root: Path, *, measure_again: bool) -> Check:
    """The floor of the window, measured and kept in the state root if it is not known or is to be measured again."""

    def act() -> str:
        known = None if measure_again else floor.load(state_root)
        measured = known or floor.measure()
        if known is None:
            floor.store(measured, state_root)
        if measured.floor_ns is None:
            raise HostError("none of the tried windows is sustained")
        at = next(m for m in measured.measurements if m.period_ns == measured.floor_ns and m.sustained)
        return (
            f"{measured.floor_ns / 1000:.0f} us (p99 lateness {at.lateness_p99_ns / 1000:.3g} us, "
            f"{at.cpu_share:.0%} of a CPU), measured {measured.date}"
        )

    fix = f"see the measurements in {state_root / 'host.json'}; steal or a busy host are the usual reasons"
    return attempt(act, "window floor", "refusing windows that can't be kept", fix, required=True)


def attempt_in_child(act: Callable[[], str], name: str, needed_for: str, fix: str, *, required: bool) -> Check:
    """:func:`attempt` in a forked child, for what a process can't take back."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            check = attempt(act, name, needed_for, fix, required=required)
            os.write(sink, json.dumps(asdict(check)).encode())
        finally:  # nothing of the parent's stack may run on in the child
            os._exit(0)
    os.close(sink)
    with open(source, "rb") as answers:  # noqa: PTH123 (a descriptor)
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return Check(name, False, f"the attempt ended with status {status}", needed_for, fix, required)
    return Check(**json.loads(answer))


def _print(checks: list[Check], done: list[str], *, only_missing: bool) -> None:
    missing = [check for check in checks if not check.ok]
    shown = missing if only_missing else checks
    console = Console()
    if shown:
        table = Table(show_edge=False, pad_edge=False)
        for heading in ("check", "", "found", "needed for"):
            table.add_column(heading, overflow="fold")
        for check in shown:
            verdict = "[green]OK" if check.ok else "[red]MISSING" if check.required else "[yellow]MISSING"
            table.add_row(check.name, verdict, escape(printable(check.found)), check.needed_for)
        console.print(table)
    for fix in dict.fromkeys(check.fix for check in missing):
        names = ", ".join(check.name for check in missing if check.fix == fix)
        console.print(f"[bold]{names}[/bold]: {escape(fix)}", soft_wrap=True)
    if done:
        console.print(f"installed: {', '.join(done)}")
    required = [check.name for check in missing if check.required]
    if required:
        console.print(f"[red]This host can't run the testbed: {', '.join(required)}.")
    elif missing:
        console.print(f"This host can run the testbed, but without: {', '.join(check.name for check in missing)}.")
    else:
        console.print("This host can run the testbed.")
