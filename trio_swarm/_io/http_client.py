"""One HTTP request on a connection of its own: what a login and a worker need, and no more.

No connection is kept: one that the server closes just as the next request goes out on it is
the case where nobody can say whether that request arrived.
"""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final, Protocol, TypeAlias

import attrs
import h11
import trio
import trio.abc

from trio_swarm._io.dialing import connect
from trio_swarm._io.groups import collapse
from trio_swarm._io.http_peer import Address, Reply
from trio_swarm.errors import HandshakeError, PeerGoneError, ProtocolError, SlowPeerError
from trio_swarm.limits import HANDSHAKE_DEADLINE, MAX_BODY, MAX_HEAD, PEER_SILENCE, RECEIVE_BUFFER

__all__ = ["Address", "Outgoing", "Reply", "exchange", "request"]

_Take: TypeAlias = Callable[[bytes], Awaitable[None]]
_PIECE: Final = 256 * 2**10
"""Bytes of a body handed to the system in one write: each of them is progress."""


async def request(
    address: Address,
    method: str,
    path: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    json_body: Any = None,
    ssl_context: ssl.SSLContext | None = None,
    deadline: float = HANDSHAKE_DEADLINE,
    max_body: int = MAX_BODY,
    on_reply: Callable[[Reply], None] | None = None,
    grace: float = 0.0,
) -> Reply:
    """Connect, send one request, read its answer, disconnect; within ``deadline`` seconds.

    ``on_reply`` is called with the answer as soon as it is there. With ``grace``, a request
    that was sent is not given up at once when this is cancelled or late: for so many
    seconds more its answer is waited for, and told to ``on_reply`` alone.

    Raises:
        HandshakeError: nobody could be connected to, or not with TLS.
        PeerGoneError: the connection ended before the answer did.
        ProtocolError: the answer is no HTTP, or larger than ``max_body``.
        SlowPeerError: it took longer than ``deadline``.

    When cancelled, the request may or may not have been carried out, but for ``grace``.
    """
    body = b"" if json_body is None else json.dumps(json_body, allow_nan=False).encode("ascii")
    sent = [("Host", address.authority), ("Connection", "close"), *headers]
    if method != "GET":
        sent.append(("Content-Length", str(len(body))))
    if json_body is not None:
        sent.append(("Content-Type", "application/json"))
    with trio.move_on_after(deadline):
        stream = await connect(address, ssl_context)
        try:
            with _peer_errors():
                conn = await _send(stream, method, address.path + path, sent, body)
            return await _answer(stream, conn, max_body, on_reply, grace)
        finally:
            await trio.aclose_forcefully(stream)
    raise SlowPeerError(f"no answer from {address.name} within {deadline:g} s")


@attrs.frozen
class Outgoing:
    """A request: the path below the server's own, with its query, and a body of bytes."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]] = attrs.field(default=(), repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    pieces: Callable[[], AsyncGenerator[bytes, None]] | None = attrs.field(default=None, repr=False)
    """Makes the body instead, once for each sending; it is closed at the end."""


async def exchange(
    address: Address,
    outgoing: Outgoing,
    *,
    ssl_context: ssl.SSLContext | None = None,
    silence: float = PEER_SILENCE,
    max_body: int = MAX_BODY,
    on_sending: Callable[[], None] | None = None,
    take: Callable[[bytes], Awaitable[None]] | None = None,
) -> Reply:
    """Connect, send one request while its answer is awaited already, disconnect.

    However long it takes, but for connecting and as long as something moves: ``silence``
    seconds without a byte to or fro end it. An answer that comes before all was sent is the
    answer: a server that refuses a large body need not take it first.

    ``on_sending`` is called before the first byte of the request is written. Until then it
    certainly has not arrived; after that it may have, whatever is raised here.

    ``take`` is handed the body of an answer of 200 piece by piece, instead of the `Reply`; the
    time that it and ``outgoing.pieces`` take is not the server's silence. What they raise is
    raised here.

    Raises:
        HandshakeError: nobody could be connected to.
        PeerGoneError: the connection ended before the answer did.
        ProtocolError: the answer is no HTTP, or its body larger than ``max_body`` bytes.
        SlowPeerError: ``silence``.

    When cancelled after ``on_sending``, the request may or may not have been carried out.
    """
    head, conn = _opened(address, outgoing)
    stream = await _connect_in_time(address, ssl_context)
    try:
        if on_sending is not None:
            on_sending()
        with trio.CancelScope(deadline=trio.current_time() + silence) as watch:
            watched = _Watched(stream, watch, silence)
            with collapse():
                async with trio.open_nursery() as nursery:
                    if outgoing.pieces is None:
                        nursery.start_soon(_send_pieces, watched, head, outgoing.body or b"")
                    else:
                        nursery.start_soon(_send_chunks, watched, head, outgoing.pieces)
                    with _peer_errors():
                        reply = await _receive(watched, conn, max_body, watched.taking(take))
                    nursery.cancel_scope.cancel()
            return reply
        raise SlowPeerError(f"{address.name} was silent for {silence:g} s")
    finally:
        await trio.aclose_forcefully(stream)


def _opened(address: Address, outgoing: Outgoing) -> tuple[bytes, h11.Connection]:
    """The head's bytes, and a connection that has sent all of the request and waits."""
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    headers = [("Host", address.authority), ("Connection", "close"), *outgoing.headers]
    if outgoing.pieces is not None:
        headers.append(("Transfer-Encoding", "chunked"))
    elif outgoing.method != "GET":
        headers.append(("Content-Length", str(len(outgoing.body or b""))))
    target = address.path + outgoing.target
    head = conn.send(h11.Request(method=outgoing.method, target=target, headers=headers))
    if outgoing.body and outgoing.pieces is None:
        conn.send(h11.Data(data=outgoing.body))
    conn.send(h11.EndOfMessage())
    return head or b"", conn


async def _connect_in_time(address: Address, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    with trio.move_on_after(HANDSHAKE_DEADLINE):
        return await connect(address, ssl_context)
    raise HandshakeError(f"cannot connect to {address.name} within {HANDSHAKE_DEADLINE:g} s")


@attrs.frozen
class _Watched:
    """A stream on which every byte puts the deadline of ``watch`` off."""

    stream: trio.abc.Stream
    watch: trio.CancelScope
    silence: float

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        self._moved()
        return data

    async def send_all(self, data: bytes | memoryview) -> None:
        await self.stream.send_all(data)
        self._moved()

    def _moved(self) -> None:
        self.watch.deadline = trio.current_time() + self.silence

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What the caller's own code does meanwhile is no silence."""
        self.watch.deadline = math.inf
        try:
            yield
        finally:
            self._moved()

    def taking(self, take: _Take | None) -> _Take | None:
        """The same, unwatched."""
        if take is None:
            return None
        given = take

        async def taken(data: bytes) -> None:
            with self.unwatched():
                await given(data)

        return taken


async def _send_pieces(stream: _Watched, head: bytes, body: bytes) -> None:
    view = memoryview(body)
    # A server that hangs up, or has answered and closed its end, is the reader's to judge: what
    # it said before is still to be read.
    with suppress(trio.BrokenResourceError):
        await stream.send_all(head + view[:_PIECE])
        for at in range(_PIECE, len(view), _PIECE):
            await stream.send_all(view[at : at + _PIECE])


async def _send_chunks(
    stream: _Watched, head: bytes, pieces: Callable[[], AsyncGenerator[bytes, None]]
) -> None:
    # As above; but what the pieces raise is the caller's, and ends the exchange.
    async with aclosing(pieces()) as body:
        ahead = head
        while True:
            with stream.unwatched():
                piece = await anext(body, None)
            if piece is None:
                break
            if piece:
                if not await _sent(stream, b"%s%x\r\n%s\r\n" % (ahead, len(piece), piece)):
                    return
                ahead = b""
        await _sent(stream, ahead + b"0\r\n\r\n")


async def _sent(stream: _Watched, data: bytes) -> bool:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        return False
    return True


@contextmanager
def _peer_errors() -> Iterator[None]:
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise PeerGoneError("the server hung up before it answered") from error
    except h11.RemoteProtocolError as error:
        raise ProtocolError("the server's answer is not HTTP") from error


async def _answer(
    stream: trio.abc.Stream,
    conn: h11.Connection,
    max_body: int,
    on_reply: Callable[[Reply], None] | None,
    grace: float,
) -> Reply:
    """The answer. A cancellation from outside ends this ``grace`` seconds later."""
    received: list[Reply] = []
    shield = trio.CancelScope(shield=grace > 0)
    with collapse():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_cancelled, shield, grace)
            with shield, _peer_errors():
                received.append(await _receive(stream, conn, max_body))
                if on_reply is not None:
                    on_reply(received[0])
            nursery.cancel_scope.cancel()
    return received[0]


async def _end_when_cancelled(scope: trio.CancelScope, grace: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        scope.deadline = trio.current_time() + grace


async def _send(
    stream: trio.abc.Stream,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
) -> h11.Connection:
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    head = conn.send(h11.Request(method=method, target=target, headers=list(headers)))
    data = conn.send(h11.Data(data=body)) if body else b""
    end = conn.send(h11.EndOfMessage())
    await stream.send_all(b"".join(piece for piece in (head, data, end) if piece))
    return conn


class _Receives(Protocol):
    async def receive_some(self, max_bytes: int) -> bytes | bytearray: ...


async def _receive(
    stream: _Receives, conn: h11.Connection, max_body: int, take: _Take | None = None
) -> Reply:
    content, size = bytearray(), 0
    response: h11.Response | None = None
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            received = bytes(await stream.receive_some(RECEIVE_BUFFER))
            if not received and not _ends_with_the_connection(response):
                raise PeerGoneError("the server hung up before it answered")
            conn.receive_data(received)
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > max_body:
                raise ProtocolError(f"the server's answer is larger than {max_body} bytes")
            if take is not None and response is not None and response.status_code == 200:
                await take(bytes(event.data))
            else:
                content += event.data
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            kept = tuple((key.decode("latin-1"), value.decode("latin-1")) for key, value in response.headers)
            return Reply(response.status_code, kept, bytes(content))
        elif isinstance(event, h11.ConnectionClosed):
            raise PeerGoneError("the server hung up before it answered")


def _ends_with_the_connection(response: h11.Response | None) -> bool:
    """Its body has no length of its own (RFC 9112, 6.3): the end of the connection is the body's."""
    if response is None:
        return False
    framed = {b"content-length", b"transfer-encoding"}
    return not any(name in framed for name, _ in response.headers)
