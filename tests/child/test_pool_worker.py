"""The worker process over its raw socket: pools.md C2, C3 and the conformance list C8."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time

import pytest

SID = "p-18a1f0c2d3d00000-1122334455667788"
LIMIT = 20.0


class Worker:
    """A worker process and raw connections to it."""

    def __init__(self, directory, *args, env=None):
        self.sock = os.path.join(directory, f"{SID}.sock")
        argv = [sys.executable, "-m", "trio_swarm._child.pool_worker", "--sid", SID, "--sock", self.sock]
        self.process = subprocess.Popen(
            [*argv, "--version", "1.2.3", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
        # Its standard output ends when it listens, and not a byte was written there.
        self.stdout = self.process.stdout.read()

    def connect(self):
        return Connection(self.sock)

    def wait(self):
        code = self.process.wait(LIMIT)
        self.stderr = self.process.stderr.read().decode()
        return code


class Connection:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")

    def send(self, request):
        line = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
        self.socket.sendall(line)

    def receive(self):
        line = self.file.readline()
        assert line.endswith(b"\n"), line
        return json.loads(line)

    def ask(self, request):
        self.send(request)
        return self.receive()

    def close(self):
        self.file.close()
        self.socket.close()


@pytest.fixture
def start():
    directory = tempfile.mkdtemp(prefix="ts-")
    workers = []

    def start(*args, env=None):
        workers.append(Worker(directory, *args, env=env))
        return workers[-1]

    start.directory = directory
    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()
        worker.process.stdout.close()
        worker.process.stderr.close()
    shutil.rmtree(directory)


@pytest.fixture
def connect(start):
    made = []

    def connect(worker):
        made.append(worker.connect())
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


MEET = "import socket\nmeet = socket.socket(socket.AF_UNIX)\n"


class Gate:
    """Where a job tells that it is under way (it runs ``meet.connect(...)``) and can be held."""

    def __init__(self, directory):
        self.path = os.path.join(directory, "gate")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(LIMIT)
        self.listener.bind(self.path)
        self.listener.listen()

    def wait(self):
        return self.listener.accept()[0]


@pytest.fixture
def gate(start):
    gate = Gate(start.directory)
    yield gate
    gate.listener.close()


def run(code, ctx=None, **more):
    return {"op": "run", "code": code, "ctx": ctx, "lib_paths": [], **more}


def answer(response, query_id=None, sid=""):
    return {"op": "continue", "sid": sid, "response": response, "query_id": query_id, "usage": None}


def fed(response):
    assert response["ok"] is True, response
    assert set(response) == {"ok", "data", "error"}
    assert response["data"]["kind"] == "feed"
    assert response["data"]["session_id"].startswith("s-")
    return response["data"]["feed_result"]


def state(response):
    return fed(response)["Finished"]["state"]


def error(response):
    assert response["ok"] is False
    assert response["data"] is None
    return response["error"]


def test_round_trip_handshake_run_pause_continue_shutdown(start, connect):
    """C8: worker_subprocess_handshake_run_pause_continue_shutdown."""
    worker = start()
    client = connect(worker)
    assert client.ask({"op": "handshake", "version": "1.2.3"}) == {
        "ok": True,
        "data": {"kind": "handshake", "version": "1.2.3"},
        "error": None,
    }
    paused = fed(client.ask(run("return query('name a colour', max_tokens=5) + ctx", "!")))
    assert paused == {
        "Paused": {"queries": [{"id": "q-0", "prompt": "name a colour", "system": None, "max_tokens": 5}]}
    }
    finished = fed(client.ask(answer("teal")))["Finished"]
    assert finished["state"] == {"Completed": {"result": "teal!"}}
    assert finished["metrics"]["auto"]["llm_calls"] == 1
    assert client.ask({"op": "shutdown"}) == {"ok": True, "data": {"kind": "shutdown"}, "error": None}
    assert worker.wait() == 0
    assert not os.path.exists(worker.sock)
    assert worker.stdout == b""


def test_socket_is_private(start):
    """C3.1: mode 0600."""
    worker = start()
    assert stat.S_IMODE(os.lstat(worker.sock).st_mode) == 0o600


def test_a_mismatched_version_changes_nothing(start, connect):
    """C3.3: ok false with both versions; the connection stays."""
    client = connect(start())
    assert (
        error(client.ask({"op": "handshake", "version": "9"})) == "version mismatch: client=9, server=1.2.3"
    )
    assert client.ask({"op": "handshake", "version": "1.2.3"})["ok"]
    assert state(client.ask(run("return 1"))) == {"Completed": {"result": 1}}


def test_handshake_is_not_enforced(start, connect):
    """C3.3: the first message is one by convention only."""
    client = connect(start())
    assert client.ask({"op": "status"})["data"] == {
        "kind": "status",
        "has_session": False,
        "session_id": None,
    }


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"   \n",
        b"nonsense\n",
        b"[]\n",
        b'{"op":"nope"}\n',
        b'{"op":"run","code":"return 1"}\n',
        b"\xff\n",
    ],
)
def test_a_bad_line_is_answered_and_the_connection_stays(start, connect, line):
    """C2, C3.2: also a blank one, and a run without lib_paths."""
    client = connect(start())
    assert error(client.ask(line)).startswith("malformed request: ")
    assert state(client.ask(run("return 1"))) == {"Completed": {"result": 1}}


def test_an_over_long_line_is_answered_and_the_framing_survives(tmp_path):
    """The line is skipped to its end, without keeping it in memory."""
    from trio_swarm._child.pool_socket import Lines, LineTooLong

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * 100 + b"\n" + b"y" * 10 + b"\n" + b"z" * 11 + b"\n{}")
        theirs.shutdown(socket.SHUT_WR)
        lines = Lines(ours, max_line=10)
        with pytest.raises(LineTooLong):
            lines.next()
        assert lines.next() == b"y" * 10
        with pytest.raises(LineTooLong):
            lines.next()
        assert lines.next() == b"{}"
        assert lines.next() is None


def test_keys_may_be_absent_or_null(start, connect):
    """C2.1: optional fields are written as null, and readers accept absence."""
    client = connect(start("--reusable"))
    bare = {"op": "run", "code": "return [ctx, query('x')]", "lib_paths": []}
    assert "Paused" in fed(client.ask(bare))
    assert state(client.ask({"op": "continue", "sid": "", "response": "a"})) == {
        "Completed": {"result": [None, "a"]}
    }
    assert "Paused" in fed(client.ask({**bare, "ctx": None}))
    assert state(client.ask(answer("b"))) == {"Completed": {"result": [None, "b"]}}


def test_three_queries_answered_in_the_order_2_0_1(start, connect):
    """C3.4 defect 1: Accepted keeps the pause; the job gets its answers in query order."""
    client = connect(start())
    code = "return query_all(['a', {'prompt': 'b', 'system': 's'}, 'c'])"
    paused = fed(client.ask(run(code)))["Paused"]["queries"]
    assert [one["id"] for one in paused] == ["q-0", "q-1", "q-2"]
    assert paused[1] == {"id": "q-1", "prompt": "b", "system": "s", "max_tokens": 1024}
    assert fed(client.ask(answer("C", "q-2"))) == {"Accepted": {"remaining": 2}}
    assert fed(client.ask(answer("A", "q-0"))) == {"Accepted": {"remaining": 1}}
    assert error(client.ask(answer("again", "q-2"))) == "continue failed: already responded to query_id: q-2"
    assert error(client.ask(answer("x", "q-9"))) == "continue failed: unknown query_id: q-9"
    assert error(client.ask(answer("x"))) == "continue failed: already responded to query_id: q-0"
    assert state(client.ask(answer("B", "q-1"))) == {"Completed": {"result": ["A", "B", "C"]}}


def test_requests_at_the_wrong_time(start, connect):
    """C3.3, the whole row of run and continue, over the wire."""
    client = connect(start())
    assert error(client.ask(answer("x"))) == "no paused session to continue"
    assert "Paused" in fed(client.ask(run("return query('x')")))
    assert error(client.ask(run("return 1"))) == "worker already has an active session"
    assert state(client.ask(answer("x"))) == {"Completed": {"result": "x"}}
    assert error(client.ask(run("return 1"))) == "worker already has an active session"
    assert error(client.ask(answer("x"))) == "no paused session to continue"


def test_status_and_history(start, connect):
    """C3.3: history only when asked for and paused; the last ten, oldest first."""
    client = connect(start())
    client.ask(run("for i in range(13): query(f'p{i}')"))
    for number in range(11):
        client.ask(answer(f"r{number}"))
    plain = client.ask({"op": "status"})["data"]
    assert plain["has_session"]
    assert "conversation_history" not in plain
    history = client.ask({"op": "status", "include_history": True})["data"]["conversation_history"]
    assert [one["prompt"] for one in history] == [f"p{i}" for i in range(2, 12)]
    assert history[0]["response"] == "r2"
    assert history[-1]["response"] is None
    assert history[-1]["completed_at"] is None
    assert set(history[0]) == {
        *("query_id", "prompt", "response", "prompt_tokens"),
        *("response_tokens", "started_at", "completed_at"),
    }


def test_a_failing_job_is_ok_true(start, connect):
    """C2.3: Finished/Failed, with the exception beside the text."""
    client = connect(start())
    failed = state(client.ask(run("def f():\n    raise ValueError('no')\nf()")))["Failed"]
    assert failed["error"] == "ValueError: no"
    assert failed["exception"]["type"] == "ValueError"
    assert failed["exception"]["message"] == "no"
    assert "raise ValueError('no')" in failed["exception"]["traceback"]
    assert "pool_job" not in failed["exception"]["traceback"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("return (", "SyntaxError: "),
        ("return {1, 2}", "TypeError: the job's result is not JSON: result is of type set"),
        ("return {'a': [1, float('nan')]}", "TypeError: the job's result is not JSON: result['a'][1] is nan"),
        ("return {1: 2}", "TypeError: the job's result is not JSON: result has a key of type int"),
        ("return '\\ud800'", "TypeError: the job's result is not JSON: result holds a lone surrogate"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio\nraise asyncio.CancelledError", "asyncio.exceptions.CancelledError"),
        ("raise OSError('\\udce9')", "OSError: \\udce9"),
        ("query(3)", "TypeError: prompt must be a str"),
        ("query('\\ud800')", "ValueError: prompt cannot be written as UTF-8"),
        ("a = []\na.append(a)\nreturn a", "TypeError: the job's result is not JSON"),
        ("class B(Exception):\n def __str__(self): return 1\nraise B", "__job__."),
    ],
)
def test_every_failure_is_told(start, connect, code, expected):
    """Nothing that a job does or returns ends the worker or goes unanswered."""
    client = connect(start("--reusable"))
    assert state(client.ask(run(code)))["Failed"]["error"].startswith(expected)
    assert state(client.ask(run("return 1"))) == {"Completed": {"result": 1}}


def test_an_empty_body_gives_null(start, connect):
    """Only a comment is a job, too."""
    client = connect(start())
    assert state(client.ask(run("# nothing"))) == {"Completed": {"result": None}}


def test_prints_go_to_stderr(start, connect):
    """C3.1: a worker must not write to stdout, nor may its jobs, nor their children."""
    worker = start()
    client = connect(worker)
    code = "import os, subprocess\nprint('by print')\nos.write(1, b'by fd\\n')\n"
    code += "subprocess.run(['echo', 'by child'])"
    assert "Completed" in state(client.ask(run(code)))
    client.ask({"op": "shutdown"})
    assert worker.wait() == 0
    assert worker.stdout == b""
    assert {"by print", "by fd", "by child"} <= set(worker.stderr.split("\n"))


def test_lib_paths_are_importable_and_make_room_for_the_next(start, connect, tmp_path):
    """They come first on sys.path, for this run only."""
    (tmp_path / "only_here.py").write_text("value = 42\n")
    client = connect(start("--reusable"))
    code = "import only_here\nreturn only_here.value"
    assert state(client.ask(run(code, lib_paths=[str(tmp_path)]))) == {"Completed": {"result": 42}}
    code = "import sys\nreturn ctx in sys.path"
    assert state(client.ask(run(code, str(tmp_path)))) == {"Completed": {"result": False}}


def test_a_paused_worker_outlives_its_client(start, connect):
    """C6: the next connection finds the session and continues it."""
    worker = start()
    first = worker.connect()
    assert "Paused" in fed(first.ask(run("return query('x')")))
    first.close()
    second = connect(worker)
    assert second.ask({"op": "status"})["data"]["has_session"] is True
    assert state(second.ask(answer("y"))) == {"Completed": {"result": "y"}}


def test_a_client_that_dies_during_run_costs_nothing(start, connect, gate):
    """C3.4 defect 2: the answer cannot be written; the session is kept, the next client served."""
    worker = start()
    first = worker.connect()
    first.send(run(MEET + "meet.connect(ctx)\nmeet.recv(1)\nreturn query('x')", gate.path))
    with gate.wait():
        first.close()
    second = connect(worker)
    deadline = time.monotonic() + LIMIT
    while not second.ask({"op": "status"})["data"]["has_session"]:
        assert time.monotonic() < deadline
    assert state(second.ask(answer("y"))) == {"Completed": {"result": "y"}}


@pytest.mark.parametrize(
    "request_", [None, {"op": "status"}, run("return 1")], ids=["silent", "idle", "finished"]
)
def test_eof_without_a_paused_session_ends_the_worker(start, request_):
    """C3.2: Idle or Finished; ours removes the socket (defect 5)."""
    worker = start()
    client = worker.connect()
    if request_ is not None:
        client.ask(request_)
    client.close()
    assert worker.wait() == 0
    assert not os.path.exists(worker.sock)


def test_connections_are_served_one_at_a_time(start, connect):
    """C3.2: the second client waits for the first to leave."""
    worker = start()
    first = worker.connect()
    assert "Paused" in fed(first.ask(run("return query('x')")))
    second = connect(worker)
    second.send({"op": "status"})
    second.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        second.socket.recv(1, socket.MSG_PEEK)
    second.socket.settimeout(LIMIT)
    first.close()
    assert second.receive()["data"]["has_session"] is True


@pytest.mark.parametrize("stage", ["accept", "open", "paused", "running", "stubborn"])
def test_sigterm_ends_the_worker_and_removes_the_socket(start, connect, gate, stage, tmp_path):
    """C8: graceful; in ours also with an open connection or a job under way, its finally included."""
    worker = start()
    done = tmp_path / "done"
    if stage != "accept":
        client = connect(worker)
        client.ask({"op": "status"})
    job = "try:\n    meet.connect(ctx[0])\n    while True: pass\nfinally:\n    open(ctx[1], 'w').close()"
    if stage == "paused":
        client.ask(run("try:\n    query('x')\nfinally:\n    open(ctx, 'w').close()", str(done)))
    elif stage == "running":
        client.send(run(MEET + job, [gate.path, str(done)]))
        gate.wait().close()
    elif stage == "stubborn":
        stubborn = job.replace("finally", "except BaseException")
        client.send(run(MEET + stubborn, [gate.path, str(done)]))
        gate.wait().close()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not os.path.exists(worker.sock)
    assert done.exists() == (stage in ("paused", "running", "stubborn"))


def test_shutdown_while_paused_unwinds_the_job(start, connect, tmp_path):
    """Answered first; the job sees SystemExit."""
    worker, done = start(), tmp_path / "done"
    client = connect(worker)
    client.ask(
        run("try:\n    query('x')\nexcept SystemExit:\n    open(ctx, 'w').close()\n    raise", str(done))
    )
    assert client.ask({"op": "shutdown"})["data"] == {"kind": "shutdown"}
    assert worker.wait() == 0
    assert done.exists()


def test_idle_timeout(start):
    """C8: test_pool_worker_idle_timeout_self_exit."""
    worker = start("--idle", "0.2")
    assert worker.wait() == 0
    assert not os.path.exists(worker.sock)


def test_idle_timeout_from_the_environment(start, connect):
    """ALC_POOL_IDLE_TIMEOUT counts only while no client is connected."""
    worker = start(env={"ALC_POOL_IDLE_TIMEOUT": "1"})
    client = connect(worker)
    client.ask({"op": "status"})
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(1.3)
    assert "Paused" in fed(client.ask(run("query('x')")))
    client.close()
    assert worker.wait() == 0


def test_idle_limit_reads_the_contract(capsys):
    """Default 1800, 0 is never, nonsense is the default with a warning."""
    from trio_swarm._child.pool_worker import idle_limit

    assert idle_limit(None, {}) == 1800
    assert idle_limit(None, {"ALC_POOL_IDLE_TIMEOUT": "0"}) == 0
    assert idle_limit(None, {"ALC_POOL_IDLE_TIMEOUT": "7"}) == 7
    assert idle_limit(3.5, {"ALC_POOL_IDLE_TIMEOUT": "7"}) == 3.5
    assert capsys.readouterr().err == ""
    assert idle_limit(None, {"ALC_POOL_IDLE_TIMEOUT": "-5"}) == 1800
    assert "-5" in capsys.readouterr().err


def test_a_stale_socket_is_replaced(start, connect):
    """C3.4 defect 5: it refuses connections, so nobody is there."""
    path = os.path.join(start.directory, f"{SID}.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    client = connect(start())
    assert client.ask({"op": "status"})["ok"]


def test_a_live_socket_and_its_owner_are_left_alone(start, connect):
    """The second worker fails with a message; the first did not even notice."""
    first = start()
    second = start()
    assert second.wait() == 1
    assert "in use" in second.stderr
    assert connect(first).ask({"op": "status"})["ok"]


def test_a_file_that_is_no_socket_is_left_alone(start):
    """Never remove what cannot be ours."""
    path = os.path.join(start.directory, f"{SID}.sock")
    with open(path, "w") as file:
        file.write("precious")
    assert start().wait() == 1
    with open(path) as file:
        assert file.read() == "precious"


def test_of_many_binders_exactly_one_wins():
    """Also over a stale socket, and the winner's socket is the one that answers."""
    from trio_swarm._child.pool_socket import bind_private

    directory = tempfile.mkdtemp(prefix="ts-")
    path = os.path.join(directory, "s.sock")
    for _ in range(30):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        won, barrier = [], threading.Barrier(4)

        def binder(won=won, barrier=barrier):
            barrier.wait()
            with contextlib.suppress(OSError):
                won.append(bind_private(path))

        threads = [threading.Thread(target=binder) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        won[0].close()
        assert not os.path.exists(path)
    os.rmdir(directory)


def test_a_deadline_ends_a_busy_job(start, connect):
    """Enforced in the worker, which stays fit."""
    client = connect(start("--reusable"))
    code = "try:\n    while True: pass\nexcept Exception:\n    return 'swallowed'"
    failed = state(client.ask(run(code, deadline_ms=50)))["Failed"]
    assert failed["exception"]["type"] == "DeadlineExceeded"
    assert state(client.ask(run("import time\ntime.sleep(0.1)\nreturn 1", deadline_ms=5000))) == {
        "Completed": {"result": 1}
    }
    assert (
        state(client.ask(run("return 1", deadline_ms=0)))["Failed"]["exception"]["type"] == "DeadlineExceeded"
    )


def test_a_deadline_does_not_run_while_paused_and_is_fresh_on_continue(start, connect):
    """Waiting for an answer is not the job's time."""
    client = connect(start())
    code = "query('x')\nwhile True: pass"
    assert "Paused" in fed(client.ask(run(code, deadline_ms=100)))
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(LIMIT)
    failed = state(client.ask({**answer("y"), "deadline_ms": 50}))["Failed"]
    assert failed["exception"]["type"] == "DeadlineExceeded"


def test_the_worker_does_not_import_trio(start, connect):
    """It has to start quickly."""
    client = connect(start())
    code = "import sys\nreturn [one for one in ('trio', 'asyncio', 'h11') if one in sys.modules]"
    assert state(client.ask(run(code))) == {"Completed": {"result": []}}
