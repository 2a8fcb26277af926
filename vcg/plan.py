"""A testbed resolved against a host: what will run where, when, and with how much credit.

Nothing is started, and the host is known only through what is passed in: its shape, the floor of its clock, and a
predicate that says whether a device node exists. A plan is plain data (dataclasses of built-in types), so it travels as
JSON to the supervisor and into a run's manifest, and the processes that execute it need not import the model of the
testbed (pydantic).

Credit is a share of the CPUs that a dimension may use. Each CPU offers :data:`CPU_CAPACITY`, less
:data:`CLOCK_RESERVE` where the RTD runs, and divides that among its dimensions by amplitude; a dimension that may use
several CPUs puts an equal part of its amplitude on each. So no set of CPUs is ever promised more than it has.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcg import harmonics, snapshot
from vcg.errors import HostError
from vcg.harmonics import Cadence
from vcg.quantities import format_duration, format_ratio, show_duration

if TYPE_CHECKING:  # the processes that read plans must not load pydantic
    from vcg.config import Dimension, Placement, Testbed
    from vcg.defences import Finding

CPU_CAPACITY = Fraction(9, 10)
"""Part of a CPU that is given out as credit; the rest is the kernel's and everybody else's."""
CLOCK_RESERVE = Fraction(1, 10)
"""Part of its CPU that is kept for the RTD."""
ROUND_MIN_NS = 1_000_000
"""The orchestrator works at most so often: a round costs it tens of microseconds."""
FREEZER_WINDOW_MIN_NS = 5_000_000
"""Shortest window of a dimension whose program is thawed and frozen, on any host."""
SEPARATE_CPUS_FROM = 4
"""Hosts with at least so many CPUs keep the dimensions off the housekeeping CPUs."""


@dataclass(frozen=True)
class HostShape:
    """What placement needs to know of a host.

    Attributes:
        cpus: online CPUs that we may use, ascending.
        node_of_cpu: memory node of each of them.
    """

    cpus: tuple[int, ...]
    node_of_cpu: dict[int, int]


@dataclass(frozen=True)
class DimensionPlan:
    """One dimension, resolved.

    The period and phase are exact: ``period_ns = period[0] / period[1]``; window ``n`` is planned at
    ``start_ns + floor(phase + n * period)``.
    """

    index: int
    name: str
    role: str
    harmonic: str
    period: tuple[int, int]
    phase: tuple[int, int]
    storage: str
    storage_bytes: int
    amplitude: float
    credit_ns: int
    cpus: tuple[int, ...]
    node: int
    policy: str
    priority: int
    workload: str
    args: dict[str, Any]
    devices: tuple[str, ...]
    memory_bytes: int
    pids: int
    triad: str = ""
    burst: tuple[int, int] = (0, 1)
    floor: tuple[int, int] = (1, 4)
    ceiling: tuple[int, int] = (4, 1)
    enforce: str = "demote"
    grace_ns: int = 500_000
    gate: str = "cooperative"
    program: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    snapshot: tuple[str, ...] = ()
    """Occasions for a snapshot (:data:`vcg.snapshot.OCCASIONS`), demand excepted."""
    restarts: int = 0
    """Failures in a row after which its process is replaced by another; 0: none."""
    backoff_ns: int = 0
    io: dict[str, int] = field(default_factory=dict)
    """Limits of I/O to its image (``vcg.linux.cgroup.IO_LIMITS``)."""

    @property
    def period_ns(self) -> float:
        return self.period[0] / self.period[1]

    @property
    def bit(self) -> int:
        return 1 << self.index


@dataclass(frozen=True)
class ServicePlan:
    """Where one of the runtime's own processes runs. Priority 0 means SCHED_OTHER."""

    cpus: tuple[int, ...]
    priority: int


@dataclass(frozen=True)
class SnapshotsPlan:
    """Where snapshots go, how much room they have, and how many windows missed in a row are an occasion for one."""

    directory: str = ""
    quota_bytes: int = 1 << 30
    watchdog: int = 10


@dataclass(frozen=True)
class Plan:
    """Everything the supervisor needs; nothing it would have to decide."""

    name: str
    base_window_ns: int
    hyperperiod_ns: int | None
    """Length of the edge table; None if the cadences are generated lazily."""
    dimensions: tuple[DimensionPlan, ...]
    rtd: ServicePlan
    orchestrator: ServicePlan
    rounds: int
    """How often in a base window the orchestrator works."""
    orchestrator_phase_ns: int
    """Offset inside each of its rounds at which it works: the middle of the widest gap between edges."""
    horizon: int
    """Base windows for which a loan of credit can be claimed back."""
    housekeeping: ServicePlan
    state_root: str
    mount_root: str
    snapshots: SnapshotsPlan = SnapshotsPlan()
    testbed: dict[str, Any] = field(default_factory=dict)
    """The resolved testbed, as it came from the file and the overrides."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        raw = json.loads(text)
        tuples = ("period", "phase", "cpus", "devices", "burst", "floor", "ceiling", "program", "binds", "snapshot")
        listed: list[dict[str, Any]] = raw.pop("dimensions")
        dimensions = tuple(DimensionPlan(**{**d, **{name: tuple(d[name]) for name in tuples}}) for d in listed)
        services = {
            name: ServicePlan(tuple(raw[name]["cpus"]), raw[name]["priority"])
            for name in ("rtd", "orchestrator", "housekeeping")
        }
        snapshots = SnapshotsPlan(**raw["snapshots"])
        return cls(**{**raw, **services, "dimensions": dimensions, "snapshots": snapshots})


def make(
    testbed: Testbed,
    host: HostShape,
    *,
    floor_ns: int | None = None,
    freezer_floor_ns: int = FREEZER_WINDOW_MIN_NS,
    is_device: Callable[[str], bool] | None = None,
    examine: Callable[[str], Finding] | None = None,
) -> Plan:
    """Resolve a testbed against a host.

    Args:
        testbed: as loaded.
        host: the CPUs that may be used, and their memory nodes.
        floor_ns: shortest time between edges that the RTD keeps up with on this host; None if it is not known.
        freezer_floor_ns: shortest window behind the freezer gate, see :func:`vcg.gatefloor.shortest_window_ns`.
        is_device: whether a path is a device node; by default asks this host.
        examine: looks for a defence that the testbed requires; by default on this host.

    Raises:
        HostError: the testbed asks for CPUs, nodes or devices that the host lacks, or for windows or edges closer to
            each other than the floors; one line for each.
    """
    rhythm = _cadences(testbed)
    problems = [
        *_missing_cpus(testbed, host),
        *_missing_devices(testbed, is_device or _is_device_node),
        *_missing_defences(testbed, examine),
        *_missing_files(testbed),
        *_too_short_to_freeze(testbed, rhythm, freezer_floor_ns),
        *_faster_than_floor(testbed, rhythm, floor_ns),
    ]
    if problems:
        raise HostError("\n".join(problems))

    services = _place_services(testbed.placement, host)
    rtd, orchestrator, housekeeping = services
    cpus = _place_dimensions(testbed, host, housekeeping.cpus, rtd.cpus[0])
    amplitudes = [d.amplitude for d in testbed.dimensions.values()]
    own = credits_ns(amplitudes, cpus, [cadence.period for cadence in rhythm], rtd.cpus[0])
    triads = {member: triad for triad, table in testbed.triads.items() for member in table.members}
    rounds = rounds_per_base_window(rhythm, testbed.base_window_ns)
    dimensions = tuple(
        DimensionPlan(
            index=index,
            name=name,
            role=d.role,
            harmonic=format_ratio(d.harmonic),
            period=(cadence.period.numerator, cadence.period.denominator),
            phase=(cadence.phase.numerator, cadence.phase.denominator),
            storage=d.storage.kind,
            storage_bytes=d.storage.size_bytes,
            amplitude=d.amplitude,
            credit_ns=credit_ns,
            cpus=allowed,
            node=host.node_of_cpu[allowed[0]] if d.node is None else d.node,
            policy=d.scheduling.policy,
            priority=d.scheduling.priority,
            workload=d.workload,
            args=d.args,
            devices=d.devices,
            memory_bytes=d.memory_bytes,
            pids=d.pids,
            triad=triads.get(name, ""),
            burst=d.burst.as_integer_ratio(),
            floor=d.floor.as_integer_ratio(),
            ceiling=d.ceiling.as_integer_ratio(),
            enforce=d.enforce,
            grace_ns=d.grace_ns,
            gate=d.gate,
            program=d.program or (),
            binds=d.binds,
            snapshot=d.snapshot,
            restarts=d.restart.limit,
            backoff_ns=d.restart.backoff_ns,
            io={name: limit for name, limit in d.io if limit is not None},
        )
        for index, ((name, d), cadence, credit_ns, allowed) in enumerate(
            zip(testbed.dimensions.items(), rhythm, own, cpus, strict=True)
        )
    )
    return Plan(
        name=testbed.name,
        base_window_ns=testbed.base_window_ns,
        hyperperiod_ns=harmonics.hyperperiod_ns(rhythm) if harmonics.fits_table(rhythm) else None,
        dimensions=dimensions,
        rtd=rtd,
        orchestrator=orchestrator,
        rounds=rounds,
        orchestrator_phase_ns=harmonics.widest_gap(rhythm, Fraction(testbed.base_window_ns, rounds)),
        horizon=testbed.horizon,
        housekeeping=housekeeping,
        state_root=testbed.state_root,
        mount_root=testbed.mount_root,
        snapshots=SnapshotsPlan(
            testbed.snapshots.directory or str(Path(testbed.state_root) / snapshot.FOLDER),
            testbed.snapshots.quota_bytes,
            testbed.snapshots.watchdog,
        ),
        testbed=testbed.resolved(),
    )


def cadences(plan: Plan) -> tuple[Cadence, ...]:
    """The exact cadence of each dimension, in the order of their indices."""
    return tuple(Cadence(Fraction(*d.period), Fraction(*d.phase)) for d in plan.dimensions)


def credit_shares(
    amplitudes: Sequence[Fraction], cpus: Sequence[tuple[int, ...]], capacities: Mapping[int, Fraction]
) -> tuple[Fraction, ...]:
    """Part of one CPU that each dimension is credited with.

    Args:
        amplitudes: weight of each dimension.
        cpus: the CPUs that each may use.
        capacities: part of each CPU that is given out.

    Returns:
        Shares, at most 1. On every set of CPUs the shares of the dimensions that may use no others add up to at most
        the set's capacity.
    """
    weights = [amplitude / len(allowed) for amplitude, allowed in zip(amplitudes, cpus, strict=True)]
    claims: dict[int, Fraction] = {}
    for weight, allowed in zip(weights, cpus, strict=True):
        for cpu in allowed:
            claims[cpu] = claims.get(cpu, Fraction(0)) + weight
    return tuple(
        min(Fraction(1), sum((capacities[cpu] * weight / claims[cpu] for cpu in allowed), Fraction(0)))
        for weight, allowed in zip(weights, cpus, strict=True)
    )


def credits_ns(
    amplitudes: Sequence[float], cpus: Sequence[tuple[int, ...]], periods: Sequence[Fraction], rtd_cpu: int
) -> list[int]:
    """Credit of each dimension for each of its windows, in ns; parameters as for :func:`credit_shares`."""
    used = {cpu for allowed in cpus for cpu in allowed}
    capacities = {cpu: CPU_CAPACITY - (CLOCK_RESERVE if cpu == rtd_cpu else 0) for cpu in used}
    shares = credit_shares([Fraction(amplitude) for amplitude in amplitudes], cpus, capacities)
    return [floor(share * period) for share, period in zip(shares, periods, strict=True)]


def retuned(plan: Plan, amplitudes: Mapping[str, float]) -> list[int]:
    """Credit of every dimension of a plan, in the order of their indices, if some had other amplitudes."""
    return credits_ns(
        [amplitudes.get(d.name, d.amplitude) for d in plan.dimensions],
        [d.cpus for d in plan.dimensions],
        [Fraction(*d.period) for d in plan.dimensions],
        plan.rtd.cpus[0],
    )


def rounds_per_base_window(rhythm: Sequence[Cadence], base_window_ns: int) -> int:
    """How often the orchestrator works: as often as the shortest window comes round, but not under a millisecond."""
    shortest_ns = max(Fraction(ROUND_MIN_NS), min(cadence.period for cadence in rhythm))
    return max(1, floor(base_window_ns / shortest_ns))


def _cadences(testbed: Testbed) -> tuple[Cadence, ...]:
    places = {member: k for triad in testbed.triads.values() for k, member in enumerate(triad.members)}

    def cadence(name: str, dimension: Dimension) -> Cadence:
        period = testbed.base_window_ns / dimension.harmonic
        if dimension.phase is not None:
            return Cadence(period, dimension.phase * period)
        return Cadence(period, harmonics.triad_phases(period, testbed.stagger)[places.get(name, 0)])

    return tuple(cadence(name, dimension) for name, dimension in testbed.dimensions.items())


def _place_services(placement: Placement, host: HostShape) -> tuple[ServicePlan, ServicePlan, ServicePlan]:
    """RTD, orchestrator and everything else of the runtime."""
    housekeeping = placement.housekeeping_cpus or host.cpus[:1]
    first = housekeeping[0]
    rtd_cpu = first if placement.rtd_cpu is None else placement.rtd_cpu
    orchestrator_cpu = first if placement.orchestrator_cpu is None else placement.orchestrator_cpu
    return (
        ServicePlan((rtd_cpu,), placement.rtd_priority),
        ServicePlan((orchestrator_cpu,), placement.orchestrator_priority),
        ServicePlan(housekeeping, 0),
    )


def _place_dimensions(
    testbed: Testbed, host: HostShape, housekeeping: tuple[int, ...], rtd_cpu: int
) -> list[tuple[int, ...]]:
    """CPUs of each dimension: its own, or the least used one of those open to it.

    Of equally used CPUs the first after the RTD's is taken, in turn, so the members of a triad land on different CPUs
    and the RTD's own CPU never carries more dimensions than another.
    """
    busy = {*housekeeping, rtd_cpu}
    apart = tuple(cpu for cpu in host.cpus if cpu not in busy)
    automatic = apart if apart and len(host.cpus) >= SEPARATE_CPUS_FROM else host.cpus
    pool = testbed.placement.dimension_cpus or automatic
    turn = sorted(pool, key=lambda cpu: (cpu <= rtd_cpu, cpu))
    used = dict.fromkeys(host.cpus, Fraction(0))
    for dimension in testbed.dimensions.values():
        for cpu in dimension.cpus or ():
            used[cpu] += Fraction(1, len(dimension.cpus or ()))
    placed = []
    for dimension in testbed.dimensions.values():
        allowed = dimension.cpus
        if allowed is None:
            on_node = [cpu for cpu in turn if dimension.node in (None, host.node_of_cpu[cpu])]
            # A node whose CPUs are all set aside leaves the whole pool open: the memory matters more.
            allowed = (min(on_node or turn, key=lambda cpu: used[cpu]),)
            used[allowed[0]] += 1
        placed.append(allowed)
    return placed


def _missing_cpus(testbed: Testbed, host: HostShape) -> Iterable[str]:
    placement = testbed.placement
    wanted: list[tuple[str, tuple[int, ...] | None]] = [
        ("placement.rtd_cpu", None if placement.rtd_cpu is None else (placement.rtd_cpu,)),
        ("placement.orchestrator_cpu", None if placement.orchestrator_cpu is None else (placement.orchestrator_cpu,)),
        ("placement.housekeeping_cpus", placement.housekeeping_cpus),
        ("placement.dimension_cpus", placement.dimension_cpus),
        *((f"{name}: cpus", dimension.cpus) for name, dimension in testbed.dimensions.items()),
    ]
    for what, cpus in wanted:
        missing = [cpu for cpu in cpus or () if cpu not in host.cpus]
        if missing:
            yield f"{what} {_listed(missing)}: expected CPUs that may be used on this host: {_listed(host.cpus)}"
    nodes = sorted(set(host.node_of_cpu.values()))
    for name, dimension in testbed.dimensions.items():
        if dimension.node is not None and dimension.node not in nodes:
            yield f"{name}: node {dimension.node}: expected a memory node of this host: {_listed(nodes)}"


def _missing_devices(testbed: Testbed, is_device: Callable[[str], bool]) -> Iterable[str]:
    for name, dimension in testbed.dimensions.items():
        for device in dimension.devices:
            if not is_device(device):
                yield f"{name}: device {device}: expected a device node that exists on this host"


def _missing_defences(testbed: Testbed, examine: Callable[[str], Finding] | None) -> Iterable[str]:
    from vcg import defences  # not above: whoever only reads plans does without

    for name in testbed.require:
        finding = (examine or defences.examine)(name)
        if not finding.is_here:
            wanted = f"expected it, for {defences.NEEDED_FOR[name]}"
            yield f"require {name}: {finding.found}: {wanted}; get it ({finding.fix}), or do not require it"


def _missing_files(testbed: Testbed) -> Iterable[str]:
    for name, dimension in testbed.dimensions.items():
        for path in dimension.binds:
            if not Path(path).exists():
                yield f"{name}: bind {path}: expected a file or directory that exists on this host"
        if dimension.program is None:
            continue
        program = Path(dimension.program[0])
        if not any(program.is_relative_to(path) for path in dimension.binds):
            yield f"{name}: exec {program}: expected a program below one of its binds: a dimension begins empty"
        elif not os.access(program, os.X_OK) or program.is_dir():
            yield f"{name}: exec {program}: expected a program that exists on this host and may be executed"


def _too_short_to_freeze(testbed: Testbed, rhythm: Sequence[Cadence], floor_ns: int) -> Iterable[str]:
    limit = f"{format_duration(floor_ns)} with the freezer gate"
    if floor_ns > FREEZER_WINDOW_MIN_NS:
        limit = f"the freezer gate's floor of {format_duration(floor_ns)} on this host (run: vcg doctor)"
    for (name, dimension), cadence in zip(testbed.dimensions.items(), rhythm, strict=True):
        if dimension.gate == "freezer" and cadence.period < floor_ns:
            shown = show_duration(cadence.period)
            yield f"{name}: window {shown}: expected at least {limit}: make base_window longer"


def _faster_than_floor(testbed: Testbed, rhythm: Sequence[Cadence], floor_ns: int | None) -> Iterable[str]:
    """Windows, or else edges of all dimensions together, that follow each other faster than the RTD keeps up with."""
    if floor_ns is None:
        return
    limit = f"the RTD's floor of {format_duration(floor_ns)} on this host (run: vcg doctor)"
    short: dict[Fraction, list[str]] = {}
    for name, cadence in zip(testbed.dimensions, rhythm, strict=True):
        if cadence.period < floor_ns:
            short.setdefault(cadence.period, []).append(name)
    if short:
        shown = "; ".join(f"{', '.join(names)}: window {show_duration(period)}" for period, names in short.items())
        yield f"{shown}: expected at least {limit}: make base_window longer"
        return
    spacing = mean_spacing(rhythm, testbed.base_window_ns, rounds_per_base_window(rhythm, testbed.base_window_ns))
    if spacing < floor_ns:
        yield (
            f"edges follow each other every {show_duration(spacing)} on average, the orchestrator's included: expected "
            f"at least {limit}: make base_window longer, set stagger = false, or take fewer dimensions"
        )


def mean_spacing(rhythm: Sequence[Cadence], base_window_ns: int, rounds: int) -> Fraction:
    """Mean time in ns between the edges that the RTD has to publish, those of the orchestrator's rounds included.

    Windows that start together share an edge. Where the pattern is too long for a table they hardly ever do, and every
    window counts.
    """
    if harmonics.fits_table(rhythm):
        edges_per_ns = Fraction(len(harmonics.edge_table(rhythm)), harmonics.hyperperiod_ns(rhythm))
    else:
        edges_per_ns = sum((1 / cadence.period for cadence in rhythm), Fraction(0))
    return 1 / (edges_per_ns + Fraction(rounds, base_window_ns))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _is_device_node(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
