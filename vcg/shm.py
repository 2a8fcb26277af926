"""The shared-memory layouts, each declared once, and the sealed memfds that carry them.

Every field is one signed 64-bit word in native order, so a region is a ``memoryview`` of ``"q"`` and a field is an
index: the hot loops read and write words without packing, and ``experiments`` derives its numpy dtypes from the same
declarations. The one exception is the futex word, a 32-bit cell that the kernel compares.

Who writes what is enforced by the kernel, not by manners: a region's owner maps it writable *before* it sets
``F_SEAL_FUTURE_WRITE``, and only then hands the descriptor on, so nobody else can ever map it writable, nor truncate
it under a reader (SIGBUS).

==========  =======================  ==============================================================
region      owner (only writer)      content
==========  =======================  ==============================================================
control     supervisor               what the run should be doing, and when it starts
ticks       RTD                      futex word, newest window of each dimension, tick ring
tokens      orchestrator             one ring of tokens for each dimension, and the counters
gauges      gauges                   what the kernel accounts to each dimension, sampled
status      its dimension            state, error text, one record for each window
==========  =======================  ==============================================================

Publication relies on stores becoming visible in program order (x86-64 TSO): details first, the index that makes them
reachable last.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

MAGIC = 0x56434731  # "VCG1"
WORD = 8
PAGE = mmap.PAGESIZE

MAX_DIMENSIONS = 32
"""One bit of the futex bitset for each waiter (futex(2), FUTEX_WAIT_BITSET)."""
ORCHESTRATOR_BIT = 31
"""The orchestrator waits on the same futex; its bit lies above the dimensions' (so 31 dimensions at most)."""


@dataclass(frozen=True)
class Record:
    """A fixed record of signed 64-bit words.

    Attributes:
        fields: names in order; a name that carries a quantity carries its unit.
    """

    fields: tuple[str, ...]

    @property
    def words(self) -> int:
        return len(self.fields)

    def at(self, name: str) -> int:
        """Word offset of a field inside the record."""
        return self.fields.index(name)


class Phase(IntEnum):
    """What the run is doing; the supervisor's word in ``control``, echoed by the RTD in ``ticks``."""

    HOLD = 0
    RUN = 1
    HALT = 2
    FINISH = 3


class State(IntEnum):
    """Where a dimension is in its life; its own word in ``status``."""

    STARTING = 0
    READY = 1
    FINISHED = 2
    FAILED = 3


class Outcome(IntEnum):
    """How a window ended. Every window has one; none is left out."""

    DONE = 0
    OVERRUN = 1
    """Entered, but finished after its token had expired or used more than its budget."""
    MISSED = 2
    """Its edge was published, but it was not entered; its :class:`Cause` says why."""
    SKIPPED = 3
    """The RTD woke so late that a newer edge of the same dimension had passed: never published."""


class Cause(IntEnum):
    """Why a window was missed."""

    NONE = 0
    BUSY = 1
    """The dimension was still inside an earlier window: the workload's own doing."""
    LATE = 2
    """It waited for the edge, but got the CPU only when the window was over."""
    NO_TOKEN = 3
    """It was there in time, and found no token."""
    DOWN = 4
    """Its process had died, and the next one was not there yet; also the window in which it died."""


# ── control ──────────────────────────────────────────────────────────────────────────────────────────────────────────
CONTROL = Record(("magic", "epoch", "phase", "start_ns", "futex", "tuning", "lives"))
"""What ``tuning`` and ``lives`` count is complete before they do.

``tuning`` counts changes of the amplitudes while the run goes on, ``lives`` deaths and restarts of dimensions.
"""
CREDITS_AT = 512 // WORD
"""One word for each dimension: its own credit for each window, in ns."""
AMPLITUDES_AT = CREDITS_AT + MAX_DIMENSIONS
"""One word for each dimension: its amplitude, in millionths."""
AMPLITUDE_ONE = 1_000_000
GENERATIONS_AT = AMPLITUDES_AT + MAX_DIMENSIONS
"""One word for each dimension: the generation of its process, from 1 on; negative from its death to its successor."""
CONTROL_BYTES = PAGE

# ── ticks ────────────────────────────────────────────────────────────────────────────────────────────────────────────
TICKS_HEADER = Record(
    ("magic", "epoch", "phase", "start_ns", "head", "superseded", "coalesced", "behind_ns_max", "loop_cpu_ns", "futex")
)
"""``head`` counts published ticks; ``superseded`` windows that were skipped; ``coalesced`` ticks of several edges."""

LATEST_AT = 512 // WORD
"""One word for each dimension: its newest published window number, -1 before the first."""

EDGE = Record(("window", "planned_ns", "phase_ppb", "published"))
"""What the RTD says of one window of one dimension.

``phase_ppb`` is the edge's position in the base window, in parts per billion. ``published`` is a history: bit k is set
if window ``window - k`` was published (bit 0 is this one), so that a dimension can tell *missed* from *skipped*.
"""
EDGE_SLOTS = 8
EDGES_AT = PAGE // WORD
EDGE_WORDS = 4

TICK = Record(("sequence", "planned_ns", "actual_ns", "due", "skipped", "timer_late_ns"))
"""One publication: the edge, when it was really published, the set of due dimensions, windows skipped just before it.

``timer_late_ns`` is from the time for which the RTD had set its timer (a little before the edge) to its waking.
"""
TICK_SLOTS = 4096
TICKS_AT = EDGES_AT + MAX_DIMENSIONS * EDGE_SLOTS * EDGE_WORDS
TICK_WINDOWS_AT = 8
"""Inside a tick's record: the window number of each due dimension, then its phase."""
TICK_PHASES_AT = TICK_WINDOWS_AT + MAX_DIMENSIONS
TICK_WORDS = TICK_PHASES_AT + MAX_DIMENSIONS
TICKS_BYTES = (TICKS_AT + TICK_SLOTS * TICK_WORDS) * WORD

# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────
TOKENS_HEADER = Record(
    ("magic", "epoch", "rounds", "minted_through_ns", "round_ns_max", "round_ns_total", "is_compiled")
)
"""``is_compiled`` tells whether the rounds are worked by machine code (``vcg.compiled``)."""

TOKEN = Record(("window", "epoch", "dimension", "budget_ns", "expires_ns", "borrowed_ns", "planned_ns"))
"""A time-scoped credit: so much CPU time for one dimension in one window of one boot epoch, void after it."""
TOKEN_SLOTS = 128
TOKENS_AT = PAGE // WORD
TOKEN_WORDS = 8

COUNTERS = Record(
    (
        "minted",
        "own_ns",
        "lent_ns",
        "borrowed_ns",
        "repaid_ns",
        "returned_ns",
        "settled",
        "used_ns",
        "overruns",
        "overrun_ns",
        "expired",
        "expired_ns",
        "forgiven_ns",
        "waived_ns",
        "refused_epoch",
        "refused_window",
        "refused_value",
        "records_lost",
        "unreported_ns",
        "contained",
        "credit_ns",
        "balance_ns",
        "owed_ns",
        "behind",
        "held",
        "held_in",
        "generation",
    )
)
"""The orchestrator's account of one dimension: its own arithmetic, not what the dimension claims.

Up to ``contained`` they only grow; the others tell how things stand now. The terms are those of ``vcg.tokens``.
``generation`` is the word of the control page that the orchestrator has acted on: once it is negative, the lease of the
dead process has been taken back.
"""
COUNTERS_AT = TOKENS_AT + MAX_DIMENSIONS * TOKEN_SLOTS * TOKEN_WORDS
COUNTER_WORDS = 32
MINT_SLOTS = 1024
MINTS_AT = COUNTERS_AT + MAX_DIMENSIONS * COUNTER_WORDS
"""One word for each of the newest rounds: what settling, lending and minting took, in ns; round k in slot k % 1024."""
TOKENS_BYTES = (MINTS_AT + MINT_SLOTS) * WORD

# ── gauges ───────────────────────────────────────────────────────────────────────────────────────────────────────────
GAUGES_HEADER = Record(("magic", "epoch", "samples"))

GAUGE = Record(
    (
        "version",
        "sampled_ns",
        "cpu_usage_ns",
        "read_bytes",
        "written_bytes",
        "requests",
        "used_bytes",
        "memory_bytes",
        "tasks",
    )
)
"""What the kernel accounts to one dimension; -1 where it has no such figure (no loop device, no group any more).

``version`` is odd while the record is being written. ``cpu_usage_ns`` to ``requests`` grow; ``used_bytes`` (of its
filesystem), ``memory_bytes`` and ``tasks`` tell how things stood at ``sampled_ns``.
"""
GAUGES_AT = 512 // WORD
GAUGE_WORDS = 16
GAUGES_BYTES = (GAUGES_AT + MAX_DIMENSIONS * GAUGE_WORDS) * WORD

# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────
STATUS_HEADER = Record(("magic", "epoch", "dimension", "state", "pid", "head", "message_bytes", "generation"))
"""``head`` counts window records written since the start; record k, of window k, lies in slot ``k % WINDOW_SLOTS``."""
MESSAGE_AT_BYTES = 512
MESSAGE_BYTES = PAGE - MESSAGE_AT_BYTES

WINDOW = Record(
    (
        "window",
        "epoch",
        "outcome",
        "planned_ns",
        "wake_ns",
        "entry_ns",
        "finish_ns",
        "budget_ns",
        "used_ns",
        "expires_ns",
        "phase_ppb",
        "cause",
    )
)
"""One window as its dimension lived it. Times are CLOCK_MONOTONIC; 0 where it did not come to that.

``wake_ns`` is the first instruction after the futex, ``entry_ns`` the last before the workload's code; ``used_ns`` the
process's CPU time from the end of the window before to the end of this one; ``cause`` tells why it was missed.
"""
WINDOWS_AT = PAGE // WORD
WINDOW_WORDS = 12
WINDOW_SLOTS = 8192
STATUS_BYTES = (WINDOWS_AT + WINDOW_SLOTS * WINDOW_WORDS) * WORD

F_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; the fcntl module has had it only since Python 3.13


def allocate(name: str, size_bytes: int) -> int:
    """A new memfd of fixed size, not yet sealed against writers (see :func:`seal`).

    Args:
        name: shown in ``/proc/PID/maps``.
        size_bytes: rounded up to whole pages.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, -(-size_bytes // PAGE) * PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def seal(fd: int) -> None:
    """From now on nobody can map this region writable; mappings that exist stay (fcntl(2), F_SEAL_FUTURE_WRITE)."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)


def create(name: str, size_bytes: int) -> tuple[int, memoryview]:
    """A new region of which this process is the owner: mapped writable here, then sealed.

    The mapping is not inherited over fork: a child has to map the descriptor, and gets it read-only.

    Returns:
        The descriptor (close-on-exec) and the mapping as words.
    """
    fd = allocate(name, size_bytes)
    mapping = mmap.mmap(fd, os.fstat(fd).st_size)
    mapping.madvise(mmap.MADV_DONTFORK)
    seal(fd)
    return fd, memoryview(mapping).cast("q")


def publish(name: str, content: bytes) -> int:
    """A memfd of fixed content, which nobody can change any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd


def attach(fd: int, *, writable: bool = False, inherited: bool = False) -> memoryview:
    """Map a region received from its creator, as words.

    Trap: a mapping made before the region was sealed can be made writable later (mprotect(2)), also by a child that
    inherits it. So children inherit none, unless they are meant to.

    Args:
        writable: only its owner may, and only before the region is sealed.
        inherited: whether children of this process find the mapping, too.

    Raises:
        PermissionError: a writable mapping of a region that belongs to somebody else.
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    mapping = mmap.mmap(fd, os.fstat(fd).st_size, flags=mmap.MAP_SHARED, prot=protection)
    if not inherited:
        mapping.madvise(mmap.MADV_DONTFORK)
    return memoryview(mapping).cast("q")


class Owned:
    """A region that its owner lends to single children: mapped writable before it is sealed, and not inherited.

    After the seal no mapping of the descriptor can be writable any more; a child that is to write there has to inherit
    this one.
    """

    def __init__(self, fd: int) -> None:
        self._mapping = mmap.mmap(fd, os.fstat(fd).st_size)
        self._mapping.madvise(mmap.MADV_DONTFORK)
        self.words = memoryview(self._mapping).cast("q")

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Who is forked inside the block inherits the mapping."""
        self._mapping.madvise(mmap.MADV_DOFORK)
        try:
            yield
        finally:
            self._mapping.madvise(mmap.MADV_DONTFORK)


def peek(fd: int) -> memoryview:
    """A copy of a region's first page, for somebody who must not map it (yet)."""
    return memoryview(os.pread(fd, PAGE, 0)).cast("q")


def write_message(status: memoryview, text: str) -> None:
    """Leave a dimension's last words in its status page, cut to what fits."""
    raw = text.encode(errors="replace")[:MESSAGE_BYTES]
    at = MESSAGE_AT_BYTES // WORD
    room = status[at : at + MESSAGE_BYTES // WORD].cast("B")
    room[: len(raw)] = raw
    status[STATUS_HEADER.at("message_bytes")] = len(raw)


def read_message(status: memoryview) -> str:
    """The text that :func:`write_message` left; its length is not trusted."""
    length = min(max(status[STATUS_HEADER.at("message_bytes")], 0), MESSAGE_BYTES)
    at = MESSAGE_AT_BYTES // WORD
    return bytes(status[at : at + MESSAGE_BYTES // WORD].cast("B")[:length]).decode(errors="replace")


def newest_record(status: memoryview, epoch: int, latest: int) -> int:
    """The newest window of which a status page holds a record, -1 if it holds none; the page is not trusted.

    A page that its owner has kept in order says so itself. In any other the newest record is looked for that lies in
    its place.

    Args:
        epoch: of this run.
        latest: the newest window that has been published.
    """
    oldest = max(-1, latest - WINDOW_SLOTS)
    claimed = status[STATUS_HEADER.at("head")] - 1
    if oldest < claimed <= latest and _lies_there(status, epoch, claimed):
        return claimed
    return next((window for window in range(latest, oldest, -1) if _lies_there(status, epoch, window)), oldest)


def _lies_there(status: memoryview, epoch: int, window: int) -> bool:
    at = WINDOWS_AT + window % WINDOW_SLOTS * WINDOW_WORDS
    return status[at] == window and status[at + 1] == epoch
