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
