"""The directive of a spawn: what an operator is told to do, in words (operators contract, 4).

Pure text. The socket carries who, what, where and a credential; the worker fetches its prompt
and posts its result over HTTP by itself. The directive says so to an operator that is a language
model, which would otherwise fetch the prompt itself or retell the result. It holds no secret: the
handle travels beside it, in the frame.

A block that does not apply is not there at all. Nothing that is filled in can add a line: each
value is checked, so that an agent's name cannot give orders of its own.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import attrs

__all__ = ["HEADER_KEYS", "DirectiveContext", "check_line", "check_root", "render_directive"]

HEADER_KEYS: Final = ("project_name_alias", "project_root", "work_dir", "task_metadata")
"""The context lines of the header, in this order; then those of ``extra``."""

_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that break a line, or that a reader does not see."""
_FIXED_KEYS: Final = frozenset({*HEADER_KEYS, "auth", "task_id", "agent_id", "worker_handle", "base_url"})
_GENERIC_WORKER: Final = "mse-worker"
_ASK_FOR_URL: Final = "<the server's HTTP root; mse_doctor tells it>"
_HANDLE: Final = "<worker_handle of THIS spawn payload, of the form wh-XXXXXXXX>"


def check_line(key: str, value: object, *, quoted: bool = False) -> str:
    """``value``, if it is text that stays on its line.

    ``quoted`` is for what stands between double quotes or in a path: there a quote, a backslash and a
    slash are refused too. Raises ``ValueError`` naming ``key``.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: expected a text that is not blank")
    if any(unicodedata.category(character) in _UNSEEN for character in value):
        raise ValueError(f"{key}: line breaks, control and invisible characters are not allowed")
    if quoted and any(character in '"\\/' for character in value):
        raise ValueError(f"{key}: quotes, slashes and backslashes are not allowed")
    return value


def _optional_line(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_line(attribute.name, value, quoted=attribute.name == "project_name_alias")


def _check_extra(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, Any]) -> None:
    for key, each in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isidentifier()) or key in _FIXED_KEYS:
            raise ValueError(f"extra: {key!r} is no name for a header line, or is taken")
        if isinstance(each, str):
            check_line(f"extra.{key}", each)
        else:
            _compact(f"extra.{key}", each)


def _check_json(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _compact(attribute.name, value)


@attrs.frozen
class DirectiveContext:
    """What the worker may know of the project; each line is there only if its value is.

    Raises ``ValueError`` for a value that would not stay on its line.
    """

    project_name_alias: str | None = attrs.field(default=None, validator=_optional_line)
    """Opens the alias line and the reminder of contract 4.4."""
    project_root: str | None = attrs.field(default=None, validator=_optional_line)
    work_dir: str | None = attrs.field(default=None, validator=_optional_line)
    task_metadata: Any = attrs.field(default=None, validator=_check_json)
    """Any JSON, as one compact line."""
    extra: Mapping[str, Any] = attrs.field(factory=dict, validator=_check_extra)
    """More header lines: text, or JSON as one compact line."""
    task_directive: Any = attrs.field(default=None, validator=_check_json)
    """Told at the end: text word for word (its line breaks are its own), other JSON compact."""
    ctx_projection: str | None = attrs.field(default=None, validator=_optional_line)
    """A file that holds the context."""

    def header(self) -> list[str]:
        """The lines after ``agent_id``."""
        values: dict[str, Any] = {key: getattr(self, key) for key in HEADER_KEYS}
        if self.task_metadata is not None:
            values["task_metadata"] = _compact("task_metadata", self.task_metadata)
        lines = [f"{key}: {value}" for key, value in values.items() if value is not None]
        for key, value in self.extra.items():
            lines.append(f"{key}: {value if isinstance(value, str) else _compact(key, value)}")
        return lines

    def trailer(self) -> list[str]:
        """The lines at the very end."""
        lines = []
        if self.task_directive is not None:
            said = self.task_directive
            told = said if isinstance(said, str) else _compact("task_directive", said)
            lines.append(f"task_directive: {told}")
        if self.ctx_projection is not None:
            lines.append(f"ctx_projection: {_compact('ctx_projection', {'file': self.ctx_projection})}")
        return lines


def render_directive(
    *,
    agent: str,
    task_id: str,
    base_url: str | None = None,
    variant: str | None = None,
    data_endpoint: str | None = None,
    run_id: str | None = None,
    context: DirectiveContext | None = None,
) -> str:
    """The directive of one spawn.

    Args:
        agent: who is to do the step.
        task_id: the step.
        base_url: the HTTP root of the server that serves workers; where it is unknown the worker is
            sent to ``mse_doctor``, never to a made-up port.
        variant: the sub-agent's type, from the step's worker binding; there is no other type to fall
            back to then. Without it the generic ``mse-worker``, and ``general-purpose`` after it.
        data_endpoint: the HTTP root of the data store, if large values may go there (contract 4.3).
        run_id: where the step can be watched, beside the path of its result.
        context: header lines, alias block and trailing lines.

    Raises:
        ValueError: a value that would not stay on its line, or a URL that is no root; names the key.

    Contract: operators 4.1 to 4.6.
    """
    known = context if context is not None else DirectiveContext()
    agent = check_line("agent", agent)
    task_id = check_line("task_id", task_id)
    root = check_root("base_url", base_url) if base_url is not None else "<base_url>"
    head = [
        f"[agent_primitive dispatch=@{agent}]",
        "worker endpoint:",
        f"  GET {root}/v1/worker/prompt?task_id={quote(task_id, safe='')}",
        f"  POST {root}/v1/worker/submit",
        f"auth: Bearer {_HANDLE}",
        f"task_id: {task_id}",
        f"agent_id: {agent}",
        *known.header(),
    ]
    kicked = check_line("variant", variant, quoted=True) if variant is not None else _GENERIC_WORKER
    worker_prompt = [
        "",
        f"  agent_id: {agent}",
        f"  worker_handle: {_HANDLE}",
        f"  base_url: {root if base_url is not None else _ASK_FOR_URL}",
        f"  task_id: {task_id}",
        "",
    ]
    lines = [
        *head,
        *(_data_block(check_root("data_endpoint", data_endpoint)) if data_endpoint is not None else ()),
        *(_alias_block(known.project_name_alias) if known.project_name_alias is not None else ()),
        _kick(kicked),
        *worker_prompt,
        _closing(agent, kicked, root, run_id, fallback=variant is None),
        *known.trailer(),
    ]
    return "\n".join(lines)


def _data_block(root: str) -> list[str]:
    return [
        "",
        "[Data path endpoint: for the MainAgent]",
        "Large payloads (from about 4k tokens on, files, intermediate results) go straight from one",
        "SubAgent to the store and from there to the next, bypassing the MainAgent: only the out_id ref",
        "travels through you. Give a SubAgent that you start these two lines as well:",
        f"  DATA_EMIT: {root}/v1/data/emit (POST, auth = Bearer worker_handle or ?token=)",
        f"  DATA_GET: {root}/v1/data/<out_id|out_name> (what the next SubAgent finds in $IN_REFS)",
        "A SubAgent with a large result posts it to DATA_EMIT and replies with the one-line out_id ref",
        "alone. Do not copy the payload, and do not answer in its place.",
        "",
    ]


def _alias_block(alias: str) -> list[str]:
    return [
        "",
        "[LDS Session Alias Reminder: for the MainAI, before the SubAgent is started]",
        "1. Open the session of this task; call it again on every dispatch, it is the same session then:",
        f'  mcp__lds__session_create(root=<working_dir>, alias="{alias}")',
        "2. Add this line, letter for letter, to the prompt of the SubAgent:",
        f"  LDS Session Alias: {alias}",
        f'The SubAgent begins with mcp__lds__session_start(alias="{alias}"), so that all dispatches own one',
        "worktree together. These two steps are the complete contract; nothing else has to be read for it.",
        "",
    ]


def _kick(kicked: str) -> str:
    return (
        f'Start a SubAgent with the Agent tool, subagent_type="{kicked}" (defined in '
        f"`.claude/agents/{kicked}.md`). The prompt that you give it is EXACTLY these 4 lines and nothing "
        "else:"
    )


def _closing(agent: str, kicked: str, root: str, run_id: str | None, *, fallback: bool) -> str:
    run = quote(check_line("run_id", run_id), safe="") if run_id is not None else "<run_id>"
    missing = (
        'If that type is not registered, use subagent_type="general-purpose" with the same 4 lines and '
        "1 line more that points to this directive."
        if fallback
        else "If that type is not registered, use no other one: say so in the error of your ack."
    )
    return (
        f"The {kicked} SubAgent fetches system and prompt by itself (GET, Bearer = handle), works as agent "
        f"@{agent}, posts the raw body of its result to /v1/worker/submit (POST, Bearer = handle; the "
        "server knows the task by the handle) and replies to you with the one word `OUTPUT`. Only then "
        "acknowledge with an empty value: SpawnAck {req_id, value:{}, ok:true}, by MCP "
        'mse_ack(sid, req_id, kind="spawn_ack", ok=true). The result proper is what was posted. '
        "Do NOT fetch /v1/worker/prompt yourself. Do NOT wrap, summarise or select from the reply of the "
        f"SubAgent. Watching is a separate channel (GET {root}/v1/runs/{run}): keep it out of this "
        f"path. {missing}"
    )


def check_root(key: str, url: str) -> str:
    """The URL of a server's root, without a slash at its end. Raises ``ValueError`` naming ``key``."""
    check_line(key, url)
    scheme, separator, rest = url.partition("://")
    if scheme not in ("http", "https") or not separator or not rest.strip("/"):
        raise ValueError(f"{key}: expected http:// or https:// and an address")
    if any(character in rest for character in " \"'<>?#`"):
        raise ValueError(f"{key}: expected a plain URL, without spaces, quotes, query or fragment")
    root = url.rstrip("/")
    if "/v1/" in f"{root}/":
        raise ValueError(f"{key}: expected the server's root, without /v1 and what follows")
    return root


def _compact(key: str, value: Any) -> str:
    """``value`` as JSON on one line; characters that are not to be seen are escaped."""
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{key}: expected JSON") from None
    return "".join(
        json.dumps(character)[1:-1] if unicodedata.category(character) in _UNSEEN else character
        for character in text
    )
