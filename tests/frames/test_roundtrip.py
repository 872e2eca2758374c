"""What is encoded is decoded again: every class, every field, given or not."""

from __future__ import annotations

import copy
import json
from typing import get_args

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_swarm.frames import decode, dump_json, encode, parse_json, structure, unstructure
from trio_swarm.frames.operator import Answer

from .strategies import CLASSES, UNIONS, of_class, of_union, opaque

few = settings(deadline=None, database=None, max_examples=15)


@pytest.mark.parametrize(
    "cls", CLASSES, ids=lambda cls: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
)
def test_every_class_comes_back_as_it_went(cls):
    """encode, decode gives an equal frame of the same class, on one line."""

    @few
    @given(of_class(cls))
    def comes_back(frame):
        text = encode(frame)

        assert len(text.splitlines()) == 1
        assert text.encode().count(b"\n") == 0
        assert type(decode(text, cls)) is cls
        assert decode(text, cls) == frame
        assert decode(text.encode(), cls) == frame
        assert structure(unstructure(frame), cls) == frame

    comes_back()


@pytest.mark.parametrize("name", UNIONS)
def test_every_union_finds_the_class_by_its_tag(name):
    """The class that was encoded is the class that comes back, whatever else is in the union."""

    @few
    @given(of_union(UNIONS[name]))
    def finds(frame):
        decoded = decode(encode(frame), UNIONS[name])

        assert decoded == frame
        assert type(decoded) is type(frame)
        if type(frame).tag:
            assert decoded.tag == frame.tag

    finds()


def test_tags_are_the_contracts():
    """The tags of each union, as the contracts list them."""
    tags = {name: sorted(cls.tag for cls in get_args(union)) for name, union in UNIONS.items()}

    assert tags == {
        "ServerMsg": ["ask", "hook_after", "hook_before", "receipt", "spawn", "withdraw"],
        "ClientMsg": ["answer", "hook_ack", "spawn_ack", "spawn_halt"],
        "ParentFrame": ["approval_reply", "cancel", "message", "run", "sub_agent_reply", "subagent_reply"],
        "ChildFrame": [
            "approval_request",
            "event",
            "event_batch",
            "sub_agent_request",
            "subagent_request",
            "terminal",
        ],
        "PodMethod": ["cancel", "get_history", "notify", "resume", "run", "shutdown"],
        "PodEvent": [
            "error",
            "history",
            "notification",
            "run_end",
            "shutdown",
            "text_delta",
            "text_done",
            "tool_call_args_delta",
            "tool_call_done",
            "tool_call_start",
            "tool_result",
            "turn_end",
            "turn_start",
            "usage",
        ],
        "PoolRequest": ["continue", "handshake", "run", "shutdown", "status"],
        "PoolResponse": ["failure", "feed", "handshake", "shutdown", "status"],
        "AgentRecord": [],
        "ProvisionSpec": [],
    }


@few
@given(st.one_of(*map(of_class, CLASSES)))
def test_classes_are_frozen_and_slotted(frame):
    """A frame is a value: nothing can be set on it."""
    assert not hasattr(frame, "__dict__")
    for name in ("anything", *attrs.fields_dict(type(frame))):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(frame, name, 1)


@few
@given(opaque)
def test_an_opaque_payload_is_neither_changed_nor_copied(payload):
    """cattrs does not walk it: the very object goes to the JSON encoder."""
    before = copy.deepcopy(payload)
    frame = Answer("r", payload)

    assert unstructure(frame)["value"] is payload
    assert structure(unstructure(frame), Answer).value is payload
    assert payload == before
    assert json.loads(encode(frame))["value"] == before


@few
@given(opaque)
def test_any_json_value_comes_back(value):
    """The strict parser and writer are each other's inverse."""
    assert parse_json(dump_json(value)) == value
    assert parse_json(json.dumps(value, indent=1)) == value


@few
@given(st.text(alphabet=st.sampled_from('\u2028\u2029\x85\n\r\x0b\x0c\x1c\x1d\x1e\\"é漢😀u2028')))
def test_no_line_break_of_any_kind_is_written_raw(text):
    """A reader that uses str.splitlines() sees one line too."""
    line = encode(Answer(text, {text: [text]}))

    assert line.splitlines() == [line]
    assert decode(line, Answer) == Answer(text, {text: [text]})
