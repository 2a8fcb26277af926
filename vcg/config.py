"""The model of a testbed, read from TOML, with every problem of a file reported at once.

A file names its dimensions in two places that are merged: ``[triads.NAME]`` lists three ``members`` and gives what they
share; ``[dimensions.NAME]`` gives what is particular to one. What neither gives has a default. After the merge a triad
is only its list of members, and each dimension carries all of its fields; overrides (a sweep's axes, ``--set``) apply
to that form.

Dimensions are numbered in the natural order of their names (d2 before d10), so that a testbed means the same however
its tables are sorted. Triads without a harmonic nest by their order in the file: f*3, f, f/3 for three of them.

Quantities are exact: durations are whole nanoseconds, sizes whole bytes, ratios Fractions. TOML's decimal numbers are
read as Decimals, so that ``harmonic = 1.618`` is exact as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from vcg.defences import NEEDED_FOR
from vcg.document import Document, Location, did_you_mean, dotted, problems, read, show
from vcg.errors import ConfigError, Problem
from vcg.harmonics import TRIAD, nested
from vcg.quantities import (
    AMPLITUDE_MAX,
    AMPLITUDE_MIN,
    BYTES_PER,
    DURATION_PATTERN,
    RATIO_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_ratio,
    format_size,
    parse_amplitude,
    parse_duration,
    parse_ratio,
    parse_size,
)
from vcg.shm import ORCHESTRATOR_BIT, PAGE, TOKEN_SLOTS
from vcg.snapshot import OCCASIONS
from vcg.storage import FOLDERS
from vcg.succession import BACKOFF_MAX_NS

MAX_DIMENSIONS = ORCHESTRATOR_BIT
"""The bits of the clock's futex below the orchestrator's own."""
DIMENSION_PRIORITY_MAX = 80
"""Highest SCHED_FIFO priority of a dimension: the RTD and the orchestrator lie above it."""
HARMONIC_MAX = TOKEN_SLOTS // 4 - 1
"""Tokens of four base windows are alive at a time, and the ring of a dimension has to hold them (``vcg.shm``)."""
WINDOW_MIN_NS = 1_000
"""Below this a window is a slip of the pen on any host; the host's own floor is measured and far higher."""
RATE_MIN_BPS = 4 << 10
"""One page a second."""
EXT4_MIN_BYTES = 128 << 10
"""mkfs.ext4 refuses to make a smaller filesystem."""
FLOOR_MIN, FLOOR_MAX = Fraction(1, 20), Fraction(9, 10)
"""With no credit of its own a dimension could not show that it wants the rest back; with all of it, pay no debt."""
RESTARTS, BACKOFF_NS, BACKOFF_MIN_NS = 3, 100_000_000, 1_000_000
"""Of a dimension that is restarted and does not say more; and the shortest time before a restart."""
QUOTA_MIN_BYTES = 4 << 20
"""Room for the smallest snapshot: what lies beside the copy takes part of it."""
WORKLOADS = ("archive", "burst", "fsync", "hostile", "idle", "ingress", "service", "spin")
"""Workloads that ship with the package and have a short name."""
_ENFORCEMENT = ("enforce", "grace")
"""Fields that a dimension behind the freezer gate has no use for."""


_NAME = re.compile(r"[a-z][a-z0-9_]{0,14}")
_WORKLOAD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_READY = files("vcg") / "testbeds"


class Scheduling(NamedTuple):
    """Scheduling class and, for SCHED_FIFO, priority; priority 0 for SCHED_OTHER. Written "fifo:30" or "other"."""

    policy: Literal["fifo", "other"]
    priority: int


def _parse_scheduling(value: Any) -> Scheduling:
    match = re.fullmatch(r"other|fifo:([0-9]{1,2})", value) if isinstance(value, str) else None
    if match is None or (match[1] and not 1 <= int(match[1]) <= DIMENSION_PRIORITY_MAX):
        raise ValueError(f'expected "other", or "fifo:30" with a priority from 1 to {DIMENSION_PRIORITY_MAX}')
    return Scheduling("fifo", int(match[1])) if match[1] else Scheduling("other", 0)


class Restart(NamedTuple):
    """How often in a row a dimension is restarted after failures, and how long it waits the first time; 0 is never.

    Written "never", "on-failure", or { policy = "on-failure", limit = 3, backoff = "100ms" }.
    """

    limit: int
    backoff_ns: int


def _parse_restart(value: Any) -> Restart:
    if value == "never":
        return Restart(0, BACKOFF_NS)
    table = {"policy": value} if isinstance(value, str) else value
    expected = 'expected "never", "on-failure", or { policy = "on-failure", limit = 3, backoff = "100ms" }'
    if not isinstance(table, dict) or table.get("policy") != "on-failure":
        raise ValueError(expected)
    if table.keys() - {"policy", "limit", "backoff"}:
        raise ValueError(f"{expected}, and no other keys")
    limit = table.get("limit", RESTARTS)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError("expected a limit of at least 1 restart in a row")
    backoff_ns = parse_duration(table.get("backoff", format_duration(BACKOFF_NS)))
    if not BACKOFF_MIN_NS <= backoff_ns <= BACKOFF_MAX_NS:
        shortest, longest = format_duration(BACKOFF_MIN_NS), format_duration(BACKOFF_MAX_NS)
        raise ValueError(f"expected a backoff from {shortest} to {longest}")
    return Restart(limit, backoff_ns)


def _show_restart(restart: Restart) -> str | dict[str, Any]:
    if restart.limit == 0:
        return "never"
    return {"policy": "on-failure", "limit": restart.limit, "backoff": format_duration(restart.backoff_ns)}


def _parse_occasions(value: Any) -> tuple[str, ...]:
    known = isinstance(value, list | tuple) and all(isinstance(one, str) and one in OCCASIONS for one in value)
    if not known or len(set(value)) != len(value):
        raise ValueError(f"expected a list of some of {', '.join(OCCASIONS)}")
    return tuple(occasion for occasion in OCCASIONS if occasion in value)


def _parse_defence(value: Any) -> str:
    if not isinstance(value, str) or value not in NEEDED_FOR:
        near = did_you_mean(value, NEEDED_FOR) if isinstance(value, str) else f"known are {', '.join(NEEDED_FOR)}"
        raise ValueError(f"expected a defence of the host; {near}")
    return value


def _parse_rate(value: Any) -> int:
    rate = parse_size(value)
    if rate < RATE_MIN_BPS:
        raise ValueError(f"expected at least {format_size(RATE_MIN_BPS)} a second, so that a page gets through")
    return rate


def _parse_harmonic(value: Any) -> Fraction:
    harmonic = parse_ratio(value)
    if harmonic == 0:
        raise ValueError('expected a ratio above 0, such as "3", "1/3" or "1.618"')
    return harmonic


def _parse_phase(value: Any) -> Fraction | None:
    if value == "auto":
        return None
    try:
        phase = parse_ratio(value)
    except ValueError as error:
        raise ValueError(f'{error}, less than 1, or "auto"') from error
    if phase >= 1:
        raise ValueError('expected a fraction of the window, from 0 to less than 1, such as "1/3", or "auto"')
    return phase


def _parse_share(value: Any) -> Fraction:
    share = parse_ratio(value)
    if not FLOOR_MIN <= share <= FLOOR_MAX:
        raise ValueError(f'expected a share from {format_ratio(FLOOR_MIN)} to {format_ratio(FLOOR_MAX)}, such as "1/4"')
    return share


def _parse_ceiling(value: Any) -> Fraction:
    ceiling = parse_ratio(value)
    if ceiling < 1:
        raise ValueError('expected a multiple of its own credit, at least 1, such as "4"')
    return ceiling


def _parse_workload(value: Any) -> str:
    if value in WORKLOADS:
        return f"vcg.workloads.{value}:run"
    if not isinstance(value, str) or not _WORKLOAD.fullmatch(value):
        near = did_you_mean(value, WORKLOADS) if isinstance(value, str) else f"known are {', '.join(WORKLOADS)}"
        raise ValueError(f'expected "module:function" or the name of a workload; {near}')
    return value


def _parse_root(value: Any) -> str:
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    if not path.is_absolute() or path.parent == path or ".." in path.parts:
        raise ValueError('expected an absolute path below /, without "..", such as "/var/lib/vcg"')
    return str(path)


def _parse_device(value: Any) -> str:
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    if len(path.parts) < 3 or path.parts[:2] != ("/", "dev") or ".." in path.parts:
        raise ValueError('expected a device node below /dev, such as "/dev/null"')
    return str(path)


def _parse_program(value: Any) -> tuple[str, ...]:
    words = isinstance(value, list | tuple) and all(isinstance(word, str) and "\0" not in word for word in value)
    if not words or not value or not PurePosixPath(value[0]).is_absolute() or ".." in PurePosixPath(value[0]).parts:
        raise ValueError('expected a program by its absolute path, and its arguments, such as ["/usr/bin/sqlite3"]')
    return tuple(value)


def _parse_bind(value: Any) -> str:
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    if not path.is_absolute() or len(path.parts) < 2 or ".." in path.parts or path.parts[1] in FOLDERS:
        raise ValueError(f'expected an absolute path of the host outside /{", /".join(FOLDERS)}, such as "/usr"')
    return str(path)


def _parse_cpus(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list | tuple) and all(isinstance(c, int) and not isinstance(c, bool) for c in value)
    if not whole or not value or min(value) < 0 or len(set(value)) != len(value):
        raise ValueError("expected a list of different CPU numbers, such as [0, 1]")
    return tuple(sorted(value))


def _parse_members(value: Any) -> tuple[str, ...]:
    if not _is_triad(value):
        raise ValueError('expected the names of three different dimensions, such as ["d1", "d2", "d3"]')
    return tuple(value)


def _is_triad(value: Any) -> bool:
    texts = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return texts and len(value) == TRIAD == len(set(value))


def _parse_args(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected a table of the workload's arguments")
    return {key: _plain(argument) for key, argument in value.items()}


def _plain(value: Any) -> Any:
    """The value as JSON carries it, because a plan travels as JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, Decimal):
        return float(value)
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"expected text, numbers, true or false, lists and tables; found {show(value)}")
    return value


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("expected a name of at most 15 small letters, digits and _, that starts with a letter")
    return name


def _text(pattern: str | None, *examples: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"type": "string", **({"pattern": pattern} if pattern else {}), "examples": list(examples)},
        mode="validation",
    )


Duration = Annotated[
    int, PlainValidator(parse_duration), PlainSerializer(format_duration), _text(DURATION_PATTERN, "5ms", "200us", "1s")
]
"""Whole nanoseconds, written with a unit."""
Size = Annotated[int, PlainValidator(parse_size), PlainSerializer(format_size), _text(SIZE_PATTERN, "64M", "4K", "1G")]
"""Whole bytes, written with a binary unit."""
Ratio = Annotated[
    Fraction,
    PlainValidator(_parse_harmonic),
    PlainSerializer(format_ratio),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": RATIO_PATTERN}, {"type": "number", "exclusiveMinimum": 0}],
            "examples": ["3", "1/3", "1.618"],
        }
    ),
]
"""An exact rational above 0."""
Name = Annotated[str, AfterValidator(_check_name)]

_Phase = Annotated[
    Fraction | None,
    PlainValidator(_parse_phase),
    PlainSerializer(lambda phase: "auto" if phase is None else format_ratio(phase)),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number", "minimum": 0, "exclusiveMaximum": 1}]}),
]
_Rate = Annotated[int, PlainValidator(_parse_rate), PlainSerializer(format_size), _text(SIZE_PATTERN, "20M", "512K")]
"""Whole bytes a second, written with a binary unit."""
_Operations = Annotated[int, Field(ge=1)]
_Occasions = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_occasions),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string", "enum": list(OCCASIONS)}, "uniqueItems": True}),
]
_Defence = Annotated[str, PlainValidator(_parse_defence), WithJsonSchema({"type": "string", "enum": list(NEEDED_FOR)})]
_Amplitude = Annotated[
    float,
    PlainValidator(parse_amplitude),
    WithJsonSchema({"type": "number", "minimum": AMPLITUDE_MIN, "maximum": AMPLITUDE_MAX}),
]
_Share = Annotated[
    Fraction,
    PlainValidator(_parse_share),
    PlainSerializer(format_ratio),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "number", "minimum": float(FLOOR_MIN), "maximum": float(FLOOR_MAX)}]}
    ),
]
_Ceiling = Annotated[
    Fraction,
    PlainValidator(_parse_ceiling),
    PlainSerializer(format_ratio),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number", "minimum": 1}]}),
]
_Burst = Annotated[
    Fraction,
    PlainValidator(parse_ratio),
    PlainSerializer(format_ratio),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number", "minimum": 0}]}),
]
_Program = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_program),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
_Bind = Annotated[str, PlainValidator(_parse_bind), _text("^/.+", "/usr", "/lib64")]
_Scheduling = Annotated[
    Scheduling,
    PlainValidator(_parse_scheduling),
    PlainSerializer(lambda s: f"fifo:{s.priority}" if s.policy == "fifo" else "other"),
    _text("^(other|fifo:[1-9][0-9]?)$", "other", "fifo:30"),
]
_Restart = Annotated[
    Restart,
    PlainValidator(_parse_restart),
    PlainSerializer(_show_restart),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": ["never", "on-failure"]},
                {
                    "type": "object",
                    "properties": {
                        "policy": {"const": "on-failure"},
                        "limit": {"type": "integer", "minimum": 1},
                        "backoff": {"type": "string", "pattern": DURATION_PATTERN},
                    },
                    "required": ["policy"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
_Workload = Annotated[str, PlainValidator(_parse_workload), _text(None, *WORKLOADS, "package.module:function")]
_Root = Annotated[str, PlainValidator(_parse_root), _text("^/.+", "/srv/vcg")]
_Device = Annotated[str, PlainValidator(_parse_device), _text("^/dev/.+", "/dev/null")]
_Cpus = Annotated[
    tuple[int, ...],
    PlainValidator(_parse_cpus),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}),
]
_Members = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_members),
    PlainSerializer(list),
    WithJsonSchema(
        {"type": "array", "items": {"type": "string"}, "minItems": TRIAD, "maxItems": TRIAD, "uniqueItems": True}
    ),
]
_Args = Annotated[dict[str, Any], PlainValidator(_parse_args), WithJsonSchema({"type": "object"})]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Storage(_Strict):
    """A dimension's filesystem: a tmpfs, or ext4 without a journal on a loop-mounted image."""

    kind: Literal["tmpfs", "ext4"] = Field(default="tmpfs", description="the filesystem")
    size_bytes: Size = Field(default=16 * BYTES_PER["M"], alias="size", description="its size, in whole pages")

    @model_validator(mode="after")
    def _size_fits_kind(self) -> Storage:
        if self.size_bytes % PAGE:
            raise ValueError(f"expected a size in whole pages of {format_size(PAGE)}")
        if self.kind == "ext4" and self.size_bytes < EXT4_MIN_BYTES:
            raise ValueError(f"expected a size of at least {format_size(EXT4_MIN_BYTES)} for ext4")
        return self


class Io(_Strict):
    """Limits of a dimension's I/O to its image; what is absent is not limited."""

    read_bps: _Rate | None = Field(default=None, description="bytes a second that it may read")
    write_bps: _Rate | None = Field(default=None, description="bytes a second that it may write")
    read_iops: _Operations | None = Field(default=None, description="reads a second")
    write_iops: _Operations | None = Field(default=None, description="writes a second")


class Dimension(_Strict):
    """One virtual dimension: its filesystem, cadence, credit, placement and work."""

    role: str = Field(default="", description="what it is for, in a word; shown, not interpreted")
    harmonic: Ratio = Field(default=Fraction(1), description="its frequency as a multiple of the base frequency")
    phase: _Phase = Field(
        default=None,
        description='start of its first window as a fraction of a window; "auto": by its place in a staggered triad, '
        "else 0",
    )
    amplitude: _Amplitude = Field(
        default=1.0, description="its weight: its share of the credit on the CPUs that it uses"
    )
    burst: _Burst = Field(
        default=Fraction(0), description="credit left over that it may carry on, in windows of its own credit"
    )
    floor: _Share = Field(default=Fraction(1, 4), description="the part of its own credit that it never lends")
    ceiling: _Ceiling = Field(
        default=Fraction(4), description="most credit of a window, borrowed included, as a multiple of its own"
    )
    enforce: Literal["demote", "freeze", "none"] = Field(
        default="demote",
        description="what is done to it when it goes on without credit: SCHED_IDLE, or frozen, until its debt is paid; "
        "not to be given for a dimension behind the freezer gate, which holds it to its tokens by itself: from a triad "
        "or an override of several it is for those that are not behind it",
    )
    grace_ns: Duration = Field(
        default=500_000,
        alias="grace",
        description="CPU time beyond its credit that is let pass, and booked as debt; behind the freezer gate as with "
        "enforce",
    )
    restart: _Restart = Field(
        default=Restart(0, BACKOFF_NS),
        description="what follows when its process fails: the end of the run, or another process in its place, so many "
        "times in a row (until one has kept 100 windows); the backoff before each doubles",
    )
    storage: Storage = Field(default=Storage(), description="its filesystem")
    snapshot: _Occasions = Field(
        default=(),
        description="when its filesystem is kept for a post-mortem: when its process fails, when the kernel kills one "
        "for want of memory, when it misses windows in a row; on demand always",
    )
    scheduling: _Scheduling = Field(
        default=Scheduling("other", 0), description='scheduling class: "other", or "fifo:30" with its priority'
    )
    workload: _Workload = Field(
        default="vcg.workloads.idle:run", description="what runs in it: a ready workload or any other"
    )
    args: _Args = Field(default={}, description="the workload's arguments")
    gate: Literal["cooperative", "freezer"] = Field(
        default="cooperative",
        description="how it is held to its windows: a workload that waits for them, or any program, thawed and frozen",
    )
    program: _Program | None = Field(
        default=None,
        alias="exec",
        description="with the freezer gate, in place of a workload: a program's path, and its arguments",
    )
    binds: Annotated[tuple[_Bind, ...], Field(strict=False)] = Field(
        (), description="files and directories of the host that it sees under the same name, read-only; no others"
    )
    cpus: _Cpus | None = Field(default=None, description="the CPUs it may use; chosen automatically if absent")
    node: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="memory node; that of its CPUs if absent"
    )
    devices: Annotated[tuple[_Device, ...], Field(strict=False)] = Field(
        (), description="device nodes bound into it; no others exist there"
    )
    memory_bytes: Size = Field(
        default=128 * BYTES_PER["M"], alias="memory", description="memory limit, its tmpfs included"
    )
    pids: Annotated[int, Field(ge=1)] = Field(default=64, description="most processes and threads")
    io: Io = Field(default=Io(), description="limits of I/O to its image; ext4 only")

    @model_validator(mode="after")
    def _memory_holds_tmpfs(self) -> Dimension:
        if self.storage.kind == "tmpfs" and self.storage.size_bytes >= self.memory_bytes:
            memory, size = format_size(self.memory_bytes), format_size(self.storage.size_bytes)
            raise ValueError(f"expected memory ({memory}) above storage.size ({size}): a tmpfs counts as memory")
        return self

    @model_validator(mode="after")
    def _io_has_device(self) -> Dimension:
        if self.storage.kind == "tmpfs" and self.io != Io():
            raise ValueError('expected no io limits, or storage.kind = "ext4": a tmpfs does no I/O')
        return self

    @model_validator(mode="after")
    def _gate_fits_program(self) -> Dimension:
        if (self.gate == "freezer") != (self.program is not None):
            raise ValueError('expected gate = "freezer" and exec together: a program that knows no windows is frozen')
        return self


class Triad(_Strict):
    """Three dimensions that share a cadence, in the order of their phases."""

    members: _Members = Field(description="the names of its three dimensions, in the order of their phases")


class Placement(_Strict):
    """Where the runtime's own processes run, and on which CPUs the dimensions. What is absent is chosen."""

    rtd_cpu: Annotated[int, Field(ge=0)] | None = Field(default=None, description="CPU of the clock")
    rtd_priority: Annotated[int, Field(gt=DIMENSION_PRIORITY_MAX, le=99)] = Field(
        default=90, description="SCHED_FIFO priority of the clock"
    )
    orchestrator_cpu: Annotated[int, Field(ge=0)] | None = Field(default=None, description="CPU of the orchestrator")
    orchestrator_priority: Annotated[int, Field(gt=DIMENSION_PRIORITY_MAX, le=98)] = Field(
        default=85, description="SCHED_FIFO priority of the orchestrator"
    )
    housekeeping_cpus: _Cpus | None = Field(default=None, description="CPUs of everything that is not urgent")
    dimension_cpus: _Cpus | None = Field(
        default=None, description="CPUs over which dimensions without their own are spread"
    )

    @model_validator(mode="after")
    def _clock_is_highest(self) -> Placement:
        if self.orchestrator_priority >= self.rtd_priority:
            raise ValueError(
                f"expected rtd_priority ({self.rtd_priority}) above orchestrator_priority "
                f"({self.orchestrator_priority}): nothing may hold up the clock"
            )
        return self


class Snapshots(_Strict):
    """Where snapshots of dimensions are kept, and how many."""

    directory: _Root | None = Field(default=None, description="where they lie; below state_root if absent")
    quota_bytes: Size = Field(
        default=1 * BYTES_PER["G"], alias="quota", description="room for all of them: the oldest go first"
    )
    watchdog: Annotated[int, Field(ge=1)] = Field(
        default=10, description="so many windows missed in a row are an occasion for one"
    )

    @model_validator(mode="after")
    def _quota_has_room(self) -> Snapshots:
        if self.quota_bytes < QUOTA_MIN_BYTES:
            raise ValueError(f"expected a quota of at least {format_size(QUOTA_MIN_BYTES)}")
        return self


class Testbed(_Strict):
    """A testbed: the dimensions of one virtual compute gateway, their cadences, and where they live."""

    __test__ = False  # the name is the field's; it is no test case

    name: str = Field(description="its name; that of the file if absent")
    description: str = Field(default="", description="what it is for")
    base_window_ns: Duration = Field(alias="base_window", description='a duration such as "6ms": 1/f')
    stagger: bool = Field(default=True, description="whether a triad's members start at 0, 1/3 and 2/3 of their window")
    state_root: _Root = Field(default="/var/lib/vcg", description="directory of images and run state")
    mount_root: _Root = Field(default="/vcg", description="directory of the dimensions' mounts")
    horizon: Annotated[int, Field(ge=1)] = Field(
        default=64,
        description="base windows for which a loan can be claimed back, twice that at most; then it is forgiven",
    )
    require: Annotated[tuple[_Defence, ...], Field(strict=False)] = Field(
        (), description="defences of the host that it must not run without, see vcg doctor"
    )
    snapshots: Snapshots = Field(default=Snapshots(), description="where snapshots are kept, and how many")
    placement: Placement = Field(default=Placement(), description="CPUs and priorities of the runtime's own processes")
    triads: dict[Name, Triad] = Field(default={}, description="groups of three dimensions that share a cadence")
    dimensions: dict[Name, Dimension] = Field(description="at least one dimension, or a triad of them")

    @field_validator("dimensions", mode="after")
    @classmethod
    def _number_naturally(cls, dimensions: dict[str, Dimension]) -> dict[str, Dimension]:
        return {name: dimensions[name] for name in _natural(dimensions)}

    @model_validator(mode="after")
    def _roots_differ(self) -> Testbed:
        state, mount = PurePosixPath(self.state_root), PurePosixPath(self.mount_root)
        if state.is_relative_to(mount) or mount.is_relative_to(state):
            raise ValueError(f"expected state_root ({state}) and mount_root ({mount}) outside each other")
        directory = PurePosixPath(self.snapshots.directory or state)
        if directory.is_relative_to(mount):
            raise ValueError(f"expected snapshots.directory ({directory}) outside mount_root ({mount})")
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain data with every field that means something, that :func:`from_mapping` turns into an equal testbed."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for dimension in data["dimensions"].values():
            for field in _ENFORCEMENT if dimension["gate"] == "freezer" else ():
                del dimension[field]
        return data


def ready_testbeds() -> tuple[str, ...]:
    """Names of the testbeds that are part of the package."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _READY.iterdir() if entry.name.endswith(".toml")))


def load(path_or_name: str | Path, overrides: Mapping[str, Any] | None = None) -> Testbed:
    """Read a testbed from a file, or by its bare name one that is part of the package.

    Args:
        path_or_name: ``"default"``, or a path that contains ``/`` or ends in ``.toml``.
        overrides: values by dotted path. Dimensions are selected by name (``dimensions.d4.amplitude``), by range
            (``dimensions.d1-d3.harmonic``), all (``dimensions.*.storage.kind``), or by triad
            (``triads.inner.harmonic``).

    Raises:
        ConfigError: with all problems of the file and of the overrides.
    """
    text = str(path_or_name)
    if "/" in text or text.endswith(".toml"):
        document = read(Path(text))
        stem = Path(text).stem
    elif text in ready_testbeds():
        document = read(Path(str(_READY / f"{text}.toml")), shown_as=f"{text}.toml")
        stem = text
    else:
        expected = f"expected a TOML file or a ready testbed; {did_you_mean(text, ready_testbeds())}"
        raise ConfigError([Problem(text, None, "testbed", "", expected)])
    return _resolve(Document(document.file, {"name": stem, **document.data}, document.lines), overrides or {})


def from_mapping(data: Mapping[str, Any], source: str = "testbed") -> Testbed:
    """A testbed from plain data, such as :meth:`Testbed.resolved` gives.

    Args:
        data: as a TOML file would hold it.
        source: named in messages in place of a file.

    Raises:
        ConfigError: with all problems.
    """
    return _resolve(Document(source, dict(data), None), {})


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a testbed file; defaults stand in it as one would write them."""
    schema = Testbed.model_json_schema(by_alias=True, mode="validation")
    definitions = schema["$defs"]
    for model in (Storage, Io, Dimension, Placement, Snapshots):
        as_written = model.model_validate({}).model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, field in definitions[model.__name__]["properties"].items():
            field.pop("default", None)
            if name in as_written:
                field["default"] = as_written[name]
    for field in schema["properties"].values():
        if isinstance(field.get("default"), dict):
            field["default"] = {name: value for name, value in field["default"].items() if value is not None}
    definitions["Triad"]["properties"] |= definitions["Dimension"]["properties"]
    definitions["Triad"]["description"] += " What else it gives, its members share."
    schema["required"] = ["base_window"]
    schema["anyOf"] = [{"required": ["triads"]}, {"required": ["dimensions"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# ── from the file's form to the model's ──────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Origin:
    """Where a value of the merged form came from: a place in the file, or an override's path."""

    location: Location
    override: str | None = None


class _Merged:
    """The merged form of a document, and for each value that was moved where it came from."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.data: dict[str, Any] = dict(document.data)
        self.problems: list[Problem] = []
        self._origins: dict[Location, _Origin] = {}
        self._merge_triads()

    def problem(self, location: Location, value: str, expected: str) -> Problem:
        """A problem with a value of the merged form, placed where that value was written."""
        for depth in range(len(location), 0, -1):
            origin = self._origins.get(location[:depth])
            if origin is not None and origin.override is not None:
                return Problem(self.document.file, None, f"override {origin.override}", value, expected)
            if origin is not None:
                return self.document.problem((*origin.location, *location[depth:]), value, expected)
        inside = (origin for place, origin in self._origins.items() if place[: len(location)] == location)
        override = next((origin.override for origin in inside if origin.override is not None), None)
        if override is not None and location not in (self.document.lines or {}):
            return Problem(self.document.file, None, f"override {override}", value, expected)
        return self.document.problem(location, value, expected)

    def _complain(self, location: Location, value: Any, expected: str) -> None:
        self.problems.append(self.problem(location, show(value), expected))

    def _merge_triads(self) -> None:
        triads, given = self.data.get("triads", {}), self.data.get("dimensions", {})
        if not isinstance(triads, dict) or not isinstance(given, dict):
            return
        dimensions = {name: dict(own) if isinstance(own, dict) else own for name, own in given.items()}
        ratios = nested(len(triads))
        seen: dict[str, str] = {}
        for (triad, table), ratio in zip(triads.items(), ratios, strict=True):
            if not isinstance(table, dict):
                continue
            shared = {field: value for field, value in table.items() if field != "members"}
            self._check_shared(triad, shared)
            if not _is_triad(table.get("members")):
                continue
            for position, member in enumerate(table["members"]):
                if member in seen:
                    place = ("triads", triad, "members", position)
                    self._complain(
                        place, member, f'expected each dimension in one triad; it is in "{seen[member]}" too'
                    )
                    continue
                seen[member] = triad
                own = dimensions.setdefault(member, {})
                if isinstance(own, dict):
                    self._inherit(("dimensions", member), own, ("triads", triad), shared)
                    own.setdefault("harmonic", format_ratio(ratio))
        self.data["triads"] = {
            name: {field: table[field] for field in table if field == "members"} if isinstance(table, dict) else table
            for name, table in triads.items()
        }
        if dimensions:
            self.data["dimensions"] = dimensions

    def _check_shared(self, triad: str, shared: dict[str, Any]) -> None:
        """A triad's own fields are checked as such, because its members may be wrong or may hide them."""
        try:
            Dimension.model_validate(shared)
        except ValidationError as error:
            self.problems += problems(
                error, Dimension, lambda at, value, expected: self.problem(("triads", triad, *at), value, expected)
            )

    def _inherit(self, location: Location, own: dict[str, Any], origin: Location, shared: dict[str, Any]) -> None:
        for field, value in shared.items():
            if field not in own:
                own[field] = value
                self._origins[(*location, field)] = _Origin((*origin, field))
            elif field == "storage" and isinstance(value, dict) and isinstance(own[field], dict):
                own[field] = dict(own[field])
                self._inherit((*location, field), own[field], (*origin, field), value)

    def override(self, path: str, value: Any) -> None:
        """Set one value, or the same value in each of the dimensions that the path selects."""
        keys = path.split(".")
        groups = ("dimensions", "triads")
        for target in list(self._select(path, keys)) if keys[0] in groups else [tuple(keys)]:
            self._set(path, target, value)

    def _select(self, path: str, keys: list[str]) -> Iterator[Location]:
        """The locations that a path with a selector of dimensions or triads stands for; none after a complaint."""
        group, selector, field = keys[0], keys[1] if len(keys) > 1 else "", keys[2:]
        known = self.data.get(group)
        known = known if isinstance(known, dict) else {}
        names = selected(selector, known)
        expected = None
        if not names:
            expected = f"nothing is selected by {show(selector)}; known are {', '.join(_natural(known))}"
        elif not field or field[0] == "members":
            expected = f"expected the path of a field, such as {group}.{selector}.harmonic"
        if expected:
            self.problems.append(Problem(self.document.file, None, f"override {path}", "", expected))
            return
        for name in names:
            members = [name] if group == "dimensions" else known[name].get("members", [])
            yield from (("dimensions", member, *field) for member in members)

    def _set(self, path: str, target: Location, value: Any) -> None:
        table: dict[str, Any] = self.data
        for depth, key in enumerate(target[:-1], start=1):
            inner = table.get(str(key), {})
            if not isinstance(inner, dict):
                expected = f"{dotted(target[:depth])} has no fields of its own"
                self.problems.append(Problem(self.document.file, None, f"override {path}", show(value), expected))
                return
            # Tables may be shared between the members of a triad: change a copy.
            table[str(key)] = table = dict(inner)
        table[str(target[-1])] = value
        for stale in [place for place in self._origins if place[: len(target)] == target]:
            del self._origins[stale]
        self._origins[target] = _Origin((), override=path)

    def check_between(self) -> None:
        """Rules between fields, checked on whatever of them is readable so far."""
        dimensions = self.data.get("dimensions")
        if not isinstance(dimensions, dict):
            return
        if not 1 <= len(dimensions) <= MAX_DIMENSIONS:
            self._complain(("dimensions",), len(dimensions), f"expected 1 to {MAX_DIMENSIONS} dimensions")
        harmonics = {
            name: _readable(_parse_harmonic, own.get("harmonic", 1))
            for name, own in dimensions.items()
            if isinstance(own, dict)
        }
        base_window_ns = _readable(parse_duration, self.data.get("base_window"))
        for name, harmonic in harmonics.items():
            if harmonic and base_window_ns and base_window_ns / harmonic < WINDOW_MIN_NS:
                expected = f"expected a window of at least {format_duration(WINDOW_MIN_NS)}"
                self._complain(("dimensions", name, "harmonic"), dimensions[name].get("harmonic"), expected)
            elif harmonic and harmonic > HARMONIC_MAX:
                expected = f"expected at most {HARMONIC_MAX} windows in a base window: make base_window shorter instead"
                self._complain(("dimensions", name, "harmonic"), dimensions[name].get("harmonic"), expected)
        for field in _ENFORCEMENT:
            self._check_enforcement(field, {name: own for name, own in dimensions.items() if isinstance(own, dict)})
        triads = self.data.get("triads")
        for triad, table in triads.items() if isinstance(triads, dict) else ():
            if not isinstance(table, dict) or not _is_triad(table.get("members")):
                continue
            found = {member: harmonics[member] for member in table["members"] if harmonics.get(member)}
            if len(set(found.values())) > 1:
                shown = ", ".join(f"{member} {format_ratio(ratio)}" for member, ratio in found.items() if ratio)
                self._complain(
                    ("triads", triad, "members"),
                    shown,
                    "expected the same harmonic of all three: a triad shares a cadence",
                )

    def _check_enforcement(self, field: str, dimensions: dict[str, dict[str, Any]]) -> None:
        """Nothing may be given for a gate to ignore; what several are given is left to those of them that heed it."""
        given: dict[_Origin | str, list[str]] = {}
        for name, own in dimensions.items():
            if field in own:
                given.setdefault(self._origins.get(("dimensions", name, field), name), []).append(name)
        for names in given.values():
            frozen = [name for name in names if dimensions[name].get("gate") == "freezer"]
            if frozen == names:
                place = ("dimensions", names[0], field)
                expected = f"expected none for {', '.join(names)}: the freezer gate alone holds a program to its tokens"
                self._complain(place, dimensions[names[0]][field], f"{expected}: remove {field}")
                continue
            for name in frozen:
                del dimensions[name][field]


def _resolve(document: Document, overrides: Mapping[str, Any]) -> Testbed:
    merged = _Merged(document)
    for path, value in overrides.items():
        merged.override(path, value)
    merged.check_between()
    testbed = None
    try:
        testbed = Testbed.model_validate(merged.data)
    except ValidationError as error:
        merged.problems += problems(error, Testbed, merged.problem)
    if merged.problems or testbed is None:
        # A shared field is wrong once, however many dimensions inherit it.
        once = dict.fromkeys(merged.problems)
        raise ConfigError(sorted(once, key=lambda problem: (problem.line is None, problem.line or 0)))
    return testbed


def selected(selector: str, known: Iterable[str]) -> list[str]:
    """Names that ``*``, ``d4`` or ``d1-d3`` select, in natural order; none if it names anything unknown."""
    names = _natural(known)
    first, _, last = selector.partition("-")
    if selector == "*":
        return names
    if first not in names or (last or first) not in names:
        return []
    return names[names.index(first) : names.index(last or first) + 1]


def _natural(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _readable(parse: Any, value: Any) -> Any:
    """The parsed value, or None where it is wrong: its own problem is reported by the model."""
    try:
        return parse(value)
    except ValueError:
        return None
