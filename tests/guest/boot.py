"""Run a command under a stock Debian kernel with cgroup v2 alone and two memory nodes, in a QEMU guest.

::

    python -m tests.guest.boot [--seconds N] -- COMMAND [ARGUMENT ...]

The guest has no disk of its own: it shows the host's root, read-only over 9p, under an overlay in memory, so it has
this very tree and virtual environment, and nothing that it writes outlives it. The command runs as root in
the project's directory; its output appears here, and its exit code becomes ours. The processor is emulated (TCG), so
the guest is some twenty times slower than the host: times that it measures mean nothing.

Assumes Debian on x86-64, root (9p shows the guest what this process may read), and the packages in apt.txt and
apt-guest.txt. The kernel is that of the installed headers, because bcc compiles the probes with those; its package is
unpacked under ``.build/guest``, not installed.

Traps:

- QEMU starts an unpacked vmlinux at once (by its PVH entry, CONFIG_PVH); a vmlinuz would first unpack itself inside the
  emulated processor, which takes longer than everything else.
- A host without modprobe means a guest without: all modules that the tests need are loaded from the initramfs.
- pivot_root(2) refuses a root that is the initramfs, therefore ``switch_root`` in ``init.sh``.
- A file that is edited on the host while the guest runs would be seen cut off (9p keeps its old size). So the guest
  gets a copy of the project as it was at the start, without what is hidden or a result; the environment is the host's.
"""

from __future__ import annotations

import argparse
import lzma
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / ".build" / "guest"
HEADERS = Path("/usr/src")
BUSYBOX = Path("/bin/busybox")
INIT = Path(__file__).with_name("init.sh")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "loop", "crc32c_generic", "ext4")

NODES = 2
MEMORY_OF_NODE = "2G"
KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "loglevel=5",
    "panic=-1",  # with -no-reboot: a panic ends the guest
    "tsc=reliable",
    "clocksource=tsc",
    "nowatchdog",
    "mitigations=off",
    "nokaslr",
    "rcupdate.rcu_expedited=1",
    "cryptomgr.notests",
)
SECONDS = 1200
CONSOLE_LINES = 60
_POLL_S = 0.1
_SESSION = """\
export PATH={path} HOME=/root
cd {project}
{command} >/run/share/output 2>&1 </dev/null
echo $? >/run/share/status
/bin/busybox poweroff -f
"""


class GuestError(Exception):
    """The guest could not be prepared, or ended without a result."""


class Kernel(NamedTuple):
    """A kernel that is ready for QEMU, and the directory of its modules."""

    vmlinux: Path
    modules: Path


# ── preparation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare() -> Kernel:
    """The kernel; it is fetched (70 MB) and unpacked if it is not there yet.

    Raises:
        GuestError: a package or a file is missing.
    """
    missing = [name for name in ("qemu-system-x86_64", "cpio", "dpkg-deb", "apt-get") if not shutil.which(name)]
    if missing or not BUSYBOX.exists():
        lacking = ", ".join(missing or [str(BUSYBOX)])
        raise GuestError(f"{lacking}: not found (as root: apt-get install the packages in apt-guest.txt)")
    release = headers_release(HEADERS)
    tree = BUILD / release
    if not tree.exists():
        _fetch(release, tree)
    vmlinux = tree / "vmlinux"
    if not vmlinux.exists():
        _put(vmlinux, unpack_kernel((tree / f"boot/vmlinuz-{release}").read_bytes()))
    return Kernel(vmlinux, tree / "lib/modules" / release)


def headers_release(sources: Path) -> str:
    """The newest release among the headers of Debian's common kernel in a directory like ``/usr/src``.

    Raises:
        GuestError: there are none.
    """
    found = [
        (tuple(map(int, match.groups())), match[0].removeprefix("linux-headers-"))
        for entry in sources.iterdir()
        if (match := re.fullmatch(r"linux-headers-(\d+)\.(\d+)\.(\d+)-(\d+)-amd64", entry.name))
    ]
    if not found:
        raise GuestError(f"no linux-headers-*-amd64 in {sources} (as root: apt-get install linux-headers-amd64)")
    return max(found)[1]


def _fetch(release: str, tree: Path) -> None:
    """Unpack Debian's package of a kernel release; the tree appears when it is complete."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        package = f"linux-image-{release}"
        # apt-get would read as the user _apt, which may have no access to this directory.
        command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
        fetched = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        packages = list(Path(scratch).glob("*.deb"))
        if fetched.returncode != 0 or len(packages) != 1:
            raise GuestError(
                f"{package}: could not be fetched: {fetched.stderr.strip()} (as root: apt-get update; if the mirror "
                "has a newer kernel only: apt-get install linux-headers-amd64)"
            )
        unpacked = Path(scratch, "tree")
        subprocess.run(["dpkg-deb", "-x", packages[0], unpacked], check=True)
        unpacked.rename(tree)


def _put(path: Path, content: bytes) -> None:
    """Write a file that another run may be reading: it is replaced at once, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        part.write(content)
    Path(part.name).replace(path)


def unpack_kernel(vmlinuz: bytes) -> bytes:
    """The ELF file inside a kernel image that was compressed with xz.

    Source for the fields: the kernel's Documentation/x86/boot.rst (protocol 2.08 and later).

    Raises:
        GuestError: it is no kernel image, or compressed in another way.
    """
    if vmlinuz[0x202:0x206] != b"HdrS":
        raise GuestError("vmlinuz: no kernel image for x86: expected the magic HdrS at 0x202")
    setup_sectors = vmlinuz[0x1F1]
    payload_offset, payload_length = struct.unpack_from("<II", vmlinuz, 0x248)
    start = (setup_sectors + 1) * 512 + payload_offset
    try:
        # The stream is followed by the unpacked size, which is not part of it.
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(vmlinuz[start : start + payload_length])
    except lzma.LZMAError as error:
        raise GuestError(f"vmlinuz: its payload is not an xz stream (CONFIG_KERNEL_XZ): {error}") from error


def dependencies(module: bytes) -> list[str]:
    """What a module (an ELF file) names in its ``.modinfo`` as needed before it."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name for name in match[1].decode().split(",") if name] if match else []


def loading_order(wanted: Sequence[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Modules in an order in which each comes after all that it needs, once.

    Args:
        wanted: what is to be loaded.
        needs: for each module, what it depends on.
    """
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in order:
            for other in needs[name]:
                visit(other)
            order[name] = None

    for name in wanted:
        visit(name)
    return list(order)


class _Dependencies(dict[str, list[str]]):
    """Reads a module when it is asked for."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__()
        self._files = files

    def __missing__(self, name: str) -> list[str]:
        self[name] = dependencies(self._files[name].read_bytes())
        return self[name]


def initramfs(modules: Path, scratch: Path) -> bytes:
    """A cpio archive of busybox, ``init.sh``, a copy of the project, and the modules with the order of their loading.

    Args:
        modules: of the kernel.
        scratch: an empty directory.

    Raises:
        GuestError: the kernel has no such module.
    """
    files = {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}
    if absent := [name for name in MODULES if name not in files]:
        raise GuestError(f"{modules}: no module {', '.join(absent)}")
    order = loading_order(MODULES, _Dependencies(files))
    for folder in ("bin", "modules"):
        (scratch / folder).mkdir()
    shutil.copy(BUSYBOX, scratch / "bin/busybox")
    shutil.copy(INIT, scratch / "init")
    (scratch / "init").chmod(0o755)
    for name in order:
        shutil.copy(files[name], scratch / "modules" / name)
    (scratch / "modules/order").write_text("\n".join(order))
    shutil.copytree(PROJECT, scratch / "tree" / PROJECT.relative_to("/"), symlinks=True, ignore=_left_out)
    names = "\0".join(str(path.relative_to(scratch)) for path in sorted(scratch.rglob("*")))
    archive = ["cpio", "--quiet", "--create", "--null", "--format=newc"]
    return subprocess.run(archive, cwd=scratch, input=names.encode(), stdout=subprocess.PIPE, check=True).stdout


def _left_out(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(".") or (name == "results" and Path(folder) == PROJECT)]


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def machine(vmlinux: Path, archive: Path, share: Path, console: Path) -> list[str]:
    """QEMU's command line: one CPU for each memory node, the two shares, the console in a file."""

    def nodes() -> Iterator[str]:
        for node in range(NODES):
            yield from ("-object", f"memory-backend-memfd,id=memory{node},size={MEMORY_OF_NODE}")
            yield from ("-numa", f"node,nodeid={node},cpus={node},memdev=memory{node}")
        for near in range(NODES):
            for far in range(near + 1, NODES):
                yield from ("-numa", f"dist,src={near},dst={far},val=20")

    gigabytes = NODES * int(MEMORY_OF_NODE.removesuffix("G"))
    return [
        *("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max,la57=off"),
        *("-smp", f"{NODES},sockets={NODES}", "-m", f"{gigabytes}G", *nodes()),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-serial", f"file:{console}"),
        *("-kernel", str(vmlinux), "-initrd", str(archive), "-append", " ".join(KERNEL_ARGUMENTS)),
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-fsdev", f"local,id=share,path={share},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
    ]


def run(command: Sequence[str], seconds: float) -> int:
    """Run a command in the guest, its output on our stdout.

    Returns:
        Its exit code.

    Raises:
        GuestError: the guest could not be prepared, ended before the command did, or took too long; with the end of
            the guest's console.
    """
    kernel = prepare()
    with tempfile.TemporaryDirectory(prefix="run-", dir=BUILD) as scratch:
        share, files, archive, console = (Path(scratch, name) for name in ("share", "files", "archive", "console"))
        share.mkdir()
        files.mkdir()
        archive.write_bytes(initramfs(kernel.modules, files))
        script = _SESSION.format(
            path=shlex.quote(f"{PROJECT}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            project=shlex.quote(str(PROJECT)),
            command=shlex.join(command),
        )
        (share / "session").write_text(script)
        (share / "project").write_text(str(PROJECT))
        output, status = share / "output", share / "status"
        output.touch()
        deadline = time.monotonic() + seconds
        qemu = machine(kernel.vmlinux, archive, share, console)
        with subprocess.Popen(qemu, stdin=subprocess.DEVNULL) as guest, output.open("rb") as said:
            try:
                while guest.poll() is None and time.monotonic() < deadline:
                    _show(said.read())
                    time.sleep(_POLL_S)
                ended = guest.poll()
            finally:
                guest.kill()
            _show(said.read())
        if status.exists() and (code := status.read_text().strip()):
            return int(code)
        how = f"ended with {ended}" if ended is not None else f"took longer than {seconds:g} s"
        last = "\n".join(console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]) if console.exists() else ""
        raise GuestError(f"the guest {how}, and the command gave no result; the end of its console:\n{last}")


def _show(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


def main(arguments: Sequence[str]) -> int:
    """The command line: the exit code of the command, or 125 if it gave none."""
    parser = argparse.ArgumentParser(prog="python -m tests.guest.boot", description="Run a command in a QEMU guest.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit (%(default)s)")
    parser.add_argument("command", nargs="+", help="what to run in the project's directory, after --")
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("not root: the guest shows the host's root, and must be able to read it (use sudo)", file=sys.stderr)
        return 125
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # takes the guest and its files along
    try:
        return run(given.command, given.seconds)
    except GuestError as error:
        print(error, file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
