"""The package's face: lazy names, one truth, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

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
