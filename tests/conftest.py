"""What every test may use, and what the suite as a whole is held to.

After the last test the host is audited: whatever the suite left behind (loop devices, mounts, cgroups, processes, SysV
objects, sockets, files, descriptors) fails the run, although every test passed. So does a skip whose reason is not on
the allow-list for this kind of host (``skips-allowed.toml``).

Other runs on the same host are not ours to judge: a process counts as left behind if it descends from this session or
has been orphaned, a cgroup if only such processes are in it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vcg import audit
from vcg.linux import cgroup

SETTLE_S = 3.0
"""The kernel detaches loops and mounts a moment after the last process is gone."""
OUR_DESCRIPTORS = re.compile(r"/memfd:vcg|/dev/loop|anon_inode:(bpf|\[pidfd\]|\[perf_event\]|\[landlock)|/tmp/vcg-")


class Roots(NamedTuple):
    """Directories for one run. Their paths are short, because a Unix socket's path may have 107 bytes at most."""

    state_root: Path
    mount_root: Path


class Suite:
    """What this session has seen, and what was there before it."""

    def __init__(self) -> None:
        self.arena: Path | None = None
        self.skips: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.before = self.survey() if os.geteuid() == 0 else {}

    def survey(self) -> dict[str, str]:
        """Everything that a test could have left behind, as one line each."""
        arena = self.arena or Path("/nonexistent")
        found = {f"{item.kind} {item.name}": item.detail for item in audit.leftovers(arena, arena) if is_stray(item)}
        found |= {f"directory {path}": "" for path in Path("/tmp").glob("vcg-*") if not is_in_use(path)}
        found |= {f"child {pid}": comm for pid, comm in children()}
        found |= {f"descriptor {fd}": target for fd, target in descriptors() if OUR_DESCRIPTORS.match(target)}
        return found

    def left_behind(self) -> list[str]:
        deadline = time.monotonic() + SETTLE_S
        while True:
            gc.collect()
            reap_orphans()
            new = [f"{what}: {detail}" for what, detail in self.survey().items() if what not in self.before]
            if not new or time.monotonic() > deadline:
                return new
            time.sleep(0.1)


SUITE = pytest.StashKey[Suite]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUITE] = Suite()
    config.pluginmanager.register(SkipWatch(config.stash[SUITE]))


class SkipWatch:
    def __init__(self, suite: Suite) -> None:
        self.suite = suite

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.watch(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.watch(report)

    def watch(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
            self.suite.skips.append((report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: ")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    suite = session.config.stash[SUITE]
    if suite.arena and not any(suite.arena.iterdir()):
        suite.arena.rmdir()
    allowed = allowed_skips(Path(__file__).with_name("skips-allowed.toml").read_text(), host_kinds())
    suite.problems = [f"unexpected skip of {test}: {reason}" for test, reason in unexpected(suite.skips, allowed)]
    if os.geteuid() == 0:
        suite.problems += [f"left behind: {item}" for item in suite.left_behind()]
    if suite.problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    problems = config.stash[SUITE].problems
    if problems:
        terminalreporter.section("the suite fails", red=True)
        for problem in problems:
            terminalreporter.line(problem, red=True)


def host_kinds() -> set[str]:
    """Which headings of the allow-list apply to this host."""
    kinds = set()
    if os.geteuid() != 0:
        kinds.add("unprivileged")
    if len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) < 2:
        kinds.add("one-node")
    if len(os.sched_getaffinity(0)) < 2:
        kinds.add("one-cpu")
    if cgroup.FREEZER not in cgroup.observe().v1:
        kinds.add("no-v1-freezer")
    if not set(cgroup.CONTROLLERS) <= cgroup.observe().v2:
        kinds.add("cgroup-v1")
    return kinds


def allowed_skips(toml: str, kinds: set[str]) -> list[re.Pattern[str]]:
    """The reasons that the allow-list grants to these kinds of host."""
    return [
        re.compile(reason)
        for kind, entry in tomllib.loads(toml).items()
        if kind in kinds
        for reason in entry["reasons"]
    ]


def unexpected(skips: list[tuple[str, str]], allowed: list[re.Pattern[str]]) -> list[tuple[str, str]]:
    """Skips (test, reason) that no allowed reason covers."""
    return [(test, reason) for test, reason in skips if not any(pattern.fullmatch(reason) for pattern in allowed)]


def is_stray(item: audit.Leftover) -> bool:
    """Whether nobody but this session, or nobody at all any more, answers for a finding."""
    if item.kind == "process":
        return answers_for(int(item.name))
    if item.kind == "cgroup":
        named = re.fullmatch(audit.CGROUP_PREFIX + r"(\d+)-.*", Path(item.name).name)
        if named and Path("/proc", named[1]).exists() and not answers_for(int(named[1])):
            return False  # the group of somebody else's supervisor, perhaps still empty
        return all(answers_for(pid) for pid in cgroup.members_below(Path(item.name)))
    return True


def answers_for(pid: int) -> bool:
    """Whether a process descends from this session, or from init through our own processes alone (an orphan)."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if not fields["Name"].startswith(audit.PROCESS_PREFIX):
            return False
        pid = int(fields["PPid"])
    return True


def reap_orphans() -> None:
    """Of what a killed client had started, and is dead: it was passed on to us, and nobody else waits for it."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def children() -> list[tuple[int, str]]:
    """Pid and command of every child of this process."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            try:
                found.append((pid, Path(f"/proc/{pid}/comm").read_text().strip()))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def descriptors() -> list[tuple[str, str]]:
    """Number and target of every open descriptor."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append((link.name, str(link.readlink())))
        except FileNotFoundError:  # the one that lists the directory
            continue
    return found


def is_in_use(directory: Path) -> bool:
    """Whether a directory is the arena of another session: ``vcg-PID-…`` of a process that is alive."""
    match = re.fullmatch(r"vcg-(\d+)-.*", directory.name)
    return match is not None and int(match[1]) != os.getpid() and Path("/proc", match[1]).exists()


@pytest.fixture
def root() -> None:
    """For tests that need root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def roots(pytestconfig: pytest.Config) -> Iterator[Roots]:
    """A fresh state root and mount root, removed afterwards; what the test leaves mounted there fails the run."""
    suite = pytestconfig.stash[SUITE]
    if suite.arena is None or not suite.arena.exists():
        suite.arena = Path(tempfile.mkdtemp(prefix=f"vcg-{os.getpid()}-", dir="/tmp"))
    place = Path(tempfile.mkdtemp(dir=suite.arena, prefix=""))
    made = Roots(place / "s", place / "m")
    for path in made:
        path.mkdir()
    yield made
    shutil.rmtree(place)
