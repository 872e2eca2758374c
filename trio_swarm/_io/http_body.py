"""The body of a request: whole within a deadline, or piece by piece as it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import h11
import trio

from trio_swarm._io.head import Head
from trio_swarm._io.http_messages import HttpError
from trio_swarm.limits import RECEIVE_BUFFER

__all__ = ["BodyStream", "require_json", "too_slow"]

_TOO_LARGE: Final = "the body is too large"


def too_slow() -> HttpError:
    """For whose body does not come."""
    return HttpError(408, "the body did not arrive in time")


@attrs.define(eq=False)
class BodyStream:
    """The body of one request, which only the endpoint's own task may read.

    ``async for piece in body`` goes on while the client makes progress: whoever sends less
    than ``min_progress`` bytes within ``deadline`` seconds, and is not done, is cut off
    (``late``, else `HttpError` 408). More than ``max_body`` bytes are `HttpError` 413, at once where the
    client says so beforehand. A client that goes away is ``trio.BrokenResourceError`` or
    `HttpError` 400. Nothing is read before it is asked for, so that a request can be
    refused without its body. ``on_whole`` is waited for once its end was read, and may raise.
    """

    _head: Head = attrs.field(repr=False)
    _conn: h11.Connection = attrs.field(repr=False)
    _stream: trio.abc.ReceiveStream = attrs.field(repr=False)
    _send: Callable[[bytes], Awaitable[None]] = attrs.field(repr=False)
    max_body: int
    deadline: float
    min_progress: int
    late: Callable[[], HttpError] = attrs.field(default=too_slow, repr=False)
    on_whole: Callable[[], Awaitable[None]] | None = attrs.field(default=None, repr=False)
    received: int = 0
    """Bytes so far."""
    _begun: bool = False
    _ended: bool = False
    _left: float = attrs.field(init=False)
    """Seconds that may still be waited; what the endpoint takes in between is not the client's."""
    _progress: int = 0

    def __attrs_post_init__(self) -> None:
        self._left = self.deadline

    def extend(self, deadline: float) -> None:
        """From now on it may take as long as that, whatever it was said to be late for."""
        self._left = self.deadline = deadline
        self.late = too_slow

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.receive()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def receive(self) -> bytes:
        """The next piece; empty at the end. Raises as the class says."""
        await trio.lowlevel.checkpoint()
        if self._ended:
            return b""
        await self._begin()
        # One deadline for several small pieces: a trickle is no progress.
        began = trio.current_time()
        if self._left <= 0:  # The last piece came just when the time ran out.
            raise self.late()
        with trio.move_on_after(self._left) as waiting:
            piece = await self._next()
            self._left -= trio.current_time() - began
            self._count(len(piece))
            if piece:
                return piece
        if waiting.cancelled_caught:
            raise self.late()
        await self._tell_whole()
        return b""

    async def read_all(self, max_body: int | None = None) -> bytes:
        """The whole body, within ``deadline`` seconds from now, of ``max_body`` bytes if that is less."""
        if max_body is not None:
            self.max_body = min(self.max_body, max_body)
        body = bytearray()
        with trio.move_on_after(self.deadline) as reading:
            await self._begin()
            while piece := await self._next():
                self._count(len(piece))
                body += piece
        if reading.cancelled_caught:
            raise self.late()
        await self._tell_whole()
        return bytes(body)

    async def _tell_whole(self) -> None:
        on_whole, self.on_whole = self.on_whole, None
        if on_whole is not None:
            await on_whole()

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        declared = self._head.get("content-length")
        if declared is not None and int(declared) > self.max_body:
            raise HttpError(413, _TOO_LARGE)
        if self._conn.they_are_waiting_for_100_continue:
            data = self._conn.send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._send(data or b"")

    async def _next(self) -> bytes:
        if self._ended:
            return b""
        while True:
            try:
                event = self._conn.next_event()
                if event is h11.NEED_DATA:
                    self._conn.receive_data(bytes(await self._stream.receive_some(RECEIVE_BUFFER)))
                    continue
            except h11.RemoteProtocolError as error:
                raise HttpError(error.error_status_hint, "the body is malformed") from None
            if not isinstance(event, h11.Data):
                self._ended = True
                return b""
            if event.data:
                return bytes(event.data)

    def _count(self, size: int) -> None:
        self.received += size
        if self.received > self.max_body:
            raise HttpError(413, _TOO_LARGE)
        self._progress += size
        if self._progress >= self.min_progress:
            self._progress = 0
            self._left = self.deadline


def require_json(head: Head) -> None:
    """Raises `HttpError` 415 unless the body is declared as JSON."""
    kind = (head.get("content-type") or "").partition(";")[0].strip().lower()
    main, _, sub = kind.partition("/")
    if main != "application" or not (sub == "json" or (sub.endswith("+json") and sub != "+json")):
        raise HttpError(415, "expected a request with `Content-Type: application/json`")
