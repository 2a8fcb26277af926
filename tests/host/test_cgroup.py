"""Control groups in this host's own hierarchies: limits hold, and everything in a group can be ended and removed."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg.linux import cgroup, prctl, sched
from vcg.linux.cgroup import CONTROLLERS, Bandwidth, FifoFreezer, Freezer, Group, Hierarchies

pytestmark = pytest.mark.usefixtures("root")

Make = Callable[..., Group]
MIB = 1 << 20


def soon_ns(seconds: float = 5.0) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


@pytest.fixture
def make_group() -> Iterator[Make]:
    """Make a group of this test's own, which is ended and removed afterwards."""
    made: list[Group] = []

    def make(controllers: tuple[str, ...] = CONTROLLERS) -> Group:
        group = Group(cgroup.observe(), f"vcg-test-{os.getpid()}", controllers)
        group.create()
        made.append(group)
        return group

    yield make
    for group in made:
        cgroup.kill(group.directories, soon_ns())
        assert not cgroup.remove(group.directories, soon_ns())


def files_named(group: Group, *names: str) -> dict[str, str]:
    """Content of the group's files with these names, by controller's name."""
    paths = [directory / name for directory in group.directories for name in names]
    return {path.name: path.read_text().strip() for path in paths if path.exists()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("controller", "limit", "file", "content"),
    [
        ("cpuset", {"cpus": [0]}, {"v1": "cpuset.cpus", "v2": "cpuset.cpus"}, {"v1": "0", "v2": "0"}),
        ("cpuset", {"node": 0}, {"v1": "cpuset.mems", "v2": "cpuset.mems"}, {"v1": "0", "v2": "0"}),
        (
            "memory",
            {"memory_bytes": 8 * MIB},
            {"v1": "memory.limit_in_bytes", "v2": "memory.max"},
            {"v1": str(8 * MIB), "v2": str(8 * MIB)},
        ),
        ("pids", {"pids": 7}, {"v1": "pids.max", "v2": "pids.max"}, {"v1": "7", "v2": "7"}),
        ("cpu", {"weight": 2.0}, {"v1": "cpu.shares", "v2": "cpu.weight"}, {"v1": "2048", "v2": "200"}),
    ],
)
def test_a_limit_is_in_the_file_of_the_hierarchy_that_has_its_controller(
    make_group: Make, controller: str, limit: dict[str, Any], file: dict[str, str], content: dict[str, str]
) -> None:
    group = make_group()
    group.limit(**limit)
    backend = cgroup.observe().backend(controller)
    expected = {file[backend]: content[backend]} if backend else {}
    assert files_named(group, *file.values()) == expected


def test_a_memory_limit_is_no_way_into_the_swap_of_the_host(make_group: Make) -> None:
    group = make_group()
    group.limit(memory_bytes=8 * MIB)
    names = {"memory.memsw.limit_in_bytes": str(8 * MIB), "memory.swap.max": "0"}
    directory = group.directory("memory")
    there = {name: content for name, content in names.items() if directory and (directory / name).exists()}
    assert files_named(group, *names) == there


def test_a_memory_hog_is_killed_and_nothing_else(make_group: Make, in_child: Any) -> None:
    group = make_group(("cpuset", "memory", "pids"))
    group.limit(memory_bytes=32 * MIB)

    def hog() -> int:
        pid = os.fork()
        if pid == 0:
            group.enter()
            held = [bytearray(os.urandom(MIB)) for _ in range(128)]
            os._exit(len(held) % 2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_child(hog) == -signal.SIGKILL


def test_a_fork_bomb_stops_at_the_limit(make_group: Make, in_child: Any) -> None:
    group = make_group(("cpuset", "memory", "pids"))
    group.limit(pids=8)

    def bomb() -> tuple[int, int | None]:
        group.enter()
        for number in range(64):
            try:
                pid = os.fork()
            except OSError as error:
                return number, error.errno
            if pid == 0:
                signal.pause()
                os._exit(0)
        return 64, None

    assert in_child(bomb) == (7, errno.EAGAIN)
    assert not cgroup.kill(group.directories, soon_ns())


def test_real_time_scheduling_works_in_the_groups_of_a_fifo_dimension(make_group: Make, in_child: Any) -> None:
    group = make_group(("cpuset", "memory", "pids"))

    def act() -> int:
        group.enter()
        sched.set_fifo(10)
        return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK

    assert in_child(act) == os.SCHED_FIFO


# ── CPU time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CAP_FILES = ("cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us", "cpu.max", "cpu.max.burst")


def test_a_cap_can_be_set_raised_lowered_and_lifted(make_group: Make) -> None:
    group = make_group(("cpu",))
    backend = cgroup.observe().backend("cpu")
    for limit in (Bandwidth(10_000, 3_000), Bandwidth(10_000, 9_000), Bandwidth(8_000, 1_200), None):
        group.limit_bandwidth(limit)
        period, quota = limit or (100_000, -1)
        v1 = dict(zip(CAP_FILES, (str(period), str(quota), str(max(quota, 0))), strict=False))
        v2 = {"cpu.max": f"{quota if limit else 'max'} {period}", "cpu.max.burst": str(max(quota, 0))}
        assert files_named(group, *CAP_FILES) == {"v1": v1, "v2": v2, None: {}}[backend]


def test_a_cap_holds_a_task_that_spins(make_group: Make, in_child: Any) -> None:
    group = make_group(("cpu",))
    group.limit_bandwidth(Bandwidth(20_000, 2_000))

    def spin() -> tuple[int, int]:
        group.enter()
        cpu_ns, end_ns = time.process_time_ns(), soon_ns(0.5)
        begun_ns = time.monotonic_ns()
        while time.monotonic_ns() < end_ns:
            pass
        return time.process_time_ns() - cpu_ns, time.monotonic_ns() - begun_ns

    if cgroup.observe().backend("cpu") is None:
        assert group.directory("cpu") is None
    else:
        used_ns, took_ns = in_child(spin)
        # Two quotas to begin with, one for each period, and a tick that the kernel takes to notice.
        assert used_ns <= 2_000_000 * (2 + took_ns / 20_000_000) + 20_000_000


def test_a_cap_above_that_of_an_outer_group_is_left_to_the_outer_group(make_group: Make) -> None:
    outer = make_group(("cpu",))
    outer.limit_bandwidth(Bandwidth(10_000, 5_000))
    inner = Group(outer, "inner", ("cpu",))
    inner.create()
    inner.limit_bandwidth(Bandwidth(10_000, 8_000))
    if cgroup.observe().backend("cpu") == "v1":
        assert files_named(inner, "cpu.cfs_quota_us") == {"cpu.cfs_quota_us": "-1"}
        inner.limit_bandwidth(Bandwidth(10_000, 4_000))
        assert files_named(inner, "cpu.cfs_quota_us") == {"cpu.cfs_quota_us": "4000"}


# ── the freezer ──────────────────────────────────────────────────────────────────────────────────────────────────────


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_ns = soon_ns()
    while not condition():
        assert time.monotonic_ns() < deadline_ns, "waited in vain"
        time.sleep(0.001)


@pytest.fixture
def make_freezer(make_group: Make) -> Iterator[Callable[[], tuple[Group, Freezer]]]:
    made: list[Freezer] = []

    def make() -> tuple[Group, Freezer]:
        group = make_group(())
        assert group.unified is not None
        made.append(Freezer(group.unified))
        return group, made[-1]

    yield make
    for freezer in made:
        freezer.close()


def spin_in(group: Group, priority: int = 0) -> int:
    """A process in a group that spins until it is killed, SCHED_FIFO if it has a priority."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        prctl.die_with_parent(parent)
        group.enter()
        if priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        while True:
            pass
    return pid


def test_a_frozen_group_uses_no_cpu_and_a_thawed_one_does(make_freezer: Callable[[], tuple[Group, Freezer]]) -> None:
    group, freezer = make_freezer()
    pid = spin_in(group)
    try:
        wait_for(freezer.is_populated)
        for _ in range(3):
            freezer.freeze()
            wait_for(freezer.is_frozen)
            before_ns = freezer.usage_ns()
            time.sleep(0.02)
            assert freezer.usage_ns() == before_ns
            freezer.thaw()
            wait_for(lambda: freezer.usage_ns() > before_ns)  # noqa: B023 (called at once)
            assert not freezer.is_frozen()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_frozen_process_obeys_sigkill_and_what_it_used_stays_in_the_account(
    make_freezer: Callable[[], tuple[Group, Freezer]],
) -> None:
    group, freezer = make_freezer()
    pid = spin_in(group)
    wait_for(lambda: freezer.usage_ns() > 5_000_000)
    freezer.freeze()
    wait_for(freezer.is_frozen)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    wait_for(lambda: not freezer.is_populated())
    assert freezer.usage_ns() > 5_000_000


def test_what_enters_a_frozen_group_is_frozen(make_freezer: Callable[[], tuple[Group, Freezer]]) -> None:
    group, freezer = make_freezer()
    freezer.freeze()
    wait_for(freezer.is_frozen)
    pid = spin_in(group)
    try:
        wait_for(freezer.is_populated)
        wait_for(freezer.is_frozen)
        before_ns = freezer.usage_ns()
        time.sleep(0.02)
        assert freezer.usage_ns() == before_ns
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ── the v1 freezer, where no v2 tree is mounted ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def group_v1() -> Iterator[Group]:
    """A group of ours as it is made without a v2 tree, in the freezer's hierarchy alone."""
    freezer = cgroup.observe().v1.get(cgroup.FREEZER)
    if freezer is None:
        pytest.skip("needs the v1 freezer")
    group = Group(Hierarchies(None, frozenset(), {cgroup.FREEZER: freezer}), f"vcg-test-{os.getpid()}")
    group.create()
    yield group
    for directory in group.directories:
        (directory / "freezer.state").write_text("THAWED")
    assert cgroup.kill(group.directories, soon_ns()) == set()
    assert cgroup.remove(group.directories, soon_ns()) == []


def test_without_a_v2_tree_a_group_is_in_the_freezer_and_so_is_what_is_admitted(
    group_v1: Group, child_that: Any
) -> None:
    inner = Group(group_v1, "services", ())
    inner.create()
    with child_that(group_v1.enter) as first, child_that(lambda: None) as second:
        inner.admit(second.pid)
        assert group_v1.members() == {first.pid, second.pid}
        assert inner.members() == {second.pid}


def test_who_forks_faster_than_signals_come_is_ended_in_one_round(group_v1: Group) -> None:
    """Each process lives for a moment only, and has left another."""
    for _ in range(16):
        if os.fork() == 0:
            group_v1.enter()
            end_ns = soon_ns(10)
            while time.monotonic_ns() < end_ns:
                if os.fork():
                    os._exit(0)
            os._exit(0)
    for _ in range(16):
        os.wait()
    assert group_v1.members()
    assert cgroup.kill(group_v1.directories, 0) != set()
    wait_for(lambda: not group_v1.members())


def test_a_group_that_was_left_frozen_is_ended_too(group_v1: Group) -> None:
    """Frozen in v1 it does not obey SIGKILL: whoever was killed in the middle of a round has left it so."""
    (directory,) = group_v1.directories
    pid = spin_in(group_v1)
    wait_for(lambda: group_v1.members() == {pid})
    (directory / "freezer.state").write_text("FROZEN")
    wait_for(lambda: (directory / "freezer.state").read_text() == "FROZEN\n")
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.05)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert cgroup.kill(group_v1.directories, 0) == {pid}
    wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frozen_cell_holds_its_group_whatever_the_groups_own_switch_says() -> None:
    group = Group(cgroup.observe(), f"vcg-test-{os.getpid()}", (), in_cell=True)
    group.create()
    pid = spin_in(group)
    assert group.cell is not None and group.unified is not None
    cell, own = Freezer(group.cell), Freezer(group.unified)
    try:
        wait_for(lambda: cell.usage_ns() > 1_000_000)
        own.freeze()
        cell.freeze()
        own.thaw()
        wait_for(cell.is_frozen)
        before_ns = own.usage_ns()
        time.sleep(0.02)
        assert own.usage_ns() == before_ns
        cell.thaw()
        wait_for(lambda: own.usage_ns() > before_ns)
        own.freeze()
        cell.freeze()
        cell.thaw()
        wait_for(own.is_frozen)
    finally:
        for freezer in (cell, own):
            freezer.close()
        assert cgroup.kill(group.directories, soon_ns()) == set()
        os.waitpid(pid, 0)
        assert cgroup.remove(group.directories, soon_ns()) == []
    assert not group.cell.exists()


def test_a_process_is_in_the_group_and_not_in_its_cell(child_that: Any) -> None:
    group = Group(cgroup.observe(), f"vcg-test-{os.getpid()}", (), in_cell=True)
    group.create()
    try:
        with child_that(group.enter) as child:
            assert cgroup.observe(child.pid).unified == group.unified
            assert group.members() == {child.pid}
            assert (group.cell / "cgroup.procs").read_text() == ""  # type: ignore[operator]
    finally:
        assert cgroup.remove(group.directories, soon_ns()) == []


# ── delegation ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mark", cgroup.DELEGATION_MARKS)
def test_a_delegated_group_is_known_by_its_mark_and_by_nothing_else(make_group: Make, mark: str) -> None:
    directory = make_group(()).unified
    assert directory is not None
    assert not cgroup.is_delegated(directory)
    os.setxattr(directory, mark, b"0")
    assert not cgroup.is_delegated(directory)
    os.setxattr(directory, mark, b"1")
    assert cgroup.is_delegated(directory)
    assert not cgroup.is_delegated(directory.parent)
    assert not cgroup.observe().is_delegated


def test_who_is_in_a_delegated_group_steps_aside_and_still_builds_below_it(make_group: Make, child_that: Any) -> None:
    directory = make_group(()).unified
    assert directory is not None
    os.setxattr(directory, "user.delegate", b"1")

    def act() -> tuple[Hierarchies, Hierarchies]:
        (directory / "cgroup.procs").write_text(str(os.getpid()))
        before = cgroup.observe()
        for _ in range(2):
            cgroup.step_aside(directory, ())
        return before, cgroup.observe()

    with child_that(lambda: None) as bystander:
        (directory / "cgroup.procs").write_text(str(bystander.pid))
        with child_that(act) as child:
            before, after = child.said
            assert before == after
            assert (after.unified, after.is_delegated) == (directory, True)
            leaf = directory / cgroup.LEAF
            assert cgroup.members_below(leaf) == {child.pid, bystander.pid}
            assert (directory / "cgroup.procs").read_text() == ""
            assert (Group(after, "vcg-inner", ()).unified) == directory / "vcg-inner"


def test_real_time_tasks_are_demoted_while_they_are_frozen(make_group: Make) -> None:
    group = make_group(())
    assert group.unified is not None
    freezer = FifoFreezer(group.unified, 7)
    pids = [spin_in(group, priority) for priority in (7, 7)]

    def classes() -> set[tuple[int, int]]:
        return {(os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority) for pid in pids}

    try:
        wait_for(lambda: group.members() == set(pids) and classes() == {(os.SCHED_FIFO, 7)})
        for _ in range(2):
            freezer.freeze()
            wait_for(freezer.is_frozen)
            assert classes() == {(os.SCHED_IDLE, 0)}
            before_ns = freezer.usage_ns()
            freezer.thaw()
            assert classes() == {(os.SCHED_FIFO, 7)}
            wait_for(lambda: freezer.usage_ns() > before_ns)  # noqa: B023 (called at once)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        freezer.close()


# ── membership ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_enters_is_in_every_hierarchy_of_the_group(make_group: Make, child_that: Any) -> None:
    group = make_group()
    served = {controller for controller in CONTROLLERS if cgroup.observe().backend(controller) == "v1"}
    assert len(group.directories) == len(served) + (cgroup.observe().unified is not None)
    with child_that(group.enter) as child:
        assert [cgroup.members_below(path) for path in group.directories] == [{child.pid}] * len(group.directories)
        assert group.members() == {child.pid}


def test_a_controller_that_is_not_asked_for_is_not_entered(make_group: Make, child_that: Any) -> None:
    before = cgroup.observe()
    group = make_group(("memory", "pids"))

    def act() -> Hierarchies:
        group.enter()
        return cgroup.observe()

    with child_that(act) as child:
        for controller in ("cpu", "cpuset"):
            assert child.said.v1.get(controller) == before.v1.get(controller)
        assert set(group.directories) == {
            child.said.unified,
            *(child.said.v1[name] for name in ("memory", "pids") if name in child.said.v1),
        }


def test_another_process_is_admitted_on_the_v2_side_only(make_group: Make, child_that: Any) -> None:
    group = make_group()
    with child_that(os.getpid) as child:
        group.admit(child.pid)
        holding = [path for path in group.directories if child.pid in cgroup.members_below(path)]
    assert holding == [directory for directory in group.directories if (directory / "cgroup.kill").exists()]
    assert len(holding) == 1


def test_members_of_an_inner_group_count_for_the_outer(make_group: Make, child_that: Any) -> None:
    outer = make_group()
    inner = Group(outer, "inner", ("memory",))
    inner.create()
    with child_that(inner.enter) as child:
        assert outer.members() == inner.members() == {child.pid}


def test_a_group_that_exists_already_is_not_taken_over(make_group: Make) -> None:
    group = make_group()
    with pytest.raises(FileExistsError, match=group.directories[0].name):
        group.create()


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def fork_tree() -> list[int]:
    """A process that ignores SIGTERM, with a stopped child and a daemon as grandchild; their pids."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told, tell = os.pipe()
    if (stopped := os.fork()) == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    if (between := os.fork()) == 0:
        if (daemon := os.fork()) == 0:
            os.setsid()
            signal.pause()
        os.write(tell, daemon.to_bytes(4, "little"))
        os._exit(0)
    os.waitpid(between, 0)
    os.waitpid(stopped, os.WUNTRACED)
    return [os.getpid(), stopped, int.from_bytes(os.read(told, 4), "little")]


@pytest.mark.parametrize("switch", [True, False], ids=["with cgroup.kill", "signal by signal"])
def test_kill_ends_a_tree_of_daemons_and_stopped_processes(make_group: Make, child_that: Any, switch: bool) -> None:
    group = make_group()

    def act() -> list[int]:
        group.enter()
        return fork_tree()

    directories = [path for path in group.directories if (path / "cgroup.kill").exists() is switch]
    with child_that(act) as child:
        assert len(child.said) == 3
        assert all(map(is_alive, child.said))
        assert not cgroup.kill(directories, soon_ns())
        assert not group.members()
        assert not any(map(is_alive, child.said))


def test_kill_ends_what_forks_faster_than_it_can_be_listed(make_group: Make, child_that: Any) -> None:
    group = make_group()
    group.limit(pids=16)
    end = time.monotonic() + 5  # should the kill fail

    def hop() -> None:
        group.enter()
        if os.fork() == 0:
            while time.monotonic() < end:
                if os.fork():
                    os._exit(0)
            os._exit(0)

    with child_that(hop):
        assert not cgroup.kill(group.directories, soon_ns(3))
        time.sleep(0.02)
        assert not group.members()
    assert time.monotonic() < end


def test_kill_names_who_is_left_at_the_deadline(make_group: Make, child_that: Any) -> None:
    group = make_group()
    with child_that(group.enter) as child:
        assert cgroup.kill(group.directories, time.monotonic_ns()) == {child.pid}


def test_remove_leaves_nothing_of_a_group_and_its_inner_groups(make_group: Make) -> None:
    group = make_group()
    inner = Group(group, "inner")
    inner.create()
    assert not cgroup.remove(group.directories, soon_ns())
    assert not any(path.exists() for path in [*group.directories, *inner.directories])
    assert not cgroup.remove(group.directories, soon_ns())


def test_remove_names_the_groups_that_are_in_use(make_group: Make, child_that: Any) -> None:
    group = make_group()
    with child_that(group.enter) as child:
        assert set(cgroup.remove(group.directories, soon_ns(0.02))) == set(group.directories)
        assert is_alive(child.pid)


# ── v2, as far as it shows without its controllers ───────────────────────────────────────────────────────────────────


def test_with_v2_controllers_everything_is_in_one_directory(tmp_path: Path) -> None:
    outer = Group(Hierarchies(tmp_path, frozenset(CONTROLLERS), {}), "vcg-test")
    outer.create()
    inner = Group(outer, "d1")
    inner.create()
    inner.limit(cpus=[1, 0], node=0, memory_bytes=MIB, pids=3, weight=0.5)
    assert outer.directories == [tmp_path / "vcg-test"]
    assert inner.directories == [tmp_path / "vcg-test" / "d1"]
    assert (tmp_path / "vcg-test" / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory +pids"
    assert {path.name: path.read_text() for path in inner.directories[0].iterdir()} == {
        "cpuset.cpus": "0,1",
        "cpuset.mems": "0",
        "memory.max": str(MIB),
        "pids.max": "3",
        "cpu.weight": "50",
    }


def test_with_the_v2_controller_nothing_of_a_group_is_swapped_out(tmp_path: Path) -> None:
    group = Group(Hierarchies(tmp_path, frozenset({"memory"}), {}), "vcg-test")
    group.create()
    (tmp_path / "vcg-test" / "memory.swap.max").write_text("max")
    group.limit(memory_bytes=MIB)
    assert (tmp_path / "vcg-test" / "memory.swap.max").read_text() == "0"


@pytest.mark.parametrize(("weight", "written"), [(0.001, "1"), (1.0, "100"), (1000.0, "10000")])
def test_a_v2_weight_stays_in_the_kernels_range(tmp_path: Path, weight: float, written: str) -> None:
    group = Group(Hierarchies(tmp_path, frozenset({"cpu"}), {}), "vcg-test")
    group.create()
    group.limit(weight=weight, memory_bytes=MIB)
    assert (tmp_path / "vcg-test" / "cpu.weight").read_text() == written
    assert not (tmp_path / "vcg-test" / "memory.max").exists()


def test_a_v2_cap_is_in_one_file_and_its_burst_in_another(tmp_path: Path) -> None:
    group = Group(Hierarchies(tmp_path, frozenset({"cpu"}), {}), "vcg-test")
    group.create()
    place = tmp_path / "vcg-test"
    group.limit_bandwidth(Bandwidth(10_000, 3_000))
    assert [(place / name).read_text() for name in ("cpu.max", "cpu.max.burst")] == ["3000 10000", "3000"]
    group.limit_bandwidth(None)
    assert [(place / name).read_text() for name in ("cpu.max", "cpu.max.burst")] == ["max 100000", "0"]


def test_an_error_names_the_file_and_the_value(make_group: Make) -> None:
    group = make_group(("cpuset",))
    with pytest.raises(OSError, match=r"cpuset\.cpus <- 9999"):
        group.limit(cpus=[9999])


def test_a_process_that_dies_leaves_its_group_empty(make_group: Make, child_that: Any) -> None:
    group = make_group()
    with child_that(group.enter):
        assert group.members()
    assert not group.members()
