"""Run a sweep, or go on with one: choose the next trial, run it, store it, until none is left.

Everything that a resumed sweep needs is in the results directory. The trials that are there are not run again; a
sweep file that means something else than the recorded one is refused, because its trials would not be comparable.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from experiments import manifest, reference, store
from experiments.plan import (
    Configuration,
    Done,
    SweepFile,
    Trial,
    configurations,
    differences,
    identical_levels,
    next_trial,
    trials,
)
from experiments.store import ResultsError, TrialRecord
from experiments.trial import Instruments, Interrupted, Progress, measure_baseline, run_trial
from vcg import floor, gatefloor
from vcg import plan as testbed_plan
from vcg.config import from_mapping
from vcg.errors import HostError
from vcg.linux import numa

BRING_UP_S = 1.2
"""Estimate of what a trial takes beyond its measurement, until one has been run."""
_BASELINE_S = 1.0


@dataclass(frozen=True)
class Event:
    """What a sweep is doing.

    Attributes:
        done, total: trials finished and planned; reruns raise both.
        void: of the finished ones.
        trial: the one that runs.
        attempt: of it.
        progress: of it; None while it is brought up.
        left_s: estimate for the rest of the sweep.
    """

    done: int
    total: int
    void: int
    trial: Trial
    attempt: int
    progress: Progress | None
    left_s: float


@dataclass(frozen=True)
class Ending:
    """How a sweep ended: whether it was interrupted, and how many trials are stored and still to run."""

    interrupted: bool
    stored: int
    remaining: int


def estimate_s(planned: list[Trial]) -> float:
    """How long trials will take, in seconds."""
    return sum((t.configuration.warmup_ns + t.configuration.duration_ns) / 1e9 + BRING_UP_S for t in planned)


def prepare(file: SweepFile, out: Path) -> tuple[dict[str, Any], list[Configuration], list[Trial]]:
    """The manifest, configurations and trials of a sweep, new or recorded; writes nothing.

    Raises:
        ConfigError: the sweep file or its testbed is wrong.
        ResultsError: the directory holds another sweep, or something else.
    """
    found = configurations(file)
    recorded = store.read_manifest(out) if (out / "manifest.json").exists() else None
    if recorded is None:
        if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise ResultsError(f"{out}: not empty, and no results of a sweep; expected a new directory")
        seed = file.sweep.seed if file.sweep.seed is not None else secrets.randbits(32)
    else:
        seed = recorded["seed"] if file.sweep.seed is None else file.sweep.seed
    wanted = {
        "format": store.FORMAT,
        "name": file.sweep.name,
        "description": file.sweep.description,
        "seed": seed,
        "sweep": file.sweep.resolved(),
        "configurations": {c.id: _described(c) for c in found},
        "identical_levels": sorted(identical_levels(found)),
    }
    if recorded is not None:
        compared = ("seed", "sweep", "configurations")
        changes = differences({k: recorded[k] for k in compared}, {k: wanted[k] for k in compared})
        if changes:
            listed = "\n  ".join(changes[:12] + ([f"… and {len(changes) - 12} more"] if len(changes) > 12 else []))
            raise ResultsError(
                f"{out}: holds another sweep, so it can't be resumed with {file.document.file}:\n  {listed}\n"
                f"use {out / 'sweep.toml'} to resume it, or another --out for a new sweep"
            )
        wanted = {**recorded, "name": file.sweep.name, "description": file.sweep.description}
    return wanted, found, trials(found, file.sweep.repetitions, seed)


def _described(configuration: Configuration) -> dict[str, Any]:
    return {
        "label": configuration.label,
        "levels": dict(configuration.levels),
        "probes": list(configuration.probes),
        "warmup_ns": configuration.warmup_ns,
        "duration_ns": configuration.duration_ns,
        "testbed": dict(configuration.testbed),
    }


def run(file: SweepFile, out: Path, on_event: Callable[[Event], None]) -> Ending:
    """Run the trials of a sweep that are not in its results directory yet.

    SIGINT and SIGTERM give up the trial that is running, take its testbed down and keep everything that is finished;
    a second signal does so without waiting for the next look.

    Args:
        file: the sweep.
        out: its results directory, made if it does not exist.
        on_event: told what is going on, several times a second.

    Raises:
        vcg.errors.VcgError: a trial could not be run or stored, or a window is too short for this host, which is found
            out before the first trial; the finished ones are kept.
    """
    if os.geteuid() != 0:
        raise HostError("a sweep needs root: it mounts, pins and confines (try: sudo vcg sweep run …, or --dry-run)")
    sweep = file.sweep
    document, found, planned = prepare(file, out)
    shape = numa.observe()
    make = partial(testbed_plan.make, floor_ns=floor.ensure(), freezer_floor_ns=gatefloor.shortest_window_ns())
    # Every configuration must fit this host before the first trial is run, not in the middle of the night.
    plans = {c.id: make(from_mapping(c.testbed), shape) for c in found}
    with store.exclusive(out), _stop_on_signal() as stopping, Instruments() as instruments:
        cpu = document["reference"]["cpu"] if "reference" in document else max(shape.cpus)
        begin = {**manifest.host_facts(), "reference_p99_ns": measure_baseline(cpu, _BASELINE_S)}
        document.setdefault("reference", _reference_settings(cpu))
        document["starts"] = [*document.get("starts", []), begin]
        document.setdefault("plans", {identity: {**asdict(made), "testbed": {}} for identity, made in plans.items()})
        store.write_manifest(out, document)  # first: without one the directory could not be resumed
        if not (out / "sweep.toml").exists():
            store.write_durably(out / "sweep.toml", file.text)

        records = store.read_records(out)
        spent: list[float] = []
        interrupted = False
        while (chosen := next_trial(planned, map(_done, records), sweep.max_reruns)) and not interrupted:
            trial, attempt = chosen
            began = time.monotonic()
            report = _Reporter(on_event, planned, records, trial, attempt, spent)
            report(None)
            try:
                record, tables = run_trial(
                    trial,
                    attempt,
                    plans[trial.configuration.id],
                    instruments,
                    limits=sweep.void,
                    reference_cpu=cpu,
                    baseline_p99_ns=begin["reference_p99_ns"],
                    on_progress=report,
                    stop=stopping,
                )
            except Interrupted:
                interrupted = True
                break
            store.write_trial(out, record, tables)
            records.append(record)
            spent.append(time.monotonic() - began)
            interrupted = stopping()
        if records:
            store.write_summary(out)
    return Ending(interrupted, len(records), len(_remaining(planned, records)))


def _reference_settings(cpu: int) -> dict[str, int]:
    return {"cpu": cpu, "period_ns": reference.PERIOD_NS, "priority": reference.PRIORITY}


def _done(record: TrialRecord) -> Done:
    return Done(record.id, record.attempt, bool(record.void_reasons))


def _remaining(planned: list[Trial], records: list[TrialRecord]) -> list[Trial]:
    stored = {record.id for record in records}
    return [trial for trial in planned if trial.id not in stored]


class _Reporter:
    """Turns the progress of one trial into events of the sweep, with an estimate of the time left."""

    def __init__(
        self,
        on_event: Callable[[Event], None],
        planned: list[Trial],
        records: list[TrialRecord],
        trial: Trial,
        attempt: int,
        spent: list[float],
    ) -> None:
        rest = _remaining(planned, records)
        rerun = attempt > 0
        self._on_event, self._trial, self._attempt = on_event, trial, attempt
        self._done = len(records)
        self._void = sum(bool(record.void_reasons) for record in records)
        self._total = len(records) + len(rest) + rerun
        measured = estimate_s([trial]) - BRING_UP_S
        overhead = sum(spent) / len(spent) - measured if spent else BRING_UP_S
        self._left = estimate_s(rest) + len(rest) * (overhead - BRING_UP_S) + rerun * (measured + overhead)
        self._began = time.monotonic()

    def __call__(self, progress: Progress | None) -> None:
        left = max(0.0, self._left - (time.monotonic() - self._began))
        self._on_event(Event(self._done, self._total, self._void, self._trial, self._attempt, progress, left))


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ask before acting: the first SIGINT or SIGTERM only sets a flag, a second one raises KeyboardInterrupt."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
