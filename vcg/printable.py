"""What somebody else wrote, on our terminal: shown, not obeyed.

A dimension writes its log, its last words and the names of its files and processes as it likes. Raw, an ESC among them
would move the cursor, change the title, or answer in the place of whoever reads it.
"""

from __future__ import annotations

_KEPT = "\n\t"


def printable(text: str) -> str:
    """The text with a visible escape, such as ``\\x1b``, in the place of each character that does not show itself.

    These are the control characters but newline and tab, and those that change how others are shown (bidi overrides,
    joiners), surrogates, and separators other than a blank.
    """
    return "".join(
        character if character.isprintable() or character in _KEPT else character.encode("unicode_escape").decode()
        for character in text
    )
