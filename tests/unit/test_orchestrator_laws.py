"""Laws of the orchestrator's rounds under arbitrary traces, in simulated time.

A :class:`Host` has everything but a kernel: the real orchestrator over private regions, an RTD that publishes edges
when they are planned, dimensions that read their token at the edge, use what they want and write records, a kernel that
accounts what they use, a supervisor that changes amplitudes, buries and brings on. Time passes while a round is worked,
so edges fall between what the orchestrator reads and what it writes.
"""

from __future__ import annotations

import heapq
import mmap
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate, count, cycle
from typing import cast
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcg import harmonics, plan, shm
from vcg.harmonics import Cadence
from vcg.linux import clock
from vcg.orchestrator import new_tokens
from vcg.plan import DimensionPlan, Plan, ServicePlan
from vcg.rounds import Orchestrator
from vcg.shm import Outcome
from vcg.tokens import Account
from vcg.warden import Standing, Warden

EPOCH = 7
START_NS = 1_000_000_000_000
BASE_NS = 6_000_000
HORIZON = 8
GRACE_NS = 100_000
GREEDY = 10_000
"""Eighths of its own credit: more than any token holds."""


# ── the host ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Spec:
    """One dimension; its phase is in twelfths of its window."""

    name: str
    harmonic: Fraction = Fraction(1)
    phase: int = 0
    amplitude: int = 1
    cpu: int = 1
    triad: str = ""
    burst: Fraction = Fraction(0)
    floor: Fraction = Fraction(1, 4)
    ceiling: Fraction = Fraction(4)


@dataclass(frozen=True)
class Act:
    """What a dimension does in one window.

    Attributes:
        wants: eighths of its own credit that it would use; what of that its token holds it uses. None: it is not there.
        beyond: hundredths of its own credit that it uses on top.
        until: part of its token's time after which it writes its record and looks for the next edge.
        says: what it writes.
    """

    wants: int | None = 0
    beyond: int = 0
    until: Fraction = Fraction(1, 2)
    says: str = "truth"


@dataclass(frozen=True)
class Weather:
    """What holds the orchestrator up, one entry after the other and round again: a round, its beginning, a check.

    ``glance_ns`` passes at each other look at the clock.
    """

    delays_ns: Sequence[int] = (0,)
    starts_ns: Sequence[int] = (0,)
    checks_ns: Sequence[int] = (0,)
    glance_ns: int = 2_000


@dataclass(frozen=True)
class Trace:
    """What happens: tunes are (base window, amplitudes), deaths (base window, name, base windows without a process)."""

    specs: tuple[Spec, ...]
    acts: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    weather: Weather = Weather()
    tunes: Sequence[tuple[int, Mapping[str, int]]] = ()
    deaths: Sequence[tuple[int, str, int]] = ()


@dataclass(frozen=True)
class Seen:
    """A token as it was read."""

    window: int
    planned_ns: int
    expires_ns: int
    budget_ns: int
    borrowed_ns: int


def words(size_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size_bytes)).cast("q")


def plan_of(specs: Sequence[Spec]) -> Plan:
    rhythm = [Cadence(BASE_NS / s.harmonic, BASE_NS / s.harmonic * Fraction(s.phase, 12)) for s in specs]
    amplitudes, cpus = [float(s.amplitude) for s in specs], [(s.cpu,) for s in specs]
    credits_ns = plan.credits_ns(amplitudes, cpus, [cadence.period for cadence in rhythm], rtd_cpu=0)
    rounds = plan.rounds_per_base_window(rhythm, BASE_NS)
    dimensions = tuple(
        DimensionPlan(
            index=index,
            name=s.name,
            role="",
            harmonic=str(s.harmonic),
            period=cadence.period.as_integer_ratio(),
            phase=cadence.phase.as_integer_ratio(),
            storage="tmpfs",
            storage_bytes=1 << 20,
            amplitude=amplitude,
            credit_ns=credit_ns,
            cpus=(s.cpu,),
            node=0,
            policy="fifo",
            priority=10,
            workload="",
            args={},
            devices=(),
            memory_bytes=1 << 26,
            pids=8,
            triad=s.triad,
            burst=s.burst.as_integer_ratio(),
            floor=s.floor.as_integer_ratio(),
            ceiling=s.ceiling.as_integer_ratio(),
            grace_ns=GRACE_NS,
        )
        for index, (s, cadence, amplitude, credit_ns) in enumerate(
            zip(specs, rhythm, amplitudes, credits_ns, strict=True)
        )
    )
    phase_ns = harmonics.widest_gap(rhythm, Fraction(BASE_NS, rounds))
    service = ServicePlan((0,), 85)
    return Plan("laws", BASE_NS, None, dimensions, service, service, rounds, phase_ns, HORIZON, service, "", "")


class Dimension:
    """One dimension's process, and the kernel's account of its group."""

    def __init__(self, host: Host, d: DimensionPlan, acts: Sequence[Act]) -> None:
        self.host, self.index, self.plan = host, d.index, d
        self.acts = acts
        self.status = words(shm.STATUS_BYTES)
        self.period, self.phase = Fraction(*d.period), Fraction(*d.phase)
        self.generation = 1
        self.is_alive, self.is_busy = True, False
        self.last = self.newest = -1
        self.written = 0
        self.is_starting = False
        self.settled_before = 0
        self.group_ns = 0
        self.checked_ns: int | None = None
        """What the warden has read of that in this round, if it has."""
        self.standing = Standing.FREE
        self.acts_of_warden: list[Standing] = []
        self.seen: list[Seen | None] = []
        """The token of each window that has begun, as it lay there at the edge."""
        self.used: dict[int, int] = {}

    def planned_ns(self, window: int) -> int:
        return START_NS + int(self.phase + window * self.period)

    def token(self, window: int) -> Seen | None:
        at = shm.TOKENS_AT + (self.index * shm.TOKEN_SLOTS + window % shm.TOKEN_SLOTS) * shm.TOKEN_WORDS
        number, epoch, dimension, budget, expires, borrowed, planned, _ = self.host.tokens[at : at + shm.TOKEN_WORDS]
        if number != window:
            return None
        assert (epoch, dimension, planned, expires) == (
            EPOCH,
            self.index,
            self.planned_ns(window),
            self.planned_ns(window + 1),
        )
        return Seen(window, planned, expires, budget, borrowed)

    def edge(self) -> None:
        """The RTD publishes the next window."""
        before, window = self.newest, self.newest + 1
        if before >= 0 and self.seen[before] not in (None, self.token(before)):
            self.host.changed.append((self.plan.name, self.seen[before], self.token(before)))
        self.newest = self.host.ticks[shm.LATEST_AT + self.index] = window
        self.seen.append(self.token(window))
        self.host.at(self.planned_ns(window + 1), self.edge)
        self.look()

    def act(self, window: int) -> Act:
        """What a process uses before its first report has been seen is nobody's credit: it starts by being honest."""
        return Act() if self.is_starting else self.acts[window // 3 % len(self.acts)]

    def look(self) -> None:
        window = self.newest
        if not self.is_alive or self.is_busy or window == self.last:
            return
        act, token = self.act(window), self.token(window)
        if act.wants is None or self.standing == Standing.FROZEN:
            return
        for missed in range(self.last + 1, window):
            self.record(missed, 0, Outcome.MISSED)
        self.last = window
        if token is None or self.host.now_ns >= token.expires_ns:
            self.record(window, 0, Outcome.MISSED)
            return
        credit_ns = self.host.credits_ns[self.index]
        used_ns = min(act.wants * credit_ns // 8, token.budget_ns) + act.beyond * credit_ns // 100
        self.used[window] = used_ns
        self.group_ns += used_ns
        self.is_busy = True
        if act.says == "early":
            self.record(window, 0)
        generation = self.generation
        left_ns = max(1, int(act.until * (token.expires_ns - self.host.now_ns)))
        self.host.at(self.host.now_ns + left_ns, lambda: self.finish(window, used_ns, act.says, generation))

    def finish(self, window: int, used_ns: int, says: str, generation: int) -> None:
        if not self.is_alive or generation != self.generation:
            return
        self.is_busy = False
        match says:
            case "nothing":
                pass
            case "less":
                self.record(window, 0)
            case "more":
                self.record(window, used_ns + 40 * self.host.credits_ns[self.index])
            case "absurd":
                self.record(window, 1 << 62)
            case "negative":
                self.record(window, -(1 << 40))
            case "ahead":
                self.record(window + 1, 0)
            case "foreign":
                self.record(window, 0, epoch=EPOCH - 1)
            case "missed":
                self.record(window, 0, Outcome.MISSED)
            case "odd":
                self.record(window, 0, 99)
            case "again":
                self.record(window, used_ns)
                self.record(max(0, window - 1), 0)
                self.record(window, 0)
            case "jump":
                self.status[shm.STATUS_HEADER.at("head")] = self.written + 5000
            case "back":
                self.status[shm.STATUS_HEADER.at("head")] = self.written - 3
            case _:
                self.record(window, used_ns)
        self.look()

    def record(self, window: int, used_ns: int, outcome: int = Outcome.DONE, epoch: int = EPOCH) -> None:
        at = shm.WINDOWS_AT + self.written % shm.WINDOW_SLOTS * shm.WINDOW_WORDS
        for name, value in (("window", window), ("epoch", epoch), ("outcome", outcome), ("used_ns", used_ns)):
            self.status[at + shm.WINDOW.at(name)] = value
        self.written += 1
        self.status[shm.STATUS_HEADER.at("head")] = self.written

    # What the warden is to a desk.

    def usage_ns(self) -> int:
        self.host.pass_time(next(self.host.checks_ns))
        self.checked_ns = self.group_ns
        settled = self.host.accounts[self.plan.name].settled
        if self.host.desks[self.plan.name].generation != self.generation:
            self.settled_before = settled  # what it has reported before it was announced is of its start
        elif self.is_alive and settled > self.settled_before:
            self.is_starting = False
        return self.checked_ns

    def apply(self, before: Standing, after: Standing) -> bool:
        self.standing = after
        if before != after:
            self.acts_of_warden.append(after)
        return True


class Host:
    """Runs a trace."""

    def __init__(self, trace: Trace, *, is_watched: bool = True) -> None:
        self.plan = plan_of(trace.specs)
        self.now_ns = START_NS - 100_000_000
        self.ticks, self.control = words(shm.TICKS_BYTES), words(shm.CONTROL_BYTES)
        fd, self.tokens = new_tokens(EPOCH)
        os.close(fd)
        for bit in range(shm.MAX_DIMENSIONS):
            self.ticks[shm.LATEST_AT + bit] = -1
            self.control[shm.GENERATIONS_AT + bit] = 1
        self.dimensions = {d.name: Dimension(self, d, trace.acts.get(d.name, (Act(),))) for d in self.plan.dimensions}
        statuses = [d.status for d in self.dimensions.values()]
        self.orchestrator = Orchestrator(self.plan, EPOCH, self.control, self.ticks, self.tokens, statuses)
        self.accounts = {account.terms.name: account for account in self.orchestrator.ledger.accounts}
        self.desks = dict(zip(self.dimensions, self.orchestrator.desks, strict=True))
        self.changed: list[tuple[str, Seen | None, Seen | None]] = []
        self.taken_over: list[tuple[int, int, tuple[int, ...]]] = [(self.now_ns, self.now_ns, self.credits_ns)]
        """In which round, from when to when, the orchestrator went over to which credits."""
        self.after_round: Callable[[], None] = lambda: None
        self.suffer(trace.weather)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._round = self._worked = -1
        self._is_working = self._has_begun = False
        for dimension in self.dimensions.values():
            self.at(dimension.planned_ns(0), dimension.edge)
        self._plan_round(0)
        for base, amplitudes in trace.tunes:
            self.at(START_NS + base * BASE_NS, lambda amplitudes=amplitudes: self.tune(amplitudes))  # type: ignore[misc]
        for base, name, bases in trace.deaths:
            died_ns = START_NS + base * BASE_NS
            self.at(died_ns, lambda name=name: self.die(name))  # type: ignore[misc]
            self.at(died_ns + bases * BASE_NS, lambda name=name: self.bring_on(name))  # type: ignore[misc]
        self._is_watched = is_watched
        if is_watched:
            for name, desk in self.desks.items():
                self.dimensions[name].is_starting = True
                desk.watch_by(cast(Warden, self.dimensions[name]))
        with patch.object(clock, "now_ns", self.clock):
            self._work()

    @property
    def credits_ns(self) -> tuple[int, ...]:
        return tuple(account.credit_ns for account in self.orchestrator.ledger.accounts)

    def suffer(self, weather: Weather) -> None:
        self._delays_ns, self._starts_ns = cycle(weather.delays_ns), cycle(weather.starts_ns)
        self.checks_ns, self._glance_ns = cycle(weather.checks_ns), weather.glance_ns

    def at(self, time_ns: int, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_ns, next(self._order), do))

    def run(self, base_windows: int) -> None:
        """On until so many base windows have passed since the start."""
        with patch.object(clock, "now_ns", self.clock):
            self.pass_time(START_NS + base_windows * BASE_NS - self.now_ns)

    def pass_time(self, for_ns: int) -> None:
        end_ns = self.now_ns + for_ns
        while self._events[0][0] <= end_ns:
            time_ns, _, do = heapq.heappop(self._events)
            self.now_ns = max(self.now_ns, time_ns)
            do()
        self.now_ns = max(self.now_ns, end_ns)

    def clock(self) -> int:
        """Tell the orchestrator the time; some passes until it makes use of it."""
        told_ns = self.now_ns
        if not self._has_begun:
            self._has_begun = True
            self.pass_time(next(self._starts_ns))
        else:
            self.pass_time(self._glance_ns)
        return told_ns

    def _plan_round(self, number: int) -> None:
        edge_ns = START_NS + number * BASE_NS // self.plan.rounds + self.plan.orchestrator_phase_ns
        self.at(edge_ns, lambda: self._edge_of_round(number))

    def _edge_of_round(self, number: int) -> None:
        self._round = number
        self._plan_round(number + 1)
        if not self._is_working:
            self._is_working = True
            self.at(self.now_ns + next(self._delays_ns), self._wake)

    def _wake(self) -> None:
        self._worked = self._round
        self._work()
        self._is_working = self._worked != self._round
        if self._is_working:
            self.at(self.now_ns, self._wake)

    def _work(self) -> None:
        began_ns, before = self.now_ns, self.credits_ns
        for dimension in self.dimensions.values():
            dimension.checked_ns = None
        self._has_begun = False
        self.orchestrator.work(self._worked, START_NS)
        if self.credits_ns != before:
            self.taken_over.append((began_ns, self.now_ns, self.credits_ns))
        self.after_round()

    # The supervisor.

    def tune(self, amplitudes: Mapping[str, int]) -> None:
        many = len(self.plan.dimensions)
        weights = [amplitudes.get(d.name, int(d.amplitude)) * shm.AMPLITUDE_ONE for d in self.plan.dimensions]
        for at, values in (
            (shm.CREDITS_AT, plan.retuned(self.plan, {name: float(value) for name, value in amplitudes.items()})),
            (shm.AMPLITUDES_AT, weights),
        ):
            for index in range(many):
                self.control[at + index] = values[index]
        self.control[shm.CONTROL.at("tuning")] += 1

    def die(self, name: str) -> None:
        dimension = self.dimensions[name]
        if not dimension.is_alive:
            return
        dimension.is_alive = dimension.is_busy = False
        dimension.is_starting = self._is_watched
        self._announce(dimension, -dimension.generation)

    def bring_on(self, name: str) -> None:
        dimension, desk = self.dimensions[name], self.desks[name]
        if dimension.is_alive:
            return
        if desk.generation != -dimension.generation or dimension.standing:
            self.at(self.now_ns + BASE_NS, lambda: self.bring_on(name))
            return
        dimension.generation += 1
        dimension.is_alive = True
        dimension.settled_before = self.accounts[name].settled
        for missed in range(dimension.last + 1, dimension.newest + 1):
            dimension.record(missed, 0, Outcome.MISSED)
        dimension.last = dimension.newest
        self._announce(dimension, dimension.generation)

    def _announce(self, dimension: Dimension, word: int) -> None:
        self.control[shm.GENERATIONS_AT + dimension.index] = word
        self.control[shm.CONTROL.at("lives")] += 1

    # What the laws speak of.

    def credits_in_force(self, name: str, planned_ns: int) -> set[int]:
        """Own credits by which the token of an edge may have been made: those since two rounds before."""
        index, since_ns = self.dimensions[name].index, planned_ns - 2 * BASE_NS // self.plan.rounds
        ends_ns = [end_ns for _, end_ns, _ in self.taken_over[1:]] + [1 << 62]
        return {
            credits_ns[index]
            for (began_ns, _, credits_ns), end_ns in zip(self.taken_over, ends_ns, strict=True)
            if began_ns <= planned_ns and end_ns >= since_ns
        }

    def minted_ns(self, account: Account) -> int:
        """Fresh credit of all tokens so far."""
        return account.own_ns - account.given_ns + account.borrowed_ns + account.returned_ns

    def out_ns(self, account: Account) -> int:
        """Fresh credit of the tokens that have not come back."""
        return account.started_ns(account.next_window - 1)


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────────────────────

WANTS = st.sampled_from([None, 0, 1, 3, 7, 8, 12, 40, GREEDY])
IN_TIME = st.sampled_from([Fraction(1, 20), Fraction(1, 2), Fraction(19, 20)])
WHENEVER = st.sampled_from(
    [Fraction(1, 20), Fraction(1, 2), Fraction(19, 20), Fraction(3, 2), Fraction(3), Fraction(7)]
)
SAYINGS = "truth nothing less more absurd negative ahead foreign missed odd again jump back early"
LIES = st.sampled_from(SAYINGS.split())
OBEDIENT = st.builds(Act, WANTS, until=IN_TIME)
OVERRUNNING = st.builds(Act, WANTS, st.sampled_from([0, 0, 0, 1, 10, 300]), WHENEVER)
LYING = st.builds(Act, WANTS, st.sampled_from([0, 0, 1, 30, 300]), WHENEVER, LIES)
STALLS_NS = st.sampled_from([0, 0, 0, 0, 300_000, 1_500_000, 7_000_000, 40_000_000])
CALM = st.just(Weather())
ROUGH = st.builds(
    Weather,
    st.lists(STALLS_NS, min_size=1, max_size=12),
    st.lists(st.sampled_from([0, 0, 20_000, 300_000, 3_000_000]), min_size=1, max_size=9),
    st.lists(st.sampled_from([0, 0, 0, 20_000, 1_000_000, 20_000_000]), min_size=1, max_size=17),
)


@st.composite
def specs(draw: st.DrawFn, cpus: Sequence[int] = (0, 1), slowest: Fraction = Fraction(1, 3)) -> tuple[Spec, ...]:
    return tuple(
        Spec(
            f"d{index + 1}",
            draw(st.sampled_from([Fraction(1), Fraction(3), Fraction(2), slowest, Fraction(12)])),
            draw(st.integers(0, 11)),
            draw(st.integers(1, 9)),
            draw(st.sampled_from(cpus)),
            draw(st.sampled_from(["", "a"])),
            Fraction(draw(st.integers(0, 3)), 2),
            Fraction(draw(st.integers(1, 6)), 8),
            Fraction(draw(st.integers(2, 12)), 2),
        )
        for index in range(draw(st.integers(1, 4)))
    )


@st.composite
def traces(
    draw: st.DrawFn,
    act: st.SearchStrategy[Act],
    weather: st.SearchStrategy[Weather] = ROUGH,
    *,
    tunes: int = 2,
    deaths: int = 2,
    of: st.SearchStrategy[tuple[Spec, ...]] | None = None,
) -> Trace:
    """Dimensions that change their ways every few windows."""
    chosen = draw(specs() if of is None else of)
    name, base = st.sampled_from([s.name for s in chosen]), st.integers(1, 30)
    return Trace(
        chosen,
        {s.name: draw(st.lists(act, min_size=1, max_size=8)) for s in chosen},
        draw(weather),
        draw(st.lists(st.tuples(base, st.dictionaries(name, st.integers(1, 20), min_size=1)), max_size=tunes)),
        draw(st.lists(st.tuples(base, name, st.integers(1, 9)), max_size=deaths)),
    )


law = settings(deadline=None, max_examples=30)
BASES = 36


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@law
@given(traces(LYING))
def test_a_token_that_lay_there_at_its_edge_does_not_change_any_more(trace: Trace) -> None:
    host = Host(trace)
    host.run(BASES)
    assert host.changed == []


@law
@given(traces(LYING))
def test_a_token_holds_at_least_the_floor_and_at_most_the_ceiling_and_a_burst(trace: Trace) -> None:
    host = Host(trace)
    host.run(BASES)
    for spec in trace.specs:
        d = host.dimensions[spec.name]
        for token in filter(None, d.seen):
            own = host.credits_in_force(spec.name, token.planned_ns)
            # Another amplitude may come between what is carried on and what is on offer.
            assert min(own) * spec.floor <= token.budget_ns <= max(own) * (max(1, spec.ceiling) + spec.burst)
            assert token.budget_ns <= max(int(Fraction(9, 10) * d.period), max(own))
            assert token.borrowed_ns >= 0


@law
@given(traces(LYING, st.builds(Weather, st.lists(st.sampled_from([0, 0, 300_000, 9_000_000]), min_size=1))))
def test_no_edge_comes_before_its_token_unless_three_base_windows_of_rounds_are_missed(trace: Trace) -> None:
    host = Host(trace)
    host.run(BASES)
    assert all(token is not None for d in host.dimensions.values() for token in d.seen)


# ── capacity ─────────────────────────────────────────────────────────────────────────────────────────────────────────


SOME_OR_ALL = st.builds(Act, st.sampled_from([0, 3, GREEDY]), until=WHENEVER)


@law
@given(traces(SOME_OR_ALL, CALM | ROUGH, tunes=1, of=specs((1,), slowest=Fraction(1))), st.booleans())
def test_what_tokens_let_be_used_never_exceeds_the_capacity_over_any_long_interval(trace: Trace, carries: bool) -> None:
    bursts = {spec.name: spec.burst if carries else Fraction(0) for spec in trace.specs}
    host = Host(replace(trace, specs=tuple(replace(spec, burst=bursts[spec.name]) for spec in trace.specs)))
    host.run(2 * BASES)
    longest_ns = int(BASE_NS / min(spec.harmonic for spec in trace.specs))
    most_ns = [max(own_ns) for own_ns in zip(*(credits_ns for *_, credits_ns in host.taken_over), strict=True)]
    # A window that reaches beyond the interval, and what two windows have given up before it (Flow.pool_max_ns); tokens
    # out at a change of amplitude; what was carried on before.
    slack_ns = plan.CPU_CAPACITY * (3 * longest_ns + (len(host.taken_over) - 1) * (longest_ns + BASE_NS))
    slack_ns += sum(2 * burst * own_ns for burst, own_ns in zip(bursts.values(), most_ns, strict=True))
    # What is carried on is counted again in later tokens, so then it is the use that counts.
    edges = sorted(
        (token.planned_ns, d.used.get(token.window, 0) if carries else token.budget_ns)
        for d in host.dimensions.values()
        for token in filter(None, d.seen)
    )
    # Over an interval from i to j: in force by j - in force by i <= capacity * (t(j) - t(i)) + slack.
    totals_ns = accumulate((ns for _, ns in edges), initial=0)
    below = [total_ns - plan.CPU_CAPACITY * at_ns for (at_ns, _), total_ns in zip(edges, totals_ns, strict=False)]
    above = [before + ns for before, (_, ns) in zip(below, edges, strict=True)]
    assert max(map(operator.sub, above, accumulate(below, min)), default=0) <= slack_ns


# ── books ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@law
@given(traces(LYING))
def test_every_nanosecond_is_used_expired_carried_on_or_owed(trace: Trace) -> None:
    host = Host(trace, is_watched=False)

    def balance() -> None:
        for account in host.accounts.values():
            out_ns = host.out_ns(account)
            accounted_ns = account.used_ns + account.expired_ns - account.forgiven_ns + account.balance_ns + out_ns
            assert host.minted_ns(account) == accounted_ns
            out = account.next_window - 1 - account.settled_through
            assert account.minted == account.settled + account.expired + out
            assert account.lent_ns + account.repaid_ns <= account.given_ns

    host.after_round = balance
    host.run(BASES)


@law
@given(traces(LYING))
def test_what_is_lent_is_borrowed_and_is_repaid_waived_or_owed(trace: Trace) -> None:
    host = Host(trace)

    def agree() -> None:
        for market in host.orchestrator.ledger.markets:
            assert sum(a.lent_ns for a in market.accounts) == sum(a.borrowed_ns for a in market.accounts)
            assert sum(a.repaid_ns for a in market.accounts) == sum(a.returned_ns for a in market.accounts)
            for account in market.accounts:
                assert account.borrowed_ns == account.repaid_ns + account.waived_ns + market.owed_ns(account)

    host.after_round = agree
    host.run(BASES)
    for name, d in host.dimensions.items():
        assert sum(token.borrowed_ns for token in d.seen if token) <= host.accounts[name].borrowed_ns
        d.acts = (Act(),)
    host.run(2 * BASES + 3 * HORIZON)
    assert all(account.market.owed_ns(account) == 0 for account in host.accounts.values())


@law
@given(traces(LYING), st.sampled_from([0, None]), st.booleans())
def test_debt_is_bounded_and_gone_a_horizon_after_it_stops_growing(
    trace: Trace, wants: int | None, is_watched: bool
) -> None:
    host = Host(trace, is_watched=is_watched)

    def bounded() -> None:
        for spec in trace.specs:
            account = host.accounts[spec.name]
            own_ns = max(credits_ns[account.index] for *_, credits_ns in host.taken_over)
            assert -own_ns * HORIZON * spec.harmonic - 1 <= account.balance_ns <= 2 * spec.burst * own_ns

    host.after_round = bounded
    host.run(BASES)
    for d in host.dimensions.values():
        d.acts = (Act(wants),)
    host.run(BASES + 4 * HORIZON)
    for account in host.accounts.values():
        assert account.balance_ns >= 0


# ── enforcement ──────────────────────────────────────────────────────────────────────────────────────────────────────


@law
@given(traces(OBEDIENT), traces(LYING))
def test_who_stays_within_its_tokens_is_never_in_debt_and_never_held(trace: Trace, liars: Trace) -> None:
    theirs = tuple(replace(spec, name=f"liar {spec.name}") for spec in liars.specs)
    acts = {**trace.acts, **{f"liar {name}": acts for name, acts in liars.acts.items()}}
    host = Host(replace(trace, specs=(*trace.specs, *theirs), acts=acts))

    def unharmed() -> None:
        for spec in trace.specs:
            account = host.accounts[spec.name]
            assert (account.overruns, host.dimensions[spec.name].acts_of_warden) == (0, [])
            assert account.balance_ns >= 0

    host.after_round = unharmed
    host.run(BASES)


@law
@given(traces(LYING))
def test_whatever_it_claims_who_is_free_has_used_no_more_than_it_was_credited_with(trace: Trace) -> None:
    host = Host(trace)

    def paid() -> None:
        for name, account in host.accounts.items():
            d, desk = host.dimensions[name], host.desks[name]
            if d.checked_ns is None or d.is_starting or desk.custody.standing != Standing.FREE:
                continue
            if account.debt_max_ns > d.group_ns:  # it has not used a horizon's credit: there is nothing to forgive
                let_pass_ns = (1 + d.generation) * GRACE_NS  # also to each process, for the tail of its start
                assert d.checked_ns <= host.minted_ns(account) - account.expired_ns + let_pass_ns

    host.after_round = paid
    host.run(BASES)


STALE_NS = 10_000_000
"""So long rest is not believed (``vcg.rounds``)."""


def slip(harmonic: Fraction, phase: int, honest: Act, credits: int = 3) -> tuple[Host, Dimension]:
    """A host of three rounds in a base window on which the kernel, once, finds too much on one dimension's account."""
    slipping, others = Spec("d1", harmonic, phase), [Spec("d2", Fraction(3)), Spec("d3", phase=7), Spec("d4", phase=2)]
    host = Host(Trace((slipping, *others), {"d1": [honest]}))
    host.run(12)
    assert host.plan.rounds == 3
    d = host.dimensions["d1"]
    d.group_ns += credits * host.accounts["d1"].credit_ns
    return host, d


GEOMETRIES = [(Fraction(3), 0), (Fraction(3), 5), (Fraction(1), 0), (Fraction(1), 5), (Fraction(1, 3), 0)]
GEOMETRIES += [(Fraction(1, 3), 5), (Fraction(1, 3), 11), (Fraction(2), 3)]


@pytest.mark.parametrize(("harmonic", "phase"), GEOMETRIES)
@pytest.mark.parametrize("until", [Fraction(1, 20), Fraction(1, 2), Fraction(19, 20)])
@pytest.mark.parametrize("honest", [Act(0), Act(2), Act(7), Act(GREEDY), Act(GREEDY, beyond=1)])
def test_who_slips_once_is_free_again_as_soon_as_its_debt_is_paid_and_stays_free(
    harmonic: Fraction, phase: int, until: Fraction, honest: Act
) -> None:
    """Also if it uses its tokens up, and a little more, and whatever part of its window it is looked at in."""
    host, d = slip(harmonic, phase, replace(honest, until=until))
    slipped = d.newest
    freed: list[int] = []

    def look() -> None:
        if d.acts_of_warden[-1:] == [Standing.FREE] and not freed:
            freed.append(d.newest)

    host.after_round = look
    host.run(120)
    assert d.acts_of_warden == [Standing.DEMOTED, Standing.FREE]
    # What lies above its floor pays, three quarters of its own credit; tokens that are out by then pay nothing.
    assert freed[0] - slipped <= 2 + 4 + 1 + STALE_NS // d.period


@pytest.mark.parametrize(("harmonic", "phase"), GEOMETRIES)
@pytest.mark.parametrize("says", ["truth", "less", "nothing"])
def test_who_does_not_stop_when_it_is_held_is_frozen_whatever_it_reports(
    harmonic: Fraction, phase: int, says: str
) -> None:
    host, d = slip(harmonic, phase, Act())
    d.acts = [Act(GREEDY, beyond=300, says=says)]
    host.run(200)
    assert Standing.FROZEN in d.acts_of_warden
    assert Standing.FREE not in d.acts_of_warden


@pytest.mark.parametrize(("harmonic", "phase"), GEOMETRIES)
def test_who_is_held_and_gets_no_cpu_time_is_not_at_rest_until_it_has_come_back(harmonic: Fraction, phase: int) -> None:
    host, d = slip(harmonic, phase, Act())
    d.acts = [Act(None)]
    host.run(12 + HORIZON)
    assert d.acts_of_warden == [Standing.DEMOTED]
    d.acts = [Act()]
    host.run(12 + HORIZON + 8)
    assert d.acts_of_warden == [Standing.DEMOTED, Standing.FREE]


@pytest.mark.parametrize(("harmonic", "phase"), GEOMETRIES)
def test_who_is_starved_for_a_horizon_is_put_to_the_test(harmonic: Fraction, phase: int) -> None:
    """It may be an honest one beside somebody whom nobody holds."""
    host, d = slip(harmonic, phase, Act())
    d.acts = [Act(None)]
    host.run(120)
    assert d.acts_of_warden == [Standing.DEMOTED, Standing.FREE]


def test_nobody_waits_for_the_dead_to_come_back() -> None:
    host, d = slip(Fraction(1, 3), 5, Act())
    host.run(14)
    assert d.standing == Standing.DEMOTED
    host.die("d1")
    host.run(120)
    assert d.acts_of_warden == [Standing.DEMOTED, Standing.FREE]


def told(host: Host, name: str, counter: str) -> int:
    """A counter of a dimension, as it was published last."""
    index = host.dimensions[name].index
    return host.tokens[shm.COUNTERS_AT + index * shm.COUNTER_WORDS + shm.COUNTERS.at(counter)]


def test_another_standing_is_told_in_the_round_in_which_it_is_decided() -> None:
    host, d = slip(Fraction(3), 0, Act())

    def agree() -> None:
        assert told(host, "d1", "held") == d.standing

    host.after_round = agree
    host.run(60)
    assert d.acts_of_warden == [Standing.DEMOTED, Standing.FREE]


def test_at_the_end_everybodys_last_window_is_counted() -> None:
    host = Host(Trace(tuple(Spec(f"d{k}", Fraction(k)) for k in (1, 2, 3)), {"d2": [Act(4, until=Fraction(19, 20))]}))
    host.run(12)
    close = host.orchestrator.close
    assert not close(host.now_ns, START_NS)  # the windows that have just begun are not over
    for d in host.dimensions.values():
        if d.is_busy:
            d.finish(d.newest, d.used[d.newest], "truth", d.generation)
    assert close(host.now_ns, START_NS)
    for name, d in host.dimensions.items():
        assert told(host, name, "used_ns") == sum(d.used.values())


# ── fairness ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@law
@given(
    traces(
        st.builds(Act, st.sampled_from([0, 1, 3, 7, 8, 12, 40, GREEDY]), until=IN_TIME), deaths=0, of=specs(cpus=(1,))
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_dimensions_does_not_matter(trace: Trace, random: object) -> None:
    shuffled = list(trace.specs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    # Whose turn is later has a little less time until its edge.
    trace = replace(trace, weather=replace(trace.weather, glance_ns=0))
    ours, theirs = Host(trace, is_watched=False), Host(replace(trace, specs=tuple(shuffled)), is_watched=False)
    for host in (ours, theirs):
        host.run(BASES)
    for name, d in ours.dimensions.items():
        assert d.seen == theirs.dimensions[name].seen
        assert d.used == theirs.dimensions[name].used


@law
@given(traces(OVERRUNNING))
def test_under_saturation_every_token_soon_holds_the_own_credit(trace: Trace) -> None:
    host = Host(trace, is_watched=False)
    host.run(BASES)
    for d in host.dimensions.values():
        d.acts = (Act(GREEDY, until=Fraction(1, 2)),)
    host.suffer(Weather())
    settled = BASES + 8 * HORIZON
    host.run(settled)
    marks = {name: d.newest + 1 for name, d in host.dimensions.items()}
    host.run(settled + 12)
    for name, d in host.dimensions.items():
        own_ns = host.accounts[name].credit_ns
        assert {token.budget_ns for token in d.seen[marks[name] :] if token} <= {own_ns}


@law
@given(traces(st.just(Act(GREEDY)), CALM, tunes=0, deaths=0), st.data())
def test_another_amplitude_counts_from_the_window_after_the_next(trace: Trace, data: st.DataObject) -> None:
    names = [spec.name for spec in trace.specs]
    tuned = data.draw(st.dictionaries(st.sampled_from(names), st.integers(1, 20), min_size=1))
    host = Host(replace(trace, tunes=[(BASES, tuned)]), is_watched=False)
    host.run(2 * BASES)
    new = dict(zip(names, plan.retuned(host.plan, {k: float(v) for k, v in tuned.items()}), strict=True))
    for name, d in host.dimensions.items():
        changed_ns = START_NS + BASES * BASE_NS
        after = [t for t in d.seen if t and t.planned_ns >= changed_ns + 2 * BASE_NS // host.plan.rounds]
        assert {token.budget_ns for token in after} == {new[name]}


@law
@given(
    traces(st.sampled_from([Act(0), Act(1), Act(3), Act(7)]), CALM, tunes=1, deaths=0), st.integers(20, 40), st.data()
)
def test_a_lender_that_wakes_has_its_own_credit_back_within_two_of_its_windows(
    trace: Trace, woken: int, data: st.DataObject
) -> None:
    names = [spec.name for spec in trace.specs]
    lender = data.draw(st.sampled_from(names))
    acts = {name: (Act(GREEDY),) if data.draw(st.booleans()) else trace.acts[name] for name in names}
    acts[lender] = trace.acts[lender]
    # It never borrows itself: who did may have to pay that back from its own credit.
    chosen = tuple(replace(spec, ceiling=Fraction(1)) if spec.name == lender else spec for spec in trace.specs)
    host = Host(replace(trace, specs=chosen, acts=acts))
    host.run(woken)
    d = host.dimensions[lender]
    # It reports as soon as it has used its token, and the next round knows of it.
    d.acts = (Act(GREEDY, until=Fraction(1, 20)),)
    woke = d.newest + 1
    host.run(woken + 12)
    round_ns = BASE_NS // host.plan.rounds
    known_ns = d.planned_ns(woke) + int(d.period) // 20 + round_ns
    for token in filter(None, d.seen[woke + 1 :]):
        if token.window >= woke + 2 and token.planned_ns >= known_ns + 2 * round_ns:
            assert token.budget_ns >= min(host.credits_in_force(lender, token.planned_ns))


def test_who_wakes_just_as_its_amplitude_rises_has_its_new_credit_as_soon_as_that_is_known() -> None:
    riser, other = Spec("d1", phase=6, floor=Fraction(1, 8), ceiling=Fraction(1)), Spec("d2", Fraction(3), amplitude=20)
    acts = {"d1": [Act(7)], "d2": [Act(GREEDY)]}
    host = Host(Trace((riser, other), acts, tunes=[(20, {"d1": 20})]), is_watched=False)
    host.run(19)
    d = host.dimensions["d1"]
    woke = d.newest + 1  # it begins half a base window before the change, and is reported after it
    d.acts = [Act(GREEDY, until=Fraction(19, 20))]
    host.run(40)
    own_ns = host.accounts["d1"].credit_ns
    assert [token.budget_ns for token in d.seen[woke + 3 :] if token] == [own_ns] * (d.newest - woke - 2)
