"""The head of an HTTP request, read with a deadline and a size before anybody acts on it.

WebSocket and REST share one port: whoever serves it reads the head, decides, and either
answers through the h11 connection that comes with it or hands the raw bytes on to
`ws.accept_ws`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote

import attrs
import h11
import trio

from trio_swarm.limits import HANDSHAKE_DEADLINE, MAX_HEAD, RECEIVE_BUFFER

__all__ = ["Head", "HeadError", "parse_head", "read_head", "split_head"]

_CRLF: Final = b"\r\n\r\n"
_METHOD_BYTES: Final = frozenset(b"!#$%&'*+-.^_`|~" + (string.ascii_letters + string.digits).encode())
"""What a method is made of (RFC 9110, 5.6.2)."""
_TLS_HANDSHAKE: Final = 0x16
"""The first byte of a ClientHello (RFC 8446, 5.1)."""


class HeadError(Exception):
    """The request's head is not one: ``status`` and ``text`` are what to answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text

    def __str__(self) -> str:
        return f"{self.status}: {self.text}"


@attrs.frozen
class Head:
    """One request line and its headers. ASCII only, checked (but see `parse_head`)."""

    method: str
    """Upper case, as sent."""
    target: str = attrs.field(repr=False)
    """The request target, raw: it may carry a token, so it is kept out of the repr."""
    headers: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    """Names in lower case, in the order in which they came."""
    raw: bytes = attrs.field(repr=False)
    """All bytes read so far: the head, and what came behind it."""
    http_version: str = "1.1"

    @property
    def path(self) -> str:
        """The target up to the query, not decoded."""
        return self.target.partition("?")[0]

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's segments, each decoded by itself: an encoded slash divides nothing.

        Without the leading slash: ``/v1/data/a%2Fb`` is ``("v1", "data", "a/b")``.
        """
        return tuple(unquote(segment) for segment in self.path.removeprefix("/").split("/"))

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; the last of a name wins."""
        pairs = parse_qsl(self.target.partition("?")[2], keep_blank_values=True, max_num_fields=None)
        return dict(pairs)

    def get(self, name: str) -> str | None:
        """The header ``name``, any case; None when it is absent or comes more than once."""
        found = self.all(name)
        return found[0] if len(found) == 1 else None

    def all(self, name: str) -> tuple[str, ...]:
        """All values of the header ``name``, any case."""
        wanted = name.lower()
        return tuple(value for each, value in self.headers if each == wanted)


def split_head(raw: bytes | bytearray) -> tuple[bytes, bytes] | None:
    """``raw`` as head and what follows it; None while the head's end is not there.

    Only CRLF ends a line here. h11 takes a bare LF too, and two readers of one head that
    see different ends are how requests are smuggled.
    """
    end = raw.find(_CRLF)
    if end < 0:
        return None
    end += len(_CRLF)
    return bytes(raw[:end]), bytes(raw[end:])


def _check_bytes(head: bytes, max_head: int, opaque_authorization: bool) -> None:
    """What h11 would let pass and what stands behind it would stumble over."""
    if len(head) > max_head:
        raise HeadError(431, "the request's head is too large")
    checked = _without_authorization(head) if opaque_authorization else head
    if not checked.isascii() or b"\0" in head:
        raise HeadError(400, "the request's head is not ASCII")
    if b"\n" in head.replace(b"\r\n", b""):
        raise HeadError(400, "a line of the request's head ends without CR")


def _check_first(byte: int) -> None:
    """Who does not even begin with a method will not come to the end of a head."""
    if byte == _TLS_HANDSHAKE:
        raise HeadError(400, "that is TLS, and here plain HTTP is expected")
    if byte not in _METHOD_BYTES:
        raise HeadError(400, "a request begins with its method")


def _without_authorization(head: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\n".join(line for line in lines if not line.lower().startswith(b"authorization:"))


def parse_head(
    raw: bytes, *, max_head: int = MAX_HEAD, opaque_authorization: bool = False
) -> tuple[Head, h11.Connection]:
    """``raw``, which holds a whole head, as a `Head`; and the h11 connection that read it.

    With ``opaque_authorization``, that one header's value may be any text, decoded as
    Latin-1: whoever judges credentials answers for it. Raises `HeadError`.
    """
    parts = split_head(raw)
    if parts is None:
        raise HeadError(400, "the request's head is not complete")
    _check_bytes(parts[0], max_head, opaque_authorization)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=max_head)
    try:
        connection.receive_data(raw)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise HeadError(error.error_status_hint, str(error)) from None
    if not isinstance(event, h11.Request):
        raise HeadError(400, "that is no request")
    head = Head(
        method=event.method.decode("ascii"),
        target=event.target.decode("ascii"),
        headers=tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers),
        raw=raw,
        http_version=event.http_version.decode("ascii"),
    )
    return head, connection


async def read_head(
    stream: trio.abc.ReceiveStream,
    *,
    deadline: float = HANDSHAKE_DEADLINE,
    max_head: int = MAX_HEAD,
    opaque_authorization: bool = False,
) -> tuple[Head, h11.Connection] | None:
    """Read one request head within ``deadline`` seconds and ``max_head`` bytes.

    Returns the head and the h11 connection that has consumed it (bytes of a body that
    came along are in it already), or None where the peer left without a byte. A first byte
    that no method begins with is refused at once. For
    ``opaque_authorization`` see `parse_head`. Raises
    `HeadError` with the status to answer, and ``trio.BrokenResourceError`` when the
    connection was cut. When cancelled, bytes may have been read: close the stream.
    """
    raw = bytearray()
    with trio.move_on_after(deadline) as scope:
        while split_head(raw) is None:
            if len(raw) > max_head:
                raise HeadError(431, "the request's head is too large")
            data = await stream.receive_some(RECEIVE_BUFFER)
            if not data and not raw:
                return None
            if not data:
                raise HeadError(400, "the request ends within its head")
            if not raw:
                _check_first(data[0])
            raw += data
    if scope.cancelled_caught:
        raise HeadError(408, f"no request within {deadline:g} s")
    return parse_head(bytes(raw), max_head=max_head, opaque_authorization=opaque_authorization)
