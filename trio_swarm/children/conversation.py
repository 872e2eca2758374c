"""The parent's end of one connection: one run at a time, its frames sorted (contract, A6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import trio

from trio_swarm._io.link import Malformed
from trio_swarm.children.approval import Approval, Decider, Verdict, decide
from trio_swarm.children.incarnation import Embodied
from trio_swarm.errors import PeerError
from trio_swarm.frames import child as wire
from trio_swarm.limits import APPROVAL_WAIT, REAP_DEADLINE, TERM_GRACE

__all__ = ["CANCEL_WAIT", "MAX_APPROVALS", "Conversation", "Lost"]

CANCEL_WAIT: Final = 3.0
"""Seconds that a cancelled run's terminal is waited for before its process is killed (A6)."""

MAX_APPROVALS: Final = 32
"""Requests of one run decided at a time; more are denied unheard. The child's own bound is the same."""

_LOST = (PeerError, trio.BrokenResourceError, trio.ClosedResourceError)


class Lost(Exception):
    """The connection ended before the run's terminal."""


@attrs.define(eq=False)
class _Slot:
    """The run at work."""

    give: trio.MemorySendChannel[Any] | None
    """Where its events go; None: nobody wants them."""
    over: trio.Event = attrs.field(factory=trio.Event)
    """Set with its terminal, or with the connection's end."""
    terminal: wire.Terminal | None = None
    deciding: set[trio.CancelScope] = attrs.field(factory=set)

    def end(self, terminal: wire.Terminal | None) -> None:
        self.terminal = terminal
        for scope in self.deciding:
            scope.cancel()
        self.over.set()


@attrs.define(eq=False)
class Conversation:
    """One open link to one process; `pump` runs for as long as it lasts.

    A malformed frame is counted and tolerated: the contract's original parent treats one as fatal while
    its child ignores it, and ending a long run over one frame that nobody needs helps no one. A lost
    terminal cannot pass unnoticed all the same, because the connection or the deadline ends.
    """

    name: str
    body: Embodied
    on_approval: Decider | None
    emit: Callable[[str, Mapping[str, object]], None]
    counts: Counter[str]
    """Shared by all conversations of one child."""
    approval_wait: float = APPROVAL_WAIT
    cancel_wait: float = CANCEL_WAIT
    over: bool = attrs.field(default=False, init=False)
    """Whether the connection has ended, or must."""
    killed: bool = attrs.field(default=False, init=False)
    """Whether we ended its process because it did not obey; no crash of its own."""
    _slot: _Slot | None = attrs.field(default=None, init=False)
    _abandon: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    # -- frames in ---------------------------------------------------------------------

    async def pump(self) -> None:
        """Sort frames until the peer is gone or `retire` is called. Raises nothing of the peer's doing."""
        try:
            with self._abandon:
                async with trio.open_nursery() as nursery:
                    await self._receive(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self.over = True
            if self._slot is not None:
                self._slot.end(None)

    async def _receive(self, nursery: trio.Nursery) -> None:
        try:
            async for frame in self.body.link:
                await self._one(frame, nursery)
        except _LOST:
            return

    async def _one(self, frame: object, nursery: trio.Nursery) -> None:
        match frame:
            case wire.Event(event=event):
                await self._event(event)
            case wire.EventBatch(batch=batch):
                for event in batch.events:
                    await self._event(event)
            case wire.ApprovalRequest():
                await self._approval(frame, nursery)
            case wire.Terminal() if self._slot is not None:
                self._slot.end(frame)
                self._slot = None
            case wire.Terminal():
                self.counts["stray"] += 1
            case wire.SubagentRequest(id=request):
                await self.body.link.send(wire.SubagentReply(id=request, body={"error": _NO_SUBAGENTS}))
            case wire.SubagentCall(id=request):
                await self.body.link.send(wire.SubagentResult(id=request, result={"error": _NO_SUBAGENTS}))
            case Malformed(error=error):
                self.counts["malformed" if error.unknown_tag is None else "unknown"] += 1

    async def _event(self, event: Any) -> None:
        self.counts["events"] += 1
        slot = self._slot
        if slot is None or slot.give is None:
            return
        try:
            await slot.give.send(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            slot.give = None  # nobody listens any more

    # -- approvals ---------------------------------------------------------------------

    async def _approval(self, request: wire.ApprovalRequest, nursery: trio.Nursery) -> None:
        self.counts["approvals"] += 1
        approval = Approval.of(self.name, request)
        self.emit("approval_requested", _told(approval))
        slot = self._slot
        if slot is None or len(slot.deciding) >= MAX_APPROVALS:
            await self._reply(approval, Verdict(False, "denied", "no run asks, or too many requests"))
            return
        scope = trio.CancelScope()
        slot.deciding.add(scope)
        nursery.start_soon(self._decide, approval, slot, scope)

    async def _decide(self, approval: Approval, slot: _Slot, scope: trio.CancelScope) -> None:
        verdict = Verdict(False, "denied", "child_not_live")
        try:
            with scope:
                verdict = await decide(self.on_approval, approval, within=self.approval_wait)
        finally:
            slot.deciding.discard(scope)
        await self._reply(approval, verdict)

    async def _reply(self, approval: Approval, verdict: Verdict) -> None:
        self.counts["approved" if verdict.approved else "denied"] += 1
        told = {"approved": verdict.approved, "status": verdict.status, "reason": verdict.reason}
        self.emit("approval_decided", _told(approval) | told)
        try:
            await self.body.link.send(wire.ApprovalReply(id=approval.id, approved=verdict.approved))
        except _LOST:
            return  # it fails closed: what the child does not hear, it denies

    # -- runs --------------------------------------------------------------------------

    async def execute(self, frame: wire.Run, give: trio.MemorySendChannel[Any] | None) -> wire.Terminal:
        """Send ``frame``; its terminal. Events go to ``give``, which the caller closes.

        One run at a time: that is the caller's duty. Raises `Lost` when the connection ends first.
        Cancelled: sends ``cancel`` and waits three seconds, shielded, for the terminal; a child that does
        not obey is killed.
        """
        if self.over:
            raise Lost
        slot = self._slot = _Slot(give)
        try:
            await self.body.link.send(frame)  # cancelled here, the child never hears of the run
            try:
                await slot.over.wait()
            except trio.Cancelled:
                with trio.move_on_after(self.cancel_wait + TERM_GRACE + REAP_DEADLINE, shield=True):
                    await self._call_off(slot)
                raise
        except _LOST:
            self.retire()
            raise Lost from None
        finally:
            if self._slot is slot:
                self._slot = None
        if slot.terminal is None:
            raise Lost
        return slot.terminal

    async def _call_off(self, slot: _Slot) -> None:
        if slot.give is not None:
            slot.give.close()  # a pump that waits for the reader must not keep the terminal back
        try:
            self.body.link.send_nowait(wire.Cancel())
        except (trio.WouldBlock, *_LOST):
            self.killed = True
            self.retire()
            return
        with trio.move_on_after(self.cancel_wait):
            await slot.over.wait()
        if slot.terminal is None:
            self.killed = True
            self.retire()
            await self.body.process.kill()

    async def tell(self, text: str) -> bool:
        """Send steering text to the run at work; False if there is none."""
        if self._slot is None or self.over:
            await trio.lowlevel.checkpoint()
            return False
        try:
            await self.body.link.send(wire.Message(text=text))
        except _LOST:
            return False
        return True

    def retire(self) -> None:
        """End `pump`, and with it the connection and its process."""
        self.over = True
        self._abandon.cancel()


_NO_SUBAGENTS: Final = "this parent starts no sub-agents"


def _told(approval: Approval) -> dict[str, object]:
    return {
        "child": approval.child,
        "id": approval.id,
        "tool_name": approval.tool_name,
        "permission": approval.permission,
        "resource": approval.resource,
    }
