"""A child's question whether a gated tool may act, and who answers it (children contract, A6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_swarm.frames.child import ApprovalRequest
from trio_swarm.limits import APPROVAL_WAIT

__all__ = ["Approval", "Decider", "Verdict", "decide"]


@attrs.frozen
class Approval:
    """One approval request; what a child leaves out is empty."""

    child: str
    """Name of the child that asks."""
    id: str
    """Opaque; names this request for as long as it is pending."""
    tool_name: str
    """The tool that wants to act."""
    permission: str
    """What it wants to be allowed (``execute``, ``write``)."""
    resource: str
    """On what: a command line, a path."""
    question: str
    """How the child puts it."""
    body: Mapping[str, Any] = attrs.field(repr=False)
    """The request as it came."""

    @classmethod
    def of(cls, child: str, request: ApprovalRequest) -> Approval:
        """Read a request's body. Writers disagree on one key: ``permission``, else ``permission_type``."""
        body: Mapping[str, Any] = request.body if isinstance(request.body, dict) else {}

        def text(*keys: str) -> str:
            found = (body.get(key) for key in keys)
            return next((value for value in found if isinstance(value, str)), "")

        return cls(
            child=child,
            id=request.id,
            tool_name=text("tool_name"),
            permission=text("permission", "permission_type"),
            resource=text("resource"),
            question=text("question"),
            body=body,
        )


Decider: TypeAlias = Callable[[Approval], Awaitable[bool]]
"""Says whether an approval is given. Cancelled when nobody waits for the answer any more."""


@attrs.frozen
class Verdict:
    """How a request was decided."""

    approved: bool
    status: Literal["approved", "denied", "expired"]
    reason: str = ""


async def decide(decider: Decider | None, approval: Approval, *, within: float = APPROVAL_WAIT) -> Verdict:
    """Ask ``decider``; whatever goes wrong denies.

    Nobody wired, no answer within ``within`` seconds, an exception, and anything but ``True`` all deny.
    Cancellable: whoever cancels has no use for the verdict.
    """
    if decider is None:
        await trio.lowlevel.checkpoint()
        return Verdict(False, "denied", "nobody decides")
    try:
        with trio.fail_after(within):
            approved = await decider(approval)
    except trio.TooSlowError:
        return Verdict(False, "expired", "approval_timeout")
    except Exception as error:
        return Verdict(False, "denied", f"the decider raised {type(error).__name__}: {error}")
    return Verdict(True, "approved") if approved is True else Verdict(False, "denied")
