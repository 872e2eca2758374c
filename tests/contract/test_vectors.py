"""Every wire vector of the four contracts, in both directions."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from trio_swarm import frames
from trio_swarm.frames import FrameError, decode, encode

HERE = Path(__file__).parent / "vectors"
VECTORS = [
    pytest.param(json.loads(line), id=f"{path.stem}-{number}")
    for path in sorted(HERE.glob("*.jsonl"))
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
]
INSTANTS = ("started_at", "lease_expires_at")


def instants(value):
    """A record's timestamps compare as instants."""
    if not isinstance(value, dict):
        return value
    return {key: datetime.fromisoformat(item) if key in INSTANTS else item for key, item in value.items()}


def test_all_families_have_vectors():
    """The data is there: a wrong path would make every test below vanish."""
    assert {path.stem for path in HERE.glob("*.jsonl")} == {"operator", "child", "pod", "pool"}
    assert len(VECTORS) > 90


@pytest.mark.parametrize("vector", VECTORS)
def test_vector(vector):
    """Wire to frame to canonical object; or a FrameError where the contract says so."""
    union = getattr(frames, vector["union"])

    if vector["canonical"] is None:
        for wire in (vector["wire"], vector["wire"].encode()):
            with pytest.raises(FrameError):
                decode(wire, union)
        return
    frame = decode(vector["wire"], union)

    assert decode(vector["wire"].encode(), union) == frame
    assert (frame.tag or None) == vector["frame"]
    assert instants(json.loads(encode(frame))) == instants(vector["canonical"])
    assert decode(encode(frame), union) == frame


@pytest.mark.parametrize("vector", [v for v in VECTORS if v.values[0]["canonical"] is not None])
def test_key_order_whitespace_and_unknown_keys_do_not_matter(vector):
    """The tag may stand anywhere, and keys that nobody knows are ignored."""
    union = getattr(frames, vector["union"])
    wire = json.loads(vector["wire"])
    other = json.dumps({"x_new": [1, {"a": None}], **dict(reversed(wire.items()))}, indent=3)

    assert decode("\r\n\t " + other + " \n", union) == decode(vector["wire"], union)
