"""The dispatcher: attempts of a step, one after the other, until the policy has had enough.

A task is settled in every way out: pass, blocked, failed, rejected, cancelled by its own `cancel`,
cancelled with its caller, or an error of ours. Whoever waits for it is woken, and its
worker's credentials are dead. The original leaves a task running for ever when a spawn is
rejected (operators contract 6.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from trio_swarm._io.deadline import ended_by_deadline
from trio_swarm._state.copies import json_copy
from trio_swarm._state.layers import DEFAULT_LAYERS, LayerPlan, plan_layers
from trio_swarm.errors import StepCancelled, StepFailed, SwarmError
from trio_swarm.frames.operator import Worker
from trio_swarm.limits import CLOSE_DEADLINE, RESULT_GRACE
from trio_swarm.operators import AnySeat, WorkerResult
from trio_swarm.operators.approvals import ApprovalPolicy
from trio_swarm.operators.directive import DirectiveContext, check_line
from trio_swarm.swarm.attempt import AttemptEnd, AttemptRun, dispatching, text_of
from trio_swarm.swarm.steps import Execute, Kind, OperatorBinding, RetryPolicy, StepOrder
from trio_swarm.swarm.terms import Terms, check_text, json_text, told_metadata
from trio_swarm.workers import Outcome, Task, TaskBoard

__all__ = ["Desk", "Dispatcher", "NobodyExecutes"]

Emit: TypeAlias = Callable[[str, Mapping[str, object]], None]


class NobodyExecutes(ValueError):
    """There is neither an operator for the execution nor a callable."""

    def __init__(self, remedy: str) -> None:
        super().__init__(f"nobody can execute the step: {remedy}")


class Desk(Protocol):
    """What a dispatcher needs to know of its swarm."""

    def find_seat(self, name: str) -> AnySeat | None:
        """The operator with that sid, role or attached name."""

    def observe(self, order: StepOrder, task: Task) -> None:
        """The order's operators are addressed by that task."""

    @property
    def worker_url(self) -> str | None:
        """Where workers fetch and post, if anywhere."""

    @property
    def watched(self) -> bool:
        """Whether tasks can be watched there."""


@attrs.define(eq=False)
class Dispatcher:
    """All dispatches of one swarm; it starts no task of its own."""

    board: TaskBoard
    _desk: Desk = attrs.field(repr=False)
    _emit: Emit = attrs.field(repr=False)
    _running: dict[str, Task] = attrs.field(factory=dict, repr=False)
    _quiet: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _closed: str | None = None

    @property
    def running(self) -> int:
        """Steps at work now."""
        return len(self._running)

    # -- orders ------------------------------------------------------------------------

    def order(
        self,
        agent: str,
        prompt: Any,
        *,
        system: str | None = None,
        operator: AnySeat | str | OperatorBinding | None = None,
        layers: Sequence[str] | None = None,
        attempts: int = 1,
        retry: RetryPolicy | None = None,
        approval: ApprovalPolicy | None = None,
        approvers: Sequence[AnySeat | str] = (),
        execute: Execute | None = None,
        grace: float = RESULT_GRACE,
        metadata: Mapping[str, Any] | None = None,
        worker: Worker | None = None,
        context: DirectiveContext | None = None,
        default_kind: Kind | None = None,
    ) -> StepOrder:
        """Check everything about a dispatch before anything is done. Raises ``ValueError``.

        The arguments are those of `Swarm.dispatch`; ``default_kind`` is the widest tier of kinds.
        """
        check_line("agent", agent)
        if system is not None:
            check_text("system", system)
        Terms(
            attempts=attempts,
            retry=retry,
            approval=approval,
            approvers=approvers,
            execute=execute,
            grace=grace,
            worker=worker,
            context=context,
        )
        plan = plan_layers(layers if layers is not None else _default_layers(execute))
        if operator is None:
            binding = OperatorBinding()
        else:
            binding = operator if isinstance(operator, OperatorBinding) else self._whole(operator)
        seats = self._seats(binding, agent, plan, default_kind)
        _check_executor(plan, seats[2], execute)
        known = told_metadata(metadata)
        about = context if context is not None else DirectiveContext()
        if about.task_metadata is None and known:
            about = attrs.evolve(about, task_metadata=known)
        gate, gatekeepers = self._gate(plan, seats[0], approval, approvers)
        return StepOrder(
            agent=agent,
            prompt=check_text("prompt", prompt if isinstance(prompt, str) else json_text("prompt", prompt)),
            system=system,
            plan=plan,
            hook=seats[0],
            senior=seats[1],
            backend=seats[2],
            execute=execute,
            approval=gate,
            approvers=gatekeepers,
            attempts=attempts,
            retry=retry if retry is not None else RetryPolicy(),
            grace=grace,
            metadata=known,
            worker=worker,
            context=about,
        )

    def _seats(
        self, binding: OperatorBinding, agent: str, plan: LayerPlan, default_kind: Kind | None
    ) -> tuple[AnySeat | None, AnySeat | None, AnySeat | None]:
        """Hook, senior and backend, as far as kind and layers give them a part."""
        hooked = plan.before and binding.kind_of(agent, default_kind) != "automate"
        hook = self._seat("operator.hook", binding.hook)
        senior = self._seat("operator.senior", binding.senior)
        backend = self._seat("operator.backend", binding.backend)
        if backend is not None and not (plan.delegated and "execute" in backend.verbs):
            backend = None
        return (hook if hooked else None), (senior if plan.ask else None), backend

    def _whole(self, operator: AnySeat | str) -> OperatorBinding:
        """One for all parts, looked up once: what is wrong with it is wrong with no single part."""
        seat = self._seat("operator", operator)
        assert seat is not None
        return OperatorBinding.whole(seat)

    def _seat(self, key: str, named: AnySeat | str | None) -> AnySeat | None:
        if named is None or isinstance(named, AnySeat):
            return named
        if not isinstance(named, str):
            raise ValueError(f"{key}: expected a seat or its name, not a {type(named).__name__}")
        return self.require_seat(key, named)

    def _gate(
        self,
        plan: LayerPlan,
        hook: AnySeat | None,
        approval: ApprovalPolicy | None,
        approvers: Sequence[AnySeat | str],
    ) -> tuple[ApprovalPolicy | None, tuple[AnySeat, ...]]:
        """The policy, and whom it is put to; without a policy the hook alone is asked."""
        if approval is None:
            if approvers:
                raise ValueError("approvers: they need an approval policy that says how many must agree")
            return None, ()
        if not plan.before:
            raise ValueError("approval: nobody would be asked, because the layer main_ai is not there")
        named = [self._seat("approvers", each) for each in approvers] or [hook]
        seats = tuple(seat for seat in named if seat is not None)
        if not seats:
            raise ValueError("approval: there is nobody to ask; name approvers or an operator")
        for seat in seats:
            if "before_spawn" not in seat.verbs:
                raise ValueError(f"approvers: {seat.name} gates nothing: it has no before_spawn")
        if len({id(seat) for seat in seats}) < len(seats):
            raise ValueError("approvers: an operator is there twice")
        if approval.need(len(seats)) > len(seats):
            raise ValueError(f"approval: {approval.rule} of {len(seats)} approvers can never agree")
        return approval, seats

    # -- running -----------------------------------------------------------------------

    def require_seat(self, key: str, name: str) -> AnySeat:
        """The operator of that name; else ``ValueError``, which names ``key``."""
        seat = self._desk.find_seat(name)
        if seat is None:
            raise ValueError(f"{key}: no such registered operator session '{name}'")
        return seat

    def create(self, order: StepOrder, *, parent: str | None = None) -> Task:
        """The task of an order, below ``parent``, or else the task in whose attempt this is called.

        Whose task has ended meanwhile is below it no more, but below the next that still runs. So it
        is with a ``parent`` that has ended: the new task names it, and is as deep as what runs.

        Raises `Refused` too deep below others, `BusyError` when there are too many, and
        ``trio.ClosedResourceError`` when the swarm is ending.
        """
        if self._closed is not None:
            raise trio.ClosedResourceError(self._closed)
        known = map(self.board.find, dispatching())
        above = [task.task_id for task in known if task is not None and task.outcome is None]
        task = self.board.create(
            order.agent,
            order.prompt,
            system=order.system,
            metadata=json_copy(order.metadata),
            parent=parent if parent is not None else above[-1] if above else None,
        )
        self._desk.observe(order, task)
        return task

    async def run(self, order: StepOrder, task: Task) -> WorkerResult:
        """Carry out an order. See `Swarm.dispatch`."""
        deadline = trio.current_effective_deadline()
        self._running[task.task_id] = task
        settled: Outcome | None = None
        try:
            with trio.CancelScope() as scope, task.runs_in(scope):
                ended = await self._attempts(order, task)
                if task.cancel_requested is not None:  # It came first, whatever was made of it.
                    await trio.lowlevel.checkpoint_if_cancelled()
                settled = self._settle(task, ended)
        except Exception as error:
            # An error of ours, or what was beside a cancellation of the task in one group.
            raise self._left(task, error) from error
        except BaseException as error:
            self._settle_left(task, error, deadline)
            raise
        finally:
            del self._running[task.task_id]
            self._quiet.unpark_all()
        if settled is None or task.outcome is not settled:
            raise self._stopped(task)
        if ended.outcome in ("failed", "rejected"):
            raise StepFailed(task.task_id, task.attempts, ended.reason) from ended.error
        return WorkerResult(ended.value, ended.outcome == "pass", ended.stats)

    async def _attempts(self, order: StepOrder, task: Task) -> AttemptEnd:
        await trio.lowlevel.checkpoint()
        while True:
            attempt = task.begin()
            run = AttemptRun(order, task, attempt, self._emit, self._desk.worker_url, self._desk.watched)
            ended = await run.run()
            told = {"task_id": task.task_id, "attempt": attempt.number, "outcome": ended.outcome}
            self._emit("attempt_ended", {**told, "reason": ended.reason})
            if attempt.number >= order.attempts or ended.outcome not in order.retry.on:
                return ended
            if task.outcome is not None:  # Somebody else settled it.
                return ended
            task.waiting_for = f"attempt {attempt.number + 1}"
            with trio.move_on_after(order.retry.delay(attempt.number)):
                await task.wait()  # Somebody else may settle it: there will be no other attempt then.
            task.waiting_for = None

    def _settle(self, task: Task, ended: AttemptEnd) -> Outcome:
        status: Any = "failed" if ended.outcome == "rejected" else ended.outcome
        outcome = Outcome(task.task_id, status, ended.value, task.attempts, ended.reason)
        task.settle(outcome)
        return outcome

    def _left(self, task: Task, error: Exception) -> SwarmError:
        if task.cancel_requested is not None or task.outcome is not None:
            return self._stopped(task)
        reason = f"dispatch failed: {type(error).__name__}: {text_of(error)}"
        task.settle(Outcome(task.task_id, "failed", None, task.attempts, reason))
        return StepFailed(task.task_id, task.attempts, reason)

    def _stopped(self, task: Task) -> StepCancelled:
        """Its own cancel, or whoever settled it meanwhile, came first."""
        reason = task.cancel_requested or "its task was settled"
        task.settle(Outcome(task.task_id, "cancelled", None, task.attempts, reason))
        return StepCancelled(task.task_id, task.attempts, reason)

    def _settle_left(self, task: Task, error: BaseException, deadline: float) -> None:
        """The attempt was left by a cancellation from outside, or by an error that is ours."""
        cancelled = isinstance(error, trio.Cancelled) or (
            isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None
        )
        if not cancelled:
            reason = f"dispatch failed: {type(error).__name__}: {text_of(error)}"
            task.settle(Outcome(task.task_id, "failed", None, task.attempts, reason))
        elif ended_by_deadline(error, deadline):
            task.settle(Outcome(task.task_id, "timeout", None, task.attempts, "its deadline has passed"))
        else:
            reason = task.cancel_requested or "its caller was cancelled"
            task.settle(Outcome(task.task_id, "cancelled", None, task.attempts, reason))

    # -- the end -----------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Ask every running step to stop, and take no more of them."""
        self._closed = reason
        for task in tuple(self._running.values()):
            task.cancel(reason)

    async def end(self, reason: str) -> None:
        """`close`, and wait until the steps have stopped; ``CLOSE_DEADLINE`` at most."""
        self.close(reason)
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(CLOSE_DEADLINE):
            while self._running:
                await self._quiet.park()


def _default_layers(execute: Execute | None) -> Sequence[str]:
    """All three; what is to be executed by a callable is not delegated to the operator."""
    return DEFAULT_LAYERS if execute is None else DEFAULT_LAYERS[1:]


def _check_executor(plan: LayerPlan, backend: AnySeat | None, execute: Execute | None) -> None:
    if backend is not None and execute is not None:
        raise ValueError(
            "execute: it would never be called, because the layer operator_delegate lets "
            f"{backend.name} execute; leave out the one or the other"
        )
    if backend is None and execute is None:
        raise NobodyExecutes("name an operator that can, or give execute")
