"""The orchestrator's own code with one check taken out, and what a forgery then does: controls for lines 07, 08 and 11.

An :class:`Office` is the orchestrator over regions of private memory, with two dimensions on one CPU and a clock that
is told what time it is. A forgery is played there as a dimension could play it: it writes into its status page, or
stops. With every check in place nothing may come of it. With the checks out that stop it, it must buy its dimension
something or do harm; with each of them alone put back, nothing may come of it again.

A check is taken out of the text of the function that makes it, so that all else stays as it is; if that text has
changed, the control is at fault, and says so.
"""

from __future__ import annotations

import inspect
import mmap
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from experiments.bench.attacks import Attack, Bait, Control, Outcome, Refused, attempt
from experiments.bench.misbehaviour import HUGE, claim
from vcg import config, rounds, shm
from vcg import plan as planning
from vcg.linux import numa, prctl
from vcg.orchestrator import new_tokens
from vcg.rounds import Desk, Orchestrator
from vcg.tokens import Account

EPOCH = 7
_BASE_NS = 1_000_000
_BURST = 8
_LATE = 10
_RACE_S = 2
_RACES = 20
_PATIENCE_S = 4
_HEAD_AT, _DIMENSION_AT = shm.STATUS_HEADER.at("head"), shm.STATUS_HEADER.at("dimension")
_REFUSED = "nothing came of it"


@dataclass(frozen=True)
class Cut:
    """A piece of a method of the runtime, and what stands there when the check is out."""

    owner: type
    method: str
    text: str
    instead: str


CHECKS: dict[str, tuple[Cut, ...]] = {
    "epoch": (Cut(Desk, "settle", "status[at + 1] != epoch", "False"),),
    "has begun": (Cut(Desk, "settle", "< window <= newest", "< window"),),
    "desk remembers": (Cut(Desk, "settle", "self.reported < window <= newest", "window <= newest"),),
    "ledger remembers": (
        Cut(Desk, "settle", "if account.settled_through < window:", "if True:"),
        Cut(Account, "settle", "not self.settled_through < window < self.next_window or", ""),
    ),
    "least use": (Cut(Desk, "settle", "0 <= used_ns <= most_ns", "used_ns <= most_ns"),),
    "most use": (Cut(Desk, "settle", "0 <= used_ns <= most_ns - account.used_ns", "0 <= used_ns"),),
    "range of head": (Cut(Desk, "settle", "if not 0 < fresh <= _SETTLE_AT_MOST:", "if False:"),),
    "head read once": (Cut(Desk, "settle", "range(self.seen, head)", "range(self.seen, status[_HEAD_AT])"),),
    "use read once": (Cut(Desk, "settle", "settle_plain(used_ns,", "settle_plain(status[at + 8],"),),
    "page is identity": (
        Cut(Desk, "settle", "account, epoch = self.account,", f"account, epoch = self.all[status[{_DIMENSION_AT}]],"),
    ),
    "lease": (Cut(Desk, "enforce", "if account.settled_through < newest - _LEASE:", "if False:"),),
}
"""Each check of what a dimension writes, and what is to be taken out to have it gone."""


def _take_out(checks: frozenset[str]) -> None:
    """Do without these checks in this process, for good.

    Raises:
        RuntimeError: the runtime's text is not what it was.
    """
    texts: dict[tuple[type, str], str] = {}
    for cut in (cut for check in checks for cut in CHECKS[check]):
        place = cut.owner, cut.method
        text = texts.get(place) or textwrap.dedent(inspect.getsource(getattr(*place)))
        if text.count(cut.text) != 1:
            raise RuntimeError(f"{cut.owner.__name__}.{cut.method} holds {cut.text!r} {text.count(cut.text)} times")
        texts[place] = text.replace(cut.text, cut.instead)
    for (owner, method), text in texts.items():
        made: dict[str, Any] = {}
        exec(compile(text, f"{method} without {', '.join(checks)}", "exec"), inspect.getmodule(owner).__dict__, made)
        setattr(owner, method, made[method])


class Office:
    """An orchestrator that does without some checks; only for a process that ends with it."""

    def __init__(self, without: frozenset[str]) -> None:
        _take_out(without)
        dimension = {"cpus": [min(os.sched_getaffinity(0))], "burst": _BURST, "enforce": "none"}
        testbed = {"name": "office", "base_window": "1ms", "dimensions": {"d1": dimension, "d2": dimension}}
        plan = planning.make(config.from_mapping(testbed), numa.observe())
        control, ticks, *self.status = map(_words, (shm.CONTROL_BYTES, shm.TICKS_BYTES, *2 * [shm.STATUS_BYTES]))
        fd, self.tokens = new_tokens(EPOCH)
        os.close(fd)
        self.ticks = ticks
        for index, page in enumerate(self.status):
            page[_DIMENSION_AT] = index
        self._now_ns, self.window = -1, -1
        vars(rounds)["clock"] = SimpleNamespace(now_ns=lambda: self._now_ns)
        self._orchestrator = Orchestrator(plan, EPOCH, control, ticks, self.tokens, self.status)
        self.desk, self.neighbour = self._orchestrator.desks
        for desk in self._orchestrator.desks:
            desk.all = self._orchestrator.ledger.accounts  # type: ignore[attr-defined]
        self.publish(-1)
        self._orchestrator.work(-1, 0)

    def publish(self, window: int) -> None:
        """Let this window of both dimensions begin."""
        self.window = window
        for index in (0, 1):
            self.ticks[shm.LATEST_AT + index] = window

    def turn(self) -> None:
        """Let the next window begin, and the orchestrator work a round in the middle of it."""
        self.publish(self.window + 1)
        self._now_ns = self.window * _BASE_NS + _BASE_NS // 2
        self._orchestrator.work(self.window, 0)

    def budget_ns(self, index: int) -> int:
        """What the token of the running window holds."""
        slot = index * shm.TOKEN_SLOTS + self.window % shm.TOKEN_SLOTS
        return self.tokens[shm.TOKENS_AT + slot * shm.TOKEN_WORDS + shm.TOKEN.at("budget_ns")]

    def live(self, windows: int, share: float) -> None:
        """Let the first dimension use a share of its own credit for some windows, the second all of it, and report."""
        for _ in range(windows):
            self.turn()
            claim(self.status[0], self.window, EPOCH, int(share * self.desk.account.credit_ns))
            claim(self.status[1], self.window, EPOCH, self.neighbour.account.credit_ns)
        self.turn()


def _words(size_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size_bytes)).cast("q")


# ── forgeries ────────────────────────────────────────────────────────────────────────────────────────────────────────
def old_epoch(office: Office) -> str:
    """A record as from before a restart says of a window that nothing was used, before the true one comes."""
    office.live(5, 0.5)
    account, before_ns = office.desk.account, office.desk.account.used_ns
    claim(office.status[0], office.window, EPOCH - 1, 0)
    claim(office.status[0], office.window, EPOCH, account.credit_ns)
    office.turn()
    if account.used_ns == before_ns:
        return f"{account.credit_ns} ns that it used are booked nowhere"
    raise Refused(_REFUSED)


def replay(office: Office) -> str:
    """Windows that are settled are reported once more, with no use."""
    office.live(10, 0.5)
    account, before_ns = office.desk.account, office.desk.account.balance_ns
    for back in (5, 4, 3, 2):
        claim(office.status[0], office.window - back, EPOCH, 0)
    office.turn()
    if account.balance_ns > before_ns + account.credit_ns:
        return f"its balance rose from {before_ns} to {account.balance_ns} ns"
    raise Refused(_REFUSED)


def future(office: Office) -> str:
    """A dimension in debt reports a window that is yet to begin: those before it expire, and pay."""
    office.live(10, 5)
    account, before_ns = office.desk.account, office.desk.account.balance_ns
    claim(office.status[0], office.window + 1000, EPOCH, 0)
    office.turn()
    if account.balance_ns >= 0 > before_ns:
        return f"it owes nothing any more of {-before_ns} ns"
    raise Refused(_REFUSED)


def negative_use(office: Office) -> str:
    """A window is reported to have used less than nothing."""
    office.live(5, 1)
    claim(office.status[0], office.window, EPOCH, -HUGE)
    office.turn()
    if office.desk.account.used_ns < 0:
        return f"it is believed to have used {office.desk.account.used_ns} ns"
    raise Refused(_REFUSED)


def impossible_use(office: Office) -> str:
    """Windows are reported to have used more than there ever was."""
    office.live(5, 0.5)
    try:
        for _ in range(4):
            claim(office.status[0], office.window, EPOCH, HUGE)
            office.turn()
    except OverflowError as error:  # no counter holds that much
        return f"the orchestrator ends: {error}"
    raise Refused(_REFUSED)


def neighbour(office: Office) -> str:
    """A page says that it is another dimension's, and reports more use than it has credit."""
    office.live(5, 0.5)
    office.status[0][_DIMENSION_AT] = 1
    claim(office.status[0], office.window, EPOCH, 5 * office.desk.account.credit_ns)
    office.turn()
    if office.neighbour.account.balance_ns < 0:
        return f"its neighbour owes {-office.neighbour.account.balance_ns} ns"
    if office.desk.account.balance_ns >= 0:
        raise RuntimeError("nobody pays for it")
    raise Refused(_REFUSED)


def expired(office: Office) -> str:
    """A token is kept, and used long after its window."""
    office.live(5, 0.5)
    account, kept, before = office.desk.account, office.window, office.desk.account.overruns
    for _ in range(_LATE):
        office.turn()
    claim(office.status[0], kept, EPOCH, account.credit_ns // 2)
    office.turn()
    if account.overruns == before:
        return f"the token of window {kept} was good in window {office.window}"
    raise Refused(_REFUSED)


def stop(office: Office) -> str:
    """A dimension that wants all that it can have stops; its neighbour wants more than its own."""
    office.live(5, 1)
    for _ in range(4 * _LATE):
        claim(office.status[1], office.window, EPOCH, office.budget_ns(1))
        office.turn()
    account = office.desk.account
    out = office.window - account.settled_through
    if office.neighbour.account.borrowed_ns == 0:
        return f"{out} tokens stay out, and nobody may borrow what they hold"
    raise Refused(_REFUSED)


def head_out_of_range(office: Office) -> str:
    """A head claims more records than there can be; who reads them all never ends."""
    office.live(5, 0.5)
    office.status[0][_HEAD_AT] = HUGE
    office.turn()
    raise Refused(_REFUSED)


def head_rewritten(office: Office) -> str:
    """The same, but the head is well when it is checked, and rewritten at once; who reads it again never ends."""

    def rewrite(page: memoryview) -> None:
        head = page[_HEAD_AT]
        while True:
            head += 1
            page[_HEAD_AT] = head
            page[_HEAD_AT] = HUGE

    desk, end = office.desk, time.monotonic() + _RACE_S
    with _racing(rewrite, office.status[0]):
        while time.monotonic() < end:
            desk.settle(0)
    if not (desk.refused_value > _RACES and desk.refused_epoch > _RACES):  # its records are empty
        raise RuntimeError(f"no race: {desk.refused_value} heads out of range, {desk.refused_epoch} in range")
    raise Refused(_REFUSED)


def use_rewritten(office: Office) -> str:
    """A use is well when it is checked, and rewritten at once."""

    def rewrite(page: memoryview) -> None:
        while True:
            at = shm.WINDOWS_AT + page[_HEAD_AT] % shm.WINDOW_SLOTS * shm.WINDOW_WORDS + shm.WINDOW.at("used_ns")
            claim(page, office.ticks[shm.LATEST_AT], EPOCH, 0)
            for _ in range(100):
                page[at] = -HUGE
                page[at] = 0

    desk, end = office.desk, time.monotonic() + _RACE_S
    office.publish(0)
    with _racing(rewrite, office.status[0]):
        while time.monotonic() < end:
            desk.settle(_BASE_NS)
            if desk.reported == office.window:
                office.publish(office.window + 1)
            if desk.account.used_ns < 0:
                return f"it is believed to have used {desk.account.used_ns} ns"
    if not (desk.refused_value > _RACES and office.window > _RACES):
        raise RuntimeError(f"no race: {desk.refused_value} uses were refused, {office.window} believed")
    raise Refused(_REFUSED)


@contextmanager
def _racing(act: Callable[[memoryview], None], page: memoryview) -> Iterator[None]:
    """Somebody else who writes into a page for as long as the block lasts, on another CPU if there is one."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            prctl.die_with_parent(parent)
            act(page)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


STOPPED_BY: Mapping[Callable[[Office], str], tuple[str, ...]] = {
    old_epoch: ("epoch",),
    replay: ("desk remembers", "ledger remembers"),
    future: ("has begun",),
    negative_use: ("least use",),
    impossible_use: ("most use",),
    neighbour: ("page is identity",),
    expired: ("lease",),
    stop: ("lease",),
    head_out_of_range: ("range of head",),
    head_rewritten: ("head read once",),
    use_rewritten: ("use read once",),
}
"""Each forgery, and the checks that stop it, each of them alone."""


def control(forgery: Callable[[Office], str]) -> Control:
    """A forgery at an office without the checks that stop it, and with each of them alone."""
    checks = STOPPED_BY[forgery]
    without = _played(forgery, frozenset(checks))
    if without.verdict == "stuck":
        without = Outcome("escaped", "the orchestrator never comes back")
    return Control(without, {one: _played(forgery, frozenset(checks) - {one}) for one in checks})


def _played(forgery: Callable[[Office], str], without: frozenset[str]) -> Outcome:
    attack = Attack("", forgery.__name__, lambda bait: forgery(Office(without)), {"": _REFUSED})
    return attempt(attack, Bait(), patience_s=_PATIENCE_S)
