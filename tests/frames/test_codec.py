"""What stands on the wire beyond the vectors, and what the package shows of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import attrs
import pytest
from cattrs import Converter

from trio_swarm import frames
from trio_swarm.frames import child, decode, encode, operator, pod, pool, record
from trio_swarm.frames.codec import converter

from .strategies import UNIONS


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (operator.Ask("r", "t", None), {"type": "ask", "req_id": "r", "task_id": "t", "question": None}),
        (child.Run("x"), {"kind": "run", "assignment": "x"}),
        (pod.Run("x"), {"method": "run", "params": {"input": "x"}}),
        (pod.Notify("s", "m"), {"method": "notify", "params": {"source": "s", "message": "m"}}),
        (pod.Resume(), {"method": "resume"}),
        (pool.Run("x", ["/l"]), {"op": "run", "code": "x", "ctx": None, "lib_paths": ["/l"]}),
        (
            pool.Continue("s", "r"),
            {"op": "continue", "sid": "s", "response": "r", "query_id": None, "usage": None},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_deadline_stands_beside_the_tag_and_is_left_out_when_there_is_none(frame, wire):
    """There the originals ignore it, for every request; in a pod's params resume would refuse it."""
    union = next(u for u in UNIONS.values() if type(frame) in get_args(u))

    assert json.loads(encode(frame)) == wire
    later = attrs.evolve(frame, deadline_ms=1500)
    assert json.loads(encode(later)) == {**wire, "deadline_ms": 1500}
    assert decode(encode(later), union) == later
    assert decode(json.dumps({**wire, "deadline_ms": None}), union) == frame


def test_requests_take_a_deadline_and_replies_do_not():
    """Every request frame, and only those."""
    with_deadline = {
        f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
        for union in UNIONS.values()
        for cls in get_args(union)
        if "deadline_ms" in attrs.fields_dict(cls)
    }

    assert with_deadline == {
        *("operator.Ask", "operator.HookBefore", "operator.Spawn", "child.Run", "pod.Run", "pod.Notify"),
        *("pod.Resume", "pool.Run", "pool.Continue"),
    }


def test_our_extensions_of_the_operator_protocol():
    """Withdraw and receipt: unknown types, which the originals drop silently."""
    assert json.loads(encode(operator.Withdraw("r", "cancelled"))) == {
        "type": "withdraw",
        "req_id": "r",
        "reason": "cancelled",
    }
    assert decode('{"type":"receipt","req_id":"r","accepted":false}', frames.ServerMsg) == operator.Receipt(
        "r", False
    )


def test_a_later_servers_worker_object_is_read():
    """It may always be sent: a seed client ignores the key (0.3, 2.5)."""
    spawn = decode(
        '{"type":"spawn","req_id":"r","task_id":"t","agent":"a","attempt":2,"capability_token":"eyJ",'
        '"worker":{"variant":"w","tools":["Read"],"x":1},"directive":"d"}',
        frames.ServerMsg,
    )

    assert spawn.worker == operator.Worker("w", ("Read",))
    assert json.loads(encode(spawn))["worker"] == {"variant": "w", "tools": ["Read"]}


def test_a_later_childs_batch_and_requests_are_read():
    """A9: a parent iterates the events, and answers the request with an error body."""
    batch = decode(
        '{"kind":"event_batch","batch":{"logical_session":null,"activation_id":"a","execution_epoch":3,'
        '"first_seq":1,"last_seq":2,"qos":"durable","events":[{"type":"token"},null]}}',
        frames.ChildFrame,
    )

    assert isinstance(batch, child.EventBatch)
    assert batch.batch.events == ({"type": "token"}, None)
    for text, answer in (
        ('{"kind":"subagent_request","id":"i","body":{}}', child.SubagentReply("i", {"error": "no"})),
        ('{"kind":"sub_agent_request","id":"i","tool_call_id":"c","args":{}}', child.SubagentResult("i", {})),
    ):
        request = decode(text, frames.ChildFrame)
        assert request.id == answer.id
        assert answer.tag == request.tag.replace("request", "reply")
        assert decode(encode(answer), frames.ParentFrame) == answer


def test_an_unknown_history_item_is_kept_as_it_came():
    """A reader skips it (B6); the history is not lost, and goes out again whole."""
    wire = {
        "event": "history",
        "data": {
            "items": [
                {"type": "message", "role": "user", "content": [{"type": "text", "text": "hi"}], "id": "i"},
                {"type": "message", "role": "user", "content": [{"type": "image", "url": "u"}]},
                {"type": "snapshot", "x": [1]},
                7,
            ],
            "greeting": {
                **{"pod_name": "b", "cwd": "/", "provider": "anthropic", "model": "m"},
                **{"scope_summary": "", "tools": []},
            },
        },
    }
    history = decode(json.dumps(wire), frames.PodEvent)

    assert [type(item) for item in history.items] == [pod.MessageItem] + [pod.UnknownItem] * 3
    assert history.items[2].value == {"type": "snapshot", "x": [1]}
    assert json.loads(encode(history)) == wire


@pytest.mark.parametrize("text", ['{"ok":false}', '{"ok":false,"data":{"kind":"x"},"error":null}'])
def test_a_failure_without_a_text_is_still_a_failure(text):
    """Refusing it would turn the worker's no into a broken connection."""
    failure = decode(text, frames.PoolResponse)

    assert failure == pool.Failure()
    assert json.loads(encode(failure)) == {"ok": False, "data": None, "error": ""}


def test_a_provision_document_is_read_with_everything_missing_and_written_in_full():
    """Compatibility in both directions (A4.3)."""
    spec = decode(
        '{"version":7,"identity":{"child_id":"c9","x":1},"executor":{"kind":"echo"},"fabric_dir":"/f","owner":{}}',
        frames.ProvisionSpec,
    )

    assert (spec.version, spec.identity.depth, spec.reusable) == (7, 0, False)
    assert spec.placement == record.LocalPlacement()
    assert json.loads(encode(spec)) == {
        "version": 7,
        "identity": {"child_id": "c9", "role": "", "depth": 0},
        "executor": {"kind": "echo"},
        "fabric_dir": "/f",
        "limits": {},
        "secrets": {"provider_credentials": []},
        "reusable": False,
        "placement": {"kind": "local"},
        "capabilities": {
            "enforce_permissions": False,
            "nested_spawn": False,
            "bypass": False,
            "no_human_approver": False,
            "guardian_read_only": False,
        },
    }


def test_secrets_do_not_show():
    """Not in the repr of what carries them, however deep."""
    credential = record.ProviderCredential(provider="p", api_key="k-xyz")
    spec = record.ProvisionSpec(
        identity=record.Identity(child_id="c"),
        executor=record.EchoExecutor(),
        fabric_dir="/f",
        secrets=record.Secrets(provider_credentials=[credential], worker_auth_token="k-xyz"),
        capabilities=record.Capabilities(mcp_proxy=record.McpProxy("o", "e", "k-xyz")),
    )

    assert "k-xyz" in encode(spec)
    assert "k-xyz" not in repr(spec)
    assert "k-xyz" not in repr(operator.Spawn("r", "t", "a", 1, "k-xyz", "d", "k-xyz"))


def test_cattrs_does_the_structuring():
    """The hooks stand on a cattrs converter, and it uses them for nested values too."""
    made = converter()

    assert isinstance(made, Converter)
    assert made is converter()
    assert made.structure({"type": "answer", "req_id": "r", "value": 1}, frames.ClientMsg) == operator.Answer(
        "r", 1
    )
    assert made.unstructure([pod.TurnStart(3)]) == [{"event": "turn_start", "data": {"turn": 3}}]
    assert made.structure([{"target": "/", "permission": "read"}], list[pod.ScopeRule]) == [
        pod.ScopeRule("/", "read")
    ]
    with pytest.raises(frames.FrameError):
        made.structure({"type": "ask", "req_id": "r"}, operator.Ask)
    with pytest.raises(frames.FrameError):
        made.structure({"type": "answer", "req_id": "r", "value": 1}, operator.Ask)


def test_a_part_of_a_union_and_an_equal_union_are_unions():
    """Whatever way the caller spells it."""
    for _ in range(3):
        assert decode('{"method":"resume"}', pod.Resume | pod.Cancel) == pod.Resume()
        assert decode('{"method":"resume"}', pod.Resume) == pod.Resume()
        with pytest.raises(frames.FrameError) as caught:
            decode('{"method":"resume"}', pod.Run | pod.Cancel)
        assert caught.value.unknown_tag == "resume"


def test_all_is_what_there_is():
    """Every name can be had, the list is sorted, and dir shows it."""
    assert frames.__all__ == sorted(frames.__all__)
    assert set(frames.__all__) <= set(dir(frames))
    for name in frames.__all__:
        assert getattr(frames, name) is not None
    for module in (operator, child, pod, pool, record):
        assert sorted(module.__all__) == module.__all__
        assert all(hasattr(module, name) for name in module.__all__)
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = frames.nothing_like_that


def test_importing_is_light():
    """No Trio and no cattrs before the first frame, and only the families that are used."""
    code = (
        "import sys, trio_swarm.frames as f; from trio_swarm.frames import pool\n"
        "assert not {'trio', 'cattrs', 'typing_extensions', 'datetime'} & set(sys.modules), sys.modules\n"
        "assert not {'trio_swarm.frames.pod', 'trio_swarm.frames.child'} & set(sys.modules)\n"
        'f.decode(\'{"op":"shutdown"}\', f.PoolRequest)\n'
        "assert 'trio' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
