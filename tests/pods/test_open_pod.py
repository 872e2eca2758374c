"""Pods as their owner has them: real processes, real sockets, every way out."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trio_swarm._io.host import Host
from trio_swarm._io.process import open_warden
from trio_swarm._io.runtime import private_dir
from trio_swarm.errors import (
    BusyError,
    ChildCrashed,
    RemoteError,
    RestartIntensityExceeded,
    SlowPeerError,
    SpawnError,
)
from trio_swarm.frames import pod as frames
from trio_swarm.frames.pod import ScopeRule
from trio_swarm.pods import ScopeLock, ScopeRefused, open_pod


class Rig:
    """A host, and a directory for pods to write in."""

    def __init__(self, host, out, events):
        self.host, self.out, self.events = host, out, events

    def open(self, engine, *, name="p", **kwargs):
        kwargs.setdefault("scope", [ScopeRule(str(self.out), "write")])
        return open_pod(self.host, f"tests.pods.engines:{engine}", name=name, **kwargs)

    def socket(self, name="p"):
        return str(self.host.runtime_dir / "pods" / name / "sock")

    def left(self):
        return list((self.host.runtime_dir / "pods").iterdir())

    def kinds(self):
        return [kind for kind, _ in self.events]


@asynccontextmanager
async def rigged(tmp_path):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    async with private_dir() as runtime, open_warden(remove=[runtime]) as warden:
        events = []
        yield Rig(Host(warden, runtime, lambda kind, data: events.append((kind, dict(data)))), out, events)


@pytest.fixture
async def rig(tmp_path):
    async with rigged(tmp_path) as made:
        yield made


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# -- turns -----------------------------------------------------------------------------------------


async def test_runs_turns_and_remembers(rig):
    """Text, history, statistics; the process ends as asked."""
    async with rig.open("echo") as pod:
        assert pod.state == "idle"
        result = await pod.run("hi")
        assert (result.text, result.result, result.requests, result.attempt) == (
            "you said hi",
            "finished",
            1,
            1,
        )
        history = await pod.history()
        assert [item.role for item in history.items] == ["user", "assistant"]
        assert history.greeting.pod_name == "p"
        assert history.greeting.cwd == str(rig.out)
        pid, stats = pod.pid, pod.statistics()
        assert (stats.turns, stats.restarts, stats.pid, stats.state) == (1, 0, pid, "idle")

    assert gone(pid)
    assert rig.left() == []
    assert [report.how for report in rig.host.warden.report()] == ["asked"]
    assert rig.events == [("pod_started", {"name": "p", "pid": pid})]
    with pytest.raises(trio.ClosedResourceError):
        await pod.run("too late")


async def test_the_runtime_directory_is_the_contracts(rig):
    """pid, status.json, history.json, sock; 0700 and 0600 (B3.1)."""
    async with rig.open("echo") as pod:
        directory = Path(rig.socket()).parent
        assert sorted(os.listdir(directory)) == ["history.json", "pid", "sock", "status.json"]
        assert (directory / "pid").read_text() == str(pod.pid)
        assert oct(directory.stat().st_mode)[-3:] == "700"
        assert oct((directory / "sock").stat().st_mode)[-3:] == "600"


async def test_writes_within_its_scope_and_nowhere_else(rig, tmp_path):
    """The error's text reaches the caller, naming path and grant."""
    async with rig.open("write") as pod:
        await pod.run(json.dumps({"path": "a/b", "content": "1"}))
        with pytest.raises(RemoteError) as caught:
            await pod.run(json.dumps({"path": str(tmp_path / "no"), "content": "1"}))
        assert caught.value.remote_type == "tool_error"
        assert caught.value.message == f"write {tmp_path / 'no'} is outside the grant: write:{rig.out}"
        assert (rig.out / "a" / "b").read_text() == "1"
        assert not (tmp_path / "no").exists()
        assert pod.state == "idle"


async def test_tool_results_and_usage(rig):
    """What the turn's tools gave is part of its result; tokens add up."""
    async with rig.open("tool") as pod:
        result = await pod.run(json.dumps({"path": "f", "content": "abc"}))

    (outcome,) = result.tool_results
    assert (outcome.name, outcome.output, outcome.is_error) == ("Write", "wrote 3 bytes to f", False)
    assert (result.input_tokens, result.output_tokens) == (7, 5)
    assert (result.text, result.requests) == ("first\n\nsecond", 2)


async def test_the_scope_is_resolved_before_it_is_used(rig, tmp_path):
    """``..`` and links in a rule's target; the pod gets the real path."""
    (tmp_path / "alias").symlink_to(rig.out)
    async with rig.open("write", scope=[ScopeRule(f"{tmp_path}/x/../alias", "write")]) as pod:
        assert pod.scope == (ScopeRule(str(rig.out), "write"),)
        await pod.run(json.dumps({"path": "f", "content": "1"}))
    assert (rig.out / "f").exists()


async def test_callers_take_turns(rig):
    """One turn at a time, in the order of the calls."""
    async with rig.open("do") as pod:
        results = {}

        async def call(n):
            results[n] = (await pod.run(f"x{n}")).text

        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(call, n)
        assert sorted(text.split()[0] for text in results.values()) == [f"x{n}" for n in range(8)]
        assert sorted(int(text.split()[1]) for text in results.values()) == [2 * n for n in range(8)]


async def test_open_turn_shows_each_event(rig):
    """In order; then the result."""
    async with rig.open("do") as pod, pod.open_turn("many 50") as events:
        seen = [event async for event in events]
        result = await events.result()

    assert isinstance(seen[0], frames.TurnStart)
    assert isinstance(seen[-1], frames.RunEnd)
    assert "".join(event.text for event in seen if isinstance(event, frames.TextDelta)) == result.text


async def test_a_slow_loop_is_told_and_the_turn_goes_on(rig):
    """The client reads all the same."""
    async with rig.open("do") as pod, pod.open_turn("many 500", buffered=10) as events:
        result = await events.result()
        assert result.text.endswith("499 ")
        with pytest.raises(SlowPeerError, match="fell behind"):
            async for event in events:
                assert event is not None


async def test_leaving_open_turn_early_cancels_the_turn(rig):
    """And the next can begin at once."""
    async with rig.open("do") as pod:
        async with pod.open_turn("sleep") as events:
            async for event in events:
                if isinstance(event, frames.TextDelta):
                    break
        assert pod.state == "idle"
        assert await pod.run("next")


async def test_cancelling_run_cancels_the_turn(rig):
    """At once, and the pod is free."""
    async with rig.open("do") as pod:
        with trio.move_on_after(0.3) as scope:
            await pod.run("sleep")
        assert scope.cancelled_caught
        assert pod.state == "idle"
        assert (await pod.run("next")).text.startswith("next")
        assert pod.statistics().restarts == 0


async def test_a_turn_that_does_not_end_costs_the_process(rig, monkeypatch):
    """Nothing runs past its deadline: the cancelled turn's process is replaced after a bounded wait."""
    monkeypatch.setattr("trio_swarm.pods.pod.POD_STEP", 0.5)
    async with rig.open("do") as pod:
        pid = pod.pid
        with trio.move_on_after(0.5):
            await pod.run("block")
        assert gone(pid)
        assert await pod.run("next")
        assert pod.statistics().restarts == 1


async def test_cancel_turn(rig):
    """Whoever waits for it is told."""
    async with rig.open("do") as pod, trio.open_nursery() as nursery:
        refused = trio.Event()

        async def run():
            with pytest.raises(RemoteError, match="the run was cancelled"):
                await pod.run("sleep")
            refused.set()

        nursery.start_soon(run)
        with trio.fail_after(10):
            while pod.state != "running":
                await trio.sleep(0.01)
            await pod.cancel_turn()
            await refused.wait()


async def test_notify_starts_a_turn_that_the_next_run_waits_for(rig):
    """It is not taken for the run's own."""
    async with rig.open("do") as pod:
        await pod.notify("b", "turn done")
        result = await pod.run("hello")
        assert result.text == "hello 1 []"
        (told, *_) = (await pod.history()).items
        assert "turn done" in told.content[0].text


async def test_pause_and_resume(rig):
    """A paused turn refuses a new one until it was resumed."""
    async with rig.open("do") as pod:
        assert (await pod.run("pause")).result == "paused"
        with pytest.raises(BusyError, match="already_running"):
            await pod.run("x")
        assert (await pod.resume()).result == "finished"
        with pytest.raises(BusyError, match="not_paused"):
            await pod.resume()


async def test_notifications_become_events(rig):
    """Somebody may want to see them."""
    async with rig.open("do") as pod:
        await pod.run("alert disk is full")
    assert rig.events[-1] == (
        "pod_notification",
        {"name": "p", "level": "error", "source": "worker", "message": "disk is full"},
    )


# -- others at the same socket -----------------------------------------------------------------------


async def foreign(rig, *lines):
    stream = await trio.open_unix_socket(rig.socket())
    await stream.send_all(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return stream


async def test_a_foreign_run_makes_ours_busy(rig):
    """And is not taken for ours; after it ours runs."""
    async with rig.open("do") as pod:
        async with await foreign(rig, {"method": "run", "params": {"input": "sleep"}}) as other:
            with trio.fail_after(10):
                while pod.state != "running":
                    await trio.sleep(0.01)
                with pytest.raises(BusyError):
                    await pod.run("mine")
                await other.send_all(b'{"method":"cancel"}\n')
                while pod.state != "idle":
                    await trio.sleep(0.01)
        assert (await pod.run("mine")).text.startswith("mine")


async def test_a_foreign_run_that_races_ours_is_never_taken_for_ours(rig):
    """Either ours ran, or it is busy; many times over."""
    async with rig.open("do") as pod:
        ours = busy = 0
        for n in range(60):
            line = json.dumps({"method": "run", "params": {"input": f"theirs{n}"}}).encode() + b"\n"

            async def race(line=line):
                async with await trio.open_unix_socket(rig.socket()) as other:
                    await other.send_all(line)
                    await other.receive_some(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(race)
                await trio.sleep(0.0002 * (n % 10))
                try:
                    assert (await pod.run(f"ours{n}")).text.startswith(f"ours{n} ")
                    ours += 1
                except BusyError:
                    busy += 1
        assert ours + busy == 60
        assert ours


async def test_a_foreign_bad_line_is_not_our_error(rig):
    """It goes to the offender."""
    async with rig.open("do") as pod, pod.open_turn("sleep") as events:
        await anext(events)
        async with await foreign(rig, {"bad": "json"}) as other:
            assert b"invalid method" in await other.receive_some(1000)
        assert pod.state == "running"


async def test_a_foreign_shutdown_is_answered_by_a_new_process(rig):
    """The owner wants it up."""
    async with rig.open("do") as pod:
        first = pod.pid
        async with await foreign(rig, {"method": "shutdown"}):
            with trio.fail_after(20):
                while pod.statistics().restarts == 0:
                    await trio.sleep(0.01)
        assert pod.pid != first
        assert await pod.run("x")


# -- crashes -----------------------------------------------------------------------------------------


async def test_killed_mid_turn(rig):
    """The turn's caller is told how; a new process takes the next turn."""
    async with rig.open("do") as pod:
        first = pod.pid
        with pytest.raises(ChildCrashed, match="killed by SIGKILL") as caught:
            await pod.run("die")
        assert (caught.value.pid, caught.value.attempt) == (first, 1)
        assert (await pod.run("next")).text == "next 0 []"
        assert pod.pid != first
    assert rig.kinds() == ["pod_started", "pod_crashed", "pod_restarted"]
    assert rig.events[1][1] == {"name": "p", "pid": first, "how": "killed by SIGKILL"}


async def test_killed_from_outside_while_idle(rig):
    """It comes back without anybody asking."""
    async with rig.open("do") as pod:
        os.kill(pod.pid, signal.SIGKILL)
        with trio.fail_after(20):
            while pod.statistics().restarts == 0:
                await trio.sleep(0.01)
        assert await pod.run("x")


async def test_the_end_of_stderr_is_in_the_report(rig):
    """Of the crash."""
    async with rig.open("do") as pod:
        with pytest.raises(ChildCrashed) as caught:
            await pod.run("stderr last words")
        assert "last words" in caught.value.stderr_tail


async def test_an_idempotent_run_is_run_again(rig, tmp_path):
    """On the new process; the result says which try it was."""
    async with rig.open("do") as pod:
        result = await pod.run(f"die-once {tmp_path / 'mark'}", idempotent=True)
        assert (result.text, result.attempt) == ("survived", 2)


async def test_an_idempotent_run_that_kills_is_an_outcome_and_no_loop(rig):
    """After the attempts that were given."""
    async with rig.open("do", max_attempts=2) as pod:
        with pytest.raises(ChildCrashed) as caught:
            await pod.run("die", idempotent=True)
        assert caught.value.attempt == 2
        assert str(caught.value).endswith("killed by SIGKILL at attempt 2")
        assert caught.value.pid
        assert await pod.run("x")


async def test_too_many_crashes_end_the_block(rig):
    """The supervisor gives up, and names them."""
    crashes = []
    with pytest.raises(RestartIntensityExceeded) as caught:
        async with rig.open("do", max_restarts=1) as pod:
            while True:
                with pytest.raises(ChildCrashed) as crash:
                    await pod.run("die")
                crashes.append(crash.value)
    assert len(caught.value.attempts) == 2
    assert rig.left() == []
    with pytest.raises(RestartIntensityExceeded) as later:
        await pod.run("too late")
    assert later.value.attempts == caught.value.attempts


async def test_what_a_kill_in_mid_write_left_is_removed_by_the_next_life(rig):
    """When it writes to that directory again."""
    async with rig.open("do") as pod:
        with pytest.raises(ChildCrashed):
            await pod.run("die-writing f")
        (left,) = os.listdir(rig.out)
        assert left.startswith(".p-")
        await pod.run("write f")
        assert os.listdir(rig.out) == ["f"]


# -- starting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("tests.pods.engines:missing", "there is no 'missing'"),
        ("no.such.module:f", "No module named"),
        ("tests.pods.engines:not_callable", "is not callable"),
    ],
)
async def test_an_engine_that_cannot_be_had(rig, target, why):
    """SpawnError with the process's own words."""
    with pytest.raises(SpawnError, match=why):
        async with open_pod(rig.host, target, name="p", scope=[ScopeRule(str(rig.out), "write")]):
            raise AssertionError
    assert rig.left() == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "../up"}, "cannot name a pod"),
        ({"scope": []}, "at least one allow rule"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"scope": [ScopeRule("relative", "read")]}, "not an absolute path"),
        ({"deny": [ScopeRule("relative", "read")]}, "not an absolute path"),
        ({"name": "x" * 100}, "more than 103"),
    ],
)
async def test_bad_arguments_are_refused_before_anything_starts(rig, change, why):
    """With what is wrong."""
    with pytest.raises(ValueError, match=why):
        async with rig.open("echo", **change):
            raise AssertionError
    assert rig.host.warden.report() == ()


async def test_a_working_directory_outside_the_scope_is_refused(rig, tmp_path):
    """B3.2: it must be readable under the scope."""
    with pytest.raises(SpawnError, match=r"working directory .* is not readable under the scope"):
        async with rig.open("echo", cwd=str(tmp_path)):
            raise AssertionError


async def test_a_second_pod_of_the_name_does_not_start(rig):
    """The first is not disturbed."""
    async with rig.open("echo") as pod:
        with pytest.raises(SpawnError, match="another process is at work"):
            async with rig.open("echo"):
                raise AssertionError
        assert (await pod.run("still here")).text == "you said still here"


async def test_a_pod_that_never_listens_is_killed(rig, monkeypatch):
    """The socket wait is bounded, and nothing is left of the process."""
    argv = ["/bin/sh", "-c", "echo warming up >&2; sleep 60"]
    monkeypatch.setattr("trio_swarm.pods.life.python_argv", lambda module: argv)
    with pytest.raises(SpawnError, match=r"did not listen within 0\.4 s: warming up"):
        async with rig.open("echo", socket_wait=0.4):
            raise AssertionError


async def test_what_a_crash_left_is_cleared_away(rig):
    """A stale socket and old files of the same name."""
    directory = Path(rig.socket()).parent
    directory.parent.mkdir(mode=0o700)
    directory.mkdir(mode=0o700)
    (directory / "status.json").write_text("old")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(rig.socket())
    async with rig.open("echo") as pod:
        assert await pod.run("x")
    assert rig.left() == []


# -- leaving -----------------------------------------------------------------------------------------


async def test_an_error_of_the_body_leaves_as_itself(rig):
    """And nothing stays."""
    with pytest.raises(KeyError, match="mine"):
        async with rig.open("echo") as pod:
            pid = pod.pid
            raise KeyError("mine")
    assert gone(pid)
    assert rig.left() == []


@pytest.mark.parametrize("message", ["sleep", "block"])
async def test_leaving_by_cancellation_in_mid_turn(rig, message):
    """The process is gone when the block is, even where it does not hear."""
    with trio.move_on_after(1.0) as scope:
        async with rig.open("do", grace=0.3) as pod:
            pid = pod.pid
            scope.deadline = trio.current_time() + 0.5
            await pod.run(message)
    assert scope.cancelled_caught
    assert gone(pid)
    assert rig.left() == []
    (report,) = rig.host.warden.report()
    assert report.how == ("asked" if message == "sleep" else "killed")


async def test_leaving_while_another_task_waits_for_a_turn(rig):
    """It gets ClosedResourceError."""
    async with trio.open_nursery() as nursery:
        async with rig.open("do") as pod:

            async def run():
                with pytest.raises(trio.ClosedResourceError):
                    await pod.run("sleep")

            nursery.start_soon(run)
            nursery.start_soon(run)
            with trio.fail_after(10):
                while pod.state != "running":
                    await trio.sleep(0.01)


async def test_what_the_engine_started_is_gone_too(rig):
    """A grandchild in a session of its own."""
    async with rig.open("do") as pod:
        grandchild = int((await pod.run("grandchild")).text)
        assert not gone(grandchild)
    assert gone(grandchild)


async def test_sigterm_is_like_shutdown(rig):
    """The directory is removed and the exit status is 0."""
    async with rig.open("echo", max_restarts=3) as pod:
        os.kill(pod.pid, signal.SIGTERM)
        with trio.fail_after(20):
            while pod.statistics().restarts == 0:
                await trio.sleep(0.01)
    assert rig.host.warden.report()[0].exit.code == 0


# -- the scope lock ----------------------------------------------------------------------------------


async def test_scope_lock_holds_the_pod_while_it_lives(rig, tmp_path):
    """Entered before it starts, with its own pid once it runs, gone afterwards."""
    lock = ScopeLock(tmp_path / "scope.lock")
    async with rig.open("echo", scope_lock=lock.path) as pod:
        (held,) = await lock.allocations()
        assert (held.pod_name, held.pid, held.socket) == ("p", pod.pid, rig.socket())
        assert held.scope_allow == pod.scope
        with pytest.raises(ScopeRefused, match="conflicts with pod `p`"):
            async with rig.open("echo", name="q", scope_lock=lock.path):
                raise AssertionError
    assert await lock.allocations() == ()


async def test_scope_lock_is_kept_across_a_crash_and_freed_after_one(rig, tmp_path):
    """The restarted process is in the table; a block that ends badly leaves no entry."""
    lock = ScopeLock(tmp_path / "scope.lock")
    with pytest.raises(RestartIntensityExceeded):
        async with rig.open("do", scope_lock=lock.path, max_restarts=1) as pod:
            with pytest.raises(ChildCrashed):
                await pod.run("die")
            assert await pod.run("x")
            (held,) = await lock.allocations()
            assert held.pid == pod.pid
            with pytest.raises(ChildCrashed):
                await pod.run("die")
            await trio.sleep_forever()
    assert await lock.allocations() == ()


async def test_a_failed_start_rolls_the_reservation_back(rig, tmp_path):
    """Kill first, then release."""
    lock = ScopeLock(tmp_path / "scope.lock")
    with pytest.raises(SpawnError):
        async with rig.open("missing", scope_lock=lock.path):
            raise AssertionError
    assert await lock.allocations() == ()
