"""Feed results: typed, never an exception, and written as they are read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_swarm.frames.pool import (
    Accepted,
    Cancelled,
    Completed,
    Failed,
    Paused,
    Query,
    Unknown,
    feed_value,
    parse_feed,
)

from .strategies import opaque

few = settings(deadline=None, database=None, max_examples=60)
queries = st.builds(
    Query,
    st.text(),
    st.text(),
    st.none() | st.text(),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.booleans(),
)
results = st.one_of(
    st.builds(Accepted, st.integers(0, 2**64 - 1)),
    st.builds(Paused, st.lists(queries, max_size=3)),
    st.builds(Completed, opaque, opaque),
    st.builds(Failed, st.text(), opaque, opaque),
    st.builds(Cancelled, opaque),
)


@few
@given(results)
def test_a_feed_result_comes_back(result):
    """parse_feed is the inverse of feed_value."""
    assert parse_feed(feed_value(result)) == result


@few
@given(opaque | st.dictionaries(st.sampled_from(["Accepted", "Paused", "Finished"]), opaque, min_size=1))
def test_parse_feed_never_raises(value):
    """What it does not know is kept as it came."""
    result = parse_feed(value)

    assert not isinstance(result, Unknown) or result.value is value


@pytest.mark.parametrize(
    ("wire", "result"),
    [
        ({"Accepted": {"remaining": 2}}, Accepted(2)),
        (
            {"Paused": {"queries": [{"id": "q-0", "prompt": "p", "system": None, "max_tokens": 7}]}},
            Paused([Query("q-0", "p", None, 7)]),
        ),
        ({"Paused": {"queries": [{"prompt": "p"}]}}, Paused([Query("q-0", "p", None, 1024)])),
        (
            {"Paused": {"queries": [{"id": "f-1-2", "prompt": "p", "grounded": True, "x": 1}]}},
            Paused([Query("f-1-2", "p", grounded=True)]),
        ),
        (
            {"Finished": {"state": {"Completed": {"result": None}}, "metrics": {"auto": {}}}},
            Completed(None, {"auto": {}}),
        ),
        ({"Finished": {"state": {"Failed": {"error": "e"}}, "metrics": None}}, Failed("e")),
        (
            {"Finished": {"state": {"Failed": {"error": "e", "exception": {"type": "T"}}}}},
            Failed("e", exception={"type": "T"}),
        ),
        ({"Finished": {"state": "Cancelled", "metrics": 1}}, Cancelled(1)),
    ],
)
def test_the_shapes_of_the_contract(wire, result):
    """C2.3, with the defaults that a client puts for a missing id and max_tokens (C4)."""
    assert parse_feed(wire) == result


@pytest.mark.parametrize(
    "wire",
    [
        *(None, [], "Cancelled", {}, {"New": {}}, {"Accepted": {}}, {"Accepted": {"remaining": True}}),
        *({"Accepted": {"remaining": -1}}, {"Accepted": {"remaining": 1}, "Paused": {"queries": []}}),
        *({"Paused": {"queries": [1]}}, {"Paused": {"queries": [{"prompt": 1}]}}, {"Paused": []}),
        *({"Paused": {"queries": [{"prompt": "p", "max_tokens": 2**32}]}}, {"Finished": {"state": "Gone"}}),
        *({"Paused": {"queries": [{"prompt": "p", "id": 1}]}}, {"Finished": {"state": {"Completed": {}}}}),
        *({"Finished": {"state": {"Failed": {"error": 1}}}}, {"Finished": "Cancelled"}),
    ],
)
def test_another_shape_is_unknown(wire):
    """A client reports it as an error result; it is not a fault of the frame."""
    assert parse_feed(wire) == Unknown(wire)


def test_flags_are_written_only_when_true():
    """As the original does."""
    plain = {"id": "q", "prompt": "p", "system": None, "max_tokens": 1024}

    assert feed_value(Paused([Query("q", "p")])) == {"Paused": {"queries": [plain]}}
    assert feed_value(Paused([Query("q", "p", None, 1024, True, True)])) == {
        "Paused": {"queries": [{**plain, "grounded": True, "underspecified": True}]}
    }
