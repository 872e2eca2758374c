"""The child actor's part: prove one patch in a process of its own."""

from __future__ import annotations

import json
from typing import Protocol

import trio

from trio_swarm.jobs.codemod.manifest import digest
from trio_swarm.jobs.codemod.patch import insert
from trio_swarm.jobs.codemod.proof import Proof, prove
from trio_swarm.jobs.codemod.syntax import Unreadable, read_source

__all__ = ["prove_run"]


class _Run(Protocol):
    @property
    def assignment(self) -> str: ...


async def prove_run(run: _Run) -> str:
    """Prove the patch of ``run.assignment``, JSON with ``root``, ``path``, ``at`` and ``text``.

    The patched file is made here anew, of the original as it is read here. Returns JSON with ``ok``,
    ``reason`` (one line, empty when it holds), ``edits`` and the patched file's ``sha256``. An original
    that cannot be read, or has changed, is a proof that fails. Raises ValueError, TypeError,
    AttributeError or KeyError for an assignment that is not of that form.

    The proof itself runs inline: it is CPU work of some tens of milliseconds, and this
    process has nothing else to do.
    """
    await trio.lowlevel.checkpoint()
    job = json.loads(run.assignment)
    at, text = job["at"], job["text"].encode("ascii")
    output = b""
    try:
        original = read_source(job["root"], job["path"])
        output = insert(original, at, text)
        proof = prove(original, output, compiles=False)
    except Unreadable as error:
        proof = Proof(False, f"the original: {error.reason}", 0)
    except ValueError as error:
        # The worker saw another file: this one was changed since, and is shorter.
        proof = Proof(False, f"the patch: {error}", 0)
    return json.dumps(
        {"ok": proof.ok, "reason": proof.reason, "edits": proof.edits, "sha256": digest(output)}
    )
