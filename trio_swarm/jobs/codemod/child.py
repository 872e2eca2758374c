"""The child actor's part: prove one patch in a process of its own."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Protocol

import trio

from trio_swarm.jobs.codemod.manifest import digest
from trio_swarm.jobs.codemod.proof import Proof, prove
from trio_swarm.jobs.codemod.syntax import Unreadable, read_source

__all__ = ["prove_run"]


class _Run(Protocol):
    @property
    def assignment(self) -> str: ...


async def prove_run(run: _Run) -> str:
    """Prove the patch of ``run.assignment``, JSON with ``root``, ``path`` and ``output_b64``.

    Returns JSON with ``ok``, ``reason`` (one line, empty when it holds), ``edits`` and the
    patched file's ``sha256``. An original that cannot be read is a proof that fails. Raises
    ValueError or KeyError for an assignment that is not of that form.

    The proof itself runs inline: it is CPU work of some tens of milliseconds, and this
    process has nothing else to do.
    """
    await trio.lowlevel.checkpoint()
    job = json.loads(run.assignment)
    try:
        output = base64.b64decode(job["output_b64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"output_b64: {error}") from error
    try:
        proof = prove(read_source(job["root"], job["path"]), output, compiles=False)
    except Unreadable as error:
        proof = Proof(False, f"the original: {error.reason}", 0)
    return json.dumps(
        {"ok": proof.ok, "reason": proof.reason, "edits": proof.edits, "sha256": digest(output)}
    )
