"""What an endpoint of the HTTP front is given, and what it gives back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, Final, Protocol

import attrs
import h11
import trio

from trio_swarm._io.head import Head
from trio_swarm._io.transport import Transport
from trio_swarm.errors import FrameError
from trio_swarm.frames import parse_json

__all__ = [
    "BodySource",
    "HttpError",
    "Request",
    "Response",
    "StreamedResponse",
    "UpgradeRequest",
    "parse_body",
    "render",
    "render_head",
]

_BODILESS: Final = frozenset({204, 304})
_ALWAYS: Final = (
    # Replies hold tokens and other people's text: not to be kept, and not to be guessed at.
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


@attrs.frozen
class Response:
    """One answer: a status, headers beyond the usual ones, and a body."""

    status: int
    body: bytes = attrs.field(default=b"", repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def text(cls, status: int, text: str = "", *, headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
        """A plain-text body; none at all if ``text`` is empty."""
        if not text:
            return cls(status, b"", tuple(headers))
        kind = (b"content-type", b"text/plain; charset=utf-8")
        return cls(status, text.encode("utf-8", "replace"), (kind, *headers))

    @classmethod
    def json(cls, status: int, value: Any) -> Response:
        """A JSON body."""
        body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
        return cls(status, body, ((b"content-type", b"application/json"),))


@attrs.frozen
class StreamedResponse(Response):
    """An answer whose body is sent in pieces: it need not be in memory at once.

    ``produce(send)`` awaits ``send(piece)`` for ``length`` bytes in all; each piece has the
    front's send deadline. What it raises before the first piece is answered like any
    endpoint's error; later, it ends the connection.
    """

    length: int = attrs.field(default=0, kw_only=True)
    produce: Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]] = attrs.field(
        kw_only=True, repr=False
    )


class HttpError(Exception):
    """Raised by an endpoint, or by the front: answer this and nothing else."""

    def __init__(self, status: int, text: str = "", *, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(status, text)
        self.response = Response.text(status, text, headers=headers)


class BodySource(Protocol):
    """The body of a request on a route whose body is ``stream``; see `http_body.BodyStream`."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def read_all(self, max_body: int | None = None) -> bytes:
        """The whole body at once."""


@attrs.frozen
class Request:
    """One request that passed the checks of the front."""

    head: Head
    params: Mapping[str, str]
    """What the ``{name}`` segments of the route's pattern matched, percent-decoded."""
    body: bytes = attrs.field(default=b"", repr=False)
    json: Any = attrs.field(default=None, repr=False)
    """The decoded body, on a route whose body is JSON."""
    peer: str = attrs.field(default="", kw_only=True)
    """The client's IP address; empty where it has none."""
    stream: BodySource | None = attrs.field(default=None, kw_only=True, repr=False)
    """The body, on a route whose body is streamed; good until the endpoint returns."""
    on_proven: Callable[[], None] | None = attrs.field(default=None, kw_only=True, repr=False)
    on_gone: Callable[[], Awaitable[None]] | None = attrs.field(default=None, kw_only=True, repr=False)

    def proven(self) -> None:
        """The request has shown a credential that is good: see `http.serve_http`, ``max_unproven``.

        To be called by whoever judges credentials that not everybody can have for the asking.
        """
        if self.on_proven is not None:
            self.on_proven()

    async def wait_gone(self) -> None:
        """Return when the client is gone: see `http_stream.PushBackStream.wait_gone`. Else never.

        For an endpoint that waits for long, beside what it waits for, and once it has its body.
        Raise ``trio.BrokenResourceError`` then: there is nobody to answer.
        """
        if self.on_gone is None:
            await trio.sleep_forever()
        else:
            await self.on_gone()

    @property
    def method(self) -> str:
        """As sent: ``GET``, ``HEAD`` and so on."""
        return self.head.method

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of one given several times, the last."""
        return self.head.query


class _Acceptor(Protocol):
    def __call__(self, **options: Any) -> AbstractAsyncContextManager[Transport]: ...


@attrs.frozen
class UpgradeRequest(Request):
    """A request to become a WebSocket, valid as such, and not yet accepted."""

    accept: _Acceptor = attrs.field(kw_only=True, repr=False)
    """``async with request.accept(...) as transport``: the options of `ws.accept_ws`, and ``replacing``:
    it takes the place of another WebSocket, which ends then, and may be beyond those that can be had."""


def parse_body(body: bytes) -> Any:
    """Decode a request's JSON body, as strictly as a frame. Raises `HttpError` 400."""
    if not body:
        raise HttpError(400, "the body is empty")
    try:
        return parse_json(body)
    except FrameError as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from None


def render(
    conn: h11.Connection, response: Response, *, head_only: bool = False, close: bool = False
) -> bytes:
    """The bytes of ``response`` as the answer on ``conn``, all in one piece for one write."""
    pieces = [render_head(conn, response, length=len(response.body), close=close)]
    if response.body and not head_only:
        pieces.append(conn.send(h11.Data(data=response.body)))
    pieces.append(conn.send(h11.EndOfMessage()))
    return b"".join(piece for piece in pieces if piece)


def render_head(conn: h11.Connection, response: Response, *, length: int, close: bool = False) -> bytes:
    """The status line and the headers of ``response``, whose body has ``length`` bytes."""
    headers = [*_ALWAYS, *response.headers]
    if response.status not in _BODILESS:
        headers.append((b"content-length", str(length).encode()))
    if close:
        headers.append((b"connection", b"close"))
    reason = HTTPStatus(response.status).phrase
    return conn.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
