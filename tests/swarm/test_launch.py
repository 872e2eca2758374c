"""The request that starts a step: whatever JSON comes, one clear error or an order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trio_swarm.operators import LocalSeat
from trio_swarm.swarm.dispatch import Dispatcher
from trio_swarm.swarm.launch import Launch, LaunchError
from trio_swarm.swarm.steps import StepOrder
from trio_swarm.workers import TaskBoard

KEYS = (
    "agent", "prompt", "system", "operator", "operator_sid", "layers", "timeout_secs", "detach",
    "task_metadata", "attempts", "parent_task_id", "project_name_alias", "project_root", "work_dir",
)  # fmt: skip
IDS = ("kind", "id", "spawn_hook_id", "senior_bridge_id", "operator_backend_id", "per_agent_kinds")
WORDS = st.sampled_from(["op", "main_ai", "automate", "operator_delegate", "senior_escalation", "", "x"])
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=9) | WORDS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OPERATOR = st.dictionaries(st.sampled_from(IDS), JSON | WORDS | st.dictionaries(st.text(), WORDS), max_size=4)
VALUES = JSON | st.lists(WORDS, max_size=3) | OPERATOR
BODIES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6)
LIKELY = st.fixed_dictionaries({"agent": st.just("a"), "prompt": JSON, "operator_sid": st.just("op")})


class Desk:
    """One operator, and no server."""

    worker_url = None
    watched = False

    def __init__(self) -> None:
        class Everything:
            def execute(self, frame: Any) -> None: ...

            def ask(self, frame: Any) -> None: ...

            def before_spawn(self, frame: Any) -> None: ...

        self.seat = LocalSeat(Everything(), name="op", emit=lambda kind, data: None)

    def find_seat(self, name: str) -> LocalSeat | None:
        return self.seat if name == "op" else None


def a_dispatcher() -> Dispatcher:
    def quiet(kind: str, data: object) -> None: ...

    def no_spool() -> Any:
        raise AssertionError("nothing is written")

    return Dispatcher(TaskBoard(emit=quiet, spool=no_spool), Desk(), quiet)


DISPATCHER = a_dispatcher()


def outcome(body: Any) -> str:
    try:
        order = Launch.parse(body).order(DISPATCHER, None)
    except LaunchError as error:
        assert error.status in (400, 422)
        assert str(error)
        return "refused"
    except ValueError as error:
        assert str(error)
        return "refused"
    assert isinstance(order, StepOrder)
    return "ordered"


@given(BODIES | JSON)
def test_any_json_is_an_order_or_one_clear_error(body) -> None:
    """Nothing else comes out, whatever the shapes."""
    outcome(body)


@given(LIKELY, BODIES)
def test_any_change_of_a_good_request_too(good, changes) -> None:
    """The same from the other side: most of it is right."""
    outcome({**good, **changes})


@given(LIKELY)
def test_a_good_request_is_an_order(body) -> None:
    """So that the two above do not pass by refusing everything."""
    assert outcome(body) == "ordered"
