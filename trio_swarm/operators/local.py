"""An operator that is an object of this process: the same four verbs, without a wire."""

from __future__ import annotations

import inspect
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from trio_swarm._io.deadline import remaining_ms
from trio_swarm._io.groups import collapse
from trio_swarm._io.guard import crash_barrier
from trio_swarm._io.host import Host
from trio_swarm._state.copies import json_copy
from trio_swarm.errors import ApprovalDenied, FrameError, PeerGoneError
from trio_swarm.frames.operator import Ask, HookAfter, HookBefore, Spawn, Worker
from trio_swarm.limits import CLOSE_DEADLINE, EVENTS_BUFFERED
from trio_swarm.operators.base import VERBS, AnySeat, WorkerResult
from trio_swarm.operators.lineage import answering, identity, nesting
from trio_swarm.operators.renewal import Renewable

__all__ = ["LocalSeat"]

_REJECTED = "the operator rejected it and gave no reason"


class LocalSeat(AnySeat):
    """Any object that has some of ``ask``, ``before_spawn``, ``after_spawn`` and ``execute``.

    Each method, async or not, takes one frame (`Ask`, `HookBefore`, `HookAfter`, `Spawn`).

    * ``ask`` returns the answer.
    * ``before_spawn`` returns None or True to let it pass, False or a reason (a string) to
      deny it; or it raises `ApprovalDenied`.
    * ``after_spawn`` returns nothing; it runs in a task of the seat's own, one call at a time.
    * ``execute`` returns a `WorkerResult`, or just the value of a success.

    What they raise comes out of the verb as it is. A verb that the object does not have
    raises ``TypeError`` when it is called. Made by `LocalSeat.open`; when that block has been
    left, every verb raises `PeerGoneError`, as that of a session that is over does.
    """

    def __init__(
        self,
        obj: object,
        *,
        name: str = "",
        emit: Callable[[str, Mapping[str, object]], None],
        max_notices: int = EVENTS_BUFFERED,
        new_id: Callable[[], object] = uuid.uuid4,
    ) -> None:
        """Raises ``TypeError`` for an object with none of the four methods."""
        self._verbs = frozenset(verb for verb in VERBS if callable(getattr(obj, verb, None)))
        if not self._verbs:
            raise TypeError(f"{type(obj).__name__} is no operator: it has none of {', '.join(VERBS)}")
        self._obj = obj
        self._name = name or type(obj).__name__
        self._identity = identity(self._name, f"local-{uuid.uuid4().hex}")
        self._emit = emit
        self._new_id = new_id
        self._notices: deque[HookAfter] = deque()
        self._max_notices = max_notices
        self._telling = False
        self._gone = False
        self._arrived = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, host: Host, obj: object, *, name: str = "", max_notices: int = EVENTS_BUFFERED
    ) -> AsyncIterator[LocalSeat]:
        """Seat ``obj`` for the block. On leaving, queued notices get ``CLOSE_DEADLINE`` to be told."""
        seat = cls(obj, name=name, emit=host.emit, max_notices=max_notices)
        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(seat._tell_all)
                try:
                    yield seat
                finally:
                    seat._gone = True
                with trio.move_on_after(CLOSE_DEADLINE):
                    await seat._wait_told()
                nursery.cancel_scope.cancel()

    def __repr__(self) -> str:
        return f"<LocalSeat {self._name}: {', '.join(sorted(self._verbs))}>"

    @property
    def sid(self) -> str:
        """The name: there is no session."""
        return self._name

    @property
    def name(self) -> str:
        """As given, or else the class's."""
        return self._name

    @property
    def identity(self) -> str:
        """See `AnySeat.identity`; the id is this seat's alone."""
        return self._identity

    @property
    def connected(self) -> bool:
        """Until the block is left."""
        return not self._gone

    @property
    def verbs(self) -> frozenset[str]:
        """Which of the four methods the object has."""
        return self._verbs

    async def ask(self, question: Any, *, task_id: str, parent_req_id: str | None = None) -> Any:
        """See `AnySeat.ask`."""
        return await self._call(
            "ask",
            Ask(
                req_id=self._req_id("ask"),
                **nesting(self.identity, parent_req_id),
                task_id=task_id,
                question=question,
                deadline_ms=remaining_ms(),
            ),
        )

    async def hook_before(
        self, *, task_id: str, agent: str, attempt: int, parent_req_id: str | None = None
    ) -> None:
        """See `AnySeat.hook_before`."""
        frame = HookBefore(
            req_id=self._req_id("hb"),
            **nesting(self.identity, parent_req_id),
            task_id=task_id,
            agent=agent,
            attempt=attempt,
            deadline_ms=remaining_ms(),
        )
        verdict = await self._call("before_spawn", frame)
        if verdict is None or verdict is True:
            return
        if verdict is False or isinstance(verdict, str):
            reason = verdict if isinstance(verdict, str) else _REJECTED
            raise ApprovalDenied(reason, by=self._name, subject=agent)
        # Neither yes nor no: a gate that is not understood stays shut.
        raise TypeError(f"{self._name}.before_spawn returned a {type(verdict).__name__}")

    def hook_after(
        self, *, task_id: str, agent: str, attempt: int, result: Any, parent_req_id: str | None = None
    ) -> None:
        """See `AnySeat.hook_after`. What ``after_spawn`` raises becomes an event.

        Raises `PeerGoneError` when the block has been left, `FrameError` for a result that is no JSON.
        """
        self._require("after_spawn")
        try:
            told = json_copy(result)  # As it is now, whatever its sender makes of it meanwhile.
        except ValueError as error:
            raise FrameError(f"cannot be written as JSON: {error}") from None
        if len(self._notices) >= self._max_notices:
            dropped = self._notices.popleft()
            self._emit("notice_dropped", {"sid": self._name, "req_id": dropped.req_id})
        self._notices.append(
            HookAfter(
                req_id=self._req_id("ha"),
                **nesting(self.identity, parent_req_id, waits=False),
                task_id=task_id,
                agent=agent,
                attempt=attempt,
                result=told,
            )
        )
        self._arrived.unpark()

    async def spawn(
        self,
        *,
        task_id: str,
        agent: str,
        attempt: int,
        directive: str,
        capability_token: str = "",
        worker_handle: str | None = None,
        worker: Worker | None = None,
        credential: Renewable | None = None,
        parent_req_id: str | None = None,
    ) -> WorkerResult:
        """See `AnySeat.spawn`; ``credential`` is of no use here, because nothing waits."""
        frame = Spawn(
            req_id=self._req_id("spawn"),
            **nesting(self.identity, parent_req_id),
            task_id=task_id,
            agent=agent,
            attempt=attempt,
            capability_token=capability_token,
            worker_handle=worker_handle,
            worker=worker,
            directive=directive,
            deadline_ms=remaining_ms(),
        )
        result = await self._call("execute", frame)
        return result if isinstance(result, WorkerResult) else WorkerResult(result)

    async def _call(self, verb: str, frame: Ask | HookBefore | HookAfter | Spawn) -> Any:
        """Call the object's method; a checkpoint even where it is not async."""
        self._require(verb)
        await trio.lowlevel.checkpoint()
        return await self._run(verb, frame)

    async def _run(self, verb: str, frame: Ask | HookBefore | HookAfter | Spawn) -> Any:
        # Nobody waits for what is done with a notice, so it is in nobody's way.
        waited_for = not isinstance(frame, HookAfter)
        lineage, who = (frame.lineage, self._identity) if waited_for else ((), None)
        with answering(frame.req_id, lineage, who):
            result = getattr(self._obj, verb)(frame)
            return await result if inspect.isawaitable(result) else result

    def _require(self, verb: str) -> None:
        if self._gone:
            raise PeerGoneError(f"operator {self._name!r} is gone: its block was left")
        if verb not in self._verbs:
            raise TypeError(f"operator {self._name!r} cannot {verb}: its object has no such method")

    async def _tell_all(self) -> None:
        while True:
            while not self._notices:
                self._idle.unpark_all()
                await self._arrived.park()
            frame = self._notices.popleft()
            self._telling = True
            with crash_barrier(f"{self._name}.after_spawn", self._report):
                await trio.lowlevel.checkpoint()
                await self._run("after_spawn", frame)
            self._telling = False

    async def _wait_told(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._notices or self._telling:
            await self._idle.park()

    def _report(self, name: str, error: Exception) -> None:
        self._emit("notice_failed", {"sid": self._name, "error": f"{type(error).__name__}: {error}"})

    def _req_id(self, verb: str) -> str:
        return f"{self._name}-{verb}-{self._new_id()}"
