"""One WebSocket of a seat: a task that writes what is due, a task that reads replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs
import trio

from trio_swarm._io.link import Link, Malformed
from trio_swarm._io.transport import Transport
from trio_swarm._state.seat import Due, SeatMachine
from trio_swarm.errors import FrameError, PeerError
from trio_swarm.frames import ClientMsg
from trio_swarm.limits import CLOSE_DEADLINE
from trio_swarm.operators.intake import Receipts

__all__ = ["SeatSocket"]

_GONE = (PeerError, trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.define(eq=False)
class SeatSocket:
    """A socket while it is open. The seat outlives it."""

    number: int
    """No other socket of the seat had it, or will."""
    _link: Link[ClientMsg]
    _transport: Transport
    _machine: SeatMachine
    _due: trio.lowlevel.ParkingLot
    """Where to wait for something to write."""
    _received: Callable[[ClientMsg | Malformed], None]
    """Gets each message that comes; must not raise."""
    _cannot_be_sent: Callable[[Due, FrameError], None]
    _fresh: Callable[[Due], Due]
    """What to write in its place, at the last moment."""
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    receipts: Receipts | None = None
    """What the peer is told of its replies, if it asked for that."""
    farewell: tuple[int, str] | None = None
    """Close code and reason, when this end wants it closed."""
    _queued: set[int] = attrs.field(factory=set)
    """Notices that the link has, and that are not known to be written."""
    _last: Sequence[Due] = ()

    def part(self, code: int, reason: str, last: Sequence[Due] = ()) -> None:
        """End it, with a close frame that says why; the notices ``last`` are written before."""
        self.farewell, self._last = (code, reason), last
        self._scope.cancel()

    async def cut(self) -> None:
        """End it without a word. What has come by now still counts."""
        self._take_arrived()
        await self._transport.aclose_forcefully()
        self._scope.cancel()

    async def run(self) -> None:
        """Write what is due and pass on what comes, until either end has had enough.

        Every message that had come by then was passed on.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_all)
                nursery.start_soon(self._read_all)
        self._take_arrived()

    async def say_farewell(self, *, listening: bool) -> None:
        """Close the link with the farewell, if there is one; at most thrice ``CLOSE_DEADLINE``.

        ``listening`` passes on what the peer sends until it has seen that it was parted from.
        """
        if self.farewell is None:
            return
        with trio.move_on_after(CLOSE_DEADLINE), suppress(*_GONE):
            for due in self._last:
                if due.order not in self._queued:
                    with suppress(FrameError):
                        await self._link.send(due.frame)
        await self._link.aclose(*self.farewell, hear=self._received if listening else None)

    def _take_arrived(self) -> None:
        for item in self._link.take_arrived():
            self._received(item)

    async def _write_all(self) -> None:
        try:
            while True:
                dues = self._machine.take(self.number, trio.current_time())
                receipts = await self._write_receipts()
                if dues:
                    await self._write(dues)
                elif not receipts:
                    await self._due.park()
        except _GONE:
            return  # The reader has the last word: what the peer said before it went counts.

    async def _write_receipts(self) -> bool:
        """Those that wait now; without a checkpoint if there are none."""
        receipts = [] if self.receipts is None else self.receipts.take()
        for receipt in receipts:
            await self._link.send(receipt)
        return bool(receipts)

    async def _write(self, dues: list[Due]) -> None:
        for due in dues:
            if not self._machine.wanted(due):
                continue
            try:
                await self._link.send(self._fresh(due).frame)
            except FrameError as error:
                self._cannot_be_sent(due, error)
            if due.notice:
                self._queued.add(due.order)
        if self._queued:
            # A notice is given up only when it is on its way: nothing will answer it.
            await self._link.flush()
            self._machine.written(dues)
            if self.farewell is None:
                # Else what is told last was chosen before this, and must not be told twice.
                self._queued.clear()

    async def _read_all(self) -> None:
        try:
            while True:
                for item in await self._link.receive_many():
                    self._received(item)
        except (trio.EndOfChannel, *_GONE):
            self._scope.cancel()
