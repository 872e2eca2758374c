"""One port for REST and WebSocket: an HTTP/1.1 front on h11.

For each connection, in this order: a slot, the head (deadline, size, ASCII), ``Host``
and ``Origin``, the route, its body or its upgrade, the endpoint, one write. A WebSocket
gets the bytes that were read replayed, so that it parses the handshake by itself.

Nothing here is shielded: cancelling the server ends it at once, also while a client has
stopped reading. And nothing leaves a connection but by ending it: `serve_guarded` puts
a barrier around each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import attrs
import h11
import trio
import trio.abc

from trio_swarm._io.guard import serve_guarded
from trio_swarm._io.head import Head, HeadError, read_head
from trio_swarm._io.http_body import BodyStream, require_json
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
from trio_swarm._io.http_routes import Match, Route, RouteTable, UpgradeRoute
from trio_swarm._io.http_upgrade import require_upgrade
from trio_swarm._io.transport import Transport
from trio_swarm._io.ws import accept_ws
from trio_swarm._state.policy import EdgePolicy
from trio_swarm.errors import HandshakeError, PeerError, SlowPeerError
from trio_swarm.limits import (
    CLOSE_DEADLINE,
    HANDSHAKE_DEADLINE,
    MAX_BODY,
    MAX_CONNECTIONS,
    MAX_HEAD,
    RECEIVE_BUFFER,
    SEND_DEADLINE,
)

__all__ = ["FrontLimits", "PushBackStream", "serve_http"]

_CLIENT_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, SlowPeerError)
"""There is nobody to tell anything: the connection is over, and that is all."""
_LINGER_BYTES: Final = 4 * MAX_BODY
"""What a refused client may still send before it is cut off in the middle of it."""


@attrs.frozen
class FrontLimits:
    """What one connection may take. Times in seconds, sizes in bytes."""

    max_head: int = MAX_HEAD
    max_body: int = MAX_BODY
    head_deadline: float = HANDSHAKE_DEADLINE
    """From the first byte of a request, or from connecting, to the end of its head."""
    body_deadline: float = HANDSHAKE_DEADLINE
    """For the whole body; of a streamed one, for each ``min_progress`` bytes."""
    min_progress: int = 4096
    """What a client must have sent of a streamed body before its deadline starts again."""
    idle_deadline: float = HANDSHAKE_DEADLINE
    """Between two requests of one connection."""
    send_deadline: float = SEND_DEADLINE
    """For one answer to be taken by the client's system."""


async def serve_http(
    listeners: Sequence[trio.abc.Listener[Any]],
    routes: RouteTable,
    *,
    policy: EdgePolicy,
    limits: FrontLimits | None = None,
    max_connections: int = MAX_CONNECTIONS,
    name: str = "http",
    on_error: Callable[[str, Exception], None] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer HTTP requests on ``listeners`` until cancelled; closes them.

    One bad connection never ends another: an exception of an endpoint is answered 500,
    goes to ``on_error``, and ends its own connection. Cancelling ends everything at once.
    """
    task_status.started()  # They listen already: who connects now is served.
    front = _Front(routes, policy, limits if limits is not None else FrontLimits())
    await serve_guarded(
        listeners,
        front.serve,
        max_connections=max_connections,
        name=name,
        on_error=on_error,
    )


@attrs.frozen
class _Front:
    routes: RouteTable
    policy: EdgePolicy
    limits: FrontLimits

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, to its end."""
        try:
            connection = _Connection(self, PushBackStream(stream), _peer_of(stream))
            try:
                if await connection.run():
                    await _linger(stream)
            except _CLIENT_GONE:
                return
        finally:
            await trio.aclose_forcefully(stream)


@attrs.define(eq=False)
class _Connection:
    """The requests of one client, one after the other."""

    front: _Front
    stream: PushBackStream
    peer: str

    async def run(self) -> bool:
        """Serve until the client or we have had enough. True: close politely."""
        while True:
            try:
                opened = await read_head(
                    self.stream,
                    deadline=self.front.limits.head_deadline,
                    max_head=self.front.limits.max_head,
                    opaque_authorization=True,
                )
            except HeadError as error:
                answer = Response.text(error.status, error.text)
                await self._send(render(h11.Connection(h11.SERVER), answer, close=True))
                return True
            if opened is None:
                return False
            exchange = _Exchange(self.front, self.stream, self.peer, *opened)
            if not await exchange.run():
                return exchange.answered
            if not await self._next_request_begins(exchange.trailing):
                return False

    async def _next_request_begins(self, trailing: bytes) -> bool:
        """Wait for the first bytes of another request, unless they are here already."""
        if not trailing:
            with trio.move_on_after(self.front.limits.idle_deadline):
                trailing = bytes(await self.stream.receive_some(RECEIVE_BUFFER))
        self.stream.push_back(trailing)
        return bool(trailing)

    async def _send(self, data: bytes) -> None:
        await _send_within(self.stream, data, self.front.limits.send_deadline)


@attrs.define(eq=False)
class _Exchange:
    """One request and its answer."""

    front: _Front
    stream: PushBackStream
    peer: str
    head: Head
    conn: h11.Connection
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
            with suppress(*_CLIENT_GONE):
                await self._answer(Response.text(500, "internal error"), close=True)
            raise bug
        if response is None:
            return False
        await self._answer(response, close=not (self.admitted and self._body_is_read()))
        if self.conn.our_state is not h11.DONE or self.conn.their_state is not h11.DONE:
            return False
        self.trailing = bytes(self.conn.trailing_data[0])
        return True

    async def _respond(self) -> Response | None:
        """The answer; None if the request became a WebSocket, which is over now."""
        match = self._admit()
        if isinstance(match.route, UpgradeRoute):
            require_upgrade(self.head)
            upgrade = UpgradeRequest(self.head, match.params, peer=self.peer, accept=self._accept)
            return await match.route.endpoint(upgrade)
        route, body = match.route, self._body_of(match.route)
        request = Request(self.head, match.params, peer=self.peer)
        if route.body == "stream":
            return await route.endpoint(attrs.evolve(request, stream=body))
        if route.body == "json":
            require_json(self.head)
        data = await body.read_all()
        if route.body == "none":
            return await route.endpoint(request)
        decoded = parse_body(data) if route.body == "json" else None
        return await route.endpoint(attrs.evolve(request, body=data, json=decoded))

    def _body_of(self, route: Route) -> BodyStream:
        limits = self.front.limits
        return BodyStream(
            self.head,
            self.conn,
            self.stream,
            self._send,
            max_body=limits.max_body if route.max_body is None else route.max_body,
            deadline=limits.body_deadline,
            min_progress=limits.min_progress,
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
            return True
        try:
            return isinstance(self.conn.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return False

    async def _answer(self, response: Response, *, close: bool) -> None:
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
        await _send_within(self.stream, data or b"", self.front.limits.send_deadline)

    def _accept(self, **options: Any) -> AbstractAsyncContextManager[Transport]:
        self.accepting = True
        return accept_ws(self.stream, self.head.raw, **options)


@attrs.define(eq=False)
class PushBackStream(trio.abc.Stream):
    """A stream whose next bytes can be put back in front of what it still has."""

    inner: trio.abc.Stream
    _again: bytes = b""

    def push_back(self, data: bytes) -> None:
        """``data`` is what is received next."""
        self._again = data + self._again

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """What was pushed back first, then the stream's own."""
        if not self._again:
            return await self.inner.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        size = len(self._again) if max_bytes is None else max_bytes
        data, self._again = self._again[:size], self._again[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As the stream's own."""
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream's own."""
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream."""
        await self.inner.aclose()


def _peer_of(stream: trio.abc.Stream) -> str:
    """The IP address at the other end; empty where it has none."""
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    try:
        name = inner.socket.getpeername() if isinstance(inner, trio.SocketStream) else None
    except OSError:
        return ""  # It is gone already: whatever it sent is answered, to nobody.
    return str(name[0]) if isinstance(name, tuple) else ""


async def _send_within(stream: trio.abc.SendStream, data: bytes, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await stream.send_all(data)
        return
    raise SlowPeerError("the client does not read")


async def _linger(stream: trio.abc.Stream) -> None:
    """Let the client read the answer before the connection goes.

    Closing a socket that still has unread bytes resets it, and a reset throws away what
    the client has not read yet: the very answer that says why it was refused.
    """
    left = _LINGER_BYTES
    with trio.move_on_after(CLOSE_DEADLINE):
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        # TLS has no half-close: there, the answer's `Connection: close` has to do.
        while left > 0:
            data = await stream.receive_some(RECEIVE_BUFFER)
            if not data:
                break
            left -= len(data)
        await stream.aclose()
