"""Run a job: a function that gets a swarm, under the signals and exit statuses of a command.

A job is ``async def job(swarm: Swarm, argv: list[str]) -> int | None``; its return value is the exit
status. Ctrl-C and SIGTERM end the swarm first and the process after it.
"""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import attrs
import trio

from trio_swarm.errors import Terminated
from trio_swarm.swarm import Swarm, SwarmReport, open_swarm

__all__ = ["STOP_SIGNALS", "JobError", "Run", "load_job", "run_in_swarm", "run_user_job"]

JobFunction = Callable[[Swarm, list[str]], Awaitable[int | None]]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""End the swarm, then the program, with the exit status that a shell would give: 128 and the number."""


class JobError(Exception):
    """The job cannot be run as asked; the text is for the user."""


@attrs.frozen
class Run:
    """What `run_in_swarm` came back with."""

    status: int | None
    """None where the job returned; else the exit status of the signal that stopped it."""
    report: SwarmReport
    """How each process ended."""


def load_job(target: str) -> JobFunction:
    """The async function that ``package.module:function`` names.

    Raises:
        JobError: it is not of that form, cannot be imported, or is not an async function of two arguments.
    """
    module_name, colon, function_name = target.partition(":")
    if not (colon and module_name and function_name):
        raise JobError(f"{target!r} is not of the form module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise JobError(f"cannot import {module_name!r}: {error}") from error
    function = getattr(module, function_name, None)
    if function is None:
        raise JobError(f"module {module_name!r} has no {function_name!r}")
    if not inspect.iscoroutinefunction(function):
        raise JobError(f"{target!r} is not an async function")
    try:
        inspect.signature(function).bind(None, [])
    except TypeError as error:
        raise JobError(f"{target!r} must take (swarm, argv): {error}") from error
    return cast(JobFunction, function)


async def run_in_swarm(name: str, job: Callable[[Swarm], Awaitable[None]]) -> Run:
    """Run ``job`` in a swarm of its own that Ctrl-C, SIGTERM and SIGHUP end in order.

    Raises whatever the job raises, after the swarm is gone.
    """
    swarm: Swarm | None = None
    status: int | None = None
    try:
        async with open_swarm(name, stop_signals=STOP_SIGNALS) as swarm:
            await job(swarm)
    except Terminated as stopped:
        status = 128 + stopped.signum
    except BaseExceptionGroup as group:
        # What a peer or a worker had to say while all was being ended is not news.
        stopped_by = group.subgroup(Terminated)
        if stopped_by is None:
            raise
        status = 128 + next(leaf.signum for leaf in _leaves(stopped_by))
    assert swarm is not None
    return Run(status, swarm.report())


def _leaves(group: BaseExceptionGroup[Terminated]) -> Iterator[Terminated]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def run_user_job(target: str, argv: list[str]) -> int:
    """Run ``module:function`` with the rest of the command line; returns the exit status.

    Raises:
        JobError: see `load_job`.
    """
    function = load_job(target)
    returned: list[int | None] = []

    async def job(swarm: Swarm) -> None:
        returned.append(await function(swarm, argv))

    run = trio.run(run_in_swarm, target, job)
    if run.status is not None:
        return run.status
    status = returned[0] if returned else None
    if status is None:
        return 0
    if not isinstance(status, int):
        raise JobError(f"{target!r} returned {status!r}, not an exit status")
    return int(status)
