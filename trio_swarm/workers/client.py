"""A worker's end: fetch the prompt, emit what is made, post the result (contract: operators 4.7)."""

from __future__ import annotations

import hashlib
import os
import secrets
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import attrs
import trio

from trio_swarm._io.groups import collapse
from trio_swarm._io.http_client import Address, Outgoing, Reply
from trio_swarm._io.spool import spooled
from trio_swarm.errors import FrameError, ProtocolError
from trio_swarm.frames import decode, dump_json, encode
from trio_swarm.frames.worker import (
    EmitBody,
    FinalEvent,
    Inline,
    OutputEvent,
    OutputRecord,
    Partial,
    Progress,
    ResultBody,
    WorkerPayload,
)
from trio_swarm.limits import MAX_FRAME, MAX_OUTPUT, PEER_SILENCE
from trio_swarm.workers.bodies import FileSink, StreamSink, pieces_of_file, pieces_of_iterable
from trio_swarm.workers.brief import WorkerBrief, check_bearer
from trio_swarm.workers.refusals import AttemptOver, RequestRefused
from trio_swarm.workers.wire import Retry, Wire

__all__ = ["AttemptOver", "RequestRefused", "Retry", "WorkerBrief", "WorkerSession", "connect_worker"]

FrameT = TypeVar("FrameT", WorkerPayload, OutputRecord)

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_BYTES: Final = "application/octet-stream"
_RAW: Final = "trio-swarm-output"
"""The header by which a server says that an output is given back as it was sent."""


@asynccontextmanager
async def connect_worker(
    base_url: str,
    bearer: str,
    *,
    task_id: str,
    capability_token: str | None = None,
    retry: Retry | None = None,
    silence: float = PEER_SILENCE,
    max_answer: int = MAX_FRAME,
    ssl_context: ssl.SSLContext | None = None,
    uds: str | os.PathLike[str] | None = None,
) -> AsyncIterator[WorkerSession]:
    """Work on one task, for the length of the block. Sends nothing by itself.

    Args:
        base_url: the server's root, as in the brief; https for TLS.
        bearer: the worker's handle, or its capability token.
        task_id: the task that both are bound to.
        capability_token: for `WorkerSession.emit` and `WorkerSession.result`, where a server
            takes no handle there (the originals).
        retry: how often, and when, a lost request is sent again.
        silence: a connection on which nothing moved for so many seconds is lost.
        max_answer: bytes of one answer's body, but for the outputs that `WorkerSession.read` and
            its like fetch.
        ssl_context: for https; the system's if not given.
        uds: the path of the Unix socket that the server listens on (103 bytes at most).
            ``base_url`` is then no address, but says scheme, ``Host`` and the prefix of paths:
            ``http://localhost``.

    The caller's cancel scope is the deadline of everything. A request that other tasks still
    have under way at the end of the block ends with ``trio.ClosedResourceError``.

    Raises ``ValueError`` for a URL, a path of a socket, a credential or a task id that cannot be used.
    """
    address = Address.parse(base_url, uds)
    check_bearer("bearer", bearer)
    if capability_token is not None:
        check_bearer("capability_token", capability_token)
    if not task_id or not task_id.isprintable():
        raise ValueError(f"{task_id!r:.100} is no task id")
    if not silence > 0:
        raise ValueError(f"silence must be more than 0 seconds, not {silence!r}")
    wire = Wire(
        address=address,
        secrets=(bearer, capability_token or bearer),
        retry=retry if retry is not None else Retry(),
        silence=silence,
        max_answer=max_answer,
        ssl_context=ssl_context,
    )
    try:
        yield WorkerSession(wire, task_id, bearer, capability_token or bearer)
    finally:
        wire.close()


@attrs.define(eq=False)
class WorkerSession:
    """The worker's requests for one task; made by `connect_worker`. Any task of Trio may use it.

    Every method is one request, and raises, beside what it says itself:

    * `BadTokenError`: 401 or 403, the credential does not verify or does not allow it.
    * `AttemptOver`: 409 or 410, nobody waits for this worker any more.
    * `RequestRefused`: another 4xx, as 413 for what is too large; ``status`` tells.
    * `BusyError`: 429, 503, 507.
    * `PeerError`: another 5xx; `ProtocolError`: an answer that makes no sense.
    * `PeerGoneError`: the server could not be reached, or the connection was lost, as often as
      it was tried. It says whether a post may have arrived.

    When cancelled, a post may or may not have arrived.
    """

    _wire: Wire
    task_id: str
    _bearer: str = attrs.field(repr=False)
    _data_bearer: str = attrs.field(repr=False)
    _payload: WorkerPayload | None = attrs.field(default=None, repr=False, init=False)

    # -- what the worker reads -------------------------------------------------------------

    async def fetch_prompt(self) -> WorkerPayload:
        """The task. A system prompt that the server sends by reference only is fetched too.

        Raises `ProtocolError` if the payload is malformed or another task's.
        """
        what = f"the prompt of {self.task_id}"
        reply = await self._get(what, f"/v1/worker/prompt?{urlencode({'task_id': self.task_id})}")
        payload = _decoded(what, reply.body, WorkerPayload)
        if payload.task_id != self.task_id or payload.attempt < 1:
            raise ProtocolError(f"{what}: the server sent that of {payload.task_id!r:.100}")
        self._payload = payload
        if payload.system is None and payload.system_ref is not None:
            system = await self.prompt_system()
            if system is None:
                raise ProtocolError(f"{what}: the system prompt that it refers to is missing")
            self._payload = attrs.evolve(payload, system=system, system_ref=None)
        return self._payload

    async def prompt_system(self) -> str | None:
        """The system prompt alone; None if there is none.

        If the fetched prompt referred to it, it is held to the digest given there; after a
        second one that is another text, `ProtocolError`.
        """
        query = {"task_id": self.task_id}
        if self._payload is not None:
            query["attempt"] = str(self._payload.attempt)
        what = f"the system prompt of {self.task_id}"
        ref = None if self._payload is None else self._payload.system_ref
        for _ in range(2):
            reply = await self._get(what, f"/v1/worker/prompt/system?{urlencode(query)}", absent=404)
            if reply.status == 404:
                return None
            if ref is None or hashlib.sha256(reply.body).hexdigest() == ref.sha256:
                return reply.body.decode("utf-8", "replace")
        raise ProtocolError(f"{what} is not the one that the prompt refers to")

    async def get(self, key: str) -> OutputRecord:
        """An output, by its id or by its producer's name. `RequestRefused` 404 if there is none.

        What `put` has kept has no record: `ProtocolError`; `read` gives it back.
        """
        what, reply = await self._output(key)
        if reply.header(_RAW) is not None:
            raise ProtocolError(f"{what} was kept as a raw body, by `put`: use `read`")
        return _decoded(what, reply.body, OutputRecord)

    async def read(self, key: str, *, max_size: int = MAX_OUTPUT) -> bytes:
        """What `put` has kept, as it was sent. `RequestRefused` 404 if there is none.

        Of an output that was emitted as an event: its record, as JSON. All of it comes into
        memory; `ProtocolError` if it has more than ``max_size`` bytes.
        """
        return (await self._output(key, max_answer=max_size))[1].body

    async def save(self, key: str, path: str | Path, *, max_size: int = MAX_OUTPUT) -> None:
        """The same as `read`, into a file, which is there when it is whole, or stays as it was.

        Raises ``OSError`` as well. The file is its owner's alone (0600).
        """
        target = Path(path)
        async with spooled(target.parent, f"{secrets.token_hex(8)}.part") as file:
            await self._output(key, sink=FileSink(file), max_answer=max_size)
            await trio.to_thread.run_sync(os.replace, file.path, target)
            file.kept = True

    @asynccontextmanager
    async def reading(
        self, key: str, *, max_size: int = MAX_OUTPUT
    ) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
        """The same as `read`, piece by piece: ``async for piece in pieces``, within the block.

        No more is read than is taken. What `read` would raise is raised out of the block. A
        connection that is lost when something was handed on already is `PeerGoneError`.
        """
        send, pieces = trio.open_memory_channel[bytes](0)

        async def fetch() -> None:
            with send:
                await self._output(key, sink=StreamSink(send), max_answer=max_size)

        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch)
                try:
                    yield pieces
                finally:
                    nursery.cancel_scope.cancel()
                    pieces.close()

    async def _output(self, key: str, **how: Any) -> tuple[str, Reply]:
        if not key:
            raise ValueError("the key of an output is not empty")
        what = f"the output {key!r:.100}"
        return what, await self._get(what, self._naming(f"/v1/data/{quote(key, safe='')}"), **how)

    # -- what the worker makes on its way ------------------------------------------------

    async def emit(
        self,
        event: OutputEvent,
        *,
        producer: str | None = None,
        parent_refs: Sequence[str] = (),
        public: bool = False,
    ) -> str:
        """Keep an output at the server; its id, by which others `get` it.

        Args:
            event: `Progress`, `Partial`, `Artifact` or `FinalEvent` of `trio_swarm.frames.worker`.
            producer: the name that finds it later; the agent's if not given.
            parent_refs: ids of the outputs that it was made from.
            public: anybody may read it, without a credential.

        Fetches the prompt first if that was not done yet: an output names its attempt.
        """
        payload = self._payload or await self.fetch_prompt()
        body = EmitBody(
            task_id=self.task_id,
            attempt=payload.attempt,
            producer_agent=payload.agent if producer is None else producer,
            event=event,
            parent_refs=parent_refs,
            public=public,
        )
        what = f"an output ({event.tag}) of {self.task_id}"
        reply = await self._post(what, "/v1/data/emit", encode(body).encode(), _JSON, self._data_bearer)
        return _out_id(what, reply)

    async def put(
        self,
        name: str,
        content: bytes | Path | AsyncIterable[bytes],
        *,
        content_type: str = _BYTES,
        parent_refs: Sequence[str] = (),
        public: bool = False,
    ) -> str:
        """Keep a body of any size and type; its id, by which `read` gives it back.

        ``content`` is the body itself, the path of a file, or what gives it piece by piece; of
        the latter two no more than a piece is in memory. What is given piece by piece cannot be
        sent twice: if the connection is lost on the way, `PeerGoneError`. What reading it raises
        is raised here, and nothing is kept then.

        A server that has only the contract's own routes refuses it. Otherwise as `emit`; ``name``
        is the producer's.
        """
        if not name or name == "emit":
            raise ValueError(f"{name!r} is no name of an output")
        if not content_type.isascii() or not content_type.isprintable():
            raise ValueError(f"{content_type!r:.100} is no content type")
        payload = self._payload or await self.fetch_prompt()
        query = {"raw": "1", "task_id": self.task_id, "attempt": str(payload.attempt)}
        if parent_refs:
            query["parent_refs"] = ",".join(parent_refs)
        if public:
            query["public"] = "true"
        what = f"the output {name!r:.100} of {self.task_id}"
        target = f"/v1/data/{quote(name, safe='')}?{urlencode(query)}"
        headers = (_authorization(self._data_bearer), ("Content-Type", content_type))
        outgoing, repeatable = Outgoing("POST", target, headers), True
        if isinstance(content, Path):
            outgoing = attrs.evolve(outgoing, pieces=pieces_of_file(content))
        elif isinstance(content, AsyncIterable):
            outgoing, repeatable = attrs.evolve(outgoing, pieces=pieces_of_iterable(content)), False
        else:
            outgoing = attrs.evolve(outgoing, body=bytes(content))
        return _out_id(what, await self._wire.request(what, outgoing, repeatable=repeatable))

    async def progress(self, stage: str, note: str | None = None) -> str:
        """Emit how far it is."""
        return await self.emit(Progress(stage, note))

    async def partial(self, chunk: Any) -> str:
        """Emit a piece of what is being made, any JSON value."""
        return await self.emit(Partial(Inline(chunk)))

    async def final(self, value: Any, *, ok: bool = True) -> str:
        """Emit the result; of all Finals, whichever way they were sent, the last one counts."""
        return await self.emit(FinalEvent(Inline(value), ok))

    async def artifact(self, name: str, content: str | bytes) -> None:
        """Stage a named part of the result. Whitespace at its end is not kept."""
        if not name.strip():
            raise ValueError("the name of an artifact is not blank")
        query = urlencode({"name": name, "task_id": self.task_id})
        body, kind = _raw(content)
        await self._post(f"the artifact {name!r:.100}", f"/v1/worker/artifact?{query}", body, kind)

    async def degradation(self, report: Mapping[str, Any]) -> None:
        """Tell what could not be done as it should have been."""
        what = f"a degradation of {self.task_id}"
        await self._post(
            what, self._naming("/v1/worker/degradation"), dump_json(dict(report)).encode(), _JSON
        )

    async def stats(self, stats: Mapping[str, Any]) -> None:
        """Tell what the work has cost."""
        what = f"the statistics of {self.task_id}"
        await self._post(what, self._naming("/v1/worker/stats"), dump_json(dict(stats)).encode(), _JSON)

    # -- the result ------------------------------------------------------------------------

    async def submit(self, text: str | bytes, *, ok: bool = True, verdict: str | None = None) -> None:
        """Post the result as a text. Whitespace at its end is not kept.

        ``ok=False`` blocks the step. ``verdict`` is ``pass``, ``blocked`` or ``skip``, for a
        server that knows it.
        """
        query = {"task_id": self.task_id} if ok else {"task_id": self.task_id, "ok": "false"}
        if verdict is not None:
            query["verdict"] = verdict
        body, kind = _raw(text)
        await self._post(f"the result of {self.task_id}", f"/v1/worker/submit?{urlencode(query)}", body, kind)

    async def result(self, value: Any, *, ok: bool = True) -> None:
        """Post the result as any JSON value."""
        attempt = None if self._payload is None else self._payload.attempt
        body = encode(ResultBody(self.task_id, value, ok, attempt)).encode()
        what = f"the result of {self.task_id}"
        await self._post(what, "/v1/worker/result", body, _JSON, self._data_bearer)

    # -- the wire ------------------------------------------------------------------------------

    def _naming(self, path: str) -> str:
        """A server of ours lets who names its task wait for no guesser; others ignore it."""
        return f"{path}?{urlencode({'task_id': self.task_id})}"

    async def _get(self, what: str, target: str, **how: Any) -> Reply:
        headers = (_authorization(self._bearer),)
        return await self._wire.request(what, Outgoing("GET", target, headers), **how)

    async def _post(self, what: str, target: str, body: bytes, kind: str, bearer: str | None = None) -> Reply:
        headers = (_authorization(bearer or self._bearer), ("Content-Type", kind))
        return await self._wire.request(what, Outgoing("POST", target, headers, body))


def _authorization(bearer: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {bearer}")


def _raw(content: str | bytes) -> tuple[bytes, str]:
    """The body and its type. Raises ``ValueError`` for text that has no encoding."""
    return (content.encode(), _TEXT) if isinstance(content, str) else (bytes(content), _BYTES)


def _decoded(what: str, body: bytes, kind: type[FrameT]) -> FrameT:
    try:
        return decode(body, kind)
    except FrameError as error:
        raise ProtocolError(f"{what}: the answer is malformed: {error}") from error


def _out_id(what: str, reply: Reply) -> str:
    value = reply.json()
    out_id = value.get("out_id") if isinstance(value, dict) else None
    if not isinstance(out_id, str):
        raise ProtocolError(f"{what}: the answer has no out_id")
    return out_id
