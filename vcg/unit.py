"""A systemd unit that runs a testbed from boot on (``vcg unit``): systemd.unit(5), systemd.service(5), systemd.exec(5).

What it says and why:

- ``Delegate=``: below its control group we make our own, with limits (see ``vcg.linux.cgroup``); nobody else may.
- ``Type=notify``: it is up when the first window has been set, not when the program was started; others can be ordered
  after that. :func:`notify` says so.
- ``KillMode=mixed``: SIGTERM goes to the command alone, which takes everything down in order. Were the dimensions
  asked, too, they would die as if they had failed. Whatever is left at the time-out gets SIGKILL.
- ``OOMPolicy=continue``: what is killed for want of memory is a dimension at its own limit, and no end of the run.
- A wrong configuration (exit code 2) is not tried again.
- Hardening is what takes away nothing that a run needs: it mounts, pins, binds loop devices, reads the kernel's log,
  loads BPF, and compiles it against headers in ``/lib/modules``. So ``Protect…=`` of devices, kernel tunables, modules,
  logs, clock (which would close all devices) and control groups are absent on purpose, as is ``RestrictRealtime=``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from vcg.errors import RunError
from vcg.linux.cgroup import CONTROLLERS
from vcg.plan import Plan

NAME = "vcg.service"
START_S = 120
"""The first start on a host measures its floor."""
STOP_S = 120
"""More than the supervisor waits for a snapshot, and its client for the supervisor."""
_DROPPED = ("CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_TIME", "CAP_WAKE_ALARM")
_READ_ONLY = ("/usr", "/boot", "/efi")
"""What ``ProtectSystem=yes`` makes so."""


def render(
    plan: Plan, command: Sequence[str], directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """The unit.

    Args:
        plan: of the testbed.
        command: what runs it, by absolute paths.
        directory: in which; of interest to those whose workloads are found from there.
        environment: that it needs.
    """
    places = [Path(place) for place in (plan.state_root, plan.mount_root, plan.snapshots.directory)]
    is_system = any(place.is_relative_to(top) for place in places for top in _READ_ONLY)
    unit = [
        ("Description", f"VCG testbed {_literal(plan.name)}"),
        ("RequiresMountsFor", " ".join(quote(str(place)) for place in places)),
        ("After", "local-fs.target systemd-modules-load.service"),
        ("StartLimitIntervalSec", "10min"),
        ("StartLimitBurst", "5"),
    ]
    service = [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExecStart", " ".join(map(quote, command))),
        *([("WorkingDirectory", _literal(str(directory)))] if directory else []),
        *(("Environment", quote(f"{name}={value}")) for name, value in (environment or {}).items()),
        ("Restart", "on-failure"),
        ("RestartSec", "5s"),
        ("RestartPreventExitStatus", "2"),
        ("SuccessExitStatus", "130"),
        ("TimeoutStartSec", f"{START_S}s"),
        ("TimeoutStopSec", f"{STOP_S}s"),
        ("KillMode", "mixed"),
        ("OOMPolicy", "continue"),
        ("Delegate", " ".join(CONTROLLERS)),
        ("TasksMax", "infinity"),
        ("LimitRTPRIO", "99"),
        ("LimitMEMLOCK", "infinity"),
        ("UMask", "0077"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", "~" + " ".join(_DROPPED)),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
        ("RestrictSUIDSGID", "yes"),
        ("SystemCallArchitectures", "native"),
        ("LockPersonality", "yes"),
        ("ProtectHostname", "yes"),
        *([] if is_system else [("ProtectSystem", "yes")]),
    ]
    install = [("WantedBy", "multi-user.target")]
    sections = {"Unit": unit, "Service": service, "Install": install}
    return "\n".join(f"[{name}]\n{_lines(entries)}" for name, entries in sections.items())


def surroundings(check: Callable[[Sequence[str]], None]) -> tuple[Path | None, dict[str, str]]:
    """What of this shell a testbed needs for its workloads to be found: its directory, its PYTHONPATH, or neither.

    Args:
        check: called with where workloads would be looked for; raises what is wrong with that.

    Raises:
        RunError: they are not found here either.
    """
    given = os.environ.get("PYTHONPATH", "")
    installed = [entry for entry in sys.path if entry and entry not in given.split(os.pathsep)]
    here = Path.cwd()
    attempts: list[tuple[list[str], Path | None, dict[str, str]]] = [
        (installed, None, {}),
        ([*installed, str(here)], here, {}),
    ]
    for path, directory, environment in attempts:
        with contextlib.suppress(RunError):
            check(path)
            return directory, environment
    check([*given.split(os.pathsep), *installed, str(here)])
    return here, {"PYTHONPATH": given}


def _lines(entries: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{key}={value}\n" for key, value in entries)


def _literal(text: str) -> str:
    """Text in which systemd finds no specifiers."""
    return text.replace("%", "%%").replace("\n", " ")


def quote(word: str) -> str:
    """One word of a command line or a list, taken by systemd as it stands (systemd.syntax(7), "Quoting")."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "%": "%%", "$": "$$"}
    escaped = "".join(escapes.get(character, character) for character in word)
    is_plain = word and not set(word) & set(" \t\n\"'\\;")
    return escaped if is_plain else f'"{escaped}"'


def notify(state: str) -> None:
    """Tell systemd how things stand with the unit that we run in, if we do (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    # Who does not listen wants to know nothing: the variable may have come to us by chance.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
        manager.sendto(state.encode(), name)
