"""The servers of a swarm: operators, workers and the starting of steps on one port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import trio

from trio_swarm._io.host import Host
from trio_swarm._io.http_peer import Address
from trio_swarm._io.http_routes import Route, UpgradeRoute
from trio_swarm.errors import PeerGoneError
from trio_swarm.limits import (
    ATTACH_GRACE,
    MAX_CONNECTIONS,
    MAX_RUNNING_STEPS,
    MAX_WAITING_STEPS,
    SYNC_CEILING,
)
from trio_swarm.operators import AnySeat, OperatorServer, serve_operators
from trio_swarm.operators.directive import check_root
from trio_swarm.operators.observed import observation
from trio_swarm.operators.server import closed_on_error
from trio_swarm.operators.settings import above_zero, from_zero
from trio_swarm.swarm.dispatch import Dispatcher
from trio_swarm.swarm.steps import Kind, StepOrder, check_kind
from trio_swarm.swarm.tasks_api import TaskApi, open_task_api
from trio_swarm.workers import Task
from trio_swarm.workers.api import WorkerApi

__all__ = ["Serving", "check_base_url", "serve"]


@attrs.frozen
class _Server:
    operators: OperatorServer
    worker_url: str | None
    watched: bool


@attrs.define(eq=False)
class Serving:
    """Where the operators of a swarm are, and where its workers go: a dispatcher's desk."""

    attached: Callable[[], Iterable[AnySeat]]
    """The operators in process."""
    _servers: list[_Server] = attrs.field(factory=list, repr=False)
    waiting: int = 0
    """Requests that wait for somebody to connect."""

    def find_seat(self, name: str) -> AnySeat | None:
        """The operator of that name in process, or else with that sid or role on a server."""
        for seat in self.attached():
            if seat.name == name:
                return seat
        for server in self._servers:
            try:
                return server.operators.seat(name)
            except KeyError:
                continue
        return None

    def observe(self, order: StepOrder, task: Task) -> None:
        """Note the task with those of the operators that have a session (contract: operators 7.3)."""
        if not self._servers:
            return
        entry = observation(
            task.task_id,
            task.agent,
            task.prompt,
            project_root=order.context.project_root,
            work_dir=order.context.work_dir,
            metadata=task.metadata,
            at=task.created,
        )
        for seat in order.seats():
            for server in self._servers:
                server.operators.observe(seat.sid, entry)

    def anybody(self) -> bool:
        """Some operator is there now."""
        if any(True for _ in self.attached()):
            return True
        return any(seat.connected for server in self._servers for seat in server.operators.seats())

    async def somebody(self) -> bool:
        """Some operator is there now; who is logged in is waited for, ``ATTACH_GRACE`` at most."""
        await trio.lowlevel.checkpoint()
        waited_for = [server.operators for server in self._servers if server.operators.seats()]
        if not self.anybody() and waited_for:
            self.waiting += 1
            try:
                await self._connected(waited_for)
            finally:
                self.waiting -= 1
        return self.anybody()

    async def _connected(self, waited_for: list[OperatorServer]) -> None:
        with trio.move_on_after(ATTACH_GRACE):
            async with trio.open_nursery() as nursery:
                for operators in waited_for:
                    nursery.start_soon(_until_connected, operators, nursery.cancel_scope)

    @property
    def worker_url(self) -> str | None:
        """Of the first server that serves workers."""
        return next((each.worker_url for each in self._servers if each.worker_url is not None), None)

    @property
    def watched(self) -> bool:
        """That server also tells what became of tasks."""
        return next((each.watched for each in self._servers if each.worker_url is not None), False)


async def _until_connected(operators: OperatorServer, scope: trio.CancelScope) -> None:
    with suppress(PeerGoneError):  # That server is leaving; another may have somebody.
        await operators.wait_seat()
        scope.cancel()


def check_base_url(url: str) -> str:
    """The root under which workers are to reach a server, without a slash at its end.

    Raises ``ValueError``, which names ``base_url``, for what no directive could tell or no worker use.
    """
    root = check_root("base_url", url)
    try:
        Address.parse(root)
    except ValueError as error:
        raise ValueError(f"base_url: {error}") from None
    return root


def _waiting(given: int | None, connections: int) -> int:
    """Clients that may wait for a step: most connections are for those who do the steps."""
    return given if given is not None else max(1, min(MAX_WAITING_STEPS, connections // 4))


def _knows(dispatcher: Dispatcher, api: TaskApi | None, bearer: str) -> bool:
    """It is the admin's token, or a worker's: not a handle, which could be guessed that way."""
    return (api is not None and api.is_admin(bearer)) or dispatcher.board.knows_token(bearer)


@asynccontextmanager
async def serve(
    host: Host,
    serving: Serving,
    dispatcher: Dispatcher,
    *,
    workers: bool = True,
    admin_token: str | None = None,
    base_url: str | None = None,
    routes: Iterable[Route | UpgradeRoute] = (),
    default_kind: Kind | None = None,
    max_running: int = MAX_RUNNING_STEPS,
    max_waiting: int | None = None,
    sync_ceiling: float = SYNC_CEILING,
    **options: Any,
) -> AsyncIterator[OperatorServer]:
    """See `Swarm.serve_operators`."""
    all_routes = [*routes]
    options.setdefault("running_runs", lambda: dispatcher.running)
    async with closed_on_error(tuple(options.get("listeners") or ())), AsyncExitStack() as stack:
        if base_url is not None:
            base_url = check_base_url(base_url)
        check_kind("default_kind", default_kind)
        connections = options.get("max_connections", MAX_CONNECTIONS)
        above_zero(max_connections=connections, max_running=max_running, sync_ceiling=sync_ceiling)
        from_zero(max_waiting=0 if max_waiting is None else max_waiting)
        api: TaskApi | None = None
        worker_api = WorkerApi(dispatcher.board, base_url)
        if workers:
            all_routes += worker_api.routes()
        if admin_token is not None:
            api = await stack.enter_async_context(
                open_task_api(
                    dispatcher,
                    admin_token,
                    somebody=serving.somebody,
                    default_kind=default_kind,
                    max_running=max_running,
                    max_waiting=_waiting(max_waiting, connections),
                    sync_ceiling=sync_ceiling,
                )
            )
            all_routes += api.routes()
        options.setdefault("knows", partial(_knows, dispatcher, api))
        server = await stack.enter_async_context(serve_operators(host, routes=all_routes, **options))
        worker_api.base_url = base_url or server.tcp_url
        if api is not None:
            api.operator_token = server.admits
        here = _Server(server, worker_api.base_url if workers else None, watched=api is not None)
        serving._servers.append(here)
        try:
            yield server
        finally:
            serving._servers.remove(here)
            if api is not None:
                api.close("the server is going away")
        if api is not None:
            # While the port is still open: who waits for a step is told what became of it.
            await api.wait_quiet()
