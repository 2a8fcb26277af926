"""The state root: one run at a time, epochs that only grow, and a start that clears away what an earlier run left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vcg import audit, state, storage, uids
from vcg.errors import RunError
from vcg.linux import cgroup, loop, mount, sysvipc
from vcg.linux.cgroup import Group
from vcg.linux.libc import check, libc
from vcg.state import StateRoot

pytestmark = pytest.mark.usefixtures("root")


def enter_and_leave(path: Path) -> str:
    with StateRoot(path):
        return "entered"


# ── whose it is ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_process_is_refused_and_told_who_has_it(roots: Any, in_child: Any) -> None:
    with StateRoot(roots.state_root):
        with pytest.raises(RunError, match=rf"{roots.state_root} is in use by another run \(pid {os.getpid()}\)"):
            in_child(lambda: enter_and_leave(roots.state_root))
        with pytest.raises(RunError, match="in use"):  # a refused attempt has not given the lock up
            in_child(lambda: enter_and_leave(roots.state_root))
    assert in_child(lambda: enter_and_leave(roots.state_root)) == "entered"


def test_the_lock_ends_with_its_process_and_is_not_kept_by_its_children(roots: Any, child_that: Any) -> None:
    survivors: list[int] = []

    def act() -> int:
        StateRoot(roots.state_root).__enter__()
        if (pid := os.fork()) == 0:
            signal.alarm(20)
            signal.pause()
        return pid

    with child_that(act) as child:
        survivors.append(child.said)
    try:
        assert enter_and_leave(roots.state_root) == "entered"
    finally:
        os.kill(survivors[0], signal.SIGKILL)


def test_within_one_process_the_end_of_any_entry_gives_the_lock_up(roots: Any, in_child: Any) -> None:
    with StateRoot(roots.state_root):
        assert enter_and_leave(roots.state_root) == "entered"  # fcntl(2): a process never conflicts with itself
        assert in_child(lambda: enter_and_leave(roots.state_root)) == "entered"


def test_a_state_root_that_is_a_symlink_is_the_directory_behind_it(roots: Any, in_child: Any) -> None:
    link = roots.state_root.with_name("link")
    link.symlink_to(roots.state_root)
    with StateRoot(link) as held:
        assert held.path == roots.state_root
        with pytest.raises(RunError, match="in use"):
            in_child(lambda: enter_and_leave(roots.state_root))


def test_a_path_that_is_too_long_for_the_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    with pytest.raises(RunError, match="expected at most 107"):
        enter_and_leave(path)
    assert not path.exists()


def test_a_mount_root_is_one_runs_at_a_time(roots: Any) -> None:
    fd = state.lock_mount_root(roots.mount_root)
    try:
        with pytest.raises(RunError, match=f"mount root {roots.mount_root} is in use"):
            state.lock_mount_root(roots.mount_root)
    finally:
        os.close(fd)
    os.close(state.lock_mount_root(roots.mount_root))


# ── epochs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_run_has_a_higher_epoch(roots: Any) -> None:
    seen = []
    for _ in range(3):
        with StateRoot(roots.state_root) as held:
            seen += [held.next_epoch(), held.next_epoch()]
            held.reconcile()
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", ["", "seven", "1\x00"])
def test_a_damaged_epoch_is_named_and_not_begun_anew(roots: Any, content: str) -> None:
    (roots.state_root / "epoch").write_text(content)
    with StateRoot(roots.state_root) as held, pytest.raises(RunError, match=rf"{held.path}/epoch: damaged"):
        held.next_epoch()
    assert (roots.state_root / "epoch").read_text() == content


# ── reconciliation ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def group() -> Iterator[Group]:
    """A group of an earlier run; what a failing test leaves of it is removed here."""
    made = Group(cgroup.observe(), f"vcg-test-{os.getpid()}")
    made.create()
    yield made
    deadline_ns = time.monotonic_ns() + 5 * 10**9
    cgroup.kill(made.directories, deadline_ns)
    assert not cgroup.remove(made.directories, deadline_ns)


def leave_everything(roots: Any, group: Group) -> int:
    """Be an earlier run that was killed: journal, images, loop, sockets, mount, and a survivor; the survivor's pid."""
    with StateRoot(roots.state_root) as held:
        epoch = held.next_epoch()
        images = [held.image(name) for name in ("d4", "d5")]
        held.note(epoch, group.directories, roots.mount_root, True, images=images)
        for name in ("d4", "d5"):
            storage.allocate(held.image(name), 1 << 20)
        for path in (held.socket, held.control):
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).bind(str(path))
        (held.path / "epoch.new").write_text("half writ")
        bound = loop.attach(held.image("d4"))
        group.enter()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if (pid := os.fork()) == 0:
            os.setsid()
            os.fstat(bound.fd)
            signal.alarm(60)
            while True:
                signal.pause()
    return pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_a_killed_run_left_is_cleared(roots: Any, group: Group, child_that: Any) -> None:
    with child_that(lambda: leave_everything(roots, group)) as child:
        os.kill(child.pid, signal.SIGKILL)
        assert is_alive(child.said)
        assert loop.backed_by(roots.state_root)
        with StateRoot(roots.state_root) as held:
            assert held.reconcile() == []
    assert not is_alive(child.said)
    assert not any(path.exists() for path in group.directories)
    assert not loop.backed_by(roots.state_root)
    assert sorted(path.name for path in roots.state_root.iterdir()) == ["epoch", "lock"]
    assert not roots.mount_root.exists()
    assert {item.kind for item in audit.leftovers(*roots)} <= {"process", "cgroup"}  # of other runs on this host
    roots.mount_root.mkdir()


def test_to_reconcile_again_changes_nothing(roots: Any, group: Group, child_that: Any) -> None:
    with child_that(lambda: leave_everything(roots, group)):
        assert state.clear(roots.state_root) == []
        before = sorted(roots.state_root.iterdir())
        assert state.clear(roots.state_root) == []
        assert sorted(roots.state_root.iterdir()) == before


def test_an_empty_state_root_has_nothing_to_clear(roots: Any) -> None:
    assert state.clear(roots.state_root) == []
    assert roots.mount_root.exists()


def test_what_is_not_of_a_run_stays(roots: Any) -> None:
    for name in ("host.json", "gate.json", "thesis.txt"):
        (roots.state_root / name).write_text("precious")
    (roots.mount_root / "precious").touch()
    with StateRoot(roots.state_root) as held:
        held.note(held.next_epoch(), [], roots.mount_root, True)
        assert held.reconcile() == []
    assert {"host.json", "gate.json", "thesis.txt"} < {path.name for path in roots.state_root.iterdir()}
    assert (roots.mount_root / "precious").exists()


def test_images_of_others_in_the_state_root_stay_and_stay_bound(roots: Any) -> None:
    """It may be the directory of somebody's virtual machines."""
    foreign = [roots.state_root / name for name in ("vm.img", "d4.img", "notes.new")]
    for path in foreign:
        storage.allocate(path, 1 << 20)
    bound = loop.attach(foreign[0])
    try:
        with StateRoot(roots.state_root) as held:
            for is_noted in (False, True):
                epoch = held.next_epoch()
                if is_noted:
                    held.note(epoch, [], roots.mount_root, False, images=[held.image("d4")])
                    storage.allocate(held.image("d4"), 1 << 20)
                assert held.reconcile() == []
                assert not held.image("d4").exists()
                assert all(path.stat().st_size == 1 << 20 for path in foreign)
                assert loop.backed_by(roots.state_root) == {bound.path: foreign[0]}
    finally:
        os.close(bound.fd)


def test_a_file_in_the_place_of_an_image_is_refused_and_stays(roots: Any) -> None:
    with StateRoot(roots.state_root) as held:
        epoch = held.next_epoch()
        held.image("d4").symlink_to("nowhere")
        with pytest.raises(RunError, match=rf"{held.image('d4')}: there already"):
            held.note(epoch, [], roots.mount_root, False, images=[held.image("d4"), held.image("d5")])
        assert not held.journal.exists()
        assert held.reconcile() == []
        assert held.image("d4").is_symlink()


def test_a_journal_of_an_older_form_and_its_images_do_not_block_a_start(roots: Any, group: Group) -> None:
    older = {"epoch": 1, "supervisor": os.getpid(), "cgroups": [str(path) for path in group.directories]}
    older |= {"mount_root": str(roots.mount_root), "made_mount_root": False, "snapshots": None, "uids": []}
    storage.allocate(roots.state_root / "d4.img", 1 << 20)
    (roots.state_root / "run.json").write_text(json.dumps(older))
    with StateRoot(roots.state_root) as held:
        epoch = held.next_epoch()
        assert held.reconcile() == []
        assert not any(path.exists() for path in group.directories)
        held.note(epoch, [], roots.mount_root, False, images=[held.image("d4")])
        assert held.reconcile() == []


def lead_a_session_and_leave_a_process() -> int:
    """Be a supervisor that dies while a service of its is on its way into its group; that one's pid."""
    os.setsid()
    if (pid := os.fork()) == 0:
        signal.alarm(60)
        while True:
            signal.pause()
    return pid


def journal_of(roots: Any, supervisor: int, boot: str) -> None:
    """What a dead run has left in the state root, if all that it says is gone."""
    places = {"cgroups": [], "mount_root": str(roots.mount_root), "made_mount_root": False}
    written = json.dumps({"epoch": 7, "supervisor": supervisor, "boot": boot, **places})
    (roots.state_root / "run.json").write_text(written)


def test_a_process_of_a_dead_run_outside_its_groups_is_told(
    roots: Any, child_that: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "RECONCILE_S", 0.2)
    boot = state._BOOT_ID.read_text()
    with child_that(lead_a_session_and_leave_a_process) as child:
        journal_of(roots, child.pid, boot)
        assert state.clear(roots.state_root) == []  # that number is somebody's
    try:
        journal_of(roots, child.pid, "another boot")
        assert state.clear(roots.state_root) == []
        journal_of(roots, child.pid, boot)
        (problem,) = state.clear(roots.state_root)
        assert problem.startswith(f"process {child.said} (")
    finally:
        os.kill(child.said, signal.SIGKILL)
    assert state.clear(roots.state_root) == []
    assert not (roots.state_root / "run.json").exists()


def test_a_group_with_a_dead_runs_name_that_was_not_journalled_is_told(
    roots: Any, child_that: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "RECONCILE_S", 0.2)
    with child_that(lambda: None) as child:
        dead = child
    unknown = Group(cgroup.observe(), f"vcg-{dead.pid}-7", ())
    unknown.create()
    try:
        journal_of(roots, dead.pid, state._BOOT_ID.read_text())
        (problem,) = state.clear(roots.state_root)
        assert problem.startswith(f"cgroup {unknown.unified} ")
    finally:
        assert cgroup.remove(unknown.directories, time.monotonic_ns() + 5 * 10**9) == []
    assert state.clear(roots.state_root) == []


def test_a_state_root_that_is_removed_under_a_run_is_no_reason_to_leave_the_rest(roots: Any, group: Group) -> None:
    with StateRoot(roots.state_root) as held:
        held.note(held.next_epoch(), group.directories, roots.mount_root, True)
        shutil.rmtree(roots.state_root)
        assert held.reconcile() == []
    assert not any(path.exists() for path in group.directories)
    assert not roots.mount_root.exists()
    for root in roots:
        root.mkdir()


def test_a_mount_root_that_was_there_before_stays(roots: Any) -> None:
    with StateRoot(roots.state_root) as held:
        held.note(held.next_epoch(), [], roots.mount_root, False)
        assert held.reconcile() == []
    assert roots.mount_root.exists()


def test_a_mount_root_that_another_run_has_taken_stays(roots: Any, child_that: Any) -> None:
    with child_that(lambda: state.lock_mount_root(roots.mount_root)), StateRoot(roots.state_root) as held:
        held.note(held.next_epoch(), [], roots.mount_root, True)
        assert held.reconcile() == []
        assert roots.mount_root.exists()


def test_mounts_in_this_namespace_are_detached_even_if_they_are_busy(roots: Any, in_child: Any) -> None:
    def act() -> tuple[list[str], list[Path]]:
        mount.enter_private_namespace()
        with StateRoot(roots.state_root) as held:
            held.note(held.next_epoch(), [], roots.mount_root, False)
            mount.mount("vcg-test", roots.mount_root, "tmpfs")
            inner = roots.mount_root / "d 1"
            inner.mkdir()
            mount.mount("vcg-test", inner, "tmpfs")
            os.chdir(inner)
            problems = held.reconcile()
        return problems, [entry.point for entry in mount.mounts() if entry.source == "vcg-test"]

    assert in_child(act) == ([], [])


def test_what_cannot_be_undone_is_told_and_stays_in_the_journal(roots: Any, child_that: Any, group: Group) -> None:
    outsider = group.directories[0] / "inner"
    outsider.mkdir()
    with StateRoot(roots.state_root) as held:
        epoch = held.next_epoch()
        held.note(epoch, group.directories, roots.mount_root, False, images=[held.image("d4")])
        held.image("d4").mkdir()  # no file, so it can't be unlinked
        (problem,) = held.reconcile()
        assert str(held.image("d4")) in problem
        assert json.loads(held.journal.read_text())["cgroups"]
        assert not outsider.exists()  # the other steps were still done
        held.image("d4").rmdir()
        assert held.reconcile() == []
        assert not held.journal.exists()


def test_sysv_objects_of_its_users_are_removed_but_not_from_a_run_that_has_their_range_now(
    roots: Any, child_that: Any, in_child: Any
) -> None:
    def run_that_makes_one_of_each() -> range:
        claimed = uids.claim()
        in_child(lambda: make_one_of_each(claimed[3]))
        return claimed

    def make_one_of_each(uid: int) -> None:
        os.setresuid(uid, uid, uid)
        for name, arguments in {"shmget": (0, 4096), "semget": (0, 1), "msgget": (0,)}.items():
            check(getattr(libc, name)(*arguments, 0o1600), name)

    def there(claimed: range) -> list[str]:
        return sorted(one.kind for one in sysvipc.objects() if one.uid in claimed)

    with StateRoot(roots.state_root) as held:
        with child_that(run_that_makes_one_of_each) as child:
            held.note(held.next_epoch(), [], roots.mount_root, False, first_uid=child.said.start)
            assert held.reconcile() == []
            assert there(child.said) == ["msg", "sem", "shm"]
        for first_uid in (None, child.said.stop):
            held.note(held.next_epoch(), [], roots.mount_root, False, first_uid=first_uid)
            assert held.reconcile() == []
            assert there(child.said) == ["msg", "sem", "shm"]
        held.note(held.next_epoch(), [], roots.mount_root, False, first_uid=child.said.start)
        assert held.reconcile() == []
        assert there(child.said) == []


GOOD = '{"epoch": 1, "supervisor": 2, "cgroups": [], "mount_root": "/nowhere", "made_mount_root": false'


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"epoch": 1, "cgro',
        "[]",
        "null",
        "[" * 100_000,
        "{}",
        '{"epoch": 1, "cgroups": []}',
        GOOD.replace("[]", "7") + "}",
        GOOD.replace("[]", "[7]") + "}",
        GOOD.replace('"/nowhere"', "null") + "}",
        GOOD + ', "images": {"d4": 1}}',
        GOOD + ', "first_uid": "70000"}',
    ],
)
def test_a_damaged_journal_is_named(roots: Any, content: str) -> None:
    with StateRoot(roots.state_root) as held:
        held.journal.write_text(content)
        with pytest.raises(RunError, match=rf"{held.journal}: damaged"):
            held.reconcile()
        assert held.journal.read_text() == content
