"""What is left of the host inside a dimension's confinement; most attacks stand beside the same without the defence."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vcg import storage, uids
from vcg.linux import landlock, memory, mount, netns, prctl, sandbox, seccomp
from vcg.linux.libc import libc

pytestmark = pytest.mark.usefixtures("root")
UID = uids.SPARE[3]
_PR_GET_DUMPABLE = 3
DEEP = 10_000
LIMITED = {
    "Max core file size": "1",
    "Max open files": "256",
    "Max locked memory": "0",
    "Max msgqueue size": "0",
    "Max nice priority": "0",
    "Max realtime priority": "0",
    "Max pending signals": "256",
}
"""As proc(5) calls them."""


@pytest.fixture
def enclosed(roots: Any) -> Callable[..., Callable[[], Any]]:
    """``enclosed(act, devices, binds)``: for a child, confine its view to a fresh tmpfs, still as root, then act.

    In it there is ``/tmp``, in which everybody may write.
    """

    def make(
        act: Callable[[], object], devices: tuple[str, ...] = (), binds: tuple[str, ...] = ()
    ) -> Callable[[], Any]:
        def inside() -> object:
            mount.enter_private_namespace()
            storage.mount_tmpfs(roots.mount_root, 1 << 20, None)
            (roots.mount_root / "tmp").mkdir()
            (roots.mount_root / "tmp").chmod(0o777)
            sandbox.take(sandbox.enclosure(roots.mount_root, devices, binds))
            return act()

        return inside

    return make


@pytest.fixture
def confined(enclosed: Any) -> Callable[..., Callable[[], Any]]:
    """As ``enclosed``, and everything that root may do is given up before the act."""

    filter_ = seccomp.compile_policy(None)

    def make(
        act: Callable[[], object], devices: tuple[str, ...] = (), binds: tuple[str, ...] = ()
    ) -> Callable[[], Any]:
        parent, groups = os.getpid(), sandbox.groups_of(devices)

        def inside() -> object:
            sandbox.take(sandbox.surrendering(UID, parent, filter_, groups))
            return act()

        made: Callable[[], Any] = enclosed(inside, devices, binds)
        return made

    return make


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def test_nothing_of_root_is_left(confined: Any, child_that: Any) -> None:
    with child_that(confined(lambda: libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))) as child:
        seen = status(child.pid)
        assert child.said == 0
        assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert seen["Uid"].split() == seen["Gid"].split() == [str(UID)] * 4
        assert seen["Groups"].split() == []
        assert (seen["NoNewPrivs"], seen["Seccomp"], seen["Seccomp_filters"]) == ("1", "2", "1")
        assert {int(link.name) for link in Path(f"/proc/{child.pid}/fd").iterdir()} == {0, 1, 2}
        assert os.getsid(child.pid) == child.pid
        limits = Path(f"/proc/{child.pid}/limits").read_text().splitlines()
        found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
        assert {name: found[name] for name in LIMITED} == {name: [value, value] for name, value in LIMITED.items()}


def test_no_limit_is_raised(in_child: Any) -> None:
    def act() -> tuple[int, int]:
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (7, 9))
        dict(sandbox.surrendering(UID, os.getpid()))["limits"]()
        return resource.getrlimit(resource.RLIMIT_SIGPENDING)

    assert in_child(act) == (9, 9)


def test_where_no_cgroup_limits_processes_their_number_for_each_uid_does(in_child: Any) -> None:
    def act() -> tuple[int, int]:
        dict(sandbox.surrendering(UID, os.getpid(), processes=5))["limits"]()
        return resource.getrlimit(resource.RLIMIT_NPROC)

    assert in_child(act) == (5, 5)


def test_all_but_the_dumpable_flag_stays_over_an_exec(confined: Any, in_child: Any, roots: Any, tmp_path: Path) -> None:
    """A program of the host tells its own state from inside, as one behind the freezer gate could."""
    tool = tmp_path / "status"
    source = Path(__file__).with_name("status.c")
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-static", "-o", tool, source], check=True)

    def act() -> str:
        told, tell = os.pipe()
        os.dup2(tell, 2)
        if (pid := os.fork()) == 0:
            os.execve(tool, [str(tool)], {})
        os.close(tell)
        os.close(2)
        os.waitpid(pid, 0)
        return os.read(told, 4096).decode()

    tmp_path.chmod(0o755)
    said = dict(line.split("=") for line in in_child(confined(act, binds=(str(tmp_path),))).splitlines())
    assert said == {
        "uid": str(UID),
        "groups": "0",
        "capabilities": "0",
        "no_new_privs": "1",
        "seccomp": "2",
        "limits": " ".join(str(value) for value in sandbox.LIMITS.values()),
        "mount": "EPERM",
        "socket": "EAFNOSUPPORT",
        "thread": "ok",
        "environment": "0",
    }


def test_only_the_new_root_and_the_granted_devices_are_mounted(confined: Any, child_that: Any) -> None:
    with child_that(confined(lambda: sorted(map(str, Path("/").iterdir())), ("/dev/null",))) as child:
        entries = mount.mounts(child.pid)
        assert child.said == ["/dev", "/tmp"]
        assert [str(entry.point) for entry in entries] == ["/", "/dev/null"]
        assert {"nodev", "nosuid", "noatime"} <= set(entries[0].options)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: os.setresuid(0, 0, 0),
        lambda: os.chroot("/tmp"),
        lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(254, 0)),
        lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        lambda: mount.mount("tmpfs", "/tmp", "tmpfs"),
        lambda: os.kill(os.getppid(), signal.SIGCONT),
    ],
    ids=["setresuid", "chroot", "mknod", "real time", "mount", "signal the parent"],
)
def test_what_only_root_may_do_is_refused(confined: Any, enclosed: Any, in_child: Any, attempt: Any) -> None:
    def act() -> str:
        try:
            attempt()
        except PermissionError:
            return "refused"
        return "done"

    assert in_child(enclosed(act)) == "done"
    assert in_child(confined(act)) == "refused"


def nested_chroot() -> tuple[int, int]:
    """The classic way out of a chroot: a second one while the working directory stays outside; where it led."""
    Path("/inner").mkdir()
    os.chroot("/inner")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return identity("/")


def test_a_nested_chroot_leads_out_of_a_chroot_alone_but_not_out_of_the_enclosure(
    enclosed: Any, in_child: Any, roots: Any
) -> None:
    def chroot_alone() -> tuple[int, int]:
        mount.enter_private_namespace()
        storage.mount_tmpfs(roots.mount_root, 1 << 20, None)
        os.chroot(roots.mount_root)
        os.chdir("/")
        return nested_chroot()

    def from_the_enclosure() -> tuple[tuple[int, int], tuple[int, int]]:
        return identity("/"), nested_chroot()

    host = identity("/")
    assert in_child(chroot_alone) == host
    before, after = in_child(enclosed(from_the_enclosure))
    assert after == before != host


def open_device(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return type(error).__name__
    return "opened"


def test_a_granted_device_works_and_no_other(confined: Any, enclosed: Any, in_child: Any) -> None:
    granted = confined(lambda: [open_device("/dev/null"), open_device("/dev/zero")], ("/dev/null",))
    assert in_child(granted) == ["opened", "FileNotFoundError"]

    def make_one() -> str:
        os.mknod("/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        return open_device("/zero")

    assert in_child(enclosed(make_one)) == "PermissionError"


def test_a_device_node_that_was_made_works_where_devices_are_allowed(in_child: Any, roots: Any) -> None:
    def act() -> str:
        mount.enter_private_namespace()
        mount.mount("tmpfs", roots.mount_root, "tmpfs")
        os.mknod(roots.mount_root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        return open_device(str(roots.mount_root / "zero"))

    assert in_child(act) == "opened"


def test_a_descriptor_of_the_host_is_not_inherited(confined: Any, in_child: Any, tmp_path: Path) -> None:
    outside = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)

    def act() -> str:
        try:
            os.fstat(outside)
        except OSError as error:
            return error.strerror or ""
        return "inherited"

    try:
        assert in_child(lambda: os.stat(".", dir_fd=outside).st_ino) == tmp_path.stat().st_ino
        assert in_child(confined(act)) == "Bad file descriptor"
    finally:
        os.close(outside)


@pytest.mark.parametrize(("has_network", "expected"), [(True, "Connection refused"), (False, "connected")])
def test_where_landlock_has_no_scopes_a_network_of_its_own_keeps_abstract_sockets_apart(
    confined: Any, in_child: Any, monkeypatch: pytest.MonkeyPatch, has_network: bool, expected: str
) -> None:
    """As on Linux 6.1, whose Landlock is of ABI 2."""
    monkeypatch.setattr(landlock, "abi", lambda: 2)
    monkeypatch.setattr(netns, "is_available", lambda: has_network)
    name = f"\0vcg-test-{os.getpid()}"

    def act() -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(name)
            except OSError as error:
                return error.strerror or ""
            return "connected"

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        assert in_child(confined(act)) == expected


def test_a_name_for_a_socket_is_nobodys_business_outside(confined: Any, child_that: Any) -> None:
    name = f"\0vcg-test-{os.getpid()}"
    kept = []

    def act() -> None:
        kept.append(socket.socket(socket.AF_UNIX))
        kept[0].bind(name)
        kept[0].listen()

    with (
        child_that(confined(act)),
        socket.socket(socket.AF_UNIX) as connection,
        pytest.raises(ConnectionRefusedError),
    ):
        connection.connect(name)


def test_a_crash_starts_no_helper_outside_and_nobody_can_have_it_otherwise(confined: Any, in_child: Any) -> None:
    def act() -> tuple[tuple[int, int], str]:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        except (OSError, ValueError) as error:
            return resource.getrlimit(resource.RLIMIT_CORE), str(error)
        return resource.getrlimit(resource.RLIMIT_CORE), "lowered"

    limits, said = in_child(confined(act))
    assert limits == (1, 1)
    assert "not permitted" in said or "not allowed" in said


def test_it_dies_with_its_parent(roots: Any, in_child: Any) -> None:
    def act() -> int:
        told, tell = os.pipe()
        if (parent := os.fork()) == 0:
            me = os.getpid()
            if os.fork() == 0:
                pid = os.getpid()
                os.dup2(tell, 1)
                mount.enter_private_namespace()
                storage.mount_tmpfs(roots.mount_root, 1 << 20, None)
                sandbox.take(sandbox.enclosure(roots.mount_root, ()) + sandbox.surrendering(UID, me))
                os.write(1, pid.to_bytes(4, "little"))
                signal.alarm(20)
            signal.pause()
        pid = int.from_bytes(os.read(told, 4), "little")
        prctl.adopt_orphans()
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        return pid and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_child(act) == -signal.SIGKILL


def test_a_parent_that_is_gone_already_stops_the_confinement(enclosed: Any, in_child: Any) -> None:
    with pytest.raises(ProcessLookupError, match="parent 1 ended"):
        in_child(enclosed(lambda: sandbox.take(sandbox.surrendering(UID, 1))))


def test_the_mounts_of_a_confined_process_end_with_it(confined: Any, child_that: Any, roots: Any) -> None:
    with child_that(confined(os.getpid)) as child:
        devices = {entry.identifier for entry in mount.mounts(child.pid)}
    assert devices
    deadline = time.monotonic() + 2
    while devices & {entry.identifier for entry in mount.mounts()}:
        assert time.monotonic() < deadline
    assert not list(roots.mount_root.iterdir())


def test_a_grant_brings_the_group_of_the_node_and_no_other(confined: Any, in_child: Any, tmp_path: Path) -> None:
    node = tmp_path / "null"
    os.mknod(node, stat.S_IFCHR | 0o660, os.makedev(1, 3))
    assert sandbox.groups_of([str(node)]) == []  # root's own group is never given
    os.chown(node, 0, 4242)
    node.chmod(0o660)

    def act() -> tuple[list[int], str]:
        return os.getgroups(), open_device(str(node))

    assert in_child(confined(act, (str(node),))) == ([4242], "opened")
    node.chmod(0o666)
    assert in_child(confined(act, (str(node),))) == ([], "opened")


def test_a_locked_dimension_may_still_call_deeply(in_child: Any) -> None:
    """A locked stack can't grow beyond RLIMIT_MEMLOCK: the call that needs more of it is the last one."""

    def after(lock: Callable[[], object]) -> Callable[[], int]:
        def act() -> int:
            faulthandler.disable()  # what would else end up on the terminal is what is expected
            lock()
            steps = dict(sandbox.surrendering(UID, os.getppid()))
            steps["limits"]()
            steps["uid"]()
            sys.setrecursionlimit(2 * DEEP)
            return len(json.loads("[" * DEEP + "]" * DEEP))

        return act

    assert in_child(after(lambda: memory.lock_all(future=False))) == 1
    with pytest.raises(AssertionError, match="the child died"):
        in_child(after(lambda: libc.mlockall(1)))
