"""The way in to the board over HTTP: whose request it is, and whether it was made before.

A client that lost a connection cannot know whether its request was done. With the header
``Idempotency-Key`` it may send the same request again, to the same attempt: what was done is not
done twice, and the answer is the old one, also when the attempt has ended since. Another request
with the same key is refused (422).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import attrs
from typing_extensions import TypeForm

from trio_swarm._io.http_body import require_json
from trio_swarm._io.http_messages import HttpError, Request, Response, parse_body
from trio_swarm._state.board import Admission, Denied
from trio_swarm.errors import FrameError
from trio_swarm.frames import structure
from trio_swarm.limits import MAX_BODY
from trio_swarm.workers.board import Attempt, Task, TaskBoard
from trio_swarm.workers.outputs import Draft

__all__ = [
    "FEATURES",
    "Visit",
    "answering",
    "body_of",
    "enter",
    "enter_by_query",
    "flag",
    "frame_of",
    "json_of",
    "number",
    "shown_by",
]

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

FEATURES: Final = (b"trio-swarm-features", b"idempotency")
"""Said with every answer: what this server does beyond the contract."""

_BOOLEANS: Final = {"true": True, "false": False}
_MAX_KEY: Final = 255


def answering(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its refusals answered, and `FEATURES` said with each answer."""

    async def answer(request: Request) -> Response:
        try:
            response = await endpoint(request)
        except Denied as denied:
            response = _refusal(denied)
        except HttpError as error:
            response = error.response
        return attrs.evolve(response, headers=(*response.headers, FEATURES))

    return answer


def _refusal(denied: Denied) -> Response:
    response = Response.json(denied.status, {"error": denied.text})
    headers: list[tuple[bytes, bytes]] = []
    if denied.retry_after is not None:
        headers.append((b"retry-after", b"%d" % denied.retry_after))
    if denied.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return attrs.evolve(response, headers=(*response.headers, *headers))


# -- what a request says -------------------------------------------------------------------


async def body_of(request: Request) -> bytes:
    """The whole body. Raises `HttpError` 408 and 413."""
    assert request.stream is not None
    return await request.stream.read_all(MAX_BODY)


async def json_of(request: Request) -> tuple[bytes, Any]:
    """The body, and the JSON value that it is. Raises `HttpError` 415, 408, 413 and 400."""
    require_json(request.head)
    body = await body_of(request)
    return body, parse_body(body)


async def frame_of(request: Request, shape: TypeForm[T]) -> tuple[bytes, T]:
    """The body, and the frame that it is. Raises as `json_of`, and `Denied` 422."""
    body, value = await json_of(request)
    try:
        return body, structure(value, shape)
    except FrameError as error:
        raise Denied(422, str(error)) from None


def flag(request: Request, name: str) -> bool | None:
    """``true`` or ``false`` in the query; None if it is not there. Raises `Denied` 400."""
    text = request.query.get(name)
    if text is not None and text not in _BOOLEANS:
        raise Denied(400, f"{name} must be true or false")
    return None if text is None else _BOOLEANS[text]


def number(request: Request, name: str) -> int | None:
    """A number in the query; None if it is not there. Raises `Denied` 400."""
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Denied(400, f"{name} must be a number")
    return int(text)


def shown_by(request: Request, *, in_query: bool = False) -> str | None:
    """The credential: a header's, else (with ``in_query``) that of ``?token=``; None if there is neither.

    Every fault of the header is 400 on these routes (contract: operators 1.1).
    """
    values = request.head.all("authorization")
    if not values and in_query and "token" in request.query:
        values = (f"Bearer {request.query['token']}",)
    if not values:
        return None
    bearer = values[0].removeprefix("Bearer ").strip() if values[0].startswith("Bearer ") else ""
    if len(values) > 1 or not bearer or not bearer.isascii():
        raise Denied(400, "expected one `Authorization: Bearer <token>`")
    return bearer


# -- whose it is ---------------------------------------------------------------------------


@attrs.frozen
class Visit:
    """One request of a worker that may pass as far as its credential goes."""

    board: TaskBoard = attrs.field(repr=False)
    admission: Admission
    task: Task
    attempt: Attempt
    _request: Request = attrs.field(repr=False)
    _key: str | None = attrs.field(repr=False)

    @property
    def is_repeated(self) -> bool:
        """An answer is remembered for the request's key."""
        return self._key is not None and self._key in self.admission.record.keys

    def digest(self, body: bytes | bytearray | Any) -> bytes:
        """What makes two requests the same: method, path, query and body, whatever the credential.

        ``body`` is the body, or a SHA-256 object that was fed with it.
        """
        head = self._request.head
        query = sorted((name, value) for name, value in head.query.items() if name != "token")
        of_body = hashlib.sha256(body) if isinstance(body, bytes | bytearray) else body
        said = repr((head.method, head.path, query, head.all("content-type"))).encode() + of_body.digest()
        return hashlib.sha256(said).digest()

    def recall(self, digest: bytes) -> Response | None:
        """The answer to the same request before. Raises `Denied` 422 if that was another."""
        if self._key is None:
            return None
        known = self.admission.record.recall(self._key, digest)
        return None if known is None else known.answer

    def may_emit(self, name: str) -> None:
        """The output may be found by that name too. Raises `Denied` 403."""
        if not self.admission.allows("emit_output", name):
            raise Denied(403, f"the token does not allow emit_output of {name!r}")

    def check(self) -> None:
        """The attempt lives. Raises `Denied` 409 and 410."""
        self.board._machine.use(self.admission, count=False)

    def use(self) -> None:
        """The same, and a use of the token is used up. Raises `Denied` 403, 409, 410 and 503.

        503: the answer could not be remembered, without forgetting another that may be asked for.
        """
        if self._key is not None:
            self.admission.record.make_room(self.board._clock())
        self.board._machine.use(self.admission)

    def remember(self, digest: bytes, answer: Response) -> Response:
        """Keep the answer for a repetition; returns it."""
        if self._key is not None:
            self.admission.record.remember(self._key, digest, answer, now=self.board._clock())
        return answer

    def keep(self, draft: Draft, producer: str, **about: Any) -> Response:
        """The draft is an output of the attempt now; the answer. Takes the other fields of `Output`."""
        output = draft.keep(self.attempt.number, producer, **about)
        said = {"out_id": output.out_id, "producer": producer, "size": output.size}
        self.board._emit("output", {"task_id": output.task_id, "attempt": output.attempt, **said})
        return Response.json(200, {"out_id": output.out_id})

    def once(self, body: bytes | Any, act: Callable[[], Response]) -> Response:
        """Do it and remember the answer, or give the answer of when it was done. ``body`` as in `digest`."""
        digest = self.digest(body)
        known = self.recall(digest)
        if known is not None:
            return known
        self.use()
        return self.remember(digest, act())


async def enter(
    board: TaskBoard,
    request: Request,
    verb: str,
    *,
    task_id: str | None = None,
    attempt: int | None = None,
    output: str | None = None,
    in_query: bool = False,
) -> Visit:
    """Let a worker's request in. Raises `Denied` as `BoardMachine.admit` says, and 400.

    Judged in one step, after a wait for its turn where handles are being guessed: `TaskBoard._take_turn`.
    """
    bearer = shown_by(request, in_query=in_query)
    if bearer is None:
        raise Denied(400, "missing `Authorization: Bearer <token>`")
    await board._take_turn(bearer, request.peer, task_id)
    admission = board._machine.admit(
        bearer,
        verb,
        now=board._clock(),
        peer=request.peer,
        task_id=task_id,
        attempt=attempt,
        output=output,
    )
    if not admission.record.ended:  # Who held a credential once could keep its connections for ever.
        request.proven()
    task = board._tasks[admission.record.task_id]
    return Visit(board, admission, task, task._kept[admission.record.number], request, _key_of(request))


async def enter_by_query(
    board: TaskBoard, request: Request, verb: str, *, output: str | None = None
) -> Visit:
    """The same, where the query may name the task: who does waits for no guesser who cannot.

    Beyond the contract, whose own routes name none here.
    """
    return await enter(board, request, verb, task_id=request.query.get("task_id"), output=output)


def _key_of(request: Request) -> str | None:
    values = request.head.all("idempotency-key")
    if not values:
        return None
    if len(values) > 1 or not 0 < len(values[0]) <= _MAX_KEY:
        raise Denied(400, f"expected one Idempotency-Key of 1 to {_MAX_KEY} characters")
    return values[0]
