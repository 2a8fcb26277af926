"""``vcg probe`` on real processes: it ends what it started."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("root")
VCG = str(Path(sys.executable).with_name("vcg"))


def test_sigterm_ends_the_command_as_well_and_shows_what_was_measured(tmp_path: Path) -> None:
    written = tmp_path / "pid"
    script = f"echo $$ > {written}; exec sleep 600"
    command = [VCG, "probe", "sched", "--json", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as probe:
        deadline = time.monotonic() + 60
        while not (written.exists() and written.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = int(written.read_text())
        time.sleep(0.2)
        probe.send_signal(signal.SIGTERM)
        output, errors = probe.communicate(timeout=60)
    assert probe.returncode == 0, errors
    assert not Path(f"/proc/{pid}").exists()
    assert json.loads(output)["counters"]
    assert "stopped" in errors


def test_a_command_is_measured_until_it_ends() -> None:
    command = [VCG, "probe", "sched", "--json", "--", "sh", "-c", "sleep 0.05; sleep 0.05"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    (exits,) = [row["value"] for row in found["counters"] if row["metric"] == "exits"]
    assert exits == 3
    assert all(row["missed"] >= 0 for row in found["cost"])


def test_an_unknown_command_is_named() -> None:
    command = [VCG, "probe", "sched", "--", "no-such-command"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "no-such-command: no such program: expected one on the PATH, or the path of one\n"


@pytest.mark.parametrize(("script", "code", "how"), [("exit 3", 3, "exited with 3"), ("kill -9 $$", 137, "SIGKILL")])
def test_how_a_command_ends_is_passed_on(script: str, code: int, how: str) -> None:
    command = [VCG, "probe", "sched", "--json", "--", "sh", "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == code
    assert how in ran.stderr
    assert json.loads(ran.stdout)["counters"] is not None
