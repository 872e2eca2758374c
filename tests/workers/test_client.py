"""A worker's requests to a server that loses connections: what arrives, how often, what is told."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import socket
from collections import deque

import pytest
import trio
import trio.testing

from tests.workers.cutting import FEATURE, backend, body_of, record
from trio_swarm._io.http_messages import Response
from trio_swarm.errors import (
    BadTokenError,
    BusyError,
    PeerError,
    PeerGoneError,
    ProtocolError,
    Refused,
)
from trio_swarm.frames.worker import Artifact, FinalEvent, Inline, OutputRecord, WorkerPayload
from trio_swarm.workers.client import AttemptOver, RequestRefused, Retry, connect_worker

HANDLE = "wh-1a2b3c4d"
TOKEN = "eyJ0b2tlbiI6MX0"
AT_ONCE = Retry(tries=4, first=0.0)


def connected(server, **options):
    return connect_worker(server.url, HANDLE, **{"task_id": "T-1", "retry": AT_ONCE, **options})


# -- each request --------------------------------------------------------------------------


async def test_the_prompt() -> None:
    """Typed; keys of a newer server are passed over."""
    async with backend() as server, connected(server) as worker:
        assert await worker.fetch_prompt() == WorkerPayload("T-1", 1, "coder", "do it")
    ((method, target, headers, _),) = server.seen
    assert (method, target) == ("GET", "/v1/worker/prompt?task_id=T-1")
    assert headers["authorization"] == f"Bearer {HANDLE}"
    assert headers["idempotency-key"] == ""


async def test_every_post_as_it_stands_on_the_wire() -> None:
    """Paths, queries, types and bodies of the contract (1.2, 1.5, 1.7)."""
    async with backend() as server, connected(server, capability_token=TOKEN) as worker:
        await worker.fetch_prompt()
        await worker.submit("fine é\n")
        await worker.submit("2 tests failed", ok=False)
        await worker.submit(b"\xff", verdict="skip")
        await worker.result({"a": [1, None]})
        await worker.result(None, ok=False)
        await worker.artifact("my part/1", "text")
        await worker.degradation({"kind": "x"})
        await worker.stats({"tokens": 1})
        assert await worker.progress("half", "way") == "out-0000000009"
        await worker.partial([1])
        await worker.final("done", ok=False)
        await worker.emit(Artifact("n", Inline(1)), producer="other", parent_refs=["out-1"], public=True)
    posts = server.seen[1:]
    text, raw, plain = "text/plain; charset=utf-8", "application/octet-stream", "application/json"
    task, submit = "task_id=T-1", "/v1/worker/submit?task_id=T-1"

    assert [(target, headers["content-type"]) for _, target, headers, _ in posts] == [
        (submit, text),
        (submit + "&ok=false", text),
        (submit + "&verdict=skip", raw),
        ("/v1/worker/result", plain),
        ("/v1/worker/result", plain),
        (f"/v1/worker/artifact?name=my+part%2F1&{task}", text),
        (f"/v1/worker/degradation?{task}", plain),
        (f"/v1/worker/stats?{task}", plain),
        *[("/v1/data/emit", plain)] * 4,
    ]
    assert [post[3] for post in posts[:3]] == ["fine é\n".encode(), b"2 tests failed", b"\xff"]
    assert body_of(posts[3]) == {"task_id": "T-1", "value": {"a": [1, None]}, "ok": True, "attempt": 1}
    assert body_of(posts[4]) == {"task_id": "T-1", "value": None, "ok": False, "attempt": 1}
    assert body_of(posts[8]) == {
        "task_id": "T-1",
        "attempt": 1,
        "producer_agent": "coder",
        "event": {"type": "progress", "stage": "half", "note": "way"},
        "parent_refs": [],
    }
    assert body_of(posts[10])["event"] == {
        "type": "final",
        "content": {"kind": "inline", "value": "done"},
        "ok": False,
    }
    assert body_of(posts[11])["producer_agent"] == "other"
    assert (body_of(posts[11])["parent_refs"], body_of(posts[11])["public"]) == (["out-1"], True)
    full = [headers["authorization"] == f"Bearer {TOKEN}" for _, _, headers, _ in posts]
    assert full == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 4
    keys = [headers["idempotency-key"] for _, _, headers, _ in posts]
    assert len(set(keys)) == len(keys)
    assert all(1 <= len(key) <= 64 and key.replace("-", "").replace("_", "").isalnum() for key in keys)


async def test_outputs_are_read_back() -> None:
    """By id or by name, whatever the name holds."""
    async with backend() as server, connected(server) as worker:
        found = await worker.get("out-0000000001")
        server.answers["/v1/data/a%2Fb%3F%C3%A9"] = Response.json(200, record("out-2"))
        named = await worker.get("a/b?é")
        with pytest.raises(ValueError, match="empty"):
            await worker.get("")
    assert isinstance(found, OutputRecord)
    assert (found.id, found.event) == ("out-0000000001", Artifact("n", Inline([1])))
    assert named.id == "out-2"


async def test_an_output_needs_the_attempt() -> None:
    """The prompt is fetched for it, once."""
    async with backend() as server, connected(server) as worker:
        await worker.emit(FinalEvent(Inline(1), True))
        await worker.progress("x")
    assert [seen[0] for seen in server.seen] == ["GET", "POST", "POST"]


def by_reference(text: bytes, **changes) -> Response:
    ref = {
        "uri": "/v1/worker/prompt/system",
        "sha256": hashlib.sha256(text).hexdigest(),
        "size_bytes": len(text),
        "mode": "http",
    }
    payload = {"task_id": "T-1", "attempt": 3, "agent": "a", "prompt": "p", "system_ref": {**ref, **changes}}
    return Response.json(200, payload)


async def test_a_system_prompt_by_reference_is_fetched() -> None:
    """And it is the one that was meant."""
    async with backend() as server, connected(server) as worker:
        server.answers["/v1/worker/prompt"] = by_reference("persona é".encode())
        server.answers["/v1/worker/prompt/system"] = Response.text(200, "persona é")
        payload = await worker.fetch_prompt()
        assert await worker.prompt_system() == "persona é"
    assert (payload.system, payload.system_ref) == ("persona é", None)
    assert server.seen[1][1] == "/v1/worker/prompt/system?task_id=T-1&attempt=3"


@pytest.mark.parametrize(("answer", "asked"), [(Response.text(200, "another"), 2), (Response.text(404), 1)])
async def test_a_system_prompt_that_is_another_or_missing(answer, asked) -> None:
    """Asked for twice at most, and never taken."""
    async with backend() as server, connected(server) as worker:
        server.answers["/v1/worker/prompt"] = by_reference(b"persona")
        server.answers["/v1/worker/prompt/system"] = answer
        with pytest.raises(ProtocolError, match="system prompt"):
            await worker.fetch_prompt()
    assert len(server.seen) == 1 + asked


async def test_no_system_prompt() -> None:
    """None, also from a server that has no such route."""
    async with backend() as server, connected(server) as worker:
        assert await worker.prompt_system() is None


# -- what the server says --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (302, ProtocolError),
        (400, RequestRefused),
        (401, BadTokenError),
        (403, BadTokenError),
        (404, RequestRefused),
        (405, RequestRefused),
        (409, AttemptOver),
        (410, AttemptOver),
        (413, RequestRefused),
        (415, RequestRefused),
        (422, RequestRefused),
        (429, BusyError),
        (500, PeerError),
        (501, PeerError),
        (503, BusyError),
        (507, BusyError),
    ],
)
@pytest.mark.parametrize("method", ["submit", "fetch_prompt"])
async def test_every_status(status, error, method) -> None:
    """One exception that names what was refused, and is not tried again; without the bearer."""
    said = {"error": f"no \x1b[31m {HANDLE} {'x' * 1000}"}
    async with backend() as server, connected(server) as worker:
        for path in ("/v1/worker/submit", "/v1/worker/prompt"):
            server.answers[path] = Response.json(status, said)
        with pytest.raises(error) as caught:
            await (worker.submit("x") if method == "submit" else worker.fetch_prompt())
    text = str(caught.value)
    assert len(server.seen) == 1
    assert type(caught.value) is error
    assert f"the {'result' if method == 'submit' else 'prompt'} of T-1" in text
    assert str(status) in text
    assert "1a2b3c4d" not in repr(caught.value)
    assert "\x1b" not in text
    assert len(text) < 300
    if isinstance(caught.value, RequestRefused):
        assert caught.value.status == status
    if status == 410:
        assert isinstance(caught.value, Refused)


@pytest.mark.parametrize("body", [b"", b"plain \xff text", b"[1]", b'{"error": 1}', b"[" * 99999])
async def test_whatever_an_error_says(body) -> None:
    """Also nothing, or no JSON."""
    async with backend() as server, connected(server) as worker:
        server.answers["/v1/worker/submit"] = Response(410, body)
        with pytest.raises(AttemptOver, match="410"):
            await worker.submit("x")


async def test_when_to_come_again() -> None:
    """429 with Retry-After."""
    async with backend() as server, connected(server) as worker:
        server.answers["/v1/worker/prompt"] = Response.text(429, "slow", headers=((b"retry-after", b"17"),))
        with pytest.raises(BusyError, match="again after 17 s"):
            await worker.fetch_prompt()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        json.dumps({"task_id": "T-2", "attempt": 1, "agent": "a", "prompt": "p"}).encode(),
        json.dumps({"task_id": "T-1", "attempt": 0, "agent": "a", "prompt": "p"}).encode(),
        json.dumps({"task_id": "T-1", "attempt": "1", "agent": "a", "prompt": "p"}).encode(),
        json.dumps({"task_id": "T-1", "attempt": 1, "agent": "a", "prompt": None}).encode(),
    ],
)
async def test_a_prompt_that_is_none(payload) -> None:
    """Another task's, too."""
    async with backend() as server, connected(server) as worker:
        server.answers["/v1/worker/prompt"] = Response(200, payload)
        with pytest.raises(ProtocolError, match="the prompt of T-1"):
            await worker.fetch_prompt()


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"out_id": 1}', b"no"])
async def test_an_emit_that_gives_no_id(answer) -> None:
    """It was kept, but nobody can say where."""
    async with backend() as server, connected(server) as worker:
        server.answers["/v1/data/emit"] = Response(200, answer)
        with pytest.raises(ProtocolError):
            await worker.progress("x")


async def test_an_answer_that_is_too_large() -> None:
    """Bounded, and not tried again."""
    async with backend() as server, connected(server, max_answer=1000) as worker:
        server.answers["/v1/worker/prompt"] = Response(200, b"x" * 1001)
        with pytest.raises(ProtocolError, match="larger than 1000"):
            await worker.fetch_prompt()
    assert len(server.seen) == 1


async def test_a_body_that_is_too_large_is_told_before_it_is_sent() -> None:
    """The server refuses by the head, and the client reads that while it still sends."""
    async with backend(max_body=10_000) as server, connected(server) as worker:
        with pytest.raises(RequestRefused, match="413") as caught:
            await worker.artifact("a", b"x" * 30_000_000)
    assert caught.value.status == 413
    assert server.seen == []


async def test_a_large_body_arrives_whole() -> None:
    """In many pieces."""
    content = random.Random(1).randbytes(5_000_000)
    async with backend(max_body=10**7) as server, connected(server) as worker:
        await worker.artifact("a", content)
    assert server.applied == [content]


# -- lost connections --------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [*itertools.product(["unread", "unanswered", "half"], repeat=2)])
async def test_a_post_arrives_once_at_a_server_that_knows_keys(cuts) -> None:
    """However the first tries were lost: one effect, one key, and the first answer."""
    async with backend() as server, connected(server) as worker:
        await worker.fetch_prompt()
        server.cuts.extend(cuts)
        await worker.submit("result")
        server.cuts.extend(cuts)
        assert await worker.progress("x") == "out-0000000002"
    keys = [headers["idempotency-key"] for method, _, headers, _ in server.seen if method == "POST"]
    assert server.applied[0] == b"result"
    assert len(server.applied) == 2
    assert len(set(keys)) == 2


@pytest.mark.parametrize("cut", ["unread", "unanswered", "half"])
@pytest.mark.parametrize("prompt", [True, False])
async def test_a_post_is_not_repeated_at_an_original(cut, prompt) -> None:
    """Nobody knows whether it arrived, and that is what is said."""
    async with backend(keys=False) as server, connected(server) as worker:
        if prompt:
            await worker.fetch_prompt()
        server.cuts.append(cut)
        with pytest.raises(PeerGoneError, match="the result of T-1 may or may not have arrived") as caught:
            await worker.submit("result")
        await worker.submit("another")
    assert server.applied == ([b"another"] if cut == "unread" else [b"result", b"another"])
    assert caught.value.__cause__ is not None


async def test_before_any_answer_a_server_counts_as_an_original() -> None:
    """Its first answer says what it can, whichever it is."""
    async with backend() as server, connected(server) as worker:
        server.cuts.append("unanswered")
        with pytest.raises(PeerGoneError, match="may or may not"):
            await worker.submit("1")
        await worker.submit("2")
        server.cuts.append("unanswered")
        await worker.submit("3")
    assert server.applied == [b"1", b"2", b"3"]


async def test_an_original_in_the_place_of_one_of_ours() -> None:
    """What the last success said counts; an error of something in between says nothing."""
    async with backend() as server, connected(server) as worker:
        await worker.fetch_prompt()
        server.answers["/v1/worker/stats"] = Response.text(500)
        with pytest.raises(PeerError):
            await worker.stats({})
        server.cuts.append("unanswered")
        await worker.submit("1")
        server.keys = False
        await worker.fetch_prompt()
        server.cuts.append("unanswered")
        with pytest.raises(PeerGoneError, match="may or may not"):
            await worker.submit("2")
    assert server.applied == [b"1", b"2"]


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("cut", ["unread", "unanswered", "half"])
async def test_what_is_only_read_is_asked_for_again(keys, cut) -> None:
    """At any server."""
    async with backend(keys=keys, cuts=deque([cut, cut])) as server, connected(server) as worker:
        assert (await worker.fetch_prompt()).prompt == "do it"


@pytest.mark.parametrize(("cut", "applied"), [("unread", 0), ("unanswered", 1), ("half", 1)])
async def test_there_is_an_end_to_it(cut, applied) -> None:
    """After as many tries as were allowed."""
    async with backend() as server, connected(server) as worker:
        await worker.fetch_prompt()
        server.cuts.extend([cut] * 4)
        with pytest.raises(PeerGoneError, match="may or may not have arrived"):
            await worker.submit("result")
        assert not server.cuts
        server.cuts.extend([cut] * 4)
        with pytest.raises(PeerGoneError, match="the prompt of T-1 was not answered"):
            await worker.fetch_prompt()
        assert not server.cuts
    assert len(server.applied) == applied


def a_dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_what_never_left_was_not_sent() -> None:
    """Certainly, and it says so."""
    url = f"http://127.0.0.1:{a_dead_port()}"
    async with connect_worker(url, HANDLE, task_id="T-1", retry=AT_ONCE) as worker:
        with pytest.raises(PeerGoneError, match="the result of T-1 was not sent: cannot connect"):
            await worker.submit("x")


@pytest.mark.parametrize("keys", [True, False])
async def test_a_server_that_is_not_there_yet(keys, monkeypatch) -> None:
    """A post that was certainly not sent is sent again, to an original too."""
    real, refused = trio.open_tcp_stream, []

    async def refuses_twice(*args, **kwargs):
        if len(refused) < 2:
            refused.append(1)
            raise ConnectionRefusedError
        return await real(*args, **kwargs)

    async with backend(keys=keys) as server, connected(server) as worker:
        monkeypatch.setattr(trio, "open_tcp_stream", refuses_twice)
        await worker.submit("result")
    assert server.applied == [b"result"]
    assert len(refused) == 2


async def test_one_doubtful_try_is_enough(monkeypatch) -> None:
    """Though the server is not even there for those after it."""
    real, opened = trio.open_tcp_stream, []

    async def refuses_later(*args, **kwargs):
        if len(opened) >= 2:
            raise ConnectionRefusedError
        opened.append(1)
        return await real(*args, **kwargs)

    async with backend() as server, connected(server) as worker:
        monkeypatch.setattr(trio, "open_tcp_stream", refuses_later)
        await worker.fetch_prompt()
        server.cuts.append("unanswered")
        with pytest.raises(PeerGoneError, match="may or may not have arrived: cannot connect"):
            await worker.submit("result")
    assert server.applied == [b"result"]


async def test_a_refusal_after_a_lost_try_says_that_it_may_have_arrived() -> None:
    """The attempt may be over because of it."""
    async with backend() as server, connected(server) as worker:
        await worker.fetch_prompt()
        server.cuts.append("unread")
        server.answers["/v1/worker/submit"] = Response.text(410, "the task has ended", headers=FEATURE)
        with pytest.raises(AttemptOver, match="an earlier try of it may have arrived"):
            await worker.submit("result")


async def test_a_server_that_never_reads_is_lost_after_a_silence() -> None:
    """And the next try goes to one that does."""
    async with backend() as server, connected(server, silence=0.05) as worker:
        await worker.fetch_prompt()
        server.cuts.append("deaf")
        await worker.artifact("a", b"x" * 900_000)
    assert len(server.applied) == 1


@pytest.mark.parametrize("seed", range(20))
async def test_random_losses(seed) -> None:
    """Of many posts by several tasks each arrives once at ours; at an original never twice, and
    whatever did not arrive was said to be in doubt."""
    rng = random.Random(seed)
    for keys in (True, False):
        doubtful: list[bytes] = []

        async def post(worker, text: str, doubtful: list[bytes] = doubtful) -> None:
            try:
                await worker.submit(text)
            except PeerGoneError as error:
                assert "may or may not have arrived" in str(error)
                doubtful.append(text.encode())

        async with backend(keys=keys) as server, connected(server, retry=Retry(50, first=0)) as worker:
            await worker.fetch_prompt()
            server.cuts.extend(rng.choices(["unread", "unanswered", "half", "none"], k=60))
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(post, worker, str(number))
        everything = {str(number).encode() for number in range(30)}
        assert len(set(server.applied)) == len(server.applied)
        assert everything - set(server.applied) <= set(doubtful)
        assert not (keys and doubtful)


# -- the caller's time ------------------------------------------------------------------------


async def test_the_callers_scope_is_the_deadline() -> None:
    """Nothing waits longer, and the connection is gone with it."""
    async with backend(cuts=deque(["deaf"])) as server, connected(server) as worker:
        with trio.move_on_after(0.05) as scope:
            await worker.fetch_prompt()
        assert scope.cancelled_caught
        await worker.fetch_prompt()


async def test_between_two_tries_it_is_cancelled_too() -> None:
    """In the pause."""
    url = f"http://127.0.0.1:{a_dead_port()}"
    retry = Retry(tries=2, first=3600, longest=3600)
    async with connect_worker(url, HANDLE, task_id="T-1", retry=retry) as worker:
        with trio.move_on_after(0.2) as scope:
            await worker.submit("x")
    assert scope.cancelled_caught


async def test_the_end_of_the_block_ends_what_others_have_under_way() -> None:
    """And nothing begins after it."""
    raised: list[Exception] = []

    async def fetch(worker) -> None:
        try:
            await worker.fetch_prompt()
        except trio.ClosedResourceError as error:
            raised.append(error)

    async with backend(cuts=deque(["deaf"])) as server, trio.open_nursery() as nursery:
        async with connected(server) as worker:
            nursery.start_soon(fetch, worker)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not raised
        await fetch(worker)
    assert len(raised) == 2


def test_pauses_grow_to_a_bound() -> None:
    """Between one half and the whole of it."""
    rng = random.Random(1)
    retry = Retry(first=1, longest=8)
    for repetition, most in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (10**6, 8)):
        assert all(most / 2 <= retry.delay(repetition, rng) <= most for _ in range(50))


# -- what it is given ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_url": "127.0.0.1:7777"}, "URL"),
        ({"base_url": "http://user:secret@h"}, "credentials"),
        ({"bearer": ""}, "bearer"),
        ({"bearer": "wh-1\r\nX: y"}, "bearer"),
        ({"bearer": "x" * 10_000}, "bearer"),
        ({"capability_token": "a b"}, "capability_token"),
        ({"task_id": ""}, "task id"),
        ({"task_id": "a\nb"}, "task id"),
        ({"silence": 0}, "silence"),
        ({"silence": float("nan")}, "silence"),
    ],
)
async def test_what_cannot_be_used_is_said_at_once(changes, says) -> None:
    """Before anything is sent."""
    given = {"base_url": "http://127.0.0.1:1", "bearer": HANDLE, "task_id": "T-1", **changes}
    with pytest.raises(ValueError, match=says) as caught:
        async with connect_worker(given.pop("base_url"), given.pop("bearer"), **given):
            raise AssertionError
    assert "wh-1\r" not in str(caught.value)


async def test_values_that_cannot_travel() -> None:
    """A ValueError, and nothing is sent."""
    async with backend() as server, connected(server) as worker:
        for call in (
            lambda: worker.submit("\ud800"),
            lambda: worker.result(float("nan")),
            lambda: worker.result({1: 2}),
            lambda: worker.result(object()),
            lambda: worker.artifact(" ", "x"),
            lambda: worker.stats({"x": float("inf")}),
        ):
            with pytest.raises((ValueError, TypeError)):
                await call()
    assert server.seen == []


@pytest.mark.parametrize("values", [{"tries": 0}, {"first": -1}, {"longest": -1}])
def test_a_policy_that_is_none(values) -> None:
    """Refused where it is made."""
    with pytest.raises(ValueError, match=r">= \d"):
        Retry(**values)


async def test_the_bearer_is_not_shown(caplog) -> None:
    """Neither by the objects nor in the log, nor in an error whatever the server echoes."""
    caplog.set_level(logging.DEBUG)
    echo = Response.text(400, f"who is Bearer {HANDLE}, or {TOKEN}?")
    async with backend() as server, connected(server, capability_token=TOKEN) as worker:
        server.cuts.append("unanswered")
        await worker.fetch_prompt()
        server.answers["/v1/worker/submit"] = echo
        with pytest.raises(RequestRefused) as caught:
            await worker.submit("x")
        shown = [repr(worker), repr(worker._wire), repr(caught.value), str(caught.value), caplog.text]
    assert "try 1" in caplog.text
    for text in shown:
        assert HANDLE not in text
        assert TOKEN not in text
    assert "who is Bearer [bearer], or [bearer]?" in str(caught.value)
