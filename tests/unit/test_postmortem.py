"""What is shown of snapshots: what a dimension wrote is shown and not obeyed, and damage is told."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vcg import postmortem, snapshot
from vcg.errors import RunError

EVIL = "\x1b[2J\x1b]0;owned\x07\r\u202eevil"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\r\u202eevil"
NAME = "20260102T030405.678901Z-d4-crash"


def papers(**fields: Any) -> dict[str, Any]:
    window = {"window": 7, "outcome": "done", "cause": "none", "planned_ns": 5, "entry_ns": 6, "used_ns": 1}
    return {
        "dimension": "d4",
        "why": "crash",
        "detail": "exited with 1",
        "utc": "2026-01-02T03:04:05+00:00",
        "monotonic_ns": 2_000_000_000,
        "run_start_ns": 1_000_000_000,
        "testbed": "mine",
        "epoch": 3,
        "generation": 1,
        "process": {"pid": 4711, "said": f"last words {EVIL}"},
        "at_rest": True,
        "frozen_for_ns": 1_000_000,
        "contents": {"file": "d4.tar.zst", "method": "tar", "omitted": 1, "omitted_first": [f"data/{EVIL}: a socket"]},
        "open": ["tar --zstd -tvf d4.tar.zst"],
        "windows": [{**window, "budget_ns": 2}],
        "ledger": {"account": {"used_ns": 1}},
        "kernel": {"lines": [{"text": f"comm {EVIL}"}]},
        **fields,
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with one snapshot."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / snapshot.PAPERS).write_text(json.dumps(papers(detail=f"because {EVIL}")))
    (folder / snapshot.LOG).write_text(f"first\nlogged {EVIL[:-5]}\nlast\n")
    return tmp_path


def shown(path: Path) -> str:
    file = StringIO()
    postmortem.show(path, Console(file=file, width=400, force_terminal=False), as_json=False)
    return file.getvalue()


def listing(place: Path) -> list[str]:
    file = StringIO()
    postmortem.show_all(place, Console(file=file, width=400, force_terminal=False), as_json=False)
    return file.getvalue().splitlines()


def test_what_the_dimension_wrote_is_shown_and_not_obeyed(place: Path) -> None:
    text = shown(place / NAME)
    for said in (f"because {SHOWN}", f"last words {SHOWN}", f"data/{SHOWN}: a socket", f"comm {SHOWN}"):
        assert said in text
    assert r"logged \x1b[2J\x1b]0;owned\x07" in text
    assert not [one for one in text if not one.isprintable() and one != "\n"]
    listed = listing(place)
    assert f"because {SHOWN}" in listed[1]
    assert not [one for line in listed for one in line if not one.isprintable()]


def test_every_column_of_the_list_has_a_heading(place: Path) -> None:
    assert listing(place)[0].split() == ["snapshot", "testbed", "why", "detail", "size"]


@pytest.mark.parametrize("field", [name for name in papers() if name != "dimension"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_papers_that_lack_something_are_told_to_be_damaged(place: Path, field: str, is_missing: bool) -> None:
    found = papers(**{field: None})
    if is_missing:
        del found[field]
    (place / NAME / snapshot.PAPERS).write_text(json.dumps(found))
    with pytest.raises(RunError, match=f"damaged: {field}: missing, or not as"):
        shown(place / NAME)
    assert f"damaged: {field}: missing" in " ".join(listing(place))
