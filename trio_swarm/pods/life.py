"""One life of a pod's process: started, found listening, asked to end, gone."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from trio_swarm._child.pod_spec import PodSpec
from trio_swarm._io.host import Host
from trio_swarm._io.process import ManagedProcess, python_argv, python_env
from trio_swarm._io.starting import StartSilent, not_up
from trio_swarm._io.unix import connect_unix, locked_directory
from trio_swarm.frames import encode
from trio_swarm.frames.pod import Shutdown
from trio_swarm.limits import REAP_DEADLINE, SOCKET_POLL, TERM_GRACE

__all__ = ["live", "make_base", "remove_directory", "wait_listening"]


def make_base(host: Host) -> Path:
    """The directory of this host's pods; blocks for a moment."""
    base = host.runtime_dir / "pods"
    base.mkdir(mode=0o700, exist_ok=True)
    return base


@asynccontextmanager
async def live(
    host: Host, spec: PodSpec, *, socket_wait: float, grace: float = TERM_GRACE
) -> AsyncIterator[tuple[ManagedProcess, trio.SocketStream]]:
    """The process and a connection to it, for the block.

    On leaving, however: asked to end (``shutdown``), then SIGTERM, then SIGKILL; each step has ``grace``
    seconds. Then nothing is left of it, its runtime directory included.

    Raises:
        SpawnError: it did not start or ended; `StartLost` if it was told or made to, `StartSilent` if
            it did not listen within ``socket_wait`` seconds.
        Unreaped: it survived SIGKILL.
    """
    process = await host.warden.start(
        python_argv("trio_swarm._child.pod"),
        name=f"pod {spec.pod_name}",
        stdin=encode(spec).encode(),
        env=python_env(),
    )
    listening = False
    try:
        stream = await wait_listening(process, spec, socket_wait=socket_wait)
        listening = True
        try:
            yield process, stream
        finally:
            await trio.aclose_forcefully(stream)
    finally:
        with trio.CancelScope(shield=True):
            # Each of the three is bounded by itself.
            if listening and process.exit is None:
                await _ask_to_end(process, spec.socket, grace)
            await process.stop(grace=grace)
            await remove_directory(spec.directory)


async def wait_listening(process: ManagedProcess, spec: PodSpec, *, socket_wait: float) -> trio.SocketStream:
    """Connect as soon as it listens; looks each 50 ms, as the contract has it (B3.3).

    Raises:
        SpawnError: the process ended first, or the time did; see `live`. It has the end of its
            standard error.
    """
    with trio.move_on_after(socket_wait):
        while process.exit is None:
            # Else it is not there yet, or the socket of an earlier process that crashed.
            with suppress(OSError):
                stream = await connect_unix(spec.socket)
                if _pid_in(spec.directory) == process.pid:
                    return stream
                # Another pod of this name: ours will notice and end.
                await trio.aclose_forcefully(stream)
            with trio.move_on_after(SOCKET_POLL):
                await process.wait()
        await process.wait()
    who, tail = f"{process.name} (pid {process.pid})", process.stderr_tail.strip()
    if process.exit is None:
        raise StartSilent(f"{who} did not listen within {socket_wait:g} s: {tail}")
    # Status 0 is how it obeys a SIGTERM; whatever is wrong with it has another.
    told = process.exit.code == 0
    raise not_up(process, f"{who} {process.exit} before it listened: {tail}", lost=told)


def _pid_in(directory: Path) -> int | None:
    """Whose runtime directory it is: the pod writes its pid before it listens."""
    try:
        return int((directory / "pid").read_text())
    except (OSError, ValueError):
        return None


async def _ask_to_end(process: ManagedProcess, socket: Path, grace: float) -> None:
    """Over a connection of its own: the client's may be in the middle of a line."""
    with trio.move_on_after(grace):
        try:
            stream = await connect_unix(socket)
        except OSError:
            return
        async with stream:
            process.mark("asked")
            try:
                await stream.send_all(encode(Shutdown()).encode() + b"\n")
                # A client that does not read is one that may not be heard (B2.4).
                while await stream.receive_some(65536):
                    continue
            except trio.BrokenResourceError:
                # It has ended meanwhile: that is what was asked for.
                pass
        await process.wait()


async def remove_directory(path: Path) -> None:
    """What a crash left of the runtime directory; bounded, and no error where there is nothing."""
    with trio.move_on_after(REAP_DEADLINE):
        await trio.to_thread.run_sync(_remove, path, abandon_on_cancel=True)


def _remove(path: Path) -> None:
    # Not to be had: another pod of this name is at work in it, or it is not ours at all.
    with suppress(OSError):
        if os.path.lexists(path):
            with locked_directory(path):
                shutil.rmtree(path, ignore_errors=True)
