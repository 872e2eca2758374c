"""The tasks of one swarm, their attempts, and what came of them.

Whoever dispatches makes a `Task`, begins an `Attempt` of it, hands the attempt's token and
handle to a worker, and waits for its Final; the worker fetches and posts over HTTP
(`trio_swarm.workers.api`). Every decision is `trio_swarm._state.board`'s; here are the events
that others wait for.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import attrs
import trio

from trio_swarm._state.attached import AttachedSessions
from trio_swarm._state.board import AttemptRecord, BoardMachine, Status, TaskRecord
from trio_swarm._state.token import CapabilityToken, mint
from trio_swarm._state.weight import weight_of
from trio_swarm.frames import dump_json
from trio_swarm.limits import MAX_KEPT, MAX_TASKS, WORKER_TOKEN_TTL
from trio_swarm.workers.attempt import Attempt, Final
from trio_swarm.workers.outputs import Output, OutputStore
from trio_swarm.workers.turns import Turns

__all__ = ["Attempt", "Final", "Outcome", "Task", "TaskBoard"]

Emit: TypeAlias = Callable[[str, Mapping[str, object]], None]


@attrs.frozen
class Outcome:
    """How a task ended."""

    task_id: str
    status: Status
    value: Any = attrs.field(repr=False)
    attempt: int
    reason: str = ""


class _Running:
    """A runner's registration; leaving its block takes it back."""

    def __init__(self, scopes: set[trio.CancelScope], scope: trio.CancelScope) -> None:
        self._scopes = scopes
        self._scope = scope
        scopes.add(scope)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scopes.discard(self._scope)


@attrs.define(eq=False)
class Task:
    """One dispatched step."""

    _board: TaskBoard = attrs.field(repr=False)
    _record: TaskRecord
    agent: str
    prompt: str = attrs.field(repr=False)
    system: str | None = attrs.field(repr=False)
    metadata: Mapping[str, Any] = attrs.field(repr=False)
    metadata_size: int
    """Bytes of it as JSON."""
    parent: str | None
    created: float
    """Unix seconds."""
    outcome: Outcome | None = None
    """None until it has ended."""
    attempt: Attempt | None = attrs.field(default=None, repr=False)
    """The latest."""
    waiting_for: str | None = None
    """What whoever runs it waits for, in words; for others to look at."""
    cancel_requested: str | None = None
    """The reason of the first `cancel`."""
    _kept: dict[int, Attempt] = attrs.field(factory=dict, repr=False)
    _scopes: set[trio.CancelScope] = attrs.field(factory=set, repr=False)
    _done: trio.Event = attrs.field(factory=trio.Event, repr=False)

    @property
    def task_id(self) -> str:
        """``ST-`` and 16 hex digits."""
        return self._record.task_id

    @property
    def status(self) -> Status:
        """``pending``, ``running``, or how it ended."""
        return self._record.status

    @property
    def attempts(self) -> int:
        """How many were begun."""
        return self._record.attempts

    @property
    def depth(self) -> int:
        """0, or one more than the parent's."""
        return self._record.depth

    def begin(self) -> Attempt:
        """Begin the next attempt; the credentials of the one before are dead (409).

        Raises `Refused` if the task has ended.
        """
        return self._board._begin(self)

    def settle(self, outcome: Outcome) -> None:
        """End the task and wake everybody who waits for it. The first call wins."""
        self._board._settle(self, outcome)

    async def wait(self) -> Outcome:
        """How it ended, as soon as it has. Cancelled: the task goes on."""
        await self._done.wait()
        assert self.outcome is not None
        return self.outcome

    def runs_in(self, scope: trio.CancelScope) -> _Running:
        """Say which scope `cancel` has to cancel, from now to the end of the ``with`` block.

        A task that was asked to stop already cancels it at once.
        """
        if self.cancel_requested is not None:
            scope.cancel()
        return _Running(self._scopes, scope)

    def cancel(self, reason: str) -> bool:
        """Ask whoever runs the task to stop; without a runner it ends as ``cancelled`` here.

        False if it has ended, or was asked before.
        """
        if self._record.ended or self.cancel_requested is not None:
            return False
        self.cancel_requested = reason
        for scope in tuple(self._scopes):
            scope.cancel()
        if not self._scopes:
            self.settle(Outcome(self.task_id, "cancelled", None, self.attempts, reason))
        return True


class TaskBoard:
    """All tasks of one swarm; any task of Trio may use it, and it starts none.

    Args:
        emit: takes events: ``task_created``, ``attempt_started``, ``prompt_fetched``,
            ``output``, ``outputs_given_up``, ``final``, ``credentials_renewed``,
            ``task_settled``, each with ``task_id``; must not block.
        secret: signs the tokens; random if not given.
        token_ttl: seconds that an attempt's token and handle are good for.
        clock: wall time in Unix seconds.
        new_hex: ``new_hex(n)`` gives n random bytes in hex.
        max_tasks: tasks remembered; the finished are forgotten oldest first, with their outputs.
        max_kept: bytes that the finished ones may hold in memory together; else as with too many.
            The one that ended last is kept in any case.
        spool: the directory for large outputs; asked for when first needed, and made there if
            it is missing. Whoever owns it removes it.
    """

    def __init__(
        self,
        *,
        emit: Emit,
        secret: bytes | None = None,
        token_ttl: float = WORKER_TOKEN_TTL,
        clock: Callable[[], float] = time.time,
        new_hex: Callable[[int], str] = secrets.token_hex,
        max_tasks: int = MAX_TASKS,
        max_kept: int = MAX_KEPT,
        spool: Callable[[], Path],
    ) -> None:
        if not 0 < token_ttl < math.inf:
            raise ValueError(f"token_ttl must be more than 0 seconds and finite, not {token_ttl!r}")
        if secret is not None and not secret:
            raise ValueError("secret must not be empty")
        self._emit = emit
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._token_ttl = token_ttl
        self._clock = clock
        self._new_hex = new_hex
        self._machine = BoardMachine(secret=self._secret, max_tasks=max_tasks, max_kept=max_kept)
        self._tasks: dict[str, Task] = {}
        self.outputs = OutputStore(
            new_hex=new_hex, spool=spool, yielding=self._machine.yielding, gave_way=self._gave_way
        )
        """What workers have emitted."""
        self._turns = Turns()
        self.sessions = AttachedSessions()
        """Who said that it is there."""

    def create(
        self,
        agent: str,
        prompt: str,
        *,
        system: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> Task:
        """A new task, pending.

        Args:
            agent: who is to do it.
            prompt: what the worker fetches.
            system: the worker's persona, if it has one.
            metadata: JSON for the worker, told with the prompt.
            parent: the id of the task that this one is dispatched from; one that has ended adds
                no depth, but what it was below and still runs does.

        Raises:
            Refused: the parent is unknown, or four levels deep already (contract: operators 5.2).
            BusyError: ``max_tasks`` tasks have not ended yet.
            FrameError: one of the texts or the metadata cannot be written as JSON.
        """
        dump_json([agent, prompt, system])  # what a worker is to be told
        size = len(dump_json(dict(metadata or {})).encode())
        task_id = f"ST-{self._new_hex(8)}"
        self._forget(self._machine.create(task_id, parent=parent))
        record = self._machine.find(task_id)
        assert record is not None
        task = Task(
            board=self,
            record=record,
            agent=agent,
            prompt=prompt,
            system=system,
            metadata=dict(metadata or {}),
            metadata_size=size,
            parent=parent,
            created=self._clock(),
        )
        self._tasks[task_id] = task
        self._emit("task_created", {"task_id": task_id, "agent": agent, "parent": parent})
        return task

    def _forget(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            del self._tasks[task_id]
            self.outputs.forget(task_id)

    def find(self, task_id: str) -> Task | None:
        """The task of that id; None if there is none, or it is forgotten."""
        return self._tasks.get(task_id)

    def tasks(self) -> tuple[Task, ...]:
        """All that are remembered, in the order of their making."""
        return tuple(self._tasks.values())

    def _begin(self, task: Task) -> Attempt:
        token, handle = self._mint(task.task_id), self._fresh_handle()
        # The token counts whole seconds; the handle is to die at the same moment.
        record = self._machine.begin(
            task.task_id, fingerprint=token.fingerprint, handle=handle, expire_at=token.expire_at
        )
        if task.attempt is not None:
            task.attempt.end()
        attempt = task.attempt = Attempt(
            record,
            token.encode(),
            handle,
            renewed=self._renewed,
            grew=partial(self._weigh, task),
            clock=self._clock,
        )
        task._kept = {number: task._kept.get(number, attempt) for number in task._record.kept}
        self._emit("attempt_started", {"task_id": task.task_id, "attempt": record.number})
        return attempt

    def _mint(self, task_id: str) -> CapabilityToken:
        now = int(self._clock())
        return mint(
            secret=self._secret,
            agent_id=f"worker-of-{task_id}",
            role="worker",
            issued_at=now,
            expire_at=now + math.ceil(self._token_ttl),
            nonce=self._new_hex(16),
        )

    def _renewed(self, record: AttemptRecord) -> str:
        token = self._mint(record.task_id)
        self._machine.renew(record, fingerprint=token.fingerprint, expire_at=token.expire_at)
        self._emit("credentials_renewed", {"task_id": record.task_id, "attempt": record.number})
        return token.encode()

    def knows_token(self, bearer: str) -> bool:
        """It is a capability token of an attempt that lives. Of a handle it says nothing."""
        return self._machine.knows_token(bearer, now=self._clock())

    async def _take_turn(self, bearer: str, peer: str, task_id: str | None) -> None:
        """Wait, while unknown handles come in numbers, until this one may be looked at.

        Raises `Denied` 429 where too many wait already. Cancelled: its turn goes to the next.
        """
        await trio.lowlevel.checkpoint()
        if self._machine.takes_turns(bearer, now=self._clock(), peer=peer, task_id=task_id):
            await self._turns.take(peer)

    def _fetched(self, attempt: Attempt) -> None:
        attempt._mark_fetched()
        self._emit("prompt_fetched", {"task_id": attempt.task_id, "attempt": attempt.number})

    def _post(self, attempt: Attempt, value: Any, ok: bool) -> None:
        attempt.append_final(value, ok, by="worker")
        self._emit("final", {"task_id": attempt.task_id, "attempt": attempt.number, "ok": ok})

    def _fresh_handle(self) -> str:
        while True:
            handle = f"wh-{self._new_hex(4)}"
            if self._machine.is_handle_free(handle):
                return handle

    def _settle(self, task: Task, outcome: Outcome) -> None:
        if not self._machine.settle(task.task_id, outcome.status):
            return
        task.outcome = outcome
        task.waiting_for = None
        if task.attempt is not None:
            task.attempt.end()
        task._done.set()
        self._emit(
            "task_settled",
            {"task_id": task.task_id, "status": outcome.status, "attempt": outcome.attempt},
        )
        self._weigh(task)

    def _weigh(self, task: Task) -> None:
        """What the task holds has changed: that counts once it has ended, until it is forgotten."""
        if task.outcome is not None and self._tasks.get(task.task_id) is task:
            self._forget(self._machine.weigh(task.task_id, self._held_by(task)))

    def _gave_way(self, gone: tuple[Output, ...]) -> None:
        for task_id in dict.fromkeys(output.task_id for output in gone):
            sizes = [output.size for output in gone if output.task_id == task_id]
            self._emit("outputs_given_up", {"task_id": task_id, "outputs": len(sizes), "size": sum(sizes)})
            self._weigh(self._tasks[task_id])

    def _held_by(self, task: Task) -> int:
        """Bytes in memory, those of its attempts and outputs included."""
        held: list[object] = [task.prompt, task.system, task.metadata, task.outcome and task.outcome.value]
        for attempt in task._kept.values():
            held += [attempt.final and attempt.final.value, attempt.degradations, attempt.stats]
        inline = sum(len(each.content or b"") for each in self.outputs.of(task.task_id))
        return weight_of(*held) + inline + sum(record.overhead for record in task._record.kept.values())
