"""A results directory: what is in it, how it is written so that a kill leaves only whole trials, how it is read.

::

    sweep.toml                  the sweep file as it was when the sweep began
    manifest.json               resolved configurations, seed, and the facts of the host at each start
    trials/<id>[-rN]/           one directory for each trial; -rN is the Nth rerun of a void one
        trial.json              what it was, whether it counts, agreement with the oracles, cost of the probes
        windows.parquet  histograms.parquet  counters.parquet  reference.parquet
    summary.parquet             one row for each trial and dimension, made from the trials
    report.html, plots/         made from the rest

:data:`TABLES` declares every column once, with its unit and meaning; both go into the Parquet schema as metadata, and
:meth:`Results.columns` shows them.

A trial is written under a hidden name, synced and renamed: it is there whole or not at all. Trap: a rename is durable
only once the directory that holds it is synced too.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from experiments import stats
from vcg.errors import VcgError

FORMAT = 1
"""Raised when a reader of the previous format would misread a directory."""


class ResultsError(VcgError):
    """A results directory that can't be used as asked."""


@dataclass(frozen=True)
class Column:
    """One column of a table: its unit (empty for names and counts' labels) and what it says."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str


_NAME = pa.dictionary(pa.int16(), pa.string())
_NS, _COUNT, _SHARE, _FLAG = pa.int64(), pa.int64(), pa.float64(), pa.bool_()
_TRIAL = Column("trial", _NAME, "", "trial directory: the trial's id, and -rN if it is a rerun")
_DIMENSION = Column("dimension", _NAME, "", "d1 … d9")

TABLES: dict[str, tuple[Column, ...]] = {
    "windows": (
        _TRIAL,
        _DIMENSION,
        Column("window", _COUNT, "1", "number of the dimension's window since the start"),
        Column(
            "outcome",
            _NAME,
            "",
            "done, overrun (finished late or over its credit), missed (published, not entered), skipped (never "
            "published: the RTD was late) or unrecorded (planned, but there is no record)",
        ),
        Column("warmup", _FLAG, "", "planned before the end of the warm-up; left out of every statistic"),
        Column("planned_ns", _NS, "ns", "planned edge, CLOCK_MONOTONIC"),
        Column("wake_ns", _NS, "ns", "first instruction after the futex; null if never woken for it"),
        Column("entry_ns", _NS, "ns", "last instant before the workload's code; null if never entered"),
        Column("finish_ns", _NS, "ns", "end of the workload's code; null if never entered"),
        Column("lateness_ns", _NS, "ns", "entry_ns - planned_ns; null if never entered"),
        Column("budget_ns", _NS, "ns", "CPU time that the token granted"),
        Column("used_ns", _NS, "ns", "CPU time used from the end of the window before to the end of this one"),
        Column("expires_ns", _NS, "ns", "when the token became void, CLOCK_MONOTONIC"),
        Column(
            "cause",
            _NAME,
            "",
            "why a window was missed: busy (still inside an earlier one), late (on the CPU when it was over), "
            "no_token, down (no process was there)",
        ),
        Column("phase_ppb", _COUNT, "1e-9", "position of the edge in the base window"),
    ),
    "histograms": (
        _TRIAL,
        Column("probe", _NAME, "", "sched, block or migrate"),
        Column("metric", _NAME, "", "what was measured; ends in its unit"),
        _DIMENSION,
        Column("operation", _NAME, "", "read, write, … for block I/O; from>to for nodes; else null"),
        Column("low_ns", _NS, "ns", "lower edge of the bucket"),
        Column("high_ns", _NS, "ns", "upper edge of the bucket"),
        Column("count", _COUNT, "1", "events in the bucket, warm-up included"),
    ),
    "counters": (
        _TRIAL,
        Column("probe", _NAME, "", "sched, block or migrate"),
        Column("metric", _NAME, "", "what was counted"),
        _DIMENSION,
        Column("operation", _NAME, "", "read, write, … for block I/O; from>to for nodes; else null"),
        Column("value", _COUNT, "1", "count, or ns where the metric says so; warm-up included"),
    ),
    "reference": (
        _TRIAL,
        Column("planned_ns", _NS, "ns", "absolute timer, CLOCK_MONOTONIC"),
        Column("wake_ns", _NS, "ns", "first instruction after the sleep"),
        Column("lateness_ns", _NS, "ns", "wake_ns - planned_ns"),
        Column("warmup", _FLAG, "", "planned before the end of the warm-up; left out of every statistic"),
    ),
    "summary": (
        _TRIAL,
        Column("configuration", _NAME, "", "short hash of the resolved configuration"),
        Column("block", _COUNT, "1", "repetition that the trial belongs to"),
        Column("void", _FLAG, "", "the trial does not count; void_reasons of the table trials says why"),
        _DIMENSION,
        Column("triad", _COUNT, "1", "1 for the first three dimensions, and so on"),
        Column("role", _NAME, "", "role from the testbed"),
        Column("storage", _NAME, "", "ext4 or tmpfs"),
        Column("period_ns", _SHARE, "ns", "length of the dimension's window"),
        Column("windows", _COUNT, "1", "windows planned after the warm-up"),
        Column("entered", _COUNT, "1", "of these, entered"),
        Column("missed_share", _SHARE, "1", "published or planned, never entered"),
        Column("skipped_share", _SHARE, "1", "never published: the RTD was late"),
        Column("overrun_share", _SHARE, "1", "finished late or over the credit"),
        Column(
            "lateness_p50_ns",
            _SHARE,
            "ns",
            "quantile over all windows; infinite if it falls among windows never entered, NaN if too few",
        ),
        Column("lateness_p90_ns", _SHARE, "ns", "likewise"),
        Column("lateness_p99_ns", _SHARE, "ns", "likewise"),
        Column("lateness_p999_ns", _SHARE, "ns", "likewise"),
        Column("lateness_max_ns", _SHARE, "ns", "greatest of the windows entered; shown, never judged by"),
        Column("lateness_refused", pa.string(), "", "quantiles without a finite value, and why"),
        Column("jitter_ns", _SHARE, "ns", "mean absolute difference of successive windows' lateness"),
        Column("credit_use_share", _SHARE, "1", "CPU time used ÷ granted, over the windows entered"),
        Column("reference_p50_ns", _SHARE, "ns", "lateness of the reference thread in this trial"),
        Column("reference_p99_ns", _SHARE, "ns", "lateness of the reference thread in this trial"),
        Column("lateness_p50_over_reference", _SHARE, "1", "lateness_p50_ns ÷ reference_p50_ns"),
        Column("lateness_p99_over_reference", _SHARE, "1", "lateness_p99_ns ÷ reference_p99_ns"),
        Column("trend_ns_per_s", _SHARE, "ns/s", "Theil-Sen slope of lateness over the trial"),
        Column("trend_p", _SHARE, "1", "p-value of Mann-Kendall's test for a trend"),
    ),
}
TRIAL_TABLES = ("windows", "histograms", "counters", "reference")


@dataclass(frozen=True)
class TrialRecord:
    """``trial.json``: everything of a trial that is not a table.

    Attributes:
        trial: name of the directory.
        id: of the trial; equal to ``trial`` unless it is a rerun.
        attempt: 0 for the first run, then the number of the rerun.
        levels: axis -> level.
        dimensions: name, index, role, storage, harmonic and period_ns of each.
        void_reasons: empty if the trial counts.
        facts: figures of the host over the interval, see :class:`experiments.trial.HostFacts`.
        lost: events lost, by probe, and window records.
        refused: the first window records that can't be what a dimension did, and why.
        agreement: rows of the probes against their oracles.
        probe_cost: rows of runs, run time and missed events of each BPF program.
        statistics: the runtime's own counters.
    """

    trial: str
    id: str
    attempt: int
    configuration: str
    block: int
    position: int
    levels: dict[str, str]
    probes: list[str]
    dimensions: list[dict[str, Any]]
    started_at: str
    start_ns: int
    warmup_ns: int
    duration_ns: int
    void_reasons: list[str]
    facts: dict[str, Any]
    lost: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    probe_cost: list[dict[str, Any]] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)


def schema(table: str, axes: Iterable[str] = ()) -> pa.Schema:
    """Arrow schema of a table; unit and meaning are metadata of each field.

    Args:
        axes: for ``summary``: the sweep's axes, which become columns ``axis_<name>`` after ``block``.
    """
    columns = list(TABLES[table])
    at = next((i + 1 for i, column in enumerate(columns) if column.name == "block"), 0)
    columns[at:at] = [Column(f"axis_{axis}", _NAME, "", f"level of the axis {axis}") for axis in axes]
    return pa.schema(
        [pa.field(c.name, c.type, metadata={"unit": c.unit, "meaning": c.meaning}) for c in columns],
        metadata={"vcg.table": table, "vcg.format": str(FORMAT)},
    )


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name what could not be written, and what to do about it.

    Raises:
        ResultsError: a full disk, a read-only one, a limit of the user or of the file's directory.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ResultsError(
            f"{path}: cannot be written ({reason}); what was finished before is kept: make room, or whatever is "
            "missing, then give the same command with the same directory again"
        ) from error


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that after a crash, or on a full disk, it holds either the old content or the new.

    Raises:
        ResultsError: it can't be written.
    """
    hidden = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            with hidden.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            hidden.rename(path)
            _sync(path.parent)
    except ResultsError:
        hidden.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def to_arrow(table: str, frame: pd.DataFrame, axes: Iterable[str] = ()) -> pa.Table:
    """A frame as an Arrow table of the declared schema; columns that are not declared are an error.

    Raises:
        ValueError: a column is missing, unknown or of the wrong type.
    """
    wanted = schema(table, axes)
    if unknown := set(frame.columns) - set(wanted.names):
        raise ValueError(f"{table}: columns {sorted(unknown)} are not declared")
    return pa.Table.from_pandas(frame[wanted.names], schema=wanted, preserve_index=False).replace_schema_metadata(
        wanted.metadata
    )


def write_trial(directory: Path, record: TrialRecord, tables: Mapping[str, pd.DataFrame]) -> Path:
    """Store a trial, whole or not at all.

    Args:
        directory: the results directory.
        tables: one frame for each of :data:`TRIAL_TABLES`.

    Returns:
        The trial's directory.

    Raises:
        ResultsError: it can't be written; nothing of it is left.
    """
    trials = directory / "trials"
    hidden, final = trials / f".{record.trial}.partial", trials / record.trial
    text = json.dumps(asdict(record), indent=1, allow_nan=False)
    try:
        with writing(final):
            trials.mkdir(exist_ok=True)
            hidden.mkdir()
            for name in TRIAL_TABLES:
                pq.write_table(to_arrow(name, tables[name]), hidden / f"{name}.parquet", compression="zstd")
            (hidden / "trial.json").write_text(f"{text}\n")
            for path in (*hidden.iterdir(), hidden):
                _sync(path)
            hidden.rename(final)
            _sync(trials)
    except ResultsError:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return final


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    write_durably(directory / "manifest.json", (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())


def write_summary(directory: Path) -> None:
    """Make ``summary.parquet`` from the trials that are there."""
    results = Results(directory)
    table = to_arrow("summary", results.summarise(), results.axes)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_durably(directory / "summary.parquet", buffer.getvalue().to_pybytes())


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a results directory for one writer, and clear away what a killed one left half written.

    Raises:
        ResultsError: another sweep is writing into it, or nobody can.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        opened = (directory / ".lock").open("w")
    with opened as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsError(
                f"{directory}: another sweep is writing into it; wait for it, or choose another --out"
            ) from None
        for partial in (directory / "trials").glob(".*.partial"):
            shutil.rmtree(partial)
        yield


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_records(directory: Path) -> list[TrialRecord]:
    """The records of all stored trials, in the order in which they ran.

    Raises:
        ResultsError: a record is not of this format.
    """
    records = []
    for path in (directory / "trials").glob("[!.]*/trial.json"):
        try:
            records.append(TrialRecord(**json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            raise ResultsError(f"{path}: not a trial's record ({error}); move the trial's directory away") from None
    return sorted(records, key=lambda record: (record.started_at, record.start_ns))


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest.

    Raises:
        ResultsError: there is none, or of another format.
    """
    path = directory / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ResultsError(
            f"{directory}: no results here (no manifest.json); expected a directory of `vcg sweep run`"
        ) from None
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON ({error}); expected a manifest of `vcg sweep run`") from None
    if manifest.get("format") != FORMAT:
        raise ResultsError(f"{path}: format {manifest.get('format')!r}, expected {FORMAT}")
    return manifest


class Results:
    """A results directory, read on demand.

    Args:
        path: the directory.

    Raises:
        ResultsError: there are no results in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = read_manifest(path)
        """The manifest: sweep, seed, resolved configurations, host."""
        self.records: list[TrialRecord] = read_records(path)

    def __repr__(self) -> str:
        void = sum(bool(record.void_reasons) for record in self.records)
        return f"Results({str(self.path)!r}: {len(self.records)} trials, {void} void)"

    @property
    def axes(self) -> list[str]:
        """Names of the sweep's axes, in the order of the sweep file."""
        return list(self.metadata["sweep"]["axes"])

    def table(self, name: str, trial: str | None = None, columns: list[str] | None = None) -> pd.DataFrame:
        """A table of one trial, or of all of them.

        Args:
            name: ``windows``, ``histograms``, ``counters`` or ``reference``.
            trial: name of a trial's directory; None for all.
            columns: only these.

        Raises:
            ResultsError: there is no such trial.
        """
        names = [record.trial for record in self.records]
        if trial is not None and trial not in names:
            raise ResultsError(f"{self.path}: no trial {trial!r}; expected one of {', '.join(names) or 'none yet'}")
        parts = [
            pq.read_table(self.path / "trials" / each / f"{name}.parquet", columns=columns)
            for each in ([trial] if trial else names)
        ]
        whole = pa.concat_tables(parts) if parts else schema(name).empty_table()
        frame: pd.DataFrame = whole.unify_dictionaries().to_pandas()
        return frame

    @cached_property
    def windows(self) -> pd.DataFrame:
        """One row for each dimension and window of every trial, void ones included."""
        return self.table("windows")

    @cached_property
    def histograms(self) -> pd.DataFrame:
        """The probes' histograms, one row for each bucket."""
        return self.table("histograms")

    @cached_property
    def counters(self) -> pd.DataFrame:
        """The probes' counters."""
        return self.table("counters")

    @cached_property
    def reference(self) -> pd.DataFrame:
        """The samples of the reference thread."""
        return self.table("reference")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row for each trial: what it was, whether it counts and why not, and the facts of the host."""
        return pd.DataFrame(
            [
                {
                    "trial": record.trial,
                    "configuration": record.configuration,
                    "block": record.block,
                    **{f"axis_{axis}": record.levels[axis] for axis in self.axes},
                    "position": record.position,
                    "attempt": record.attempt,
                    "void": bool(record.void_reasons),
                    "void_reasons": "; ".join(record.void_reasons),
                    "started_at": record.started_at,
                    **{name: math.nan if value is None else value for name, value in record.facts.items()},
                }
                for record in self.records
            ]
        )

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row of statistics for each trial and dimension; made anew if the stored one does not cover the trials."""
        path = self.path / "summary.parquet"
        if path.exists():
            stored: pd.DataFrame = pq.read_table(path).to_pandas()
            if set(stored["trial"].astype(str)) == {record.trial for record in self.records}:
                return stored
        made: pd.DataFrame = to_arrow("summary", self.summarise(), self.axes).to_pandas()
        return made

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """Every probe against its oracle: trial, and the fields of :class:`probes.AgreementRow`."""
        return pd.DataFrame([{"trial": r.trial, **row} for r in self.records for row in r.agreement])

    @cached_property
    def probe_cost(self) -> pd.DataFrame:
        """What the probes themselves took: trial, probe, program, runs, run_ns, missed."""
        return pd.DataFrame([{"trial": r.trial, **row} for r in self.records for row in r.probe_cost])

    @staticmethod
    def columns(table: str) -> pd.DataFrame:
        """Unit and meaning of the columns of a table (of ``summary``, without the axes)."""
        return pd.DataFrame([{"column": c.name, "unit": c.unit, "meaning": c.meaning} for c in TABLES[table]])

    def summarise(self) -> pd.DataFrame:
        """The table ``summary``, computed from the windows of each trial."""
        columns = schema("summary", self.axes).names
        parts = [self._summarise(record) for record in self.records]
        whole = pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
        # Categorical, so that the levels keep the order of the sweep file, whatever the order of the trials.
        for axis, levels in self.metadata["sweep"]["axes"].items():
            whole[f"axis_{axis}"] = pd.Categorical(whole[f"axis_{axis}"], categories=list(levels))
        return whole

    def _summarise(self, record: TrialRecord) -> pd.DataFrame:
        found = stats.summarise_trial(self.table("windows", record.trial), self.table("reference", record.trial))
        facts = pd.DataFrame(record.dimensions).set_index("name")
        for column in ("role", "storage", "period_ns"):
            found[column] = found["dimension"].map(facts[column])
        found["triad"] = found["dimension"].map(facts["index"]) // 3 + 1
        found["trial"], found["configuration"], found["block"] = record.trial, record.configuration, record.block
        found["void"] = bool(record.void_reasons)
        for axis in self.axes:
            found[f"axis_{axis}"] = record.levels[axis]
        return found
