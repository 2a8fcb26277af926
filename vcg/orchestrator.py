"""The orchestrator: the process that works the rounds (``vcg.rounds``), in which tokens are minted and settled.

Runs as ``python -m vcg.orchestrator``. Whoever goes on without credit is acted upon through a ``Turnkey``, so that no
round waits for a lock of the kernel's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcg import compiled, rtd, service, shm
from vcg.linux import clock
from vcg.plan import Plan
from vcg.shm import Phase
from vcg.warden import Turnkey, Warden

if TYPE_CHECKING:
    from vcg.rounds import Desk

_POLL_S = 0.001


def new_tokens(epoch: int) -> tuple[int, memoryview]:
    """A fresh tokens region: no token minted yet."""
    fd, tokens = shm.create("vcg-tokens", shm.TOKENS_BYTES)
    tokens[shm.TOKENS_HEADER.at("magic")] = shm.MAGIC
    tokens[shm.TOKENS_HEADER.at("epoch")] = epoch
    for slot in range(shm.MAX_DIMENSIONS * shm.TOKEN_SLOTS):
        at = shm.TOKENS_AT + slot * shm.TOKEN_WORDS
        tokens[at], tokens[at + 1], tokens[at + 2] = -1, epoch, slot // shm.TOKEN_SLOTS
    return fd, tokens


def _watch(desks: Sequence[Desk], plan: Plan, groups: dict[str, Any], turnkey: Turnkey) -> None:
    """Give every desk that is to be enforced its warden; a program behind the freezer gate is held by its gate."""
    for desk, d in zip(desks, plan.dimensions, strict=True):
        if d.enforce != "none" and d.gate == "cooperative":
            desk.watch_by(Warden(Path(groups[d.name]), d.policy, d.priority, turnkey))


def main(arguments: list[str]) -> None:
    """The process: offer the token region, wait for the dimensions and for RUN, govern, settle, wait for FINISH."""
    is_compiled = compiled.use()
    from vcg.rounds import Orchestrator  # only now: as machine code, if there is any

    plan, control, supervisor, more = service.begin("vcg:orch", arguments)
    epoch = control[shm.CONTROL.at("epoch")]
    ticks, *statuses = [shm.attach(fd) for fd in more]
    for fd in more:
        os.close(fd)
    fd, tokens = new_tokens(epoch)
    tokens[shm.TOKENS_HEADER.at("is_compiled")] = is_compiled
    orchestrator = Orchestrator(plan, epoch, control, ticks, tokens, statuses)
    turnkey = Turnkey(plan.orchestrator.cpus, plan.orchestrator.priority)
    rtd.settle_in(plan.orchestrator.cpus, plan.orchestrator.priority)
    service.send(supervisor, {"ready": "orchestrator"}, [fd])
    os.close(fd)
    message, _ = service.receive(supervisor)
    if message is None:
        return
    _watch(orchestrator.desks, plan, message["groups"], turnkey)

    phase = service.wait_for_other(control, Phase.HOLD)
    start_ns = control[shm.CONTROL.at("start_ns")]
    if phase == Phase.RUN:
        orchestrator.govern(ticks, start_ns)
        # What is counted is final as soon as everybody has come to the end of its last window.
        while not orchestrator.close(clock.now_ns(), start_ns) and control[shm.CONTROL.at("phase")] != Phase.FINISH:
            time.sleep(_POLL_S)
        phase = control[shm.CONTROL.at("phase")]
    while phase != Phase.FINISH:
        phase = service.wait_for_other(control, phase)
    for desk in orchestrator.desks:
        desk.let_go()
    turnkey.finish()
    orchestrator.close(clock.now_ns(), start_ns)


if __name__ == "__main__":
    main(sys.argv[1:])
