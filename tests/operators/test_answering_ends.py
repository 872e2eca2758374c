"""Who answers a request asks nothing for it any more once it is over, wherever they are at it."""

from __future__ import annotations

import pytest

from trio_swarm.frames.operator import Ask
from trio_swarm.operators.ledger import Orphans
from trio_swarm.operators.lineage import nesting
from trio_swarm.operators.requests import AskRequest, Withdrawn, disown, request_for


class Desk:
    """Takes every reply."""

    identity = "me#1"
    receipts = True

    def reply(self, frame) -> bool:
        return True


def a_request() -> AskRequest:
    request = request_for(Ask(req_id="q", task_id="t", question=1), Desk())
    assert isinstance(request, AskRequest)
    request.show()
    return request


def restart(request: AskRequest) -> None:
    """Another server takes the place of the one that asked."""
    assert disown(Orphans((request,), ())) == [Withdrawn(request, "server_restarted")]


def asked_for() -> object:
    return nesting("x#x", None)["lineage"]


@pytest.mark.parametrize("end", [lambda request: request.answer(1), restart], ids=["answered", "restarted"])
def test_all_blocks_of_a_request_end_with_it(end) -> None:
    """The inner and the outer, and one that is entered later."""
    request = a_request()
    with request.answering():
        assert asked_for() == ("me#1",)
        with request.answering():
            assert asked_for() == ("me#1",)
            end(request)
            assert asked_for() == ()
        assert asked_for() == ()
    with request.answering():
        assert asked_for() == ()
