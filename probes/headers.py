"""Kernel headers for bcc: where they are, and how bcc gets to see them without a change to the host.

bcc compiles with the headers that it finds under ``/lib/modules/$(uname -r)``: ``build``, or, as Debian splits them,
``source`` (the ``-common`` package) and ``build`` (the package of the flavour). Where the running kernel has none,
those of another kernel do for our programs, because they read nothing but the arguments of tracepoints (whose layout
bcc takes from the running kernel) and helpers. They would not do for a program that dereferences a kernel structure:
it compiles, loads and returns wrong numbers.

:meth:`Headers.expose` must run in a private mount namespace (:mod:`probes.program` makes one for a single thread): it
mounts a tmpfs there and puts links into it, so nothing appears on the host and nothing needs to be removed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probes.errors import ProbeError
from vcg.linux.mount import mount

if TYPE_CHECKING:
    from vcg.doctor import Check

MODULES = Path("/lib/modules")
SOURCES = Path("/usr/src")
ARCHIVE = Path("/sys/kernel/kheaders.tar.xz")
_PROOF = "include/linux/kconfig.h"


@dataclass(frozen=True)
class Headers:
    """Kernel headers that bcc can compile with.

    Attributes:
        release: of the kernel they belong to; empty if not known.
        build: the directory with the generated headers, or the archive that holds them all.
        source: the directory with the rest; the same as ``build`` where they are not split.
        running: whether they are the running kernel's own.
        in_place: whether bcc finds them by itself.
    """

    release: str
    build: Path
    source: Path
    running: bool
    in_place: bool

    def __str__(self) -> str:
        whose = "the running kernel's own" if self.running else f"of {self.release or 'a kernel not named'}"
        return f"{self.build} ({whose})"

    def expose(self) -> None:
        """Put them where bcc looks, in the calling thread's mount namespace, which must be private."""
        if self.build == ARCHIVE:
            # bcc unpacks the archive into this directory and leaves it there: let it be one that vanishes.
            mount("tmpfs", os.environ.get("TMPDIR", "/tmp"), "tmpfs")
        elif not self.in_place:
            mount("tmpfs", MODULES, "tmpfs")
            links = MODULES / os.uname().release
            links.mkdir()
            (links / "build").symlink_to(self.build)
            (links / "source").symlink_to(self.source)


def find() -> Headers:
    """The headers to compile with: the running kernel's own if there are any, else Debian's newest.

    ``BCC_KERNEL_SOURCE``, which bcc itself honours, goes before all others.

    Raises:
        ProbeError: there are none.
    """
    release = os.uname().release
    if given := os.environ.get("BCC_KERNEL_SOURCE"):
        return Headers("", Path(given), Path(given), running=False, in_place=True)
    build, source = MODULES / release / "build", MODULES / release / "source"
    if not source.is_dir():
        source = build
    if (source / _PROOF).is_file():
        return Headers(release, build, source, running=True, in_place=True)
    if ARCHIVE.is_file():
        return Headers(release, ARCHIVE, ARCHIVE, running=True, in_place=False)
    if MODULES.is_dir() and (installed := debian(SOURCES)):
        return installed[0]
    raise ProbeError(
        f"kernel headers: none for {release} in {MODULES}, no {ARCHIVE}, and no linux-headers-* in {SOURCES} "
        "(run: apt-get install linux-headers-amd64)"
    )


def debian(sources: Path) -> list[Headers]:
    """Complete sets of Debian's headers in a directory, newest first.

    The package of a flavour names its common part in its Makefile.
    """
    found = []
    for build in sources.glob("linux-headers-*"):
        makefile = build / "Makefile"
        if not makefile.is_file():
            continue
        named = re.search(r"(linux-headers-\S+-common(?:-rt)?)", makefile.read_text(errors="replace"))
        source = sources / named[1] if named else build
        if (source / _PROOF).is_file() and (build / "include/generated").is_dir():
            found.append(Headers(build.name.removeprefix("linux-headers-"), build, source, False, False))
    return sorted(found, key=lambda headers: _version(headers.release), reverse=True)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def checks() -> list[Check]:
    """What the probes need of a host, looked for one by one, for ``vcg doctor``."""
    from probes import program
    from vcg.doctor import Check

    purpose = "eBPF probes"

    def check(name: str, looked: program.Finding, fix: str) -> Check:
        return Check(name, looked.ok, looked.found, purpose, fix, required=False)

    try:
        headers = program.Finding(True, str(find()))
    except ProbeError as error:
        headers = program.Finding(False, str(error))
    return [
        check("bcc", program.find_bcc(), "apt-get install python3-bpfcc"),
        check("kernel headers", headers, "apt-get install linux-headers-amd64"),
        check("bpf(2)", program.find_bpf(), "run as root on a kernel with CONFIG_BPF_SYSCALL and without lockdown"),
        check("tracepoints", program.find_tracepoints(), "use a kernel with CONFIG_FTRACE and CONFIG_BLK_DEV_IO_TRACE"),
    ]
