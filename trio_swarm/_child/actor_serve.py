"""An actor's WebSocket server: who may come in, and when it is time to end (contract, A4.4)."""

from __future__ import annotations

import hmac
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

import attrs
import trio

from trio_swarm._child.actor_conn import Connection
from trio_swarm._child.actor_engines import Engine
from trio_swarm._io.guard import serve_guarded
from trio_swarm._io.head import Head, HeadError, read_head
from trio_swarm._io.ws import accept_ws
from trio_swarm._state.policy import EdgePolicy, loopback_hosts

__all__ = ["ACCEPT_WAIT", "IDLE_WAIT", "ActorServer", "Ending"]

ACCEPT_WAIT: Final = 120.0
"""Seconds that a one-shot actor waits for its one connection (A4.4)."""

IDLE_WAIT: Final = 300.0
"""Seconds without a connection after which a reusable actor ends (A4.4)."""

REFUSAL_LIMIT: Final = 2.0
"""Seconds for a refused peer to take its answer."""


@attrs.frozen
class Ending:
    """Why an actor stopped serving."""

    reason: str
    ok: bool
    """Whether that is a clean end."""


@attrs.define(eq=False)
class ActorServer:
    """Serves one engine to one connection after another; each one's faults end that one alone.

    The contract's original ends a one-shot worker on any first connection, even a bare TCP probe. Here
    only a completed upgrade counts: a probe, a wrong token or a failed handshake is refused
    and the worker keeps waiting for its parent.
    """

    engine: Engine
    reusable: bool
    token: str | None = attrs.field(repr=False)
    """The bearer token that a parent must show; None admits anybody on this machine."""
    wait: float
    """Seconds without a connection after which it ends."""
    on_runaway: Callable[[], Awaitable[None]]
    """Ends this process around an engine that does not end."""
    served: int = attrs.field(default=0, init=False)
    """Connections that completed their upgrade."""
    _turn: trio.Lock = attrs.field(factory=trio.Lock, init=False, repr=False)
    _idle: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _policy: EdgePolicy = attrs.field(default=EdgePolicy(frozenset()), init=False, repr=False)
    _ending: Ending | None = attrs.field(default=None, init=False)

    async def serve(self, listeners: list[trio.SocketListener]) -> Ending:
        """Serve until there is nothing more to wait for. Cancelled: the connection's engine is drained."""
        port: int = listeners[0].socket.getsockname()[1]
        self._policy = EdgePolicy(loopback_hosts(port))
        with self._idle:
            self._idle.deadline = trio.current_time() + self.wait
            await serve_guarded(listeners, self._one, name="actor")
        if self._ending is not None:
            return self._ending
        return Ending(f"no connection within {self.wait:g} s", ok=self.reusable)

    async def _one(self, stream: trio.abc.Stream) -> None:
        try:
            got = await read_head(stream)
        except HeadError as error:
            await _refuse(stream, error.status, error.text)
            return
        if got is None:
            return
        head = got[0]
        refused = self._judge(head)
        if refused is not None:
            await _refuse(stream, *refused)
            return
        async with self._turn:  # the next connection waits for the end of this one
            if self._ending is not None or (self.served and not self.reusable):
                await _refuse(stream, 503, "this actor has served its one connection")
                return
            async with accept_ws(stream, head.raw) as transport:
                self.served += 1
                with self._busy():
                    connection = Connection(transport, self.engine, on_runaway=self.on_runaway)
                    await connection.serve()
            if connection.tainted:
                self._end(Ending("a cancelled run did not end", ok=False))
            elif not self.reusable:
                self._end(Ending("served its one connection", ok=True))

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """A connection is never cut by the timer (A4.4)."""
        self._idle.deadline = math.inf
        try:
            yield
        finally:
            self._idle.deadline = trio.current_time() + (self.wait if self.reusable else math.inf)

    def _end(self, ending: Ending) -> None:
        self._ending = ending
        self._idle.cancel()

    def _judge(self, head: Head) -> tuple[int, str] | None:
        verdict = self._policy.judge(
            hosts=head.all("host"), origins=head.all("origin"), fetch_sites=head.all("sec-fetch-site")
        )
        if verdict is not None:
            return verdict.status, verdict.text
        if self.token is not None and not _bears(head, self.token):
            return 401, "a bearer token is needed"
        return None


def _bears(head: Head, token: str) -> bool:
    given = head.all("authorization")
    if len(given) != 1:
        return False
    scheme, _, value = given[0].partition(" ")
    # Bytes, because compare_digest raises on text that is not ASCII.
    return scheme.lower() == "bearer" and hmac.compare_digest(value.strip().encode(), token.encode())


async def _refuse(stream: trio.abc.Stream, status: int, text: str) -> None:
    body = text.encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    challenge = "WWW-Authenticate: Bearer\r\n" if status == 401 else ""
    lines = f"{head}{challenge}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with trio.move_on_after(REFUSAL_LIMIT):
        await stream.send_all(lines.encode() + body)
