"""Whole messages over one stream: what a link stands on.

There are three: JSON lines over any Trio stream (`lines`), WebSocket (`ws`), and a pair in
memory (`memory`). They know nothing of frames; a link (`link`) decodes and encodes.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import trio

from trio_swarm.limits import MAX_FRAME

__all__ = ["Transport", "too_large"]


def too_large(text: str, most: int) -> bool:
    """Whether *text* has more than *most* bytes, which is what a peer counts."""
    return len(text) > most or (not text.isascii() and len(text.encode()) > most)


class Transport(trio.abc.AsyncResource):
    """Whole messages over one stream, owned by exactly one link.

    One task sends and one receives; the two never wait for each other. Everything that
    the peer does wrong comes out of these methods as a `PeerError` (then the connection
    is of no more use) or as `trio.BrokenResourceError`, and never as anything else.
    """

    name: str = ""
    """Who is at the other end, for messages and logs; no secrets."""

    max_message: int = MAX_FRAME
    """The largest message in bytes that this end takes, and therefore the largest that it sends."""

    @property
    def writes(self) -> int:
        """How many times bytes were handed to the operating system so far."""
        return 0

    @property
    def reads(self) -> int:
        """How many reads returned bytes so far."""
        return 0

    @property
    def ignored(self) -> int:
        """Messages that the transport itself dropped, such as binary WebSocket messages."""
        return 0

    @abc.abstractmethod
    async def send_batch(self, messages: Sequence[str]) -> None:
        """Send ``messages`` in order, in as few writes as possible.

        Raises ``trio.BrokenResourceError`` when the peer is gone and
        ``trio.ClosedResourceError`` after `aclose`. When cancelled, some, all or none of
        the bytes have gone: the transport is then poisoned, every later call raises
        ``trio.BrokenResourceError``, and the stream is closed forcefully (so that
        `receive_batch` raises ``trio.ClosedResourceError``).
        """

    @abc.abstractmethod
    async def receive_batch(self) -> Sequence[str | bytes]:
        """All complete messages of the next read, at least one; ``()`` at a clean end.

        Raises `ProtocolError` for an over-long message or broken framing, and
        ``trio.BrokenResourceError`` when the connection was cut. When cancelled nothing
        is lost: what was read comes with the next call.
        """

    def take_arrived(self) -> Sequence[str | bytes]:
        """The messages that are here and that `receive_batch` did not hand over yet; never waits."""
        return ()

    @abc.abstractmethod
    async def aclose(self, code: int = 1000, reason: str = "", *, listening: bool = False) -> None:
        """Say goodbye where the protocol has a word for it, and close; bounded, idempotent.

        ``code`` and ``reason`` travel in a WebSocket close frame only. The transport is
        closed in every way out; when cancelled, it is cut without a word. Messages that
        come between our goodbye and the peer's are dropped, unless ``listening``: then
        `receive_batch` gives them as before, and `take_arrived` the last of them.
        """

    async def aclose_forcefully(self) -> None:
        """Close at once, without a word: ``trio.aclose_forcefully`` of this."""
        await trio.aclose_forcefully(self)
