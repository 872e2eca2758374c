"""Requests that had arrived when their socket ended: an original sends them only once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.operators.support import serving
from trio_swarm._io.transport import Transport
from trio_swarm.errors import PeerGoneError
from trio_swarm.frames.operator import HookAfter
from trio_swarm.operators import Reconnect, Withdrawn, client, connect_operator

NEVER_AGAIN = Reconnect(first=0.01, longest=0.01, give_up_after=0.0)


def ask(req_id: str) -> str:
    return json.dumps({"type": "ask", "req_id": req_id, "task_id": "ST-1", "question": req_id})


def told(req_id: str) -> str:
    notice = {"type": "hook_after", "req_id": req_id, "task_id": "ST-1", "agent": "a", "attempt": 1}
    return json.dumps({**notice, "result": req_id})


class Script(Transport):
    """The first batch at once; the others when the client's first write has failed, then the end."""

    def __init__(self, *batches: Sequence[str]) -> None:
        self.batches = list(batches)
        self.late = self.batches[1:]
        self.broken = trio.Event()

    @property
    def close_reason(self) -> None:
        return None

    def header(self, name: str) -> None:
        return None

    async def send_batch(self, messages: Sequence[str]) -> None:
        self.broken.set()
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async def receive_batch(self) -> Sequence[str | bytes]:
        if len(self.batches) <= len(self.late):
            await self.broken.wait()
            # Each by itself: whoever can take one does, before the next comes.
            await trio.testing.wait_all_tasks_blocked()
        await trio.lowlevel.checkpoint()
        return self.batches.pop(0) if self.batches else ()

    async def aclose(self, code: int = 1000, reason: str = "", *, listening: bool = False) -> None:
        self.broken.set()
        self.batches.clear()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def scripted(monkeypatch, transport: Script):
    """A client whose only socket is ``transport``."""

    @asynccontextmanager
    async def open_ws_client(*args: object, **options: object):
        yield transport

    monkeypatch.setattr(client, "open_ws_client", open_ws_client)
    async with serving() as server, connect_operator(server.url, reconnect=NEVER_AGAIN) as operator:
        yield operator


async def test_what_had_arrived_when_a_write_failed_is_shown(monkeypatch) -> None:
    """Requests, notices and withdrawals alike."""
    taken_back = json.dumps({"type": "withdraw", "req_id": "b", "reason": "cancelled"})
    script = Script([ask("a"), ask("b")], [ask("c"), told("d")], [taken_back, ask("e")])
    async with scripted(monkeypatch, script) as operator:
        first, second = await operator.receive(), await operator.receive()
        assert first.answer(1)
        third, notice, withdrawn, last = [await operator.receive() for _ in range(4)]
        with pytest.raises((PeerGoneError, trio.EndOfChannel)):
            await operator.receive()

    assert second.withdrawn == "cancelled"
    assert isinstance(withdrawn, Withdrawn)
    assert withdrawn.request is second
    assert isinstance(notice, HookAfter)
    assert (third.question, last.question) == ("c", "e")


async def test_what_there_is_no_room_for_is_new_again_and_the_socket_ends(
    monkeypatch, autojump_clock
) -> None:
    """A user that takes nothing does not keep the client at a socket that cannot write."""
    monkeypatch.setattr(client, "_INBOX", 2)
    script = Script([ask("a"), ask("b")], [ask(f"c{number}") for number in range(10)])
    async with scripted(monkeypatch, script) as operator:
        first = await operator.receive()
        assert first.answer(1)
        with trio.fail_after(10):
            while operator.connected:
                await trio.sleep(0.1)
        assert operator.statistics().open == 2
        shown = [request.question async for request in Until(operator)]
    assert shown == ["b", "c0"]


TAKEN_BACK = json.dumps({"type": "withdraw", "req_id": "b", "reason": "cancelled"})


@pytest.mark.parametrize(
    "late",
    [
        pytest.param([[ask("c"), ask("d"), TAKEN_BACK]], id="read"),
        pytest.param([[ask("c"), ask("d")], [TAKEN_BACK]], id="arrived"),
    ],
)
async def test_what_came_behind_a_request_without_room_counts(monkeypatch, autojump_clock, late) -> None:
    """The reader waits for the user when the socket ends, and has not come to the withdrawal yet.

    No other socket would bring it: its request would be shown to the user for nothing.
    """
    monkeypatch.setattr(client, "_INBOX", 2)
    async with scripted(monkeypatch, Script([ask("a"), ask("b")], *late)) as operator:
        first = await operator.receive()
        assert first.answer(1)
        with trio.fail_after(10):
            await operator.connection_changed()
        shown = [request.question async for request in Until(operator)]
    assert shown == ["c"]


class Until:
    """What an operator still gives, until its end of whatever kind."""

    def __init__(self, operator) -> None:
        self.operator = operator

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return await self.operator.receive()
        except (PeerGoneError, trio.EndOfChannel):
            raise StopAsyncIteration from None
