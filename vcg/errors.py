"""The exceptions that a user may meet, in one hierarchy.

The command line prints any :class:`VcgError` as its message alone, without a traceback: so the message has to name the
thing, its value, what was expected, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class VcgError(Exception):
    """Root of every error that is not a defect of the program itself."""


class HostError(VcgError):
    """The host cannot do what was asked of it."""


class RunError(VcgError):
    """A run could not be brought up, or did not stay up."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        file: as the user named it.
        line: counted from 1; None where the value came from an override, not from the file.
        field: dotted path of the field.
        value: what was found there, as text; empty if there is nothing to show.
        expected: a clause that starts with "expected".
    """

    file: str
    line: int | None
    field: str
    value: str
    expected: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        found = f"{self.value} - " if self.value else ""
        return f"{place}: {self.field}: {found}{self.expected}"


class ConfigError(VcgError):
    """A configuration is wrong; carries all of its problems, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
