"""Lines 07 to 09 and 11 of what a dimension must not be able to do: it misbehaves, and the run has to bear it.

07 and 08 are about what it writes into its own status page, 09 about what it takes of the machine, 11 about a token
that it holds and a process that it leaves behind. The clients of line 10 are in ``test_escape_sockets.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from experiments.bench import forgeries, sieges
from experiments.bench.sieges import AFTER, FORGERIES, SIEGES, STOPPED, Siege
from vcg import config, plan, shm
from vcg.errors import RunError
from vcg.linux import numa
from vcg.plan import Plan
from vcg.rounds import Desk
from vcg.run import Run
from vcg.shm import Outcome

pytestmark = pytest.mark.usefixtures("root", "clean_roots")

BAD = "d5"
PATIENCE_S = 60
LOOKS = 4
WATCHED_S = 0.5
CADENCE = 0.9


class Roots(Protocol):
    state_root: Path
    mount_root: Path


@pytest.fixture
def planned(roots: Roots) -> Callable[..., Plan]:
    """The default testbed with one bad dimension, whose fields are given."""

    def make(**fields: Any) -> Plan:
        places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
        overrides = {f"dimensions.{BAD}.{name}": value for name, value in fields.items()}
        return plan.make(config.load("default", {**places, **overrides}), numa.observe())

    return make


def wait_for(condition: Callable[[], object], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not after {PATIENCE_S} s"
        time.sleep(0.02)
    return found


def entered(raw: bytes) -> int:
    """How many of the windows of these records were entered."""
    words = memoryview(raw).cast("q")
    outcomes = words[shm.WINDOW.at("outcome") :: shm.WINDOW_WORDS].tolist()
    return sum(outcome <= Outcome.OVERRUN for outcome in outcomes)


def assert_the_others_go_on(run: Run) -> None:
    """Every other dimension keeps its cadence while the abuse goes on, and its account has nothing to complain of.

    Beside an idle dimension, and as well beside each kind of abuse, the other eight were seen to enter all windows of
    such a time but one or two (97 % and more, once 94 %, of 27 windows of the longest kind): the host's own doing. So
    what is asked is nine in ten, one aside that the bounds of the time cut off; and of one of some looks, because for
    one of them the host may be somebody else's.
    """
    others = [d for d in run.plan.dimensions if d.name != BAD]
    for _ in range(LOOKS):
        run.drain()
        began_ns = time.monotonic_ns()
        time.sleep(WATCHED_S)
        fresh = run.drain()
        lasted_ns = time.monotonic_ns() - began_ns
        windows = {d.name: (entered(fresh[d.name]), lasted_ns / d.period_ns) for d in others}
        behind = {name: pair for name, pair in windows.items() if pair[0] < CADENCE * pair[1] - 1}
        if not behind:
            break
    assert not behind, "entered, and due"
    accounts = run.statistics()["tokens"]
    refused = {d.name: [accounts[d.name][name] for name in accounts[d.name] if "refused" in name] for d in others}
    assert refused == {d.name: [0, 0, 0] for d in others}


def misbehaving(kind: str) -> dict[str, Any]:
    return {
        "workload": f"experiments.bench.misbehaviour:{kind}",
        "args": {"after": AFTER, "forgeries": FORGERIES},
        "enforce": "none",
    }


# ── all nine at once ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("siege", SIEGES, ids=lambda siege: f"{siege.line}-{siege.name}")
def test_a_run_holds_all_nine_when_they_misbehave_at_once(siege: Siege, roots: Roots) -> None:
    places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
    made = plan.make(config.load("default", {**places, **siege.overrides}), numa.observe())
    outcomes = sieges.besiege(siege, made)
    assert len(outcomes) == 9
    assert {one.verdict for one in outcomes.values()} == {"refused"}, outcomes


@pytest.mark.parametrize("siege", SIEGES, ids=lambda siege: f"{siege.line}-{siege.name}")
def test_without_the_defence_the_misbehaviour_succeeds(
    siege: Siege, roots: Roots, in_child: Callable[..., Any]
) -> None:
    found = in_child(lambda: siege.control(roots.mount_root))
    assert found.without.verdict == "escaped", found
    assert found.alone, "a control without any defence"
    assert found.failing == [], found


def test_a_check_whose_text_has_changed_is_not_taken_for_one_that_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = forgeries.Cut(Desk, "settle", "a check that is no more", "True")
    monkeypatch.setitem(forgeries.CHECKS, "epoch", (gone,))
    assert forgeries.control(forgeries.old_epoch).without.verdict == "broken"


def test_who_dies_of_anything_but_a_want_of_memory_has_not_been_stopped_by_its_limit(roots: Roots) -> None:
    """A workload that can't even be run dies, too."""
    places = {"state_root": str(roots.state_root), "mount_root": str(roots.mount_root)}
    fields = {"dimensions.*.workload": "workloads_under_test:raises", "dimensions.*.args": {}}
    memory = next(siege for siege in SIEGES if siege.name == "memory")
    with pytest.raises(RunError):
        sieges.besiege(memory, plan.make(config.load("default", {**places, **fields}), numa.observe()))


# ── one of nine, and what the other eight make of it ─────────────────────────────────────────────────────────────────


def test_forged_claims_are_refused_counted_and_cost_nobody_anything(planned: Callable[..., Plan]) -> None:
    with Run(planned(**misbehaving("forges"))) as run:
        run.start()
        latest_at = shm.LATEST_AT + run.plan.dimensions[4].index
        wait_for(lambda: run.ticks[latest_at] > 6 * AFTER, "the last forgery")
        assert_the_others_go_on(run)
        run.check()
        account = run.statistics()["tokens"][BAD]
    assert account["refused_epoch"] == FORGERIES
    assert account["refused_window"] >= 2 * FORGERIES  # and each true record of a window that was claimed before
    assert account["refused_value"] >= 2 * FORGERIES  # and each time that the head went back to where it was
    assert 0 <= account["used_ns"] < 10e9, "no claim was believed: neither to have used less than nothing, nor more"


def test_garbage_in_a_status_page_hurts_nobody_who_reads_it(planned: Callable[..., Plan]) -> None:
    with Run(planned(**misbehaving("corrupts"))) as run:
        run.start()
        wait_for(lambda: run.statistics()["tokens"][BAD]["refused_value"], "a head out of range")
        assert_the_others_go_on(run)
        for _ in range(50):  # while the head jumps about
            assert all(len(raw) <= shm.WINDOW_SLOTS * shm.WINDOW_WORDS * shm.WORD for raw in run.drain().values())
            time.sleep(0.005)
        shm.read_message(run.regions.status[BAD])  # whatever length it claims
        run.check()


@pytest.mark.parametrize(
    ("kind", "storage"),
    [
        ("fork", "tmpfs"),
        ("disk", "tmpfs"),
        ("disk", "ext4"),
        ("inodes", "tmpfs"),
        ("inodes", "ext4"),
        ("descriptors", "tmpfs"),
        ("connections", "tmpfs"),
    ],
)
def test_an_abuse_ends_at_its_own_limits_and_the_other_eight_go_on(
    kind: str, storage: str, planned: Callable[..., Plan]
) -> None:
    fields = {"workload": "hostile", "args": {"kind": kind, "after": AFTER}, "scheduling": "other", "enforce": "none"}
    with Run(planned(**fields, storage={"kind": storage, "size": "8M"})) as run:
        run.start()
        bad = next(d for d in run.plan.dimensions if d.name == BAD)
        wait_for(lambda: STOPPED[kind](run, bad), f"the limit of {kind}")
        assert_the_others_go_on(run)
        run.check()


@pytest.mark.parametrize("storage", ["tmpfs", "ext4"])
def test_who_takes_too_much_memory_is_killed_alone(storage: str, planned: Callable[..., Plan]) -> None:
    fields = {"workload": "hostile", "args": {"kind": "memory", "after": AFTER}, "enforce": "none", "memory": "48M"}
    with Run(planned(**fields, scheduling="other", storage={"kind": storage, "size": "32M"})) as run:
        run.start()
        pid = run.dimension_pids[BAD]
        bad = next(d for d in run.plan.dimensions if d.name == BAD)
        wait_for(lambda: STOPPED["memory"](run, bad), "the kernel's account of its end")
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of the dimension")
        with pytest.raises(RunError, match=f"{BAD} was killed by SIGKILL"):
            run.check()
        assert_the_others_go_on(run)
        alive = {name for name, pid in run.dimension_pids.items() if Path(f"/proc/{pid}").exists()}
    assert alive == {d.name for d in run.plan.dimensions} - {BAD}


def test_who_stops_with_a_token_in_hand_loses_it_and_the_others_go_on(planned: Callable[..., Plan]) -> None:
    with Run(planned(**misbehaving("stops"))) as run:
        run.start()
        wait_for(lambda: sieges.is_stopped(run.dimension_pids[BAD]), "its stop")
        before = run.statistics()["tokens"][BAD]
        wait_for(lambda: run.statistics()["tokens"][BAD]["expired"] > before["expired"], "its expiry")
        assert run.statistics()["tokens"][BAD]["expired_ns"] > before["expired_ns"]
        assert_the_others_go_on(run)
        run.check()


def test_a_daemon_that_ignores_all_signals_ends_with_the_run(planned: Callable[..., Plan]) -> None:
    with Run(planned(**misbehaving("daemonises"))) as run:
        run.start()
        daemon = wait_for(lambda: sieges.daemon_of(run, BAD), "the daemon")
        stat = Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[1]) == run.supervisor_pid, "an orphan by now"
        run.halt()
    assert not Path(f"/proc/{daemon}").exists()
