"""Opening a warden for a block, and leaving the block without leaving a process.

The process at the other end is ``_child/warden.py``; what is promised for other systems than Linux
is told in ``process.py``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import trio
import trio.socket

from trio_swarm._io.groups import collapse
from trio_swarm._io.warden_client import SHUTDOWN_DEADLINE, Warden
from trio_swarm._io.warden_start import WARDEN_MARK
from trio_swarm.errors import SpawnError
from trio_swarm.limits import REAP_DEADLINE, TERM_GRACE

__all__ = ["open_warden"]

_SCRIPT: Final = Path(__file__).resolve().parent.parent / "_child" / "warden.py"


def _command(control: int, remove: Sequence[Path]) -> list[str]:
    if not sys.executable:
        raise SpawnError("no Python interpreter is known to run the warden with (sys.executable)")
    flags = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
    settings = [str(control), str(os.getpid()), str(REAP_DEADLINE)]
    return [sys.executable, *flags, str(_SCRIPT), *settings, *map(os.path.abspath, remove)]


@trio.lowlevel.enable_ki_protection
async def _launch(remove: Sequence[Path]) -> tuple[trio.Process, trio.socket.SocketType]:
    ours, its = socket.socketpair()
    with ExitStack() as if_it_fails, its:
        if_it_fails.enter_context(ours)
        try:
            process = await trio.lowlevel.open_process(
                _command(its.fileno(), remove),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                start_new_session=True,
                env={**os.environ, WARDEN_MARK: "1"},
            )
        except OSError as error:
            raise SpawnError(f"the warden did not start: {error}") from error
        if_it_fails.pop_all()
    return process, trio.socket.from_stdlib_socket(ours)


async def _shut_down(warden: Warden, process: trio.Process, grace: float) -> None:
    with trio.move_on_after(grace + SHUTDOWN_DEADLINE, shield=True):
        await warden.shut_down(process, grace)
    with trio.move_on_after(REAP_DEADLINE, shield=True):
        await process.wait()


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_warden(*, grace: float = TERM_GRACE, remove: Sequence[Path] = ()) -> AsyncIterator[Warden]:
    """A warden for the block. Leaving it, in whatever way, leaves none of its processes.

    On leaving: SIGTERM to the groups of all that still run, in reverse order of their start,
    SIGKILL after ``grace`` seconds to whatever is left, and to all that was adopted. It takes
    ``grace`` and ``REAP_DEADLINE`` seconds at most, also when cancelled. If the coordinator is killed,
    the warden does without the grace.

    Args:
        grace: seconds from SIGTERM to SIGKILL.
        remove: directories that the warden deletes when everybody is gone, also if the coordinator
            does not live to see it.

    Raises:
        SpawnError: the warden could not be started, or it died: into the block, which is cancelled.
        Unreaped: some process outlived its SIGKILL.
    """
    process, control = await _launch(remove)
    try:
        with collapse():
            async with trio.open_nursery() as nursery:
                warden = Warden(process.pid, control, nursery)
                nursery.start_soon(warden.read, process)
                try:
                    await warden.wait_ready()
                    yield warden
                finally:
                    # In a task of its own: Trio raises KeyboardInterrupt in the main task whatever
                    # shields it, and a second Ctrl-C must not cut the end short.
                    nursery.start_soon(_shut_down, warden, process, grace)
    finally:
        control.close()
