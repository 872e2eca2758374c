"""The stream beneath a connection of the HTTP front: what was read too far, who is there, and its end."""

from __future__ import annotations

from typing import Any, Final

import attrs
import trio
import trio.abc

from trio_swarm._io.unix import peer_uid
from trio_swarm._state.guesses import place_of
from trio_swarm.errors import SlowPeerError
from trio_swarm.limits import CLOSE_DEADLINE, MAX_BODY, RECEIVE_BUFFER

__all__ = ["MAX_AHEAD", "PushBackStream", "linger", "peer_of", "place_of_peer", "send_within"]

MAX_AHEAD: Final = RECEIVE_BUFFER
"""What a client may send beyond its request before nobody reads on to see whether it is there."""

_LINGER_BYTES: Final = 4 * MAX_BODY
"""What a refused client may still send before it is cut off in the middle of it."""


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

    async def wait_gone(self) -> None:
        """Return when the peer has hung up, or has closed its sending side, which may be the same.

        A client that only does the latter may still read; nobody can tell it from one that is gone.
        What comes meanwhile is kept and received next; once that is ``MAX_AHEAD`` bytes no more is
        read, and a hang-up behind it is not seen. Not to be called while somebody receives.
        """
        while len(self._again) < MAX_AHEAD:
            try:
                data = await self.inner.receive_some(RECEIVE_BUFFER)
            except trio.BrokenResourceError:
                return
            if not data:
                return
            self._again += data
        await trio.sleep_forever()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As the stream's own."""
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream's own."""
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream."""
        await self.inner.aclose()


def peer_of(stream: trio.abc.Stream) -> str:
    """The IP address at the other end; empty where it has none."""
    inner = _transport_of(stream)
    try:
        name = inner.socket.getpeername() if isinstance(inner, trio.SocketStream) else None
    except OSError:
        return ""  # It is gone already: whatever it sent is answered, to nobody.
    return str(name[0]) if isinstance(name, tuple) else ""


def place_of_peer(stream: trio.abc.Stream) -> str:
    """What counts as one peer: an IPv4 address, an IPv6 network of 64 bits, the user at a Unix socket."""
    peer = peer_of(stream)
    inner = _transport_of(stream)
    if peer or not isinstance(inner, trio.SocketStream) or inner.socket.family != trio.socket.AF_UNIX:
        return place_of(peer)
    try:
        return f"uid {peer_uid(inner)}"
    except OSError:
        return ""


def _transport_of(stream: trio.abc.Stream) -> Any:
    return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream


async def send_within(stream: trio.abc.SendStream, data: bytes, seconds: float) -> None:
    """Send it all. Raises `SlowPeerError` where it takes longer; the stream is of no more use then."""
    with trio.move_on_after(seconds):
        await stream.send_all(data)
        return
    raise SlowPeerError("the client does not read")


async def linger(stream: trio.abc.Stream) -> None:
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
