"""The systemd unit: its words survive systemd's own syntax, and it says what a run needs."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import config, plan, unit
from vcg.errors import RunError
from vcg.plan import HostShape, Plan

HOST = HostShape((0, 1), {0: 0, 1: 0})
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=30)


def made(**overrides: str) -> Plan:
    dotted = {path.replace("__", "."): value for path, value in overrides.items()}
    return plan.make(config.load("tmpfs", dotted), HOST)


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@given(TEXT)
def test_a_quoted_word_is_one_word_without_specifiers_and_variables(word: str) -> None:
    quoted = unit.quote(word)
    assert "\n" not in quoted
    undone = quoted.replace("%%", "").replace("$$", "")
    assert "%" not in undone
    assert "$" not in undone
    read = shlex.split(quoted.replace("\\n", "\\\\n"), posix=True)
    assert len(read) == 1


def test_plain_words_stay_as_they_are() -> None:
    assert unit.quote("/usr/bin/vcg") == "/usr/bin/vcg"
    assert unit.quote("base_window=5ms") == "base_window=5ms"
    assert unit.quote("two words") == '"two words"'
    assert unit.quote("100%") == "100%%"


def test_it_runs_the_command_and_delegates_every_controller_that_we_use() -> None:
    found = settings(unit.render(made(), ["/opt/vcg/bin/vcg", "run", "tmpfs", "--set", "base_window=12 ms"]))
    assert found["ExecStart"] == '/opt/vcg/bin/vcg run tmpfs --set "base_window=12 ms"'
    assert set(found["Delegate"].split()) == {"cpu", "cpuset", "io", "memory", "pids"}
    assert found["WantedBy"] == "multi-user.target"
    assert found["RestartPreventExitStatus"] == "2"
    assert (found["KillMode"], found["OOMPolicy"], found["Type"]) == ("mixed", "continue", "notify")
    assert "WorkingDirectory" not in found


def test_it_waits_for_the_disks_that_it_lies_on() -> None:
    text = unit.render(made(state_root="/srv/v c", mount_root="/mnt/vcg", snapshots__directory="/var/dumps"), ["/v"])
    assert settings(text)["RequiresMountsFor"] == '"/srv/v c" /mnt/vcg /var/dumps'


@pytest.mark.parametrize("place", ["state_root", "mount_root", "snapshots__directory"])
def test_it_does_not_lock_itself_out_of_the_system_directories(place: str) -> None:
    assert "ProtectSystem=yes" in unit.render(made(), ["/v"])
    assert "ProtectSystem" not in unit.render(made(**{place: "/usr/local/vcg"}), ["/v"])


def test_what_workloads_need_of_this_shell_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/some/where")

    def found_with(wanted: str | None) -> Callable[[Sequence[str]], None]:
        def check(path: Sequence[str]) -> None:
            if wanted not in (None, *path):
                raise RunError("d1: unknown workload")

        return check

    assert unit.surroundings(found_with(None)) == (None, {})
    assert unit.surroundings(found_with(str(tmp_path))) == (tmp_path, {})
    assert unit.surroundings(found_with("/some/where")) == (tmp_path, {"PYTHONPATH": "/some/where"})
    with pytest.raises(RunError, match="unknown workload"):
        unit.surroundings(found_with("/nowhere"))
    text = unit.render(made(), ["/v"], tmp_path, {"PYTHONPATH": "/some/where:/else where"})
    assert settings(text)["WorkingDirectory"] == str(tmp_path)
    assert settings(text)["Environment"] == '"PYTHONPATH=/some/where:/else where"'


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_how_things_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    name = f"@vcg-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        unit.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    unit.notify("STOPPING=1")  # nobody listens any more: nothing happens
    monkeypatch.delenv("NOTIFY_SOCKET")
    unit.notify("READY=1")
