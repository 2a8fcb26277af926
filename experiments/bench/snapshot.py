"""``vcg bench snapshot``: crash snapshots; does each hold what was synced, and is each a sound filesystem?

Nine dimensions on loop-ext4 write a marker in every window and fsync it (``experiments.bench.markers``). Each of them
comes to a sudden end at a random moment: one in two is killed (SIGKILL) from outside, the others abort inside a random
window. Their testbed asks for a snapshot of each crash. A snapshot is *good* if

* it holds the marker of every window that has a record in shared memory: the record is written after fsync returned,
  and is read there by the benchmark itself;
* the windows that it tells of are the newest that the benchmark has read;
* ``e2fsck -fn`` ends with 0 and has no question about the image. That is all of its five passes (``-f``), on an image
  that is marked as not cleanly unmounted, because it was mounted when it was copied, and that nobody has mended before
  (``-n``).

``snapshot_time`` is from the snapshotter's turn until the snapshot is durable under its name, ``frozen_time`` for how
long what was left of the dimension was held. Of nine crashes in a second some come at once, and wait for each other;
the intervals of both take crashes for independent, so they are too narrow, and nothing is judged by them.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from os import kill
from pathlib import Path
from typing import Any

import numpy as np

from experiments import trial
from experiments.bench import markers, runtime
from experiments.bench.figures import Benchmark, Figure, Progress, Tally, figure
from vcg import shm, snapshot
from vcg.errors import HostError, RunError
from vcg.plan import Plan
from vcg.run import Run

SEEDS = 1_000_000
DIMENSIONS = 9
BASE_WINDOW_MS = 6
FIRST_S, LAST_S = 0.1, 1.1
"""Between these two moments of a run its dimensions crash."""
_PATIENCE_S = 60.0
_POLL_S = 0.01
_ENTERED = (shm.Outcome.DONE, shm.Outcome.OVERRUN)


@dataclass(frozen=True)
class Crash:
    """One dimension's end.

    Attributes:
        how: "killed" or "aborted".
        synced: markers that were synced for certain.
        lost: those of them that the snapshot does not hold.
        tells_windows: whether it tells of the newest windows as they were.
        complaints: of e2fsck; empty if it has none.
        took_ns, frozen_ns: see above.
    """

    how: str
    synced: int
    lost: int
    tells_windows: bool
    complaints: str
    took_ns: int
    frozen_ns: int

    @property
    def is_good(self) -> bool:
        return self.synced > 0 and not self.lost and self.tells_windows and not self.complaints


def measure(runs: int, seconds: float, progress: Progress, seed: int | None = None) -> list[Figure]:
    """So many crashes, nine in a run."""
    seed = random.randrange(SEEDS) if seed is None else seed
    chance = random.Random(seed)
    crashes: list[Crash] = []
    with runtime.directory() as place:
        while len(crashes) < runs:
            progress(f"crash {len(crashes) + 1} of {runs}")
            crashes += crash(place, min(DIMENSIONS, runs - len(crashes)), chance)
            for _ in range(min(DIMENSIONS, runs - len(crashes))):
                progress(f"crash {len(crashes)} of {runs}")
    return figures(crashes, seed)


def figures(crashes: list[Crash], seed: int) -> list[Figure]:
    """What the crashes come to; pure."""
    kinds = {how: [one for one in crashes if one.how == how] for how in ("killed", "aborted")}
    rows = tuple(
        (
            how,
            str(len(found)),
            str(sum(one.synced for one in found)),
            str(sum(one.lost for one in found)),
            str(sum(not one.complaints for one in found)),
            str(sum(one.is_good for one in found)),
        )
        for how, found in kinds.items()
    )
    good = sum(one.is_good for one in crashes)
    headings = ("crash", "snapshots", "markers", "lost", "e2fsck clean", "good")
    made: list[Figure] = [
        Tally("snapshots_good", good, f"of {len(crashes)}", good, good, headings, rows),
        figure("snapshot_time", "ns", [one.took_ns for one in crashes]),
        figure("frozen_time", "ns", [one.frozen_ns for one in crashes]),
        Figure("seed", seed, "", seed, seed),
    ]
    complaints = [(one.how, one.complaints) for one in crashes if one.complaints]
    if complaints:
        made.append(Tally("complaints", len(complaints), "snapshots", 0, 0, ("crash", "of e2fsck"), tuple(complaints)))
    return made


def plan_of(place: Path, aborts: Mapping[str, int]) -> Plan:
    """Nine dimensions that write markers; some of them abort in a window of theirs."""
    common: dict[str, Any] = {
        "workload": "experiments.bench.markers:run",
        "storage": {"kind": "ext4", "size": "8M"},
        "snapshot": ["crash"],
        "enforce": "none",
    }
    dimensions = {
        name: {**common, "args": {"abort_at": aborts[name]} if name in aborts else {}}
        for name in (f"d{number}" for number in range(1, DIMENSIONS + 1))
    }
    testbed = {
        "name": "snapshot",
        "base_window": f"{BASE_WINDOW_MS}ms",
        "stagger": False,
        "snapshots": {"quota": "1G", "directory": str(place / "snapshots")},
        "dimensions": dimensions,
    }
    return runtime.plan_from(testbed, place)


def crash(place: Path, many: int, chance: random.Random) -> list[Crash]:
    """One run in which so many dimensions crash; what became of each.

    Raises:
        RunError: a snapshot was not taken.
    """
    names = [f"d{number}" for number in range(1, many + 1)]
    moments_s = {name: chance.uniform(FIRST_S, LAST_S) for name in names}
    aborts = {name: int(moments_s[name] * 1000 / BASE_WINDOW_MS) for name in names if chance.random() < 0.5}
    plan = plan_of(place, aborts)
    directory = Path(plan.snapshots.directory)
    with Run(plan) as run:
        start_ns = run.start()
        for name in sorted(names, key=moments_s.__getitem__):
            if name not in aborts:
                time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9 + moments_s[name]))
                kill(run.dimension_pids[name], signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE_S
        while not {one["dimension"] for one in run.snapshots}.issuperset(names):
            if time.monotonic() > deadline:
                raise RunError(f"{len(run.snapshots)} of {many} snapshots were taken in {_PATIENCE_S:.0f} s")
            time.sleep(_POLL_S)
            try:
                run.check()
            except RunError:  # that they die is what they are here for
                continue
        records = run.drain()
    crashes = []
    for one in run.snapshots:
        if "error" in one:
            raise RunError(one["error"])
        if one["dimension"] not in names:
            raise RunError(f"{one['dimension']} crashed, and should not have: {one['path']}")
        how = "aborted" if one["dimension"] in aborts else "killed"
        crashes.append(examine(Path(one["path"]), how, records[one["dimension"]], one))
    for taken in snapshot.listed(directory):
        for path in taken.path.iterdir():
            path.unlink()
        taken.path.rmdir()
    return crashes


def examine(path: Path, how: str, records: bytes, told: Mapping[str, Any]) -> Crash:
    """Look into a snapshot of a dimension whose window records we have."""
    papers = snapshot.read_papers(path)
    rows = np.frombuffer(records, dtype=trial.RECORD)
    synced = {int(window) for window in rows["window"][np.isin(rows["outcome"], _ENTERED)]}
    image = path / papers["contents"]["file"]
    content = _run(["debugfs", "-R", f"cat {markers.PATH}", str(image)]).stdout
    checked = _run(["e2fsck", "-fn", str(image)])
    said = checked.stdout.decode(errors="replace")
    is_clean = checked.returncode == 0 and "? no" not in said
    newest = [int(window) for window in rows["window"][-len(papers["windows"]) :]]
    return Crash(
        how=how,
        synced=len(synced),
        lost=len(synced - markers.read(content)),
        tells_windows=[window["window"] for window in papers["windows"]] == newest,
        complaints="" if is_clean else f"exit code {checked.returncode}: {' '.join(said.split())}",
        took_ns=told["took_ns"],
        frozen_ns=told["frozen_for_ns"],
    )


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise HostError(f"{command[0]}: not found (apt-get install e2fsprogs)") from None


BENCHMARK = Benchmark(
    "snapshot", "crash snapshots: the markers that were synced, and e2fsck", 100, None, 1, measure, True
)
