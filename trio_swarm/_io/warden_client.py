"""The coordinator's side of the warden: start processes, hear of their ends.

One task reads what the warden says; every order is one line, sent under a lock and
a bounded shield, for a half-sent line would end the conversation.
"""

from __future__ import annotations

import array
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final, Literal, final

import attrs
import trio
import trio.abc
import trio.socket

from trio_swarm._io.warden_process import TAIL_DRAIN, Exit, ManagedProcess, ProcessReport
from trio_swarm._io.warden_start import (
    Stdio,
    can_branch,
    inherited,
    open_stdio,
    order_to_plant,
    order_to_start,
)
from trio_swarm._io.warden_sweep import living, sweep
from trio_swarm.errors import SpawnError, Unreaped
from trio_swarm.limits import REAP_DEADLINE, SEND_DEADLINE

__all__ = ["SHUTDOWN_DEADLINE", "Warden"]

READY_DEADLINE: Final = 30.0
"""For the warden's first word. It takes 50 ms; a machine on its knees takes longer."""

SLACK: Final = 2.0
"""For the warden's own work beside the waiting."""

SHUTDOWN_DEADLINE: Final = REAP_DEADLINE + SLACK + SEND_DEADLINE + SLACK
"""For `Warden.shut_down` beside the grace; it is through earlier, this only bounds the shield."""


@final
@attrs.define(eq=False, repr=False)
class Warden:
    """Starts processes and answers for all of them. Made by `open_warden`; any task may use it."""

    pid: int
    """The warden's own process id."""
    _socket: trio.socket.SocketType
    _nursery: trio.Nursery
    _token: str = attrs.field(factory=lambda: secrets.token_hex(6))
    _processes: dict[str, ManagedProcess] = attrs.field(factory=dict)
    _reports: list[ProcessReport] = attrs.field(factory=list)
    _starting: dict[str, trio.MemorySendChannel[dict[str, Any]]] = attrs.field(factory=dict)
    _scopes: set[trio.CancelScope] = attrs.field(factory=set)
    _lent: list[trio.lowlevel.FdStream] = attrs.field(factory=list)
    _sending: trio.Lock = attrs.field(factory=trio.Lock)
    _ready: trio.Event = attrs.field(factory=trio.Event)
    _over: trio.Event = attrs.field(factory=trio.Event)
    _final: dict[str, Any] | None = None
    _closing: bool = False
    _started: int = 0
    _stem: dict[str, str] | None = None
    """The environment of the stem, once there is one."""

    def __repr__(self) -> str:
        return f"<Warden pid={self.pid} processes={len(self._processes)}>"

    def processes(self) -> tuple[ManagedProcess, ...]:
        """Those that are running, in the order of their start."""
        return tuple(p for p in self._processes.values() if p.exit is None and p.pid)

    def report(self) -> tuple[ProcessReport, ...]:
        """A receipt for each process that is gone, in the order of their ends.

        Complete once the block was left.
        """
        ending = (p.report for p in self._processes.values())
        return (*self._reports, *(report for report in ending if report is not None))

    def survivors(self) -> tuple[int, ...]:
        """Pids of whoever carries this warden's mark and lives, looked up in ``/proc`` now.

        Strays included. Where there is no ``/proc``: those that have not been reported gone.
        """
        return tuple(living(self._token)) or tuple(p.pid for p in self.processes())

    @trio.lowlevel.enable_ki_protection
    async def start(
        self,
        argv: Sequence[str],
        *,
        name: str,
        stdin: bytes | Stdio = "null",
        stdout: Stdio = "null",
        stderr: Literal["tail", "null", "inherit"] = "tail",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> ManagedProcess:
        """Start a process in a session of its own.

        Args:
            argv: the program, searched for along the child's PATH, and its arguments.
            name: for reports and errors; need not be unique.
            stdin: nothing, the coordinator's own, a pipe for you (``.stdin``), or bytes that are
                written by a task of the warden's block, and then the end of file.
            stdout: nothing, the coordinator's own, or a pipe for you (``.stdout``).
            stderr: keep its last 4 KiB (``.stderr_tail``), nothing, or the coordinator's own.
            env: set over the coordinator's environment.
            cwd: where it runs; else where the coordinator is now.
            pass_fds: descriptors that it gets under the same numbers. They remain yours.

        Cancelled before it returns, a process that was started all the same is killed.

        Raises:
            SpawnError: with the reason; the warden's end is one.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closing or self._over.is_set():
            raise SpawnError(f"{name}: cannot start {argv[:1]}: the warden has ended")
        self._started += 1
        process = ManagedProcess(name, f"{self._token}.{self._started}", self._order)
        replies, reply = trio.open_memory_channel[dict[str, Any]](1)
        with ExitStack() as after, reply:
            try:
                order = order_to_start(process.id, argv, pass_fds, env, cwd)
                pipes = open_stdio(after, stdin, stdout, stderr, pass_fds)
            except (OSError, ValueError) as error:
                raise SpawnError(f"{name}: cannot start {list(argv[:1])}: {error}") from error
            self._processes[process.id], self._starting[process.id] = process, replies
            self._serve_pipes(process, stdin, pipes.mine)
            order["targets"] = list(pipes.targets)
            if can_branch(argv, stdin, stdout) and await self._plant(inherited(order)):
                order["fork"] = argv[3]
            answer = await self._ask_to_start(process, order, pipes.theirs, reply)
            if "error" in answer:
                self._forget(process)
                raise SpawnError(f"{name}: cannot start {argv[0]!r}: {answer['error']}")
        return process

    async def _plant(self, environment: dict[str, str]) -> bool:
        """Whether the stem can have children with that environment; the first has it planted."""
        if self._stem is None:
            self._stem = environment
            await self._order(order_to_plant(environment, f"{self._token}.0"))
        return self._stem == environment

    async def _ask_to_start(
        self,
        process: ManagedProcess,
        order: dict[str, object],
        fds: Sequence[int],
        reply: trio.MemoryReceiveChannel[dict[str, Any]],
    ) -> dict[str, Any]:
        try:
            await self._order(order, fds)
            return await reply.receive()
        except trio.EndOfChannel:
            return {"error": "the warden died"}
        except OSError as error:
            return {"error": f"its descriptors cannot be passed on: {error}"}
        except BaseException:
            # Orders are obeyed one after the other: this finds whatever the first one made.
            self._close_pipes(process)
            with trio.move_on_after(SEND_DEADLINE, shield=True):
                await self._order({"op": "stop", "id": process.id, "grace": 0.0})
            raise

    def _forget(self, process: ManagedProcess) -> None:
        """It never was; nor were its pipes."""
        self._processes.pop(process.id, None)
        self._close_pipes(process)
        for scope in process.scopes:
            scope.cancel()

    def _close_pipes(self, process: ManagedProcess) -> None:
        """Of a process that nobody got hold of."""
        for stream in (process.stdin, process.stdout):
            if isinstance(stream, trio.lowlevel.FdStream):
                stream.close()

    # -- pipes ---------------------------------------------------------------------------

    def _serve_pipes(
        self, process: ManagedProcess, stdin: bytes | Stdio, mine: Mapping[int, trio.lowlevel.FdStream]
    ) -> None:
        if 0 in mine and isinstance(stdin, bytes):
            self._serve(process, _write_all, mine[0], stdin)
        elif 0 in mine:
            process.stdin = mine[0]
        process.stdout = mine.get(1)
        lent = [mine[n] for n in mine if mine[n] in (process.stdin, process.stdout)]
        self._lent = [*(each for each in self._lent if each.fileno() >= 0), *lent]
        if 2 in mine:
            self._serve(process, _read_tail, mine[2], process)
        else:
            process.tail_is_done()

    def _serve(self, process: ManagedProcess, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run a task that outlives the body's cancellation, but never the block."""
        scope = trio.CancelScope(shield=True)
        process.scopes.add(scope)
        self._scopes.add(scope)
        stream = args[0]

        @trio.lowlevel.enable_ki_protection
        async def served() -> None:
            try:
                with scope:
                    await work(*args)
            finally:
                self._scopes.discard(scope)
                process.scopes.discard(scope)
                stream.close()

        self._nursery.start_soon(served, name=f"{work.__name__} {process.name}")

    # -- the conversation ----------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _order(self, order: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        """Send one line. A warden that is gone is the reader's to notice.

        Raises:
            OSError: the descriptors cannot be sent; nothing was.
        """
        if self._over.is_set():
            return
        line = json.dumps({**order, "fds": len(fds)}, separators=(",", ":")).encode() + b"\n"
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with trio.move_on_after(SEND_DEADLINE, shield=True) as scope:
            async with self._sending:
                with suppress(BrokenPipeError, ConnectionResetError):
                    sent = await self._socket.sendmsg([line], beside)
                    while sent < len(line):
                        sent += await self._socket.send(line[sent:])
        if scope.cancelled_caught:  # it does not read: half a line may be gone, so this is the end
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @trio.lowlevel.enable_ki_protection
    async def read(self, process: trio.Process) -> None:
        """Heed the warden until its end; raise if it came too early or leaves somebody."""
        with trio.CancelScope(shield=True):  # bounded by the socket's end, see shut_down
            received = b""
            while data := await self._receive():
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    self._heed(json.loads(line))
            self._over.set()
            for reply in self._starting.values():
                reply.close()  # their orders were never read
            if self._final is None:
                await self._lose(process)
        if not self._closing:
            raise SpawnError(f"the warden (pid {self.pid}) was told to end; so did its processes")
        if self._final is not None and self._final["left"]:
            raise Unreaped(self._final["left"], waited=REAP_DEADLINE)

    async def _receive(self) -> bytes:
        try:
            return await self._socket.recv(2**16)
        except OSError:
            return b""

    def _heed(self, word: dict[str, Any]) -> None:
        event = word["event"]
        if event == "ready":
            self._ready.set()
        elif event == "final":
            self._final = word
            strays = (ProcessReport(name, pid, None, "stray", 0.0, 0) for pid, name in word["strays"])
            self._reports += strays
        elif (process := self._processes.get(word["id"])) is None:
            return
        elif event == "started":
            self._heed_start(process, word)
        elif event == "exit":
            process.note_exit(word["code"], word["sent"])
        elif event == "gone":
            process.note_gone(word["strays"])
            self._file(process)

    def _heed_start(self, process: ManagedProcess, word: dict[str, Any]) -> None:
        if "error" in word:
            self._forget(process)
        else:
            process.pid, process.born = word["pid"], word["born"].encode()
        with self._starting.pop(process.id) as reply, suppress(trio.BrokenResourceError):
            reply.send_nowait(word)

    def _file(self, process: ManagedProcess) -> None:
        report = process.report
        if self._processes.pop(process.id, None) and report is not None:
            self._reports.append(report)

    async def _lose(self, process: trio.Process) -> None:
        """The warden was killed: end in the dark whatever it looked after, and say so."""
        leaders = {p.pid: p.born for p in self.processes()}
        left = await trio.to_thread.run_sync(sweep, self._token, leaders, REAP_DEADLINE)
        for each in list(self._processes.values()):
            if each.pid:
                each.note_lost()
                self._file(each)
        if left:
            raise Unreaped(left, waited=REAP_DEADLINE)
        with trio.move_on_after(REAP_DEADLINE):
            await process.wait()
        code = process.returncode
        how = "lives but is mute" if code is None else Exit(code, None) if code >= 0 else Exit(None, -code)
        raise SpawnError(f"the warden (pid {self.pid}) {how}; its {len(leaders)} processes were killed")

    async def wait_ready(self) -> None:
        """Wait for its first word. Its end before that is raised by `read`."""
        with trio.move_on_after(READY_DEADLINE):
            await self._ready.wait()
            return
        raise SpawnError(f"the warden (pid {self.pid}) said nothing for {READY_DEADLINE:g} s")

    async def shut_down(self, process: trio.Process, grace: float) -> None:
        """Have everything ended, by force if the warden does not answer; `read` says what came of it."""
        self._closing = True
        await self._order({"op": "shutdown", "grace": grace})
        with trio.move_on_after(grace + REAP_DEADLINE + SLACK):
            await self._over.wait()
        if not self._over.is_set():
            process.kill()
            with suppress(OSError):  # its end of the socket may be closed late, if it cannot die
                self._socket.shutdown(socket.SHUT_RDWR)
        for scope in list(self._scopes):
            scope.deadline = min(scope.deadline, trio.current_time() + TAIL_DRAIN)
        for stream in self._lent:
            stream.close()


async def _write_all(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):  # it need not read its input
        await stream.send_all(data)


async def _read_tail(stream: trio.lowlevel.FdStream, process: ManagedProcess) -> None:
    try:
        async for data in stream:
            process.keep_tail(data)
    finally:
        process.tail_is_done()
