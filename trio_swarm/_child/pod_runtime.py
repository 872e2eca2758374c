"""A pod at work: the controller decides, this broadcasts, runs the engine and keeps the files.

Decisions are made at once, in the task that read the method, so the original's queue of methods
before the controller is always empty here.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import trio

from trio_swarm._child.endings import ends_copies
from trio_swarm._child.pod_files import ScopedFiles
from trio_swarm._child.pod_history import PodHistory
from trio_swarm._child.pod_server import PodClients
from trio_swarm._child.pod_spec import PodSpec
from trio_swarm._child.pod_tools import Tool, ToolFailed, file_tools
from trio_swarm._child.pod_turn import MAX_MESSAGE, Engine, PodTurn, printable
from trio_swarm._io.deadline import scope_for
from trio_swarm._io.groups import leaves
from trio_swarm._io.guard import serve_guarded
from trio_swarm._state.pod_controller import (
    Broadcast,
    CancelTurn,
    Commit,
    Effect,
    End,
    Failed,
    Finished,
    Method,
    Notifier,
    PodController,
    SaveStatus,
    StartTurn,
)
from trio_swarm.errors import GrantError
from trio_swarm.frames import dump_json
from trio_swarm.frames.pod import Greeting, History, HistoryItem, Notification, Notify

__all__ = ["SAVE_EVERY", "PodRuntime"]

SAVE_EVERY: Final = 0.1
"""Seconds between two writes of the state files: a burst of turns costs the disk one write, not many."""


class PodRuntime:
    """One pod's controller, clients, engine and files."""

    def __init__(self, spec: PodSpec, engine: Engine, *, save_every: float = SAVE_EVERY) -> None:
        self._spec = spec
        self._engine = engine
        self._save_every = save_every
        self._controller = PodController()
        self._history = PodHistory()
        self._files = ScopedFiles(spec.grant(), spec.cwd, owner=spec.pod_name)
        self.tools: Mapping[str, Tool] = file_tools(self._files)
        self._clients = PodClients(Notifier(), self._receive, self._told_history)
        self._session = _uuid7()
        self._state = "idle"
        self._turn_scope = trio.CancelScope()
        self._ending = trio.Event()
        self._to_save = trio.Event()
        self._run_items: list[HistoryItem] = []
        self._nursery: trio.Nursery | None = None

    async def run(self, listener: trio.SocketListener) -> None:
        """Serve until ``shutdown``, SIGTERM or SIGINT; then everybody has been told."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_signals)
            nursery.start_soon(self._keep_files)
            await nursery.start(serve_guarded, [listener], self._clients.serve_one)
            await self._ending.wait()
            await self._clients.close()
            nursery.cancel_scope.cancel()

    def save(self) -> None:
        """Write ``status.json`` and ``history.json``; blocks."""
        status = {"pod_name": self._spec.pod_name, "session_id": self._session, "state": self._state}
        _replace(self._spec.directory / "status.json", dump_json(status).encode())
        _replace(self._spec.directory / "history.json", self._history.document())

    # -- what a turn needs (TurnHost) ------------------------------------------------------

    def broadcast(self, event: object) -> None:
        """Send an event to every client."""
        self._clients.broadcast(event)

    def begin_request(self) -> None:
        """A request to the model begins, unless one is open."""
        self._apply(self._controller.begin_request())

    def end_request(self) -> None:
        """It has been answered, if one was open."""
        self._apply(self._controller.end_request())

    def take_notifications(self) -> tuple[Notify, ...]:
        """What came for the model meanwhile."""
        return self._controller.take_notifications()

    def alert(self, level: Literal["warn", "error"], text: str) -> None:
        """Tell people something."""
        now = time.time_ns() // 1_000_000
        self._clients.broadcast(Notification(level, "worker", printable(text, MAX_MESSAGE), now))

    async def pace(self) -> None:
        """Wait for clients that fall behind."""
        await self._clients.pace()

    # -- decisions -------------------------------------------------------------------------

    def _receive(self, method: Method) -> None:
        self._apply(self._controller.receive(method))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Broadcast(event=event):
                    self._clients.broadcast(event)
                case StartTurn():
                    assert self._nursery is not None
                    self._turn_scope = scope_for(effect.deadline_ms)
                    self._nursery.start_soon(self._run_turn, effect)
                case CancelTurn():
                    self._turn_scope.cancel()
                case Commit():
                    self._history.extend(self._run_items)
                case SaveStatus(state=state):
                    self._state = state
                    self._to_save.set()
                case End():
                    self._ending.set()

    def _told_history(self) -> History:
        spec = self._spec
        greeting = Greeting(
            spec.pod_name, spec.cwd, spec.provider, spec.model, self._files.grant.summary(), tuple(self.tools)
        )
        return History(self._history.items, greeting)

    # -- the engine ------------------------------------------------------------------------

    async def _run_turn(self, start: StartTurn) -> None:
        turn = PodTurn.begin(start, self._history, self._files, self)
        outcome = await self._outcome(turn, start)
        try:
            self._run_items = turn.close(complete=isinstance(outcome, Finished))
        except ValueError as error:  # its text as a whole is more than clients take
            self._run_items, outcome = [], Failed("internal", str(error))
        self._apply(self._controller.finish(outcome))

    async def _outcome(self, turn: PodTurn, start: StartTurn) -> Finished | Failed:
        scope = self._turn_scope
        deadline = scope.deadline
        try:
            with scope:
                with ends_copies():
                    answer = await self._engine(turn)
                if isinstance(answer, str):
                    await turn.text(answer)
                return Finished(turn.result)
        except (Exception, SystemExit) as error:
            return _failure(error)
        if trio.current_time() >= deadline:
            return Failed("internal", f"the run did not end within its {start.deadline_ms} ms")
        return Failed("internal", "the run was cancelled")

    # -- tasks -----------------------------------------------------------------------------

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                self._apply(self._controller.shutdown())

    async def _keep_files(self) -> None:
        told = False
        while True:
            await self._to_save.wait()
            self._to_save = trio.Event()
            try:
                await trio.to_thread.run_sync(self.save)
            except OSError as error:
                # A full disk, say: no reason to lose the turn. The next change is written as a whole again.
                if not told:
                    print(
                        f"pod: {self._spec.pod_name} cannot write its state: {error}",
                        file=sys.stderr,
                        flush=True,
                    )
                told = True
            await trio.sleep(self._save_every)


def _failure(error: BaseException) -> Failed:
    """What clients are told of an engine's exception; a traceback goes to standard error, not to them."""
    found = leaves(error)
    told = "; ".join(
        str(each) if isinstance(each, ToolFailed | GrantError) else f"{type(each).__name__}: {each}"
        for each in found
    )
    of_tools = all(isinstance(each, ToolFailed | OSError) for each in found)
    return Failed("tool_error" if of_tools else "internal", printable(told, MAX_MESSAGE))


def _replace(path: Path, data: bytes) -> None:
    """Same directory, the extension ``tmp``, rename (B3.1): a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
    os.rename(temporary, path)


def _uuid7() -> str:
    """A session's id: ordered by time (RFC 9562, 5.7)."""
    bits = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | random.getrandbits(80)
    bits = bits & ~(0xF << 76) | 7 << 76
    bits = bits & ~(0x3 << 62) | 2 << 62
    digits = f"{bits:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
