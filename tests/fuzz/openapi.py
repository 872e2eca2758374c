"""Every route as an OpenAPI document: what may be sent, and all that may be answered.

Test data, held against the server's own table of routes: one without an entry here fails.
"""

from __future__ import annotations

from typing import Any

UPGRADE = "/v1/operators/{sid}/ws"
"""Not in the document: OpenAPI has no word for a WebSocket."""

_ANY: dict[str, Any] = {}
_TEXT: dict[str, Any] = {"type": "string"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 100, "pattern": "^[a-zA-Z0-9_-]+$"}
_ANY_NAME = {"type": "string", "minLength": 1, "maxLength": 256}
_U32 = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}
_CHALLENGE = {"www-authenticate": {"required": True, "schema": {"const": "Bearer"}}}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _text(description: str = "text") -> dict[str, Any]:
    return {"description": description, "content": {"text/plain; charset=utf-8": {"schema": _TEXT}}}


def _json(schema: dict[str, Any], description: str = "JSON", **headers: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {**answer, "headers": headers} if headers else answer


def _either() -> dict[str, Any]:
    """Refused by the front (text), or by the endpoint (JSON)."""
    content = {"text/plain; charset=utf-8": {"schema": _TEXT}, "application/json": {"schema": _ERROR}}
    return {"description": "refused", "content": content}


_EMPTY = {"description": "empty"}
_BODY_ERRORS = {"400": _text("not JSON"), "413": _text(), "415": _text()}
_OPERATOR_AUTH = {
    "401": {**_text("no token, or another's"), "headers": _CHALLENGE},
    "404": _text("unknown sid"),
}
_ADMIN_AUTH = {"401": _json(_ERROR, **_CHALLENGE)}
_WORKER_AUTH = {
    "400": _either(),
    "401": _json(_ERROR, **_CHALLENGE),
    "403": _json(_ERROR),
    "409": _json(_ERROR),
    "410": _json(_ERROR),
    "429": _json(_ERROR, **{"retry-after": {"required": True, "schema": {"type": "string"}}}),
}
_WORKER_BODY = {"413": _either(), "415": _text(), "422": _json(_ERROR)}
_BODY_413 = {"413": _either(), "422": _json(_ERROR)}

_SESSION = _object(
    {"sid": _TEXT, "roles": {"type": "array", "items": _TEXT}, "connected": {"type": "boolean"}},
    {"desc": _or_null(_TEXT), "observed": {"type": "array"}, "observed_total": {"type": "integer"}},
)
_LISTED = _object(
    {
        "operators": {"type": "array", "items": _object({"sid": _TEXT, "connected": {"type": "boolean"}})},
        "total": {"type": "integer"},
        "limit": {"type": "integer"},
    }
)
_STATUS = {"enum": ["pending", "running", "pass", "blocked", "failed", "cancelled", "timeout"]}
_OUTCOME = _object(
    {"task_id": _TEXT, "status": _STATUS, "value": _ANY, "attempt": {"type": "integer"}}, {"reason": _TEXT}
)
_RECORD = _object(
    {"task_id": _TEXT, "agent": _TEXT, "status": _STATUS, "attempt": {"type": "integer"}},
    {"waiting_for": _or_null(_TEXT), "parent": _or_null(_TEXT), "created_at": {"type": "number"}},
)
_CONTENT = {
    "oneOf": [
        _object({"kind": {"const": "inline"}, "value": _ANY}),
        _object(
            {"kind": {"const": "file_ref"}, "path": _TEXT},
            {
                "mime": _or_null(_TEXT),
                "size_hint": _or_null({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}),
            },
        ),
    ]
}
_EVENT = {
    "oneOf": [
        _object({"type": {"const": "progress"}, "stage": _TEXT}, {"note": _or_null(_TEXT)}),
        _object({"type": {"const": "partial"}, "chunk": _CONTENT}),
        _object({"type": {"const": "artifact"}, "name": _TEXT, "content": _CONTENT}),
        _object({"type": {"const": "final"}, "content": _CONTENT, "ok": {"type": "boolean"}}),
    ]
}
_OUTPUT = _object(
    {"id": _TEXT, "task_id": _TEXT, "attempt": _U32, "producer_agent": _TEXT, "event": {"type": "object"}},
    {"parent_refs": {"type": "array", "items": _TEXT}},
)


def _operation(
    name: str,
    answers: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    raw: bool = False,
    query: dict[str, Any] | None = None,
    path: dict[str, Any] | None = None,
    needed: tuple[str, ...] = (),
    credential: str = "",
) -> dict[str, Any]:
    parameters = [
        {"name": key, "in": "path", "required": True, "schema": schema}
        for key, schema in (path or {}).items()
    ]
    parameters += [
        {"name": key, "in": "query", "required": key in needed, "schema": schema}
        for key, schema in (query or {}).items()
    ]
    made: dict[str, Any] = {"operationId": name, "responses": answers, "parameters": parameters}
    if body is not None:
        kind = "application/octet-stream" if raw else "application/json"
        made["requestBody"] = {"required": not raw, "content": {kind: {"schema": body}}}
    if credential:
        made["security"] = [{credential: []}]
    return made


def document(
    *, sid: str = "S-0", task_id: str = "ST-0", operator: str = "obliging", loose: bool = False
) -> dict[str, Any]:
    """The document, whose good requests name these.

    Names have more characters than a pattern says in a few words: ``loose`` leaves it out, so that
    what is wrong by the document is wrong.
    """
    name = _ANY_NAME if loose else _NAME
    of_sid = {"sid": {"enum": [sid]}}
    of_task = {"id": {"enum": [task_id]}}
    said = {"task_id": {"enum": [task_id]}, "attempt": {"enum": [1]}}
    emitted = {"public": {"type": "boolean"}, "parent_refs": {"type": "array", "items": _TEXT, "maxItems": 0}}
    launch = _object(
        {"agent": _TEXT if loose else _NAME, "prompt": _ANY, "operator_sid": {"enum": [operator]}},
        {
            "system": _or_null(_TEXT),
            "timeout_secs": _or_null({"type": "integer", "minimum": 1, "maximum": 2**64 - 1}),
            "attempts": _or_null({"type": "integer", "minimum": 1, "maximum": 100}),
            "task_metadata": _or_null({"type": "object"}),
        },
    )
    login = _object(
        {},
        {
            "roles": {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 256},
                "maxItems": 64,
            },
            "desc": _or_null(_TEXT),
            "capability_manifest": _or_null({"type": "object"}),
        },
    )
    minted = _object({"sid": _TEXT, "token": _TEXT, "roles": {"type": "array", "items": _TEXT}})
    conflict = _object({"error": _TEXT, "conflicts": {"type": "array", "items": _TEXT}})
    kept = _object({"out_id": {"type": "string", "pattern": "^out-[0-9a-f]+$"}})
    attach = _object(
        {
            "agent_id": name,
            "role": {"enum": ["operator", "worker", "observer", "senior", "Worker"]},
            "ttl_secs": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        }
    )
    prompt = _object(
        {"task_id": _TEXT, "attempt": _U32, "agent": _TEXT, "prompt": _TEXT},
        {"system": _TEXT, "system_ref": {"type": "object"}, "context": {"type": "object"}},
    )
    limit = {"limit": {"type": "integer", "minimum": 1, "maximum": 200}}
    posted = {"204": _EMPTY, **_WORKER_AUTH}
    output = {"200": {"description": "an output", "content": {"application/json": {"schema": _OUTPUT}}}}
    task_errors = {
        "400": _either(),
        "413": _text(),
        "415": _text(),
        "422": _json(_ERROR),
        "503": _json(_ERROR),
        "504": _json(_OUTCOME),
    }
    submit = {"ok": {"type": "boolean"}}
    paths: dict[str, dict[str, Any]] = {
        "/v1/healthz": {"get": _operation("healthz", {"200": _text()})},
        "/v1/status": {
            "get": _operation(
                "status",
                {
                    "200": _json(
                        _object(
                            {"running_runs": {"type": "integer"}, "attached_operators": {"type": "integer"}}
                        )
                    )
                },
            )
        },
        "/v1/operators": {
            "post": _operation(
                "join",
                {
                    "200": _json(minted),
                    "409": _json(conflict),
                    **_BODY_ERRORS,
                    "422": _text(),
                    "503": _json(_ERROR),
                },
                body=login,
            ),
            "get": _operation(
                "list_operators",
                {"200": _json(_LISTED), "400": _text(), "401": _json(_ERROR, **_CHALLENGE)},
                query=limit,
                credential="operator",
            ),
        },
        "/v1/operators/{sid}": {
            "get": _operation(
                "operator", {"200": _json(_SESSION), **_OPERATOR_AUTH}, path=of_sid, credential="operator"
            ),
            "delete": _operation(
                "quit", {"204": _EMPTY, **_OPERATOR_AUTH}, path=of_sid, credential="operator"
            ),
        },
        "/v1/tasks": {
            "post": _operation(
                "launch",
                {"200": _json(_OUTCOME), **_ADMIN_AUTH, **task_errors},
                body=launch,
                credential="admin",
            ),
            "get": _operation(
                "list_tasks",
                {
                    "200": _json(
                        _object({"tasks": {"type": "array", "items": _RECORD}, "total": {"type": "integer"}})
                    ),
                    "400": _json(_ERROR),
                    **_ADMIN_AUTH,
                },
                query=limit,
                credential="admin",
            ),
        },
        "/v1/tasks/{id}": {
            "get": _operation(
                "task",
                {"200": _json(_OUTCOME), "404": _json(_ERROR), **_ADMIN_AUTH},
                path=of_task,
                credential="admin",
            ),
            "delete": _operation(
                "cancel",
                {"204": _EMPTY, "404": _json(_ERROR), **_ADMIN_AUTH},
                path=of_task,
                credential="admin",
            ),
        },
        "/v1/runs/{id}": {
            "get": _operation(
                "run",
                {"200": _json(_OUTCOME), "404": _json(_ERROR), **_ADMIN_AUTH},
                path=of_task,
                credential="admin",
            )
        },
        "/v1/worker/prompt": {
            "get": _operation(
                "prompt",
                {"200": _json(prompt), **_WORKER_AUTH},
                query=said,
                needed=("task_id",),
                credential="worker",
            )
        },
        "/v1/worker/prompt/system": {
            "get": _operation(
                "system",
                {"200": _text(), **_WORKER_AUTH, "404": _json(_ERROR)},
                query=said,
                needed=("task_id",),
                credential="worker",
            )
        },
        "/v1/worker/result": {
            "post": _operation(
                "result",
                {**posted, **_WORKER_BODY},
                body=_object(
                    {"task_id": said["task_id"], "value": _ANY},
                    {"ok": {"type": "boolean"}, "attempt": said["attempt"]},
                ),
                credential="worker",
            )
        },
        "/v1/worker/submit": {
            "post": _operation(
                "submit",
                {**posted, **_BODY_413},
                body={"type": "string", "format": "binary"},
                raw=True,
                query=submit,
                credential="worker",
            )
        },
        "/v1/worker/artifact": {
            "post": _operation(
                "artifact",
                {**posted, **_BODY_413},
                body={"type": "string", "format": "binary"},
                raw=True,
                query={"name": _NAME},
                needed=("name",),
                credential="worker",
            )
        },
        "/v1/worker/degradation": {
            "post": _operation(
                "degradation", {**posted, **_WORKER_BODY}, body={"type": "object"}, credential="worker"
            )
        },
        "/v1/worker/stats": {
            "post": _operation(
                "stats", {**posted, **_WORKER_BODY}, body={"type": "object"}, credential="worker"
            )
        },
        "/v1/data/emit": {
            "post": _operation(
                "emit",
                {"200": _json(kept), **_WORKER_AUTH, **_WORKER_BODY},
                body=_object({**said, "producer_agent": _ANY_NAME, "event": _EVENT}, emitted),
                credential="worker",
            )
        },
        "/v1/data/{name}": {
            "post": _operation(
                "emit_named",
                {"200": _json(kept), **_WORKER_AUTH, **_WORKER_BODY},
                body=_object({**said, "event": _EVENT}, emitted),
                path={"name": _NAME},
                credential="worker",
            ),
            "get": _operation(
                "output",
                {**output, **_WORKER_AUTH, "404": _json(_ERROR)},
                path={"name": {"enum": ["coder"]}},
                credential="worker",
            ),
        },
        "/v1/sessions": {
            "post": _operation(
                "attach",
                {
                    "200": _json(_object({"session_id": _TEXT, "role": _TEXT})),
                    "400": _either(),
                    "413": _text(),
                    "415": _text(),
                    "422": _json(_ERROR),
                    "503": _json(_ERROR),
                },
                body=attach,
            ),
            "delete": _operation(
                "detach", {"204": _EMPTY, "400": _json(_ERROR), "404": _json(_ERROR)}, credential="session"
            ),
        },
    }
    schemes = {
        name: {"type": "http", "scheme": "bearer"} for name in ("operator", "admin", "worker", "session")
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "trio-swarm", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": schemes},
    }


def routes() -> set[tuple[str, str]]:
    """Method and path of each operation."""
    found = {
        (method.upper(), path) for path, operations in document()["paths"].items() for method in operations
    }
    return {*found, ("GET", UPGRADE)}


def allow(path: str) -> str:
    """The value of ``Allow`` at ``path``: a GET that is no WebSocket answers HEAD too."""
    methods = {method for method, each in routes() if each == path}
    if "GET" in methods and path != UPGRADE:
        methods.add("HEAD")
    return ", ".join(sorted(methods))
