"""What a person is shown of a request: plain text that drives no terminal, whatever it says."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from trio_swarm.frames.operator import HookAfter
from trio_swarm.frames.worker import WorkerPayload
from trio_swarm.operators import AskRequest, OperatorRequest, SpawnRequest

__all__ = ["block", "full_text", "notice_text", "plain", "prompt_text", "request_text", "summary"]

_MAX_SHOWN: Final = 40
"""Lines of a question that are shown at once; `show` shows all."""
_MAX_LINE: Final = 2000
_MAX_WORD: Final = 300
_BAR: Final = "  | "


def plain(text: str, *, most: int = _MAX_WORD) -> str:
    """``text`` on one line: what is no printable character is spelled out.

    That is every control character, the escape that begins a terminal's commands first of
    all, the marks that reverse the direction of a text, and odd blanks.
    """
    cut = text[:most]
    shown = "".join(character if character.isprintable() else _spelled(character) for character in cut)
    return shown if len(text) <= most else f"{shown}... ({len(text) - most} more)"


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def block(value: Any, *, most: int | None = _MAX_SHOWN) -> str:
    """A JSON value, or a text, on lines of its own behind a bar: it cannot look like one of ours."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    lines = text.split("\n")
    shown = lines if most is None else lines[:most]
    width = _MAX_LINE if most is not None else max(map(len, lines))
    told = [_BAR + plain(line, most=width) for line in shown]
    if len(shown) < len(lines):
        told.append(f"  ({len(lines) - len(shown)} more lines: `show`)")
    return "\n".join(told)


def summary(number: int, request: OperatorRequest, now: float) -> str:
    """One line."""
    words = [f"#{number}", request.kind, f"step {plain(request.task_id)}"]
    if not isinstance(request, AskRequest):
        words.append(f"agent {plain(request.agent)}, attempt {request.attempt}")
    if request.lineage:
        words.append("asked through " + " > ".join(plain(each.partition("#")[0]) for each in request.lineage))
    if math.isfinite(request.deadline):
        words.append(f"{max(0.0, request.deadline - now):.0f} s left")
    return "  ".join(words)


def request_text(number: int, request: OperatorRequest, now: float, *, most: int | None = _MAX_SHOWN) -> str:
    """The summary, what is asked, and how it can be answered."""
    parts = [summary(number, request, now)]
    if isinstance(request, AskRequest):
        parts.append(block(request.question, most=most))
    elif isinstance(request, SpawnRequest):
        parts.append(block(request.directive, most=most))
    parts.append(f"  {ways(request)}")
    return "\n".join(parts)


def full_text(number: int, request: OperatorRequest, now: float) -> str:
    """The same, and nothing left out."""
    text = request_text(number, request, now, most=None)
    parent = "" if request.parent_req_id is None else f"\n  while {plain(request.parent_req_id)} is answered"
    handle = request.frame.worker_handle if isinstance(request, SpawnRequest) else None
    worker = "" if handle is None else f"\n  worker_handle: {plain(handle)}"
    return f"{text}\n  id {plain(request.req_id)}{parent}{worker}"


def ways(request: OperatorRequest) -> str:
    """The commands that answer it."""
    if isinstance(request, AskRequest):
        return "answer VALUE | edit"
    if isinstance(request, SpawnRequest):
        return "prompt | done VALUE | fail TEXT | halt [REASON] | edit"
    return "ack | reject [REASON]"


def prompt_text(work: WorkerPayload) -> str:
    """What a worker fetches: the persona, if there is one, and the prompt."""
    system = "" if work.system is None else f"system:\n{block(work.system, most=None)}\n"
    return f"{system}prompt:\n{block(work.prompt, most=None)}"


def notice_text(notice: HookAfter) -> str:
    """What became of an attempt."""
    head = f"-- ended: step {plain(notice.task_id)}  agent {plain(notice.agent)}, attempt {notice.attempt}"
    return f"{head}\n{block(notice.result, most=10)}"
