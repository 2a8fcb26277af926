"""A run's shared memory as its readers find it: the one who runs it, and whoever attaches later.

Every region is mapped read-only. Nothing that a reader does can be noticed by the run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from vcg import shm
from vcg.plan import Plan
from vcg.shm import State

_RECORD_BYTES = shm.WINDOW_WORDS * shm.WORD


class WindowRecord(NamedTuple):
    """One window, as its dimension left it; what the fields say stands at ``shm.WINDOW``."""

    window: int
    epoch: int
    outcome: int
    planned_ns: int
    wake_ns: int
    entry_ns: int
    finish_ns: int
    budget_ns: int
    used_ns: int
    expires_ns: int
    phase_ppb: int
    cause: int


def windows_of(raw: bytes) -> list[WindowRecord]:
    """The windows of one dimension, as :meth:`Regions.drain` gives them."""
    words = memoryview(raw).cast("q").tolist()
    return [WindowRecord(*words[at : at + shm.WINDOW_WORDS]) for at in range(0, len(words), shm.WINDOW_WORDS)]


class Regions:
    """The mapped regions of a run.

    Args:
        plan: of the run.
        fds: of the regions as :attr:`vcg.supervisor.Supervisor.regions` lists them; closed here.

    Attributes:
        control, ticks, tokens, gauges: as ``vcg.shm`` declares them.
        status: dimension -> its status page.
        records_lost: dimension -> window records overwritten before :meth:`drain` saw them.
    """

    def __init__(self, plan: Plan, fds: Sequence[int]) -> None:
        self.plan = plan
        self.control, self.ticks, self.tokens, self.gauges, *pages = (shm.attach(fd) for fd in fds)
        for fd in fds:
            os.close(fd)
        self.status = {d.name: page for d, page in zip(plan.dimensions, pages, strict=True)}
        self.records_lost = {d.name: 0 for d in plan.dimensions}
        self._drained = {d.name: 0 for d in plan.dimensions}

    def release(self) -> None:
        """Give the mappings back."""
        for region in (self.control, self.ticks, self.tokens, self.gauges, *self.status.values()):
            region.release()

    # ── window records ───────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> dict[str, bytes]:
        """Window records since the last call, in order, as they lie in shared memory (``shm.WINDOW``).

        A ring holds 8192 windows of its dimension; what was overwritten before it was read is counted in
        ``records_lost``.
        """
        fresh = {}
        head_at = shm.STATUS_HEADER.at("head")
        for name, status in self.status.items():
            head, seen = status[head_at], self._drained[name]
            first = max(seen, head - shm.WINDOW_SLOTS + 1)
            raw = status.cast("B")
            pieces = []
            at = first
            while at < head:
                slot = at % shm.WINDOW_SLOTS
                many = min(head - at, shm.WINDOW_SLOTS - slot)
                begin = shm.WINDOWS_AT * shm.WORD + slot * _RECORD_BYTES
                pieces.append(bytes(raw[begin : begin + many * _RECORD_BYTES]))
                at += many
            overtaken = max(0, status[head_at] - shm.WINDOW_SLOTS + 1 - first) if head > first else 0
            fresh[name] = b"".join(pieces)[overtaken * _RECORD_BYTES :]
            self.records_lost[name] += first - seen + overtaken
            self._drained[name] = head
        return fresh

    def unrecorded(self) -> dict[str, int]:
        """How many published windows of each dimension nobody has left a record of.

        After the ticks have stopped, only one has some that was still inside an earlier window then.
        """
        head_at = shm.STATUS_HEADER.at("head")
        published = {d.name: self.ticks[shm.LATEST_AT + d.index] + 1 for d in self.plan.dimensions}
        return {name: max(0, many - self.status[name][head_at]) for name, many in published.items()}

    def finished(self) -> list[str]:
        """The dimensions whose program has done its work and ended; their windows go by without it."""
        state_at = shm.STATUS_HEADER.at("state")
        return [d.name for d in self.plan.dimensions if d.program and self.status[d.name][state_at] == State.FINISHED]

    def begin_at(self, span_ns: int) -> None:
        """Let the next :meth:`drain` begin with the windows of this last span of time, as far as the rings hold them.

        For who attaches to a run that has been going on; what lies before is not counted as lost.
        """
        head_at = shm.STATUS_HEADER.at("head")
        for d in self.plan.dimensions:
            back = min(ceil(span_ns / d.period_ns), shm.WINDOW_SLOTS - 1)
            self._drained[d.name] = max(0, self.status[d.name][head_at] - back)

    # ── counters ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def clock(self) -> dict[str, int]:
        """The RTD's counters."""
        names = ("head", "superseded", "coalesced", "behind_ns_max")
        return {name: self.ticks[shm.TICKS_HEADER.at(name)] for name in names}

    def rounds(self) -> dict[str, int]:
        """The orchestrator's counters of its own work."""
        names = ("rounds", "round_ns_max", "round_ns_total", "is_compiled")
        return {name: self.tokens[shm.TOKENS_HEADER.at(name)] for name in names}

    def accounts(self) -> dict[str, dict[str, int]]:
        """The orchestrator's account of every dimension (``shm.COUNTERS``)."""
        accounts = {}
        for d in self.plan.dimensions:
            at = shm.COUNTERS_AT + d.index * shm.COUNTER_WORDS
            words = self.tokens[at : at + shm.COUNTERS.words]
            accounts[d.name] = dict(zip(shm.COUNTERS.fields, words, strict=True))
        return accounts

    def amplitudes(self) -> dict[str, float]:
        """The amplitude that every dimension has now."""
        at = shm.AMPLITUDES_AT
        return {d.name: self.control[at + d.index] / shm.AMPLITUDE_ONE for d in self.plan.dimensions}

    def credits_ns(self) -> dict[str, int]:
        """The credit that every dimension has now, for each of its windows."""
        return {d.name: self.control[shm.CREDITS_AT + d.index] for d in self.plan.dimensions}
