"""Bodies piece by piece, in and out, over raw sockets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.io.test_http import GET, ROUTES, status_of, talk
from trio_swarm._io.head import parse_head
from trio_swarm._io.http import FrontLimits, serve_http
from trio_swarm._io.http_body import BodyStream
from trio_swarm._io.http_messages import HttpError, Request, Response, StreamedResponse
from trio_swarm._io.http_routes import Route, RouteTable
from trio_swarm._io.unix import open_unix_listener
from trio_swarm._state.policy import EdgePolicy, loopback_hosts


async def count(request: Request) -> Response:
    """How many pieces, how many bytes."""
    sizes = [len(piece) async for piece in request.stream]
    assert all(sizes)
    assert [piece async for piece in request.stream] == []
    return Response.text(200, f"{sum(sizes)} in {'one' if len(sizes) == 1 else 'some'}")


async def whole(request: Request) -> Response:
    body = await request.stream.read_all(10)
    assert await request.stream.read_all() == b""
    return Response(200, body)


async def unread(request: Request) -> Response:
    return Response.text(403, "no")


async def half(request: Request) -> Response:
    await request.stream.__anext__()
    return Response.text(200, "enough")


async def slow(request: Request) -> Response:
    """The endpoint takes its time; that is not the client's fault."""
    total = 0
    async for piece in request.stream:
        total += len(piece)
        await trio.sleep(0.25)
    return Response.text(200, str(total))


def streamed(length: int, pieces: int | None = None, error: Exception | None = None) -> Response:
    async def produce(send) -> None:
        for _ in range(length if pieces is None else pieces):
            await send(b"x")
        if error is not None:
            raise error

    return StreamedResponse(200, b"", ((b"content-type", b"text/csv"),), length=length, produce=produce)


async def download(request: Request) -> Response:
    return streamed(int(request.params["length"]))


async def refused_late(request: Request) -> Response:
    return streamed(5, 0, HttpError(404, "gone"))


async def crashed_early(request: Request) -> Response:
    return streamed(5, 0, RuntimeError("a bug"))


async def crashed_late(request: Request) -> Response:
    return streamed(5, 2, RuntimeError("a bug"))


async def too_short(request: Request) -> Response:
    return streamed(5, 2)


async def peer(request: Request) -> Response:
    return Response.text(200, f"<{request.peer}>")


STREAMED = [
    Route("POST", "/count", count, body="stream"),
    Route("POST", "/large", count, body="stream", max_body=10**9),
    Route("POST", "/small", count, body="stream", max_body=10),
    Route("POST", "/whole", whole, body="stream"),
    Route("POST", "/unread", unread, body="stream"),
    Route("POST", "/half", half, body="stream"),
    Route("POST", "/slow", slow, body="stream"),
    Route("GET", "/down/{length}", download),
    Route("GET", "/refused", refused_late),
    Route("GET", "/crashed/early", crashed_early),
    Route("GET", "/crashed/late", crashed_late),
    Route("GET", "/short", too_short),
    Route("GET", "/peer", peer),
]


@asynccontextmanager
async def front(limits: FrontLimits | None = None, errors=None, listeners=None):
    async with trio.open_nursery() as nursery:
        port = None
        if listeners is None:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
        await nursery.start(
            partial(
                serve_http,
                listeners,
                RouteTable([*ROUTES, *STREAMED]),
                policy=EdgePolicy(loopback_hosts(port)),
                limits=limits,
                on_error=(lambda name, error: errors.append(error)) if errors is not None else None,
            )
        )
        yield port
        nursery.cancel_scope.cancel()


def post(path: str, body: bytes, *, close: bool = True) -> bytes:
    more = "Connection: close\r\n" if close else ""
    return f"POST {path} HTTP/1.1\r\nHost: HOST\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def chunked(path: str, *chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (post("/count", b""), 200, b"0 in some"),
        (post("/count", b"abc"), 200, b"3 in one"),
        (chunked("/count", b"ab", b"c"), 200, b"3 in some"),
        (post("/small", b"x" * 10), 200, b"10 in one"),
        (post("/small", b"x" * 11), 413, b"too large"),
        (chunked("/small", b"x" * 10, b"x"), 413, b"too large"),
        (post("/whole", b"x" * 10), 200, b"xxxxxxxxxx"),
        (post("/whole", b"x" * 11), 413, b"too large"),
        (chunked("/whole", b"x" * 9, b"xx"), 413, b"too large"),
        (post("/whole", b""), 200, b""),
        (post("/count", b"x" * (2 * 2**20 + 1)), 413, b"too large"),
        (post("/large", b"x" * (2 * 2**20 + 1)), 200, b"2097153 in some"),
        (post("/unread", b"x" * 100_000), 403, b"no"),
        (post("/half", b"x" * 100_000), 200, b"enough"),
        (chunked("/count", b"ab").replace(b"2\r\nab", b"zz\r\nab"), 400, b"malformed"),
        (post("/count", b"abc")[:-1], 400, b"malformed"),
    ],
)
async def test_streamed_bodies(data, status, text) -> None:
    """What the endpoint gets, and where it ends; the next client is served."""
    async with front() as port:
        answer = await talk(port, data, eof=True)
        assert status_of(answer) == status
        assert text in answer
        assert status_of(await talk(port, GET)) == 200


async def test_a_connection_goes_on_behind_a_streamed_body_that_was_read() -> None:
    """And is closed behind one that was not: what is left of it is no request."""
    async with front() as port:
        for path in ("/count", "/whole"):
            answer = await talk(port, post(path, b"abc", close=False) + GET)
            assert answer.count(b"HTTP/1.1 200") == 2
        answer = await talk(port, post("/unread", b"x" * 100_000, close=False) + GET)
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer.lower()


async def test_a_streamed_body_is_asked_for_when_it_is_read() -> None:
    """RFC 9110, 10.1.1: whoever expects 100 gets it at the first read, or is refused without."""
    async with front() as port:
        for path, statuses in (("/count", [100, 200]), ("/unread", [403]), ("/small", [413])):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                body = b"x" * 20
                head = post(path, body).replace(b"HOST", b"127.0.0.1:%d" % port)[: -len(body)]
                await stream.send_all(head[:-2] + b"Expect: 100-continue\r\n\r\n")
                got = []
                for _ in statuses:
                    got.append(status_of(bytes(await stream.receive_some())))
                    if got == [100]:
                        await stream.send_all(body)
                assert got == statuses


async def test_a_slow_endpoint_is_not_a_slow_client(autojump_clock) -> None:
    """The time between two reads is not counted."""
    async with front(FrontLimits(body_deadline=0.2)) as port:
        answer = await talk(port, chunked("/slow", b"a", b"b", b"c"))
        assert (status_of(answer), answer[-1:]) == (200, b"3")


@pytest.mark.parametrize("path", ["/count", "/whole"])
async def test_a_silent_client_is_cut_off(path, autojump_clock) -> None:
    async with front(FrontLimits(body_deadline=20)) as port:
        began = trio.current_time()
        with trio.fail_after(21):
            assert status_of(await talk(port, post(path, b"abcdef")[:-3])) == 408
        assert trio.current_time() - began >= 20


async def test_cancelling_while_a_body_comes_is_immediate(mock_clock) -> None:
    """Nothing of it waits for a time: none passes here."""
    async with front() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(post("/count", b"abc")[:-1].replace(b"HOST", b"127.0.0.1:%d" % port))
        await wait_all_tasks_blocked(0.05)
        mock_clock.autojump_threshold, began = 0, trio.current_time()
    assert trio.current_time() == began
    await stream.aclose()


@pytest.mark.parametrize("length", [0, 1, 1000])
async def test_streamed_answers(length) -> None:
    """Length and headers; HEAD has the same without the body; the connection goes on."""
    get = b"GET /down/%d HTTP/1.1\r\nHost: HOST\r\n\r\n" % length
    async with front() as port:
        answer = await talk(port, get + get + get.replace(b"GET", b"HEAD") + GET)
        assert answer.count(b"HTTP/1.1 200") == 4
        assert answer.count(b"content-length: %d\r\n" % length) == 3
        assert answer.count(b"content-type: text/csv") == 3
        assert answer.count(b"x-content-type-options: nosniff") == 4
        assert answer.count(b"x" * length + b"HTTP/1.1") >= 2 if length else b"xx" not in answer


async def test_an_answer_that_cannot_begin_is_another_answer() -> None:
    """Before the first piece nothing has been said yet."""
    errors: list[Exception] = []
    async with front(errors=errors) as port:
        get = b"GET /refused HTTP/1.1\r\nHost: HOST\r\n\r\n"
        answer = await talk(port, get + GET)
        assert (status_of(answer), answer.count(b"HTTP/1.1")) == (404, 2)
        answer = await talk(port, b"GET /crashed/early HTTP/1.1\r\nHost: HOST\r\n\r\n")
        assert status_of(answer) == 500
        assert b"a bug" not in answer
        assert status_of(await talk(port, GET)) == 200
    assert [type(each) for each in errors] == [RuntimeError]


@pytest.mark.parametrize("path", ["/crashed/late", "/short"])
async def test_an_answer_that_breaks_off_ends_its_connection(path) -> None:
    """The client can tell: fewer bytes came than were announced. Nothing follows."""
    errors: list[Exception] = []
    async with front(errors=errors) as port:
        answer = await talk(port, f"GET {path} HTTP/1.1\r\nHost: HOST\r\n\r\n".encode() + GET)
        assert answer.count(b"HTTP/1.1") == 1
        assert b"content-length: 5" in answer
        assert answer.endswith(b"\r\n\r\nxx")
        assert status_of(await talk(port, GET)) == 200
    assert len(errors) == 1


async def test_an_endpoint_knows_its_peer(tmp_path) -> None:
    """The IP address; nothing for a Unix socket."""
    get = b"GET /peer HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n"
    async with front() as port:
        assert (await talk(port, get)).endswith(b"<127.0.0.1>")
    path = tmp_path / "s.sock"
    async with open_unix_listener(path) as listener, front(listeners=[listener]):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(get.replace(b"HOST", b"localhost"))
            assert b"".join([bytes(piece) async for piece in stream]).endswith(b"<>")


class Late(trio.abc.ReceiveStream):
    """Each byte comes when its deadline has just passed, and without a moment in which to notice."""

    def __init__(self, clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self.clock.jump(self.seconds)
        return b"x"

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_piece_that_comes_with_the_deadline_is_the_last(mock_clock) -> None:
    """What is left of the time is nothing then; less than nothing is no time to wait, and was a crash."""
    request = b"POST /count HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"
    head, conn = parse_head(request)
    body = BodyStream(head, conn, Late(mock_clock, 1.5), trio.sleep, max_body=9, deadline=1.0, min_progress=4)
    assert await body.receive() == b"x"
    with pytest.raises(HttpError) as caught:
        while await body.receive():
            await trio.lowlevel.checkpoint()
    assert caught.value.response.status == 408
