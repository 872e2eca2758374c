"""Copies of JSON values."""

from __future__ import annotations

import math

import pytest

from trio_swarm._state.copies import compact, json_copy


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [None, True, 1, -0.5, "", "ü\ud800", [], {"a": [{"b": None}, "c"]}])
def test_a_copy_is_equal_and_of_the_same_types(value) -> None:
    copy = json_copy(value)
    assert (copy, type(copy)) == (value, type(value))


def test_nothing_of_it_is_shared() -> None:
    """At any depth; what is a list in JSON is one then, and keys are texts."""
    inner: list[object] = [1]
    copy = json_copy({"a": {"b": inner}, "c": (inner, 2), 3: 4})
    inner.append(5)
    assert copy == {"a": {"b": [1]}, "c": [[1], 2], "3": 4}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {1}, object(), {"a": b"b"}, {(1, 2): 3}, nested(100_000)]
)
@pytest.mark.parametrize("what", [compact, json_copy])
def test_what_is_no_json_is_a_value_error(what, value) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        what(value)
