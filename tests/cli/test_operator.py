"""A person, or a script, at ``trio-swarm operator``: over pipes, and at a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

import trio_swarm
from tests.io.processes import token_env, until_gone
from tests.operators.support import Result, serving
from tests.operators.test_client import Original, _original_rest
from trio_swarm.cli import main
from trio_swarm.cli.operator_desk import Desk, value_of
from trio_swarm.cli.operator_state import KeptSession
from trio_swarm.cli.operator_view import block, plain
from trio_swarm.errors import ApprovalDenied, RemoteError
from trio_swarm.operators import OperatorSession, Withdrawn
from trio_swarm.operators.lineage import answering

ROOT = str(Path(__file__).parents[2])
STEP = {"task_id": "ST-1", "agent": "coder", "attempt": 1}
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202eevil\r\n#9 ask  fake"


class Person:
    """Someone who types, and reads what is there."""

    def __init__(self, stdin, stdout, process) -> None:
        self.stdin, self.stdout, self.process = stdin, stdout, process
        self.seen = b""

    async def says(self, line: str) -> None:
        await self.stdin.send_all(line.encode() + b"\n")

    async def sees(self, text: str) -> str:
        """Read until ``text`` was there; returns all up to it, and forgets it."""
        wanted = text.encode()
        with trio.fail_after(20):
            while wanted not in self.seen:
                data = await self.stdout.receive_some()
                assert data, f"{text!r} never came, but {self.seen!r}"
                self.seen += data
        before, _, self.seen = self.seen.partition(wanted)
        return (before + wanted).decode()

    async def rest(self) -> str:
        try:
            while data := await self.stdout.receive_some():
                self.seen += data
        except (trio.BrokenResourceError, OSError):
            pass  # A terminal ends with EIO.
        return self.seen.decode()


def environment(tmp_path, **more) -> dict[str, str]:
    return {"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin", "XDG_STATE_HOME": str(tmp_path), **more}


@asynccontextmanager
async def person(url, *args, env):
    """The command over pipes."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "trio_swarm", "operator", url, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    try:
        async with process.stdin, process.stdout, process.stderr:
            yield Person(process.stdin, process.stdout, process)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_a_script_answers_each_kind_of_request(tmp_path) -> None:
    """What it replies comes out at the other end; what does not fit is told."""
    async with serving() as server, trio.open_nursery() as nursery:
        async with person(server.url, "--role", "main", "--name", "me", env=environment(tmp_path)) as who:
            seat = await server.wait_seat("main")
            await who.sees("-- joined as main")

            async def exchange(call, *lines):
                result = Result()
                nursery.start_soon(result.run, call)
                for line in lines:
                    await who.says(line)
                with trio.fail_after(20):
                    await result.done.wait()
                return result.error or result.value

            ask, gate = partial(seat.ask, {"q": [1]}, task_id="ST-9"), partial(seat.hook_before, **STEP)
            spawn = partial(seat.spawn, **STEP, directive="do it\nnow")
            assert await exchange(ask, 'answer {"a": 1}') == {"a": 1}
            assert '  |   "q": [' in await who.sees("answer VALUE | edit")
            assert await exchange(ask, "answer just words") == "just words"
            assert await exchange(gate, "ack") is None
            denied = await exchange(gate, "answer 1", "reject not today")
            assert isinstance(denied, ApprovalDenied)
            assert denied.reason == "not today"
            await who.sees("is hook_before: ack | reject [REASON]")
            assert (await exchange(spawn, "done 5")).value == 5
            assert (await exchange(spawn, "ack")).value == {}
            failed = await exchange(spawn, "fail out of luck")
            assert isinstance(failed, RemoteError)
            assert str(failed) == "out of luck"
            assert (await exchange(spawn, "halt enough")).value["reason"] == "enough"
            await who.sees("  | now")
            seat.hook_after(**STEP, result={"x": 1})
            await who.sees("-- ended: step ST-1")
            await who.says("nonsense")
            await who.sees("no such command: nonsense")
            await who.says("leave")
            assert await who.process.wait() == 0
        assert server.seats() == ()
        assert list(tmp_path.iterdir()) == []


async def test_a_hostile_question_drives_no_terminal(tmp_path) -> None:
    """Wherever the server may put a text."""
    async with serving() as server, trio.open_nursery() as nursery:
        async with person(server.url, env=environment(tmp_path)) as who:
            seat = await server.wait_seat()
            step = {"task_id": HOSTILE, "agent": HOSTILE, "attempt": 1}
            question = partial(seat.ask, {HOSTILE: HOSTILE}, task_id=HOSTILE, parent_req_id=HOSTILE)
            nursery.start_soon(Result().run, question)
            said = await who.sees("answer VALUE")
            with answering("r", [f"{HOSTILE}#S-1"], None):
                nursery.start_soon(Result().run, partial(seat.spawn, **step, directive=HOSTILE))
            said += await who.sees("done VALUE")
            seat.hook_after(**step, result=HOSTILE)
            said += await who.sees("-- ended")
            await who.says("#1 show")
            await who.says("list")
            await who.says("leave")
            said += await who.rest()
            assert await who.process.wait() == 0
    assert said.count("owned") >= 8
    assert all(character.isprintable() or character == "\n" for character in said)
    assert not any(line.startswith("#9") for line in said.split("\n"))


async def test_an_editor_writes_a_long_answer(tmp_path) -> None:
    """Its file is JSON or a text; an empty one sends nothing."""
    editor = tmp_path / "editor"
    editor.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        f"pathlib.Path(sys.argv[1]).write_text(pathlib.Path({str(tmp_path / 'text')!r}).read_text())\n"
    )
    editor.chmod(0o700)
    async with serving() as server, trio.open_nursery() as nursery:
        async with person(server.url, env=environment(tmp_path, EDITOR=str(editor))) as who:
            seat, result = await server.wait_seat(), Result()
            nursery.start_soon(result.run, partial(seat.ask, 1, task_id="t"))
            await who.sees("edit")
            (tmp_path / "text").write_text(" \n")
            await who.says("edit")
            await who.sees("nothing was sent for #1")
            (tmp_path / "text").write_text("two\nlines\n")
            await who.says("edit")
            await who.sees("-- replied to #1")
            await result.done.wait()
            assert result.value == "two\nlines"
            await who.says("leave")
            assert await who.process.wait() == 0


async def test_one_leaves_and_comes_back(tmp_path) -> None:
    """With --keep: what was not answered is asked again; the file is nobody else's; logout ends it."""
    async with serving() as server, trio.open_nursery() as nursery:
        known = ("--role", "main", "--keep")
        env = environment(tmp_path)
        async with person(server.url, *known, env=env) as who:
            seat, result = await server.wait_seat("main"), Result()
            nursery.start_soon(result.run, partial(seat.ask, "still there?", task_id="t"))
            await who.sees("still there?")
            await who.says("leave")
            assert "1 to be asked again" in await who.rest()
            assert await who.process.wait() == 0
        (kept,) = tmp_path.glob("trio-swarm/operators/*.json")
        assert kept.stat().st_mode & 0o777 == 0o600
        assert json.loads(kept.read_text())["sid"] == seat.sid
        async with person(server.url, *known, env=env) as who:
            await who.sees("-- back as main")
            await who.sees("still there?")
            await who.says("answer yes")
            await result.done.wait()
            assert result.value == "yes"
            await who.says("logout")
            assert await who.process.wait() == 0
        assert server.seats() == ()
        assert not kept.exists()

        KeptSession.of(server.url, None, ["main"], env).save(OperatorSession("S-0", "0" * 32, ["main"]))
        async with person(server.url, *known, env=env) as who:
            await who.sees("-- the kept session is over; logging in anew")
            await who.sees("-- joined as main")
            assert await server.remove("main")
            await who.sees("-- the server ended the session")
            assert await who.process.wait() == 0
        assert not kept.exists()


async def test_the_end_of_the_input_leaves_after_what_it_said(tmp_path) -> None:
    """``echo answer | trio-swarm operator``: the answer is for the request that comes."""
    async with serving() as server, trio.open_nursery() as nursery:
        async with person(server.url, env=environment(tmp_path)) as who:
            await who.says("answer 7")
            await who.stdin.aclose()
            seat, result = await server.wait_seat(), Result()
            nursery.start_soon(result.run, partial(seat.ask, "?", task_id="t"))
            await result.done.wait()
            assert result.value == 7
            assert await who.process.wait() == 0


async def test_an_original_server_will_do(tmp_path) -> None:
    """Without any of the features."""
    original = Original()
    original.script = ['{"type":"ask","req_id":"r-1","task_id":"T-1","question":"q?"}']
    from websockets.trio.server import serve as ws_serve

    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(
            partial(ws_serve, original.on_socket, 0, host="127.0.0.1", compression=None)
        )
        url = await nursery.start(_original_rest, sockets.listeners[0].socket.getsockname()[1])
        async with person(url, env=environment(tmp_path)) as who:
            await who.sees("  | q?")
            await who.says("answer yes")
            while not original.received:
                await trio.sleep(0.005)
            await who.says("leave")
            assert await who.process.wait() == 0
        nursery.cancel_scope.cancel()
    assert json.loads(original.received[0]) == {"type": "answer", "req_id": "r-1", "value": "yes"}


ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


async def said_on_stderr(who) -> str:
    said = b""
    async for data in who.process.stderr:
        said += data
    return said.decode()


@pytest.mark.parametrize("signum", ENDING, ids=lambda signum: signum.name)
@pytest.mark.parametrize("keep", [False, True], ids=["logs out", "keeps"])
async def test_a_signal_ends_it_in_order(tmp_path, signum, keep) -> None:
    """One line, status 128 and the number; the session is deleted, or kept to come back to."""
    async with serving() as server:
        known = ("--role", "main", *(("--keep",) if keep else ()))
        env = environment(tmp_path)
        async with person(server.url, *known, env=env) as who:
            await who.sees("-- joined as main")
            who.process.send_signal(signum)
            with trio.fail_after(20):
                assert await said_on_stderr(who) == f"trio-swarm: stopped by {signum.name}\n"
                assert await who.process.wait() == 128 + signum
        assert len(server.seats()) == keep
        assert len(list(tmp_path.glob("trio-swarm/operators/*.json"))) == keep
        if keep:
            async with person(server.url, *known, env=env) as who:
                await who.sees("-- back as main")


async def test_further_signals_do_not_cut_its_end_short(tmp_path) -> None:
    """Ctrl-C again, while the server takes its time to answer the logout: it is waited for, bounded."""
    original = Original()
    from websockets.trio.server import serve as ws_serve

    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(
            partial(ws_serve, original.on_socket, 0, host="127.0.0.1", compression=None)
        )
        url = await nursery.start(_original_rest, sockets.listeners[0].socket.getsockname()[1])
        forward = Forward(url)
        (listener,) = await nursery.start(partial(trio.serve_tcp, forward.one, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with person(url, env=environment(tmp_path)) as who:
            await who.sees("-- joined")
            who.process.send_signal(signal.SIGTERM)
            await forward.deleting.wait()
            who.process.send_signal(signal.SIGTERM)
            who.process.send_signal(signal.SIGINT)
            forward.go_on.set()
            with trio.fail_after(20):
                assert await said_on_stderr(who) == "trio-swarm: stopped by SIGTERM\n"
                assert await who.process.wait() == 143
        nursery.cancel_scope.cancel()


class Forward:
    """Before a server: hands on all that comes, but holds a DELETE until it is told to go on."""

    def __init__(self, url) -> None:
        self.port = int(url.rpartition(":")[2])
        self.deleting, self.go_on = trio.Event(), trio.Event()

    async def one(self, client) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self.hand_on, client, server)
            await self.hand_on(server, client)
            nursery.cancel_scope.cancel()

    async def hand_on(self, source, target) -> None:
        try:
            async for data in source:
                if data.startswith(b"DELETE "):
                    self.deleting.set()
                    await self.go_on.wait()
                await target.send_all(data)
        except trio.BrokenResourceError:
            pass


async def test_a_lost_connection_is_told_and_its_return_too(tmp_path) -> None:
    """What was replied meanwhile is sent then."""
    async with trio.open_nursery() as nursery:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        authority = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        async with serving(allowed_hosts=[authority]) as server:
            line = Cuttable(server.url)
            nursery.start_soon(trio.serve_listeners, line.one, [listener])
            async with person(f"http://{authority}", env=environment(tmp_path)) as who:
                await who.sees("-- joined")
                seat, result = await server.wait_seat(), Result()
                nursery.start_soon(result.run, partial(seat.ask, "?", task_id="t"))
                await who.sees("answer VALUE")
                line.cut()
                await who.sees("-- the connection is lost; replies are sent when it is back")
                await who.says("answer 5")
                await who.sees("-- replied to #1")
                line.mend()
                await who.sees("-- connected again")
                with trio.fail_after(20):
                    await result.done.wait()
                assert result.value == 5
                await who.says("leave")
                assert await who.process.wait() == 0
        nursery.cancel_scope.cancel()


class Cuttable(Forward):
    """Before a server: can be cut, and then lets nobody through until it is mended."""

    def __init__(self, url) -> None:
        super().__init__(url)
        self.go_on.set()
        self.up, self.scopes = True, []

    def cut(self) -> None:
        self.up = False
        for scope in self.scopes:
            scope.cancel()

    def mend(self) -> None:
        self.up = True

    async def one(self, client) -> None:
        async with client:
            if self.up:
                with trio.CancelScope() as scope:
                    self.scopes.append(scope)
                    await super().one(client)


async def test_a_person_reads_what_a_step_is_about(tmp_path) -> None:
    """`prompt` fetches it as a worker would; `show` has the worker's handle; both as plain text."""
    async with trio_swarm.open_swarm() as swarm, trio.open_nursery() as nursery:
        server = await swarm.start_operators()
        async with person(server.url, "--role", "main", env=environment(tmp_path)) as who:
            seat, result = await server.wait_seat("main"), Result()
            binding = trio_swarm.OperatorBinding(backend=seat)
            step = partial(
                swarm.dispatch, "coder", f"write it {HOSTILE}", system="be brief", operator=binding
            )
            nursery.start_soon(result.run, step)
            await who.sees("prompt | done VALUE")
            await who.says("show")
            shown = await who.sees("worker_handle: wh-")
            await who.says("prompt")
            shown += await who.sees("  | write it")
            assert "  | be brief" in shown
            await who.says("done 5")
            shown += await who.sees("-- replied to #1")
            assert all(character.isprintable() or character == "\n" for character in shown)
            with trio.fail_after(20):
                await result.done.wait()
            assert result.value.value == 5
            nursery.start_soon(result.run, partial(seat.ask, "?", task_id="t"))
            await who.sees("answer VALUE")
            await who.says("prompt")
            await who.sees("#2 is ask: it has no prompt")
            nursery.start_soon(Result().run, partial(seat.spawn, **STEP, directive="of no task"))
            await who.sees("done VALUE")
            await who.says("#3 prompt")
            await who.sees("-- the prompt cannot be fetched: ")
            await who.says("leave")
            assert await who.process.wait() == 0
        nursery.cancel_scope.cancel()


async def test_nobody_reads_what_is_asked(tmp_path) -> None:
    """One line and status 1, rather than an operator who cannot see."""
    async with serving() as server, trio.open_nursery() as nursery:
        async with person(server.url, env=environment(tmp_path)) as who:
            await who.sees("-- joined")
            await who.stdout.aclose()
            nursery.start_soon(Result().run, partial((await server.wait_seat()).ask, "?", task_id="t"))
            with trio.fail_after(20):
                said = await said_on_stderr(who)
                assert await who.process.wait() == 1
        assert said == "trio-swarm: error: cannot write to standard output\n"
        assert server.seats() == ()


async def test_without_standard_input_it_is_one_line(tmp_path) -> None:
    """As after ``<&-``."""
    done = await trio.run_process(
        ["/bin/sh", "-c", f"{sys.executable} -m trio_swarm operator http://127.0.0.1:1 <&-"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(tmp_path),
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"trio-swarm: error: standard input and output are needed\n"


BEHIND_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.executable, [sys.executable, '-m', 'trio_swarm', 'operator', *sys.argv[1:]])"
)


@asynccontextmanager
async def at_a_terminal(url, env):
    """The command with a terminal of its own, which must be afterwards as it was before."""
    ours, theirs = pty.openpty()
    try:
        before, blocking = termios.tcgetattr(theirs), os.get_blocking(theirs)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", BEHIND_A_TERMINAL, url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=env,
        )
        try:
            async with trio.lowlevel.FdStream(os.dup(ours)) as terminal:
                yield Person(terminal, terminal, process)
            assert (termios.tcgetattr(theirs), os.get_blocking(theirs)) == (before, blocking)
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    finally:
        os.close(ours)
        os.close(theirs)


async def test_ctrl_c_at_a_terminal_ends_it_cleanly(tmp_path) -> None:
    """Status 130, the session is gone from the server, and the terminal is as it was."""
    async with serving() as server, trio.open_nursery() as nursery:
        async with at_a_terminal(server.url, environment(tmp_path)) as who:
            await who.sees("-- joined")
            seat, result = await server.wait_seat(), Result()
            nursery.start_soon(result.run, partial(seat.ask, "?", task_id="t"))
            await who.sees("answer VALUE")
            await who.says("#1 answer 1")
            await result.done.wait()
            await who.says("ack")
            await who.sees("nothing waits")
            await who.stdin.send_all(b"half a line\x03")
            with trio.fail_after(20):
                assert await who.process.wait() == 130
        assert server.seats() == ()


RAW_EDITOR = (
    "import os, signal, sys, time, tty; tty.setraw(0); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "os.write(1, b'editing'); time.sleep(100)"
)


@pytest.mark.parametrize("signum", ENDING, ids=lambda signum: signum.name)
async def test_a_signal_in_the_middle_of_an_edit_ends_the_editor_too(tmp_path, signum) -> None:
    """One that had changed the terminal, and that takes no notice of the signal itself."""
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\n{RAW_EDITOR}\n")
    editor.chmod(0o700)
    marked, token = token_env()
    env = environment(tmp_path, EDITOR=str(editor), **marked)
    async with serving() as server, trio.open_nursery() as nursery:
        async with at_a_terminal(server.url, env) as who:
            seat = await server.wait_seat()
            nursery.start_soon(Result().run, partial(seat.ask, "?", task_id="t"))
            await who.sees("answer VALUE")
            await who.says("edit")
            await who.sees("editing")
            seat.hook_after(**STEP, result="held back while it is edited")
            who.process.send_signal(signum)
            with trio.fail_after(20):
                assert await who.process.wait() == 128 + signum
        assert server.seats() == ()
    await until_gone(token)


async def test_a_terminal_that_goes_away_ends_it(tmp_path) -> None:
    """Its window was closed: the session is over, whether the signal or the end of the input comes first."""
    async with serving() as server:
        ours, theirs = pty.openpty()
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", BEHIND_A_TERMINAL, server.url],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment(tmp_path),
        )
        os.close(theirs)
        async with trio.lowlevel.FdStream(ours) as terminal:
            who = Person(terminal, terminal, process)
            await who.sees("-- joined")
        with trio.fail_after(20):
            said = await said_on_stderr(who)
            assert await process.wait() in (0, 1, 129)
        assert said.count("\n") <= 1
        assert server.seats() == ()


@pytest.mark.parametrize(
    ("argv", "part", "status"),
    [
        ([], "the following arguments are required: URL", 2),
        (["ftp://x"], "argument URL: expected a URL", 2),
        (["http://127.0.0.1:99999"], "argument URL: Port out of range", 2),
        (["http://[::1"], "argument URL: Invalid IPv6 URL", 2),
        (["http://me:secret@127.0.0.1:1"], "argument URL: the URL of a server holds no credentials", 2),
        (["http://127.0.0.1:1", "--sid", "S-1"], "--sid and --token go together", 2),
        (["http://127.0.0.1:1", "--sid", "S-1", "--token", "t", "--keep"], "without --keep", 2),
        (["http://127.0.0.1:1", "--sid", "a b", "--token", "t"], "cannot be used", 2),
        (["http://127.0.0.1:1", "--sid", "S-1", "--token", "@/no/such"], "--token", 2),
    ],
)
def test_what_is_wrong_with_the_command_line(argv, part, status, capsys) -> None:
    """One line, and nothing is connected to."""
    assert main(["operator", *argv]) == status
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1
    assert "secret" not in said


async def test_nobody_there_is_one_line(tmp_path) -> None:
    """Status 1."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with person(f"http://127.0.0.1:{port}", env=environment(tmp_path)) as who:
        said = b""
        async for data in who.process.stderr:
            said += data
        assert await who.process.wait() == 1
    assert said.startswith(b"trio-swarm: error: cannot connect")
    assert said.endswith(b": Connection refused\n")
    assert said.count(b"\n") == 1


async def test_a_session_that_is_not_there_is_one_line(tmp_path) -> None:
    """Status 1; the server does not say which of sid and token is wrong, and neither do we."""
    async with serving() as server:
        async with person(server.url, "--sid", "S-1", "--token", "t" * 32, env=environment(tmp_path)) as who:
            said = await said_on_stderr(who)
            assert await who.process.wait() == 1
    assert said.startswith(
        "trio-swarm: error: the session S-1 is not there any more, or its token is another"
    )
    assert said.count("\n") == 1
    assert "tttt" not in said


async def test_a_session_that_cannot_be_kept_is_not_left_behind(tmp_path) -> None:
    """Its token would be nowhere."""
    async with serving() as server:
        env = environment(tmp_path) | {"XDG_STATE_HOME": "/proc/self/nowhere"}
        async with person(server.url, "--keep", env=env) as who:
            said = b""
            async for data in who.process.stderr:
                said += data
            assert await who.process.wait() == 1
        assert said.startswith(b"trio-swarm: error:")
        assert server.seats() == ()


# -- the parts -----------------------------------------------------------------------------


def test_plain_text_has_nothing_that_a_terminal_obeys() -> None:
    """And is bounded."""
    assert plain("a\x1b[2J\x9b\n\u202e\U000e0001é") == "a\\x1b[2J\\x9b\\x0a\\u202e\\U000e0001é"
    assert plain("x" * 10, most=4) == "xxxx... (6 more)"
    assert block("a\nb\rc") == "  | a\n  | b\\x0dc"
    assert block(list(range(100))).endswith("more lines: `show`)")


def test_a_value_is_json_or_a_text() -> None:
    """NaN is neither Infinity nor JSON."""
    assert value_of('{"a": [1]}') == {"a": [1]}
    assert value_of("yes, do") == "yes, do"
    assert value_of("NaN") == "NaN"
    assert value_of('"1"') == "1"


class Desked:
    """Requests for a desk without a server."""

    receipts, identity = True, "me"

    def __init__(self) -> None:
        self.sent = []

    def reply(self, frame) -> bool:
        self.sent.append(frame)
        return True

    def ask(self, number):
        from trio_swarm.operators import AskRequest

        return AskRequest(req_id=f"r{number}", task_id="t", desk=self, question=number)


async def test_an_answer_never_goes_to_a_request_that_took_the_place_of_another() -> None:
    """What the person typed may have been meant for the one that was withdrawn meanwhile."""
    from trio_swarm.operators import ReplyRefused

    desk, made = Desk(), Desked()
    requests = [made.ask(number) for number in range(3)]
    desk.take(requests[0])
    desk.take(requests[1])
    requests[0].take_back("cancelled")
    assert desk.take(Withdrawn(requests[0], "cancelled")) == "-- #1 was withdrawn: cancelled"
    assert "nothing was sent: #1 was withdrawn; #2 is next" in desk.command("answer 1").text
    assert made.sent == []
    assert desk.command("answer 2").text == "-- replied to #2"
    desk.take(requests[2])
    assert desk.command("#1 answer 3").text == "#1 does not wait"
    assert "not sent" not in desk.command("#3 answer 3").text
    assert [frame.value for frame in made.sent] == [2, 3]
    assert "#3 did not count: late" in desk.take(ReplyRefused(requests[2], "late:deadline"))
    assert desk.command("answer 1").next == "wait"
    assert desk.command("  ").text == ""


@pytest.mark.parametrize("looked", ["list", "answer 0"])
async def test_a_withdrawal_that_the_person_knows_of_swallows_no_later_reply(looked) -> None:
    """They have seen that nothing waits: what they type next is meant for what came after."""
    desk, made = Desk(), Desked()
    first, second = made.ask(0), made.ask(1)
    desk.take(first)
    first.take_back("cancelled")
    desk.take(Withdrawn(first, "cancelled"))
    assert desk.command(looked).text == "nothing waits"
    desk.take(second)
    assert desk.command("answer 2").text == "-- replied to #2"
    assert [frame.value for frame in made.sent] == [2]


def test_a_kept_session_is_nobody_elses(tmp_path) -> None:
    """One that others could read is not used, nor one that is none."""
    kept = KeptSession.of("http://h/", "n", ["b", "a"], {"XDG_STATE_HOME": str(tmp_path)})
    assert kept == KeptSession.of("http://h", "n", ["a", "b"], {"XDG_STATE_HOME": str(tmp_path)})
    assert kept.load() is None
    session = OperatorSession("S-1", "t", ["a"], ["receipts"])
    kept.save(session)
    assert kept.load() == session
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    kept.path.chmod(0o640)
    with pytest.raises(ValueError, match="others could have read"):
        kept.load()
    for text in ("[]", "{}", '{"sid":1,"token":"t","roles":[],"features":[]}', "junk"):
        kept.path.write_text(text)
        kept.path.chmod(0o600)
        with pytest.raises(ValueError, match="no kept session"):
            kept.load()
    kept.forget()
    assert kept.load() is None
