"""Every key of a TOML file is found on the line where it stands."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg.document import Location, did_you_mean, dotted, locate, read, show
from vcg.errors import ConfigError

KEYS = st.text(st.sampled_from("ab-_1.# \"'é"), min_size=1, max_size=4)
SCALARS = st.one_of(
    st.integers(-(10**6), 10**6),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(st.sampled_from("ab#[]{}=,.\"'\n\\ é"), max_size=8),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def paths(value: Any, prefix: Location = ()) -> Iterator[Location]:
    """All locations inside a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*prefix, key)
        yield from paths(inner, (*prefix, key))


def written(value: Any, draw: st.DrawFn) -> str:
    """A value as TOML; lists may spread over lines and carry comments, strings take any of their forms."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {written(v, draw)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        gap = draw(st.sampled_from(["", " ", "\n", " # ], not the end\n"]))
        return "[" + "".join(f"{gap}{written(v, draw)}{gap}," for v in value) + gap + "]"
    if isinstance(value, str):
        forms = [json.dumps(value), '"""\n' + json.dumps(value)[1:-1] + '"""']
        if "'" not in value and "\n" not in value:
            forms += [f"'{value}'", f"'''{value}'''"]
        return draw(st.sampled_from(forms))
    return json.dumps(value)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Location, int]]:
    """A TOML text, and the line of each of its top-level keys, tables and their direct keys."""
    text = ""
    lines: dict[Location, int] = {}

    def line() -> int:
        return text.count("\n") + 1

    blank = st.sampled_from(["", "\n", "# [no] table = 1\n", "\n \t\n"])
    names = draw(st.lists(KEYS, unique=True, min_size=1, max_size=5))
    plain, tables = names[: len(names) // 2], names[len(names) // 2 :]
    for name in plain:
        text += draw(blank)
        lines[(name,)] = line()
        text += f"{json.dumps(name)} = {written(draw(VALUES), draw)}\n"
    for name in tables:
        repeated = draw(st.integers(0, 2))
        for position in range(repeated or 1):
            text += draw(blank)
            path: Location = (name, position) if repeated else (name,)
            lines.setdefault((name,), line())
            lines[path] = line()
            text += f"[[ {json.dumps(name)} ]]\n" if repeated else f"[{json.dumps(name)}] # comment\n"
            for key, value in draw(st.dictionaries(KEYS, VALUES, max_size=3)).items():
                text += draw(blank)
                lines[(*path, key)] = line()
                text += f" {json.dumps(key)}={written(value, draw)}  # comment = 1\n"
    return text, lines


@given(documents())
def test_lines_are_found_for_all_keys_of_any_document(document: tuple[str, dict[Location, int]]) -> None:
    text, expected = document
    found = locate(text)
    assert set(found) == set(paths(tomllib.loads(text)))
    assert {path: found[path] for path in expected} == expected


def test_dotted_keys_headers_and_inline_tables() -> None:
    text = """\
a.b.c = 1
[d.e]
f = {g = 1, "h.i" = [
  10, # first
  {j = 2},
]}
[[k]]
l = '''
not = a key'''
m = 1
[[k]]
[k.n]
o = 1979-05-27 07:32:00
"p" . q = \"""x"\"""\"
r = 1
"""
    found = locate(text)
    assert set(found) == set(paths(tomllib.loads(text)))
    assert found[("a", "b", "c")] == 1
    assert found[("d",)] == found[("d", "e")] == 2
    assert found[("d", "e", "f", "g")] == found[("d", "e", "f", "h.i")] == 3
    assert found[("d", "e", "f", "h.i", 0)] == 4
    assert found[("d", "e", "f", "h.i", 1, "j")] == 5
    assert found[("k",)] == found[("k", 0)] == 7
    assert found[("k", 0, "m")] == 10
    assert found[("k", 1)] == 11
    assert found[("k", 1, "n", "o")] == 13
    assert found[("k", 1, "n", "r")] == 15


def test_windows_line_ends_do_not_shift_lines(tmp_path: Path) -> None:
    path = tmp_path / "dos.toml"
    path.write_bytes(b'a = """x\r\ny"""\r\nb = 1\r\n')
    assert read(path).lines == {("a",): 1, ("b",): 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a = 1\nb c\n", ":2: TOML syntax: "),
        (b"a = 1\n\na = 2\n", ":3: TOML syntax: "),
        (b"a = [1,\n", ":2: TOML syntax: "),
        (b"a = '\xff'\n", ": file: expected text in UTF-8"),
    ],
)
def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, reason in [(tmp_path, "Is a directory"), (tmp_path / "none.toml", "No such file or directory")]:
        with pytest.raises(ConfigError, match=reason):
            read(path)


def test_values_and_locations_read_like_the_file() -> None:
    assert dotted(("dimensions", "d1", "cpus", 0)) == "dimensions.d1.cpus[0]"
    assert show("64Q") == '"64Q"'
    assert show(True) == "true"
    assert len(show("x" * 200)) == 60
    assert did_you_mean("harmonik", ("harmonic", "phase")) == 'did you mean "harmonic"?'
    assert did_you_mean("zzz", ("harmonic", "phase")) == "known are harmonic, phase"
