"""Whatever one peer or one handler does ends that connection alone.

`trio.serve_listeners` lets the first exception of a handler take the whole server down, as
it documents. Here each connection stands behind a barrier, and there is room for so many
and no more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import trio

from trio_swarm._io.groups import leaves, reraise
from trio_swarm.errors import PeerError
from trio_swarm.limits import MAX_CONNECTIONS

__all__ = ["crash_barrier", "serve_guarded"]

_log: Final = logging.getLogger("trio_swarm.guard")

OnError: TypeAlias = Callable[[str, Exception], None]
"""Called, synchronously, with the barrier's name and what it stopped."""

_EXPECTED: Final = (PeerError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a peer can bring about at any time: worth a line for debugging, not an alarm."""


@contextmanager
def crash_barrier(name: str, on_error: OnError | None = None) -> Iterator[None]:
    """Stop every ``Exception`` that leaves the block; let all else pass.

    A group is split: its ``Exception`` part is logged and reported to ``on_error``, what is
    left (``Cancelled``, ``KeyboardInterrupt``) goes on. Otherwise an error that meets a
    cancellation would still take everything down at shutdown.
    """
    try:
        yield
    except Exception as error:
        _report(name, error, on_error)
        return
    except BaseExceptionGroup as group:
        stopped, rest = group.split(Exception)
        if stopped is not None:
            _report(name, stopped, on_error)
        if rest is None:
            return
    else:
        return
    reraise(rest)


def _report(name: str, error: Exception, on_error: OnError | None) -> None:
    if all(isinstance(leaf, _EXPECTED) for leaf in leaves(error)):
        _log.debug("%s ended: %r", name, error)
    else:
        _log.error("%s crashed", name, exc_info=error)
    if on_error is None:
        return
    try:
        on_error(name, error)
    except Exception:
        _log.exception("the error callback of %s raised", name)


async def serve_guarded(
    listeners: Sequence[trio.abc.Listener[Any]],
    serve_one: Callable[[trio.abc.Stream], Awaitable[None]],
    *,
    max_connections: int = MAX_CONNECTIONS,
    name: str = "",
    on_error: OnError | None = None,
    task_status: trio.TaskStatus[Sequence[trio.abc.Listener[Any]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve connections of ``listeners`` with ``serve_one`` until cancelled.

    Each runs in a task of its own behind a `crash_barrier`; its stream is closed when
    ``serve_one`` is done, however. Beyond ``max_connections`` at a time, a connection is
    hung up at once. When the process is out of descriptors, accepting is tried again each
    100 ms. The listeners are closed on leaving. Supports ``nursery.start``: its value is
    the listeners.
    """
    if not listeners:
        raise ValueError("nothing to listen on")
    serving = 0

    async def guarded(stream: trio.abc.Stream) -> None:
        nonlocal serving
        if serving >= max_connections:
            _log.warning("%s: %d connections already, hanging up", name or "server", serving)
            return
        serving += 1
        try:
            with crash_barrier(f"{name or 'a'} connection", on_error):
                await serve_one(stream)
        finally:
            serving -= 1

    async with trio.open_nursery() as nursery:
        task_status.started(await nursery.start(trio.serve_listeners, guarded, list(listeners)))
