"""A login whose socket never comes: nothing is left at the server (contract 8.6 M1)."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from trio_swarm.errors import HandshakeError, PeerError
from trio_swarm.operators import Reconnect, connect_operator

LOGIN = b'{"sid":"op-1","token":"0f1e2d3c4b"}'


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("refusal", [b"404 Not Found", b"500 Internal Server Error", b""])
async def test_a_login_whose_socket_is_refused_is_undone(refusal, keep) -> None:
    """The error of the socket comes out, and the session is deleted with its own token; or kept, if asked."""
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
