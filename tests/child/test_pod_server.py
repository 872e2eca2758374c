"""A pod as its clients see it: raw lines over its real socket (pods contract, B2 and the hazards of B2.4)."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from trio_swarm._child import pod_runtime, pod_server
from trio_swarm._child.pod_runtime import PodRuntime
from trio_swarm._child.pod_spec import PodSpec
from trio_swarm._io.unix import locked_directory, open_unix_listener
from trio_swarm._state.pod_controller import Notifier
from trio_swarm.frames.pod import ScopeRule, TextDelta


@attrs.define(eq=False)
class Wire:
    """A raw peer."""

    stream: trio.SocketStream
    buffer: bytes = b""

    async def send(self, *lines):
        await self.stream.send_all(b"".join(line.encode() + b"\n" for line in lines))

    async def method(self, name, **params):
        await self.send(json.dumps({"method": name, "params": params} if params else {"method": name}))

    async def next(self):
        """The next event as (name, data); None at the end."""
        while b"\n" not in self.buffer:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        event = json.loads(line)
        return event["event"], event.get("data")

    async def until(self, *names):
        """All events up to one of those names, it included."""
        seen = []
        with trio.fail_after(20):
            while not seen or seen[-1][0] not in names:
                event = await self.next()
                assert event is not None, seen
                seen.append(event)
        return seen


@attrs.define(eq=False)
class Served:
    """A pod in this process."""

    spec: PodSpec
    nursery: trio.Nursery
    ended: trio.Event

    @asynccontextmanager
    async def client(self):
        async with await trio.open_unix_socket(str(self.spec.socket)) as stream:
            yield Wire(stream)

    def file(self, name):
        return json.loads((self.spec.directory / name).read_text())


@asynccontextmanager
async def serving(tmp_path, engine, **kwargs):
    """A pod whose engine is a function of the test; it is shut down at the end, if it has not been."""
    base = tmp_path / "run"
    base.mkdir(exist_ok=True)
    spec = PodSpec("p", str(base), "m:f", (ScopeRule(str(tmp_path), "write"),), cwd=str(tmp_path)).check()
    with locked_directory(spec.directory):
        runtime = PodRuntime(spec, engine, save_every=0.01, **kwargs)
        runtime.save()
        async with open_unix_listener(spec.socket) as listener, trio.open_nursery() as nursery:
            served = Served(spec, nursery, trio.Event())

            async def run():
                await runtime.run(listener)
                served.ended.set()

            nursery.start_soon(run)
            yield served
            with trio.move_on_after(5):
                if not served.ended.is_set():
                    async with served.client() as client:
                        await client.method("shutdown")
                        await served.ended.wait()
            nursery.cancel_scope.cancel()


async def echo(turn):
    await turn.text(f"you said {turn.input}")


def code(event):
    return event[1]["code"]


# -- turns -------------------------------------------------------------------------------------


async def test_socket_run_receives_events(tmp_path):
    """One run, event by event, in the contract's order and shape."""
    async with serving(tmp_path, echo) as pod, pod.client() as client:
        await client.method("run", input="hi")

        assert await client.until("run_end") == [
            ("turn_start", {"turn": 0}),
            ("text_delta", {"text": "you said hi"}),
            ("text_done", {"text": "you said hi"}),
            ("turn_end", {"turn": 0, "result": "finished"}),
            ("run_end", {"result": "finished"}),
        ]


async def test_tools_run_after_their_turn_has_ended(tmp_path):
    """``turn_end`` comes before the tools execute; the next text is another request."""

    async def engine(turn):
        await turn.text("writing")
        await turn.tool("Write", {"path": "x", "content": "1"})
        return "done"

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="hi")
        seen = await client.until("run_end")

    assert [name for name, _ in seen] == [
        "turn_start",
        "text_delta",
        "text_done",
        "tool_call_start",
        "tool_call_done",
        "turn_end",
        "tool_result",
        "turn_start",
        "text_delta",
        "text_done",
        "turn_end",
        "run_end",
    ]
    assert seen[4][1] == {"id": "call_1", "name": "Write", "arguments": '{"path": "x", "content": "1"}'}
    assert seen[6][1] == {"id": "call_1", "output": "wrote 1 bytes to x", "is_error": False}
    assert (tmp_path / "x").read_text() == "1"


async def test_events_are_broadcast(tmp_path):
    """Every client sees the same."""
    async with serving(tmp_path, echo) as pod, pod.client() as one, pod.client() as two:
        await two.method("cancel")
        assert await two.next() == await one.next()
        await one.method("run", input="hi")

        assert await one.until("run_end") == await two.until("run_end")


async def test_double_run_returns_error(tmp_path):
    """While it runs; and the run that goes on is not disturbed."""
    go = trio.Event()

    async def engine(turn):
        await go.wait()

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="a")
        await client.until("turn_start")
        await client.method("run", input="b")
        assert (await client.until("error"))[-1] == (
            "error",
            {"code": "already_running", "message": "Pod is already executing a turn"},
        )
        go.set()
        await client.until("run_end")


@pytest.mark.parametrize(
    ("method", "expected"),
    [("resume", ("not_paused", "Pod is not paused")), ("cancel", ("not_running", "Pod is not running"))],
)
async def test_out_of_place_methods_return_errors(tmp_path, method, expected):
    """resume_without_pause, cancel_without_run."""
    async with serving(tmp_path, echo) as pod, pod.client() as client:
        await client.method(method)
        assert await client.next() == ("error", {"code": expected[0], "message": expected[1]})


async def test_run_right_after_run_end(tmp_path):
    """Is accepted, and its history shows the run that just ended."""
    async with serving(tmp_path, echo) as pod, pod.client() as client:
        for n in range(20):
            await client.method("run", input=str(n))
            seen = await client.until("run_end", "error")
            assert seen[-1][0] == "run_end"
            await client.method("get_history")
            items = (await client.until("history"))[-1][1]["items"]
            assert [item["role"] for item in items] == ["user", "assistant"] * (n + 1)


async def test_cancel_ends_the_turn_with_internal(tmp_path):
    """``error`` and no ``run_end``; the pod is idle again."""

    async def engine(turn):
        await turn.text("half")
        await trio.sleep_forever()

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="a")
        await client.until("text_delta")
        await client.method("cancel")
        assert (await client.until("error"))[-1] == (
            "error",
            {"code": "internal", "message": "the run was cancelled"},
        )
        await client.method("get_history")
        items = (await client.until("history"))[-1][1]["items"]
        assert items[-1]["status"] == "incomplete"
        await client.method("cancel")
        assert code((await client.until("error"))[-1]) == "not_running"


async def test_deadline_is_enforced(tmp_path):
    """``deadline_ms`` beside the method: error internal."""

    async def engine(turn):
        await trio.sleep_forever()

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.send('{"method":"run","params":{"input":"a"},"deadline_ms":20}')
        assert (await client.until("error"))[-1][1] == {
            "code": "internal",
            "message": "the run did not end within its 20 ms",
        }


async def test_pause_and_resume(tmp_path):
    """``run_end paused``; a run is refused then; resume goes on with the numbering."""

    async def engine(turn):
        if not turn.resumed:
            turn.pause()

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="a")
        assert (await client.until("run_end"))[-1][1] == {"result": "paused"}
        await client.method("run", input="b")
        assert code((await client.until("error"))[-1]) == "already_running"
        await client.method("resume")
        seen = await client.until("run_end")
        assert seen[0] == ("turn_start", {"turn": 1})
        assert seen[-1][1] == {"result": "finished"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("nope"), ("internal", "KeyError: 'nope'")),
        (SystemExit(3), ("internal", "SystemExit: 3")),
        (
            OSError(28, "No space left on device"),
            ("tool_error", "OSError: [Errno 28] No space left on device"),
        ),
        (
            ExceptionGroup("g", [ValueError("a"), ValueError("b")]),
            ("internal", "ValueError: a; ValueError: b"),
        ),
        (ValueError("\ud800" + "x" * 99999), None),
    ],
)
async def test_an_engines_error_ends_the_run_alone(tmp_path, error, expected):
    """The pod goes on."""

    async def engine(turn):
        if turn.input == "bad":
            raise error

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="bad")
        data = (await client.until("error"))[-1][1]
        if expected:
            assert (data["code"], data["message"]) == expected
        assert len(data["message"]) <= 16 * 1024
        await client.method("run", input="good")
        await client.until("run_end")


async def test_text_that_cannot_be_sent_fails_the_run(tmp_path):
    """A lone surrogate has no place on the wire; an empty text is no event."""

    async def engine(turn):
        await turn.text("")
        await turn.text("\ud800")

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="a")
        seen = await client.until("error")
        assert [name for name, _ in seen] == ["turn_start", "error"]


async def test_tool_failures_reach_engine_and_clients(tmp_path):
    """As ``tool_result`` with ``is_error``, and as ``tool_error`` where the engine lets them pass."""

    async def engine(turn):
        with pytest.raises(Exception, match="Invalid argument: there is no tool named 'Nope'"):
            await turn.tool("Nope", {})
        with pytest.raises(Exception, match="Invalid argument: invalid Read input: 'path' is missing"):
            await turn.tool("Read", {})
        await turn.tool("Read", {"path": "/etc/passwd"})

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="a")
        seen = await client.until("error")
    results = [data for name, data in seen if name == "tool_result"]
    assert [each["is_error"] for each in results] == [True] * 3
    wanted = f"Invalid argument: read /etc/passwd is outside the grant: write:{tmp_path}"
    assert results[-1]["output"] == wanted
    assert seen[-1][1] == {"code": "tool_error", "message": wanted}


# -- history -----------------------------------------------------------------------------------


async def test_history_is_as_of_the_end_of_the_last_run(tmp_path):
    """Empty before the first; a turn in progress is not visible; only the asker gets it."""
    go = trio.Event()

    async def engine(turn):
        await turn.tool("Write", {"path": "f", "content": "a\nb"})
        await go.wait()
        return "ok"

    async with serving(tmp_path, engine) as pod, pod.client() as client, pod.client() as other:
        await client.method("run", input="q")
        await client.until("tool_result")
        await client.method("get_history")
        before = (await client.until("history"))[-1][1]
        assert before["items"] == []
        assert before["greeting"] == {
            "pod_name": "p",
            "cwd": str(tmp_path),
            "provider": "anthropic",
            "model": "engine",
            "scope_summary": f"Readable:\n  - {tmp_path}\nWritable:\n  - {tmp_path}",
            "tools": ["Read", "Write"],
        }
        go.set()
        await client.until("run_end")
        await client.method("get_history")
        after = (await client.until("history"))[-1][1]["items"]
        assert [item["type"] for item in after] == ["message", "tool_call", "tool_result", "message"]
        seen = await other.until("run_end")
        assert "history" not in [name for name, _ in seen]


async def test_history_is_bounded(tmp_path):
    """The oldest items go; a long text is shortened; the file is the same list."""

    async def engine(turn):
        return "y" * 200_000

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        for n in range(12):
            await client.method("run", input=f"{n}" + "x" * 200_000)
            await client.until("run_end")
        await client.method("get_history")
        items = (await client.until("history"))[-1][1]["items"]
        assert len(items) < 24
        assert items[-1]["content"][0]["text"].endswith("more characters left out]")
        assert sum(len(json.dumps(item)) for item in items) <= 2 * 2**20
        with trio.fail_after(5):
            while pod.file("history.json") != items:
                await trio.sleep(0.01)


async def test_a_half_closed_client_still_gets_its_history(tmp_path):
    """The one answer that is owed to it; then the connection ends."""
    async with serving(tmp_path, echo) as pod, pod.client() as client:
        await client.method("get_history")
        await client.stream.send_eof()
        assert (await client.next())[0] == "history"
        assert await client.next() is None


# -- notifications -----------------------------------------------------------------------------


async def alarm(turn):
    for n in range(int(turn.input)):
        await turn.alert("warn", str(n))


async def test_late_subscriber_sees_earlier_notifications_via_snapshot(tmp_path):
    """And nothing else of the past."""
    async with serving(tmp_path, alarm) as pod, pod.client() as client:
        await client.method("run", input="3")
        await client.until("run_end")
        async with pod.client() as late:
            for n in range(3):
                name, data = await late.next()
                assert (name, data["message"], data["level"]) == ("notification", str(n), "warn")
            await late.method("cancel")
            assert (await late.next())[0] == "error"


async def test_buffer_discards_oldest_past_cap(tmp_path):
    """512 are replayed."""
    async with serving(tmp_path, alarm) as pod, pod.client() as client:
        await client.method("run", input="600")
        await client.until("run_end")
        async with pod.client() as late:
            await late.method("cancel")
            seen = await late.until("error")
            assert [int(data["message"]) for name, data in seen[:-1]] == list(range(88, 600))


async def test_subscribe_snapshot_and_live_do_not_overlap(tmp_path):
    """Clients that come at any moment of a flow of notifications see each exactly once, in order."""
    async with serving(tmp_path, alarm) as pod, pod.client() as first:
        await first.method("run", input="300")
        ends = []
        async with trio.open_nursery() as nursery:

            async def join():
                async with pod.client() as client:
                    seen = []
                    while not seen or seen[-1] != 299:
                        name, data = await client.next()
                        if name == "notification":
                            seen.append(int(data["message"]))
                    assert seen == list(range(300))
                    ends.append(seen)

            for _ in range(10):
                nursery.start_soon(join)
                await trio.sleep(0.005)
        assert len(ends) == 10


async def test_notify_while_idle_auto_starts_turn_and_injects_system_message(tmp_path):
    """The engine gets the text; the history does not."""
    told = []

    async def engine(turn):
        told.append((turn.input, turn.notifications))
        return "noted"

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("notify", source="b", message="turn done")
        await client.until("run_end")
        ((text, (note,)),) = told
        assert text is None
        assert note.startswith("[Notification from b]\nturn done")
        await client.method("get_history")
        items = (await client.until("history"))[-1][1]["items"]
        assert [item["role"] for item in items] == ["assistant"]


async def test_notify_while_running_does_not_emit_already_running_error(tmp_path):
    """It waits for the next request of the engine, or for the next run."""
    go, told = trio.Event(), []

    async def engine(turn):
        told.extend(turn.notifications)
        if turn.input == "a":
            await go.wait()
            told.extend(turn.take_notifications())

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="a")
        await client.until("turn_start")
        await client.method("notify", source="x", message="1")
        await client.method("get_history")
        await client.until("history")
        go.set()
        seen = await client.until("run_end")
        assert "error" not in [name for name, _ in seen]
    assert len(told) == 1


# -- hostile and clumsy peers --------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ['{"bad":"json"}', "nonsense", '{"method":"nope"}', "[]", '{"method":"run"}', "\x01"]
)
async def test_socket_invalid_method_returns_error(tmp_path, line):
    """To the offender alone; its connection stays, and blank lines are nothing."""
    async with serving(tmp_path, echo) as pod, pod.client() as client, pod.client() as other:
        await client.send(line, "", "   ")
        name, data = await client.next()
        assert (name, data["code"]) == ("error", "internal")
        assert data["message"].startswith("invalid method: ")
        await client.method("run", input="x")
        assert await client.next() == ("turn_start", {"turn": 0})
        assert await other.next() == ("turn_start", {"turn": 0})


async def test_a_last_line_without_newline_counts(tmp_path):
    """Then end of file."""
    async with serving(tmp_path, echo) as pod, pod.client() as watcher, pod.client() as client:
        await client.stream.send_all(b'{"method":"run","params":{"input":"x"}}')
        await client.stream.send_eof()
        await watcher.until("run_end")


async def test_an_over_long_line_loses_the_connection_alone(tmp_path, monkeypatch):
    """16 MiB by default; the others do not notice."""
    monkeypatch.setattr(pod_server.PodClients.__init__, "__kwdefaults__", {"max_line": 1000, "pace": 1.0})
    async with serving(tmp_path, echo) as pod, pod.client() as other, pod.client() as client:
        try:
            await client.stream.send_all(b"x" * 5000)
            assert await client.next() is None
        except trio.BrokenResourceError:
            # Reset, since it had more to say.
            pass
        await other.method("run", input="x")
        await other.until("run_end")


async def test_send_only_client_is_heard_while_512_notifications_are_buffered(tmp_path):
    """Its replay cannot be written, its method counts all the same (the upstream hazard of B2.4)."""
    async with serving(tmp_path, alarm) as pod, pod.client() as watcher:
        await watcher.method("run", input="512")
        await watcher.until("run_end")
        for n in range(20):
            with socket.socket(socket.AF_UNIX) as sender:
                sender.connect(str(pod.spec.socket))
                sender.sendall(b'{"method":"run","params":{"input":"0"}}\n')
            seen = await watcher.until("run_end", "error")
            assert seen[-1][0] == "run_end", n


async def test_a_client_that_does_not_read_300_events_is_cut_and_nobody_waits_long(tmp_path, monkeypatch):
    """The one that reads gets all of them, the engine ends, the other's connection is gone."""
    monkeypatch.setattr(pod_server.PodClients.__init__, "__kwdefaults__", {"max_line": 2**24, "pace": 0.1})

    async def engine(turn):
        for n in range(600):
            await turn.text(f"{n:05}" + "x" * 20_000)

    async with serving(tmp_path, engine) as pod, pod.client() as reader, pod.client() as deaf:
        await deaf.method("cancel")
        await deaf.next()
        await reader.until("error")
        await reader.method("run", input="x")
        seen = await reader.until("run_end")
        assert [int(data["text"][:5]) for name, data in seen if name == "text_delta"] == list(range(600))
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await deaf.until("run_end")


async def test_a_burst_loses_no_client_that_reads(tmp_path):
    """The engine is paced: thousands of events at once, and everybody gets each."""

    async def engine(turn):
        for n in range(3000):
            await turn.text(f"{n:05}" + "x" * 300)

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        await client.method("run", input="x")
        seen = await client.until("run_end")
        assert [int(data["text"][:5]) for name, data in seen if name == "text_delta"] == list(range(3000))


async def test_resets_and_vanishing_clients_do_not_disturb(tmp_path):
    """A hundred of them."""
    async with serving(tmp_path, alarm) as pod, pod.client() as client:
        await client.method("run", input="100")
        await client.until("run_end")

        def be_rude():
            for n in range(100):
                with socket.socket(socket.AF_UNIX) as rude:
                    rude.connect(str(pod.spec.socket))
                    if n % 2:
                        rude.sendall(b'{"method":"get_hist')

        await trio.to_thread.run_sync(be_rude)
        await client.method("run", input="1")
        await client.until("run_end")


async def test_another_users_process_is_not_served(tmp_path, monkeypatch):
    """Whoever it is gets nothing but the end of the connection."""
    monkeypatch.setattr(pod_server, "peer_is_ours", lambda stream: False)
    async with serving(tmp_path, echo) as pod:
        async with pod.client() as client:
            assert await client.next() is None
        monkeypatch.undo()


# -- its end, its files ----------------------------------------------------------------------------


async def test_shutdown_while_running_cancels_tells_and_ends(tmp_path):
    """error internal, then shutdown, then end of file, for every client."""

    async def engine(turn):
        await trio.sleep_forever()

    async with serving(tmp_path, engine) as pod, pod.client() as one, pod.client() as two:
        await one.method("run", input="x")
        await one.until("turn_start")
        await two.method("shutdown")
        for client in (one, two):
            seen = await client.until("shutdown")
            assert [name for name, _ in seen[-2:]] == ["error", "shutdown"]
            assert await client.next() is None
        await pod.ended.wait()


async def test_a_deaf_client_does_not_keep_the_pod_from_ending(tmp_path):
    """Bounded, a few seconds."""

    async def engine(turn):
        await turn.text("x" * 2_000_000)

    async with serving(tmp_path, engine) as pod, pod.client() as one, pod.client() as deaf:
        await deaf.method("cancel")
        await deaf.next()
        await one.until("error")
        await one.method("run", input="x")
        await one.until("run_end")
        await one.method("shutdown")
        await one.until("shutdown")
        with trio.fail_after(8):
            await pod.ended.wait()


async def test_status_json_reflects_pod_name_and_state(tmp_path):
    """At the start and at every change."""
    go = trio.Event()

    async def engine(turn):
        await go.wait()

    async def settles(pod, state):
        with trio.fail_after(5):
            while pod.file("status.json")["state"] != state:
                await trio.sleep(0.01)

    async with serving(tmp_path, engine) as pod, pod.client() as client:
        status = pod.file("status.json")
        assert status["pod_name"] == "p"
        assert status["state"] == "idle"
        assert status["session_id"][14] == "7"
        assert pod.file("history.json") == []
        await client.method("run", input="x")
        await settles(pod, "running")
        go.set()
        await settles(pod, "idle")
        assert pod.file("status.json")["session_id"] == status["session_id"]
        assert oct(os.stat(pod.spec.directory).st_mode)[-3:] == "700"


async def test_a_full_disk_costs_no_turn(tmp_path, monkeypatch, capsys):
    """The state files are written again when there is something new; it is said once."""
    failed = []

    def full(path, data):
        failed.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving(tmp_path, echo) as pod, pod.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(pod_runtime, "_replace", full)
            with trio.fail_after(5):
                while len(failed) < 2:
                    await client.method("run", input="a")
                    await client.until("run_end")
                    await trio.sleep(0.01)
        await client.method("run", input="b")
        await client.until("run_end")
        with trio.fail_after(5):
            while not any("said b" in json.dumps(item) for item in pod.file("history.json")):
                await trio.sleep(0.01)
    said = capsys.readouterr().err
    assert said.count("pod: p cannot write its state: ") == 1
    assert "No space left" in said


def test_the_size_of_an_event_is_counted_in_bytes():
    """As its readers count it: else one event would cost every client its connection."""
    clients = pod_server.PodClients(Notifier(), print, print, max_line=100)
    clients.broadcast(TextDelta("x" * 40))
    for letter in ("\xe9", "\u20ac"):
        with pytest.raises(ValueError, match="more than clients take"):
            clients.broadcast(TextDelta(letter * 40))
