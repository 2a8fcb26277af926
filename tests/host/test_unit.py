"""``vcg unit`` with the real systemd-analyze, and whether a run bears what the unit does to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from vcg import unit

pytestmark = pytest.mark.usefixtures("root")

VCG = str(Path(sys.executable).with_name("vcg"))


class Roots(Protocol):
    state_root: Path
    mount_root: Path


def vcg(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([VCG, *arguments], capture_output=True, text=True, check=False, timeout=60, **options)
    assert "Traceback" not in done.stderr
    return done


def verify(text: str, place: Path) -> subprocess.CompletedProcess[str]:
    """What systemd has to say to a unit."""
    file = place / unit.NAME
    file.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def testbed(tmp_path: Path, roots: Roots) -> Path:
    """A testbed in a file, in a directory with a blank and a percent sign in its name."""
    folder = tmp_path / "100 % mine"
    folder.mkdir()
    file = folder / "mine.toml"
    file.write_text(
        f'base_window = "20ms"\nstate_root = "{roots.state_root}"\nmount_root = "{roots.mount_root}"\n'
        "[dimensions.d1]\nharmonic = 1\n"
    )
    return file


def test_systemd_has_nothing_to_say_to_the_unit_of_a_ready_testbed(tmp_path: Path) -> None:
    printed = vcg("unit", "default")
    assert printed.returncode == 0, printed.stderr
    verified = verify(printed.stdout, tmp_path)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_systemd_understands_paths_and_values_with_blanks_and_signs(tmp_path: Path, testbed: Path) -> None:
    printed = vcg("unit", "mine.toml", "--set", 'description=50% "off" for $HOME', cwd=testbed.parent)
    assert printed.returncode == 0, printed.stderr
    verified = verify(printed.stdout, tmp_path)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    assert f'"{str(testbed).replace("%", "%%")}"' in printed.stdout


def test_systemd_complains_of_a_command_that_is_not_there(tmp_path: Path) -> None:
    """So that its silence means something."""
    printed = vcg("unit", "default").stdout
    assert verify(printed.replace(VCG, "/nowhere/vcg"), tmp_path).returncode != 0
    assert "Unknown" in verify(printed.replace("KillMode", "KillMood"), tmp_path).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["nonesuch"], 2, "nonesuch"),
        (["default", "--set", "base_window=never"], 2, "base_window"),
        (["default", "--set", "dimensions.d1.cpus=[999]"], 1, "d1: cpus 999"),
        (["default", "--set", "dimensions.d1.workload=nosuch.module:run"], 1, "d1: unknown workload"),
        (["default", "--install-path", "/nowhere/vcg"], 2, "expected the path of an installed vcg command"),
        (["default", "--install-path", "/etc/passwd"], 2, "expected the path of an installed vcg command"),
    ],
)
def test_what_would_not_run_is_refused_before_anything_is_printed(
    arguments: list[str], code: int, complaint: str
) -> None:
    refused = vcg("unit", *arguments)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert complaint in refused.stderr


def test_another_installation_can_be_named(tmp_path: Path) -> None:
    other = tmp_path / "vcg"
    other.symlink_to(VCG)
    assert f"ExecStart={other} run default\n" in vcg("unit", "--install-path", str(other)).stdout


# ── a run under it ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_bears_what_the_unit_takes_away(testbed: Path) -> None:
    """The capabilities and new privileges; systemd's own filters of system calls are not here to be tried."""
    text = vcg("unit", "mine.toml", cwd=testbed.parent).stdout
    (bounding,) = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=~")]
    dropped = [name.removeprefix("CAP_").lower() for name in bounding.partition("~")[2].split()]
    confined = ["setpriv", "--no-new-privs", "--bounding-set", ",".join(f"-{name}" for name in dropped)]
    command = [*confined, VCG, "run", str(testbed), "--for", "300ms", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dimensions"]["d1"]["windows"] > 5


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """systemd's end of the notifications; call it for the next."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(30)
        yield lambda: listener.recv(4096).decode()


def test_systemd_is_told_of_the_first_window_and_of_the_end_and_sigterm_is_a_success(
    testbed: Path, tmp_path: Path, manager: Callable[[], str]
) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    command = [VCG, "run", str(testbed), "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert manager() == "READY=1"
        process.send_signal(signal.SIGTERM)
        assert manager() == "STOPPING=1"
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(said)["interrupted"]
