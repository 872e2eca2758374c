"""What an operator's client has received and nobody has taken yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import attrs
import trio

__all__ = ["Inbox"]

T = TypeVar("T")


@attrs.define(eq=False)
class Inbox(Generic[T]):
    """Requests and notices in the order in which they came, for any number of takers.

    Each of the two has ``room`` of its own, so that the one never pushes the other out. A taker may
    pass over those that it has no use for now; they stay where they are, for it or for others.
    """

    _room: int
    _is_notice: Callable[[T], bool]
    _queues: dict[bool, deque[tuple[int, T]]] = attrs.field(
        factory=lambda: {False: deque(), True: deque()}, repr=False
    )
    """Of notices and of requests, each with its place among all of them."""
    _came: int = 0
    _closed: bool = False
    _arrived: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _taken: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    async def put(self, item: T) -> None:
        """As soon as there is room for it. When cancelled, it was not put."""
        await trio.lowlevel.checkpoint()
        while not self.put_nowait(item):
            await self._taken.park()

    def put_nowait(self, item: T) -> bool:
        """False, and nothing is put, where there is no room for it."""
        queue = self._queues[self._is_notice(item)]
        if len(queue) >= self._room:
            return False
        self._came += 1
        queue.append((self._came, item))
        self._arrived.unpark_all()
        return True

    def drop(self, item: T) -> None:
        """Nobody is to take it any more, if nobody has: its room is another's."""
        queue = self._queues[self._is_notice(item)]
        for entry in queue:
            if entry[1] is item:
                queue.remove(entry)
                self._taken.unpark_all()
                return

    async def take(self, wanted: Callable[[bool], bool]) -> T:
        """The first of those that are wanted; ``wanted`` says it of notices (True) and of requests.

        It is asked again after each `look_again`. Raises ``trio.EndOfChannel`` where there is
        none that is wanted, and none will come any more. When cancelled, nothing was taken.
        """
        await trio.lowlevel.checkpoint()
        while True:
            queues = [queue for notice, queue in self._queues.items() if queue and wanted(notice)]
            if queues:
                _, item = min(queues, key=lambda queue: queue[0][0]).popleft()
                self._taken.unpark_all()
                return item
            if self._closed:
                raise trio.EndOfChannel
            await self._arrived.park()

    def look_again(self) -> None:
        """What a taker wants has changed."""
        self._arrived.unpark_all()

    def close(self) -> None:
        """Nothing more will come; what is there can still be taken."""
        self._closed = True
        self._arrived.unpark_all()
