"""What it takes to start one process: its standard streams, its descriptors, its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final, Literal

import attrs
import trio

from trio_swarm._io.interpreter import is_python_argv, python_argv, python_env
from trio_swarm._io.procfs import MARK, ROOM

__all__ = ["Pipes", "Stdio", "can_branch", "inherited", "open_stdio", "order_to_plant", "order_to_start"]

Stdio = Literal["null", "pipe", "inherit"]

LIFELINE: Final = "TRIO_SWARM_LIFELINE"
"""Read by ``_child/lifeline.py``."""

WARDEN_MARK: Final = "TRIO_SWARM_WARDEN"
"""In the environment of wardens alone."""

_ROOM: Final = 512
_PADDING: Final = 512
"""What a branch of the stem can write over: its mark, and its command line."""

MAX_PASSED: Final = 250
"""Descriptors of one process; the kernel takes 253 beside one message."""


@attrs.frozen
class Pipes:
    """The descriptors for one start, from both sides."""

    theirs: tuple[int, ...]
    """To be sent, in the order of ``targets``."""
    targets: tuple[int, ...]
    """Their numbers in the child."""
    mine: Mapping[int, trio.lowlevel.FdStream]
    """Our end of standard stream 0, 1 or 2, where it is a pipe."""


def open_stdio(
    after: ExitStack, stdin: bytes | Stdio, stdout: Stdio, stderr: str, pass_fds: Sequence[int]
) -> Pipes:
    """Open the pipes; the child's ends are closed with ``after``, ours belong to the caller.

    Raises:
        OSError: too many open files, or one of ``pass_fds`` is not open.
        ValueError: a standard stream or a number twice in ``pass_fds``, or too many.
    """
    if len({*pass_fds, 0, 1, 2}) != len(pass_fds) + 3 or len(pass_fds) > MAX_PASSED:
        raise ValueError(f"pass_fds must be at most {MAX_PASSED} different numbers above 2: {pass_fds}")
    for fd in pass_fds:
        os.fstat(fd)
    theirs: dict[int, int] = {}
    raw: dict[int, int] = {}
    with ExitStack() as if_it_fails:
        for number, kind in enumerate((stdin, stdout, stderr)):
            if kind == "inherit":
                os.fstat(number)
                theirs[number] = number
            elif kind != "null":
                ends = os.pipe()
                child, ours = ends if number == 0 else ends[::-1]
                after.callback(os.close, child)
                if_it_fails.callback(os.close, ours)
                theirs[number], raw[number] = child, ours
        if_it_fails.pop_all()
    mine = {number: trio.lowlevel.FdStream(fd) for number, fd in raw.items()}
    return Pipes((*theirs.values(), *pass_fds), (*theirs, *pass_fds), mine)


def order_to_start(
    process_id: str,
    argv: Sequence[str],
    pass_fds: Sequence[int],
    env: Mapping[str, str] | None,
    cwd: str | None,
) -> dict[str, object]:
    """The order, but for its ``targets``. Texts travel as the bytes that the kernel will see.

    Raises:
        OSError: there is no current directory.
        ValueError: an empty ``argv``.
    """
    if not argv:
        raise ValueError("argv is empty")
    lifeline = next(number for number in range(3, 4 + len(pass_fds)) if number not in pass_fds)
    variables = {**os.environ, **(python_env() if is_python_argv(argv) else {}), **(env or {})}
    variables.pop(WARDEN_MARK, None)
    variables[MARK] = "/".join(filter(None, (os.environ.get(MARK), process_id)))
    variables[LIFELINE] = str(lifeline)
    return {
        "op": "start",
        "id": process_id,
        "argv": [_wire(each) for each in argv],
        "env": [_wire(each) for pair in variables.items() for each in pair],
        "cwd": _wire(os.getcwd() if cwd is None else os.path.abspath(cwd)),
        "lifeline": lifeline,
        "mark": _wire(variables[MARK]),
    }


def can_branch(argv: Sequence[str], stdin: bytes | Stdio, stdout: Stdio) -> bool:
    """Whether this process may be forked off the stem instead of being executed.

    Our own modules alone: what others import may start threads, or not stand a fork. The standard
    streams of an interpreter are set up for a terminal when it starts, so it must start on it.
    """
    ours = is_python_argv(argv) and len(argv) > 3 and argv[3].startswith("trio_swarm.")
    return sys.platform == "linux" and ours and "inherit" not in (stdin, stdout)


def inherited(order: Mapping[str, object]) -> dict[str, str]:
    """The environment of an order without what is each process's own: a stem has one for all."""
    flat = order["env"]
    assert isinstance(flat, list)
    env = dict(zip(flat[::2], flat[1::2], strict=True))
    return {name: value for name, value in env.items() if name not in (MARK, LIFELINE)}


def order_to_plant(environment: Mapping[str, str], stem_id: str) -> dict[str, object]:
    """The order for a stem with that environment (as `inherited` gives it)."""
    mark = "/".join(filter(None, (os.environ.get(MARK), stem_id)))
    variables = {**environment, MARK: _wire(mark), LIFELINE: "4", ROOM: "-" * _ROOM}
    argv = [*python_argv("trio_swarm._child.stem", "3"), "-" * _PADDING]
    return {
        "op": "stem",
        "id": stem_id,
        "argv": [_wire(each) for each in argv],
        "env": [each for pair in variables.items() for each in pair],
        "cwd": "/",
        "lifeline": 4,
        "targets": [3],
    }


def _wire(text: str) -> str:
    return os.fsencode(text).decode("latin-1")
