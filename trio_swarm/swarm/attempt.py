"""One attempt of a dispatched step: leave, execution, the senior's word, the notice (contract 6.1).

What decides the step is the last Final of the attempt (contract 4.8): the worker's post, or else the
operator's own value. An operator that acknowledges before its worker has posted does not lose
the post, whatever its acknowledgement says: a worker that has its prompt is given a grace. Then the
attempt's credentials die, so that what comes later is refused instead of being lost without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias

import attrs
import trio

from trio_swarm._state.copies import compact, json_copy
from trio_swarm._state.layers import Call
from trio_swarm.errors import ApprovalDenied, PeerGoneError, Refused, RemoteError
from trio_swarm.limits import RENEWAL_MARGIN
from trio_swarm.operators import AnySeat, WorkerResult
from trio_swarm.operators.approvals import approve
from trio_swarm.operators.directive import render_directive
from trio_swarm.swarm.steps import Step, StepOrder
from trio_swarm.workers import Attempt, Task

__all__ = ["AttemptEnd", "AttemptRun", "dispatching", "text_of"]

Emit: TypeAlias = Callable[[str, Mapping[str, object]], None]

_NOT_OK: Final = "worker reported ok=false"
"""The reason of a question to the senior (contract 2.2)."""
_HALT_KEYS: Final = {"halted", "reason", "value"}
_SHOWN: Final = 2000
"""Characters of a value that a reason shows."""

_DISPATCHING: ContextVar[tuple[str, ...]] = ContextVar("trio_swarm_dispatching", default=())


def dispatching() -> tuple[str, ...]:
    """The tasks in whose attempts this context is, outermost first."""
    return _DISPATCHING.get()


@contextmanager
def _within(task_id: str) -> Iterator[None]:
    token = _DISPATCHING.set((*_DISPATCHING.get(), task_id))
    try:
        yield
    finally:
        _DISPATCHING.reset(token)


@attrs.frozen
class AttemptEnd:
    """What an attempt came to."""

    outcome: Literal["pass", "blocked", "failed", "rejected"]
    value: Any = attrs.field(default=None, repr=False)
    reason: str = ""
    """Why it is not a pass (contract 6.4)."""
    stats: Any = attrs.field(default=None, repr=False)
    error: Exception | None = None


@attrs.define(eq=False)
class AttemptRun:
    """See the module's text."""

    order: StepOrder
    task: Task
    attempt: Attempt
    emit: Emit
    base_url: str | None = None
    """Of the server for workers."""
    watched: bool = False
    """That server also tells what became of tasks."""
    _trouble: str = attrs.field(default="", init=False)
    """What went wrong in asking the senior."""

    async def run(self) -> AttemptEnd:
        """Make the attempt. Its credentials are dead afterwards, however this is left.

        Errors of others are an end of the attempt; a cancellation goes on, and each operator that
        was being asked is told so.
        """
        try:
            with _within(self.task.task_id):
                return await self._run()
        finally:
            self.attempt.end()

    async def _run(self) -> AttemptEnd:
        if self.order.plan.before:
            try:
                await self._before()
            except Exception as error:
                await trio.lowlevel.checkpoint_if_cancelled()  # It may be what was made of a cancellation.
                reason = f"dispatch failed: spawn rejected by middleware: {_said(error)}"
                return AttemptEnd("rejected", reason=reason, error=error)
            self._refresh()
        try:
            await self._take(await self._execute())
        except Exception as error:
            await trio.lowlevel.checkpoint_if_cancelled()
            reason = f"worker fn returned error: {self._worker_error(error)}"
            self._after(reason)
            return AttemptEnd("failed", reason=f"dispatch failed: {reason}", error=error)
        self.attempt.end()
        for call in self._later_calls():
            if call == "ask":
                await self._ask()
            else:
                self._after(self._final().value)
        final = self._final()
        if final.ok:
            return AttemptEnd("pass", final.value, stats=self.attempt.stats)
        reason = f"blocked: {_shown(final.value)}{self._trouble}"
        return AttemptEnd("blocked", final.value, reason, self.attempt.stats)

    def _later_calls(self) -> tuple[Call, ...]:
        calls = self.order.plan.calls
        return calls[calls.index("execute") + 1 :]

    # -- before ------------------------------------------------------------------------

    async def _before(self) -> None:
        """Leave to start; raises if it is not given, whatever the cause (contract 3.4)."""
        hook = self.order.hook
        about: dict[str, Any] = {
            "task_id": self.task.task_id,
            "agent": self.order.agent,
            "attempt": self.attempt.number,
        }
        if self.order.approval is not None:
            names = ", ".join(seat.name for seat in self.order.approvers)
            with self._waiting(f"hook_before of {names}"):
                await approve(self.order.approvers, self.order.approval, **about)
        elif hook is not None and "before_spawn" in hook.verbs:
            with self._waiting(f"hook_before of {hook.name}"):
                await hook.hook_before(**about)

    def _refresh(self) -> None:
        """Leave may have been long in coming: the worker is not to have what is about to die."""
        if self.attempt.good_for <= RENEWAL_MARGIN:
            with suppress(Refused):  # It has ended: that is seen soon enough.
                self.attempt.renew()

    # -- execute -----------------------------------------------------------------------

    async def _execute(self) -> WorkerResult:
        if self.order.backend is not None:
            with self._waiting(f"spawn of {self.order.backend.name}"):
                result = await self._spawn(self.order.backend)
        else:
            assert self.order.execute is not None  # The order was checked.
            with self._waiting("execute"):
                given = await self.order.execute(self._step())
            result = given if isinstance(given, WorkerResult) else WorkerResult(given)
        if result.stats:
            self._keep(result.stats)
        # It is served over HTTP: what is no JSON is the executor's error, and the executor keeps its own.
        return WorkerResult(json_copy(result.value), result.ok)

    def _keep(self, stats: Any) -> None:
        """What is no JSON could not be served: dropped, and no failure (contract 2.8)."""
        try:
            kept = json_copy(stats)
        except ValueError as error:
            about = {"task_id": self.task.task_id, "attempt": self.attempt.number}
            self.emit("stats_dropped", {**about, "error": str(error)})
        else:
            self.attempt.keep_stats(kept)

    async def _spawn(self, backend: AnySeat) -> WorkerResult:
        worker = self.order.worker
        directive = render_directive(
            agent=self.order.agent,
            task_id=self.task.task_id,
            base_url=self.base_url,
            variant=worker.variant if worker is not None else None,
            data_endpoint=self.base_url,
            run_id=self.task.task_id if self.watched else None,
            context=self.order.context,
        )
        return await backend.spawn(
            task_id=self.task.task_id,
            agent=self.order.agent,
            attempt=self.attempt.number,
            directive=directive,
            capability_token=self.attempt.capability_token,
            worker_handle=self.attempt.worker_handle,
            worker=worker,
            credential=self.attempt,
        )

    def _step(self) -> Step:
        return Step(
            task_id=self.task.task_id,
            agent=self.order.agent,
            attempt=self.attempt.number,
            prompt=self.order.prompt,
            system=self.order.system,
            metadata=json_copy(self.order.metadata),
            base_url=self.base_url,
            capability_token=self.attempt.capability_token,
            worker_handle=self.attempt.worker_handle,
        )

    async def _take(self, result: WorkerResult) -> None:
        """See that there is a Final: the worker's, or else the executor's own value (contract 4.8).

        A worker that has fetched its prompt and not yet posted has ``grace`` seconds to do so, also
        when there is a value already: the posted one outranks it. A halt is waited for by nobody.
        """
        if self.attempt.final is None and self.attempt.fetched and not _is_halt(result.value):
            with self._waiting("the worker's result"), trio.move_on_after(self.order.grace):
                await self.attempt.wait_final()
        if self.attempt.final is None:
            self.attempt.append_final(result.value, result.ok, by="executor")

    # -- ask and after -----------------------------------------------------------------

    async def _ask(self) -> None:
        """Put a result that is not ok to the senior; an answer makes it a pass (contract 6.3)."""
        final, senior = self._final(), self.order.senior
        if final.ok or senior is None or "ask" not in senior.verbs:
            return
        about = {"task_id": self.task.task_id, "attempt": self.attempt.number, "senior": senior.name}
        try:
            with self._waiting(f"ask of {senior.name}"):
                question = {"reason": _NOT_OK, "value": json_copy(final.value)}
                answer = json_copy(await senior.ask(question, task_id=self.task.task_id))
        except Exception as error:
            await trio.lowlevel.checkpoint_if_cancelled()
            # The step stays blocked; unlike in the original it is seen that nobody decided.
            self._trouble = f"; senior escalation failed: {_said(error)}"
            self.emit("senior_failed", {**about, "error": _said(error)})
        else:
            self.attempt.append_final({"original": final.value, "senior_answer": answer}, True, by="senior")
            self.emit("senior_answered", about)

    def _after(self, result: Any) -> None:
        """Tell how it ended; never waits and never fails the step (contract 2.4)."""
        hook = self.order.hook
        if "after" not in self.order.plan.calls or hook is None or "after_spawn" not in hook.verbs:
            return
        task_id, number = self.task.task_id, self.attempt.number
        try:
            hook.hook_after(task_id=task_id, agent=self.order.agent, attempt=number, result=result)
        except Exception as error:
            self.emit("notice_failed", {"sid": hook.sid, "task_id": task_id, "error": _said(error)})

    # -- helpers -----------------------------------------------------------------------

    def _worker_error(self, error: Exception) -> str:
        """An operator's own text verbatim; that its session ended in the contract's words (3.4)."""
        if isinstance(error, RemoteError):
            return _sendable(error.message)
        if isinstance(error, PeerGoneError) and self.order.backend is not None:
            return f"ws operator spawn: {text_of(error)}"
        return f"{type(error).__name__}: {text_of(error)}"

    def _final(self) -> Any:
        final = self.attempt.final
        assert final is not None
        return final

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        self.task.waiting_for = what
        about = {"task_id": self.task.task_id, "attempt": self.attempt.number}
        self.emit("step_waits", {**about, "for": what})
        try:
            yield
        finally:
            self.task.waiting_for = None


def _is_halt(value: Any) -> bool:
    """The marker of a step that was stopped on purpose (2.9): no worker goes on with it."""
    return isinstance(value, dict) and value.get("halted") is True and value.keys() == _HALT_KEYS


def _said(error: Exception) -> str:
    return _sendable(error.reason) if isinstance(error, ApprovalDenied) else text_of(error)


def text_of(error: BaseException) -> str:
    """What it says, or else its type: an executor's exceptions may be of any kind."""
    try:
        text = str(error)
    except Exception:  # One whose __str__ raises is still an outcome, not a fault of ours.
        text = ""
    return _sendable(text) or type(error).__name__


def _sendable(text: str) -> str:
    """A notice tells reasons too, and a lone surrogate cannot be in a frame."""
    return text.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    text = compact(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
