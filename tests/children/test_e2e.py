"""A child in a real process, from start to end (children contract, A10 e2e)."""

from __future__ import annotations

import pytest
import trio

from tests.children.support import HERE, iterate, open_host
from trio_swarm._io.fabric import Fabric
from trio_swarm.children import open_child
from trio_swarm.errors import RemoteError, SpawnError
from trio_swarm.frames.record import BambooRuntime, CliAdapter, EchoExecutor


async def test_spawn_discover_run_stream_terminal(tmp_path):
    """A record with a loopback endpoint, events, then the result."""
    async with open_host(tmp_path) as (host, heard), open_child(host, EchoExecutor()) as child:
        assert child.record.endpoint.startswith("ws://127.0.0.1:")
        assert child.record.pid == child.pid
        async with child.open_run("hello world") as run:
            events = [event async for event in run]

        assert run.result == "echo: hello world"
        assert events == [
            {"type": "token", "content": "hello "},
            {"type": "token", "content": "world "},
            {"type": "complete"},
        ]
    assert heard.kinds() == ["child_started"]


async def test_runs_follow_one_another_in_one_process(tmp_path):
    """One connection carries many runs."""
    async with open_host(tmp_path) as (host, _), open_child(host, "echo") as child:
        pid = child.pid
        assert [await child.run(str(n)) for n in range(5)] == [f"echo: {n}" for n in range(5)]
        assert child.pid == pid
        assert child.statistics().completed == 5


async def test_callers_take_turns_in_order(tmp_path):
    """Never a second run before the first terminal; nobody overtakes."""
    ended = []

    async def one(n):
        assert await child.run(f"{n} __sleep_ms:20") == f"echo: {n}"
        ended.append(n)

    async with (
        open_host(tmp_path) as (host, _),
        open_child(host, "echo") as child,
        trio.open_nursery() as nursery,
    ):
        for n in range(6):
            nursery.start_soon(one, n)
            await trio.testing.wait_all_tasks_blocked()
    assert ended == list(range(6))


async def test_the_record_is_gone_after_the_block(tmp_path):
    """And so is the process; it ended because it was asked to."""
    async with open_host(tmp_path) as (host, _):
        async with open_child(host, "echo", name="child-7", fabric_dir=tmp_path / "fabric") as child:
            fabric = Fabric(tmp_path / "fabric")
            assert (await fabric.resolve("child-7")).pid == child.pid
            assert (await fabric.discover())[0].role == "worker"
        assert await fabric.discover() == []
        assert list((tmp_path / "fabric").iterdir()) == []
        (report,) = host.warden.report()
        assert report.how == "asked"
        assert report.exit.code == 0


async def test_the_record_is_gone_after_a_cancelled_block(tmp_path):
    """Cancelled in the middle of a run: still nothing is left."""
    async with open_host(tmp_path) as (host, _):
        with trio.CancelScope() as scope:
            async with open_child(host, f"{HERE}:hang") as child, child.open_run("x") as run:
                async for _ in run:
                    scope.cancel()
        assert scope.cancelled_caught
        assert list((tmp_path / "agents").iterdir()) == []


async def test_an_exception_of_the_block_leaves_as_itself(tmp_path):
    """Not wrapped because of nurseries that the user never sees."""
    async with open_host(tmp_path) as (host, _):
        with pytest.raises(KeyError, match="mine"):
            async with open_child(host, f"{HERE}:hang") as child, child.open_run("x"):
                raise KeyError("mine")


async def test_python_engines_get_the_conversation(tmp_path):
    """Messages and effort arrive as they were sent; a result that is no text comes as JSON."""
    messages = [{"role": "user", "content": "plan it", "x_keep": [1]}]
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:describe") as child:
        text = await child.run("x", messages=messages, reasoning_effort="high")
        assert text.startswith('{"messages": [{"role": "user", "content": "plan it", "x_keep": [1]}]')
        assert '"effort": "high"' in text


@pytest.mark.parametrize(
    ("engine", "assignment", "result"),
    [("greet", "you", "hello you"), ("plain", "loud", "LOUD"), ("nothing", "x", "")],
)
async def test_kinds_of_engines(tmp_path, engine, assignment, result):
    """Async functions, plain functions in a thread, and one that returns nothing."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:{engine}") as child:
        assert await child.run(assignment) == result


async def test_an_exception_of_the_engine_is_a_remote_error_and_the_child_lives(tmp_path):
    """With its type's name and message (executor_panic_becomes_terminal_error)."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:fail") as child:
        with pytest.raises(RemoteError, match="no such thing: x") as caught:
            await child.run("x")
        assert caught.value.remote_type == "LookupError"
        with pytest.raises(RemoteError):
            await iterate(child, "y")
        assert child.statistics().crashes == 0


@pytest.mark.parametrize(("engine", "kind"), [("leave", "SystemExit"), ("not_json", "TypeError")])
async def test_other_ways_for_an_engine_to_fail(tmp_path, engine, kind):
    """sys.exit() ends a run, not the process; a result without a JSON form is an error."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:{engine}") as child:
        with pytest.raises(RemoteError) as caught:
            await child.run("x")
        assert caught.value.remote_type == kind
        assert child.state == "idle"


async def test_steering_reaches_the_run_at_work(tmp_path):
    """message_frame_routes_to_active_steer_inbox."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:steered") as child:
        assert not await child.tell("nobody listens")
        async with child.open_run("x") as run:
            async for _ in run:
                assert await child.tell("skip the docs")
        assert run.result == "skip the docs"


async def test_a_slow_reader_of_events_loses_none(tmp_path):
    """The child waits; nothing is kept without bound."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:flood") as child:
        seen = []
        async with child.open_run("2000") as run:
            async for event in run:
                seen.append(event["n"])
                if event["n"] == 100:
                    await trio.sleep(0.2)  # long enough for the child to fill everything between us
        assert seen == list(range(2000))
        assert run.result == "2000"


async def test_wait_reads_the_rest(tmp_path):
    """For those who want the result alone, after all."""
    async with (
        open_host(tmp_path) as (host, _),
        open_child(host, f"{HERE}:flood") as child,
        child.open_run("500") as run,
    ):
        with pytest.raises(RuntimeError, match="not over"):
            _ = run.result
        assert await run.wait() == "500"


async def test_the_deadline_travels(tmp_path):
    """As remaining time; the far end sees it in its own scope."""
    async with open_host(tmp_path) as (host, _), open_child(host, f"{HERE}:deadline") as child:
        with trio.fail_after(40):
            assert await child.run("x") in ("40", "39")


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("no.such.module:f", r"exited 2; it wrote: provision error: no\.such\.module:f: ModuleNotFoundError"),
        (f"{HERE}:missing", "there is no 'missing'"),
        (BambooRuntime(), "bamboo_runtime executor is not implemented"),
        (CliAdapter("aider"), "cli_adapter executor is not implemented"),
    ],
)
async def test_a_child_that_cannot_come_up_is_a_spawn_error(tmp_path, target, match):
    """With what it wrote; status 2 for what it cannot run (A4.2)."""
    async with open_host(tmp_path) as (host, _):
        with pytest.raises(SpawnError, match=match):
            async with open_child(host, target):
                raise AssertionError("not reached")


async def test_a_child_that_says_nothing_is_killed(tmp_path):
    """'did not register within ...' (A4.1)."""
    async with open_host(tmp_path) as (host, _):
        with pytest.raises(SpawnError, match=r"did not register within 0\.01 s"):
            async with open_child(host, "echo", register_wait=0.01):
                raise AssertionError("not reached")
        assert host.warden.report()[0].exit.signal is not None


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden", "", "a\0b", "x" * 201])
async def test_names_that_are_no_agent_ids_are_refused(tmp_path, name):
    """Before anything is started (A3)."""
    async with open_host(tmp_path) as (host, _):
        with pytest.raises(ValueError, match="name"):
            async with open_child(host, "echo", name=name):
                raise AssertionError("not reached")
        assert host.warden.report() == ()


@pytest.mark.parametrize("target", ["", "module", ":f", "module:"])
async def test_targets_that_are_none_are_refused(tmp_path, target):
    """Before anything is started."""
    async with open_host(tmp_path) as (host, _):
        with pytest.raises(ValueError, match="a target is"):
            async with open_child(host, target):
                raise AssertionError("not reached")


async def test_a_record_of_an_earlier_process_is_not_used(tmp_path):
    """Stale, but not expired: its pid is another's (A4.1, pitfall)."""
    fabric = Fabric(tmp_path / "agents")
    async with open_host(tmp_path) as (host, _):
        async with open_child(host, "echo", name="child-7") as child:
            old = child.record
        await fabric.publish(old)
        async with open_child(host, "echo", name="child-7") as child:
            assert child.record.pid == child.pid != old.pid
            assert await child.run("x") == "echo: x"


async def test_two_children_do_not_mix(tmp_path):
    """service_agent_concurrent_no_crosstalk, for two children of one host."""
    results = {}

    async def one(child, text):
        results[text] = await child.run(text)

    async with (
        open_host(tmp_path) as (host, _),
        open_child(host, "echo") as slow,
        open_child(host, "echo") as quick,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(one, slow, "slow __sleep_ms:200")
        nursery.start_soon(one, quick, "quick")
    assert list(results) == ["quick", "slow __sleep_ms:200"]
    assert set(results.values()) == {"echo: quick", "echo: slow"}


async def test_a_closed_child_runs_nothing(tmp_path):
    """You closed it, says the error."""
    async with open_host(tmp_path) as (host, _):
        async with open_child(host, "echo") as child:
            pass
        assert child.state == "closed"
        with pytest.raises(trio.ClosedResourceError):
            await child.run("x")


async def test_a_run_of_another_task_ends_with_the_childs_block(tmp_path):
    """It waits for nothing that cannot come."""
    async with open_host(tmp_path) as (host, _), trio.open_nursery() as nursery:

        async def outside():
            with pytest.raises(trio.ClosedResourceError):
                await child.run("x")
            ended.set()

        ended = trio.Event()
        async with open_child(host, f"{HERE}:hang") as child:
            nursery.start_soon(outside)
            while child.state != "running":
                await trio.sleep(0.01)
        await ended.wait()
