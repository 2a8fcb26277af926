"""The audit against the real kernel: everything that a run could leave behind is found, and nothing once it is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vcg import audit, uids
from vcg.linux import bpf, cgroup, loop, mount, prctl
from vcg.linux.libc import check, libc, syscall

pytestmark = pytest.mark.usefixtures("root")
IMAGE_BYTES = 1 << 20
_IPC_CREAT, _IPC_RMID = 0o1000, 0  # linux/ipc.h
_SYS_BPF, _BPF_PROG_LOAD, _SOCKET_FILTER = 321, 5, 1  # linux/bpf.h


@contextmanager
def in_a_process(prepare: Callable[[], object]) -> Iterator[int]:
    """A process that has done something and stays; yields its pid."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            os.write(done, b"!")
            signal.pause()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"!"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def found(roots: Any, kind: str) -> list[audit.Leftover]:
    return [item for item in audit.leftovers(*roots) if item.kind == kind]


def gone(roots: Any, kind: str) -> bool:
    """Whether a kind vanishes within a second: the kernel clears loops and mounts a moment later."""
    deadline = time.monotonic() + 1
    while found(roots, kind):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_fresh_roots_hold_nothing(roots: Any) -> None:
    kinds = {item.kind for item in audit.leftovers(*roots)}
    assert kinds <= {"process", "cgroup"}  # those of another run on this host have nothing to do with the roots


def test_a_bound_loop_is_found_even_when_its_image_is_deleted(roots: Any) -> None:
    image = roots.state_root / "d4.img"
    image.write_bytes(bytes(IMAGE_BYTES))
    bound = loop.attach(image)
    try:
        assert [(item.name, item.detail) for item in found(roots, "loop")] == [(bound.path.name, str(image))]
        image.unlink()
        assert [item.name for item in found(roots, "loop")] == [bound.path.name]
    finally:
        os.close(bound.fd)
    assert gone(roots, "loop")


def test_a_mount_in_the_private_namespace_of_another_process_is_found(roots: Any) -> None:
    def act() -> None:
        mount.enter_private_namespace()
        mount.mount("tmpfs", roots.mount_root, "tmpfs")

    with in_a_process(act) as pid:
        assert [(item.name, item.detail) for item in found(roots, "mount")] == [
            (str(roots.mount_root), f"tmpfs tmpfs, seen by pid {pid}")
        ]
    assert gone(roots, "mount")


def test_a_cgroup_is_found_in_every_hierarchy(roots: Any) -> None:
    group = cgroup.Group(cgroup.observe(), f"vcg-test-{os.getpid()}")
    group.create()
    try:
        names = {item.name for item in found(roots, "cgroup")}
        assert {str(directory) for directory in group.directories} <= names
    finally:
        cgroup.remove(group.directories, time.monotonic_ns() + 10**9)
    assert not {str(directory) for directory in group.directories} & {item.name for item in found(roots, "cgroup")}


def test_a_process_is_found_by_its_name(roots: Any) -> None:
    with in_a_process(lambda: prctl.set_name("vcg:test")) as pid:
        assert f"{pid}" in [item.name for item in found(roots, "process")]
    assert f"{pid}" not in [item.name for item in found(roots, "process")]


def test_shared_memory_of_a_dimensions_uid_is_found(roots: Any) -> None:
    def act() -> None:
        os.setuid(uids.SPARE[1])
        check(libc.shmget(ctypes.c_int(0), ctypes.c_size_t(4096), _IPC_CREAT | 0o600), "shmget")

    with in_a_process(act):
        (item,) = found(roots, "sysv")
    assert item.detail == f"uid {uids.SPARE[1]}, created by {uids.SPARE[1]}"
    check(libc.shmctl(int(item.name.removeprefix("shm ")), _IPC_RMID, None), "shmctl")
    assert not found(roots, "sysv")


def test_a_bound_socket_and_its_file_are_found(roots: Any) -> None:
    path = roots.state_root / "rtd.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert [(item.name, item.detail) for item in found(roots, "socket")] == [
            (str(path), "bound"),
            (str(path), "file"),
        ]
    path.unlink()
    assert not found(roots, "socket")


def test_files_are_found_but_for_those_that_are_kept(roots: Any) -> None:
    for name in (*audit.KEPT_FILES, "d1.img"):
        (roots.state_root / name).touch()
    assert [item.name for item in found(roots, "file")] == [str(roots.state_root / "d1.img")]


def test_what_somebody_has_unpacked_into_a_snapshot_is_theirs(roots: Any) -> None:
    kept = roots.state_root / "snapshots" / "20260102T030405.678901Z-d4-crash" / "d4" / "data"
    part = kept.parents[2] / "20260102T030405.678901Z-d4-crash.part-1-1"
    for place in (kept, part):
        place.mkdir(parents=True)
        (place / "file").touch()
    assert [item.name for item in found(roots, "file")] == [str(part / "file")]


def test_a_loaded_bpf_program_is_found_by_the_start_of_its_name(roots: Any) -> None:
    name = "an_instruction_that_returns_nothing"
    with in_a_process(lambda: load_program(name)) as pid:
        assert pid
        items = audit.leftovers(roots.state_root, roots.mount_root, [name])
        assert [item.detail for item in items if item.kind == "bpf"] == [name[: bpf.NAME_BYTES]]
    assert not [item for item in audit.leftovers(roots.state_root, roots.mount_root, [name]) if item.kind == "bpf"]


def load_program(name: str) -> None:
    """``r0 = 0; exit`` as a socket filter (bpf(2), BPF_PROG_LOAD)."""
    instructions = ctypes.create_string_buffer(bytes.fromhex("b7000000000000009500000000000000"))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(128)
    words = memoryview(attributes).cast("B")
    words[0:8] = _SOCKET_FILTER.to_bytes(4, "little") + (2).to_bytes(4, "little")
    words[8:24] = ctypes.addressof(instructions).to_bytes(8, "little") + ctypes.addressof(licence).to_bytes(8, "little")
    short = name.encode()[: bpf.NAME_BYTES]
    words[48 : 48 + len(short)] = short
    syscall(_SYS_BPF, _BPF_PROG_LOAD, ctypes.addressof(attributes), len(attributes), name="BPF_PROG_LOAD")


LEAKS = {
    "loop": "image = roots.state_root / 'x'; image.write_bytes(bytes(1 << 20)); KEEP.append(loop.attach(image))",
    "cgroup": "cgroup.Group(cgroup.observe(), f'vcg-leak-{os.getpid()}').create()",
    "child": "KEEP.append(subprocess.Popen(['sleep', '60']))",
    "descriptor": "KEEP.append(os.memfd_create('vcg-leak'))",
    "directory": "pathlib.Path(f'/tmp/vcg-{os.getpid()}-leak').mkdir()",
    "unexpected skip": "pytest.skip('because it rains')",
}
INNER = """
import os, pathlib, subprocess
import pytest
from vcg.linux import cgroup, loop
KEEP = []
"""


def test_a_suite_fails_for_everything_that_it_leaves_behind(tmp_path: Path) -> None:
    code, output = run_inner_suite(tmp_path, list(LEAKS.values()))
    verdict = output.partition("the suite fails")[2]
    assert code == pytest.ExitCode.TESTS_FAILED
    assert " failed" not in output
    assert {kind for kind in LEAKS if f"{kind} " in verdict} == LEAKS.keys()


def test_a_suite_that_leaves_nothing_behind_passes(tmp_path: Path) -> None:
    code, output = run_inner_suite(tmp_path, ["assert roots.state_root.is_dir()"])
    assert (code, "the suite fails" in output) == (pytest.ExitCode.OK, False)


def run_inner_suite(place: Path, acts: list[str]) -> tuple[int, str]:
    """Run a suite with one test for each act under the same conftest; what it leaks is cleared here."""
    here = Path(__file__).parents[1]
    for name in ("conftest.py", "skips-allowed.toml"):
        (place / name).write_text((here / name).read_text())
    tests = [f"def test_{number}(roots):\n    {act}\n" for number, act in enumerate(acts)]
    (place / "test_inner.py").write_text(INNER + "\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place, start_new_session=True) as inner:
        output, _ = inner.communicate(timeout=60)
    cgroup.remove(
        [Path(item.name) for item in audit.cgroups() if item.name.endswith(f"vcg-leak-{inner.pid}")],
        time.monotonic_ns() + 10**9,
    )
    for directory in Path("/tmp").glob(f"vcg-{inner.pid}-*"):
        directory.rmdir()
    for pid in members_of_session(inner.pid):
        os.kill(pid, signal.SIGKILL)
    return inner.returncode, output


def members_of_session(session: int) -> list[int]:
    """Pids of a session; its leader has ended."""
    stats = [(int(path.name), path / "stat") for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = []
    for pid, path in stats:
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session:
            found.append(pid)
    return found
