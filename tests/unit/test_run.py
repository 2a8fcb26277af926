"""What the client makes of what the supervisor tells it."""

from __future__ import annotations

from typing import Any

from vcg import config, plan
from vcg.plan import HostShape
from vcg.run import Run

PLAN = plan.make(config.load("default"), HostShape((0, 1), {0: 0, 1: 0}))


def died(who: str, generation: int) -> dict[str, Any]:
    news = {"event": "died", "who": who, "generation": generation, "how": "exited with 1", "message": ""}
    return {**news, "then": "restart", "at_ns": generation}


def restarted(who: str, generation: int) -> dict[str, Any]:
    return {"event": "restarted", "who": who, "generation": generation, "pid": generation, "at_ns": 100 + generation}


def test_each_restart_is_told_with_its_own_generation_although_earlier_news_were_lost() -> None:
    run = Run(PLAN)
    for message in (restarted("d1", 5), died("d1", 5), died("d2", 1), restarted("d1", 6), died("d1", 6)):
        run._take(message)
    told = [(one["name"], one["generation"], one["died_ns"], one["up_ns"]) for one in run.restarts]
    assert told == [("d1", 6, 5, 106), ("d2", 2, 1, None), ("d1", 7, 6, None)]
    assert run.dimension_pids == {"d1": 6}
