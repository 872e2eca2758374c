"""Each rule of what is not a frame, with the key that the error names."""

from __future__ import annotations

import json

import pytest

from trio_swarm import frames
from trio_swarm.errors import SwarmError
from trio_swarm.frames import FrameError, child, decode, encode, operator, pod, pool, record, structure
from trio_swarm.limits import MAX_DEPTH

BEFORE = {"type": "hook_before", "req_id": "r", "task_id": "t", "agent": "a", "attempt": 1}
TURN = {"event": "turn_start", "data": {"turn": 1}}
RECORD = {
    "agent_id": "c",
    "role": "r",
    "endpoint": "ws://127.0.0.1:1",
    "pid": 1,
    "started_at": "2026-06-22T08:00:00Z",
    "lease_expires_at": "2026-06-22T08:01:00Z",
}
SPEC = {"version": 1, "identity": {"child_id": "c"}, "executor": {"kind": "echo"}, "fabric_dir": "/f"}
GREETING = {"pod_name": "b", "cwd": "/", "provider": "p", "model": "m", "scope_summary": "", "tools": []}


def changed(wire, path, value):
    """*wire* with the value at the dotted *path* set, or removed for ``...``."""
    wire = json.loads(json.dumps(wire))
    *outer, last = path.split(".")
    place = wire
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(wire)


def refused(text, union):
    with pytest.raises(FrameError) as caught:
        decode(text, union)
    return caught.value


@pytest.mark.parametrize(
    ("union", "wire", "path", "value"),
    [
        ("ServerMsg", BEFORE, "req_id", ...),
        ("ServerMsg", BEFORE, "req_id", None),
        ("ServerMsg", BEFORE, "req_id", 7),
        ("ServerMsg", BEFORE, "req_id", ["r"]),
        ("ServerMsg", BEFORE, "attempt", 1.5),
        ("ServerMsg", BEFORE, "attempt", 1.0),
        ("ServerMsg", BEFORE, "attempt", -1),
        ("ServerMsg", BEFORE, "attempt", True),
        ("ServerMsg", BEFORE, "attempt", "1"),
        ("ServerMsg", BEFORE, "attempt", None),
        ("ServerMsg", BEFORE, "attempt", 2**32),
        ("ServerMsg", BEFORE, "parent_req_id", 1),
        ("ServerMsg", BEFORE, "deadline_ms", -1),
        ("ServerMsg", BEFORE, "deadline_ms", 2**64),
        ("ServerMsg", BEFORE, "deadline_ms", 1.5),
        ("ServerMsg", BEFORE, "type", 1),
        ("ServerMsg", BEFORE, "type", None),
        ("ServerMsg", BEFORE, "type", ["ask"]),
        ("ServerMsg", BEFORE, "type", {}),
        ("ServerMsg", BEFORE, "type", ...),
        ("ClientMsg", {"type": "hook_ack", "req_id": "r", "ok": True}, "ok", "yes"),
        ("ClientMsg", {"type": "hook_ack", "req_id": "r", "ok": True}, "ok", 1),
        ("ClientMsg", {"type": "hook_ack", "req_id": "r", "ok": True}, "ok", None),
        ("ClientMsg", {"type": "spawn_ack", "req_id": "r"}, "ok", None),
        ("ClientMsg", {"type": "spawn_ack", "req_id": "r"}, "error", False),
        ("ClientMsg", {"type": "answer", "req_id": "r", "value": 1}, "value", ...),
        ("ParentFrame", {"kind": "run", "assignment": "x"}, "messages", None),
        ("ParentFrame", {"kind": "run", "assignment": "x"}, "messages", {}),
        ("ParentFrame", {"kind": "run", "assignment": "x"}, "messages", "abc"),
        ("ChildFrame", {"kind": "terminal", "status": "completed"}, "transcript", None),
        ("ChildFrame", {"kind": "terminal", "status": "completed"}, "status", "Completed"),
        ("ChildFrame", {"kind": "terminal", "status": "completed"}, "status", ["completed"]),
        ("PodMethod", {"method": "run", "params": {"input": "x"}}, "params.input", ...),
        ("PodMethod", {"method": "run", "params": {"input": "x"}}, "params.input", 1),
        ("PodMethod", {"method": "run", "params": {"input": "x"}}, "params", ...),
        ("PodMethod", {"method": "run", "params": {"input": "x"}}, "params", None),
        ("PodMethod", {"method": "run", "params": {"input": "x"}}, "params", []),
        ("PodMethod", {"method": "resume"}, "deadline_ms", "soon"),
        ("PodEvent", TURN, "data.turn", 2**64),
        ("PodEvent", TURN, "data.turn", 0.0),
        ("PodEvent", {"event": "usage", "data": {}}, "data.input_tokens", -1),
        ("PodEvent", {"event": "history", "data": {"items": [], "greeting": GREETING}}, "data.items", {}),
        (
            "PodEvent",
            {"event": "history", "data": {"items": [], "greeting": GREETING}},
            "data.greeting.cwd",
            1,
        ),
        ("PoolRequest", {"op": "continue", "sid": "s", "response": "x"}, "usage", {"prompt_tokens": -1}),
        ("PoolRequest", {"op": "status"}, "include_history", None),
        ("PoolRequest", {"op": "run", "code": "x", "lib_paths": []}, "lib_paths", None),
        ("PoolResponse", {"ok": True, "data": {"kind": "shutdown"}}, "ok", 1),
        ("PoolResponse", {"ok": True, "data": {"kind": "shutdown"}}, "ok", ...),
        ("PoolResponse", {"ok": True, "data": {"kind": "shutdown"}}, "data", None),
        ("PoolResponse", {"ok": True, "data": {"kind": "shutdown"}}, "data", []),
        ("PoolResponse", {"ok": True, "data": {"kind": "shutdown"}}, "data.kind", ...),
        ("PoolResponse", {"ok": True, "data": {"kind": "shutdown"}}, "data.kind", 5),
        ("PoolResponse", {"ok": True, "data": {"kind": "shutdown"}}, "error", 5),
        ("PoolResponse", {"ok": False, "error": "x"}, "error", 5),
        ("AgentRecord", RECORD, "pid", 2**32),
        ("AgentRecord", RECORD, "version", None),
        ("AgentRecord", RECORD, "labels", "gpu"),
        ("ProvisionSpec", SPEC, "version", ...),
        ("ProvisionSpec", SPEC, "identity.child_id", ...),
        ("ProvisionSpec", SPEC, "identity.depth", -1),
        ("ProvisionSpec", SPEC, "limits", None),
        ("ProvisionSpec", SPEC, "reusable", "false"),
        ("ProvisionSpec", SPEC, "capabilities", {"bypass": 1}),
    ],
)
def test_a_wrong_or_missing_value_is_refused_by_its_key(union, wire, path, value):
    """Exact types and ranges, nothing is coerced; the error says which key it is."""
    error = refused(changed(wire, path, value), getattr(frames, union))

    assert error.key == path or error.key.startswith(f"{path}.")
    assert error.unknown_tag is None
    assert error.reason
    assert str(error).startswith(error.key)


@pytest.mark.parametrize(
    ("union", "wire", "key"),
    [
        ("ChildFrame", {"kind": "event_batch", "batch": {"execution_epoch": 1}}, "batch.first_seq"),
        ("AgentRecord", {**RECORD, "labels": ["a", None]}, "labels[1]"),
        ("PoolRequest", {"op": "run", "code": "", "lib_paths": [1]}, "lib_paths[0]"),
        (
            "ProvisionSpec",
            {**SPEC, "secrets": {"provider_credentials": [{"provider": "p", "api_key": 1}]}},
            "secrets.provider_credentials[0].api_key",
        ),
        ("ProvisionSpec", {**SPEC, "executor": {"kind": "cli_adapter", "command": 5}}, "executor.command"),
    ],
)
def test_the_key_is_a_path_from_the_top(union, wire, key):
    """Through objects with dots, through arrays with indices."""
    assert refused(json.dumps(wire), getattr(frames, union)).key == key


@pytest.mark.parametrize(
    ("union", "wire", "key", "tag"),
    [
        ("ServerMsg", {"type": "nope"}, "type", "nope"),
        ("ClientMsg", {"type": "ask", "req_id": 7}, "type", "ask"),
        ("ParentFrame", {"kind": "session_message", "delivery": {}}, "kind", "session_message"),
        ("PodMethod", {"method": "pause"}, "method", "pause"),
        ("PodEvent", {"event": "snapshot", "data": {}}, "event", "snapshot"),
        ("PoolRequest", {"op": ""}, "op", ""),
        ("PoolResponse", {"ok": True, "data": {"kind": "failure"}}, "data.kind", "failure"),
    ],
)
def test_an_unknown_tag_is_told_apart(union, wire, key, tag):
    """A reader that tolerates newer peers needs to know that only the tag is unknown."""
    error = refused(json.dumps(wire), getattr(frames, union))

    assert (error.key, error.unknown_tag) == (key, tag)


def test_an_unknown_tag_further_in_is_a_malformed_frame():
    """A choice within a frame is not a frame from the future."""
    error = refused(changed(SPEC, "executor.kind", "claude_code"), frames.ProvisionSpec)

    assert (error.key, error.unknown_tag) == ("executor.kind", None)


def test_a_huge_unknown_tag_is_cut():
    """It goes into messages and logs."""
    error = refused(json.dumps({"type": "x" * 10**6}), frames.ClientMsg)

    assert len(str(error)) < 200
    assert error.unknown_tag is not None
    assert len(error.unknown_tag) < 200


@pytest.mark.parametrize("name", ["ServerMsg", "PodEvent", "PoolResponse", "AgentRecord"])
@pytest.mark.parametrize("text", ["[]", '["ask"]', "null", "true", "1", "1.5", '"ask"', '[{"type":"ask"}]'])
def test_only_an_object_is_a_frame(name, text):
    """Also not the array form that serde accepts for tagged enums."""
    error = refused(text, getattr(frames, name))

    assert (error.key, error.unknown_tag) == ("", None)


@pytest.mark.parametrize(
    ("union", "text", "key"),
    [
        ("ClientMsg", '{"type":"answer","req_id":"a","req_id":"a","value":1}', "req_id"),
        ("ClientMsg", '{"type":"answer","req_id":"a","value":1,"value":1}', "value"),
        ("ClientMsg", '{"type":"answer","req_id":"a","value":1,"type":"answer"}', "type"),
        ("ClientMsg", '{"type":"answer","req_id":"a","value":1,"\\u0074ype":"answer"}', "type"),
        ("PodEvent", '{"event":"turn_start","data":{"turn":1,"turn":1}}', "data.turn"),
        ("PodEvent", '{"event":"turn_start","data":{"turn":1},"data":{"turn":1}}', "data"),
        ("PodMethod", '{"method":"resume","deadline_ms":1,"deadline_ms":1}', "deadline_ms"),
        ("PoolResponse", '{"ok":true,"ok":true,"data":{"kind":"shutdown"}}', "ok"),
        ("PoolResponse", '{"ok":true,"data":{"kind":"shutdown","kind":"shutdown"}}', "data.kind"),
        ("PoolResponse", '{"ok":false,"error":"x","error":"x"}', "error"),
        ("ChildFrame", '{"kind":"event","event":1,"event":1}', "event"),
        (
            "ProvisionSpec",
            json.dumps(SPEC).replace('"child_id": "c"', '"child_id":"c","child_id":"c"'),
            "identity.child_id",
        ),
    ],
)
def test_a_known_key_stands_once(union, text, key):
    """In the frame's own objects, however deep, a known key twice is a fault."""
    error = refused(text, getattr(frames, union))

    assert (error.key, error.reason) == (key, "stands twice")


def test_a_known_key_twice_in_a_history_item_is_not_tolerated():
    """An item that is unknown is kept; one that contradicts itself refuses the frame."""
    item = '{"type":"reasoning","text":"a","text":"b"}'
    text = f'{{"event":"history","data":{{"items":[{item}],"greeting":{json.dumps(GREETING)}}}}}'

    assert refused(text, frames.PodEvent).key == "data.items[0].text"


def test_a_key_twice_that_nobody_knows_is_ignored_and_in_a_payload_the_last_one_holds():
    """As serde does it: the originals accept these, and a refusal would leave a peer waiting."""
    text = '{"x":1,"x":2,"type":"answer","req_id":"r","value":{"a":1,"b":[{"c":1,"c":2}],"a":{"d":3}}}'
    value = decode(text, frames.ClientMsg).value

    assert value == {"a": {"d": 3}, "b": [{"c": 2}]}
    assert type(value) is dict
    assert type(value["b"][0]) is dict


def test_a_key_twice_does_not_hide_another_fault():
    """The document is still checked in full."""
    assert refused('{"x":1,"x":2,"type":"answer","req_id":7,"value":1}', frames.ClientMsg).key == "req_id"
    assert refused('{"x":1,"x":2,"type":"answer","req_id":7,"value":1e999}', frames.ClientMsg).key == ""


def test_unknown_keys_are_ignored_in_the_frame_and_kept_in_a_payload():
    """Also those that later versions of the peers are known to send."""
    run = decode(
        '{"kind":"run","assignment":"x","execution_epoch":0,"secrets":{"codex_provider_token":"t"},'
        '"messages":[{"role":"user","content":"y","x_keep":{"a":[1]}}]}',
        frames.ParentFrame,
    )

    assert run == child.Run("x", messages=({"role": "user", "content": "y", "x_keep": {"a": [1]}},))
    assert decode('{"method":"cancel","params":{"x":1}}', frames.PodMethod) == pod.Cancel()


@pytest.mark.parametrize(
    ("frame", "key"),
    [
        (operator.HookBefore("r", "t", "a", -1), "attempt"),
        (operator.HookBefore("r", "t", "a", True), "attempt"),
        (operator.HookBefore("r", "t", "a", 2**32), "attempt"),
        (operator.HookBefore(7, "t", "a", 1), "req_id"),
        (operator.HookAck("r", None), "ok"),
        (operator.Ask("r", "t", 1, deadline_ms=-5), "deadline_ms"),
        (operator.Spawn("r", "t", "a", 1, "c", "d", worker="w"), "worker"),
        (operator.Spawn("r", "t", "a", 1, "c", "d", worker=operator.Worker("v", [1])), "worker.tools[0]"),
        (child.Terminal("done"), "status"),
        (pod.TurnStart(-1), "data.turn"),
        (pod.Error("weird", "m"), "data.code"),
        (pod.History([None], pod.Greeting("b", "/", "p", "m", "", [])), "data.items[0]"),
        (pool.Run("x", ["/a", b"/b"]), "lib_paths[1]"),
        (pool.HandshakeOk(None), "data.version"),
    ],
)
def test_encode_refuses_what_decode_would(frame, key):
    """A frame that a peer would drop as malformed never leaves: its request would hang."""
    with pytest.raises(FrameError) as caught:
        encode(frame)

    assert caught.value.key == key


class Hostile(dict):
    """A payload whose own code fails."""

    def values(self):
        raise ZeroDivisionError("1/0")


def cycle():
    value: list[object] = []
    value.append([value, value])
    return value


def deep(levels):
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "payload",
    [
        float("nan"),
        [float("inf")],
        {"a": -float("inf")},
        {1, 2},
        {"a": {3}},
        {1: "a"},
        {"a": [{None: 1}]},
        {True: 1},
        {b"a": 1},
        {("a", "b"): 1},
        b"bytes",
        object(),
        "\ud800",
        {"\udfff": 1},
        ["a\udc00b"],
        10**5000,
        1j,
        Hostile(a=1),
        cycle(),
        deep(5000),
        deep(MAX_DEPTH),
        range(3),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_encode_refuses_a_payload_that_is_not_json(payload):
    """With a FrameError, whatever the payload's own methods raise."""
    with pytest.raises(FrameError):
        encode(operator.Answer("r", payload))
    with pytest.raises(FrameError):
        encode(operator.SpawnAck("r", [payload]))


def test_encode_takes_what_json_can_say():
    """Tuples and subclasses of the JSON types are written as what they are."""

    class Text(str):
        pass

    class Table(dict):
        pass

    payload = (Text("a"), Table({Text("k"): (1, 2)}), deep(MAX_DEPTH - 3))
    answer = decode(encode(operator.Answer("r", payload)), frames.ClientMsg)

    assert answer == operator.Answer("r", ["a", {"k": [1, 2]}, deep(MAX_DEPTH - 3)])


def test_the_callers_own_mistakes_are_type_errors():
    """They are no frame errors: no peer is at fault."""
    for data in (None, 5, [], {"type": "ask"}, memoryview(b"{}")):
        with pytest.raises(TypeError):
            decode(data, frames.ClientMsg)
    for frame in (None, {}, "ask", operator.Ask):
        with pytest.raises(TypeError):
            encode(frame)
    with pytest.raises(TypeError):
        child.Run("x", messages="abc")
    with pytest.raises(TypeError):
        decode("{}", record.AgentRecord | record.ProvisionSpec)


def test_a_frame_error_is_a_value_error_and_one_of_ours():
    """Both trees are useful to catch."""
    error = refused("{", frames.ClientMsg)

    assert isinstance(error, ValueError)
    assert isinstance(error, SwarmError)


def test_structure_refuses_like_decode():
    """A value that is parsed already is checked the same way."""
    with pytest.raises(FrameError) as caught:
        structure({"target": "/a", "permission": "all"}, pod.ScopeRule)

    assert caught.value.key == "permission"
    assert structure({"target": "/a", "permission": "read"}, pod.ScopeRule) == pod.ScopeRule(
        "/a", "read", True
    )
