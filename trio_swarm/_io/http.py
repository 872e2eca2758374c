"""One port for REST and WebSocket: an HTTP/1.1 front on h11.

For each connection, in this order: a slot, the head (deadline, size, ASCII), ``Host``
and ``Origin``, the route, its body or its upgrade, the endpoint, one write. A WebSocket
gets the bytes that were read replayed, so that it parses the handshake by itself.

Nothing here is shielded: cancelling the server ends it at once, also while a client has
stopped reading. And nothing leaves a connection but by ending it: `serve_guarded` puts
a barrier around each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Final

import attrs
import h11
import trio
import trio.abc

from trio_swarm._io.guard import serve_guarded
from trio_swarm._io.head import Head, HeadError, read_head
from trio_swarm._io.http_answers import Answers
from trio_swarm._io.http_body import BodyStream, require_json, too_slow
from trio_swarm._io.http_limits import FrontLimits
from trio_swarm._io.http_messages import (
    HttpError,
    Request,
    Response,
    StreamedResponse,
    UpgradeRequest,
    parse_body,
    render,
    render_head,
)
from trio_swarm._io.http_places import Places, hurried, within_descriptors
from trio_swarm._io.http_routes import Match, Route, RouteTable, UpgradeRoute
from trio_swarm._io.http_stream import PushBackStream, linger, peer_of, place_of_peer, send_within
from trio_swarm._io.http_upgrade import require_upgrade
from trio_swarm._io.transport import Transport
from trio_swarm._io.ws import accept_ws
from trio_swarm._state.crowd import Crowd, Guest
from trio_swarm._state.policy import EdgePolicy
from trio_swarm.errors import HandshakeError, PeerError, SlowPeerError
from trio_swarm.limits import (
    MAX_CONNECTIONS,
    MAX_UNPROVEN,
    RECEIVE_BUFFER,
)

__all__ = ["FrontLimits", "serve_http"]

_CLIENT_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, SlowPeerError)
"""There is nobody to tell anything: the connection is over, and that is all."""
_LATE: Final = 408
_HURRIED: Final = hurried().response
_OUSTED_DEADLINE: Final = 0.1
"""For telling who must go why: its room is another's already."""


async def serve_http(
    listeners: Sequence[trio.abc.Listener[Any]],
    routes: RouteTable,
    *,
    policy: EdgePolicy,
    limits: FrontLimits | None = None,
    max_connections: int = MAX_CONNECTIONS,
    max_unproven: int = MAX_UNPROVEN,
    knows: Callable[[str], bool] | None = None,
    name: str = "http",
    on_error: Callable[[str, Exception], None] | None = None,
    answers: Answers | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer HTTP requests on ``listeners`` until cancelled; closes them.

    One bad connection never ends another: an exception of an endpoint is answered 500,
    goes to ``on_error``, and ends its own connection. Cancelling ends everything at once; who
    would rather not cut off what endpoints have answered waits for ``answers`` before.

    Of the ``max_connections`` (fewer where the process may not open as many files), one place
    (`http_stream.place_of_peer`) may hold ``max_unproven`` at ease that have shown nothing. A connection
    counts until it becomes a WebSocket or an endpoint calls `Request.proven`, and after that no more, however
    long it lasts. One that comes beyond is let in all the same, because two hundred workers may well connect
    before the first of them has sent a byte; but its request's head must come within ``hurried_deadline``,
    and its body again, else 429 with ``Retry-After``; and it has this one request, unless that proves it.

    When there are ``max_connections``, one goes for the next that comes (429, if it has begun a request or
    never had an answer): the oldest that must hurry, else that never made a request, else that is idle
    after one, of the place that has most of them. Nobody is cut off whose whole request is there, until its
    answer begins, which may be read slowly; so those that prove nothing are answered by turns: a quarter of
    ``max_connections`` at a time, of one place three quarters of that. Who waits for its turn longer than
    ``hurried_deadline`` is answered 429. Half of ``max_connections`` may be WebSockets, of one place three
    quarters of that (503 beyond), which anybody can have who logs in; an eighth more, likewise, those that
    an endpoint accepts as ``replacing`` another, which it ends then. So only where all are proven,
    WebSockets or being answered is a further one hung up on, and (of 4 or more) an eighth are proven then.

    ``knows`` says of a bearer, before the body is read, that it proves its connection: for those credentials
    that nobody can guess.
    """
    task_status.started()  # They listen already: who connects now is served.
    own = limits if limits is not None else FrontLimits()
    front = _Front(
        routes,
        policy,
        own,
        Places(name, Crowd(within_descriptors(max_connections, name), max_unproven), own.hurried_deadline),
        knows if knows is not None else lambda bearer: False,
        answers if answers is not None else Answers(),
    )
    # The front counts by itself: who is one too many may be another than the one that comes.
    await serve_guarded(listeners, front.serve, max_connections=sys.maxsize, name=name, on_error=on_error)


@attrs.define
class _Front:
    routes: RouteTable
    policy: EdgePolicy
    limits: FrontLimits
    places: Places
    knows: Callable[[str], bool]
    answers: Answers

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, to its end."""
        entered = self.places.enter(place_of_peer(stream))
        if entered is None:
            await trio.aclose_forcefully(stream)
            return
        guest, scope = entered
        try:
            connection = _Connection(self, PushBackStream(stream), peer_of(stream), guest)
            with suppress(*_CLIENT_GONE):
                with scope:
                    if await connection.run():
                        await linger(stream)
                if scope.cancelled_caught and connection.owed:
                    with trio.move_on_after(_OUSTED_DEADLINE):
                        await connection.refuse(_HURRIED)
        finally:
            self.places.leave(guest)
            await trio.aclose_forcefully(stream)


@attrs.define(eq=False)
class _Connection:
    """The requests of one client, one after the other."""

    front: _Front
    stream: PushBackStream
    peer: str
    guest: Guest
    owed: bool = True
    """If it must go, it is told why: it is not just idle after an answer, nor has it begun to have one."""

    async def run(self) -> bool:
        """Serve until the client or we have had enough. True: close politely."""
        limits = self.front.limits
        while True:
            deadline = limits.head_deadline
            if self.guest.hurried:
                deadline = min(deadline, limits.hurried_deadline)
            try:
                opened = await read_head(
                    self.stream, deadline=deadline, max_head=limits.max_head, opaque_authorization=True
                )
            except HeadError as error:
                late = error.status == _LATE and self.guest.hurried
                await self.refuse(_HURRIED if late else Response.text(error.status, error.text))
                return True
            if opened is None:
                return False
            exchange = _Exchange(self.front, self.stream, self.peer, self.guest, self._begins, *opened)
            goes_on = await exchange.run()
            self.front.places.answered(self.guest)
            if not goes_on:
                return exchange.answered
            if not await self._next_request_begins(exchange.trailing):
                return False
            self.owed = True

    def _begins(self) -> None:
        """It has its answer now, or a WebSocket."""
        self.owed = False
        # How long it takes to read that is up to the client: meanwhile others are to have their turn.
        self.front.places.answered(self.guest)

    async def _next_request_begins(self, trailing: bytes) -> bool:
        """Wait for the first bytes of another request, unless they are here already."""
        if not trailing:
            with trio.move_on_after(self.front.limits.idle_deadline):
                trailing = bytes(await self.stream.receive_some(RECEIVE_BUFFER))
        self.stream.push_back(trailing)
        return bool(trailing)

    async def refuse(self, answer: Response) -> None:
        """Answer what was no request, or none yet."""
        self.owed = False  # One answer, whatever happens to it while that is read.
        data = render(h11.Connection(h11.SERVER), answer, close=True)
        await send_within(self.stream, data, self.front.limits.send_deadline)


@attrs.define(eq=False)
class _Exchange:
    """One request and its answer."""

    front: _Front
    stream: PushBackStream
    peer: str
    guest: Guest
    begins: Callable[[], None]
    """To be called before anything of an answer is written."""
    head: Head
    conn: h11.Connection
    body: BodyStream | None = None
    answered: bool = False
    trailing: bytes = b""
    """What the client has sent beyond this request."""
    admitted: bool = False
    """Nothing speaks against what the head says of the message and of where it comes from."""
    accepting: bool = False
    """The WebSocket has the stream: nothing of HTTP is written to it any more."""

    async def run(self) -> bool:
        """Answer it. True if the connection can carry another request.

        What an endpoint raises, after it was answered 500; but once it has begun to accept
        a WebSocket, a `PeerError` is how that ended.
        """
        bug: Exception | None = None
        try:
            response = await self._respond()
        except HttpError as error:
            response = error.response
        except _CLIENT_GONE:
            raise
        except Exception as error:
            if self.accepting and isinstance(error, PeerError):
                # A refused handshake was answered: let the client read it.
                self.answered = isinstance(error, HandshakeError)
                return False
            bug, response = error, None
        if self.accepting:
            if bug is not None:
                raise bug
            return False
        if bug is not None:
            if not self.guest.gone:
                with suppress(*_CLIENT_GONE), self.front.answers.writing():
                    await self._answer(Response.text(500, "internal error"), close=True)
            raise bug
        if response is None:
            return False
        goes_on = self.admitted and self._body_is_read() and not self.guest.hurried
        with self.front.answers.writing():
            await self._answer(response, close=not goes_on)
        if self.conn.our_state is not h11.DONE or self.conn.their_state is not h11.DONE:
            return False
        self.trailing = bytes(self.conn.trailing_data[0])
        return True

    async def _respond(self) -> Response | None:
        """The answer; None if the request became a WebSocket, which is over now."""
        match = self._admit()
        self._recognise()
        if isinstance(match.route, UpgradeRoute):
            require_upgrade(self.head)
            await self.front.places.ask(self.guest)
            upgrade = UpgradeRequest(self.head, match.params, peer=self.peer, accept=self._accept)
            return await match.route.endpoint(upgrade)
        route, body = match.route, self._body_of(match.route)
        self.body = body
        request = Request(
            self.head,
            match.params,
            peer=self.peer,
            on_proven=self._proven,
            on_gone=self.stream.wait_gone,
        )
        if route.body == "stream":
            return await route.endpoint(attrs.evolve(request, stream=body))
        if route.body == "json":
            require_json(self.head)
        data = await body.read_all()
        if route.body == "none":
            return await route.endpoint(request)
        decoded = parse_body(data) if route.body == "json" else None
        return await route.endpoint(attrs.evolve(request, body=data, json=decoded))

    def _recognise(self) -> None:
        """In a frame of its own, so that no traceback of an endpoint holds the bearer."""
        values = self.head.all("authorization")
        if len(values) == 1 and values[0].startswith("Bearer ") and self.front.knows(values[0][7:].strip()):
            self._proven()

    def _body_of(self, route: Route) -> BodyStream:
        limits, hurries = self.front.limits, self.guest.hurried
        return BodyStream(
            self.head,
            self.conn,
            self.stream,
            self._send,
            max_body=limits.max_body if route.max_body is None else route.max_body,
            deadline=min(limits.body_deadline, limits.hurried_deadline) if hurries else limits.body_deadline,
            min_progress=limits.min_progress,
            late=hurried if hurries else too_slow,
            on_whole=partial(self.front.places.ask, self.guest),
        )

    def _admit(self) -> Match:
        """The route, if the request may come in at all; else its connection is closed too."""
        if self.head.all("content-length") and self.head.all("transfer-encoding"):
            # Two lengths are how one request is smuggled inside another (RFC 9112, 6.3): what
            # follows on the connection may be the body to whoever stands before us.
            raise HttpError(400, "Content-Length and Transfer-Encoding exclude each other")
        verdict = self.front.policy.judge(
            hosts=self.head.all("host"),
            origins=self.head.all("origin"),
            fetch_sites=self.head.all("sec-fetch-site"),
        )
        if verdict is not None:
            raise HttpError(verdict.status, verdict.text)
        self.admitted = True
        return self.front.routes.find(self.head)

    def _body_is_read(self) -> bool:
        """Nothing of the request is left on the wire; one without a body ends with its head."""
        if self.conn.their_state is not h11.SEND_BODY:
            # After a malformed body nobody knows where it ends.
            return self.conn.their_state is not h11.ERROR
        try:
            return isinstance(self.conn.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return False

    async def _answer(self, response: Response, *, close: bool) -> None:
        if self.guest.gone:
            await trio.lowlevel.checkpoint()  # It is told that it must go.
        self.begins()
        head_only = self.head.method == "HEAD"
        if isinstance(response, StreamedResponse):
            await self._answer_in_pieces(response, head_only=head_only, close=close)
            return
        await self._send(render(self.conn, response, head_only=head_only, close=close))
        self.answered = True

    async def _answer_in_pieces(self, response: StreamedResponse, *, head_only: bool, close: bool) -> None:
        """The head goes with the first piece: until then, another answer may take its place."""

        async def send(piece: bytes) -> None:
            data = (
                b""
                if self.answered
                else render_head(self.conn, response, length=response.length, close=close)
            )
            self.answered = True
            await self._send(data + (self.conn.send(h11.Data(data=piece)) or b""))

        failed: Exception | None = None
        try:
            if head_only or not response.length:
                await send(b"")
            else:
                await response.produce(send)
        except Exception as error:
            if self.answered or isinstance(error, _CLIENT_GONE):
                raise
            failed = error
        if failed is None:
            await self._send(self.conn.send(h11.EndOfMessage()))
        elif isinstance(failed, HttpError):
            await self._answer(failed.response, close=close)
        else:
            await self._answer(Response.text(500, "internal error"), close=True)
            raise failed

    async def _send(self, data: bytes | None) -> None:
        await send_within(self.stream, data or b"", self.front.limits.send_deadline)

    def _accept(self, *, replacing: bool = False, **options: Any) -> AbstractAsyncContextManager[Transport]:
        self.front.places.sit(self.guest, replacing=replacing)
        self.begins()
        self.accepting = True
        return accept_ws(self.stream, self.head.raw, **options)

    def _proven(self) -> None:
        self.front.places.know(self.guest)
        if self.body is not None:
            self.body.extend(self.front.limits.body_deadline)
