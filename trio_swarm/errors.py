"""The exceptions of trio_swarm, one tree.

::

    SwarmError
    ├── FrameError (ValueError)         the bytes are not the frame that they should be
    ├── PeerError                       the other end is at fault
    │   ├── ProtocolError               it broke the framing or the contract
    │   ├── HandshakeError              it refused, or did not complete, the opening of a link
    │   ├── SlowPeerError               it did not read (or answer) in time and was dropped
    │   ├── WrongReplyError             it answered a request with a reply of another kind
    │   └── PeerGoneError               it went away before it answered
    ├── Refused                         policy said no
    │   ├── BusyError                   a bounded resource is full, or the peer is at work already
    │   ├── GrantError (PermissionError)  outside the grant, or a widening of it
    │   ├── BadTokenError               a credential that does not verify
    │   ├── ApprovalDenied              a gate said no
    │   ├── ApprovalExpired             nobody settled the gate in time
    │   └── AskCycle                    who is asked is being asked already, further up
    ├── SpawnError                      a process could not be started, or did not come up
    ├── ChildCrashed                    a process ended without saying how its work ended
    ├── RestartIntensityExceeded        a supervisor gave up
    ├── RemoteError                     the code at the other end raised
    ├── StoreError                      a store on disk cannot be used, read or written
    ├── StepFailed                      a dispatched step came to nothing
    ├── StepCancelled                   a dispatched step was cancelled by its task
    ├── Unreaped                        the kill ladder ran out; names the pids
    └── Terminated                      the swarm was stopped by a signal

Streams and channels raise Trio's own ``ClosedResourceError`` (you closed it),
``BrokenResourceError`` (the world did; see ``__cause__``), ``BusyResourceError``
and ``EndOfChannel``: they are used here, not re-invented.

Errors carry fields; the text is made from them. This module imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ApprovalDenied",
    "ApprovalExpired",
    "AskCycle",
    "BadTokenError",
    "BusyError",
    "ChildCrashed",
    "FrameError",
    "GrantError",
    "HandshakeError",
    "PeerError",
    "PeerGoneError",
    "ProtocolError",
    "Refused",
    "RemoteError",
    "RestartIntensityExceeded",
    "SlowPeerError",
    "SpawnError",
    "StepCancelled",
    "StepFailed",
    "SwarmError",
    "Terminated",
    "Unreaped",
    "WrongReplyError",
]


class SwarmError(Exception):
    """The root: everything that trio_swarm raises by itself."""


class FrameError(SwarmError, ValueError):
    """The data is not a frame of the union that was asked for.

    ``key`` names the offending key as a path from the top (``data.turn``), or is
    empty where the whole document is at fault. ``unknown_tag`` is the tag's value
    when the only fault is that no frame has it, so that a reader which tolerates
    newer peers can tell that case from a malformed frame.
    """

    def __init__(self, reason: str, *, key: str = "", unknown_tag: str | None = None) -> None:
        super().__init__(reason, key, unknown_tag)
        self.reason = reason
        self.key = key
        self.unknown_tag = unknown_tag

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" if self.key else self.reason


class PeerError(SwarmError):
    """The other end is at fault; the connection to it is over or unusable."""


class ProtocolError(PeerError):
    """The peer broke the framing or the rules of its contract."""


class HandshakeError(PeerError):
    """The peer refused, or did not complete, the opening of a link.

    ``status`` is the HTTP status that it answered with, where there was one.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class SlowPeerError(PeerError):
    """The peer did not read, or did not answer, within a limit and was dropped."""


class WrongReplyError(PeerError):
    """A request was answered, at last, only by replies of another kind."""


class PeerGoneError(PeerError):
    """The peer went away (and will not come back) before it answered."""


class Refused(SwarmError):
    """Policy said no. Nothing was done."""


class BusyError(Refused):
    """A bounded resource is full, or the peer is already at work."""


class GrantError(Refused, PermissionError):
    """The action lies outside the grant, or would widen it."""

    def __init__(self, wanted: str, held: str) -> None:
        super().__init__(f"{wanted} is outside the grant: {held}")
        self.wanted = wanted
        self.held = held


class BadTokenError(Refused):
    """A credential is missing, malformed, expired, revoked or not ours."""


class ApprovalDenied(Refused):
    """A gate said no. ``by`` names who, ``reason`` is what they said.

    ``approval`` is the `trio_swarm.operators.Approval` where several were asked at once.
    """

    def __init__(self, reason: str, *, by: str = "", subject: str = "", approval: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.by = by
        self.subject = subject
        self.approval = approval


class ApprovalExpired(Refused):
    """Nobody settled the gate within its time, and the default is to deny.

    ``approval`` is as in `ApprovalDenied`.
    """

    def __init__(self, *, within: float, subject: str = "", approval: object = None) -> None:
        super().__init__(f"no decision on {subject or 'the request'} within {within:g} s")
        self.within = within
        self.subject = subject
        self.approval = approval


class AskCycle(Refused):
    """A request would go to one who is being asked already, and waits for this very request.

    ``cycle`` names them, from the one that is asked twice back to it.
    """

    def __init__(self, cycle: Iterable[str]) -> None:
        self.cycle = tuple(cycle)
        super().__init__(f"a cycle of askers: {' -> '.join(self.cycle)}")


class SpawnError(SwarmError):
    """A process could not be started, or ended or stayed silent before it was ready."""


class ChildCrashed(SwarmError):
    """A process ended without saying how its work ended.

    ``how`` tells it (``exited 3``, ``killed by SIGKILL``), ``attempt`` which try of the
    work it took down, ``stderr_tail`` the last that it wrote there, if that was kept.
    """

    def __init__(self, name: str, how: str, *, pid: int = 0, attempt: int = 1, stderr_tail: str = "") -> None:
        super().__init__(f"{name} (pid {pid}) {how} at attempt {attempt}")
        self.name = name
        self.how = how
        self.pid = pid
        self.attempt = attempt
        self.stderr_tail = stderr_tail


class RestartIntensityExceeded(SwarmError):
    """More than ``max_restarts`` within ``within`` seconds: the supervisor gave up."""

    def __init__(
        self, name: str, *, max_restarts: int, within: float, attempts: Iterable[ChildCrashed] = ()
    ) -> None:
        super().__init__(f"{name}: more than {max_restarts} restarts within {within:g} s")
        self.name = name
        self.max_restarts = max_restarts
        self.within = within
        self.attempts = tuple(attempts)


class RemoteError(SwarmError):
    """The code at the other end raised; its type could not be used here.

    ``remote_type`` is the qualified name of the type, ``traceback_text`` the remote traceback.
    """

    def __init__(self, message: str, *, remote_type: str = "", traceback_text: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remote_type = remote_type
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"{self.remote_type}: {self.message}" if self.remote_type else self.message


class StepFailed(SwarmError):
    """A dispatched step has no result; ``reason`` as the operators contract words it (6.4).

    ``attempt`` is the last that was made. The cause is chained: `ApprovalDenied` where a gate said no,
    `RemoteError` where the operator reported an error, and so on.
    """

    def __init__(self, task_id: str, attempt: int, reason: str) -> None:
        super().__init__(f"{task_id}, attempt {attempt}: {reason}")
        self.task_id = task_id
        self.attempt = attempt
        self.reason = reason


class StepCancelled(SwarmError):
    """A dispatched step was ended by its task's ``cancel``; ``reason`` is what was said there."""

    def __init__(self, task_id: str, attempt: int, reason: str) -> None:
        super().__init__(f"{task_id}, attempt {attempt} was cancelled: {reason}")
        self.task_id = task_id
        self.attempt = attempt
        self.reason = reason


class StoreError(SwarmError):
    """A store on disk cannot be used, read or written; nothing of what was asked was done."""


class Unreaped(SwarmError):
    """The kill ladder ran out: these processes are still there after ``waited`` seconds."""

    def __init__(self, pids: Iterable[int], *, waited: float) -> None:
        self.pids = tuple(pids)
        self.waited = waited
        super().__init__(f"still alive {waited:g} s after SIGKILL: {', '.join(map(str, self.pids))}")


class Terminated(SwarmError):
    """The swarm was told to stop by a signal; ``signum`` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum
