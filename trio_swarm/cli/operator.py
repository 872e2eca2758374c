"""``trio-swarm operator``: a person at a terminal is an operator."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import trio

from trio_swarm._io.groups import collapse, leaves
from trio_swarm._io.http_peer import Address
from trio_swarm._io.terminal import LineInput, TextOutput, edit, editor_argv
from trio_swarm.cli.early import say
from trio_swarm.cli.operator_desk import Desk
from trio_swarm.cli.operator_options import USAGE, OperatorCommandError, OperatorOptions
from trio_swarm.cli.operator_state import KeptSession
from trio_swarm.cli.operator_view import plain, prompt_text
from trio_swarm.errors import HandshakeError, PeerError, SwarmError, Terminated
from trio_swarm.jobs.runner import STOP_SIGNALS
from trio_swarm.limits import CLOSE_DEADLINE, HANDSHAKE_DEADLINE
from trio_swarm.operators import (
    AskRequest,
    OperatorClient,
    OperatorRequest,
    OperatorSession,
    RolesTaken,
    SpawnRequest,
    connect_operator,
)
from trio_swarm.operators.joining import Login, log_out
from trio_swarm.swarm.signals import stopped_by
from trio_swarm.workers import connect_worker

__all__ = ["run"]

_SESSION_OVER: Final = frozenset({401, 404, 410})
_BRIEF: Final = 1.0
"""A connection that is back within so many seconds is not worth a line."""
_EXPECTED: Final = (OperatorCommandError, PeerError, RolesTaken, OSError, ValueError)


def run(options: OperatorOptions) -> int:
    """Be an operator until the person leaves or the server ends it; the exit status.

    Ctrl-C, SIGTERM and SIGHUP end it in order: status 128 and the signal's number.
    Raises `OperatorCommandError`.
    """
    if sys.stdin is None or sys.stdout is None:
        raise OperatorCommandError("standard input and output are needed", USAGE)
    try:
        trio.run(_until_stopped, _Sitting(options))
    except (*_EXPECTED, Terminated, ExceptionGroup) as error:
        return _ended(leaves(error), error)
    return 0


async def _until(client: OperatorClient, *, connected: bool) -> None:
    while client.connected is not connected:
        await client.connection_changed()


async def _until_stopped(sitting: _Sitting) -> None:
    # What was ignored when we were started (nohup) stays ignored.
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    with collapse():
        async with stopped_by(heeded):
            await sitting.run()


def _ended(reasons: Sequence[BaseException], error: Exception) -> int:
    """The exit status, if a signal ended it: what went wrong on the way out of that is not news."""
    for each in reasons:
        if isinstance(each, Terminated):
            say(f"trio-swarm: stopped by {signal.Signals(each.signum).name}\n")
            return 128 + each.signum
    if not all(isinstance(each, _EXPECTED) for each in reasons):
        raise error
    raise OperatorCommandError(plain(_told(reasons[0]))) from error


def _told(error: BaseException) -> str:
    """Its text, and the system's reason where that is only in what caused it."""
    text, cause = str(error), error.__cause__
    while cause is not None:
        first = leaves(cause)[0]
        number = first.errno if isinstance(first, OSError) else None
        if number is not None and number > 0 and os.strerror(number) not in text:
            text = f"{text} ({os.strerror(number)})"
        cause = first.__cause__
    return text


class _Sitting:
    """One run of the command."""

    def __init__(self, options: OperatorOptions) -> None:
        self._options = options
        self._desk = Desk()
        self._lines = LineInput(sys.stdin.fileno())
        self._out = TextOutput(sys.stdout.fileno())
        self._leaving = False
        self._kept: KeptSession | None = None
        if options.keep:
            self._kept = KeptSession.of(options.url, options.name, options.roles, os.environ, uds=options.uds)

    async def run(self) -> None:
        with collapse(), self._out:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                try:
                    await self._sit()
                finally:
                    self._leaving = True
                    with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                        await self._out.drain()
                nursery.cancel_scope.cancel()

    async def _write(self) -> None:
        await self._out.run()
        if not self._leaving:  # Nobody can see any more what is asked.
            raise OperatorCommandError("cannot write to standard output")

    async def _sit(self) -> None:
        session = self._options.session
        if self._kept is not None:
            session = self._kept.load()
        try:
            await self._connected(session)
        except HandshakeError as error:
            if session is None or error.status not in _SESSION_OVER:
                raise
            if self._kept is None:
                text = f"the session {session.sid} is not there any more, or its token is another ({error})"
                raise OperatorCommandError(plain(text)) from error
            self._kept.forget()
            self._out.write("-- the kept session is over; logging in anew")
            await self._connected(None)

    async def _connected(self, session: OperatorSession | None) -> None:
        options = self._options
        keep = options.keep or options.session is not None
        async with connect_operator(
            options.url,
            roles=options.roles,
            desc=options.name,
            session=session,
            keep=keep,
            ssl_context=options.ssl_context,
            uds=options.uds,
        ) as client:
            if self._kept is not None:
                await self._save(client, self._kept)
            self._greet(client, back=session is not None)
            ended = await self._work(client)
            login = self._login_of(client)
        if ended == "logout" and keep:
            with trio.move_on_after(CLOSE_DEADLINE):
                await log_out(login)
        if self._kept is not None and ended != "leave":
            self._kept.forget()

    async def _save(self, client: OperatorClient, kept: KeptSession) -> None:
        saved = False
        try:
            kept.save(client.session)
            saved = True
        finally:
            if not saved:  # Nobody could come back to it.
                login = self._login_of(client)
                with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                    await log_out(login)

    def _login_of(self, client: OperatorClient) -> Login:
        options = self._options
        return Login.resumed(Address.parse(options.url, options.uds), client.session, options.ssl_context)

    def _greet(self, client: OperatorClient, *, back: bool) -> None:
        roles = f" as {', '.join(map(plain, client.roles))}" if client.roles else ""
        word = "back" if back else "joined"
        self._out.write(f"-- {word}{roles}: session {plain(client.sid)}; `help` helps")

    async def _work(self, client: OperatorClient) -> str:
        """Until it is over; says how: ``leave``, ``logout``, or ``ended`` by the server."""
        how = "ended"
        with collapse():
            async with trio.open_nursery() as nursery:

                async def commands() -> None:
                    nonlocal how
                    how = await self._commands()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(commands)
                nursery.start_soon(self._tell_connection, client)
                async for item in client:
                    text = self._desk.take(item)
                    if text:
                        self._out.write(text)
                nursery.cancel_scope.cancel()
        if how == "ended":
            self._out.write("-- the server ended the session")
        elif self._desk.waiting and how == "leave":
            again = self._options.keep and client.redelivers
            what = "to be asked again when you come back" if again else "not answered"
            self._out.write(f"-- left; {self._desk.waiting} {what}")
        return how

    async def _tell_connection(self, client: OperatorClient) -> None:
        while True:
            await _until(client, connected=False)
            with trio.move_on_after(_BRIEF) as soon:
                await _until(client, connected=True)
            if soon.cancelled_caught:
                self._out.write("-- the connection is lost; replies are sent when it is back")
                await _until(client, connected=True)
                self._out.write("-- connected again")

    async def _commands(self) -> str:
        while True:
            line = await self._lines.receive()
            if line is None:
                return "leave"
            act = self._desk.command(line)
            while act.next == "wait" and not self._lines.interactive:
                # A script cannot see that nothing waits yet: it means the next one that comes.
                await self._desk.wait()
                act = self._desk.command(line)
            if act.next in ("leave", "logout"):
                return act.next
            if act.next == "edit" and act.request is not None:
                self._out.write(await self._edited(act.request))
            elif act.next == "prompt" and isinstance(act.request, SpawnRequest):
                self._out.write(await self._prompt(act.request))
            elif act.text:
                self._out.write(act.text)

    async def _prompt(self, request: SpawnRequest) -> str:
        """What the step is about: a spawn does not say it, its worker fetches it."""
        bearer = request.frame.worker_handle or request.frame.capability_token
        options = self._options
        try:
            with trio.fail_after(HANDSHAKE_DEADLINE):
                async with connect_worker(
                    options.url,
                    bearer,
                    task_id=request.task_id,
                    ssl_context=options.ssl_context,
                    uds=options.uds,
                ) as session:
                    return prompt_text(await session.fetch_prompt())
        except (SwarmError, ValueError, trio.TooSlowError) as error:
            return f"-- the prompt cannot be fetched: {plain(str(error) or 'it takes too long')}"

    async def _edited(self, request: OperatorRequest) -> str:
        await self._out.drain()
        with self._out.held():
            try:
                suffix = ".json" if isinstance(request, AskRequest) else ".txt"
                text = await edit("", editor_argv(os.environ), suffix=suffix)
            except (OSError, ValueError) as error:
                return f"-- the editor cannot be started: {plain(str(error))}"
        return self._desk.edited(request, text)
