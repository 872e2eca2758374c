"""The package's face: lazy names, one truth, light imports."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trio_swarm


def _declared() -> dict[str, str]:
    """What the type checker is told: name -> module."""
    tree = ast.parse(Path(trio_swarm.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_table_and_the_declarations_agree() -> None:
    """Each public name is declared for the type checker where it is loaded from, and the other way round."""
    assert _declared() == trio_swarm._WHERE
    assert sorted(trio_swarm._WHERE) == trio_swarm.__all__


@pytest.mark.parametrize("name", trio_swarm.__all__)
def test_each_name_is_there_and_documented(name) -> None:
    """Every public name can be loaded, is in dir(), and has a docstring."""
    value = getattr(trio_swarm, name)

    assert name in dir(trio_swarm)
    assert value.__doc__


def _public(module: str) -> list[tuple[str, Any]]:
    loaded = importlib.import_module(module)
    return [(f"{module}.{name}", getattr(loaded, name)) for name in loaded.__all__]


@pytest.mark.parametrize("room", ["operators", "workers", "children", "pods", "pools", "swarm"])
def test_what_a_room_offers_is_documented(room) -> None:
    """Each class and each of its public methods has a docstring; a function's names every parameter.

    But for one parameter alone, and ``host``: the swarm of which the room is a part.
    """
    undocumented, unnamed = [], []
    for name, value in _public(f"trio_swarm.{room}"):
        if inspect.isclass(value):
            own = {key: each for key, each in vars(value).items() if not key.startswith("_")}
            methods = [key for key, each in own.items() if callable(each) or isinstance(each, property)]
            undocumented += [f"{name}.{key}" for key in methods if not own[key].__doc__]
        elif inspect.isfunction(value):
            parameters = [each for each in inspect.signature(value).parameters if each != "host"]
            text = value.__doc__ or ""
            if len(parameters) > 1:
                unnamed += [f"{name}({each})" for each in parameters if not re.search(rf"\b{each}\b", text)]
        if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__:
            undocumented.append(name)

    assert undocumented == []
    assert unnamed == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="no_such_name"):
        trio_swarm.no_such_name  # noqa: B018


def test_importing_the_package_loads_no_trio() -> None:
    """A light child process does not pay for Trio by importing the package or the frames."""
    code = (
        "import sys, trio_swarm, trio_swarm.frames; print([m for m in ('trio', 'attr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_dispatch_says_what_it_takes() -> None:
    """For help() and for editors: each argument by its name, with what it is if it is left out."""
    signature = inspect.signature(trio_swarm.Swarm.dispatch)
    kinds = {each.kind for each in signature.parameters.values()}
    defaults = {name: each.default for name, each in signature.parameters.items()}

    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert [name for name, each in defaults.items() if each is inspect.Parameter.empty] == [
        "self",
        "agent",
        "prompt",
    ]
    assert (defaults["attempts"], defaults["approvers"], defaults["grace"]) == (1, (), 5.0)
    assert len(defaults) == 15


@pytest.mark.parametrize("room", ["operators", "workers", "swarm"])
def test_what_is_public_is_not_said_to_be_in_a_private_module(room) -> None:
    """No docstring of a public name leads a reader there."""
    led = []
    for name, value in [*_public("trio_swarm"), *_public(f"trio_swarm.{room}")]:
        members = vars(value).values() if inspect.isclass(value) else ()
        led += [name for each in (value, *members) if "trio_swarm._" in (inspect.getdoc(each) or "")]

    assert led == []


def test_what_needs_what_nobody_has_is_not_public() -> None:
    """A server is `Swarm.serve_operators`'s: a room's own takes the swarm's inside."""
    assert "serve_operators" not in importlib.import_module("trio_swarm.operators").__all__


@pytest.mark.parametrize(
    "name", ["Ask", "FrontLimits", "HookAfter", "HookBefore", "OperatorItem", "OperatorRequest", "Spawn"]
)
def test_what_operators_give_or_take_is_public(name) -> None:
    """Here and in its room, and the same."""
    assert getattr(trio_swarm, name) is getattr(importlib.import_module("trio_swarm.operators"), name)
