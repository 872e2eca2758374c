"""Load the function that a target names, in the process that is to run it. Standard library only.

A target is ``package.module:function``, or ``/path/to/script.py:function`` for what a program's main
script defines: that script is then run here under another name than ``__main__``, as
multiprocessing does, so that the part below ``if __name__ == "__main__"`` is left alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

__all__ = ["MAIN_NAME", "load_target"]

MAIN_NAME = "__trio_swarm_main__"
"""What a main script's module is called in a child process."""


def load_target(target: str) -> Any:
    """What *target* names.

    Raises:
        ValueError: it is not of that form, there is no such thing, or it is not callable.
        Exception: whatever importing the module raised.
    """
    module_name, colon, path = target.rpartition(":")
    if not (colon and module_name and path):
        raise ValueError(f"{target!r} is not of the form module:function")
    found: Any = _script(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"{target!r}: there is no {part!r}") from None
    if not callable(found):
        raise ValueError(f"{target!r} is not callable")
    return found


@functools.cache
def _script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MAIN_NAME, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is not a Python script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MAIN_NAME] = module
    spec.loader.exec_module(module)
    return module
