"""The tools that a pod offers its engine, by name; each an async function of JSON arguments.

The file tools are here; the tools that reach other pods join the same table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from trio_swarm._child.pod_files import ScopedFiles
from trio_swarm.errors import SwarmError

__all__ = ["Tool", "ToolFailed", "failure", "file_tools", "text_argument"]

Tool: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[str]]


class ToolFailed(SwarmError):
    """A tool call failed; the text begins as the contract has it (B6)."""


def failure(error: Exception) -> ToolFailed:
    """A tool's exception as what the engine and the clients get to see."""
    if isinstance(error, ToolFailed):
        return error
    if isinstance(error, ValueError | PermissionError | FileNotFoundError):
        return ToolFailed(f"Invalid argument: {error}")
    return ToolFailed(f"Execution failed: {error or type(error).__name__}")


def text_argument(arguments: Mapping[str, Any], key: str, tool: str) -> str:
    """A required string among a tool's arguments. Raises `ToolFailed`."""
    value = arguments.get(key)
    if not isinstance(value, str):
        what = "missing" if value is None else f"a {type(value).__name__}, not text"
        raise ToolFailed(f"Invalid argument: invalid {tool} input: {key!r} is {what}")
    return value


def file_tools(files: ScopedFiles) -> dict[str, Tool]:
    """``Read`` (``path``) and ``Write`` (``path``, ``content``): UTF-8 text within the scope."""

    async def read(arguments: Mapping[str, Any]) -> str:
        return (await files.read_bytes(text_argument(arguments, "path", "Read"))).decode()

    async def write(arguments: Mapping[str, Any]) -> str:
        path = text_argument(arguments, "path", "Write")
        data = text_argument(arguments, "content", "Write").encode()
        await files.write_bytes(path, data)
        return f"wrote {len(data)} bytes to {path}"

    return {"Read": read, "Write": write}
