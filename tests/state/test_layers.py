"""The order of layers: every permutation, and every mistake (operators contract, 6.3)."""

from __future__ import annotations

from itertools import permutations

import pytest

from trio_swarm._state.layers import DEFAULT_LAYERS, plan_layers

D, S, M = "operator_delegate", "senior_escalation", "main_ai"

PLANS = {
    (): ("execute",),
    (D,): ("execute",),
    (S,): ("execute", "ask"),
    (M,): ("before", "execute", "after"),
    (D, S): ("execute", "ask"),
    (D, M): ("before", "execute", "after"),
    (S, M): ("before", "execute", "ask", "after"),
    (M, S): ("before", "execute", "after", "ask"),
    (D, S, M): ("before", "execute", "ask", "after"),
    (D, M, S): ("before", "execute", "after", "ask"),
}
EVERY = [order for size in range(4) for order in permutations((D, S, M), size)]


@pytest.mark.parametrize("order", EVERY, ids="-".join)
def test_every_order_is_planned_or_refused(order) -> None:
    """Of the sixteen orders, ten have a plan; the other six hide a layer behind operator_delegate."""
    if order not in PLANS:
        with pytest.raises(ValueError, match="operator_delegate must be first") as caught:
            plan_layers(order)
        assert f"{order[0]} would never run" in str(caught.value)
        right = str(caught.value).rpartition("write ")[2].split(", ")
        assert sorted(right) == sorted(order)
        assert plan_layers(right).delegated
        return
    plan = plan_layers(order)

    assert plan.calls == PLANS[order]
    assert plan.layers == order
    assert plan.before == (M in order)
    assert plan.ask == (S in order)
    assert plan.delegated == (D in order)


def test_after_sees_what_its_place_lets_it_see() -> None:
    """main_ai outside of senior_escalation is told the override; inside of it, the value before."""
    assert plan_layers((D, S, M)).sees_override
    assert not plan_layers((D, M, S)).sees_override
    assert not plan_layers((D, M)).sees_override
    assert plan_layers(DEFAULT_LAYERS).sees_override


@pytest.mark.parametrize("order", [("main_ia",), (D, "MAIN_AI"), ("",), (None,)])
def test_an_unknown_layer_is_an_error_that_lists_the_known(order) -> None:
    """The original skips it, and the gate is gone."""
    with pytest.raises(
        ValueError, match="is no layer; there are operator_delegate, senior_escalation, main_ai"
    ):
        plan_layers(order)


@pytest.mark.parametrize("layer", [D, S, M])
def test_a_layer_there_twice_is_an_error(layer) -> None:
    """It would ask, or gate, twice."""
    with pytest.raises(ValueError, match=f"{layer} is there more than once"):
        plan_layers((layer, layer))


def test_one_name_instead_of_a_list_is_an_error() -> None:
    """A string is a list of letters to Python."""
    with pytest.raises(ValueError, match="expected a list of names"):
        plan_layers("main_ai")
