"""Requests to a running run: whatever is sent, it is understood or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcg import control
from vcg.errors import RunError
from vcg.quantities import AMPLITUDE_MAX, AMPLITUDE_MIN

NAMES = ["d1", "d2", "d10"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())


@given(st.binary(max_size=200))
def test_bytes_are_a_request_or_refused(raw: bytes) -> None:
    try:
        request = control.parse(raw)
    except ValueError:
        return
    assert isinstance(request["do"], str)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[1, 2]", "expected an object"),
        (b"{}", "expected an object"),
        (b'{"do": ["attach"]}', "expected an object"),
        (b"[" * control.REQUEST_BYTES, "nested too deeply"),
        (b" " * control.REQUEST_BYTES + b"1", "at most 16384 bytes"),
        (b'"\xc3\x28"', "decode"),
        (b'{"do": 1' + b"0" * 5000 + b"}", "digits"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        control.parse(raw)


@given(st.dictionaries(st.sampled_from([*NAMES, "d3", ""]), VALUES))
def test_amplitudes_are_in_range_and_of_dimensions_that_exist_or_refused(wanted: dict[str, Any]) -> None:
    try:
        amplitudes = control.amplitudes_of({"amplitudes": json.loads(json.dumps(wanted))}, NAMES)
    except RunError:
        return
    assert amplitudes == wanted
    assert set(amplitudes) <= set(NAMES)
    assert all(AMPLITUDE_MIN <= amplitude <= AMPLITUDE_MAX for amplitude in amplitudes.values())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (None, 'amplitudes: expected a number for each dimension, such as {"d4": 2.5}'),
        ({}, 'amplitudes: expected a number for each dimension, such as {"d4": 2.5}'),
        ([["d1", 2]], 'amplitudes: expected a number for each dimension, such as {"d4": 2.5}'),
        ({"d4": 2}, "d4: no dimension of this run: expected one of d1, d2, d10"),
        ({"d1": 0}, "d1: amplitude 0: expected a number above 0"),
        ({"d1": -1.5}, "d1: amplitude -1.5: expected a number above 0"),
        ({"d1": float("nan")}, "d1: amplitude NaN: expected a number above 0"),
        ({"d1": float("inf")}, "d1: amplitude Infinity: expected a number above 0"),
        ({"d1": True}, "d1: amplitude true: expected a number above 0"),
        ({"d1": "2"}, 'd1: amplitude "2": expected a number above 0'),
        ({"d1": 1, "d2": 1e-9}, "d2: amplitude 1e-09: expected a number from 0.000001 to 1000000"),
        ({"d1": 10**400}, f"d1: amplitude {10**400}: expected a number from 0.000001 to 1000000"),
    ],
)
def test_a_wrong_amplitude_is_refused_with_its_name_its_value_and_what_was_expected(wanted: Any, message: str) -> None:
    with pytest.raises(RunError) as refused:
        control.amplitudes_of({"do": "amplitude", "amplitudes": wanted}, NAMES)
    assert str(refused.value) == message


@given(st.dictionaries(st.sampled_from(["dimension", "number"]), VALUES))
def test_a_dimension_and_a_number_are_what_they_should_be_or_refused(fields: dict[str, Any]) -> None:
    request = json.loads(json.dumps({"do": "x", **fields}))
    for read in (
        lambda: control.dimension_of(request, NAMES) in NAMES,
        lambda: type(control.number_of(request)) is int,
    ):
        try:
            assert read()
        except RunError:
            continue


@pytest.mark.parametrize("name", [None, 1, True, [], {}, ["d1"], {"d1": 1}, "d3", "", "D1"])
def test_what_is_no_name_of_a_dimension_is_refused(name: Any) -> None:
    with pytest.raises(RunError, match=r"expected a name|no dimension of this run: expected one of d1, d2, d10"):
        control.dimension_of({"dimension": name}, NAMES)


@pytest.mark.parametrize("number", [None, True, 1.0, "1", [], {}, [1]])
def test_what_is_no_number_of_an_order_is_refused(number: Any) -> None:
    with pytest.raises(RunError, match="number: expected that of an order"):
        control.number_of({"number": number})


def further_down(levels: int, act: Callable[[], object]) -> object:
    """Call something with so many calls around it."""
    return act() if levels == 0 else further_down(levels - 1, act)


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a": ', "}")])
def test_however_deep_a_request_is_nested_it_is_refused_before_anybody_walks_through_it(begin: str, end: str) -> None:
    """Just below the depth at which the parser gives up, whoever quotes the value would."""
    deepest = 0
    for depth in range(1, 1200):
        value = begin * depth + "1" + end * depth
        raw = ('{"do": "amplitude", "amplitudes": {"d1": ' + value + "}}").encode()
        try:
            request = control.parse(raw)
        except ValueError as error:
            assert str(error) in ("nested too deeply", f"expected at most {control.REQUEST_BYTES} bytes")
            continue
        deepest = depth
        with pytest.raises(RunError, match="d1: amplitude"):
            further_down(5, partial(control.amplitudes_of, request, NAMES))
    assert deepest == control.NESTED - 2
