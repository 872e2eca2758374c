"""A login that comes to nothing: what the operator is told, and that nothing is left at the server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.names import know_no_names
from trio_swarm.errors import HandshakeError, PeerError
from trio_swarm.limits import CLOSE_DEADLINE
from trio_swarm.operators import Reconnect, connect_operator

LOGIN = b'{"sid":"op-1","token":"0f1e2d3c4b"}'
PAGE = b"<html><head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1>\x1b[2J</body>"


@asynccontextmanager
async def answering(status: bytes, kind: bytes, body: bytes):
    async def one(stream) -> None:
        await stream.receive_some()
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
        await stream.send_all(head + body)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("status", "kind", "body", "said"),
    [
        (b"502 Bad Gateway", b"text/html", PAGE, "502 502 Bad Gateway 502 Bad Gateway [2J"),
        (b"404 Not Found", b"text/plain", b"", "404"),
        (b"503 Busy", b"application/json", b'{"error": "4 sessions already"}', "503 4 sessions already"),
        (
            b"301 Moved",
            b"text/html",
            b"<a href=x>moved</a>" + b"x" * 10_000,
            "301 moved " + "x" * 114 + "...",
        ),
    ],
)
async def test_a_foreign_answer_is_told_in_one_line(status, kind, body, said) -> None:
    async with answering(status, kind, body) as url:
        with pytest.raises(HandshakeError) as caught:
            async with connect_operator(url):
                pytest.fail("logged in")
    assert str(caught.value) == f"the login was refused: {said}"
    assert caught.value.status == int(status[:3])


async def test_why_nobody_was_reached() -> None:
    know_no_names()
    for url, reason in (
        ("http://127.0.0.1:1", "127.0.0.1:1: Connection refused"),
        ("https://127.0.0.1:1", "127.0.0.1:1: Connection refused"),
        ("http://no-such-host.invalid", "no-such-host.invalid: its name cannot be looked up"),
    ):
        with pytest.raises(HandshakeError, match=f"^cannot connect to {reason}"):
            async with connect_operator(url):
                pytest.fail("connected")


async def test_why_there_is_no_tls() -> None:
    async with answering(b"400 Bad Request", b"text/plain", b"") as url:
        with pytest.raises(HandshakeError, match=r"^no TLS with 127\.0\.0\.1: .*wrong version number"):
            async with connect_operator(url.replace("http", "https")):
                pytest.fail("connected")


class Scripted:
    """A server that gives each request the next answer, and the last from then on; its socket hangs up."""

    def __init__(self, **answers: list[bytes]) -> None:
        self.answers = {**answers, "GET": [b""]}
        self.asked: list[tuple[str, float]] = []

    async def one(self, stream) -> None:
        method = bytes(await stream.receive_some()).split(b" ")[0].decode()
        self.asked.append((method, trio.current_time()))
        left = self.answers[method]
        await stream.send_all(left.pop(0) if len(left) > 1 else left[0])

    def times(self, method: str) -> list[float]:
        return [when for asked, when in self.asked if asked == method]

    @asynccontextmanager
    async def serving(self):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self.one, 0, host="127.0.0.1"))
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


def said(status: bytes, body: bytes = b"", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, extra, len(body), body)


def busy(seconds: bytes) -> bytes:
    return said(b"429 Too Many Requests", b"full", b"retry-after: %b\r\n" % seconds)


ONCE = Reconnect(first=0.0, longest=0.0, give_up_after=0.0)
WELL, DONE = said(b"200 OK", LOGIN), said(b"204 No Content")


async def join(url: str) -> None:
    with pytest.raises(HandshakeError, match="closed before an answer"):
        async with connect_operator(url, reconnect=ONCE):
            pytest.fail("there is no socket")


async def test_a_login_that_a_busy_server_sends_away_comes_again() -> None:
    server = Scripted(POST=[busy(b"0"), busy(b"1"), WELL], DELETE=[DONE])
    async with server.serving() as url:
        await join(url)
    _, second, third = server.times("POST")
    assert third - second >= 1
    assert len(server.times("DELETE")) == 1


@pytest.mark.parametrize(
    ("answer", "tries"),
    [(busy(b"0"), 6), (busy(b"6"), 1), (busy(b"soon"), 1), (said(b"429 Full"), 1), (said(b"503 Full"), 1)],
)
async def test_a_login_comes_again_so_often_and_no_more(answer, tries) -> None:
    server = Scripted(POST=[answer])
    async with server.serving() as url:
        with pytest.raises(HandshakeError, match=r"^the login was refused") as caught:
            async with connect_operator(url):
                pytest.fail("logged in")
    assert caught.value.status == int(answer.split(b" ")[1])
    assert [method for method, _ in server.asked] == ["POST"] * tries


async def test_a_login_that_waits_to_come_again_is_cancelled_at_once() -> None:
    server = Scripted(POST=[busy(b"5")])
    async with server.serving() as url, trio.open_nursery() as nursery:

        async def be_operator() -> None:
            async with connect_operator(url):
                pytest.fail("logged in")

        nursery.start_soon(be_operator)
        await trio.testing.wait_all_tasks_blocked(0.1)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 1
    assert len(server.asked) == 1, "nothing was minted"


async def test_a_logout_that_a_busy_server_sends_away_comes_again(caplog) -> None:
    server = Scripted(POST=[WELL], DELETE=[busy(b"0"), busy(b"0"), DONE])
    async with server.serving() as url:
        await join(url)
    assert len(server.times("DELETE")) == 3
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (busy(b"0"), "the session op-1 was not deleted: the server answered 429"),
        (busy(b"5"), "the session op-1 may be there still: the server did not delete it in time"),
        (said(b"403 Forbidden"), "the session op-1 was not deleted: the server answered 403"),
        (said(b"301 Moved"), "the session op-1 was not deleted: the server answered 301"),
        (said(b"500 Oh"), "the session op-1 was not deleted: the server answered 500"),
        (said(b"401 No"), None),
        (said(b"404 No"), None),
        (said(b"410 Gone"), None),
        (said(b"200 OK"), None),
    ],
)
async def test_a_session_that_was_left_behind_is_told_in_the_log(answer, told, caplog) -> None:
    server = Scripted(POST=[WELL], DELETE=[answer])
    began = trio.current_time()
    async with server.serving() as url:
        await join(url)
    assert trio.current_time() - began < 2 * CLOSE_DEADLINE
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ([] if told is None else [told])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("refusal", [b"404 Not Found", b"500 Internal Server Error", b""])
async def test_a_login_whose_socket_is_refused_is_undone(refusal, keep) -> None:
    """The error of the socket comes out, and the session is deleted with its own token; or kept, if asked.

    The contract's case M1.
    """
    heads: list[bytes] = []

    async def one(stream) -> None:
        head = bytes(await stream.receive_some())
        heads.append(head.split(b" HTTP")[0])
        if head.startswith(b"POST"):
            answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(LOGIN), LOGIN)
        elif head.startswith(b"DELETE"):
            assert b"Bearer 0f1e2d3c4b\r\n" in head
            answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        elif not refusal:
            return  # It hangs up.
        else:
            answer = b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % refusal
        await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        once = Reconnect(first=0.0, longest=0.0, give_up_after=0.0)
        with pytest.raises(PeerError) as caught:
            async with connect_operator(url, reconnect=once, keep=keep):
                raise AssertionError("there is no socket")
        nursery.cancel_scope.cancel()

    if refusal:
        assert isinstance(caught.value, HandshakeError)
        assert caught.value.status == int(refusal[:3])
    undone = [] if keep else [b"DELETE /v1/operators/op-1"]
    assert heads == [b"POST /v1/operators", b"GET /v1/operators/op-1/ws", *undone]
