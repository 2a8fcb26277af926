"""The facts of a host and of the program that are stored with every run, so that it can be repeated and judged.

Only reads. A fact that this host does not offer is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

_CPU = Path("/sys/devices/system/cpu")
_TREE = Path(__file__).resolve().parent.parent


def host_facts() -> dict[str, Any]:
    """Kernel, CPU, clock, mitigations, hypervisor and software of this host at this moment."""
    cpuinfo = _cpuinfo()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "hostname": platform.node(),
        "kernel": platform.release(),
        "kernel_version": platform.version(),
        "kernel_command_line": _text(Path("/proc/cmdline")),
        "distribution": _distribution(),
        "cpu_model": cpuinfo.get("model name"),
        "cpu_microcode": cpuinfo.get("microcode"),
        "cpus_online": _text(_CPU / "online"),
        "cpus_allowed": sorted(os.sched_getaffinity(0)),
        "topology": _topology(),
        "numa_nodes": _nodes(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "clocksource": _text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        "governor": _governors(),
        "cpuidle_driver": _text(_CPU / "cpuidle/current_driver"),
        "mitigations": {p.name: _text(p) for p in sorted((_CPU / "vulnerabilities").glob("*"))},
        "hypervisor": _hypervisor(cpuinfo),
        "rt_runtime_us": _text(Path("/proc/sys/kernel/sched_rt_runtime_us")),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": dict(sorted({d.name: d.version for d in distributions() if d.name}.items())),
        "debian_packages": _debian("python3-bpfcc", "libbpfcc", "linux-headers-amd64", "e2fsprogs"),
    }


def commit() -> dict[str, Any] | None:
    """Commit of the source tree and whether files in it differ from that; None outside a tree with a commit.

    Results are left out: they are what a run makes, not what it was made with.
    """
    if not (_TREE / ".git").exists():
        return None
    found = _git("rev-parse", "HEAD")
    return {"commit": found, "dirty": bool(_git("status", "--porcelain", "--", ":!results"))} if found else None


def _git(*arguments: str) -> str | None:
    # The tree may belong to another user than root; it is only read.
    command = ["git", "-c", f"safe.directory={_TREE}", "-C", str(_TREE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None  # no git here, or no commit yet: an unknown commit is a fact as well


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _topology() -> list[dict[str, Any]]:
    def rows() -> Iterator[dict[str, Any]]:
        for path in sorted(_CPU.glob("cpu[0-9]*"), key=lambda p: int(p.name[3:])):
            place = path / "topology"
            if place.exists():
                node = next(path.glob("node[0-9]*"), None)
                yield {
                    "cpu": int(path.name[3:]),
                    "core": _text(place / "core_id"),
                    "package": _text(place / "physical_package_id"),
                    "siblings": _text(place / "thread_siblings_list"),
                    "node": int(node.name[4:]) if node else None,
                }

    return list(rows())


def _nodes() -> list[dict[str, Any]]:
    paths = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"), key=lambda p: int(p.name[4:]))
    return [{"node": int(p.name[4:]), "cpus": _text(p / "cpulist"), "distances": _text(p / "distance")} for p in paths]


def _governors() -> list[str] | None:
    found = {_text(path) for path in _CPU.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return sorted(governor for governor in found if governor) or None


def _hypervisor(cpuinfo: dict[str, str]) -> dict[str, Any]:
    dmi = Path("/sys/class/dmi/id")
    return {
        "present": "hypervisor" in cpuinfo.get("flags", "").split(),
        "type": _text(Path("/sys/hypervisor/type")),
        "vendor": _text(dmi / "sys_vendor"),
        "product": _text(dmi / "product_name"),
    }


def _debian(*packages: str) -> dict[str, str] | None:
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *packages]
    try:
        # It answers with a failure if any package is absent, and lists the others all the same.
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except FileNotFoundError:
        return None
    return {name: version for name, _, version in (line.partition(" ") for line in lines) if version}
