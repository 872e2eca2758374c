"""Decoding and encoding frames, beside cattrs' documented tagged union with json, in the same run.

    python -m benchmarks.codec [--rounds 5]

The peer is what cattrs' manual shows: ``configure_tagged_union`` on a fresh converter, the
same classes and fields, ``json.loads`` and compact ``json.dumps``. It checks next to
nothing (it turns 1.9 into 1), so a ratio of 1.0 means that strictness is free. Prints medians
in microseconds and peer / ours: above 1.0 ours is faster.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator as op
import statistics
import time
from typing import Any, get_args, get_type_hints

import attrs
from cattrs import Converter
from cattrs.strategies import configure_tagged_union

from trio_swarm import frames
from trio_swarm.frames import child, decode, encode, operator, pod, pool
from trio_swarm.frames._frame import Frame

SIZES = {"100 B": 0, "2 kB": 2_000, "64 kB": 64_000}
TOOLS = {"type": "text", "text": "hello there"}
SID = "S-00ab12cd34ef5678"
REQ = f"{SID}-spawn-0c1d2e3f-0000-4000-8000-000000000031"


def payload(size: int) -> Any:
    """A conversation of about *size* bytes."""
    messages: list[Any] = []
    length = 2
    while length < size:
        text = f"step {len(messages)} of the plan, with some text in it"
        messages.append({"role": "assistant", "content": text, "n": len(messages), "parts": [TOOLS, None]})
        length += len(json.dumps(messages[-1])) + 1
    return {"messages": messages} if size else 1


def samples(size: int) -> dict[str, Any]:
    """One frame per class that carries a payload, by the name of its union."""
    value = payload(size)
    text = json.dumps(value)
    return {
        "ServerMsg.Ask": operator.Ask(REQ, "ST-9f01aa22bb33cc44", value),
        "ServerMsg.HookAfter": operator.HookAfter(REQ, "ST-9f01aa22bb33cc44", "reviewer", 1, value),
        "ServerMsg.Spawn": operator.Spawn(REQ, "ST-9f01", "coder", 1, "eyJ", text, "wh-1a2b3c4d"),
        "ClientMsg.Answer": operator.Answer(REQ, value),
        "ClientMsg.SpawnAck": operator.SpawnAck(REQ, value),
        "ParentFrame.Run": child.Run("go on", None, [value]),
        "ChildFrame.Event": child.Event(value),
        "ChildFrame.Terminal": child.Terminal("suspended", transcript=[value]),
        "PodMethod.Run": pod.Run(text),
        "PodEvent.TextDone": pod.TextDone(text),
        "PoolRequest.Run": pool.Run("return 1", ["/lib"], value),
        "PoolResponse.Feed": pool.Feed(SID, value),
    }


@functools.cache
def peer_class(frame_class: type[Frame]) -> type:
    """The same fields, known to cattrs as a plain attrs class; frames within are opaque."""
    hints = get_type_hints(frame_class)
    fields = {}
    for field in attrs.fields(frame_class):
        inner = hints[field.name]
        opaque = any(isinstance(a, type) and issubclass(a, Frame) for a in get_args(inner) or (inner,))
        kind = Any if opaque else inner
        fields[field.name] = attrs.field(default=field.default, type=kind, kw_only=field.kw_only)
    return attrs.make_class(frame_class.__name__, fields, frozen=True, slots=True)


@functools.cache
def peer_union(union: Any) -> tuple[Any, Converter]:
    """A converter as the manual configures it, and the union of the peer classes."""
    members = {peer_class(member): member.tag for member in get_args(union)}
    peers = functools.reduce(op.or_, members)
    converter = Converter()
    configure_tagged_union(peers, converter, tag_generator=members.__getitem__, tag_name="type")
    return peers, converter


def measured(function, *arguments) -> float:
    """Microseconds of one call, from a loop of about ten milliseconds."""
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.001:
        function(*arguments)
        calls += 1
    calls *= 10
    begun = time.perf_counter()
    for _ in range(calls):
        function(*arguments)
    return (time.perf_counter() - begun) / calls * 1e6


def row(name: str, frame: Any, rounds: int) -> list[float]:
    """Ours and the peer's decode and encode, measured in turn."""
    union = getattr(frames, name.split(".")[0])
    peers, converter = peer_union(union)
    values = {field.name: getattr(frame, field.name) for field in attrs.fields(type(frame))}
    peer = peer_class(type(frame))(**values)

    def peer_decode(wire):
        return converter.structure(json.loads(wire), peers)

    def peer_encode(value):
        return json.dumps(converter.unstructure(value, peers), separators=(",", ":"))

    text, peer_text = encode(frame), peer_encode(peer)
    assert decode(text, union) == frame
    assert peer_decode(peer_text) == peer
    table = [
        (decode, text, union),
        (peer_decode, peer_text),
        (encode, frame),
        (peer_encode, peer),
    ]
    times = [[measured(*call) for call in table] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{'':22}{'':8}{'decode, us':>26}{'encode, us':>27}")
    print(f"{'class':22}{'payload':8}" + f"{'ours':>10}{'peer':>9}{'ratio':>7}" * 2)
    ratios: dict[str, list[list[float]]] = {}
    for size, length in SIZES.items():
        for name, frame in samples(length).items():
            ours, peer, ours_encode, peer_encode = row(name, frame, rounds)
            pair = [peer / ours, peer_encode / ours_encode]
            ratios.setdefault(size, []).append(pair)
            print(f"{name:22}{size:8}{ours:10.1f}{peer:9.1f}{pair[0]:7.2f}", end="")
            print(f"{ours_encode:10.1f}{peer_encode:9.1f}{pair[1]:7.2f}")
    for size, pairs in ratios.items():
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        print(f"{'median ratio':22}{size:8}{medians[0]:26.2f}{medians[1]:26.2f}")


if __name__ == "__main__":
    main()
