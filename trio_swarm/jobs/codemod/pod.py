"""The pod's part: write one proved file, inside the scope that it was given and nowhere else."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Protocol

from trio_swarm.jobs.codemod.manifest import digest

__all__ = ["write_turn"]


class _Files(Protocol):
    async def write_bytes(self, path: str, data: bytes, *, mode: int | None = None) -> None: ...


class _Turn(Protocol):
    @property
    def input(self) -> str: ...

    @property
    def files(self) -> _Files: ...

    async def text(self, text: str, /) -> object: ...


async def write_turn(turn: _Turn) -> None:
    """Write the one file that ``turn.input`` orders.

    The order is JSON with ``path`` (absolute), ``output_b64``, ``sha256`` and maybe ``mode``.
    Says JSON with the ``path``, the ``bytes`` and the ``sha256`` of what was written. The write
    is all or nothing, and writing the same order again changes nothing, so that an order whose
    answer was lost can be given again.

    Raises ValueError (nothing written) when the content is not what ``sha256`` says, or the
    order is not of that form; GrantError for a path outside the scope; OSError when the disk
    refuses. The turn then ends with that error.
    """
    order = json.loads(turn.input)
    try:
        data = base64.b64decode(order["output_b64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"output_b64: {error}") from error
    sha256 = digest(data)
    if sha256 != order["sha256"]:
        raise ValueError(f"{order['path']}: the content has another digest than its order")
    await turn.files.write_bytes(order["path"], data, mode=order.get("mode"))
    await turn.text(json.dumps({"path": order["path"], "bytes": len(data), "sha256": sha256}))
