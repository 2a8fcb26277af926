"""Synthetic results of a sweep, with known properties: for tests of what reads results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import manifest, plan, store
from experiments.reference import PERIOD_NS
from experiments.trial import HostFacts, believable, window_rows
from probes import AgreementRow
from vcg import plan as testbed_plan
from vcg.config import from_mapping
from vcg.plan import DimensionPlan, HostShape
from vcg.shm import Outcome

SECOND = 1_000_000_000
START_NS = 50 * SECOND
HOST = HostShape((0, 1), {0: 0, 1: 0})
Maker = Callable[..., Path]

SWEEP = """
description = "synthetic"
testbed = "default"
duration = "1.5s"
warmup = "200ms"
repetitions = {repetitions}
seed = 7

[axes.ratio.harmonic]
"triads.inner.harmonic" = "3"
[axes.ratio.golden]
"triads.inner.harmonic" = "1.618"
[axes.base_window.6ms]
"base_window" = "6ms"
[axes.base_window.12ms]
"base_window" = "12ms"
"""


def window_record(dimension: DimensionPlan, window: int, outcome: Outcome, lateness_ns: int) -> list[int]:
    """One record as a dimension writes it, in the order of ``shm.WINDOW``."""
    (a, b), (c, d) = dimension.period, dimension.phase
    planned = START_NS + (c * b + window * a * d) // (b * d)
    entered = outcome in (Outcome.DONE, Outcome.OVERRUN)
    entry = planned + lateness_ns if entered else 0
    finish = entry + dimension.credit_ns // 2 if entered else 0
    expires = planned + int(dimension.period_ns)
    used = finish - entry
    return [
        window,
        1,
        outcome,
        planned,
        entry and entry - 2000,
        entry,
        finish,
        dimension.credit_ns,
        used,
        expires,
        0,
        0,
    ]


def trial_records(
    dimensions: tuple[DimensionPlan, ...], duration_ns: int, rng: np.random.Generator, factor: float
) -> dict[str, bytes]:
    """Log-normal lateness around 30 us times a factor; one window in three hundred is missed."""
    found = {}
    for d in dimensions:
        count = int(duration_ns / d.period_ns)
        lateness = rng.lognormal(np.log(30_000 * factor * (1 + d.index / 9)), 0.35, count)
        rows = [
            window_record(d, n, Outcome.MISSED if rng.random() < 1 / 300 else Outcome.DONE, int(late))
            for n, late in enumerate(lateness)
        ]
        found[d.name] = np.array(rows, dtype=np.int64).tobytes()
    return found


def histogram_rows(dimensions: tuple[DimensionPlan, ...], rng: np.random.Generator) -> pd.DataFrame:
    edges = np.geomspace(500, 5e6, 120).astype(np.int64)
    rows = []
    for d in dimensions:
        counts, _ = np.histogram(rng.lognormal(np.log(9_000 * (1 + d.index / 4)), 0.6, 3000), edges)
        rows += [
            ("sched", "run_queue_latency_ns", d.name, None, int(low), int(high), int(count))
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
            if count
        ]
    return pd.DataFrame(rows, columns=["probe", "metric", "dimension", "operation", "low_ns", "high_ns", "count"])


@pytest.fixture(scope="session")
def make_results() -> Maker:
    """Make a results directory: ``make_results(path, repetitions=2, factors={"golden": 1.5}, void=0)``.

    ``factors`` scales the lateness of the configurations that have a level of that name; the first ``void`` trials are
    void, and rerun.
    """

    def make(path: Path, repetitions: int = 2, factors: dict[str, float] | None = None, void: int = 0) -> Path:
        path.mkdir(parents=True)
        (path / "sweep.toml").write_text(SWEEP.format(repetitions=repetitions))
        file = plan.load(path / "sweep.toml")
        found = plan.configurations(file)
        planned = plan.trials(found, repetitions, 7)
        store.write_manifest(
            path,
            {
                "format": store.FORMAT,
                "name": "synthetic",
                "description": "made up",
                "seed": 7,
                "sweep": file.sweep.resolved(),
                "configurations": {
                    c.id: {"label": c.label, "levels": dict(c.levels), "testbed": dict(c.testbed)} for c in found
                },
                "identical_levels": [],
                "reference": {"cpu": 1, "period_ns": PERIOD_NS, "priority": 88},
                "starts": [{**manifest.host_facts(), "reference_p99_ns": 30_000.0}],
            },
        )
        rng = np.random.default_rng(11)
        for number, trial in enumerate(planned):
            factor = float(np.prod([(factors or {}).get(level, 1.0) for level in trial.configuration.levels.values()]))
            spoiled = number < void
            _write(path, trial, 0, number, factor, spoiled, rng)
            if spoiled:
                _write(path, trial, 1, number, factor, False, rng)
        store.write_summary(path)
        return path

    return make


def compared(dimension: str, measured: int, oracle: int, agrees: bool | None, reason: str = "") -> dict[str, Any]:
    """A row of a probe beside its oracle, as ``trial.json`` holds it."""
    row = AgreementRow(
        "sched", "run_delay_ns", dimension, measured, oracle, measured - oracle, 2_000_000, agrees, reason
    )
    return asdict(row)


def _write(
    path: Path, trial: plan.Trial, attempt: int, number: int, factor: float, void: bool, rng: np.random.Generator
) -> None:
    c = trial.configuration
    made = testbed_plan.make(from_mapping(c.testbed), HOST)
    name = f"{trial.id}-r{attempt}" if attempt else trial.id
    total = c.warmup_ns + c.duration_ns
    recorded = trial_records(made.dimensions, total, rng, factor)
    believed = {d.name: believable(recorded[d.name], d, START_NS, START_NS + 2 * total)[0] for d in made.dimensions}
    windows = window_rows(believed, made.dimensions, START_NS, c.warmup_ns, c.duration_ns)
    planned = START_NS + np.arange(0, total, PERIOD_NS)
    late = rng.lognormal(np.log(15_000), 0.3, len(planned)).astype(np.int64)
    reference = pd.DataFrame(
        {
            "planned_ns": planned,
            "wake_ns": planned + late,
            "lateness_ns": late,
            "warmup": planned < START_NS + c.warmup_ns,
        }
    )
    counters = pd.DataFrame(
        [("sched", "switches", "d1", None, 100)], columns=["probe", "metric", "dimension", "operation", "value"]
    )
    tables = {
        "windows": windows,
        "histograms": histogram_rows(made.dimensions, rng),
        "counters": counters,
        "reference": reference,
    }
    facts = HostFacts(total, 0.001, 0.01, 0, 15_000.0, 30_000.0, 0, 0, 0)
    record = store.TrialRecord(
        trial=name,
        id=trial.id,
        attempt=attempt,
        configuration=c.id,
        block=trial.block,
        position=trial.position,
        levels=dict(c.levels),
        probes=list(c.probes),
        dimensions=[
            {"name": d.name, "index": d.index, "role": d.role, "storage": d.storage, "period_ns": d.period_ns}
            for d in made.dimensions
        ],
        started_at=f"2026-01-01T00:{number:02d}:{attempt:02d}",
        start_ns=START_NS,
        warmup_ns=c.warmup_ns,
        duration_ns=c.duration_ns,
        void_reasons=["3 events lost (limit 0)"] if void else [],
        facts=asdict(facts),
        agreement=[
            compared("d1", 101_000_000, 100_000_000, True),
            compared("d2", 2_600_000, 2_100_000, None, "left open by tracepoints: 2.6ms of 2.1ms"),
        ],
        probe_cost=[{"probe": "sched", "program": "sched_switch", "runs": 1000, "run_ns": 900_000, "missed": 3}],
    )
    for frame in tables.values():
        frame["trial"] = name
    store.write_trial(path, record, tables)
