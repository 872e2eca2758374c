"""Bytes to values: the frames of the four wire contracts, their codec, the line decoder.

`decode` and `encode` are all that a room needs, with the union of what it may receive::

    match decode(line, PodEvent):
        case pod.TurnStart(turn): ...

The classes stand in one module per family: `operator`, `worker`, `child`, `pod`, `pool`, `record`.
A family is imported when it is first named, so that a process which speaks one wire does
not pay for the others. Nothing here knows Trio, a clock, or a file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trio_swarm.errors import FrameError

if TYPE_CHECKING:
    from trio_swarm.frames import child, operator, pod, pool, record, worker
    from trio_swarm.frames._frame import Frame
    from trio_swarm.frames.child import ChildFrame, ParentFrame
    from trio_swarm.frames.codec import decode, dump_json, encode, parse_json, structure, unstructure
    from trio_swarm.frames.lines import LineDecoder
    from trio_swarm.frames.operator import ClientMsg, ServerMsg
    from trio_swarm.frames.pod import PodEvent, PodMethod
    from trio_swarm.frames.pool import PoolRequest, PoolResponse
    from trio_swarm.frames.record import AgentRecord, ProvisionSpec

__all__ = [
    "AgentRecord",
    "ChildFrame",
    "ClientMsg",
    "Frame",
    "FrameError",
    "LineDecoder",
    "ParentFrame",
    "PodEvent",
    "PodMethod",
    "PoolRequest",
    "PoolResponse",
    "ProvisionSpec",
    "ServerMsg",
    "child",
    "decode",
    "dump_json",
    "encode",
    "operator",
    "parse_json",
    "pod",
    "pool",
    "record",
    "structure",
    "unstructure",
    "worker",
]

_WHERE = {
    "_frame": ("Frame",),
    "child": ("ChildFrame", "ParentFrame"),
    "codec": ("decode", "dump_json", "encode", "parse_json", "structure", "unstructure"),
    "lines": ("LineDecoder",),
    "operator": ("ClientMsg", "ServerMsg"),
    "pod": ("PodEvent", "PodMethod"),
    "pool": ("PoolRequest", "PoolResponse"),
    "record": ("AgentRecord", "ProvisionSpec"),
    "worker": (),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _WHERE and not name.startswith("_"):
        return importlib.import_module(f"{__name__}.{name}")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
