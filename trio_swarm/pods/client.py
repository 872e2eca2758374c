"""One connection to a pod, always read from, whoever waits for what (pods contract, B2.4 and B7).

A pod that writes to a client which does not read is a pod that may never hear it. So one task reads, and
gives each event to whom it belongs without ever waiting: to the turn of ours, to those who asked for the
history, or to nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from trio_swarm._child.pod_lines import PodLines
from trio_swarm._io.groups import collapse
from trio_swarm._io.link import Link, Malformed, open_link
from trio_swarm.errors import BusyError, PeerError, ProtocolError, SlowPeerError
from trio_swarm.frames import pod as frames
from trio_swarm.frames.pod import PodEvent, PodMethod
from trio_swarm.limits import INCOMING_FRAMES, MAX_PENDING
from trio_swarm.pods.turn import REFUSALS, Turn

__all__ = ["ANSWER_DEADLINE", "PodClient", "open_pod_client"]

ANSWER_DEADLINE: Final = 30.0
"""Seconds for a pod to take a run or to tell its history; the original has no such limit (B6)."""

_SOMEBODY_ELSES: Final = "invalid method:"
"""The original tells everybody of one client's bad line."""


@attrs.define(eq=False)
class _Asked:
    """Somebody who asked for the history; answers come in the order of the questions."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    answer: frames.History | None = None


@attrs.define(eq=False)
class PodClient:
    """One connection; made by `open_pod_client`."""

    _link: Link[PodEvent]
    _on_notification: Callable[[frames.Notification], None]
    _tells_runs_apart: bool
    """Whether the pod sends a run's id back, as ours does; the original knows none."""
    running: bool = False
    """Whether a run goes on, whoever asked for it, as far as the events tell."""
    ended: trio.Event = attrs.field(factory=trio.Event)
    """Nothing more comes over this connection."""
    fault: Exception | None = None
    """Why it ended; None after a clean end."""
    said_shutdown: bool = False
    """The pod told that it ends."""
    events: int = 0
    """Events received."""
    unknown: int = 0
    """Events skipped: a newer pod has more than this version knows (B7)."""
    turn: Turn | None = None
    """The run of ours, if there is one."""
    idle: trio.Event = attrs.field(factory=trio.Event)
    """Replaced when a run begins, set when it ends."""
    fate: Callable[[], Exception] | None = None
    """Makes the exception for whoever relied on it, once its owner knows what happened."""
    failed: trio.Event = attrs.field(factory=trio.Event)
    """Set together with it."""
    _asked: deque[_Asked] = attrs.field(factory=deque)

    async def send(self, method: PodMethod) -> None:
        """Send a method; returns when it is queued for the writer.

        Raises as `Link.send` does: the connection is lost then.
        """
        await self._link.send(method)

    async def history(self) -> frames.History:
        """The conversation as of the end of the last run.

        Raises:
            BusyError: too many wait for it.
            SlowPeerError: no answer within `ANSWER_DEADLINE`.
            Exception: its `fate`, where the connection was lost.
        """
        if len(self._asked) >= MAX_PENDING:
            raise BusyError(f"{MAX_PENDING} callers wait for the history already")
        asked = _Asked()
        self._asked.append(asked)
        with trio.move_on_after(ANSWER_DEADLINE):
            try:
                await self.send(frames.GetHistory())
            except BaseException:
                # It was not asked: the next answer is somebody else's.
                if asked in self._asked:
                    self._asked.remove(asked)
                raise
            await asked.answered.wait()
        if asked.answer is not None:
            return asked.answer
        if self.fate is not None:
            raise self.fate()
        raise SlowPeerError(f"the pod did not tell its history within {ANSWER_DEADLINE:g} s")

    def fail(self, fate: Callable[[], Exception]) -> None:
        """The connection is over, so is what waits on it; the first to say why is right."""
        if self.fate is None:
            self.fate = fate
        self.failed.set()
        if self.turn is not None:
            self.turn.fail(self.fate())
        while self._asked:
            self._asked.popleft().answered.set()

    async def read(self) -> None:
        """Read until the end; raises nothing of the peer's doing."""
        try:
            while True:
                for event in await self._link.receive_many():
                    self._take(event)
        except trio.EndOfChannel:
            # A clean end: whether it was asked for is the owner's question.
            return
        except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.fault = error
        finally:
            self.ended.set()
            self.idle.set()

    def _take(self, event: PodEvent | Malformed) -> None:
        self.events += 1
        if isinstance(event, Malformed):
            if event.error.unknown_tag is None:
                raise ProtocolError(f"the pod sent what is no event: {event.error}") from event.error
            self.unknown += 1
            return
        match event:
            case frames.History():
                if self._asked:
                    asked = self._asked.popleft()
                    asked.answer = event
                    asked.answered.set()
            case frames.Notification():
                self._on_notification(event)
            case frames.ShutdownEvent():
                self.said_shutdown = True
            case frames.Error():
                self._take_error(event)
            case _:
                self._take_run_event(event)

    def _take_error(self, event: frames.Error) -> None:
        if event.message.startswith(_SOMEBODY_ELSES):
            return
        if event.code not in REFUSALS:
            self._take_run_event(event)
        elif self.turn is None or event.code == "not_running":
            return
        elif self._tells_runs_apart:
            if event.run_id == self.turn.run_id:
                self.turn.refuse(event.code)
        elif not self.turn.accepted:
            self.turn.refuse(event.code)
        else:
            self.turn.contested = True

    def _take_run_event(self, event: PodEvent) -> None:
        over = isinstance(event, frames.RunEnd | frames.Error)
        turn = self.turn if self.turn is not None and not self.turn.over.is_set() else None
        if turn is not None and (turn.accepted or self._begins(turn, event)):
            turn.take(event)
        if over:
            self.running = False
            self.idle.set()
        elif not self.running:
            self.running = True
            self.idle = trio.Event()

    def _begins(self, turn: Turn, event: PodEvent) -> bool:
        if not isinstance(event, frames.TurnStart):
            return False
        return event.run_id == turn.run_id if self._tells_runs_apart else not self.running


def _closed() -> Exception:
    return trio.ClosedResourceError("the pod was left")


@asynccontextmanager
async def open_pod_client(
    stream: trio.abc.Stream,
    *,
    name: str,
    on_notification: Callable[[frames.Notification], None],
    tells_runs_apart: bool = True,
) -> AsyncIterator[PodClient]:
    """A client over ``stream``, reading for as long as the block lasts.

    ``tells_runs_apart`` is for a pod of this library, which sends the id of a run back; without it a turn
    is recognised by its place (see `Turn`).
    """
    with collapse():
        async with (
            open_link(PodLines(stream), PodEvent, name=name, incoming_frames=INCOMING_FRAMES) as link,
            trio.open_nursery() as nursery,
        ):
            client = PodClient(link, on_notification, tells_runs_apart)
            nursery.start_soon(client.read)
            try:
                yield client
            finally:
                client.fail(_closed)
                nursery.cancel_scope.cancel()
