"""Telling our paths from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcg import audit


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/vcg", True),
        ("/vcg/d1", True),
        ("/vcg/d1 (deleted)", True),
        ("/vcgs/d1", False),
        ("/", False),
    ],
)
def test_a_path_is_ours_if_it_is_the_root_or_below_it(path: str, ours: bool) -> None:
    assert audit.is_under(path, Path("/vcg")) is ours
