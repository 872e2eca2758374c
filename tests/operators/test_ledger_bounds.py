"""What a ledger lets go, and what it keeps although there is no room: no reply that is still to leave."""

from __future__ import annotations

from tests.operators.test_ledger import a_ledger, ask, reply, with_receipts
from trio_swarm.operators.ledger import Ledger, Receipted


def replied(ledger: Ledger[str], *req_ids: str, size: int = 1) -> None:
    """Asked, replied to, and written."""
    ask(ledger, *req_ids)
    for req_id in req_ids:
        assert ledger.reply(req_id, reply(req_id), size)
    ledger.written(ledger.take())


def test_a_reply_that_is_due_again_is_not_let_go_before_it_has_left() -> None:
    """Whoever asked for it again would wait until the next socket, and the user be asked once more."""
    ledger = a_ledger(remembered=1)
    replied(ledger, "a")
    ledger.connected(redelivers=True)
    assert ledger.arrived("a") == "answered"
    ask(ledger, "b")
    assert ledger.reply("b", reply("b"), 1)
    assert ledger.take() == [reply("a"), reply("b")]
    ledger.written([reply("a"), reply("b")])
    assert ledger.arrived("a") == "new"
    assert ledger.arrived("b") == "answered"


def test_a_large_reply_takes_the_room_of_several() -> None:
    """The oldest first, and no more of them than it needs."""
    ledger = a_ledger(max_bytes=30)
    replied(ledger, "a", "b", "c", size=10)
    ask(ledger, "d")
    ledger.reply("d", reply("d"), 20)
    assert [ledger.arrived(req_id) for req_id in "abcd"] == ["new", "new", "answered", "answered"]


def test_what_is_due_on_the_present_socket_has_not_left_yet() -> None:
    """However often it left on others: it may be what those lost."""
    ledger = a_ledger()
    replied(ledger, "a")
    assert ledger.settled
    ledger.connected(redelivers=True)
    assert ledger.settled
    ledger.arrived("a")
    assert not ledger.settled
    ledger.written(ledger.take())
    assert ledger.settled


def test_an_original_gets_nothing_again_where_that_is_the_bound() -> None:
    ledger = a_ledger(sent_again=0)
    replied(ledger, "a")
    ledger.connected(redelivers=False)
    assert ledger.take() == []


def test_a_server_with_receipts_gets_again_what_it_gave_none_for() -> None:
    """Beyond the bound for originals, and nothing else, whether it redelivers or not."""
    for redelivers in (True, False):
        ledger = with_receipts(sent_again=1)
        replied(ledger, "a", "b", "c")
        ledger.receipt("c", True, None)
        ledger.connected(redelivers=redelivers, receipts=True)
        assert ledger.take() == [reply("a"), reply("b")]


def test_a_reply_that_is_refused_for_no_reason_is_refused() -> None:
    ledger = with_receipts()
    replied(ledger, "a", "b")
    assert ledger.receipt("a", False, None) == Receipted("a", "refused")
    assert ledger.receipt("b", False, "") == Receipted("b", "refused")


def test_a_request_that_is_asked_again_ends_the_one_whose_reply_was_let_go() -> None:
    """Nothing else would: of one id only the last one is kept."""
    ledger = with_receipts(remembered=1)
    replied(ledger, "a", "b")
    assert ledger.unreceipted() == ["a", "b"]
    assert ledger.arrived("a") == "new"
    assert ledger.show("a", "the second a") == ("a",)
    assert ledger.unreceipted() == ["b"]
    assert ledger.show("c", "c") == ()
