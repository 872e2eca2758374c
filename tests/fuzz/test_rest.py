"""The REST side against its OpenAPI document, by schemathesis: what may be sent, and what is answered.

The server is `tests.fuzz.process`, with every route mounted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.fuzz.harness import FuzzedServer, fuzzed_server
from tests.fuzz.openapi import UPGRADE, allow, document, routes
from trio_swarm.limits import MAX_REPORTS

OPERATIONS = sorted(
    (path, method) for path, found in document()["paths"].items() for method in found if path != UPGRADE
)
QUICK, FULL = 15, 100
METHODS = ("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW")
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    missing_required_header,
    unsupported_method,
]
MAX_BODY = 2 * 2**20


http = httpx2.Client(trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0))


@pytest.fixture(scope="module")
def server() -> Iterator[FuzzedServer]:
    with fuzzed_server(obliging=True, max_sessions=100_000) as running, http:
        yield running
        figures = running.order_now("stats")
        assert figures["errors"] == [], running.said()
        assert running.said() == ""


class World:
    """What exists at the server for one operation's requests, and the credentials for it."""

    def __init__(self, server: FuzzedServer) -> None:
        task, login = server.order_now("task"), server.log_in()
        self.server = server
        self.sid, self.task_id = login["sid"], task["task_id"]
        self.credentials = {"operator": login["token"], "admin": server.admin, "worker": task["capability"]}
        self.handle = task["handle"]
        body = {"agent_id": "a", "role": "worker", "ttl_secs": 3600}
        self.credentials["session"] = self.post("/v1/sessions", json=body).json()["session_id"]
        event = {"type": "partial", "chunk": {"kind": "inline", "value": 1}}
        output = {"task_id": self.task_id, "attempt": 1, "producer_agent": "coder", "event": event}
        assert self.post("/v1/data/emit", kind="worker", json=output).status_code == 200

    def bearer(self, kind: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.credentials[kind]}"} if kind else {}

    def post(self, path: str, *, kind: str = "", **options: Any) -> httpx2.Response:
        return http.post(self.server.url + path, headers=self.bearer(kind), **options)

    def schema(self, *, loose: bool = False) -> Any:
        return schemathesis.openapi.from_dict(document(sid=self.sid, task_id=self.task_id, loose=loose))

    def path(self, pattern: str) -> str:
        return pattern.format(sid=self.sid, id=self.task_id, name="coder")


def credential_of(path: str, method: str) -> str:
    needed = document()["paths"][path][method].get("security")
    return next(iter(needed[0])) if needed else ""


def has_whole_float(value: Any) -> bool:
    """1.0 is an integer to JSON Schema, and none to the contract: its peers do not read it as one."""
    if isinstance(value, dict):
        return any(map(has_whole_float, value.values()))
    if isinstance(value, list):
        return any(map(has_whole_float, value))
    return isinstance(value, float) and value.is_integer()


def only_body_is_wrong(case: Case) -> bool:
    """Then it must be refused: whereas parameters and headers that nobody knows are ignored."""
    parts = case.meta.components if case.meta is not None else {}
    body = parts.get(ParameterLocation.BODY)
    return body is not None and body.mode.is_negative and case.media_type == "application/json"


def converse(
    world: World, path: str, method: str, mode: GenerationMode, examples: int, number: int
) -> Counter[int]:
    """Send generated requests and check each answer; how often there was which status."""
    kind, statuses = credential_of(path, method), Counter[int]()
    right = mode is GenerationMode.POSITIVE
    with requests.Session() as session:
        session.trust_env = False

        @seed(number)
        @given(world.schema(loose=not right)[path][method].as_strategy(generation_mode=mode))
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def each(case: Case) -> None:
            assume(not (right and has_whole_float(case.body)))
            answer = case.call(base_url=world.server.url, session=session, headers=world.bearer(kind))
            statuses[answer.status_code] += 1
            checks = [*CHECKS, positive_data_acceptance] if right else CHECKS
            if right and kind in ("operator", "admin") and method != "delete":
                # What is deleted is not there for the same request again; workers' routes say 400.
                checks = [*checks, ignored_auth]
            if not right and only_body_is_wrong(case):
                checks = [*CHECKS, negative_data_rejection]
            case.validate_response(answer, checks=checks)
            assert answer.headers["cache-control"] == ["no-store"]
            assert answer.headers["x-content-type-options"] == ["nosniff"]

        each()
    return statuses


def can_be_wrong(path: str, method: str) -> bool:
    operation = document()["paths"][path][method]
    return bool(operation["parameters"]) or "requestBody" in operation or bool(credential_of(path, method))


sizes = pytest.mark.parametrize(
    ("examples", "number"),
    [(QUICK, 0), pytest.param(FULL, 1, marks=pytest.mark.slow)],
)
operations = pytest.mark.parametrize(("path", "method"), OPERATIONS)


def test_every_route_has_its_entry(server) -> None:
    """A route that is added to the server must be added to the document."""
    assert {(method, path) for method, path in server.routes} == routes()


@operations
@sizes
def test_right_requests_are_answered_as_documented(server, path, method, examples, number) -> None:
    if path == "/v1/worker/degradation":
        examples = min(examples, MAX_REPORTS)  # More of one attempt are 413.
    statuses = converse(World(server), path, method, GenerationMode.POSITIVE, examples, number)
    assert statuses[200] + statuses[204] > 0, statuses


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if can_be_wrong(*each)])
@sizes
def test_wrong_requests_are_answered_as_documented(server, path, method, examples, number) -> None:
    statuses = converse(World(server), path, method, GenerationMode.NEGATIVE, examples, number)
    assert sum(statuses.values()) >= min(examples, 10), statuses


@pytest.mark.parametrize("path", sorted({path for _, path in routes()}))
def test_a_wrong_method_is_405_and_allow_names_the_right_ones(server, path) -> None:
    world = World(server)
    right = set(allow(path).split(", "))
    for method in METHODS:
        if method in right:
            continue
        answer = http.request(method, server.url + world.path(path))
        assert (answer.status_code, answer.headers["allow"], answer.content) == (405, allow(path), b""), (
            method
        )


@pytest.mark.parametrize(
    "path", sorted({path for method, path in routes() if method == "GET" and path != UPGRADE})
)
def test_head_is_get_without_a_body(server, path) -> None:
    world = World(server)
    target = world.path(path) + (f"?task_id={world.task_id}" if "prompt" in path else "")
    headers = world.bearer(credential_of(path, "get"))
    got = http.get(server.url + target, headers=headers)
    head = http.head(server.url + target, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


BODIES = sorted(
    (path, method) for path, method in OPERATIONS if "requestBody" in document()["paths"][path][method]
)


def is_json(path: str, method: str) -> bool:
    return "application/json" in document()["paths"][path][method]["requestBody"]["content"]


JSON_BODIES = [each for each in BODIES if is_json(*each)]


def send(
    world: World, path: str, method: str, content: Any, kind: str | None, **options: Any
) -> httpx2.Response:
    headers = world.bearer(credential_of(path, method))
    headers |= {} if kind is None else {"Content-Type": kind}
    url = world.server.url + world.path(path) + ("?name=part" if "artifact" in path else "")
    return http.request(method, url, content=content, headers=headers, **options)


@pytest.mark.parametrize(("path", "method"), JSON_BODIES)
def test_the_bodies_of_contract_1_1(server, path, method) -> None:
    """415 for another type, 400 for what is not JSON, 422 for JSON of another shape."""
    world = World(server)
    for kind in (None, "text/plain", "application/", "application/xml", "application/x-www-form-urlencoded"):
        assert send(world, path, method, b"{}", kind).status_code == 415, kind
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json"):
        for text in (b"", b"{", b"\xff", b"{} {}", b"[" * 3000, b'{"a":NaN}', b'{"a":1e999}'):
            assert send(world, path, method, text, kind).status_code == 400, (kind, text[:20])
        for text in (b"[]", b"null", b"1", b'"x"'):
            assert send(world, path, method, text, kind).status_code == 422, (kind, text)


@pytest.mark.parametrize(("path", "method"), BODIES)
def test_a_body_of_more_than_2_mib_is_413(server, path, method) -> None:
    """Whether it says so, or comes in chunks."""
    world = World(server)
    kind = "application/json" if is_json(path, method) else "application/octet-stream"
    said = send(world, path, method, b" " * (MAX_BODY + 1), kind)
    chunked = send(world, path, method, iter([b" " * (MAX_BODY // 2)] * 3), kind)
    assert (said.status_code, chunked.status_code) == (413, 413)


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if credential_of(*each)])
def test_without_a_credential_nothing_is_done(server, path, method) -> None:
    """401 on the operators' and the admin's routes; on the workers' every fault of the header is 400."""
    world = World(server)
    of_worker = credential_of(path, method) in ("worker", "session")
    without = 401 if not of_worker or (path, method) == ("/v1/data/{name}", "get") else 400
    good = world.schema()[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE)

    @given(good)
    @settings(max_examples=1, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    def each(case: Case) -> None:
        case.headers.clear()
        with requests.Session() as session:
            session.trust_env = False
            assert case.call(base_url=server.url, session=session).status_code == without
            for wrong in ("Basic x", "Bearer", "Bearer ", "bearer x"):
                answer = case.call(base_url=server.url, session=session, headers={"Authorization": wrong})
                assert answer.status_code == (400 if of_worker else 401), wrong

    each()


def test_an_unknown_path_is_an_empty_404(server) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/",
        "/v1/healthz/",
        "/v1/operators/",
        "/v1/tasks/a/b",
        "/V1/healthz",
        "/v1/%68ealthz/x",
    ):
        answer = http.get(server.url + path)
        assert (answer.status_code, answer.content) == (404, b""), path


def test_the_document_knows_every_name_of_a_path() -> None:
    for path, operations in document()["paths"].items():
        for operation in operations.values():
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path)), path
