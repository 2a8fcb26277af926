"""``vcg bench up``: bringing nine dimensions up, against their filesystems alone from a shell.

Ours is the time until every dimension is confined and waits for its first window: processes, shared memory, cgroups
and filesystems. The peer (``up.sh``) only makes and mounts the same filesystems, of the same sizes, one after another.
Taking down is done in both, and measured in neither.
"""

from __future__ import annotations

import subprocess
import time
from functools import partial
from pathlib import Path

from experiments.bench import runtime
from experiments.bench.figures import Benchmark, Figure, Progress, comparison, interleave
from vcg.errors import HostError
from vcg.linux import loop
from vcg.plan import Plan
from vcg.run import Run

SCRIPT = Path(__file__).with_name("up.sh")
PEER = "shell: mkfs, losetup, mount of six images, three tmpfs"


def measure(runs: int, seconds: float, progress: Progress) -> list[Figure]:
    """Time until all is up, ours over the shell's."""
    with runtime.directory() as place:
        plan = runtime.plan_of("default", place)
        shell_place = place / "shell"
        shell_place.mkdir()
        arms = {"up": partial(ours, plan), "shell": partial(peer, plan, shell_place)}
        samples = interleave(arms, runs, progress)
    return [comparison("up_time", "ns", samples["up"], PEER, samples["shell"])]


def ours(plan: Plan) -> float:
    """From the order to every dimension confined and waiting, in ns."""
    before_ns = time.monotonic_ns()
    with Run(plan):
        return time.monotonic_ns() - before_ns


def peer(plan: Plan, place: Path) -> float:
    """From the start of the shell to everything mounted, in ns.

    Raises:
        HostError: a command of the script failed, or it left a loop device bound.
    """
    sizes = {kind: [str(d.storage_bytes) for d in plan.dimensions if d.storage == kind] for kind in ("tmpfs", "ext4")}
    command = ["unshare", "--mount", str(SCRIPT), str(place), *sizes["tmpfs"], "--", *sizes["ext4"]]
    pipe = subprocess.PIPE
    before_ns = time.monotonic_ns()
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as shell:
        assert shell.stdin and shell.stdout and shell.stderr
        said = shell.stdout.readline()
        took_ns = time.monotonic_ns() - before_ns
        shell.stdin.close()
        complaints = shell.stderr.read().strip()
    left = loop.backed_by(place)
    for device in left:
        loop.detach(device)
    if said != "up\n" or shell.returncode != 0 or left:
        raise HostError(f"{SCRIPT.name}: exit code {shell.returncode}, {len(left)} loops left: {complaints}")
    return took_ns


BENCHMARK = Benchmark("up", "bring-up of nine dimensions, against their filesystems from a shell", 11, None, 2, measure)
