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
from trio_swarm.swarm import Swarm, SwarmReport, check_place, open_swarm

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
    """The exit status of the signal that stopped it; None where none did."""
    report: SwarmReport
    """How each process ended, and who is still there."""
    error: Exception | None
    """What the job, or something that it started, raised."""


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
    except Exception as error:
        raise JobError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    function: object = module
    for part in function_name.split("."):
        function = getattr(function, part, None)
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

    What the job raises is in the result, for the swarm's report is wanted then as well.
    Raises only what kept the swarm from being opened.
    """
    swarm: Swarm | None = None
    status: int | None = None
    raised: Exception | None = None
    try:
        # What was ignored when we were started (nohup, a job in the background) stays ignored.
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        async with open_swarm(name, stop_signals=heeded) as swarm:
            await job(swarm)
    except Terminated as stopped:
        status = 128 + stopped.signum
    except ExceptionGroup as group:
        # What a peer or a worker had to say while all was being ended is not news.
        stopped_by = group.subgroup(Terminated)
        status = None if stopped_by is None else 128 + next(_leaves(stopped_by)).signum
        raised = group if stopped_by is None else None
    except Exception as error:
        raised = error
    if swarm is None:
        if raised is not None:
            raise raised
        # The signal came while it was being opened.
        return Run(status, SwarmReport(name, 0.0, (), ()), None)
    return Run(status, swarm.report(), raised)


def _leaves(group: ExceptionGroup[Terminated]) -> Iterator[Terminated]:
    for each in group.exceptions:
        if isinstance(each, ExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def run_user_job(target: str, argv: list[str]) -> int:
    """Run ``module:function`` with the rest of the command line; returns the exit status.

    Raises:
        JobError: see `load_job`; or there is no directory for the swarm's sockets.
    """
    function = load_job(target)
    try:
        check_place()
    except OSError as error:
        raise JobError(f"no directory for the swarm: {error.strerror}") from error
    returned: list[int | None] = []

    async def job(swarm: Swarm) -> None:
        returned.append(await function(swarm, argv))

    run = trio.run(run_in_swarm, target, job)
    if run.status is not None:
        return run.status
    if run.error is not None:
        raise run.error
    status = returned[0] if returned else None
    if status is None:
        return 0
    if type(status) is not int or not 0 <= status <= 255:
        raise JobError(f"{target!r} returned {status!r}, not an exit status (0 to 255)")
    return status
