"""An approval is decided once, as soon as it can be, and by what was said up to then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm._state.approval import ApprovalMachine, Decision


def test_the_first_yes_settles_it_where_one_is_enough() -> None:
    """And what comes later changes nothing."""
    machine = ApprovalMachine(["a", "b"], need=1, veto=True)
    assert machine.approve(1) == Decision(True, "approved", "b")
    assert machine.deny(0, "too late") is None
    assert machine.expire(allow=False) == Decision(True, "approved", "b")
    assert machine.tally().unanswered == ("a",)


def test_a_veto_denies_at_once() -> None:
    """With the reason that was given."""
    machine = ApprovalMachine(["a", "b", "c"], need=2, veto=True)
    assert machine.approve(0) is None
    assert machine.deny(2, "no!") == Decision(False, "veto", "c", "no!")
    tally = machine.tally()
    assert (tally.approved, tally.denied, tally.unanswered) == (("a",), (("c", "no!"),), ("b",))


def test_without_a_veto_a_no_is_a_yes_that_will_not_come() -> None:
    """Denied when the quorum is out of reach, and the reason says so."""
    machine = ApprovalMachine(["a", "b", "c"], need=2, veto=False)
    assert machine.deny(0, "no") is None
    decision = machine.abstain(1, "left")
    assert decision is not None
    assert (decision.allowed, decision.how, decision.by) == (False, "unreachable", "b")
    assert decision.reason == "2 of 3 must approve and 1 still could (a: no; b: left)"


@pytest.mark.parametrize("allow", [True, False])
def test_time_decides_what_nobody_did(allow) -> None:
    """As the policy says."""
    machine = ApprovalMachine(["a"], need=1, veto=True)
    assert machine.expire(allow=allow).allowed is allow
    assert machine.approve(0) is None
    assert "expired" in repr(machine)


@pytest.mark.parametrize(("names", "need"), [([], 1), (["a"], 0), (["a"], 2)])
def test_a_need_that_cannot_be_met_is_refused(names, need) -> None:
    """At the edge."""
    with pytest.raises(ValueError, match="cannot approve"):
        ApprovalMachine(names, need=need, veto=True)


votes = st.tuples(st.integers(0, 4), st.sampled_from(["yes", "no", "absent"]))


@given(size=st.integers(1, 5), need=st.integers(1, 5), veto=st.booleans(), said=st.lists(votes, max_size=12))
def test_it_is_decided_exactly_when_the_rule_says(size, need, veto, said) -> None:
    """Against the rule itself, over the first word of each."""
    need = min(need, size)
    machine = ApprovalMachine([str(number) for number in range(size)], need=need, veto=veto)
    words: dict[int, str] = {}
    expected: bool | None = None
    for voter, vote in said:
        voter %= size
        was_open = machine.decision is None
        act = {
            "yes": machine.approve,
            "no": lambda voter: machine.deny(voter, "no"),
            "absent": lambda voter: machine.abstain(voter, "gone"),
        }[vote]
        decision = act(voter)
        if expected is None:
            words.setdefault(voter, vote)
            yes = list(words.values()).count("yes")
            if yes >= need:
                expected = True
            elif (veto and "no" in words.values()) or yes + size - len(words) < need:
                expected = False
        assert (None if machine.decision is None else machine.decision.allowed) == expected
        assert (decision is not None) == (was_open and expected is not None)
    tally = machine.tally()
    assert len(tally.approved) + len(tally.denied) + len(tally.absent) + len(tally.unanswered) == size
    assert len(tally.approved) == list(words.values()).count("yes")
