"""The chaos plan: a grammar, and a count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_swarm.jobs.codemod.chaos import KINDS, ChaosPlan, Strike, parse_chaos


def test_a_spec_is_its_strikes_in_order():
    """Kinds and shares; blanks around the commas and duplicates are fine."""
    strikes = parse_chaos("kill-worker@30%, drop-operator@50%,kill-child@70%,kill-worker@30%")

    assert [str(s) for s in strikes] == [
        "kill-worker@30%",
        "drop-operator@50%",
        "kill-child@70%",
        "kill-worker@30%",
    ]
    assert parse_chaos("") == ()


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("kill-worker", "not KIND@NN%"),
        ("kill-worker@30", "not KIND@NN%"),
        ("kill-worker@%", "not KIND@NN%"),
        ("kill-worker@-1%", "not KIND@NN%"),
        ("kill-worker@3.5%", "not KIND@NN%"),
        ("kill-worker@٣%", "not KIND@NN%"),
        ("kill-worker@30%,", "not KIND@NN%"),
        (",", "not KIND@NN%"),
        ("kill-worker@101%", "beyond 100%"),
        ("kill-parent@30%", "unknown kind"),
        (",".join(["kill-child@1%"] * 65), "at most 64"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec, part):
    """ValueError with a clear text."""
    with pytest.raises(ValueError, match=part):
        parse_chaos(spec)


def test_each_strike_falls_once_at_its_share():
    """Not a file earlier; and two at one share fall together."""
    plan = ChaosPlan(parse_chaos("kill-child@70%,kill-worker@30%,kill-worker@30%"))

    assert plan.due(29, 100) == []
    assert plan.due(30, 100) == ["kill-worker", "kill-worker"]
    assert plan.due(30, 100) == []
    assert [str(s) for s in plan.waiting] == ["kill-child@70%"]
    assert plan.due(100, 100) == ["kill-child"]
    assert plan.due(100, 100) == []


def test_a_jump_over_several_shares_lets_all_fall():
    """Few files make large steps."""
    plan = ChaosPlan(parse_chaos("kill-child@70%,kill-worker@30%"))

    assert plan.due(1, 1) == ["kill-worker", "kill-child"]


def test_nothing_falls_without_files():
    """There is no share of nothing; at 0 % it falls at once."""
    plan = ChaosPlan(parse_chaos("kill-child@0%"))

    assert plan.due(0, 0) == []
    assert plan.due(0, 5) == ["kill-child"]


@given(
    st.lists(st.builds(Strike, st.sampled_from(KINDS), st.integers(0, 100)), max_size=8),
    st.integers(1, 50),
)
def test_by_the_end_each_strike_fell_once_and_never_early(strikes: list[Strike], total: int):
    """Whatever the plan and the number of files."""
    plan, fallen = ChaosPlan(strikes), []
    for done in range(total + 1):
        left = plan.waiting
        fell = plan.due(done, total)
        assert all(s.percent * total <= done * 100 for s in left[: len(fell)])
        fallen += fell
    assert sorted(fallen) == sorted(s.kind for s in strikes)
