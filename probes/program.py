"""One BPF module: its C text, compiled and attached by bcc, its maps in our memory, and what it costs.

Nothing on the host changes. bcc wants tracefs mounted and headers under /lib/modules, so compiling and attaching is
done by a thread of its own that first leaves the process's mount namespace: unshare(CLONE_NEWNS) of a thread takes
effect for that thread alone, and its mounts end with it. What remains are file descriptors, and the kernel unloads the
programs when the process ends, however it ends.

Maps that are read while programs run are arrays mapped into this process (BPF_F_MMAPABLE, Linux 5.5). The trap that
this avoids: a bpf(2) call that copies a map's element switches tracing programs off on its CPU meanwhile
(bpf_disable_instrumentation in kernel/bpf/syscall.c), and a process that is preempted right there keeps them off
until it runs again. The system call remains for what is rare: to begin to follow a task, to clear a hash.

Second trap: a program attached to a tracepoint through perf does not run if another one is already running on the CPU
(bpf_prog_active in kernel/trace/bpf_trace.c), as when an interrupt wakes a task while a block program runs. That can't
be avoided with tracepoints; the kernel counts it from 6.7 on (``recursion_misses``), and :meth:`Program.missed` tells.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from probes import headers
from probes.errors import ProbeError
from probes.snapshot import CostRow
from vcg.linux.libc import syscall
from vcg.linux.mount import enter_private_namespace, mount

TRACEFS = Path("/sys/kernel/tracing")
SOURCES = Path(__file__).parent
_NEEDS_BCC = "bcc: not importable from this interpreter: {} (run: apt-get install python3-bpfcc, and use a virtual "
_NEEDS_BCC += "environment made with --system-site-packages)"
_COMPILER_STACK_BYTES = 64 << 20
_SYS_BPF = 321
_BPF_MAP_CREATE = 0
_BPF_ENABLE_STATS = 32
_BPF_MAP_TYPE_ARRAY = 2
_BPF_NOEXIST = 1

Result = TypeVar("Result")


def possible_cpus() -> int:
    """One more than the highest number that a CPU of this host can have."""
    return int(re.split("[-,]", Path("/sys/devices/system/cpu/possible").read_text().strip())[-1]) + 1


def text_of(file: Path) -> str:
    """A C file with its own ``#include "..."`` lines replaced by those files.

    bcc rewrites map accesses in the main file only, so what uses a map must be part of that.
    """

    def included(match: re.Match[str]) -> str:
        return text_of(file.with_name(match[1]))

    return re.sub(r'^#include "([\w.]+)"$', included, file.read_text(), flags=re.MULTILINE)


def tracepoints_of(text: str) -> list[str]:
    """The tracepoints that a C text attaches to, as ``category:name``."""
    return [f"{category}:{name}" for category, name in re.findall(r"^TRACEPOINT_PROBE\((\w+), (\w+)\)", text, re.M)]


class Program:
    """A loaded and attached BPF module.

    Args:
        name: of the probe, and of its C file.
        macros: passed to the compiler.

    Raises:
        ProbeError: not root, no bcc, no headers, a tracepoint that this kernel lacks, or bcc could not compile or
            load it.
    """

    def __init__(self, name: str, macros: Mapping[str, int]) -> None:
        self.name = name
        file = SOURCES / f"{name}.c"
        text = text_of(file)
        flags = ["-w", *(f"-D{macro}={value}" for macro, value in macros.items())]

        def load() -> Any:
            if absent := missing(tracepoints_of(text)):
                raise ProbeError(f"{name}: this kernel has no tracepoint {', '.join(absent)} (see {TRACEFS}/events)")
            headers.find().expose()
            return _bcc().BPF(text=text.encode(), cflags=flags)

        if os.geteuid() != 0:
            raise ProbeError(f"{name}: loading BPF programs takes root, and this is uid {os.geteuid()} (use sudo)")
        try:
            self._bpf = in_private_namespace(load)
        except (ProbeError, OSError):
            raise
        except Exception as error:  # bcc raises bare Exception
            raise ProbeError(f"{name}: bcc could not compile or load {file}: {error} (details above)") from error
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
        """A mapped array: reads and writes go straight to the memory that the programs use.

        Raises:
            ProbeError: an element has another size in C than in ``dtype``.
        """
        if name not in self._arrays:
            in_c = self._leaf_bytes(name)
            if in_c != dtype.itemsize:
                raise ProbeError(f"{self.name}: {name} takes {in_c} bytes in C, {dtype.itemsize} in Python")
            size = -(-dtype.itemsize * length // mmap.PAGESIZE) * mmap.PAGESIZE
            memory = mmap.mmap(self._fd(name), size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._arrays[name] = np.frombuffer(memory, dtype=dtype, count=length)
        return self._arrays[name]

    def insert(self, name: str, key: bytes | None, value: bytes) -> bool:
        """Put a new element into a hash (or, without a key, into a queue); False if the key is there already.

        Raises:
            ProbeError: the map is full.
        """
        flags = 0 if key is None else _BPF_NOEXIST
        if _bcc().libbcc.lib.bpf_update_elem(self._fd(name), key, value, flags) == 0:
            return True
        error = ctypes.get_errno()
        if key is not None and self.has(name, key):
            return False
        raise ProbeError(f"{self.name}: no room in map {name}: {os.strerror(error)}")

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Set an element of an array or a hash."""
        if _bcc().libbcc.lib.bpf_update_elem(self._fd(name), key, value, 0):
            raise ProbeError(f"{self.name}: no room in map {name}: {os.strerror(ctypes.get_errno())}")

    def has(self, name: str, key: bytes) -> bool:
        """Whether a hash holds a key."""
        value = ctypes.create_string_buffer(self._leaf_bytes(name))
        return bool(_bcc().libbcc.lib.bpf_lookup_elem(self._fd(name), key, value) == 0)

    def take(self, name: str) -> bytes | None:
        """The next element of a queue, or None if it is empty."""
        value = ctypes.create_string_buffer(self._leaf_bytes(name))
        failed = _bcc().libbcc.lib.bpf_lookup_and_delete(self._fd(name), None, value)
        return None if failed else value.raw

    def clear(self, name: str) -> None:
        """Empty a hash."""
        lib, fd = _bcc().libbcc.lib, self._fd(name)
        table = self._bpf.get_table(name.encode())
        key = table.Key()
        while lib.bpf_get_first_key(fd, ctypes.byref(key), ctypes.sizeof(key)) == 0:
            lib.bpf_delete_elem(fd, ctypes.byref(key))

    def cost(self) -> list[CostRow]:
        """Runs, run time and misses of each program so far; run time is zero unless run-time statistics are on."""
        return [
            CostRow(self.name, name, info["run_cnt"], info["run_time_ns"], info.get("recursion_misses", 0))
            for name, info in self._info()
        ]

    def missed(self) -> int:
        """Events for which a program did not run because another was running on that CPU."""
        return sum(info.get("recursion_misses", 0) for _, info in self._info())

    @property
    def ids(self) -> list[int]:
        """The kernel's ids of the loaded programs."""
        return [info["prog_id"] for _, info in self._info()]

    def close(self) -> None:
        """Detach and unload. Arrays handed out before must not be used any more."""
        self._arrays.clear()
        self._bpf.cleanup()
        atexit.unregister(self._bpf.cleanup)

    def _fd(self, name: str) -> int:
        return int(self._bpf.get_table(name.encode()).map_fd)

    def _leaf_bytes(self, name: str) -> int:
        return ctypes.sizeof(self._bpf.get_table(name.encode()).Leaf)

    def _info(self) -> Iterator[tuple[str, dict[str, int]]]:
        for name, function in self._bpf.funcs.items():
            lines = Path(f"/proc/self/fdinfo/{function.fd}").read_text().splitlines()
            pairs = (line.split(":", 1) for line in lines)
            yield (
                name.decode().removeprefix("tracepoint__").replace("__", ":"),
                {key: int(value) for key, value in pairs if value.strip().isdigit()},
            )


def in_private_namespace(act: Callable[[], Result]) -> Result:
    """Run something in a thread that has mounts of its own, tracefs among them, and hand on what it returns or raises.

    The thread also has its own working directory, which bcc changes while it compiles.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter_private_namespace()
            if not (TRACEFS / "events").is_dir():  # systemd mounts it; a second mount there would be EBUSY
                mount("tracefs", TRACEFS, "tracefs")
            results.append(act())
        except BaseException as error:
            errors.append(error)

    # The compiler recurses deeply, and a thread's default stack may be small (ulimit -s).
    before = threading.stack_size(_COMPILER_STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="bpf-loader")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def missing(tracepoints: Iterable[str]) -> list[str]:
    """Those tracepoints that this kernel lacks; tracefs must be mounted."""
    return [name for name in tracepoints if not (TRACEFS / "events" / name.replace(":", "/")).is_dir()]


def enable_statistics() -> int:
    """Have the kernel account the run time of BPF programs until the returned descriptor is closed.

    ``BPF_ENABLE_STATS`` of bpf(2), Linux 5.8: unlike the sysctl it ends with its user.
    """
    attributes = ctypes.create_string_buffer(128)
    return syscall(_SYS_BPF, _BPF_ENABLE_STATS, ctypes.addressof(attributes), 4, name="bpf BPF_ENABLE_STATS")


@dataclass(frozen=True)
class Finding:
    """What a look at the host found."""

    ok: bool
    found: str


def find_bcc() -> Finding:
    """Whether bcc can be imported, and which version."""
    try:
        return Finding(True, f"{_bcc().__version__}")
    except ProbeError as error:
        return Finding(False, str(error))


def find_bpf() -> Finding:
    """Whether bpf(2) lets us make a map."""
    attributes = (ctypes.c_uint32 * 32)(_BPF_MAP_TYPE_ARRAY, 4, 8, 1)
    try:
        os.close(
            syscall(_SYS_BPF, _BPF_MAP_CREATE, ctypes.addressof(attributes), ctypes.sizeof(attributes), name="bpf")
        )
    except OSError as error:
        return Finding(False, f"bpf(2): {error.strerror}")
    return Finding(True, "usable")


def find_tracepoints() -> Finding:
    """Whether the kernel has every tracepoint that a probe attaches to."""
    wanted = sorted({name for file in SOURCES.glob("*.c") for name in tracepoints_of(text_of(file))})
    try:
        absent = in_private_namespace(lambda: missing(wanted))
    except OSError as error:
        return Finding(False, f"{error.filename}: {error.strerror}")
    return Finding(not absent, f"missing: {', '.join(absent)}" if absent else f"all {len(wanted)}")


def _bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise ProbeError(_NEEDS_BCC.format(error)) from None
    return bcc
