"""What the dispatch tests share: a dispatcher, its server, scripted operators and workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx2
import trio

from tests.operators.support import Events, Peer, a_host, log_in, socket_of
from trio_swarm._io.groups import collapse
from trio_swarm.operators import LocalSeat, OperatorServer, Seat, WorkerResult
from trio_swarm.swarm.dispatch import Dispatcher
from trio_swarm.swarm.holding import Holdings
from trio_swarm.swarm.serving import Serving, serve
from trio_swarm.workers import Task, TaskBoard

ADMIN = {"Authorization": "Bearer admin-secret"}


@attrs.define
class Bench:
    """A dispatcher without a swarm around it."""

    dispatcher: Dispatcher
    serving: Serving
    events: Events
    attached: list[LocalSeat]
    spool: Path
    _holdings: Holdings
    server: OperatorServer | None = None

    @property
    def board(self) -> TaskBoard:
        return self.dispatcher.board

    async def attach(self, obj: object, name: str = "") -> LocalSeat:
        seat = await self._holdings.start(partial(LocalSeat.open, a_host(self.events), obj, name=name))
        self.attached.append(seat)
        return seat

    async def dispatch(self, agent: str = "coder", prompt: Any = "do it", **options: Any) -> WorkerResult:
        order = self.dispatcher.order(agent, prompt, **options)
        return await self.dispatcher.run(order, self.dispatcher.create(order))

    @property
    def last(self) -> Task:
        return self.board.tasks()[-1]

    @asynccontextmanager
    async def serve(self, **options: Any) -> AsyncIterator[OperatorServer]:
        host = a_host(self.events)
        async with serve(
            host, self.serving, self.dispatcher, admin_token="admin-secret", **options
        ) as server:
            self.server = server
            yield server

    @asynccontextmanager
    async def seated(self, *roles: str) -> AsyncIterator[tuple[Seat, Peer]]:
        """An operator on an independent WebSocket implementation."""
        assert self.server is not None
        login = await log_in(self.server, roles=list(roles) or ["op"])
        async with socket_of(self.server, login) as peer:
            yield await self.server.wait_seat(login.sid), peer

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx2.AsyncClient]:
        assert self.server is not None
        async with httpx2.AsyncClient(base_url=self.server.url, trust_env=False, timeout=20) as client:
            yield client


@asynccontextmanager
async def a_bench(tmp_path: Path, **options: Any) -> AsyncIterator[Bench]:
    events = Events()
    attached: list[LocalSeat] = []
    serving = Serving(lambda: attached)
    board = TaskBoard(emit=events, spool=lambda: tmp_path / "outputs", **options)
    dispatcher = Dispatcher(board, serving, events)
    with collapse():
        async with trio.open_nursery() as nursery:
            holdings = Holdings(nursery)
            yield Bench(dispatcher, serving, events, attached, tmp_path, holdings)
            await holdings.end_all()


@attrs.define
class Scripted:
    """An operator in process that does as it is told, and keeps what it was shown."""

    executes: Any = None
    """A value, an exception, or a function of the frame."""
    answers: Any = None
    gate: Any = None
    seen: list[tuple[str, Any]] = attrs.field(factory=list)
    stop: trio.Event | None = None

    async def _give(self, what: Any, frame: Any) -> Any:
        if callable(what):
            what = what(frame)
            if hasattr(what, "__await__"):
                what = await what
        if isinstance(what, Exception):
            raise what
        return what

    async def ask(self, frame: Any) -> Any:
        self.seen.append(("ask", frame.question))
        return await self._give(self.answers, frame)

    async def before_spawn(self, frame: Any) -> Any:
        self.seen.append(("before", frame.attempt))
        return await self._give(self.gate, frame)

    def after_spawn(self, frame: Any) -> None:
        self.seen.append(("after", frame.result))

    async def execute(self, frame: Any) -> Any:
        self.seen.append(("execute", frame.attempt))
        return await self._give(self.executes, frame)

    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.seen]
