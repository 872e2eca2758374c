"""The engines that an actor process can run (children contract, A4.2 and A5)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio

from trio_swarm._child.actor_run import ActorRun
from trio_swarm._child.endings import ends_copies
from trio_swarm._child.target import load_target
from trio_swarm.frames import record

__all__ = ["Engine", "Unsupported", "build_engine", "describe", "echo", "python_engine", "result_text"]

Engine: TypeAlias = Callable[[ActorRun], Awaitable[str]]

_SLEEP = re.compile(r"__sleep_ms:(\d{1,12})")


class Unsupported(Exception):
    """No engine for this executor in this program."""


def build_engine(executor: object) -> Engine:
    """The engine for a provision document's executor.

    Raises `Unsupported` for one that exists elsewhere (``bamboo_runtime``, ``cli_adapter``: the contract
    does not say how a command gets its assignment) and for a target that cannot be loaded.
    """
    match executor:
        case record.EchoExecutor():
            return echo
        case record.PythonExecutor(target=target):
            return python_engine(target)
        case _:
            tag = getattr(type(executor), "tag", type(executor).__name__)
            raise Unsupported(f"{tag} executor is not implemented")


async def echo(run: ActorRun) -> str:
    """The contract's conformance engine: say every word back, one token event each."""
    words, pause = _words(run.assignment)
    if pause is not None:
        await trio.sleep(pause / 1000)
    for word in words:
        await run.emit({"type": "token", "content": f"{word} "})
    await run.emit({"type": "complete"})
    return f"echo: {' '.join(words)}"


def _words(assignment: str) -> tuple[list[str], int | None]:
    words = assignment.split()
    for index, word in enumerate(words):
        if found := _SLEEP.fullmatch(word):
            return words[:index] + words[index + 1 :], int(found[1])
    return words, None


def python_engine(target: str) -> Engine:
    """The engine behind ``module:function``; see `ActorRun` for what the function is given.

    Raises `Unsupported` when it cannot be imported or is not callable.
    """
    try:
        found = load_target(target)
    except Exception as error:
        raise Unsupported(f"{target}: {describe(error)}") from error
    function: Callable[[ActorRun], Any] = found
    is_async = inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(
        getattr(found, "__call__", None)  # noqa: B004 - its kind is wanted, not whether it is there
    )

    async def engine(run: ActorRun) -> str:
        if is_async:
            with ends_copies():
                return result_text(await function(run))
        # Not abandoned on cancel: a run whose thread still works has not ended, and saying so
        # would be a lie. What does not end within the drain time takes the process with it.
        return result_text(await trio.to_thread.run_sync(_in_thread, function, run, abandon_on_cancel=False))

    return engine


def _in_thread(function: Callable[[ActorRun], Any], run: ActorRun) -> Any:
    """Call it; a copy that it forks and returns from ends here, as its thread has no loop to report to."""
    with ends_copies():
        return function(run)


def result_text(result: object) -> str:
    """An engine's result as the text that travels: strings as they are, None empty, else JSON."""
    if isinstance(result, str):
        return result
    return "" if result is None else json.dumps(result, ensure_ascii=False, allow_nan=False)


def describe(error: BaseException) -> str:
    """``Type: message``, on one line's worth of text."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
