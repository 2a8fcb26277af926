"""Mounts in a private namespace: the host never sees them, and a pivot leaves nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vcg.linux import mount

pytestmark = pytest.mark.usefixtures("root")


def points(pid: int | str = "self") -> list[Path]:
    return [entry.point for entry in mount.mounts(pid)]


def test_a_private_namespace_hides_its_mounts_from_the_host(roots: Any, child_that: Any) -> None:
    def act() -> list[str]:
        mount.enter_private_namespace()
        mount.mount("vcg-test", roots.mount_root, "tmpfs", mount.MS_NODEV, "size=1M")
        (roots.mount_root / "inside").touch()
        return [path.name for path in roots.mount_root.iterdir()]

    with child_that(act) as child:
        assert child.said == ["inside"]
        (entry,) = [entry for entry in mount.mounts(child.pid) if entry.point == roots.mount_root]
        assert (entry.root, entry.fstype, entry.source) == ("/", "tmpfs", "vcg-test")
        assert {"nodev", "size=1024k"} <= set(entry.options)
        assert roots.mount_root not in points()
        assert not list(roots.mount_root.iterdir())


def test_what_the_host_mounts_later_does_not_reach_into_a_private_namespace(roots: Any, child_that: Any) -> None:
    def host() -> int:
        mount.enter_private_namespace()  # stands for the host, which the test must leave alone
        mount.mount("", "/", flags=mount.MS_REC | 1 << 20)  # MS_SHARED
        told, tell = os.pipe()
        go, gone = os.pipe()
        if (pid := os.fork()) == 0:
            mount.enter_private_namespace()
            os.write(tell, b"!")
            os.read(go, 1)
            os.write(tell, b"y" if roots.mount_root in points() else b"n")
            os._exit(0)
        os.read(told, 1)
        mount.mount("vcg-test", roots.mount_root, "tmpfs")
        os.write(gone, b"!")
        seen = os.read(told, 1)
        os.waitpid(pid, 0)
        return seen[0]

    with child_that(host) as child:
        assert chr(child.said) == "n"


def test_a_pivot_leaves_only_the_new_root(roots: Any, child_that: Any) -> None:
    def act() -> list[str]:
        mount.enter_private_namespace()
        mount.mount("vcg-test", roots.mount_root, "tmpfs")
        (roots.mount_root / "marker").touch()
        mount.pivot_into(roots.mount_root)
        return [*map(str, Path("/").iterdir()), *map(str, Path("/..").iterdir()), str(Path.cwd())]

    with child_that(act) as child:
        assert child.said == ["/marker", "/../marker", "/"]
        (only,) = mount.mounts(child.pid)
        assert (only.point, only.source) == (Path("/"), "vcg-test")


def test_a_bound_file_is_the_same_file(roots: Any, in_child: Any) -> None:
    def act() -> tuple[str, bool]:
        mount.enter_private_namespace()
        source, target = roots.mount_root / "source", roots.mount_root / "target"
        source.write_text("bound")
        target.touch()
        mount.bind(source, target)
        return target.read_text(), target.samefile(source)

    assert in_child(act) == ("bound", True)


def test_a_busy_mount_goes_out_of_sight_when_it_is_detached(roots: Any, in_child: Any) -> None:
    def act() -> tuple[str, bool]:
        mount.enter_private_namespace()
        mount.mount("vcg-test", roots.mount_root, "tmpfs")
        with (roots.mount_root / "open").open("w") as file:
            try:
                mount.unmount(roots.mount_root)
            except OSError as error:
                refused = str(error)
            mount.unmount(roots.mount_root, detach=True)
            file.write("still there")
            return refused, roots.mount_root in points()

    refused, still_seen = in_child(act)
    assert "busy" in refused
    assert str(roots.mount_root) in refused
    assert not still_seen


def test_an_error_names_the_target(roots: Any, in_child: Any) -> None:
    missing = roots.mount_root / "missing"

    def act() -> None:
        mount.enter_private_namespace()
        mount.mount("vcg-test", missing, "tmpfs")

    def pivot_into_no_mount() -> None:
        mount.enter_private_namespace()
        mount.pivot_into(roots.mount_root)

    with pytest.raises(FileNotFoundError, match=f"vcg-test on {missing}"):
        in_child(act)
    with pytest.raises(OSError, match=str(roots.mount_root)):
        mount.unmount(roots.mount_root)
    with pytest.raises(OSError, match=f"pivot_root {roots.mount_root}"):
        in_child(pivot_into_no_mount)


def test_the_mounts_of_a_process_that_is_gone_are_an_error() -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(FileNotFoundError):
        mount.mounts(pid)
