"""swarm.dispatch and its server, as a program uses them."""

from __future__ import annotations

import httpx2
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.exceptions import ConnectionClosedOK

from tests.operators.support import log_in, socket_of
from tests.swarm.support import ADMIN, Scripted
from tests.swarm.test_dispatch_http import Worker
from trio_swarm import StepCancelled, WorkerResult, open_swarm
from trio_swarm._state.token import CapabilityToken


async def forever(frame):
    await trio.sleep_forever()


async def test_an_attached_operator_does_a_step_by_its_name() -> None:
    """The task is on the swarm's board; the events are in its stream, in order, without secrets."""
    operator = Scripted(executes={"n": 1})
    async with open_swarm() as swarm, swarm.subscribe() as events:
        await swarm.attach(operator, name="op")
        result = await swarm.dispatch("coder", "write", operator="op", metadata={"k": 1})
        (task,) = swarm.tasks.tasks()
        swarm.emit("enough")
        seen = []
        async for event in events:
            if event.kind == "enough":
                break
            seen.append(event)

    assert result == WorkerResult({"n": 1})
    assert (task.status, task.agent, task.prompt) == ("pass", "coder", "write")
    kinds = [event.kind for event in seen if event.kind != "step_waits"]
    assert kinds == ["task_created", "attempt_started", "attempt_ended", "task_settled"]
    assert all(event.data["task_id"] == task.task_id for event in seen)
    assert task.attempt.worker_handle not in repr(seen)


async def test_operators_workers_and_steps_are_on_one_port() -> None:
    """start_operators serves all three; a worker's large output lies in the swarm's spool."""
    big = b'{"x": "' + b"y" * 100_000 + b'"}'
    async with open_swarm() as swarm:
        server = await swarm.start_operators(admin_token="admin-secret")
        login = await log_in(server, roles=["lead"])
        async with (
            socket_of(server, login) as peer,
            httpx2.AsyncClient(base_url=server.url, trust_env=False) as http,
            trio.open_nursery() as nursery,
        ):
            await server.wait_seat("lead")
            got = []

            async def run() -> None:
                got.append(await swarm.dispatch("coder", "p", operator="lead", layers=["operator_delegate"]))

            nursery.start_soon(run)
            spawn = await peer.next()
            worker = Worker(http, spawn["task_id"], spawn["worker_handle"])
            body = {
                "task_id": spawn["task_id"],
                "attempt": 1,
                "producer_agent": "coder",
                "event": {"type": "partial", "chunk": {"kind": "inline", "value": big.decode()}},
            }
            emitted = await http.post("/v1/data/emit", json=body, headers=worker.bearer)
            files = [path for path in swarm._spool.rglob("*") if path.is_file()]
            status = (await http.get("/v1/status")).json()
            watched = (await http.get(f"/v1/tasks/{spawn['task_id']}", headers=ADMIN)).json()
            await worker.submit("done")
            await peer.send(type="spawn_ack", req_id=spawn["req_id"])
        directories = (swarm.directory, swarm._spool)

    assert got == [WorkerResult("done")]
    assert emitted.status_code == 200
    assert len(files) == 1
    assert status["running_runs"] == 1
    assert watched["waiting_for"] == "spawn of lead"
    assert not any(directory.exists() for directory in directories)


async def test_without_workers_and_admin_there_are_no_such_routes() -> None:
    """404; and the directive names no address that would not answer."""
    frames = []

    async with open_swarm() as swarm, swarm.serve_operators(workers=False) as server:
        await swarm.attach(Scripted(executes=frames.append), name="op")
        await swarm.dispatch("coder", "p", operator="op")
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:
            answers = [
                await http.get("/v1/worker/prompt", params={"task_id": "x"}),
                await http.get("/v1/tasks", headers=ADMIN),
                await http.get("/v1/runs/x", headers=ADMIN),
            ]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert "http://" not in frames[0].directive
    assert "mse_doctor" in frames[0].directive
    assert "DATA_EMIT" not in frames[0].directive


async def test_workers_can_be_told_another_address() -> None:
    """Where a proxy stands before the server. After the server there is none again."""
    frames = []
    async with open_swarm() as swarm:
        await swarm.attach(Scripted(executes=frames.append), name="op")
        async with swarm.serve_operators(base_url="https://swarm.example/a"):
            await swarm.dispatch("coder", "p", operator="op")
        await swarm.dispatch("coder", "p", operator="op")

    assert "  base_url: https://swarm.example/a\n" in frames[0].directive
    assert "GET https://swarm.example/a/v1/runs/<run_id>" in frames[0].directive
    assert "swarm.example" not in frames[1].directive


LARGE = "persona " * 4000


@pytest.mark.parametrize(
    ("base_url", "listeners", "root"),
    [
        ("https://swarm.example/a", None, "https://swarm.example/a"),
        (None, None, None),
        (None, "unix", "http://localhost"),  # Of the request: nobody was told where to go.
        ("http://swarm.example", "unix", "http://swarm.example"),
    ],
)
async def test_a_large_persona_is_fetched_where_the_worker_was_told_to_go(
    tmp_path, base_url, listeners, root
) -> None:
    """Not from what the request said of its host: behind TLS or a proxy that is somewhere else."""
    refs = []
    transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "s")) if listeners else None

    async with open_swarm() as swarm:
        bound = [await trio_unix(tmp_path / "s")] if listeners else None

        async def execute(frame):
            async with httpx2.AsyncClient(
                base_url=f"http://localhost:{port}", transport=transport, trust_env=False
            ) as http:
                fetched = await Worker(http, frame.task_id, frame.worker_handle).fetch()
                refs.append(fetched.json()["system_ref"]["uri"])

        await swarm.attach(Scripted(executes=execute), name="op")
        async with swarm.serve_operators(base_url=base_url, listeners=bound) as server:
            port = server.url.rpartition(":")[2] if not listeners else "80"
            await swarm.dispatch("coder", "p", operator="op", system=LARGE, grace=0)

    (task,) = swarm.tasks.tasks()
    assert refs == [f"{root or server.url}/v1/worker/prompt/system?task_id={task.task_id}&attempt=1"]


async def test_on_a_unix_socket_no_worker_is_sent_to_a_port_of_somebody_else(tmp_path) -> None:
    """No URL leads there; one that was made up would take the handle to whoever listens on it."""
    frames, steps = [], []

    async def execute(frame):
        frames.append(frame)

    async def callable_execute(step):
        steps.append(step)

    async with open_swarm() as swarm:
        await swarm.attach(Scripted(executes=execute), name="op")
        async with swarm.serve_operators(listeners=[await trio_unix(tmp_path / "s")]):
            await swarm.dispatch("coder", "p", operator="op", grace=0)
            await swarm.dispatch("coder", "p", execute=callable_execute)

    assert "localhost" not in frames[0].directive
    assert steps[0].base_url is None


async def trio_unix(path) -> trio.SocketListener:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    return trio.SocketListener(sock)


async def test_leaving_the_block_ends_what_is_being_dispatched() -> None:
    """A step in a task outside of the block is cancelled, its operator told, and the block ends after it."""
    ends = []
    async with trio.open_nursery() as nursery:
        async with open_swarm() as swarm:
            server = await swarm.start_operators()
            login = await log_in(server, roles=["lead"])

            async def run() -> None:
                try:
                    await swarm.dispatch("coder", "p", operator="lead", layers=["operator_delegate"])
                except StepCancelled as error:
                    ends.append(error.reason)

            async def operator(*, task_status) -> None:
                async with socket_of(server, login) as peer:
                    task_status.started()
                    ends.append((await peer.next())["type"])
                    withdrawn = await peer.next()
                    ends.append((withdrawn["type"], withdrawn["reason"]))
                    with pytest.raises(ConnectionClosedOK) as closed:
                        await peer.next()
                    ends.append(closed.value.rcvd.code)

            await nursery.start(operator)
            await server.wait_seat("lead")
            nursery.start_soon(run)
            while "spawn" not in ends:
                await wait_all_tasks_blocked(0.001)

    assert [end for end in ends if end != "the swarm is ending"] == ["spawn", ("withdraw", "cancelled"), 1001]
    assert "the swarm is ending" in ends
    assert swarm.tasks.tasks()[0].status == "cancelled"


@pytest.mark.parametrize("how", ["error", "cancel"])
async def test_a_detached_step_ends_with_the_swarm(how) -> None:
    """Settled as cancelled however the block is left."""
    with trio.CancelScope() as scope:
        try:
            async with open_swarm() as swarm:
                await swarm.attach(Scripted(executes=forever), name="op")
                server = await swarm.start_operators(admin_token="admin-secret")
                async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:
                    body = {"agent": "a", "prompt": "p", "operator_sid": "op", "detach": True}
                    assert (await http.post("/v1/tasks", json=body, headers=ADMIN)).status_code == 202
                while swarm.tasks.tasks()[0].waiting_for is None:
                    await wait_all_tasks_blocked(0.001)
                if how == "error":
                    raise ValueError("mine")
                scope.cancel()
                await trio.sleep_forever()
        except ValueError as error:
            assert str(error) == "mine"

    (task,) = swarm.tasks.tasks()
    assert task.status == "cancelled"


async def test_dispatch_after_the_end_is_refused() -> None:
    """The handle outlives the block, its powers do not."""
    async with open_swarm() as swarm:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await swarm.dispatch("a", "p", execute=forever)


@pytest.mark.parametrize("name", ["timeout", "default_kind"])
async def test_an_argument_that_there_is_not_is_named(name) -> None:
    """In the words of what was called; and nothing was done."""
    async with open_swarm() as swarm:
        with pytest.raises(TypeError, match=rf"dispatch\(\) got an unexpected keyword argument '{name}'$"):
            await swarm.dispatch("a", "p", execute=forever, **{name: None})
        assert swarm.tasks.tasks() == ()


async def test_how_long_credentials_last_is_a_setting() -> None:
    """token_ttl: from the start of the attempt; a token says so itself, a handle is judged by it."""
    frames = []
    async with open_swarm(token_ttl=77) as swarm:
        await swarm.attach(Scripted(executes=frames.append), name="op")
        await swarm.dispatch("coder", "p", operator="op")
    token = CapabilityToken.decode(frames[0].capability_token)

    assert token.expire_at - token.issued_at == 77
    with pytest.raises(ValueError, match="token_ttl"):
        async with open_swarm(token_ttl=0):
            pass
