"""What is left of the host inside a dimension's confinement; most attacks stand beside the same without the defence."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vcg import storage
from vcg.linux import mount, prctl, sandbox
from vcg.linux.libc import libc
from vcg.plan import UID_FIRST

pytestmark = pytest.mark.usefixtures("root")
UID = UID_FIRST + 50
_PR_GET_DUMPABLE = 3


@pytest.fixture
def enclosed(roots: Any) -> Callable[..., Callable[[], Any]]:
    """``enclosed(act, devices)``: for a child, confine its view to a fresh tmpfs, still as root, then act.

    In it there is ``/tmp``, in which everybody may write.
    """

    def make(act: Callable[[], object], devices: tuple[str, ...] = ()) -> Callable[[], Any]:
        def inside() -> object:
            mount.enter_private_namespace()
            storage.mount_tmpfs(roots.mount_root, 1 << 20, None)
            (roots.mount_root / "tmp").mkdir()
            (roots.mount_root / "tmp").chmod(0o777)
            sandbox.enclose(roots.mount_root, devices)
            return act()

        return inside

    return make


@pytest.fixture
def confined(enclosed: Any) -> Callable[..., Callable[[], Any]]:
    """As ``enclosed``, and everything that root may do is given up before the act."""

    def make(act: Callable[[], object], devices: tuple[str, ...] = ()) -> Callable[[], Any]:
        parent = os.getpid()

        def inside() -> object:
            sandbox.surrender(UID, parent)
            return act()

        made: Callable[[], Any] = enclosed(inside, devices)
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
        assert seen["NoNewPrivs"] == "1"
        assert {int(link.name) for link in Path(f"/proc/{child.pid}/fd").iterdir()} == {0, 1, 2}
        assert os.getsid(child.pid) == child.pid
        limits = Path(f"/proc/{child.pid}/limits").read_text()
        assert [line.split()[-3:-1] for line in limits.splitlines() if "core file" in line] == [["0", "0"]]


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
                sandbox.enclose(roots.mount_root, ())
                sandbox.surrender(UID, me)
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
        in_child(enclosed(lambda: sandbox.surrender(UID, 1)))


def test_the_mounts_of_a_confined_process_end_with_it(confined: Any, child_that: Any, roots: Any) -> None:
    with child_that(confined(os.getpid)) as child:
        devices = {entry.identifier for entry in mount.mounts(child.pid)}
    assert devices
    deadline = time.monotonic() + 2
    while devices & {entry.identifier for entry in mount.mounts()}:
        assert time.monotonic() < deadline
    assert not list(roots.mount_root.iterdir())
