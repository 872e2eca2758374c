"""How much a value holds."""

from __future__ import annotations

import sys

from trio_swarm._state.weight import weight_of


def test_texts_weigh_what_they_hold() -> None:
    assert weight_of("x" * 10_000) == sys.getsizeof("x" * 10_000)
    assert weight_of("é" * 10_000, b"y" * 10_000) > 20_000
    assert weight_of("\U0001f600" * 10_000) > 40_000
    assert weight_of(None, 1, True) < 200


def test_what_is_inside_counts() -> None:
    text = "x" * 10_000
    assert weight_of({"a": [(text,)]}) > 10_000
    assert weight_of({text: 1}) > 10_000
    assert weight_of(list(range(10_000))) > 8 * 10_000 + 24 * 9_000
    assert weight_of({frozenset([text])}) > 10_000


def test_what_is_there_twice_counts_once_and_a_circle_ends() -> None:
    text = "x" * 10_000
    assert weight_of([text, text], text) < 11_000
    circle: list[object] = [text]
    circle.append(circle)
    assert weight_of(circle) < 11_000


def test_depth_is_no_matter() -> None:
    value: object = "x" * 10_000
    for _ in range(100_000):
        value = [value]
    assert weight_of(value) > 10_000
    while isinstance(value, list):  # Else Python takes it down by recursion.
        value = value[0]
