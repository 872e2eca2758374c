"""One process as its coordinator sees it: a value for how it ended, a handle while it runs."""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable
from typing import Final, Literal, final

import attrs
import trio
import trio.abc

from trio_swarm.errors import Unreaped
from trio_swarm.limits import REAP_DEADLINE, STDERR_TAIL, TERM_GRACE

__all__ = ["Exit", "How", "ManagedProcess", "ProcessReport"]

How = Literal["exited", "asked", "terminated", "killed", "crashed", "stray", "lost"]

TAIL_DRAIN: Final = 0.5
"""For standard error after the exit: who still holds it open then is not waited for."""


@attrs.frozen
class Exit:
    """How a process ended: by an exit code or by a signal; neither if nobody could tell."""

    code: int | None
    """What it returned, 0 to 255."""
    signal: int | None
    """The signal that killed it."""

    def __str__(self) -> str:
        if self.code is not None:
            return f"exited {self.code}"
        if self.signal is None:
            return "lost"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"killed by signal {self.signal}"


@attrs.frozen
class ProcessReport:
    """The receipt for one process that is gone."""

    name: str
    """The name it was started under; the command line of a stray."""
    pid: int
    """Its process id, by now perhaps another's."""
    exit: Exit | None
    """How the kernel says that it ended; None for a stray."""
    how: How
    """``exited`` 0 by itself; ``asked`` to over its protocol; ``terminated`` by SIGTERM or ``killed``
    by SIGKILL from here; ``crashed``: another code or signal; ``stray``: found without an owner when the
    warden ended; ``lost``: the warden died first and it was killed in the dark."""
    seconds: float
    """From its start to its end; 0 for a stray."""
    strays: int
    """Processes that it left behind, outside of its group, and that were killed."""


@final
@attrs.define(eq=False, repr=False)
class ManagedProcess:
    """A process that the warden started. Any task may use it.

    Made by `Warden.start`. ``stdin`` and ``stdout`` are there when they were asked for as
    pipes; they belong to the block of the warden, which closes them, and may be closed earlier.
    """

    name: str
    """The name for reports."""
    id: str
    """What it is called between coordinator and warden, and in its environment."""
    _order: Callable[..., Awaitable[None]]
    pid: int = 0
    """Its process id, also that of its group and session."""
    born: bytes = b""
    """When it was born, on the kernel's clock: with the pid, it is this process and no other."""
    stdin: trio.abc.SendStream | None = None
    """The pipe to its standard input, if that was asked for."""
    stdout: trio.abc.ReceiveStream | None = None
    """The pipe from its standard output, if that was asked for."""
    exit: Exit | None = None
    """How it ended; None while it runs."""
    strays: int = 0
    """Processes that it left behind, once they are gone."""
    begun: float = attrs.field(factory=trio.current_time)
    """When it was started, on Trio's clock."""
    ended: float = math.nan
    """When its end was noticed."""
    _how: How = "exited"
    _marked: How | None = None
    _tail: bytearray = attrs.field(factory=bytearray)
    _tail_done: trio.Event = attrs.field(factory=trio.Event)
    _exited: trio.Event = attrs.field(factory=trio.Event)
    _gone: trio.Event = attrs.field(factory=trio.Event)
    scopes: set[trio.CancelScope] = attrs.field(factory=set)
    """Of the tasks that serve its pipes."""

    def __repr__(self) -> str:
        return f"<ManagedProcess {self.name} pid={self.pid} {self.exit or 'running'}>"

    @property
    def stderr_tail(self) -> str:
        """The last 4 KiB of its standard error, if that was kept; complete once `wait` returned."""
        return self._tail.decode(errors="replace")

    @property
    def report(self) -> ProcessReport | None:
        """Its receipt; None while it runs."""
        if self.exit is None:
            return None
        seconds = self.ended - self.begun
        return ProcessReport(self.name, self.pid, self.exit, self._how, seconds, self.strays)

    def mark(self, how: How) -> None:
        """Say why it is about to end; holds unless a signal was needed after all."""
        self._marked = how

    async def wait(self) -> Exit:
        """Wait until it ended, and its standard error was read. Cancelling changes nothing."""
        await self._exited.wait()
        await self._tail_done.wait()
        assert self.exit is not None
        return self.exit

    async def signal(self, signum: int) -> None:
        """Send a signal to this one process; nothing happens if it has ended.

        The warden sends it, who reaps it too, so no other process can be hit.

        Raises:
            ValueError: there is no such signal.
        """
        await self._order({"op": "signal", "id": self.id, "signum": int(signal.Signals(signum))})

    @trio.lowlevel.enable_ki_protection
    async def stop(self, *, grace: float = TERM_GRACE) -> Exit:
        """SIGTERM to its group, SIGKILL after ``grace`` seconds, and to its strays too.

        Returns when all of them are gone. May be called again, also for what has ended; the
        earlier SIGKILL counts. Once begun it is not cancelled: it takes ``grace`` and
        ``REAP_DEADLINE`` seconds at most, the caller's cancellation comes after.

        Raises:
            Unreaped: it is still there then.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.move_on_after(grace + REAP_DEADLINE, shield=True):
            if self.exit is None:
                await self._order({"op": "stop", "id": self.id, "grace": grace})
            await self._gone.wait()
            return await self.wait()
        raise Unreaped([self.pid], waited=REAP_DEADLINE)

    async def kill(self) -> Exit:
        """`stop` without grace."""
        return await self.stop(grace=0.0)

    # -- what the warden's reader calls --------------------------------------------------

    def note_exit(self, code: int, sent: int) -> None:
        """It ended; ``sent`` is the hardest signal that the warden had sent."""
        self.exit = Exit(code, None) if code >= 0 else Exit(None, -code)
        self._how = self._judge(self.exit, sent)
        self._settle()

    def note_lost(self) -> None:
        """The warden died and nobody will ever know."""
        if self.exit is None:
            self.exit, self._how = Exit(None, None), "lost"
            self._settle()
        self._gone.set()

    def note_gone(self, strays: int) -> None:
        """None of its strays is left."""
        self.strays = strays
        self._gone.set()

    def _settle(self) -> None:
        self.ended = trio.current_time()
        for scope in self.scopes:
            scope.deadline = min(scope.deadline, self.ended + TAIL_DRAIN)
        self._exited.set()

    def _judge(self, end: Exit, sent: int) -> How:
        if sent == signal.SIGKILL and end.signal == signal.SIGKILL:
            return "killed"
        if sent:
            return "terminated"
        if self._marked is not None and end.signal is None:
            return self._marked
        return "exited" if end.code == 0 else "crashed"

    def keep_tail(self, data: bytes | bytearray) -> None:
        """Add to the kept end of standard error."""
        self._tail += data
        del self._tail[:-STDERR_TAIL]

    def tail_is_done(self) -> None:
        """Nothing more of its standard error will be read."""
        self._tail_done.set()
