"""Large documents: scanned in another way, with the same answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_swarm import frames
from trio_swarm.frames import FrameError, decode, encode
from trio_swarm.frames._json import parse, parse_last_wins
from trio_swarm.frames._sparse import SPARSE_FROM, outline_of, parse_sparse
from trio_swarm.frames.operator import Answer

from .strategies import UNIONS, of_union, opaque

few = settings(deadline=None, database=None, max_examples=80)
OUTLINE = {"data": {"usage": {}}, "batch": {}}
PADDING = json.dumps(["[{x}]" * 10] * 100)


def test_the_outlines_are_the_frames_own_objects():
    """None where arrays of own objects make a look at every key necessary."""
    assert {name: outline_of(union) for name, union in UNIONS.items()} == {
        "ServerMsg": {"worker": {}},
        "ClientMsg": {},
        "ParentFrame": {},
        "ChildFrame": {"batch": {}},
        "PodMethod": {"params": {}},
        "PodEvent": None,
        "PoolRequest": {"usage": {}},
        "PoolResponse": {"data": {}},
        "AgentRecord": {},
        "ProvisionSpec": None,
    }


def answer_of(parser, *arguments):
    try:
        return parser(*arguments)
    except ValueError as error:
        return type(error)


@few
@given(
    opaque | st.dictionaries(st.sampled_from(["data", "usage", "batch", "x"]), opaque),
    st.sampled_from([None, 1]),
)
def test_both_parsers_read_the_same(value, indent):
    """Any JSON, with and without whitespace."""
    text = json.dumps(value, indent=indent)

    assert parse_sparse(text, OUTLINE) == parse(text) == value


@few
@given(st.text(alphabet=st.sampled_from('{}[]:,"\\ \n0a'), max_size=12), st.integers(0, 40))
def test_both_parsers_refuse_the_same(stuffing, place):
    """Text that is nearly JSON, also cut short."""
    text = '{"data":{"usage":{"a":1},"b":[]},"x":"y"}'
    for wire in (text[:place] + stuffing + text[place:], text[:place] + stuffing, text[:place]):
        whole, sparse = answer_of(parse, wire), answer_of(parse_sparse, wire, OUTLINE)
        refused = isinstance(whole, type) and isinstance(sparse, type)

        assert refused or whole == sparse or sparse == answer_of(parse_last_wins, wire)


@pytest.mark.parametrize(
    ("union", "text", "key"),
    [
        ("ClientMsg", '{"type":"answer","req_id":"a","value":PAD,"req_id":"a"}', "req_id"),
        ("ClientMsg", '{"type":"answer", "req_id" : "a", "value":PAD, "v\\u0061lue":1}', "value"),
        (
            "PoolResponse",
            '{"ok":true,"data":{"kind":"feed","session_id":"s","feed_result":PAD,"kind":"feed"}}',
            "data.kind",
        ),
        (
            "PoolResponse",
            '{"ok":true,"data":{"kind":"feed","session_id":"s","feed_result":PAD},"data":1}',
            "data",
        ),
        (
            "ChildFrame",
            '{"kind":"event_batch","batch":{"execution_epoch":1,"first_seq":1,"last_seq":1,"qos":"durable",'
            '"qos":"durable","events":PAD}}',
            "batch.qos",
        ),
        ("PodEvent", '{"event":"text_done","data":{"text":"a","text":"b","x":PAD}}', "data.text"),
        ("ClientMsg", '{"type":"answer","req_id":7,"value":PAD}', "req_id"),
        ("ClientMsg", '{"type":"answer","req_id":"a","value":PAD}PAD', ""),
    ],
)
def test_a_large_frame_is_checked_like_a_small_one(union, text, key):
    """Doubled keys in all its own objects, types, and what follows the document."""
    wire = text.replace("PAD", PADDING)
    assert len(wire) > SPARSE_FROM

    with pytest.raises(FrameError) as caught:
        decode(wire, getattr(frames, union))

    assert caught.value.key == key


def test_in_a_large_payload_too_the_last_of_a_doubled_key_holds():
    """Whatever its size, an opaque payload is read as the originals read it."""
    wire = '{"x":1,"x":2,"type":"answer","req_id":"a","value":[{"a":1,"a":2},PAD]}'.replace("PAD", PADDING)

    for text in (wire, wire.replace('"x":1,', "")):
        assert decode(text, frames.ClientMsg) == Answer("a", [{"a": 2}, json.loads(PADDING)])


def test_an_object_of_very_many_keys_is_read_too():
    """It is left to the C scanner, so that it costs no more there than anywhere else."""
    many = {f"k{number}": number for number in range(5000)}
    wire = {"type": "answer", "req_id": "a", "value": many, **many}

    assert decode(json.dumps(wire), frames.ClientMsg) == Answer("a", many)
    with pytest.raises(FrameError, match="twice"):
        decode(json.dumps(wire)[:-1] + ',"req_id":"a"}', frames.ClientMsg)


@pytest.mark.parametrize("name", UNIONS)
def test_frames_with_much_beside_them_come_back(name):
    """Every union, in documents that are large by unknown keys."""

    @settings(few, max_examples=20)
    @given(of_union(UNIONS[name]))
    def comes_back(frame):
        wire = f'{{"x_new":{PADDING},{encode(frame)[1:]}'

        assert decode(wire, UNIONS[name]) == frame

    comes_back()
