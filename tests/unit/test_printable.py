"""Text that somebody else wrote is shown by a terminal, and never obeyed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.printable import printable


@given(st.text(st.characters()))
def test_nothing_is_left_that_a_terminal_would_obey_and_what_shows_itself_stays(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(one) for one in shown if one not in "\n\t"} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert printable(shown) == shown
    if all(one.isprintable() or one in "\n\t" for one in text):
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é → …\n\tnext", "plain é → …\n\tnext"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_would_be_obeyed_is_a_visible_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
