"""Steps over HTTP: start one, look at it, cancel it (operators contract 1.4; ``/v1/tasks``).

The routes need the admin's bearer token: whoever has it can make operators and workers do
things. But the address that a directive names (contract 4.6), ``/v1/runs/{id}``, tells how a step
stands to any operator with a living session, and to the worker of its attempt while that lives.

A step runs in a task of the server's own, so that a client that goes away, or one that did not
want to wait, leaves nothing unfinished; it ends with the server.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any, Final, TypeAlias

import attrs
import trio

from trio_swarm._io.groups import collapse
from trio_swarm._io.guard import crash_barrier
from trio_swarm._io.http_messages import Request, Response
from trio_swarm._io.http_routes import Route
from trio_swarm._state.board import Denied
from trio_swarm.errors import BadTokenError, BusyError, Refused, StepCancelled, StepFailed
from trio_swarm.limits import CLOSE_DEADLINE, MAX_RUNNING_STEPS, MAX_WAITING_STEPS, SYNC_CEILING
from trio_swarm.operators.login import bearer_of
from trio_swarm.operators.observed import MAX_LOGGED_METADATA, cut
from trio_swarm.swarm.dispatch import Dispatcher, NobodyExecutes
from trio_swarm.swarm.launch import Launch, LaunchError
from trio_swarm.swarm.steps import Kind, StepOrder
from trio_swarm.workers import Outcome, Task
from trio_swarm.workers.door import enter

__all__ = ["TaskApi", "open_task_api"]

Endpoint: TypeAlias = Callable[["TaskApi", Request], Awaitable[Response]]

_MISMATCH: Final = "token mismatch"
_LISTED: Final = 50
_MOST_LISTED: Final = 200
"""As the list of operators has them (contract 8.9)."""
_NAME_ONE: Final = (
    "name an operator that can, as operator_sid or operator.operator_backend_id, "
    "and keep operator_delegate among the layers"
)


def _admin(endpoint: Endpoint) -> Endpoint:
    """Only with the admin's token: 401 comes before anything that the request asks for.

    Of a body that is no JSON, or not declared as such, the front has said so before (400, 415).
    """

    @wraps(endpoint)
    async def guarded(self: TaskApi, request: Request) -> Response:
        try:
            if not self.is_admin(bearer_of(request.head.all("authorization"))):
                raise BadTokenError(_MISMATCH)
        except BadTokenError as bad:
            return _unauthorised(str(bad))
        request.proven()
        return await endpoint(self, request)

    return guarded


@attrs.define(eq=False)
class TaskApi:
    """The routes over one dispatcher; made by `open_task_api`."""

    _dispatcher: Dispatcher = attrs.field(repr=False)
    _admin_digest: bytes = attrs.field(repr=False)
    _nursery: trio.Nursery = attrs.field(repr=False)
    _somebody: Callable[[], Awaitable[bool]] = attrs.field(repr=False)
    _default_kind: Kind | None
    _max_running: int
    _max_waiting: int
    _sync_ceiling: float
    operator_token: Callable[[str], Awaitable[bool]] | None = None
    """Says whether that is the token of an operator whose session lives."""
    _running: dict[str, Task] = attrs.field(factory=dict, repr=False)
    _answering: int = 0
    _closed: str | None = None
    _quiet: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    def routes(self) -> list[Route]:
        """To be put in a `RouteTable`, beside those of others."""
        return [
            Route("POST", "/v1/tasks", self.start, body="json"),
            Route("GET", "/v1/tasks", self.all),
            Route("GET", "/v1/tasks/{id}", self.one),
            Route("DELETE", "/v1/tasks/{id}", self.cancel),
            Route("GET", "/v1/runs/{id}", self.watch),
        ]

    # -- endpoints ---------------------------------------------------------------------

    @_admin
    async def start(self, request: Request) -> Response:
        """Start a step; 200 with its outcome, or 202 at once when it is detached."""
        if self._closed is not None:  # Whoever it names may be gone already: that is no fault of the request.
            return _error(503, self._closed)
        try:
            launch = Launch.parse(request.json)
            order = launch.order(self._dispatcher, self._default_kind)
        except LaunchError as error:
            return _error(error.status, str(error))
        except NobodyExecutes:
            return _error(400, str(NobodyExecutes(_NAME_ONE)))
        except ValueError as error:
            return _error(400, str(error))
        if not await self._somebody():
            return _error(503, "no operator is connected")
        if self._closed is not None or len(self._running) >= self._max_running:
            return _error(503, self._closed or f"{self._max_running} steps are running already")
        if not launch.detach and self._answering >= self._max_waiting:
            text = f"{self._max_waiting} clients wait for their steps already; set detach, and ask later"
            return _error(503, text)
        try:
            task = self._dispatcher.create(order, parent=launch.parent)
        except BusyError as busy:
            return _error(503, str(busy))
        except trio.ClosedResourceError as closed:
            return _error(503, str(closed))
        except Refused as refused:
            return _error(400, str(refused))
        self._running[task.task_id] = task
        if launch.detach:
            self._nursery.start_soon(self._run, order, task, math.inf)
            return Response.json(202, {"task_id": task.task_id})
        self._nursery.start_soon(self._run, order, task, launch.timeout or self._sync_ceiling)
        return await self._awaited(request, task, launch.timeout)

    async def _awaited(self, request: Request, task: Task, timeout: float | None) -> Response:
        self._answering += 1
        try:
            outcome = await _outcome_for(request, task)
        finally:
            self._answering -= 1
            self._quiet.unpark_all()
        if outcome.status == "timeout" and timeout is None:
            text = f"the step was not done within {self._sync_ceiling:g} s; set timeout_secs, or detach"
            return Response.json(504, {"error": text, **_outcome(task)})
        return Response.json(200, _outcome(task))

    @_admin
    async def all(self, request: Request) -> Response:
        """The latest steps, newest first; a step's own address tells what is left out here."""
        limit = _limit(request.query.get("limit"))
        if limit is None:
            return _error(400, f"limit: expected 1 to {_MOST_LISTED}")
        tasks = self._dispatcher.board.tasks()
        newest = [_listed(task) for task in reversed(tasks[-limit:])]
        return Response.json(200, {"tasks": newest, "total": len(tasks), "limit": limit})

    @_admin
    async def one(self, request: Request) -> Response:
        """One step: its outcome, or what it is waiting for."""
        task = self._dispatcher.board.find(request.params["id"])
        if task is None:
            return _unknown()
        return Response.json(200, {**_record(task), **_reports(task), **_outcome(task)})

    async def watch(self, request: Request) -> Response:
        """How one step stands: the address that a directive names, where a step is a run of one.

        For the admin as `one`; for an operator whose session lives id, status, attempt and, once
        it has ended, value (contract: operators 4.6). The same for the worker of the attempt that
        runs, whose token may narrow that, and counts it as a use, as on the workers' own routes.
        """
        try:
            token = bearer_of(request.head.all("authorization"))
        except BadTokenError as bad:
            return _unauthorised(str(bad))
        if self.is_admin(token):
            return await self.one(request)
        task = self._dispatcher.board.find(request.params["id"])
        if self.operator_token is None or not await self.operator_token(token):
            try:
                await self._admit_worker(request, task)
            except Denied as denied:
                if self._closed is not None and denied.status in (400, 401):
                    # An operator's, it may be: the next server may know it, and it is not to be given up.
                    return _error(503, self._closed)
                return _refused(denied)
        return _unknown() if task is None else Response.json(200, _outcome(task))

    def is_admin(self, token: str) -> bool:
        """It is the admin's; compared in constant time."""
        return hmac.compare_digest(_digest(token), self._admin_digest)

    async def _admit_worker(self, request: Request, task: Task | None) -> None:
        """Its handle, or its token if that may read the state of tasks. Raises `Denied`."""
        visit = await enter(self._dispatcher.board, request, "read_task_state")
        if visit.task is not task:
            raise Denied(403, "the credential is bound to another task")
        visit.use()

    @_admin
    async def cancel(self, request: Request) -> Response:
        """Cancel a step: whoever works on it is told. 204, also when it has ended already."""
        task = self._dispatcher.board.find(request.params["id"])
        if task is None:
            return _unknown()
        task.cancel("it was cancelled over HTTP")
        with trio.move_on_after(CLOSE_DEADLINE):
            await task.wait()
        return Response(204)

    # -- running -----------------------------------------------------------------------

    async def _run(self, order: StepOrder, task: Task, seconds: float) -> None:
        """Carry out a step; what comes of it is in its outcome."""
        try:
            # No step takes the server down: an operator in process may raise anything while it
            # is being cancelled, and that comes out beside the cancellation.
            with (
                crash_barrier(f"step {task.task_id}"),
                trio.move_on_after(seconds),
                suppress(StepFailed, StepCancelled),
            ):
                await self._dispatcher.run(order, task)
        finally:
            del self._running[task.task_id]
            self._quiet.unpark_all()

    def close(self, reason: str) -> None:
        """Ask the steps that were started here to stop, and take no more of them."""
        self._closed = reason
        for task in tuple(self._running.values()):
            task.cancel(reason)

    async def wait_quiet(self) -> None:
        """Wait, bounded, until they have stopped and their clients are being told."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(CLOSE_DEADLINE):
            while self._running or self._answering:
                await self._quiet.park()


@asynccontextmanager
async def open_task_api(
    dispatcher: Dispatcher,
    admin_token: str,
    *,
    somebody: Callable[[], Awaitable[bool]],
    default_kind: Kind | None = None,
    max_running: int = MAX_RUNNING_STEPS,
    max_waiting: int = MAX_WAITING_STEPS,
    sync_ceiling: float = SYNC_CEILING,
) -> AsyncIterator[TaskApi]:
    """The routes for the block; at its end the steps that were started over them are cancelled.

    Args:
        admin_token: who shows it as a bearer may do everything here; printable ASCII, no spaces.
        somebody: says whether some operator is connected, or is just about to be.
        default_kind: of a step whose request names no kind.
        max_running: steps at a time; more are answered 503.
        max_waiting: of these, such whose client waits and so holds a connection; more are answered 503.
        sync_ceiling: seconds for a step whose client waits and set no time of its own; then 504.
    """
    if (
        not (isinstance(admin_token, str) and admin_token)
        or not (admin_token.isascii() and admin_token.isprintable())
        or " " in admin_token
    ):
        raise ValueError("admin_token: expected printable ASCII without spaces")
    with collapse():
        async with trio.open_nursery() as nursery:
            api = TaskApi(
                dispatcher,
                _digest(admin_token),
                nursery,
                somebody,
                default_kind,
                max_running,
                max_waiting,
                sync_ceiling,
            )
            try:
                yield api
            finally:
                api.close("the server is going away")
            await api.wait_quiet()
            nursery.cancel_scope.cancel()


async def _outcome_for(request: Request, task: Task) -> Outcome:
    """How the step ended. ``trio.BrokenResourceError`` if the client hangs up before; the step goes on.

    So its place among those that wait, and its connection, are another's.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_gone, request, nursery.cancel_scope)
        await task.wait()
        nursery.cancel_scope.cancel()
    if task.outcome is None:
        raise trio.BrokenResourceError("the client hung up")
    return task.outcome


async def _until_gone(request: Request, scope: trio.CancelScope) -> None:
    await request.wait_gone()
    scope.cancel()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _error(status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    answer = Response.json(status, {"error": text})
    return attrs.evolve(answer, headers=(*answer.headers, *headers))


def _unauthorised(text: str) -> Response:
    return _error(401, text, ((b"www-authenticate", b"Bearer"),))


def _refused(denied: Denied) -> Response:
    if denied.status in (400, 401):  # What is no credential of a worker's may have been meant as another.
        return _unauthorised(denied.text if denied.status == 401 else _MISMATCH)
    retry = () if denied.retry_after is None else ((b"retry-after", b"%d" % denied.retry_after),)
    return _error(denied.status, denied.text, retry)


def _unknown() -> Response:
    return _error(404, "no such task")


def _limit(text: str | None) -> int | None:
    if text is None:
        return _LISTED
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) > 0):
        return None
    return min(int(text), _MOST_LISTED)


def _outcome(task: Task) -> dict[str, Any]:
    """What a step's client is answered."""
    known: dict[str, Any] = {"task_id": task.task_id, "status": task.status, "value": None}
    known["attempt"] = task.attempts
    if task.outcome is not None:
        known["value"], known["attempt"] = task.outcome.value, task.outcome.attempt
        if task.outcome.reason:
            known["reason"] = task.outcome.reason
    return known


def _reports(task: Task) -> dict[str, Any]:
    """What was told of the latest attempt beside its result."""
    if task.attempt is None:
        return {"stats": None, "degradations": []}
    return {"stats": task.attempt.stats, "degradations": list(task.attempt.degradations)}


def _listed(task: Task) -> dict[str, Any]:
    """`_record` with an end: what is long is cut or left out, and that is said.

    In the words of the log of an operator's session, and with its bounds.
    """
    whole = _record(task)
    texts = {key: whole[key] for key in ("agent", "waiting_for")}
    short = {key: None if text is None else cut(text) for key, text in texts.items()}
    omitted = task.metadata_size > MAX_LOGGED_METADATA
    return {
        **whole,
        **short,
        "text_truncated": short != texts,
        "task_metadata": None if omitted else whole["task_metadata"],
        "task_metadata_omitted": omitted,
    }


def _record(task: Task) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "agent": task.agent,
        "status": task.status,
        "attempt": task.attempts,
        "waiting_for": task.waiting_for,
        "parent": task.parent,
        "created_at": task.created,
        "task_metadata": dict(task.metadata),
    }
