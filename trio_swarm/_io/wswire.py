"""The stream beneath a WebSocket: what trio-websocket cannot do from above it.

* Messages do not pass through trio-websocket: the wire takes them out of what is read and
  puts whole batches between its frames; handshake, pings and closing are left to it.
* It passes the head of the handshake on by itself, and what follows only when the
  handshake is done: trio-websocket loses bytes that come along with a request's head.
* It stops reading while the messages that nobody took are too many: then the peer waits.
* It knows when the peer was last heard.
* A write that is cancelled, or that the peer does not take in time, poisons it: nobody
  knows how much of it went out, so it is closed and never used again.
"""

from __future__ import annotations

from typing import Final

import trio

from trio_swarm._io.head import split_head
from trio_swarm._io.wsframes import FrameReader
from trio_swarm.errors import HandshakeError
from trio_swarm.limits import INCOMING_FRAMES, MAX_HEAD, RECEIVE_BUFFER, SEND_DEADLINE

__all__ = ["WsWire"]

_UNREAD_BYTES: Final = 2**20
"""Of whole messages that nobody took, before the wire stops reading."""

_CLOSE_FRAME: Final = b"\x88"


class WsWire(trio.abc.Stream):
    """``stream`` with the abilities above.

    ``head`` is the handshake's head where it was read already (server), with ``rest`` the
    bytes behind it; without it, the first read awaits the answer's head (client).
    """

    def __init__(
        self, stream: trio.abc.Stream, frames: FrameReader, *, head: bytes = b"", rest: bytes = b""
    ) -> None:
        self.frames = frames
        self.writes = self.reads = 0
        self.heard = trio.current_time()
        """When bytes last came, or could not because this end did not read."""
        self.violated = trio.Event()
        """Set when the peer broke the protocol: nothing is passed on any more."""
        self.cut = False
        """The stream broke or was closed under trio-websocket, as opposed to ended."""
        self.poisoned = False
        """It was our own cancelled send that cut it."""
        self.slow = False
        """It was cut because the peer did not take a pong in time."""
        self.ended = False
        """The peer closed the stream."""
        self._stream = stream
        self._head = head
        self._rest = rest
        self._head_passed = False
        self._said_goodbye = False
        self._upgraded = trio.Event()
        self._arrived = trio.lowlevel.ParkingLot()
        self._taken = trio.lowlevel.ParkingLot()
        self._writing = trio.Lock()

    # -- sending -------------------------------------------------------------------------

    async def send_frames(self, data: bytes) -> None:
        """Write whole frames of messages; not after a close frame (section 5.5.1)."""
        await self._lock()
        try:
            if self._said_goodbye or self.frames.goodbye is not None:
                raise trio.BrokenResourceError("the connection is being closed")
            await self._write(data)
        finally:
            self._writing.release()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """For trio-websocket: the handshake, or one control frame."""
        await self._lock()
        try:
            if self._upgraded.is_set() and data[:1] == _CLOSE_FRAME:
                self._said_goodbye = True
            # The task that reads writes these; no writer's deadline covers them.
            with trio.move_on_after(SEND_DEADLINE) as scope:
                await self._write(data)
        finally:
            self._writing.release()
        if scope.cancelled_caught:
            self.slow, self.poisoned = True, False
            raise trio.BrokenResourceError("the peer did not read")

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream beneath."""
        await self._stream.wait_send_all_might_not_block()

    async def _lock(self) -> None:
        # Free nearly always, and then not worth a switch of tasks: the write makes one.
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        if self.cut:
            raise trio.BrokenResourceError("the connection was cut")
        self.writes += 1
        try:
            await self._stream.send_all(data)
        except trio.Cancelled:
            self.poisoned = True
            self._cut()
            await trio.aclose_forcefully(self._stream)
            raise
        except trio.BrokenResourceError as error:
            if not self._upgraded.is_set():
                # trio-websocket would note a broken stream and let its opener wait.
                raise HandshakeError("the connection broke within the handshake") from error
            raise

    # -- receiving -----------------------------------------------------------------------

    def upgrade(self) -> None:
        """The handshake is done (server): look at what comes behind the head."""
        self._upgraded.set()

    @property
    def over(self) -> bool:
        """Nothing more will arrive."""
        frames = self.frames
        return self.cut or self.ended or frames.goodbye is not None or frames.violation is not None

    async def wait_arrived(self) -> None:
        """Wait until there are messages to take or nothing more will arrive."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.frames.messages and not self.over:
            await self._arrived.park()

    def take_all(self) -> list[str]:
        """The messages that have come; makes room for more."""
        taken = self.frames.take_all()
        self._taken.unpark_all()
        return taken

    @property
    def full(self) -> bool:
        """Whether this end does not read now; the peer's silence means nothing then."""
        return self.frames.unread > _UNREAD_BYTES or len(self.frames.messages) >= INCOMING_FRAMES

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """For trio-websocket: the head of the handshake by itself, then control frames."""
        if not self._head_passed:
            self._head_passed = True
            if not self._head:
                self._head, self._rest = await self._read_answer()
                self._upgraded.set()
            await trio.lowlevel.checkpoint_if_cancelled()
            return self._head
        await self._upgraded.wait()
        while True:
            while self.full:
                await self._taken.park()
                self.heard = trio.current_time()
            data, self._rest = self._rest, b""
            data = data or await self._read()
            if not data:
                return b""
            # Data behind a violation or a goodbye is read and dropped: closing with unread
            # bytes would reset the connection, and our close frame would be lost with it.
            control = self.frames.feed(data)
            if self.frames.violation is not None:
                self.violated.set()
            if self.frames.messages or self.over:
                self._arrived.unpark_all()
            if control:
                return control

    async def _read(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(RECEIVE_BUFFER))
        except trio.BrokenResourceError as error:
            self._cut()
            if not self._upgraded.is_set():
                raise HandshakeError("the connection broke within the handshake") from error
            raise
        self.heard = trio.current_time()
        self.reads += 1
        if not data:
            self.ended = True
            self._arrived.unpark_all()
        return data

    async def _read_answer(self) -> tuple[bytes, bytes]:
        """The server's answer to the handshake, refused here unless it is a 101 in ASCII."""
        raw = bytearray()
        while (parts := split_head(raw)) is None:
            if len(raw) > MAX_HEAD:
                raise HandshakeError("the answer's head is too large")
            data = await self._read()
            if not data:
                raise HandshakeError("the connection was closed before an answer")
            raw += data
        head = parts[0]
        words = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(head) > MAX_HEAD or not head.isascii() or not words[0].startswith(b"HTTP/1."):
            raise HandshakeError("the answer is not HTTP")
        if len(words) < 2 or len(words[1]) != 3 or not words[1].isdigit():
            raise HandshakeError("the answer has no status")
        if words[1] != b"101":
            reason = words[2].decode("ascii")[:100] if len(words) > 2 else ""
            raise HandshakeError(f"refused: {int(words[1])} {reason}".strip(), status=int(words[1]))
        return parts

    # -- closing -------------------------------------------------------------------------

    def _cut(self) -> None:
        self.cut = True
        self._arrived.unpark_all()
        self._taken.unpark_all()

    async def aclose(self) -> None:
        """Close the stream; whoever waits for a message is told."""
        self._cut()
        await self._stream.aclose()
