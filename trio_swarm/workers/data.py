"""The routes of the data store: large things go here, and only their ids travel (contract 1.5).

Two forms of an output: an *event*, sent and read as JSON by contract; and, an extension of ours,
a *raw* body of any size and content type, sent with ``?raw=1&task_id=T&attempt=N`` (and, if
wanted, ``public=true`` and ``parent_refs=ID,ID``) and read as it was sent.

An output can be read with a credential of its own task, or by anybody if it was made public.
To all others it is as if it were not there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import attrs

from trio_swarm._io.http_messages import HttpError, Request, Response, StreamedResponse
from trio_swarm._io.http_routes import Route
from trio_swarm._state.board import Denied
from trio_swarm.frames import dump_json, unstructure
from trio_swarm.frames.worker import Artifact, EmitBody, FinalEvent, Inline, NamedEmitBody
from trio_swarm.limits import MAX_OUTPUT, MAX_PARENT_REFS
from trio_swarm.workers.board import TaskBoard
from trio_swarm.workers.door import Visit, answering, enter, enter_by_query, flag, frame_of, number, shown_by
from trio_swarm.workers.outputs import Output

__all__ = ["DataApi"]

_MAX_NAME: Final = 256
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}(?: ?;[ -~]{0,100})?", re.ASCII)
_OPAQUE: Final = "application/octet-stream"
_GIVEN_UP: Final = "the output was given up: its task had ended, and another needed the room"


@attrs.define(eq=False)
class DataApi:
    """The endpoints over one board."""

    board: TaskBoard

    def routes(self) -> list[Route]:
        """To be put in a `RouteTable`."""
        named = Route(
            "POST", "/v1/data/{name}", answering(self.emit_named), body="stream", max_body=MAX_OUTPUT
        )
        return [
            Route("POST", "/v1/data/emit", answering(self.emit), body="stream"),
            named,
            Route("GET", "/v1/data/{name}", answering(self.get)),
        ]

    # -- in -----------------------------------------------------------------------------

    async def emit(self, request: Request) -> Response:
        """Keep an event; the body names its producer."""
        body, said = await frame_of(request, EmitBody)
        return await self._keep_event(request, body, said, said.producer_agent)

    async def emit_named(self, request: Request) -> Response:
        """Keep an event, or with ``raw=1`` the body itself; the path names its producer."""
        if request.query.get("raw") in ("1", "true"):
            return await self._keep_raw(request)
        body, said = await frame_of(request, NamedEmitBody)
        return await self._keep_event(request, body, said, request.params["name"])

    async def _keep_event(
        self, request: Request, body: bytes, said: EmitBody | NamedEmitBody, producer: str
    ) -> Response:
        visit = await self._enter(request, said.task_id, said.attempt, producer)
        event = said.event
        final = event if isinstance(event, FinalEvent) else None
        if final is not None and not visit.admission.allows("post_result"):
            raise Denied(403, "the token does not allow post_result")
        if isinstance(event, Artifact):
            visit.may_emit(event.name)
        if (known := visit.recall(visit.digest(body))) is not None:
            return known
        visit.check()
        self._check_refs(said.parent_refs, visit)
        content = dump_json(unstructure(event)).encode()
        async with self.board.outputs.draft(said.task_id) as draft:
            await draft.write(content)

            def act() -> Response:
                answer = visit.keep(
                    draft,
                    producer,
                    parent_refs=said.parent_refs,
                    public=said.public,
                    artifact=event.name if isinstance(event, Artifact) else None,
                )
                if final is not None:
                    self.board._post(visit.attempt, _value_of(final), final.ok)
                return answer

            return visit.once(body, act)

    async def _keep_raw(self, request: Request) -> Response:
        """Refused before the body is read, if it can be; else when it has been."""
        task_id, attempt = request.query.get("task_id"), number(request, "attempt")
        public = flag(request, "public") is True
        refs = tuple(ref for ref in request.query.get("parent_refs", "").split(",") if ref)
        if not task_id or attempt is None:
            raise Denied(400, "the query must name task_id and attempt")
        producer = request.params["name"]
        visit = await self._enter(request, task_id, attempt, producer)
        hashed = hashlib.sha256()
        if not visit.is_repeated:
            visit.check()
            self._check_refs(refs, visit)
            about = {"parent_refs": refs, "public": public}
            if (answer := await self._receive(request, visit, hashed, producer, about)) is not None:
                return answer
        return await self._answer_again(request, visit, hashed)

    async def _receive(
        self, request: Request, visit: Visit, hashed: Any, producer: str, about: dict[str, Any]
    ) -> Response | None:
        """Take the body in and keep it; None, as soon as the same request was done meanwhile."""
        kind = (request.head.get("content-type") or "").strip()
        kind = kind if _MEDIA_TYPE.fullmatch(kind) else _OPAQUE
        assert request.stream is not None
        declared = int(request.head.get("content-length") or 0)
        async with self.board.outputs.draft(visit.task.task_id, expected=declared) as draft:
            async for piece in request.stream:
                hashed.update(piece)
                if visit.is_repeated:
                    return None
                visit.check()
                await draft.write(piece)
            return visit.once(hashed, lambda: visit.keep(draft, producer, content_type=kind, **about))

    async def _answer_again(self, request: Request, visit: Visit, hashed: Any) -> Response:
        """Of a repetition the rest is read, to see that it is one; it takes no room from others."""
        assert request.stream is not None
        async for piece in request.stream:
            hashed.update(piece)
        if (known := visit.recall(visit.digest(hashed))) is None:
            raise Denied(503, "what was answered before was forgotten just now", retry_after=1)
        return known

    async def _enter(self, request: Request, task_id: str, attempt: int, producer: str) -> Visit:
        if not 0 < len(producer) <= _MAX_NAME:
            raise Denied(422, f"the producer's name has 1 to {_MAX_NAME} characters")
        return await enter(
            self.board,
            request,
            "emit_output",
            task_id=task_id,
            attempt=attempt,
            output=producer,
            in_query=True,
        )

    def _check_refs(self, refs: Iterable[str], visit: Visit) -> None:
        named = tuple(refs)
        if len(named) > MAX_PARENT_REFS:
            raise Denied(422, f"parent_refs: at most {MAX_PARENT_REFS}")
        for ref in named:
            if not self.board.outputs.sees(ref, task_id=visit.task.task_id):
                raise Denied(422, f"parent_refs: there is no output {ref[:64]!r}")

    # -- out ----------------------------------------------------------------------------

    async def get(self, request: Request) -> Response:
        """An output by its id, else the latest of that producer, else the latest artifact of that name.

        Those of the reader's own task come first.
        401 without a credential, 404 with one, wherever there is nothing to be seen; 410 where
        its content gave way to an output of another task.
        """
        key = request.params["name"]
        reader: str | None = None
        bearer = shown_by(request)  # By contract a URL holds a token where something is posted only.
        if bearer is not None:
            visit = await enter_by_query(self.board, request, "fetch_data", output=key)
            visit.use()
            reader = visit.task.task_id
        output = self.board.outputs.find(key, task_id=reader)
        if output is None:
            raise Denied(*((404, "no such output") if bearer else (401, "a credential is needed")))
        if output.given_up:
            raise Denied(410, _GIVEN_UP)
        return self._raw(output) if output.content_type is not None else self._record(output)

    def _raw(self, output: Output) -> Response:
        headers = (
            (b"content-type", (output.content_type or _OPAQUE).encode()),
            (b"content-disposition", b"attachment"),
            (b"content-security-policy", b"sandbox"),
            (b"trio-swarm-output", output.out_id.encode()),
        )
        return self._streamed(output, headers, b"", b"")

    def _record(self, output: Output) -> Response:
        """Contract 1.5. The event is put in as it was kept: it need not come back into memory."""
        about: dict[str, Any] = {
            "id": output.out_id,
            "task_id": output.task_id,
            "attempt": output.attempt,
            "producer_agent": output.producer,
            "parent_refs": list(output.parent_refs),
        }
        head = dump_json(about)[:-1].encode() + b',"event":'
        return self._streamed(output, ((b"content-type", b"application/json"),), head, b"}")

    def _streamed(
        self, output: Output, headers: tuple[tuple[bytes, bytes], ...], before: bytes, after: bytes
    ) -> Response:
        if output.content is not None:
            return Response(200, before + output.content + after, headers)

        async def produce(send: Callable[[bytes], Awaitable[None]]) -> None:
            async def piece(data: bytes) -> None:
                nonlocal before
                ahead, before = before, b""
                await send(ahead + data)

            try:
                await self.board.outputs.read(output, piece)
            except FileNotFoundError:
                if self.board.outputs.gave_up(output):
                    raise HttpError(410, _GIVEN_UP) from None
                raise HttpError(404, "the output is forgotten") from None
            await send(after)

        length = len(before) + output.size + len(after)
        return StreamedResponse(200, b"", headers, length=length, produce=produce)


def _value_of(final: FinalEvent) -> Any:
    """What the Final is worth; of a file, the reference to it."""
    return final.content.value if isinstance(final.content, Inline) else unstructure(final.content)
