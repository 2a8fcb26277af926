"""What a sweep is going to do: its file, the configurations that it spans, and the order of its trials.

A sweep file names a testbed and axes. Each level of an axis is a table of overrides for that testbed; the sweep runs
every combination of levels (full factorial) once in each repetition. A repetition is a *block*: its order is random,
from a recorded seed, so that slow drift of the host hits all configurations alike.

A trial's id is made of a hash of its resolved configuration and of its block. It does not depend on the order, on
other configurations or on descriptions, so an edit that leaves a configuration as it was leaves its trials as well.
Two levels that resolve to the same testbed are two arms (A/A): the names of the levels are part of the hash.

Everything is pure but :func:`load` and :func:`configurations`, which read files.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from experiments import reference, stats
from vcg import config
from vcg.config import Duration
from vcg.document import Document, Location, did_you_mean, dotted, problems, read, show
from vcg.errors import ConfigError, Problem
from vcg.quantities import show_duration

Probe = Literal["sched", "block", "migrate"]
PROBES: tuple[Probe, ...] = ("sched", "block", "migrate")
SHORTEST_NS = 600_000_000
"""Of a trial after its warm-up: the reference thread's p99 must exist in it (some timers more than it takes)."""
_READY = files("experiments") / "sweeps"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_LEVEL_FIELDS = ("probes",)
"""Keys of a level that are the sweep's own; all others are overrides of the testbed."""


def _parse_fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not 0 <= value <= 1:
        raise ValueError("expected a share from 0 to 1, such as 0.02")
    return float(value)


def _parse_factor(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not 1 <= value < float("inf"):
        raise ValueError("expected a factor of at least 1, such as 10")
    return float(value)


def _parse_probes(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or set(value) - set(PROBES) or len(set(value)) != len(value):
        raise ValueError(f"expected a list of different probes out of {', '.join(PROBES)}; [] for none")
    return tuple(name for name in PROBES if name in value)


def _parse_axes(value: Any) -> dict[str, dict[str, dict[str, Any]]]:
    if not isinstance(value, dict):
        raise ValueError("expected tables [axes.AXIS.LEVEL]")
    return value


def _check_duration(duration_ns: int) -> int:
    if duration_ns < SHORTEST_NS:
        raise ValueError(
            f"expected at least {show_duration(SHORTEST_NS)}: the reference thread takes a sample every "
            f"{show_duration(reference.PERIOD_NS)}, and its p99 needs {stats.minimum_samples(0.99)}"
        )
    return duration_ns


_Share = Annotated[float, PlainValidator(_parse_fraction)]
_Factor = Annotated[float, PlainValidator(_parse_factor)]
_Probes = Annotated[tuple[str, ...], PlainValidator(_parse_probes), PlainSerializer(list)]
_Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Limits(_Strict):
    """Beyond which a trial is void. They are declared before the sweep and never looked at with its results in hand."""

    steal_share: _Share = Field(default=0.02, description="CPU time that the hypervisor may withhold, of all CPUs'")
    foreign_cpu_share: _Share = Field(default=0.1, description="CPU time that foreign processes may use, of all CPUs'")
    reference_p99_ns: Duration = Field(
        default=1_000_000, alias="reference_p99", description="greatest p99 lateness of the reference thread"
    )
    reference_p99_factor: _Factor = Field(
        default=20.0, description="the same, as a multiple of what it was on the idle host before the first trial"
    )
    lost_events: _Count = Field(default=0, description="events that probes may lose")
    oracle_disagreements: _Count = Field(default=0, description="quantities that may disagree with their oracle")


class Sweep(_Strict):
    """A sweep file."""

    name: str = Field(description="its name; that of the file if absent")
    description: str = Field(default="", description="what question it answers")
    testbed: str = Field(description='a ready testbed such as "default", or a TOML file, relative to this one')
    duration_ns: Annotated[Duration, AfterValidator(_check_duration)] = Field(
        alias="duration", description="length of a trial after its warm-up"
    )
    warmup_ns: Duration = Field(
        default=1_000_000_000, alias="warmup", description="time before that, recorded but left out of the statistics"
    )
    repetitions: Annotated[int, Field(ge=1)] = Field(description="how often each configuration is run")
    seed: _Count | None = Field(default=None, description="of the random orders; chosen and recorded if absent")
    probes: _Probes = Field(default=PROBES, description="probes that are attached; a level may set its own")
    max_reruns: _Count = Field(default=1, description="how often a void trial is run again, at the end of its block")
    void: Limits = Field(default=Limits(), description="limits beyond which a trial is void")
    axes: Annotated[dict[str, dict[str, dict[str, Any]]], PlainValidator(_parse_axes)] = Field(
        default={}, description="axis -> level -> overrides of the testbed"
    )

    def resolved(self) -> dict[str, Any]:
        """Plain data of everything that decides what is measured: all but the name, the description and the seed."""
        found = self.model_dump(mode="json", by_alias=True, exclude={"name", "description", "seed"})
        return {**found, "axes": {a: {k: _plain(v) for k, v in levels.items()} for a, levels in self.axes.items()}}


@dataclass(frozen=True)
class Configuration:
    """One point of the sweep.

    Attributes:
        id: short hash of all the rest.
        levels: axis -> level.
        probes: attached in its trials.
        warmup_ns, duration_ns: of its trials.
        testbed: resolved, as :func:`vcg.config.from_mapping` takes it.
    """

    id: str
    levels: Mapping[str, str]
    probes: tuple[str, ...]
    warmup_ns: int
    duration_ns: int
    testbed: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Its levels, for people."""
        return " · ".join(self.levels.values()) or "the testbed as it is"


@dataclass(frozen=True)
class Trial:
    """One run of one configuration in one block.

    Attributes:
        id: the configuration's id and the block.
        block: counted from 1.
        position: place in the block's order, counted from 1.
    """

    id: str
    configuration: Configuration
    block: int
    position: int


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def ready_sweeps() -> tuple[str, ...]:
    """Names of the sweeps that are part of the package."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _READY.iterdir() if entry.name.endswith(".toml")))


@dataclass(frozen=True)
class SweepFile:
    """A sweep together with the file that it was read from."""

    sweep: Sweep
    document: Document
    path: Path
    text: bytes


def load(path_or_name: str | Path) -> SweepFile:
    """Read a sweep file, or by its bare name a sweep that is part of the package.

    Raises:
        ConfigError: with all problems of the file.
    """
    text = str(path_or_name)
    if "/" in text or text.endswith(".toml"):
        path = Path(text)
    elif text in ready_sweeps():
        path = Path(str(_READY / f"{text}.toml"))
    else:
        expected = f"expected a TOML file or a ready sweep; {did_you_mean(text, ready_sweeps())}"
        raise ConfigError([Problem(text, None, "sweep", "", expected)])
    document = read(path, shown_as=path.name if text in ready_sweeps() else text)
    found = list(_axis_problems(document))
    try:
        sweep = Sweep.model_validate({"name": path.stem, **document.data})
    except ValidationError as error:
        found += problems(error, Sweep, document.problem)
    if found:
        raise ConfigError(sorted(found, key=lambda problem: problem.line or 0))
    return SweepFile(sweep, document, path, path.read_bytes())


def _axis_problems(document: Document) -> Iterable[Problem]:
    axes = document.data.get("axes", {})
    if not isinstance(axes, dict):
        return  # the model complains
    for axis, levels in axes.items():
        here: Location = ("axes", axis)
        if not _NAME.fullmatch(axis):
            yield document.problem(here, show(axis), "expected an axis name of small letters, digits, '.', '_' and '-'")
        if not isinstance(levels, dict) or not levels:
            yield document.problem(here, show(levels), f"expected at least one table [axes.{axis}.LEVEL]")
            continue
        for level, overrides in levels.items():
            at = (*here, level)
            if not _NAME.fullmatch(level):
                yield document.problem(
                    at, show(level), "expected a level name of small letters, digits, '.', '_' and '-'"
                )
            if not isinstance(overrides, dict):
                expected = 'expected a table of overrides, such as "base_window" = "5ms"'
                yield document.problem(at, show(overrides), expected)
                continue
            if "probes" in overrides:
                try:
                    _parse_probes(overrides["probes"])
                except ValueError as error:
                    yield document.problem((*at, "probes"), show(overrides["probes"]), str(error))
    yield from _conflicts(document, axes)


def _conflicts(document: Document, axes: Mapping[str, Any]) -> Iterable[Problem]:
    """Two axes that set the same thing: which of them would win is nobody's business to guess."""
    setter: dict[str, str] = {}
    for axis, levels in axes.items():
        tables = [table for table in levels.values() if isinstance(table, dict)] if isinstance(levels, dict) else []
        for path in dict.fromkeys(path for table in tables for path in table):
            if path in setter:
                level = next(level for level, table in levels.items() if isinstance(table, dict) and path in table)
                expected = f'expected each override in one axis only; the axis "{setter[path]}" sets it too'
                yield document.problem(("axes", axis, level, path), show(path), expected)
        setter |= dict.fromkeys((path for table in tables for path in table), axis)


def configurations(file: SweepFile) -> list[Configuration]:
    """All combinations of levels, in the order of the file, each resolved against the testbed.

    Raises:
        ConfigError: with the problems of all levels, each at its line in the sweep file.
    """
    sweep = file.sweep
    testbed: str | Path = sweep.testbed
    if "/" in sweep.testbed or sweep.testbed.endswith(".toml"):
        testbed = file.path.parent / sweep.testbed
    _check_testbed(file, testbed)
    found: list[Configuration] = []
    wrong: dict[Problem, None] = {}
    for names in product(*sweep.axes.values()):
        levels = dict(zip(sweep.axes, names, strict=True))
        tables = [(axis, level, sweep.axes[axis][level]) for axis, level in levels.items()]
        overrides = {path: value for _, _, t in tables for path, value in t.items() if path not in _LEVEL_FIELDS}
        own_probes = [table["probes"] for _, _, table in tables if "probes" in table]
        try:
            resolved = config.load(testbed, overrides).resolved()
        except ConfigError as error:
            wrong |= dict.fromkeys(_place(problem, file.document, levels, sweep.axes) for problem in error.problems)
            continue
        chosen = _parse_probes(own_probes[0]) if own_probes else sweep.probes
        found.append(_configuration(levels, chosen, sweep, resolved))
    if wrong:
        raise ConfigError(sorted(wrong, key=lambda problem: problem.line or 0))
    return found


def _check_testbed(file: SweepFile, testbed: str | Path) -> None:
    """A testbed that is wrong in itself is reported once, not again for each configuration."""
    try:
        config.load(testbed)
    except ConfigError as error:
        if any(problem.field in ("testbed", "file") for problem in error.problems):
            problem = error.problems[0]
            raise ConfigError(
                [file.document.problem(("testbed",), show(file.sweep.testbed), problem.expected)]
            ) from None
        raise


def _place(
    problem: Problem, document: Document, levels: Mapping[str, str], axes: Mapping[str, Mapping[str, Any]]
) -> Problem:
    """A problem with an override, moved to the line of the sweep file that gives it."""
    path = problem.field.removeprefix("override ")
    for axis, level in levels.items():
        if path in axes[axis][level]:
            return document.problem(("axes", axis, level, path), problem.value, problem.expected)
    where = ", ".join(f"{axis} = {level}" for axis, level in levels.items())
    return Problem(problem.file, problem.line, problem.field, problem.value, f"{problem.expected} (with {where})")


def _configuration(
    levels: Mapping[str, str], chosen: tuple[str, ...], sweep: Sweep, testbed: Mapping[str, Any]
) -> Configuration:
    content = {
        "levels": dict(levels),
        "probes": list(chosen),
        "warmup_ns": sweep.warmup_ns,
        "duration_ns": sweep.duration_ns,
        "testbed": {key: value for key, value in testbed.items() if key != "description"},
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    short = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    return Configuration(short, dict(levels), chosen, sweep.warmup_ns, sweep.duration_ns, dict(testbed))


def _plain(value: Any) -> Any:
    """A value of a TOML file as JSON carries it; decimals as their text, which is exact."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) else str(value)


# ── the order ────────────────────────────────────────────────────────────────────────────────────────────────────────
def trials(found: Sequence[Configuration], repetitions: int, seed: int) -> list[Trial]:
    """All trials in the order in which they run.

    Every block runs each configuration once. With two configurations every second block turns the order of the one
    before it round (ABBA), which cancels a linear drift; with more the orders are independent.
    """
    ordered = sorted(found, key=lambda configuration: configuration.id)
    result = []
    before: list[Configuration] = []
    for block in range(1, repetitions + 1):
        if len(ordered) == 2 and block % 2 == 0:
            order = before[::-1]
        else:
            order = random.Random(f"{seed}:{block}").sample(ordered, len(ordered))
        result += [Trial(f"{c.id}-b{block:02d}", c, block, place) for place, c in enumerate(order, start=1)]
        before = order
    return result


@dataclass(frozen=True)
class Done:
    """What is known of a trial that was run: the number of the attempt, and whether it is void."""

    id: str
    attempt: int
    void: bool


def next_trial(planned: Sequence[Trial], done: Iterable[Done], max_reruns: int) -> tuple[Trial, int] | None:
    """The trial to run next, and the number of the attempt; None when the sweep is complete.

    A block is completed first, then its void trials are run again, then the next block begins. Resuming a sweep is
    nothing but asking this again.
    """
    attempts: dict[str, list[Done]] = {}
    for one in done:
        attempts.setdefault(one.id, []).append(one)
    for block in sorted({trial.block for trial in planned}):
        members = [trial for trial in planned if trial.block == block]
        for trial in members:
            if trial.id not in attempts:
                return trial, 0
        for trial in sorted(members, key=lambda trial: len(attempts[trial.id])):
            tried = attempts[trial.id]
            if all(one.void for one in tried) and len(tried) <= max_reruns:
                return trial, max(one.attempt for one in tried) + 1
    return None


def identical_levels(found: Iterable[Configuration]) -> frozenset[tuple[str, str, str]]:
    """``(axis, first level, other level)`` of levels that change nothing, whatever the levels of the other axes."""
    points = list(found)
    content = {tuple(c.levels.items()): (c.probes, json.dumps(c.testbed, sort_keys=True)) for c in points}
    result = set()
    for axis in points[0].levels if points else ():
        levels = list(dict.fromkeys(c.levels[axis] for c in points))
        for level in levels[1:]:
            pairs = [
                (content[tuple(c.levels.items())], content[tuple({**c.levels, axis: level}.items())])
                for c in points
                if c.levels[axis] == levels[0]
            ]
            if all(one == other for one, other in pairs):
                result.add((axis, levels[0], level))
    return frozenset(result)


def differences(recorded: Any, wanted: Any, path: Location = ()) -> list[str]:
    """Where two resolved sweeps differ, one line for each place; empty if they don't."""
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        lines = []
        for key in dict.fromkeys([*recorded, *wanted]):
            if key not in recorded:
                lines.append(f"{dotted((*path, key))}: not recorded, now {show(wanted[key])}")
            elif key not in wanted:
                lines.append(f"{dotted((*path, key))}: recorded {show(recorded[key])}, now absent")
            else:
                lines += differences(recorded[key], wanted[key], (*path, key))
        return lines
    return [] if recorded == wanted else [f"{dotted(path)}: recorded {show(recorded)}, now {show(wanted)}"]
