"""A TOML file that remembers on which line each of its keys stands, so that every complaint can name it.

``tomllib`` parses the file but forgets the lines. :func:`locate` walks the same text once more for the lines alone; it
assumes that ``tomllib`` has accepted the text, so it needs to know where tokens end, not whether they are right.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from vcg.errors import ConfigError, Problem

Location = tuple[str | int, ...]
"""Keys and list positions from the top of a document to a value."""

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


def locate(text: str) -> dict[Location, int]:
    """The line (from 1) of each key and list element of a valid TOML text; of a table, where it is first named."""
    lines: dict[Location, int] = {}
    ends = [at for at, character in enumerate(text) if character == "\n"]
    array_tables: dict[Location, int] = {}

    def record(path: Location, at: int) -> None:
        line = bisect_right(ends, at - 1) + 1
        for depth in range(1, len(path) + 1):
            lines.setdefault(path[:depth], line)

    def read_key(at: int) -> tuple[tuple[str, ...], int]:
        keys: list[str] = []
        while True:
            at = _end(_SPACE, text, at)
            if text[at] in "\"'":
                end = _end(_STRING, text, at)
                keys.append(tomllib.loads(f"key = {text[at:end]}")["key"])
            else:
                end = _end(_BARE_KEY, text, at)
                keys.append(text[at:end])
            at = _end(_SPACE, text, end)
            if text[at] != ".":
                return tuple(keys), at
            at += 1

    def read_assignment(prefix: Location, at: int) -> int:
        keys, equals = read_key(at)
        record((*prefix, *keys), at)
        return read_value((*prefix, *keys), equals + 1)

    def read_value(path: Location, at: int) -> int:
        at = _end(_SPACE, text, at)
        if text[at] == "[":
            at, position = _end(_BLANK, text, at + 1), 0
            while text[at] != "]":
                record((*path, position), at)
                at = _end(_BLANK, text, read_value((*path, position), at))
                position += 1
            return at + 1
        if text[at] == "{":
            at = _end(_BLANK, text, at + 1)
            while text[at] != "}":
                at = _end(_BLANK, text, read_assignment(path, at))
            return at + 1
        return _end(_STRING if text[at] in "\"'" else _SCALAR, text, at)

    def read_header(at: int) -> tuple[Location, int]:
        brackets = 2 if text.startswith("[[", at) else 1
        keys, end = read_key(at + brackets)
        path: Location = ()
        for depth, key in enumerate(keys, start=1):
            path = (*path, key)
            if brackets == 2 and depth == len(keys):
                array_tables[path] = array_tables.get(path, -1) + 1
            if path in array_tables:
                path = (*path, array_tables[path])
        record(path, at)
        return path, end + brackets

    prefix: Location = ()
    at = _end(_BLANK, text, 0)
    while at < len(text):
        if text[at] == "[":
            prefix, at = read_header(at)
        else:
            at = read_assignment(prefix, at)
        at = _end(_BLANK, text, at)
    return lines


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    assert match is not None, f"not valid TOML at character {at}"
    return match.end()


@dataclass(frozen=True)
class Document:
    """A parsed TOML file, or data from elsewhere, which has no lines.

    Attributes:
        file: its name in messages.
        data: numbers with a decimal point are Decimals: exactly what was written.
        lines: line of each key and list element; None without a file.
    """

    file: str
    data: dict[str, Any]
    lines: Mapping[Location, int] | None

    def problem(self, location: Location, value: str, expected: str) -> Problem:
        """A problem at a location; where that itself is not in the file, at the nearest table around it."""
        line = None
        if self.lines is not None:
            around = (location[:depth] for depth in range(len(location), 0, -1))
            line = next((self.lines[place] for place in around if place in self.lines), 1)
        return Problem(self.file, line, dotted(location), value, expected)


def read(path: Path, shown_as: str | None = None) -> Document:
    """Parse a TOML file.

    Args:
        path: the file.
        shown_as: its name in messages, by default the path.

    Raises:
        ConfigError: it cannot be read or is not TOML; with the line of the syntax error.
    """
    file = shown_as or str(path)
    try:
        text = path.read_bytes().decode()
        data = tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        raise ConfigError([Problem(file, None, "file", "", f"{error.strerror}; expected a TOML file")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(file, None, "file", "", "expected text in UTF-8")]) from error
    except tomllib.TOMLDecodeError as error:
        # Before Python 3.14 the position is in the message only.
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        raise ConfigError([Problem(file, line, "TOML syntax", "", str(error))]) from error
    # The positions that locate() counts are those of the text that tomllib sees, with CRLF taken as one line end.
    return Document(file, data, locate(text.replace("\r\n", "\n")))


def dotted(location: Location) -> str:
    """``("dimensions", "d1", "cpus", 0)`` as ``dimensions.d1.cpus[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def show(value: Any) -> str:
    """A value as a message shows it: like TOML, and not longer than a line bears."""
    text = str(value) if isinstance(value, Decimal) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(found: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """A clause that offers the nearest known name, or else all of them."""
    near = get_close_matches(found, list(known), n=1)
    return f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"


_EXPECTED = {
    "bool_type": "expected true or false",
    "dict_type": "expected a table",
    "int_type": "expected a whole number",
    "model_type": "expected a table",
    "string_type": "expected text in quotes",
    "tuple_type": "expected a list",
}


def problems(
    error: ValidationError, model: type[BaseModel], describe: Callable[[Location, str, str], Problem]
) -> Iterator[Problem]:
    """What pydantic found wrong, in the terms of the file.

    Args:
        error: from validating ``model``.
        model: it tells which fields there are, for the did-you-mean, and what a missing one is for.
        describe: makes the problem from location, value and expectation: :meth:`Document.problem` or a wrapper.
    """
    schema = model.model_json_schema(by_alias=True)
    for item in error.errors(include_url=False):
        location = tuple(part for part in item["loc"] if part != "[key]")
        if item["type"] == "extra_forbidden":
            known = _schema_at(schema, location[:-1]).get("properties", {})
            expected = f"unknown field; {did_you_mean(str(location[-1]), known)}"
            yield describe(location, show(item["input"]), expected)
        elif item["type"] == "missing":
            wanted = _schema_at(schema, location).get("description", "a value")
            yield describe(location, "missing", f"expected {wanted}")
        elif item["type"] == "value_error":
            yield describe(location, show(item["input"]), str(item["ctx"]["error"]))
        else:
            bound = "a number " if item["type"].startswith(("greater", "less")) else ""
            expected = item["msg"].replace("Input should be ", f"expected {bound}")
            yield describe(location, show(item["input"]), _EXPECTED.get(item["type"], expected))


def _schema_at(schema: dict[str, Any], location: Location) -> dict[str, Any]:
    """The part of a JSON schema that describes one location; empty where it says nothing."""
    node = schema
    for part in location:
        node = _resolved(schema, node)
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
    return _resolved(schema, node)


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    target = node.get("$ref")
    definition: dict[str, Any] = schema["$defs"][target.rsplit("/", 1)[1]] if target else {}
    return {**definition, **node}
