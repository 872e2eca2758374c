"""A pair of transports in memory: for operators, pods and tests in the same process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import trio

from trio_swarm._io.transport import Transport

__all__ = ["memory_transport_pair"]

_BATCHES: Final = 4
"""Batches on their way at a time; what a socket's kernel buffers are to a stream."""


@attrs.define(eq=False)
class _End:
    """What one side knows of itself, and the other may see."""

    closed: bool = False
    cut: bool = False


class _MemoryTransport(Transport):
    def __init__(
        self,
        name: str,
        outgoing: trio.MemorySendChannel[tuple[str, ...]],
        incoming: trio.MemoryReceiveChannel[tuple[str, ...]],
        me: _End,
        peer: _End,
    ) -> None:
        self.name = name
        self._outgoing = outgoing
        self._incoming = incoming
        self._me = me
        self._peer = peer
        self._writes = self._reads = 0

    @property
    def writes(self) -> int:
        return self._writes

    @property
    def reads(self) -> int:
        return self._reads

    async def send_batch(self, messages: Sequence[str]) -> None:
        if self._me.cut and not self._me.closed:
            raise trio.BrokenResourceError("a send was cancelled here")
        try:
            await self._outgoing.send(tuple(messages))
        except trio.Cancelled:
            # Nothing went out, in fact; but a transport keeps one promise on every medium.
            self._cut()
            raise
        self._writes += 1

    async def receive_batch(self) -> Sequence[str | bytes]:
        try:
            batch = await self._incoming.receive()
        except trio.EndOfChannel:
            if self._peer.cut:
                raise trio.BrokenResourceError("the other end was cut") from None
            return ()
        self._reads += 1
        return batch

    async def aclose(self, code: int = 1000, reason: str = "", *, listening: bool = False) -> None:
        again, self._me.closed = self._me.closed, True
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self._me.cut = self._me.cut or not again
            raise
        finally:
            self._close_channels()

    def _cut(self) -> None:
        self._me.cut = True
        self._close_channels()

    def _close_channels(self) -> None:
        self._outgoing.close()
        self._incoming.close()


def memory_transport_pair(
    left: str = "left", right: str = "right", *, batches: int = _BATCHES
) -> tuple[Transport, Transport]:
    """Two transports, each the other's peer; the first one's peer is named ``right``.

    ``batches`` of messages are on their way in each direction at most: then sending
    waits until the other end receives.
    """
    to_right, at_right = trio.open_memory_channel[tuple[str, ...]](batches)
    to_left, at_left = trio.open_memory_channel[tuple[str, ...]](batches)
    left_end, right_end = _End(), _End()
    return (
        _MemoryTransport(right, to_right, at_left, left_end, right_end),
        _MemoryTransport(left, to_left, at_right, right_end, left_end),
    )
