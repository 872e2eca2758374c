"""Why there is no connection is said in a few words."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import trio

from tests.names import know_no_names
from trio_swarm._io.tcp import connect_tcp
from trio_swarm.errors import HandshakeError


async def closed_port() -> int:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        return listener.socket.getsockname()[1]


async def refusal(host: str, port: int = 80) -> str:
    with pytest.raises(HandshakeError) as caught:
        await connect_tcp(host, port, "there")
    assert caught.value.__cause__ is not None
    return str(caught.value)


async def test_refused() -> None:
    assert await refusal("127.0.0.1", await closed_port()) == "cannot connect to there: Connection refused"


async def test_a_name_that_is_unknown() -> None:
    know_no_names()
    said = await refusal("no-such-host.invalid")
    assert said.startswith("cannot connect to there: its name cannot be looked up: ")


@pytest.mark.parametrize("host", ["a" * 70 + ".example", ".."])
async def test_a_name_that_is_none(host) -> None:
    assert await refusal(host) == "cannot connect to there: its name is not one that can be looked up"


def failed(*codes: int) -> ExceptionGroup:
    """What Trio says of several addresses."""
    texts = {code: f"Error connecting to ('x', 1): {os.strerror(code)}" for code in codes}
    return ExceptionGroup("all", [OSError(code, text) for code, text in texts.items()])


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (failed(errno.ENETUNREACH, errno.ECONNREFUSED), "Network is unreachable; Connection refused"),
        (ExceptionGroup("all", [*failed(errno.EACCES).exceptions] * 2), "Permission denied"),
        (
            failed(errno.EHOSTUNREACH, errno.EACCES, errno.ETIMEDOUT, errno.EMFILE),
            "No route to host; Permission denied; Connection timed out",
        ),
        (None, "all attempts failed"),
    ],
)
async def test_of_several_addresses_each_reason_once(cause, said, monkeypatch) -> None:
    async def fail(*_):
        await trio.lowlevel.checkpoint()
        raise OSError("all attempts failed") from cause

    monkeypatch.setattr(trio, "open_tcp_stream", fail)
    assert await refusal("h") == f"cannot connect to there: {said}"


async def test_a_stream_where_somebody_listens() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await connect_tcp(*listener.socket.getsockname(), "there") as stream:
        assert stream.socket.family == socket.AF_INET
