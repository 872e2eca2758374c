"""Name a function for the process that is to run it."""

from __future__ import annotations

import keyword
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Target", "name_target"]

Target: TypeAlias = str | Callable[..., Any]
"""``"package.module:function"``, or a function of a module's top level, also of the main script."""


def name_target(target: Target) -> str:
    """The text for `trio_swarm._child.target.load_target`.

    Raises:
        ValueError: it is not of the form ``package.module:function``, or a function that another
            process cannot find: a lambda, one within a function, one typed in interactively.
    """
    if not isinstance(target, str):
        module = getattr(target, "__module__", None)
        name = getattr(target, "__qualname__", None)
        if module is None or name is None or "<" in name:
            raise ValueError(
                f"{target!r} is not a function of a module's top level: no other process can find it"
            )
        target = f"{module}:{name}"
    module, colon, name = target.partition(":")
    parts = [*module.split("."), *name.split(".")]
    if not colon or not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise ValueError(f"a target is 'package.module:function', not {target!r}")
    return f"{_main()}:{name}" if module == "__main__" else target


def _main() -> str:
    """The main module's importable name, or else the path of its script."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name and spec.name != "__main__":
        return str(spec.name)
    path = getattr(main, "__file__", None)
    if path is None or not path.endswith(".py"):
        raise ValueError(
            "the main program is no script that another process can load: use a module's function"
        )
    return os.path.abspath(str(path))
