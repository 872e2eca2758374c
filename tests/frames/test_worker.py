"""The bodies of the worker routes: contract 1.5, and nothing more lenient."""

from __future__ import annotations

import json

import pytest

from trio_swarm.errors import FrameError
from trio_swarm.frames import decode, encode
from trio_swarm.frames.worker import (
    Artifact,
    Content,
    EmitBody,
    FileRef,
    FinalEvent,
    Inline,
    NamedEmitBody,
    OutputEvent,
    OutputRecord,
    Partial,
    Progress,
    ResultBody,
    SessionBody,
    SystemRef,
    WorkerPayload,
)

EVENTS = [
    (Progress("s", None), {"type": "progress", "stage": "s", "note": None}),
    (Partial(Inline([1])), {"type": "partial", "chunk": {"kind": "inline", "value": [1]}}),
    (
        Artifact("n", FileRef("/x", "text/csv", 5)),
        {
            "type": "artifact",
            "name": "n",
            "content": {"kind": "file_ref", "path": "/x", "mime": "text/csv", "size_hint": 5},
        },
    ),
    (
        FinalEvent(FileRef("/x"), False),
        {
            "type": "final",
            "content": {"kind": "file_ref", "path": "/x", "mime": None, "size_hint": None},
            "ok": False,
        },
    ),
]


@pytest.mark.parametrize(("event", "wire"), EVENTS)
def test_the_event_union(event, wire) -> None:
    """On the wire as the contract says, and back."""
    assert json.loads(encode(event)) == wire
    assert decode(json.dumps(wire), OutputEvent) == event
    record = OutputRecord("out-1", "ST-1", 1, "p", event, ["out-0"])
    assert decode(encode(record), OutputRecord) == record
    body = {"task_id": "ST-1", "attempt": 1, "event": wire}
    assert decode(json.dumps(body), NamedEmitBody) == NamedEmitBody("ST-1", 1, event)
    body["producer_agent"] = "p"
    assert decode(json.dumps(body), EmitBody) == EmitBody("ST-1", 1, "p", event)


def test_keys_that_may_be_absent() -> None:
    assert decode('{"kind": "file_ref", "path": "/x"}', Content) == FileRef("/x")
    assert decode('{"type": "progress", "stage": "s"}', OutputEvent) == Progress("s")
    assert decode('{"task_id": "t", "value": null}', ResultBody) == ResultBody("t", None, True, None)
    assert json.loads(encode(WorkerPayload("t", 1, "a", "p"))) == {
        "task_id": "t",
        "attempt": 1,
        "agent": "a",
        "prompt": "p",
    }
    body = EmitBody("t", 1, "p", Progress("s"))
    assert "public" not in json.loads(encode(body))


@pytest.mark.parametrize(
    ("shape", "wire", "key"),
    [
        (OutputEvent, {"type": "unknown"}, "type"),
        (OutputEvent, {"stage": "s"}, "type"),
        (OutputEvent, {"type": "progress", "stage": 1}, "stage"),
        (OutputEvent, {"type": "final", "content": {"kind": "inline", "value": 1}}, "ok"),
        (OutputEvent, {"type": "final", "content": {"kind": "inline"}, "ok": True}, "content.value"),
        (OutputEvent, {"type": "partial", "chunk": {"kind": "other"}}, "chunk.kind"),
        (OutputEvent, {"type": "partial", "chunk": "text"}, "chunk"),
        (Content, {"kind": "file_ref", "path": "/x", "size_hint": -1}, "size_hint"),
        (ResultBody, {"task_id": "t"}, "value"),
        (ResultBody, {"task_id": "t", "value": 1, "ok": 1}, "ok"),
        (ResultBody, {"task_id": "t", "value": 1, "attempt": True}, "attempt"),
        (ResultBody, {"task_id": "t", "value": 1, "attempt": 2**32}, "attempt"),
        (NamedEmitBody, {"task_id": "t", "attempt": 1, "event": {"type": "x"}}, "event.type"),
        (SessionBody, {"agent_id": "a", "role": "worker"}, "ttl_secs"),
        (SystemRef, {"uri": "u", "sha256": "s", "size_bytes": 1, "mode": "ftp"}, "mode"),
    ],
)
def test_what_is_wrong_is_named(shape, wire, key) -> None:
    with pytest.raises(FrameError) as caught:
        decode(json.dumps(wire), shape)
    assert caught.value.key == key


def test_prompts_and_values_are_not_shown() -> None:
    """A repr may end in a log."""
    assert "secret" not in repr(WorkerPayload("t", 1, "a", "secret", "secret", None, {"a": "secret"}))
    assert "secret" not in repr(ResultBody("t", "secret"))


@pytest.mark.parametrize("refs", ["out-1", [1], {"a": 1}, None])
def test_parent_refs_are_a_list_of_strings(refs) -> None:
    body = {"task_id": "t", "attempt": 1, "event": EVENTS[0][1], "parent_refs": refs}
    with pytest.raises(FrameError):
        decode(json.dumps(body), NamedEmitBody)
