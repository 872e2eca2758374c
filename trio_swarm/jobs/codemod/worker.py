"""The pool worker's part: scan one file, propose a patch, ask before it is made.

Standard library only: a fresh worker loads this module and the rule, no Trio.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from trio_swarm.jobs.codemod.manifest import digest
from trio_swarm.jobs.codemod.rule import INSERTED, Rewrite, rewrite
from trio_swarm.jobs.codemod.syntax import Unparseable, Unreadable, read_source, source_encoding

__all__ = ["SHOWN_EDITS", "proposal", "scan", "scan_file"]

SHOWN_EDITS: Final = 20
"""Edits of one file that are shown with the question; the count is of all."""

_SHOWN_COLUMNS: Final = 200


def scan(ctx: Mapping[str, Any], query: Callable[[str], str]) -> list[dict[str, Any]]:
    """Scan the files of *ctx* (``root``, ``paths``, ``rule``, maybe ``agent``); an outcome for each."""
    return [scan_file(ctx, path, query) for path in ctx["paths"]]


def scan_file(ctx: Mapping[str, Any], path: str, query: Callable[[str], str]) -> dict[str, Any]:
    """Scan one file; the outcome as JSON values.

    A file with something to rewrite is put to *query* as JSON (:func:`proposal`); the answer
    ``apply`` lets it through, and any other leaves the file alone, with the answer as reason
    (``skip: why``). The outcome's ``kind`` is ``unchanged``, ``patched``, ``unparseable``,
    ``skipped`` or ``unreadable``. Of a patched one, ``at`` and ``text`` are the patch (`.patch.insert`),
    and ``output_b64`` and ``sha256`` the new file's.
    """
    try:
        data = read_source(ctx["root"], path)
        result = rewrite(data, ctx["rule"])
    except Unreadable as error:
        return _outcome("unreadable", reason=error.reason)
    except Unparseable as error:
        return _outcome("unparseable", reason=error.reason)
    if result.output is None:
        return _outcome("skipped" if result.reason else "unchanged", reason=result.reason)
    agent = str(ctx.get("agent") or f"worker-{os.getpid()}")
    answer = query(json.dumps(proposal(path, data, result, agent)))
    if answer.strip() != "apply":
        reason = answer.strip().removeprefix("skip").lstrip(": ") or "skipped"
        return _outcome("skipped", reason=reason, edits=result.edits)
    return _outcome(
        "patched",
        edits=result.edits,
        sha256=digest(result.output),
        output_b64=base64.b64encode(result.output).decode("ascii"),
        at=result.at,
        text=INSERTED.decode("ascii"),
    )


def proposal(path: str, data: bytes, result: Rewrite, agent: str) -> dict[str, Any]:
    """The question about one file: ``path``, ``edits``, ``agent``, and ``lines``.

    ``lines`` holds ``[line number, before, after]`` of the first SHOWN_EDITS edits, without
    line ends, cut where they are long; for people to read, not to apply.
    """
    encoding = source_encoding(data)
    before, after = data.splitlines(), (result.output or b"").splitlines()
    lines = [
        [number, _shown(before[number - 1], encoding), _shown(after[number - 1], encoding)]
        for number in result.lines[:SHOWN_EDITS]
    ]
    return {"path": path, "edits": result.edits, "lines": lines, "agent": agent}


def _shown(line: bytes, encoding: str) -> str:
    try:
        text = line.decode(encoding, "replace")
    except UnicodeError:  # a codec that cannot replace; this is for people to read
        text = line.decode("ascii", "replace")
    return text[:_SHOWN_COLUMNS]


def _outcome(kind: str, *, reason: str = "", edits: int = 0, **patch: Any) -> dict[str, Any]:
    return {"kind": kind, "edits": edits, "reason": reason, **patch}
