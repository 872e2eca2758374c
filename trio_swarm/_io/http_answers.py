"""The answers of one front that are being written: who stops it lets them leave first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

__all__ = ["Answers"]


@attrs.define(eq=False)
class Answers:
    """What endpoints have answered, and clients have not been sent yet."""

    _writing: set[object] = attrs.field(factory=set, repr=False)
    _written: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One of them is being written, for the block."""
        one = object()
        self._writing.add(one)
        try:
            yield
        finally:
            self._writing.discard(one)
            self._written.unpark_all()

    async def wait_written(self) -> None:
        """Wait until those that are being written now have left, or failed to; later ones do not count.

        Whoever waits sets the time: a client that does not read takes `FrontLimits.send_deadline`.
        """
        await trio.lowlevel.checkpoint()
        now = set(self._writing)
        while now & self._writing:
            await self._written.park()
