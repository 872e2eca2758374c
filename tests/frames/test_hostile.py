"""Bytes in, frames or FrameError out, never anything else."""

from __future__ import annotations

import contextlib
import gc
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_swarm import frames
from trio_swarm.frames import FrameError, decode, encode, parse_json
from trio_swarm.limits import MAX_DEPTH

from .strategies import UNIONS, of_union, opaque

CORPUS = [
    json.loads(line)["wire"]
    for path in sorted((Path(__file__).parent.parent / "contract" / "vectors").glob("*.jsonl"))
    for line in path.read_text("utf-8").splitlines()
]
TOKENS = [
    *("{", "}", "[", "]", ":", ",", '"', "\\", "\\u", "\\ud800", "\x00", "\n", "\ufeff", "null", "NaN"),
    *("Infinity", "-", "1e999", "1.0", "9" * 400, '"type"', '"kind"', '"data":{', '"ok":true', "é", "\ud800"),
    *("[" * 40, "]" * 40, '{"a":' * 40),
]
ANSWER = '{"type":"answer","req_id":"x","value":%s}'
PADDINGS = ["", " " * 9000 + "{", '{"x":[' + "[{}]," * 300 + "0],", '{"x":"' + "[{" * 5000 + '",']
many = settings(deadline=None, database=None, max_examples=100)


def try_all(data):
    """Decode as every union; what is accepted can be written and is then the same again."""
    for union in UNIONS.values():
        try:
            frame = decode(data, union)
        except FrameError:
            continue
        assert decode(encode(frame), union) == frame


@many
@given(st.binary() | st.text(alphabet=st.characters(exclude_categories=())))
def test_arbitrary_bytes_and_text(data):
    """Also text that holds lone surrogates."""
    try_all(data)


@many
@given(opaque, st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "utf-32", "latin-1"]))
def test_arbitrary_json_in_any_encoding(value, encoding):
    """JSON that is no frame, and JSON that is not UTF-8."""
    try_all(json.dumps(value))
    try_all(json.dumps(value, ensure_ascii=False).encode(encoding, "replace"))


@st.composite
def mutations(draw):
    """A vector of the contracts, cut and stuffed with what breaks parsers."""
    text = draw(st.sampled_from(CORPUS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        stuffing = draw(st.sampled_from(["", text[start:end] * 2, *TOKENS]) | st.text(max_size=3))
        text = text[:start] + stuffing + text[end:]
    return text


@many
@given(mutations(), st.booleans(), st.sampled_from(PADDINGS))
def test_mutated_vectors(text, as_bytes, padding):
    """Nearly frames, small and large."""
    text = padding + text[1:] if padding else text
    try_all(text.encode("utf-8", "surrogatepass") if as_bytes else text)


@st.composite
def replacements(draw):
    """A frame with any one value in it replaced or removed."""
    wire = json.loads(encode(draw(st.one_of(*map(of_union, UNIONS.values())))))
    place, key = [wire], 0
    while isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if draw(st.booleans()) and isinstance(place, dict):
        del place[key]
    else:
        place[key] = draw(opaque)
    return json.dumps(wire)


@many
@given(replacements())
def test_frames_with_one_value_replaced(text):
    """Well-formed JSON, wrong in one place."""
    try_all(text)


@pytest.mark.parametrize("scalar", ["1.%s", '"%s"', "-0.%se5"])
def test_a_large_scalar_is_no_frame(scalar):
    """Whatever its size, only an object is one."""
    for length in (200, 300, 10_000):
        try_all(scalar % ("1" * length))
        with pytest.raises(FrameError):
            decode(scalar % ("1" * length), frames.ClientMsg)


def test_the_whole_corpus_as_every_union():
    """Each vector, whole and cut at every place, as each union."""
    for wire in CORPUS:
        try_all(wire)
    for end in range(len(CORPUS[0])):
        with pytest.raises(FrameError):
            decode(CORPUS[0][:end], frames.ServerMsg)


@pytest.mark.parametrize(
    "payload",
    [
        *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400 + ".0", "9" * 5000),
        *(
            '"\\ud800"',
            '"\\uDC00\\uD800"',
            '{"\\ud800":1}',
            '"\ud800"',
            '"\t"',
            '"\\x"',
            "'a'",
            "01",
            "+1",
            ".5",
        ),
        *("{1:2}", "[1,]", '{"a":1,}', "/**/1", "1 2", "1}", "nul", "", "\ufeff1", "1\x00", "\x0b1"),
    ],
)
def test_what_is_not_json_is_refused(payload):
    """What json.loads lets through or stumbles over, in payloads of all sizes."""
    for size in (1, 10, 3000):
        padding = json.dumps(["x" * 20] * size)
        with pytest.raises(FrameError):
            decode(ANSWER % f"[{padding},{payload}]", frames.ClientMsg)
        with pytest.raises(FrameError):
            parse_json(f"[{padding},{payload}]")


def nest(levels):
    return "[" * levels + '"[[{\\"{["' + "]" * levels


def test_a_payload_may_be_nested_as_deep_as_the_originals_read_it():
    """MAX_DEPTH levels with the frame's own, and not one more; brackets in strings do not count."""
    value = decode(ANSWER % nest(MAX_DEPTH - 1), frames.ClientMsg).value

    for _ in range(MAX_DEPTH - 1):
        (value,) = value
    assert value == '[[{"{['
    with pytest.raises(FrameError, match="nested deeper"):
        decode(ANSWER % nest(MAX_DEPTH), frames.ClientMsg)


@pytest.mark.parametrize("bomb", ["[", '{"a":', '[{"a":', "]", '{"type":'])
def test_bombs_of_brackets_are_refused(bomb):
    """A hundred thousand levels end neither the interpreter nor the reader."""
    try_all(bomb * 100_000)
    try_all(ANSWER % (bomb * 100_000))
    with pytest.raises(FrameError):
        decode(ANSWER % (bomb * 100_000), frames.ClientMsg)


@settings(deadline=None, database=None, max_examples=60)
@given(
    st.recursive(
        st.text('[]{}"\\a:,', max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text('[]"\\', max_size=2), inner, max_size=3)
        ),
        max_leaves=60,
    )
)
def test_the_depth_is_that_of_the_values(value):
    """The text is measured as a walk over the values would measure them."""

    def depth(inner):
        if isinstance(inner, dict):
            inner = list(inner.values())
        return 1 + max(map(depth, inner), default=0) if isinstance(inner, list) else 0

    room = MAX_DEPTH - max(depth(value), 2)
    wide = json.dumps([value, [[]] * MAX_DEPTH])[1:-1]

    assert parse_json("[" * room + wide + "]" * room) is not None
    with pytest.raises(FrameError, match="nested deeper"):
        parse_json("[" * (room + 1) + wide + "]" * (room + 1))


def test_surrogate_pairs_and_escapes_are_read():
    """Only a lone surrogate is refused."""
    assert decode(ANSWER % '"\\ud83d\\ude00 \\\\ud800 \\u00e9"', frames.ClientMsg).value == "😀 \\ud800 é"


def test_large_integers_and_small_floats_are_kept():
    """They are JSON; an opaque payload keeps them as they are."""
    digits = "9" * 4000

    assert decode(ANSWER % digits, frames.ClientMsg).value == int(digits)
    assert decode(ANSWER % "1e-999", frames.ClientMsg).value == 0.0
    assert decode(ANSWER % "1E+2", frames.ClientMsg).value == 100.0


def test_a_frame_error_does_not_quote_the_payload():
    """Secrets stand there."""
    spec = {"version": 1, "identity": {"child_id": "c"}, "executor": {"kind": "echo"}, "fabric_dir": "/f"}
    spec["secrets"] = {"provider_credentials": [{"provider": "p", "api_key": ["k-xyz"]}]}
    with pytest.raises(FrameError) as caught:
        decode(json.dumps(spec), frames.ProvisionSpec)

    assert "k-xyz" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_depth_is_measured_in_large_documents_of_every_kind():
    """Of few containers beside long strings, and of very many, with brackets in the strings."""
    text = '[]{}\\"' * 5000
    wide = ",".join(['["]"]'] * 5000)

    assert parse_json(f'["{text}",{nest(MAX_DEPTH - 1)},{wide}]')
    for value in (f'["{text}",{nest(MAX_DEPTH)}]', f'[{wide},{nest(MAX_DEPTH)},"{text}"]'):
        with pytest.raises(FrameError, match="nested deeper"):
            parse_json(value)
    assert parse_json(f'["{text}"]') == ['[]{}"' * 5000]
    with pytest.raises(FrameError):
        parse_json(f'[["{text}"')
    with pytest.raises(FrameError):
        parse_json('"' + text)
    with pytest.raises(FrameError):
        parse_json("5" * 10_000)
    assert parse_json(f'"{text}"') == '[]{}"' * 5000
    assert parse_json("1." + "5" * 10_000) < 2


@pytest.mark.parametrize("ending", ["]}", "]", "]]}"], ids=["good", "cut", "wrong"])
@pytest.mark.parametrize("collecting", [True, False])
def test_a_large_frame_is_parsed_without_the_collector(ending, collecting) -> None:
    """It would go through a million fresh arrays again and again; afterwards it is as it was."""
    text = '{"type":"answer","req_id":"x","value":[' + "[]," * 100_000 + "[]" + ending
    runs = []
    (gc.enable if collecting else gc.disable)()
    gc.callbacks.append(lambda phase, info: runs.append(phase))
    try:
        with contextlib.suppress(FrameError):
            decode(text, frames.ClientMsg)
        assert len(runs) < 40, "a few after it; else there are hundreds"
        assert gc.isenabled() is collecting
    finally:
        gc.callbacks.pop()
        gc.enable()
