"""The original server as the operator contract describes it, to hold our own ends against.

Nothing here is of this library: REST is h11's, the WebSocket is the sans-IO server of
`websockets`, the rest is the contract's sections 1 to 3 and 6 in the least code that says them.
Its defects are kept, since a peer must live with them. Two profiles: SEED, and HEAD (``head=True``).
"""

from __future__ import annotations

import json
import math
import secrets
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import h11
import trio
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

WORKER = {"variant": "code-worker", "tools": ["Read"]}
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, InvalidState)
"""There is no peer any more, or it has said goodbye."""
INFIX = {"ask": "ask", "hook_before": "hb", "hook_after": "ha", "spawn": "spawn"}


class RunError(Exception):
    """A run that failed, with the text that the original tells."""


def client_frame(text: str, *, head: bool) -> dict[str, Any] | None:
    """What the original's decoder makes of a message (2.6 to 2.10); None is dropped without a word."""
    try:
        known = json.loads(text)
    except ValueError:
        return None
    if not isinstance(known, dict) or not isinstance(known.get("req_id"), str):
        return None
    texts = [known.get(key) for key in ("reason", "error")]
    if any(each is not None and not isinstance(each, str) for each in texts):
        return None
    fits = {
        "answer": "value" in known,
        "hook_ack": isinstance(known.get("ok"), bool),
        "spawn_ack": isinstance(known.get("ok", True), bool),
        "spawn_halt": head,
    }
    return known if fits.get(known.get("type", ""), False) else None


@attrs.define(eq=False)
class Socket:
    """One WebSocket: frames go through a channel without end, as there."""

    stream: trio.SocketStream
    protocol: ServerProtocol = attrs.field(factory=lambda: ServerProtocol(max_size=64 * 2**20))
    _writing: trio.Lock = attrs.field(factory=trio.Lock)

    async def flush(self) -> None:
        async with self._writing:
            for data in self.protocol.data_to_send():
                if data:
                    await self.stream.send_all(data)
                else:
                    await self.stream.send_eof()

    async def send(self, text: str) -> None:
        self.protocol.send_text(text.encode())
        await self.flush()

    async def close(self, reason: str) -> None:
        with suppress(*GONE):  # Its peer may have gone just now.
            self.protocol.send_close(1000, reason)
            await self.flush()


@attrs.define(eq=False)
class Slot:
    """Where a waiter waits for its reply; without one in the end, its path was closed."""

    done: trio.Event = attrs.field(factory=trio.Event)
    reply: dict[str, Any] | None = None


@attrs.define(eq=False)
class Session:
    """One sid (3.1)."""

    sid: str
    token: str
    roles: list[str]
    head: bool
    tx: trio.MemorySendChannel[str] | None = None
    sockets: list[Socket] = attrs.field(factory=list)
    pending: dict[str, Slot] = attrs.field(factory=dict)
    ever_connected: bool = False
    torn_down: bool = False
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def send(self, frame: dict[str, Any]) -> None:
        """Into the channel of the newest socket; SEED fails at once without one, HEAD parks."""
        while self.tx is None and self.head and not self.torn_down:
            await self._changed.park()
        if self.tx is None:
            raise RunError("ws operator disconnected")
        self.tx.send_nowait(json.dumps(frame))

    async def request(self, kind: str, **fields: Any) -> dict[str, Any]:
        """3.2: a slot, the frame, and no deadline."""
        req_id = f"{self.sid}-{INFIX[kind]}-{uuid.uuid4()}"
        slot = self.pending[req_id] = Slot()
        try:
            await self.send({"type": kind, "req_id": req_id, **fields})
        except RunError:
            del self.pending[req_id]
            raise
        await slot.done.wait()
        if slot.reply is None:
            raise RunError("reply path closed")
        return slot.reply

    async def notify(self, **fields: Any) -> None:
        """hook_after; dropped while nobody is there."""
        req_id = f"{self.sid}-ha-{uuid.uuid4()}"
        if self.tx is not None:
            self.tx.send_nowait(json.dumps({"type": "hook_after", "req_id": req_id, **fields}))
        await trio.lowlevel.checkpoint()

    def reply(self, frame: dict[str, Any]) -> None:
        """The first one of whatever kind uses the slot up; what fits none is ignored."""
        slot = self.pending.pop(frame["req_id"], None)
        if slot is not None:
            slot.reply = frame
            slot.done.set()

    def attach(self, tx: trio.MemorySendChannel[str], socket: Socket) -> None:
        self.tx, self.ever_connected = tx, True
        self.sockets.append(socket)
        self._changed.unpark_all()

    def detach(self, tx: trio.MemorySendChannel[str], socket: Socket) -> None:
        """SEED forgets the channel whosever it is."""
        self.sockets.remove(socket)
        if self.tx is tx or not self.head:
            self.tx = None

    async def tear_down(self) -> None:
        """DELETE: SEED closes nothing and fails nobody."""
        self.tx = None
        if self.head:
            self.torn_down = True
            slots, self.pending = self.pending, {}
            for slot in slots.values():
                slot.done.set()
            self._changed.unpark_all()
            for socket in list(self.sockets):
                await socket.close("operator session deleted")


@attrs.define(eq=False)
class Task:
    """One dispatched step and what its worker posted."""

    task_id: str
    agent: str
    prompt: str
    handle: str = attrs.field(factory=lambda: f"wh-{secrets.token_hex(4)}")
    finals: list[tuple[Any, bool]] = attrs.field(factory=list)


@attrs.define(eq=False)
class Exchange:
    """A request and what is needed to answer it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def bearer(self) -> str | None:
        """1.1: exactly ``Bearer `` and something behind it."""
        value = self.headers.get("authorization", "")
        return (value[7:].strip() or None) if value.startswith("Bearer ") else None


Answer = tuple[int, Any]


@attrs.define(eq=False)
class Original:
    """The server; `serving` runs it."""

    head: bool = False
    url: str = ""
    sessions: dict[str, Session] = attrs.field(factory=dict)
    tasks: dict[str, Task] = attrs.field(factory=dict)
    said: list[tuple[str, str, int]] = attrs.field(factory=list)
    """Each request: method, path, status."""
    upgrades: list[dict[str, str]] = attrs.field(factory=list)
    """The headers of each WebSocket's opening."""
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    """Each frame of an operator, as it came."""
    dropped: list[str] = attrs.field(factory=list)
    """What was none."""
    upgradable: bool = True
    """False: every opening of a WebSocket is answered 426, as where something between cannot upgrade."""
    pongs: int = 0
    """Answers to the ping that HEAD begins each socket with (there: every 30 s)."""

    def session(self) -> Session:
        """The only one."""
        (session,) = self.sessions.values()
        return session

    async def cut(self, session: Session) -> None:
        """Its sockets die as a network does; returns when the server has noticed."""
        for socket in list(session.sockets):
            await trio.aclose_forcefully(socket.stream)
        while session.sockets:
            await trio.lowlevel.checkpoint()

    # -- REST --------------------------------------------------------------------------

    async def connection(self, stream: trio.SocketStream) -> None:
        """One connection, request by request."""
        wire = h11.Connection(h11.SERVER)
        raw = bytearray()
        while True:
            event: Any = wire.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some()
                raw += data
                wire.receive_data(data)
            elif isinstance(event, h11.Request):
                head, body = event, bytearray()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                url = urlsplit(head.target.decode())
                query = {key: values[-1] for key, values in parse_qs(url.query).items()}
                headers = {key.decode(): value.decode() for key, value in head.headers}
                asked = Exchange(head.method.decode(), url.path, query, headers, bytes(body))
                if url.path.endswith("/ws"):
                    await self._upgrade(stream, wire, asked, bytes(raw))
                    return
                await self._answer(stream, wire, asked, await self._route(asked))
                if wire.our_state is not h11.DONE or wire.their_state is not h11.DONE:
                    return
                wire.start_next_cycle()
                raw.clear()
            else:
                return

    async def _answer(
        self, stream: trio.SocketStream, wire: h11.Connection, asked: Exchange, answer: Answer
    ) -> None:
        status, known = answer
        self.said.append((asked.method, asked.path, status))
        text = isinstance(known, str)
        content = known.encode() if text else b"" if known is None else json.dumps(known).encode()
        headers = [("content-length", str(len(content)))] if status != 204 else []
        if content:
            headers.append(("content-type", "text/plain; charset=utf-8" if text else "application/json"))
        data = wire.send(h11.Response(status_code=status, headers=headers)) or b""
        data += (wire.send(h11.Data(data=content)) or b"") + (wire.send(h11.EndOfMessage()) or b"")
        await stream.send_all(data)

    async def _route(self, asked: Exchange) -> Answer:
        match asked.method, asked.path.split("/")[1:]:
            case "GET", ["v1", "healthz"]:
                return 200, "ok"
            case "POST", ["v1", "operators"]:
                return self._mint(asked)
            case ("GET" | "DELETE") as method, ["v1", "operators", sid]:
                session = self._authorised(sid, asked)
                if not isinstance(session, Session):
                    return session
                if method == "DELETE":
                    del self.sessions[sid]
                    await session.tear_down()
                    return 204, None
                connected = session.tx is not None if self.head else session.ever_connected
                return 200, {"sid": sid, "roles": session.roles, "connected": connected}
            case "POST", ["v1", "tasks"]:
                return await self._launch(json.loads(asked.body))
            case "GET", ["v1", "worker", "prompt"]:
                return self._prompt(asked)
            case "POST", ["v1", "worker", "submit"]:
                return self._submit(asked)
        return 404, None

    def _mint(self, asked: Exchange) -> Answer:
        if not asked.headers.get("content-type", "").startswith("application/json"):
            return 415, "expected application/json"
        roles = json.loads(asked.body).get("roles", [])
        if self.head:
            session = Session(f"S-{secrets.token_hex(8)}", secrets.token_hex(16), [], True)
        else:
            owned = {role for each in self.sessions.values() for role in each.roles}
            if conflicts := [role for role in roles if role in owned]:
                return 409, {"error": "roles conflict", "conflicts": conflicts}
            session = Session(f"op-{uuid.uuid4()}", secrets.token_hex(5), roles, False)
        self.sessions[session.sid] = session
        return 200, {
            "sid": session.sid,
            "token": session.token,
            **({} if self.head else {"roles": roles}),
        }

    def _authorised(self, sid: str, asked: Exchange) -> Session | Answer:
        """1.2: 401, 404, 401."""
        if asked.bearer is None:
            return 401, "missing or empty Bearer token"
        session = self.sessions.get(sid)
        if session is None:
            return 404, "unknown sid"
        return session if session.token == asked.bearer else (401, "token mismatch")

    # -- the WebSocket -----------------------------------------------------------------

    async def _upgrade(
        self, stream: trio.SocketStream, wire: h11.Connection, asked: Exchange, raw: bytes
    ) -> None:
        refused: Session | Answer = (400, "Connection header did not include 'upgrade'")
        wanted = asked.headers.get("upgrade", "").lower(), asked.headers.get("sec-websocket-version")
        if wanted == ("websocket", "13") and "upgrade" in asked.headers.get("connection", "").lower():
            found = self._authorised(asked.path.split("/")[3], asked)
            refused = found if self.upgradable else (426, "connection is not upgradable")
        if not isinstance(refused, Session):
            await self._answer(stream, wire, asked, refused)
            return
        self.said.append((asked.method, asked.path, 101))
        self.upgrades.append(asked.headers)
        socket = Socket(stream)
        socket.protocol.receive_data(raw)
        (opening,) = socket.protocol.events_received()
        socket.protocol.send_response(socket.protocol.accept(opening))  # type: ignore[arg-type]
        await socket.flush()
        await self._converse(refused, socket)

    async def _converse(self, session: Session, socket: Socket) -> None:
        tx, rx = trio.open_memory_channel[str](math.inf)
        session.attach(tx, socket)
        try:
            if self.head:
                socket.protocol.send_ping(b"there?")
                await socket.flush()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_all, rx, socket)
                await self._read_all(session, socket)
                nursery.cancel_scope.cancel()
        finally:
            session.detach(tx, socket)

    async def _write_all(self, rx: trio.MemoryReceiveChannel[str], socket: Socket) -> None:
        try:
            async for text in rx:
                await socket.send(text)
        except GONE:
            return  # What was in the channel is lost, and nobody is told (3.3).

    async def _read_all(self, session: Session, socket: Socket) -> None:
        try:
            while data := await socket.stream.receive_some():
                socket.protocol.receive_data(data)
                await socket.flush()
                for event in socket.protocol.events_received():
                    if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                        self._received(session, bytes(event.data).decode())
                    self.pongs += isinstance(event, Frame) and event.opcode is Opcode.PONG
        except GONE:
            return

    def _received(self, session: Session, text: str) -> None:
        frame = client_frame(text, head=self.head)
        if frame is None:
            self.dropped.append(text)
        else:
            self.heard.append(frame)
            session.reply(frame)

    # -- steps -------------------------------------------------------------------------

    async def _launch(self, body: dict[str, Any]) -> Answer:
        """1.4, with a Blueprint of one step: ``{"agent", "prompt"}``."""
        step, ids = body["blueprint"]["value"], body["operator"]
        seats = [
            self.sessions.get(ids.get(key, ""))
            for key in ("spawn_hook_id", "operator_backend_id", "senior_bridge_id")
        ]
        prefix = "ST" if self.head else "T"
        task = Task(f"{prefix}-{secrets.token_hex(8)}", step["agent"], step["prompt"])
        self.tasks[task.task_id] = task
        try:
            value = await self._step(task, *seats)
        except RunError as error:
            at = f"dispatcher error for ref '{task.agent}': "
            return 400, {"error": f"run: launch: flow eval: {at}{at}{error}"}
        ttl = {"effective_ttl_secs": 1800, "ttl_source": "server_default"}
        return 200, {"final_ctx": {task.agent: value}, "bound_version": None, **ttl}

    async def _step(self, task: Task, *seats: Session | None) -> Any:
        """6.3 with the layers of 8.8: before, execute, ask, after."""
        hook, backend, bridge = seats
        about = {"task_id": task.task_id, "agent": task.agent, "attempt": 1}
        failed = "dispatch_attempt: dispatch failed: "
        if hook is not None:
            try:
                await self._gate(hook, about)
            except RunError as error:
                raise RunError(f"{failed}spawn rejected by middleware: {error}") from None
        try:
            value, ok = await self._execute(backend, task, about)
        except RunError as error:
            raise RunError(f"{failed}worker fn returned error: {error}") from None
        if not ok and bridge is not None:
            question = {"reason": "worker reported ok=false", "value": value}
            reply = await bridge.request("ask", task_id=task.task_id, question=question)
            if reply["type"] == "answer":
                value, ok = {"original": value, "senior_answer": reply["value"]}, True
        if hook is not None:
            await hook.notify(**about, result=value)
        if not ok:
            raise RunError(f"blocked: {json.dumps(value, separators=(',', ':'))}")
        return value

    async def _gate(self, hook: Session, about: dict[str, Any]) -> None:
        ack = await hook.request("hook_before", **about)
        if ack["type"] != "hook_ack":
            raise RunError(f"unexpected {ack['type']} reply to hook_before")
        if not ack["ok"]:
            raise RunError(ack.get("reason") or "operator rejected the spawn")

    async def _execute(self, backend: Session | None, task: Task, about: dict[str, Any]) -> tuple[Any, bool]:
        assert backend is not None
        more: dict[str, Any] = {"worker": WORKER} if self.head else {}
        secret = {"capability_token": "eyJhZ2VudF9pZCI6", "worker_handle": task.handle}
        directive = f"[agent_primitive dispatch=@{task.agent}]\n…"
        try:
            ack = await backend.request("spawn", **about, **secret, **more, directive=directive)
        except RunError as error:
            raise RunError(f"ws operator spawn: {error}") from None
        if ack["type"] == "spawn_halt":
            return {"halted": True, "reason": ack.get("reason"), "value": ack.get("value")}, True
        if ack["type"] != "spawn_ack":
            raise RunError("unexpected non-spawn reply")
        if ack.get("error") is not None:
            raise RunError(ack["error"])
        return deque(task.finals, 1).pop() if task.finals else (ack.get("value"), ack.get("ok", True))

    def _task_of(self, asked: Exchange) -> Task | Answer:
        """1.6: every problem with the header is 400, an unknown handle 500 or 410."""
        if asked.bearer is None:
            return 400, {"error": "missing Bearer token"}
        task = next((each for each in self.tasks.values() if each.handle == asked.bearer), None)
        unknown = (
            (410, {"error": "handle gone"}) if self.head else (500, {"error": "engine: token not found"})
        )
        return task or unknown

    def _prompt(self, asked: Exchange) -> Answer:
        task = self._task_of(asked)
        if not isinstance(task, Task):
            return task
        if task.task_id != asked.query.get("task_id"):
            return 400, {"error": "handle is bound to another task"}
        return 200, {"task_id": task.task_id, "attempt": 1, "agent": task.agent, "prompt": task.prompt}

    def _submit(self, asked: Exchange) -> Answer:
        task, ok = self._task_of(asked), asked.query.get("ok", "true")
        if not isinstance(task, Task):
            return task
        if ok not in ("true", "false"):
            return 400, "bad query"
        task.finals.append((asked.body.decode("utf-8", "replace").rstrip(), ok == "true"))
        return 204, None


@asynccontextmanager
async def serving(*, head: bool = False, original: Original | None = None) -> AsyncIterator[Original]:
    """An original on a port of its own, ended with the block; ``original`` is one that ran before."""
    original = original or Original(head)

    async def one(stream: trio.SocketStream) -> None:
        try:
            await original.connection(stream)
        except (*GONE, h11.RemoteProtocolError):
            return

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    original.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, listeners)
        yield original
        nursery.cancel_scope.cancel()
