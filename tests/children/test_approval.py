"""Approvals, from a tool in the child to whoever decides and back (children contract, A6)."""

from __future__ import annotations

import pytest
import trio

from tests.children.support import HERE, open_host
from trio_swarm.children import open_child
from trio_swarm.children.approval import Approval, Verdict, decide
from trio_swarm.frames.child import ApprovalRequest


def approval(**body):
    return Approval.of("c", ApprovalRequest(id="sa-1", body=body))


async def test_the_round_trip(tmp_path):
    """approval_request_round_trips_to_host_and_back; child_approval_honors_wired_decider."""
    asked = []

    async def decider(request):
        asked.append(request)
        return request.resource == "git status"

    async with (
        open_host(tmp_path) as (host, heard),
        open_child(host, f"{HERE}:gate", on_approval=decider) as child,
    ):
        assert await child.run("git status") == "yes"
        assert await child.run("git push") == "no"
    first = asked[0]
    assert (first.child, first.tool_name, first.permission) == (child.name, "Bash", "execute")
    assert (first.resource, first.question) == ("git status", "May I?")
    assert first.body["permission"] == first.body["permission_type"] == "execute"
    assert first.id.startswith("sa-")
    assert first.id != asked[1].id
    assert heard.kinds()[1:] == ["approval_requested", "approval_decided"] * 2
    assert [data["approved"] for data in heard.of("approval_decided")] == [True, False]


async def test_denied_when_nobody_decides(tmp_path):
    """child_approval_fails_closed_without_decider."""
    async with open_host(tmp_path) as (host, heard), open_child(host, f"{HERE}:gate") as child:
        assert await child.run("x") == "no"
        assert heard.of("approval_decided")[0]["reason"] == "nobody decides"
        assert child.statistics().denied == 1


async def test_many_at_a_time_do_not_hold_each_other_up(tmp_path):
    """Decided concurrently; more than 32 wait in the child."""
    waiting = []

    async def decider(request):
        waiting.append(request.resource)
        if len(waiting) == 20:
            together.set()
        await together.wait()
        return int(request.resource) % 2 == 0

    together = trio.Event()
    async with (
        open_host(tmp_path) as (host, _),
        open_child(host, f"{HERE}:gate_many", on_approval=decider) as child,
    ):
        text = await child.run("60")
    assert text.count("true") == text.count("false") == 30


async def test_a_cancelled_run_cancels_its_decision(tmp_path):
    """Nobody has a use for it any more, and the next run works."""
    cancelled = trio.Event()

    async def decider(request):
        if request.resource == "fine":
            return True
        deciding.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    deciding = trio.Event()
    async with (
        open_host(tmp_path) as (host, _),
        open_child(host, f"{HERE}:gate", on_approval=decider) as child,
    ):
        async with child.open_run("x"):
            await deciding.wait()
        await cancelled.wait()
        assert await child.run("fine") == "yes"
        assert child.statistics().crashes == 0


async def test_a_decider_that_raises_denies(tmp_path):
    """It fails closed, and takes nothing down."""

    async def decider(request):
        raise OSError("no terminal")

    async with open_host(tmp_path) as (host, heard):
        async with open_child(host, f"{HERE}:gate", on_approval=decider) as child:
            assert await child.run("x") == "no"
        assert heard.of("approval_decided")[0]["reason"] == "the decider raised OSError: no terminal"


@pytest.mark.parametrize("answer", [None, "yes", 1, False])
async def test_anything_but_true_denies(answer):
    """A truthy mistake is no permission."""

    async def decider(request):
        await trio.lowlevel.checkpoint()
        return answer

    assert await decide(decider, approval()) == Verdict(False, "denied")


async def test_no_answer_in_time_denies(autojump_clock):
    """'expired', reason 'approval_timeout' (A6)."""

    async def decider(request):
        await trio.sleep(10)
        return True

    assert await decide(decider, approval(), within=9) == Verdict(False, "expired", "approval_timeout")
    assert (await decide(decider, approval(), within=11)).approved


@pytest.mark.parametrize(
    ("body", "permission"),
    [
        ({"permission": "execute", "permission_type": "other"}, "execute"),
        ({"permission_type": "execute"}, "execute"),
        ({"permission": 7, "permission_type": "execute"}, "execute"),
        ({}, ""),
        (None, ""),
        (["permission"], ""),
    ],
)
def test_bodies_of_all_kinds_are_read(body, permission):
    """approval_request_fields_extracts_and_defaults: both keys, missing ones empty."""
    read = Approval.of("c", ApprovalRequest(id="sa-1", body=body))

    assert read.permission == permission
    assert read.resource == ""
