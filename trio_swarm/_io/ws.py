"""WebSocket transports; the only module that knows trio_websocket.

trio-websocket runs a task per connection in a nursery of ours. What one peer can make that
task raise is more than its documentation says: ``UnicodeDecodeError``, h11's and wsproto's
``LocalProtocolError``, ``ConnectionClosed``; and it comes out of the nursery, not out of a
call. So the nursery is inside a task of its own, behind a barrier, and what comes out of a
`Transport` is a `PeerError` or ``trio.BrokenResourceError``, whatever happened inside.

Its part is the handshake, the pings and the closing; messages take the short way through
the wire beneath it (`wswire`, `wsframes`).
"""

from __future__ import annotations

import copy
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NoReturn, TypeAlias, cast

import trio
from trio_websocket import WebSocketConnection, wrap_client_stream, wrap_server_stream

from trio_swarm._io.closing import closing
from trio_swarm._io.dialing import connect
from trio_swarm._io.groups import collapse, leaves, reraise
from trio_swarm._io.head import HeadError, parse_head, split_head
from trio_swarm._io.transport import Transport
from trio_swarm._io.wsframes import FrameReader, text_frames
from trio_swarm._io.wsopening import check_upgrade, parse_url, refuse
from trio_swarm._io.wswire import WsWire
from trio_swarm.errors import HandshakeError, PeerError, PeerGoneError, ProtocolError, SlowPeerError
from trio_swarm.limits import (
    CLOSE_DEADLINE,
    HANDSHAKE_DEADLINE,
    MAX_FRAME,
    PEER_SILENCE,
    SEND_DEADLINE,
)

__all__ = ["WsTransport", "accept_ws", "open_ws_client"]

_log: Final = logging.getLogger("trio_swarm.ws")

_Begin: TypeAlias = Callable[[trio.Nursery], Awaitable[WebSocketConnection]]


class WsTransport(Transport):
    """One WebSocket connection; made by `open_ws_client` and `accept_ws`."""

    def __init__(self, wire: WsWire, *, name: str) -> None:
        self.name = name
        self.max_message = wire.frames.max_message
        self._wire = wire
        # A client's frames are masked, so it is the one whose peer's are not.
        self._mask = not wire.frames.masked
        self._ws: WebSocketConnection | None = None
        self._fault: PeerError | None = None
        self._closed = False
        self._begun = trio.Event()
        self._answered = trio.Event()
        """The peer was told what it did wrong, or cannot be."""
        self._over = trio.Event()

    @property
    def writes(self) -> int:
        return self._wire.writes

    @property
    def reads(self) -> int:
        return self._wire.reads

    @property
    def ignored(self) -> int:
        """Binary messages: the contracts ignore them (operators 2.10, children A2)."""
        return self._wire.frames.ignored

    @property
    def close_reason(self) -> tuple[int, str] | None:
        """The code and the reason of the close frame that the peer sent, if it did."""
        goodbye = self._wire.frames.goodbye
        return None if goodbye is None else (goodbye.code, goodbye.reason)

    def header(self, name: str) -> str | None:
        """What the peer said under that name in the handshake; the first, where there are several."""
        said = () if self._ws is None else self._ws.handshake_headers
        wanted = name.lower().encode("ascii")
        return next((value.decode("latin-1") for key, value in said if key.lower() == wanted), None)

    async def send_batch(self, messages: Sequence[str]) -> None:
        """See `Transport`: always one write."""
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        try:
            await self._wire.send_frames(text_frames(messages, mask=self._mask))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._raise_over(sending=True, cause=error)

    async def receive_batch(self) -> Sequence[str | bytes]:
        """See `Transport`: all whole messages that have come."""
        if not self._closed:
            await self._wire.wait_arrived()
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        batch = self._wire.take_all()
        if not batch and self._wire.frames.goodbye is None:
            self._raise_over()
        return batch or ()

    def take_arrived(self) -> Sequence[str | bytes]:
        """See `Transport`."""
        return self._wire.take_all()

    async def aclose(self, code: int = 1000, reason: str = "", *, listening: bool = False) -> None:
        """See `Transport`: the closing handshake within ``CLOSE_DEADLINE``, then the cut."""
        self._wire.frames.closing = True
        if not listening:
            self._closed = self._wire.frames.deaf = True
            # So that the peer's close frame is read even when nobody took its messages.
            self._wire.take_all()
        try:
            if self._wire.violated.is_set():
                with trio.move_on_after(CLOSE_DEADLINE):
                    await self._answered.wait()
            elif self._ws is not None and not self._over.is_set():
                await self._say_goodbye(self._ws, code, reason)
        finally:
            self._closed = True
            await trio.aclose_forcefully(self._wire)

    # -- parts ---------------------------------------------------------------------------

    async def _say_goodbye(self, websocket: WebSocketConnection, code: int, reason: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + CLOSE_DEADLINE
            # The task that would see the peer's answer may be gone before it comes.
            nursery.start_soon(self._cancel_when_over, nursery.cancel_scope)
            if self._wire.frames.goodbye is not None:
                # The peer was first. Its answer is under way, and closing now would be quicker.
                await self._wire.parted.wait()
            try:
                await websocket.aclose(code, reason)
            except Exception as error:
                _log.debug("%s: closing failed: %r", self.name, error)
            nursery.cancel_scope.cancel()

    async def _cancel_when_over(self, scope: trio.CancelScope) -> None:
        await self._over.wait()
        scope.cancel()

    def _raise_over(self, *, sending: bool = False, cause: Exception | None = None) -> NoReturn:
        """Raise why the connection is over."""
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed") from cause
        if self._fault is not None:
            raise copy.copy(self._fault) from self._fault
        if self._wire.slow:
            raise SlowPeerError(f"{self.name} did not read for {SEND_DEADLINE:g} s")
        violation = self._wire.frames.violation
        if violation is not None:
            raise ProtocolError(violation.text)
        if self._wire.poisoned and not sending:
            raise trio.ClosedResourceError("a send was cancelled here")
        raise trio.BrokenResourceError(f"the connection to {self.name} is gone") from cause

    # -- the task ------------------------------------------------------------------------

    async def _run(
        self,
        begin: _Begin,
        deadline: float,
        ping_every: float | None,
        silence: float,
    ) -> None:
        """Everything of trio-websocket happens in here, and nothing of it comes out.

        Before the handshake is done, what goes wrong is raised, as `HandshakeError`.
        """
        try:
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(deadline) as scope:
                    self._ws = await begin(nursery)
                if scope.cancelled_caught:
                    raise HandshakeError(f"no handshake within {deadline:g} s")
                self._begun.set()
                nursery.start_soon(self._wire.write_control)
                nursery.start_soon(self._end_on_violation)
                if ping_every is not None:
                    nursery.start_soon(self._ping, ping_every)
                    nursery.start_soon(self._watch_silence, silence)
        except BaseExceptionGroup as group:
            crash, rest = group.split(Exception)
            if rest is not None:
                reraise(rest)
            _log.debug("%s: %r", self.name, crash)
            if not self._begun.is_set():
                raise _handshake_error(group) from group
        finally:
            self._over.set()
            self._answered.set()
            await trio.aclose_forcefully(self._wire)

    async def _end_on_violation(self) -> None:
        await self._wire.violated.wait()
        violation = self._wire.frames.violation
        if violation is None:
            return
        if self._ws is not None:
            with trio.move_on_after(CLOSE_DEADLINE):
                await self._ws.aclose(violation.code, violation.text[:100])
        await trio.aclose_forcefully(self._wire)
        self._answered.set()

    async def _ping(self, every: float) -> None:
        while True:
            await trio.sleep(every)
            self._wire.ping(b"trio-swarm")

    async def _watch_silence(self, silence: float) -> None:
        while True:
            due = self._wire.heard + silence
            if self._wire.full:
                # We do not read, so we cannot know; count from when we do again.
                due = trio.current_time() + silence
            elif due <= trio.current_time():
                break
            await trio.sleep_until(due)
        self._fault = PeerGoneError(f"{self.name} was silent for {silence:g} s")
        await trio.aclose_forcefully(self._wire)


def _handshake_error(group: BaseException) -> HandshakeError:
    """The one error of an opening that failed; the peer's fault, whatever it was."""
    found = leaves(group)
    for leaf in found:
        if isinstance(leaf, HandshakeError):
            return HandshakeError(str(leaf), status=leaf.status)
    return HandshakeError(f"the handshake failed: {found[0]!r:.200}")


@asynccontextmanager
async def _connection(
    wire: WsWire, begin: _Begin, *, name: str, deadline: float, ping_every: float | None, silence: float
) -> AsyncIterator[WsTransport]:
    transport = WsTransport(wire, name=name)
    with collapse():
        async with trio.open_nursery() as nursery:
            async with closing(transport.aclose):
                nursery.start_soon(transport._run, begin, deadline, ping_every, silence)
                await transport._begun.wait()
                yield transport
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_ws_client(
    url: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    ssl_context: ssl.SSLContext | None = None,
    uds: str | None = None,
    max_message: int = MAX_FRAME,
    handshake_deadline: float = HANDSHAKE_DEADLINE,
    ping_every: float | None = None,
    silence: float = PEER_SILENCE,
) -> AsyncIterator[WsTransport]:
    """Connect to ``url`` (``ws://`` or ``wss://``) and do the handshake.

    With ``uds``, the path of a Unix socket, the connection goes there, whatever the URL says.
    ``headers`` go with the request; ``max_message`` is in bytes, the times in seconds.
    With ``ping_every`` the peer is pinged, and dropped with `PeerGoneError` when no byte
    came from it for ``silence``. Raises `HandshakeError` (``status`` where the server
    answered) and ``ValueError`` for a URL or a header that is none. Leaving the block
    closes the connection; an exception of the block leaves as itself.
    """
    address = parse_url(url, uds)
    extra = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers]
    started = trio.current_time()
    stream: trio.abc.Stream | None = None
    with trio.move_on_after(handshake_deadline):
        stream = await connect(address, ssl_context)
    if stream is None:
        raise HandshakeError(f"no connection to {address.name} within {handshake_deadline:g} s")
    wire = WsWire(stream, FrameReader(masked=False, max_message=max_message))

    async def begin(nursery: trio.Nursery) -> WebSocketConnection:
        return await wrap_client_stream(
            nursery,
            # It says SocketStream, and asks that of it only to name its endpoints.
            cast("trio.SocketStream", wire),
            address.authority,
            address.resource,
            extra_headers=extra,
        )

    left = max(0.0, started + handshake_deadline - trio.current_time())
    async with _connection(
        wire, begin, name=address.name, deadline=left, ping_every=ping_every, silence=silence
    ) as transport:
        yield transport


@asynccontextmanager
async def accept_ws(
    stream: trio.abc.Stream,
    raw: bytes,
    *,
    extra_headers: Sequence[tuple[str, str]] = (),
    max_message: int = MAX_FRAME,
    handshake_deadline: float = HANDSHAKE_DEADLINE,
    ping_every: float | None = None,
    silence: float = PEER_SILENCE,
) -> AsyncIterator[WsTransport]:
    """Accept the handshake whose request is ``raw``, all bytes read of ``stream`` so far.

    That is `Head.raw`; policy (path, Host, Origin, token) comes before this. What is no
    handshake is answered 400, or 426 for HTTP/1.0, and raised as `HandshakeError`. Otherwise like
    `open_ws_client`, with ``extra_headers`` in the answer. The stream is closed on leaving.
    """
    refusal: HeadError | None = None
    try:
        head, _ = parse_head(raw)
        check_upgrade(head)
    except HeadError as error:
        refusal = error
    if refusal is not None:
        await refuse(stream, refusal)
        raise HandshakeError(refusal.text, status=refusal.status)
    parts = split_head(raw) or (raw, b"")
    frames = FrameReader(masked=True, max_message=max_message)
    wire = WsWire(stream, frames, head=parts[0], rest=parts[1])
    extra = [(name.encode("ascii"), value.encode("ascii")) for name, value in extra_headers]

    async def begin(nursery: trio.Nursery) -> WebSocketConnection:
        request = await wrap_server_stream(nursery, wire)
        websocket = await request.accept(extra_headers=extra)
        wire.upgrade()
        return websocket

    async with _connection(
        wire, begin, name="client", deadline=handshake_deadline, ping_every=ping_every, silence=silence
    ) as transport:
        yield transport
