"""A link: frames over a transport, one task that reads and one that writes.

Everybody else hands frames to a bounded queue and takes decoded ones from another, so
reading and writing never wait for each other (contract README, note 1). The writer takes
all that is queued into one write; the reader hands over all frames of one read.

Who is slow is made to feel it. A peer that does not read fills the queue, so that `send`
waits, and is dropped when one write takes longer than ``send_deadline``. An owner that does
not receive fills the incoming queue, so that the link stops reading and the peer waits.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Generic, NoReturn, Self, TypeVar

import trio
from typing_extensions import TypeForm

from trio_swarm._io.closing import closing
from trio_swarm._io.groups import collapse
from trio_swarm._io.link_values import LinkStatistics, Malformed
from trio_swarm._io.transport import Transport, too_large
from trio_swarm.errors import FrameError, PeerError, SlowPeerError
from trio_swarm.frames import decode, encode
from trio_swarm.limits import CLOSE_DEADLINE, INCOMING_FRAMES, OUTGOING_FRAMES, SEND_DEADLINE

__all__ = ["Link", "LinkStatistics", "Malformed", "open_link"]

InT = TypeVar("InT")

_BATCH_BYTES: Final = 256 * 2**10
"""One write takes no more than this and one frame: what is being written is held twice."""
_MALFORMED_KEPT: Final = 4096


class Link(Generic[InT]):
    """Frames to and from one peer; made by `open_link`.

    Any task may send and any task may receive.
    """

    def __init__(
        self,
        transport: Transport,
        incoming: TypeForm[InT],
        *,
        name: str,
        outgoing_frames: int,
        incoming_frames: int,
        send_deadline: float,
    ) -> None:
        self.name = name or transport.name
        self._transport = transport
        self._union = incoming
        self._send_deadline = send_deadline
        # A queued event stands for a `flush`: it is set when what came before it is written.
        self._put, self._outgoing = trio.open_memory_channel[str | trio.Event](outgoing_frames)
        self._incoming: deque[InT | Malformed] = deque()
        self._incoming_frames = incoming_frames
        self._arrived = trio.lowlevel.ParkingLot()
        self._taken = trio.lowlevel.ParkingLot()
        self._writer_done = trio.Event()
        self._reading = trio.CancelScope()
        self._read_until = math.inf
        self._fault: Exception | None = None
        self._reading_over = self._ended_cleanly = False
        self._closed = False
        self._hear: Callable[[InT | Malformed], None] | None = None
        self._frames_in = self._frames_out = self._malformed = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._fault else "open"
        return f"<Link {self.name or self._transport.name} {state}>"

    async def send(self, frame: object) -> None:
        """Queue ``frame`` for the writer; waits while the queue is full.

        Returning means queued, not arrived: see `flush`. Raises `FrameError` for what
        cannot be written or is larger than the peer takes, ``TypeError`` for no frame,
        `SlowPeerError` after the peer was dropped for not reading, ``trio.BrokenResourceError``
        when it is gone and ``trio.ClosedResourceError`` after `aclose`. When cancelled, nothing was queued.
        """
        text = self._encoded(frame)
        try:
            await self._put.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._raise_over()

    def send_nowait(self, frame: object) -> None:
        """Like `send`, but raises ``trio.WouldBlock`` where that would wait."""
        text = self._encoded(frame)
        try:
            self._put.send_nowait(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._raise_over()

    async def send_many(self, frames: Sequence[object]) -> None:
        """`send` each of ``frames``, in order: cheaper under load. Raises as that does.

        When cancelled, the first of them may have been queued, and none after them.
        """
        texts = [self._encoded(frame) for frame in frames]
        await trio.lowlevel.checkpoint()
        try:
            for text in texts:
                try:
                    self._put.send_nowait(text)
                except trio.WouldBlock:
                    await self._put.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._raise_over()

    async def flush(self) -> None:
        """Wait until all that was queued so far was handed to the operating system.

        Raises as `send` does. When cancelled, the frames stay queued.
        """
        mark = trio.Event()
        try:
            await self._put.send(mark)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._raise_over()
        await mark.wait()
        if self._closed or self._fault is not None:
            self._raise_over()

    async def receive(self) -> InT | Malformed:
        """The next frame, or a `Malformed` in its place.

        Raises ``trio.EndOfChannel`` after the peer's clean end, the `PeerError` that ended
        the link, ``trio.BrokenResourceError`` when the connection was cut, and
        ``trio.ClosedResourceError`` after `aclose`; but frames that had arrived by then
        come first (except after `aclose`). When cancelled, nothing is lost.
        """
        await self._wait_arrived()
        item = self._incoming.popleft()
        self._let_read()
        return item

    async def receive_many(self) -> list[InT | Malformed]:
        """All that waits, at least one: cheaper than `receive` under load. Raises as that does."""
        await self._wait_arrived()
        items = list(self._incoming)
        self._incoming.clear()
        self._let_read()
        return items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InT | Malformed:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def take_arrived(self) -> list[InT | Malformed]:
        """All that has come so far, maybe nothing; never waits and never raises.

        That is more than what waits for `receive`: also what the link did not decode yet.
        """
        items = list(self._incoming)
        self._incoming.clear()
        items += [self._decoded(data) for data in self._transport.take_arrived()]
        self._let_read()
        return items

    async def aclose(
        self, code: int = 1000, reason: str = "", *, hear: Callable[[InT | Malformed], None] | None = None
    ) -> None:
        """Let the queued frames leave, then close the connection. Idempotent.

        Takes ``CLOSE_DEADLINE`` for each of the two at most. ``code`` and ``reason`` go
        into the close frame of a WebSocket. When cancelled, closes at once.

        ``hear``, which must not raise, is called with each frame that has come or comes
        until the peer's own end: what it sent before it knew. Without it they are dropped.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._hear = hear
        self._hear_arrived()
        try:
            with trio.move_on_after(CLOSE_DEADLINE):
                await self._flush_quietly()
            self._close_queues()
            await self._transport.aclose(code, reason, listening=hear is not None)
        finally:
            self._hear_arrived()
            self._close_queues()
            await trio.aclose_forcefully(self._transport)

    def statistics(self) -> LinkStatistics:
        """Counts so far."""
        return LinkStatistics(
            frames_in=self._frames_in,
            frames_out=self._frames_out,
            writes=self._transport.writes,
            reads=self._transport.reads,
            malformed=self._malformed,
            ignored=self._transport.ignored,
            queued=self._put.statistics().current_buffer_used,
            waiting=len(self._incoming),
        )

    # -- the two tasks -------------------------------------------------------------------

    async def _read_all(self) -> None:
        fault: Exception | None = None
        try:
            while batch := await self._received_batch():
                self._incoming += [self._decoded(data) for data in batch]
                self._hear_arrived()
                self._arrived.unpark(count=len(batch))
                while len(self._incoming) >= self._incoming_frames and not self._closed:
                    await self._taken.park()
            self._ended_cleanly = True
        except (PeerError, trio.BrokenResourceError) as error:
            fault = error
        except trio.ClosedResourceError:
            # Closed under us: by `aclose`, or by the writer, whose fault says why.
            await self._writer_done.wait()
        finally:
            self._reading_over = True
            self._fault = self._fault or fault
            self._arrived.unpark_all()
            if fault is not None:
                self._stop_sending()

    async def _received_batch(self) -> Sequence[str | bytes]:
        with trio.CancelScope(deadline=self._read_until) as self._reading:
            return await self._transport.receive_batch()
        if batch := self._transport.take_arrived():
            return batch
        raise trio.BrokenResourceError("nothing came after sending broke")

    async def _write_all(self) -> None:
        try:
            async for first in self._outgoing:
                texts, marks = self._queued(first)
                try:
                    if texts:
                        await self._write(texts)
                finally:
                    for mark in marks:
                        mark.set()
        except (PeerError, trio.BrokenResourceError) as error:
            self._fault = self._fault or error
            # The reader may still find what the peer said before it went, and its end. It is
            # not waited for when only this direction is broken.
            self._read_until = self._reading.deadline = trio.current_time() + CLOSE_DEADLINE
        except trio.ClosedResourceError:
            # Closed under us, as above.
            pass
        finally:
            self._writer_done.set()
            self._stop_sending()

    async def _write(self, texts: list[str]) -> None:
        with trio.move_on_after(self._send_deadline) as scope:
            await self._transport.send_batch(texts)
        if scope.cancelled_caught:
            # The transport is poisoned by now: nobody knows how much of it went out.
            raise SlowPeerError(f"{self.name or 'peer'} did not read for {self._send_deadline:g} s")
        self._frames_out += len(texts)

    def _queued(self, first: str | trio.Event) -> tuple[list[str], list[trio.Event]]:
        """All that is queued, up to one write's worth; ``first`` was taken already."""
        texts: list[str] = []
        marks: list[trio.Event] = []
        size = 0
        item: str | trio.Event = first
        while True:
            if isinstance(item, str):
                texts.append(item)
                size += len(item)
            else:
                marks.append(item)
            if size >= _BATCH_BYTES:
                return texts, marks
            try:
                item = self._outgoing.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return texts, marks

    # -- parts ---------------------------------------------------------------------------

    def _encoded(self, frame: object) -> str:
        text = encode(frame)
        if too_large(text, self._transport.max_message):
            raise FrameError(f"a frame of {len(text)} characters is larger than the peer takes")
        return text

    def _decoded(self, data: str | bytes) -> InT | Malformed:
        self._frames_in += 1
        try:
            return decode(data, self._union)
        except FrameError as error:
            self._malformed += 1
            return Malformed(error, len(data), data if len(data) <= _MALFORMED_KEPT else "")

    async def _wait_arrived(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._incoming:
            # Parking is the other way to let others run.
            await trio.lowlevel.cancel_shielded_checkpoint()
        while self._closed or not self._incoming:
            if self._closed or self._reading_over:
                self._raise_over(reading=True)
            await self._arrived.park()

    def _hear_arrived(self) -> None:
        if self._hear is not None:
            for item in self.take_arrived():
                self._hear(item)

    def _let_read(self) -> None:
        # Half empty, not one less than full: so that the reader wakes once per many frames.
        if len(self._incoming) <= self._incoming_frames // 2:
            self._taken.unpark_all()

    async def _flush_quietly(self) -> None:
        mark = trio.Event()
        try:
            await self._put.send(mark)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await mark.wait()

    def _close_queues(self) -> None:
        self._closed = True
        self._put.close()
        self._arrived.unpark_all()
        self._taken.unpark_all()

    def _stop_sending(self) -> None:
        """Wake whoever waits to send or to flush; they see the fault."""
        while True:
            try:
                item = self._outgoing.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
            if isinstance(item, trio.Event):
                item.set()
        self._outgoing.close()

    def _raise_over(self, *, reading: bool = False) -> NoReturn:
        """Raise why the link is over: to each who asks, an exception of its own."""
        if self._closed:
            raise trio.ClosedResourceError("this link was closed")
        if reading and self._ended_cleanly:
            raise trio.EndOfChannel
        if isinstance(self._fault, PeerError):
            raise copy.copy(self._fault) from self._fault
        gone = f"the connection to {self.name or 'the peer'} is gone"
        raise trio.BrokenResourceError(gone) from self._fault


@asynccontextmanager
async def open_link(
    transport: Transport,
    incoming: TypeForm[InT],
    *,
    name: str = "",
    outgoing_frames: int = OUTGOING_FRAMES,
    incoming_frames: int = INCOMING_FRAMES,
    send_deadline: float = SEND_DEADLINE,
) -> AsyncIterator[Link[InT]]:
    """A link over ``transport`` that decodes ``incoming``, a union of frames.

    ``outgoing_frames`` wait for the writer and ``incoming_frames`` for `Link.receive` at
    most (and what one read brought). A write that takes longer than ``send_deadline``
    seconds ends the link with `SlowPeerError`.

    Whatever the peer does comes out of the link's methods and never ends the block by
    itself. On leaving, queued frames get a bounded chance to leave, then the transport is
    closed; a cancelled block closes at once. An exception of the block leaves as itself.
    """
    link = Link(
        transport,
        incoming,
        name=name,
        outgoing_frames=outgoing_frames,
        incoming_frames=incoming_frames,
        send_deadline=send_deadline,
    )
    with collapse():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link._read_all)
            nursery.start_soon(link._write_all)
            async with closing(link.aclose):
                yield link
