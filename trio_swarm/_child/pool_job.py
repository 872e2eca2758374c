"""One job: Python source run as a function body, which may stop to ask.

In scope are ``ctx`` (the request's JSON value), ``query(prompt, *, system=None,
max_tokens=1024) -> str`` and ``query_all([...]) -> list[str]``; ``return value`` gives
the result, which must be JSON.
"""

from __future__ import annotations

import ast
import builtins
import functools
import linecache
import math
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import CodeType
from typing import Any, Final, Self

import attrs

from trio_swarm._child.endings import end_copy
from trio_swarm._child.pool_deadline import Alarm, DeadlineExceeded
from trio_swarm._child.pool_failure import describe, one_line
from trio_swarm._child.pool_server import PoolServer, now_ms
from trio_swarm._state.pool_worker import Asked, Begin, Resume
from trio_swarm.frames import pool
from trio_swarm.limits import MAX_DEPTH

__all__ = ["JobRunner", "compile_job", "misfit"]

_FILE: Final = "<job>"
_NAME: Final = "job"
_SIGNATURE: Final = f"def {_NAME}(ctx, query, query_all):\n    pass\n"
_COMPILED: Final = 64


@functools.lru_cache(maxsize=_COMPILED)
def compile_job(code: str) -> CodeType:
    """A module that defines the job as a function; pool jobs repeat, so it is remembered.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: *code* is no function body.
    """
    module = ast.parse(_SIGNATURE, _FILE)
    function = module.body[0]
    assert isinstance(function, ast.FunctionDef)
    # ast.parse takes a top-level ``return``: only the compiler objects, and by then the
    # body stands inside a function.
    function.body = ast.parse(code, _FILE).body or [ast.Pass()]
    ast.fix_missing_locations(module)
    return compile(module, _FILE, "exec", dont_inherit=True)


@attrs.define(eq=False)
class JobRunner:
    """Runs job after job on the main thread, over one server."""

    server: PoolServer
    alarm: Alarm
    _lib_paths: tuple[str, ...] = attrs.field(default=(), init=False)
    _running: bool = attrs.field(default=False, init=False)

    def forever(self) -> None:
        """Serve until SystemExit."""
        while True:
            effect = self.server.next_effect()
            assert isinstance(effect, Begin), "nothing is paused between jobs"
            self.server.write(self._run(effect.run))

    def _run(self, run: pool.Run) -> bytes:
        machine, self._running = self.server.machine, True
        with _Failure(self, run.code) as failure:
            try:
                value = self._call(run)
            finally:
                self.alarm.disarm()
                self._running = False
        if failure.answer is not None:
            return failure.answer
        reply = machine.finish({"Completed": {"result": value}}, now_ms())
        try:
            return self.server.line_of(reply.response)
        except (TypeError, ValueError, RecursionError) as error:
            unfit = TypeError(f"the job's result is not JSON: {misfit(value) or error}")
            return self.failed(unfit, "", run.code)

    def _call(self, run: pool.Run) -> Any:
        self._extend_path(run.lib_paths)
        self.alarm.arm(run.deadline_ms)
        scope: dict[str, Any] = {"__name__": "__job__", "__builtins__": builtins}
        exec(compile_job(run.code), scope)
        value = scope[_NAME](run.ctx, self.query, self.query_all)
        if self.server.stopping:
            # The job caught the SystemExit that was to end it.
            self.server.stop()
        return value

    def failed(self, error: BaseException, type_name: str, code: str) -> bytes:
        # For the traceback: its lines come from the source that was sent.
        linecache.cache[_FILE] = (len(code), None, code.splitlines(keepends=True), _FILE)
        exception = describe(error, code_file=_FILE)
        if type_name:
            exception["type"] = type_name
        text = f"{type_name}: {error}" if type_name else one_line(error)
        reply = self.server.machine.finish({"Failed": {"error": text, "exception": exception}}, now_ms())
        return self.server.line_of(reply.response)

    def _extend_path(self, lib_paths: Sequence[str]) -> None:
        wanted = tuple(lib_paths)
        if wanted == self._lib_paths:
            return
        # The last job's paths make room: two jobs may mean different modules by one name.
        kept = [path for path in sys.path if path not in self._lib_paths and path not in wanted]
        sys.path[:] = [*wanted, *kept]
        self._lib_paths = wanted

    # -- what the job calls ------------------------------------------------------------

    def query(self, prompt: str, *, system: str | None = None, max_tokens: int = 1024) -> str:
        """Ask and wait for the answer. The job's deadline does not run meanwhile."""
        return self._ask([_asked(prompt, system, max_tokens)])[0]

    def query_all(self, queries: Iterable[str | Mapping[str, Any]]) -> list[str]:
        """Ask several at once; the answers come in the order of *queries*.

        Each is a prompt, or a mapping with ``prompt`` and maybe ``system``, ``max_tokens``.
        """
        asked = [_asked(one) if isinstance(one, str) else _asked(**one) for one in queries]
        return list(self._ask(asked)) if asked else []

    def _ask(self, asked: Sequence[Asked]) -> Sequence[str]:
        if not self._running or threading.current_thread() is not threading.main_thread():
            raise RuntimeError("query() is for the job's own thread, while the job runs")
        if self.server.is_copy:
            raise RuntimeError("query() is for the job's own process, not for one that it forked")
        if self.server.stopping:
            self.server.stop()
        self.alarm.disarm()
        self.server.answer(self.server.machine.pause(asked, now_ms()).response)
        effect = self.server.next_effect()
        assert isinstance(effect, Resume), "a paused worker begins nothing"
        self.alarm.arm(effect.deadline_ms)
        return effect.texts


@attrs.define(eq=False)
class _Failure:
    """Turns whatever leaves the block into the job's answer.

    Whatever: a job's KeyboardInterrupt, SystemExit or own BaseException is its error and not
    its worker's end. The error itself is not kept, nor what its traceback holds.
    """

    runner: JobRunner
    code: str
    answer: bytes | None = attrs.field(default=None, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if self.runner.server.is_copy:
            # Of the worker, made by a fork in the job: two must not answer one request.
            end_copy(error)
        if isinstance(error, DeadlineExceeded):
            self.answer = self.runner.failed(error, "DeadlineExceeded", self.code)
        elif error is not None and not self.runner.server.stopping:
            # While stopping it is ours, on its way through the job: the process ends.
            self.answer = self.runner.failed(error, "", self.code)
        return self.answer is not None


def _asked(prompt: str, system: str | None = None, max_tokens: int = 1024) -> Asked:
    """Checked here, where the job sees the error, and not where the frame is encoded."""
    for name, text in (("prompt", prompt), ("system", system or "")):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a str, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} cannot be written as UTF-8: {error.reason}") from None
    if type(max_tokens) is not int or not 0 <= max_tokens < 2**32:
        raise ValueError(f"max_tokens must be an int of 32 bits, not {max_tokens!r}")
    return Asked(prompt, system, max_tokens)


def misfit(value: Any, where: str = "result", depth: int = 0) -> str:
    """Names the first part of *value* that JSON has no place for; empty if there is none."""
    if depth > MAX_DEPTH:
        return f"it is nested deeper than {MAX_DEPTH}"
    match value:
        case None | bool() | int():
            return ""
        case float():
            return "" if math.isfinite(value) else f"{where} is {value}"
        case str():
            surrogate = any("\ud800" <= char <= "\udfff" for char in value)
            return f"{where} holds a lone surrogate" if surrogate else ""
        case list() | tuple():
            parts = (misfit(one, f"{where}[{index}]", depth + 1) for index, one in enumerate(value))
        case dict():
            for key in value:
                if not isinstance(key, str):
                    return f"{where} has a key of type {type(key).__name__}"
            parts = (misfit(one, f"{where}[{key!r}]", depth + 1) for key, one in value.items())
        case _:
            return f"{where} is of type {type(value).__name__}"
    return next(filter(None, parts), "")
