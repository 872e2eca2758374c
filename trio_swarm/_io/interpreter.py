"""How to run this interpreter again, such that it finds the same modules."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["is_python_argv", "python_argv", "python_env"]


def python_argv(module: str, *args: str) -> list[str]:
    """How to run ``module`` with this interpreter.

    The child's working directory is not put on its path (``-P``). `Warden.start` adds `python_env`
    to the environment of such a command, so that it finds the modules which are found here.
    """
    return [sys.executable, "-P", "-m", module, *args]


def is_python_argv(argv: Sequence[str]) -> bool:
    """Whether it is the work of `python_argv`; other commands' PYTHONPATH is not touched."""
    return list(argv[:3]) == python_argv("")[:3]


def python_env() -> dict[str, str]:
    """``PYTHONPATH`` such that a child finds the modules that this process finds.

    What the interpreter adds by itself is left out, for in ``PYTHONPATH`` it would come before
    the standard library. An entry with the separator in its name cannot be told and is left out too.
    """
    own = {os.path.realpath(each) for each in _added_by_itself()}
    package = str(Path(__file__).resolve().parent.parent.parent)
    wanted: dict[str, None] = {}
    for each in [*sys.path, package]:
        full = os.path.abspath(each)
        if os.path.realpath(full) not in own and os.pathsep not in full:
            wanted.setdefault(full)
    return {"PYTHONPATH": os.pathsep.join(wanted)} if wanted else {}


def _added_by_itself() -> list[str]:
    paths = sysconfig.get_paths()
    stdlib = [paths["stdlib"], paths["platstdlib"], os.path.join(paths["platstdlib"], "lib-dynload")]
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    archives = [os.path.join(os.path.dirname(each), archive) for each in stdlib[:2]]
    sites = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
    return [*stdlib, *archives, *sites, *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
