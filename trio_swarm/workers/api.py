"""The routes of workers: prompt, result, submit, artifact, reports, sessions (operators contract 1).

Statuses are the contract's where it says 4xx. Where the original answers 500, or does not look:
401 for a forged or expired token, 403 for what a token does not allow, 410 for a credential that
nobody has any more, 409 for that of an attempt which was superseded, 429 for guessing. The routes
that name no task by contract take an optional ``task_id`` in the query, which the credential must fit.

Not supported: the opt-in ``@file:`` body of later originals, by which a worker makes the server
read a file; such a body is a text like any other.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final
from urllib.parse import urlencode

import attrs

from trio_swarm._io.http_messages import Request, Response
from trio_swarm._io.http_routes import Route
from trio_swarm._state.board import Denied
from trio_swarm._state.grants import ROLE_VERBS
from trio_swarm._state.token import mint
from trio_swarm.frames import dump_json, unstructure
from trio_swarm.frames.worker import Artifact, Inline, ResultBody, SessionBody, SystemRef, WorkerPayload
from trio_swarm.limits import MAX_REPORT, MAX_REPORTS, SYSTEM_INLINE
from trio_swarm.workers.board import TaskBoard
from trio_swarm.workers.data import DataApi
from trio_swarm.workers.door import (
    Visit,
    answering,
    body_of,
    enter,
    enter_by_query,
    flag,
    frame_of,
    json_of,
    number,
    shown_by,
)

__all__ = ["WorkerApi"]

_VERDICTS: Final = {"pass": True, "blocked": False, "skip": True}
_U64: Final = 2**64 - 1
_DONE: Final = Response(204)


@attrs.define(eq=False)
class WorkerApi:
    """The worker and data endpoints over one board."""

    board: TaskBoard
    base_url: str | None = None
    """The root under which workers reach it, if that is known: whoever serves it sets it."""

    def routes(self) -> list[Route]:
        """To be put in a `RouteTable`, beside those of others."""
        return [
            Route("GET", "/v1/worker/prompt", answering(self.prompt)),
            Route("GET", "/v1/worker/prompt/system", answering(self.system)),
            Route("POST", "/v1/worker/result", answering(self.result), body="stream"),
            Route("POST", "/v1/worker/submit", answering(self.submit), body="stream"),
            Route("POST", "/v1/worker/artifact", answering(self.artifact), body="stream"),
            Route("POST", "/v1/worker/degradation", answering(self.degradation), body="stream"),
            Route("POST", "/v1/worker/stats", answering(self.stats), body="stream"),
            Route("POST", "/v1/sessions", answering(self.attach), body="stream"),
            Route("DELETE", "/v1/sessions", answering(self.detach)),
            *DataApi(self.board).routes(),
        ]

    # -- what a worker fetches -----------------------------------------------------------

    async def prompt(self, request: Request) -> Response:
        """The task for the attempt whose credential is shown (contract 1.5)."""
        visit = await self._addressed(request)
        visit.use()
        if request.method != "HEAD":
            self.board._fetched(visit.attempt)
        task = visit.task
        payload = WorkerPayload(
            task_id=task.task_id,
            attempt=visit.attempt.number,
            agent=task.agent,
            prompt=task.prompt,
            system=task.system,
            context={"agent": task.agent, "task_metadata": dict(task.metadata)} if task.metadata else None,
        )
        system = (task.system or "").encode()
        if len(system) > SYSTEM_INLINE:
            payload = attrs.evolve(payload, system=None, system_ref=self._reference(request, payload, system))
        return Response.json(200, unstructure(payload))

    async def system(self, request: Request) -> Response:
        """The system prompt as it is; 404 where the task has none."""
        visit = await self._addressed(request)
        visit.use()
        if visit.task.system is None:
            raise Denied(404, "the task has no system prompt")
        return Response.text(200, visit.task.system)

    def _reference(self, request: Request, payload: WorkerPayload, system: bytes) -> SystemRef:
        # What a request says of its host says nothing of TLS, nor of what is in between.
        root = (self.base_url or f"http://{request.head.get('host')}").rstrip("/")
        query = urlencode({"task_id": payload.task_id, "attempt": payload.attempt})
        return SystemRef(
            uri=f"{root}/v1/worker/prompt/system?{query}",
            sha256=hashlib.sha256(system).hexdigest(),
            size_bytes=len(system),
            mode="http",
        )

    async def _addressed(self, request: Request) -> Visit:
        task_id = request.query.get("task_id")
        if not task_id:
            raise Denied(400, "the query must name the task_id")
        return await enter(
            self.board, request, "fetch_prompt", task_id=task_id, attempt=number(request, "attempt")
        )

    # -- what it posts ------------------------------------------------------------------

    async def result(self, request: Request) -> Response:
        """A Final of any JSON value."""
        body, said = await frame_of(request, ResultBody)
        visit = await enter(self.board, request, "post_result", task_id=said.task_id, attempt=said.attempt)
        return self._final(visit, body, said.value, ok=said.ok)

    async def submit(self, request: Request) -> Response:
        """A Final of the body as text (contract 1.6); the task is the credential's.

        ``verdict=skip`` counts as success, with the value ``{"skipped": true, "value": <text>}``.
        """
        verdict = request.query.get("verdict")
        ok = _outcome(flag(request, "ok"), verdict)
        body = await body_of(request)
        text = _text(body)
        visit = await enter_by_query(self.board, request, "post_result")
        value = {"skipped": True, "value": text} if verdict == "skip" else text
        return self._final(visit, body, value, ok=ok)

    def _final(self, visit: Visit, body: bytes, value: Any, *, ok: bool) -> Response:
        def act() -> Response:
            self.board._post(visit.attempt, value, ok)
            return _DONE

        return visit.once(body, act)

    async def artifact(self, request: Request) -> Response:
        """A named part, kept as an output of the attempt; of several of one name the last counts."""
        name = request.query.get("name", "").strip()
        if not name:
            raise Denied(400, "the query must give the part a name")
        body = await body_of(request)
        visit = await enter_by_query(self.board, request, "emit_output", output=name)
        visit.may_emit(visit.task.agent)  # It is found by the producer's name, too.
        digest = visit.digest(body)
        if (known := visit.recall(digest)) is not None:
            return known
        visit.check()
        content = dump_json(unstructure(Artifact(name, Inline(_text(body))))).encode()
        async with self.board.outputs.draft(visit.task.task_id) as draft:
            await draft.write(content)
            if (known := visit.recall(digest)) is not None:
                return known
            visit.use()
            visit.keep(draft, visit.task.agent, parent_refs=(), public=False, artifact=name)
            return visit.remember(digest, _DONE)

    async def degradation(self, request: Request) -> Response:
        """Something went less well than it should; kept with the attempt, in order."""
        body, report = await _report_of(request)
        visit = await enter_by_query(self.board, request, "post_result")

        def act() -> Response:
            known = {**report, "task_id": visit.task.task_id, "step": visit.task.agent}
            known |= {"attempt": visit.attempt.number, "at": self.board._clock()}
            if not visit.attempt._report(known):
                raise Denied(413, f"an attempt has at most {MAX_REPORTS} reports")
            return _DONE

        return visit.once(body, act)

    async def stats(self, request: Request) -> Response:
        """What the worker used; the last report counts."""
        body, report = await _report_of(request)
        visit = await enter_by_query(self.board, request, "post_result")

        def act() -> Response:
            visit.attempt.stats = report
            return _DONE

        return visit.once(body, act)

    # -- sessions -----------------------------------------------------------------------

    async def attach(self, request: Request) -> Response:
        """A session of some role. It asks for no credential, and gives no right."""
        _, said = await frame_of(request, SessionBody)
        role, now = said.role.lower(), self.board._clock()
        if role not in ROLE_VERBS:
            raise Denied(400, f"unknown role: expected one of {', '.join(ROLE_VERBS)}")
        nonce = self.board._new_hex(16)
        expire_at = min(int(now) + said.ttl_secs, _U64)
        try:
            mint(
                secret=self.board._secret,
                agent_id=said.agent_id,
                role=role,
                issued_at=int(now),
                expire_at=expire_at,
                nonce=nonce,
            )
            # A session of an operator does not end by time (contract 5.2).
            self.board.sessions.attach(nonce, expire_at=None if role == "operator" else expire_at, now=now)
        except ValueError as error:
            raise Denied(422, str(error)) from None
        return Response.json(
            200, {"session_id": nonce, "role": said.role, "ttl_enforced": role != "operator"}
        )

    async def detach(self, request: Request) -> Response:
        """End a session; its id is the credential."""
        session = shown_by(request)
        if session is None:
            raise Denied(400, "missing `Authorization: Bearer <session_id>`")
        if not self.board.sessions.detach(session, now=self.board._clock()):
            raise Denied(404, f"session: {session[:64]}")
        return _DONE


def _text(body: bytes) -> str:
    """Contract 1.6: replacement characters for what is not UTF-8, trailing whitespace away."""
    return body.decode("utf-8", "replace").rstrip()


def _outcome(ok: bool | None, verdict: str | None) -> bool:
    if verdict is None:
        return ok is not False
    if verdict not in _VERDICTS:
        raise Denied(400, f"verdict must be one of {', '.join(_VERDICTS)}")
    if ok is not None and ok is not _VERDICTS[verdict]:
        raise Denied(400, f"ok={str(ok).lower()} contradicts verdict={verdict}")
    return _VERDICTS[verdict]


async def _report_of(request: Request) -> tuple[bytes, dict[str, Any]]:
    body, report = await json_of(request)
    if not isinstance(report, dict):
        raise Denied(422, "expected an object")
    if len(dump_json(report)) > MAX_REPORT:
        raise Denied(413, f"a report has at most {MAX_REPORT} characters")
    return body, report
