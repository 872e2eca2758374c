"""Naming a function here and loading it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from trio_swarm._child.target import load_target
from trio_swarm._io.target import name_target


def test_a_function_of_a_module_is_named_and_loaded() -> None:
    """A top-level function goes by its module and name, and comes back as itself."""
    assert name_target(json.dumps) == "json:dumps"
    assert load_target(name_target("json.decoder:JSONDecoder.decode")) is json.JSONDecoder.decode


@pytest.mark.parametrize(
    "target", ["", "json", "json:", ":dumps", "js on:dumps", "json:dumps;", "json:class"]
)
def test_what_is_no_target_is_refused(target) -> None:
    """The error names the target."""
    with pytest.raises(ValueError, match="target is"):
        name_target(target)


def test_a_function_that_nobody_else_can_find_is_refused() -> None:
    """Lambdas and inner functions have no place in another process."""
    with pytest.raises(ValueError, match="top level"):
        name_target(lambda ctx, query: None)


@pytest.mark.parametrize(
    ("target", "word"),
    [("json:nothing", "no 'nothing'"), ("json:__doc__", "not callable"), ("x", "of the form")],
)
def test_a_target_that_leads_nowhere_is_a_value_error(target, word) -> None:
    """The error says what is missing."""
    with pytest.raises(ValueError, match=word):
        load_target(target)


def test_a_function_of_the_main_script_is_named_by_its_path(tmp_path) -> None:
    """It can be loaded elsewhere, and the main part of the script is not run there."""
    script = tmp_path / "script.py"
    script.write_text(
        "from trio_swarm._io.target import name_target\n"
        "def job():\n    return 'did it'\n"
        "if __name__ == '__main__':\n    print(name_target(job), end='')\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    named = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, env=env
    ).stdout

    assert named == f"{script}:job"
    assert load_target(named)() == "did it"
