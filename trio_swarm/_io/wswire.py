"""The stream beneath a WebSocket: what trio-websocket cannot do from above it.

* Messages do not pass through trio-websocket: the wire takes them out of what is read and
  puts whole batches between its frames; handshake, pings and closing are left to it.
* It passes the head of the handshake on by itself, and what follows only when the
  handshake is done: trio-websocket loses bytes that come along with a request's head.
* It stops reading while the messages that nobody took are too many: then the peer waits.
* The task that reads never waits to write a pong: of two peers that both write, and answer a
  ping before they read on, neither would read any more. One pong is kept, the newest ping's
  (RFC 6455, 5.5.3), and written by a task of its own; so are our pings, since who waits
  inside trio-websocket to write one keeps its reader from what it wants to write.
* It knows when the peer was last heard.
* A write that is cancelled, or that the peer does not take in time, poisons it: nobody
  knows how much of it went out, so it is closed and never used again.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from trio_swarm._io.head import split_head
from trio_swarm._io.wsframes import FrameReader, ping_frame
from trio_swarm.errors import HandshakeError
from trio_swarm.limits import INCOMING_FRAMES, MAX_HEAD, RECEIVE_BUFFER, SEND_DEADLINE

__all__ = ["WsWire"]

_UNREAD_BYTES: Final = 2**20
"""Of whole messages that nobody took, before the wire stops reading."""

_CLOSE_FRAME: Final = b"\x88"
_PING_FRAME: Final = b"\x89"
_PONG_FRAME: Final = b"\x8a"


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
        self.parted = trio.Event()
        """Set when our close frame has been written, or cannot be any more."""
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
        self._control: deque[bytes] = deque()
        self._ping = self._pong = b""
        self._control_due = trio.lowlevel.ParkingLot()
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
        """For trio-websocket: the handshake, or one control frame. A pong only gets due."""
        if self._upgraded.is_set() and data[:1] == _PONG_FRAME:
            self._pong = bytes(data)
            self._control_due.unpark_all()
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        await self._lock()
        try:
            if self._upgraded.is_set() and data[:1] == _CLOSE_FRAME:
                self._said_goodbye = True
            await self._write_in_time(data)
        finally:
            self._writing.release()
            if self._said_goodbye:
                self.parted.set()

    def ping(self, payload: bytes) -> None:
        """A ping gets due. One is kept: whoever reads so slowly is not asked twice."""
        self._ping = ping_frame(payload, mask=not self.frames.masked)
        self._control_due.unpark_all()

    async def write_control(self) -> None:
        """Write the ping and the pong that are due, until the connection is over; its own task."""
        try:
            while True:
                while not (self._ping or self._pong):
                    await self._control_due.park()
                # Whoever writes now is waited for; in fair order, so that data cannot starve it.
                async with self._writing:
                    data, self._ping, self._pong = self._pong + self._ping, b"", b""
                    if not self._said_goodbye:
                        await self._write_in_time(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # The reader sees the same end, and that one counts.

    async def _write_in_time(self, data: bytes | bytearray | memoryview) -> None:
        # No writer's deadline covers what trio-websocket writes.
        with trio.move_on_after(SEND_DEADLINE) as scope:
            await self._write(data, scope)
        if scope.cancelled_caught:
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

    async def _write(
        self, data: bytes | bytearray | memoryview, limit: trio.CancelScope | None = None
    ) -> None:
        if self.cut:
            raise trio.BrokenResourceError("the connection was cut")
        self.writes += 1
        try:
            await self._stream.send_all(data)
        except trio.Cancelled:
            # Before anybody is told, and asks why.
            self.slow = limit is not None and limit.deadline <= trio.current_time()
            self.poisoned = not self.slow
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
            if self._control:
                await trio.lowlevel.checkpoint()  # A read may have brought thousands of them.
                if control := self._next_control():
                    return control
            while self.full:
                await self._taken.park()
                self.heard = trio.current_time()
            data, self._rest = self._rest, b""
            data = data or await self._read()
            if not data:
                return b""
            # Data behind a violation or a goodbye is read and dropped: closing with unread
            # bytes would reset the connection, and our close frame would be lost with it.
            self._control += self.frames.feed(data)
            if self.frames.violation is not None:
                self.violated.set()
            if self.frames.messages or self.over:
                self._arrived.unpark_all()

    def _next_control(self) -> bytes:
        """One at a time: wsproto raises for a ping that it comes to after our close frame."""
        while self._control:
            control = self._control.popleft()
            if not (self.frames.closing and control[:1] == _PING_FRAME):
                return control
        return b""

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
        self.parted.set()
        self._arrived.unpark_all()
        self._taken.unpark_all()

    async def aclose(self) -> None:
        """Close the stream; whoever waits for a message is told."""
        self._cut()
        await self._stream.aclose()
