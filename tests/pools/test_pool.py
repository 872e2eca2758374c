"""open_pool with real workers: results, errors, queries, deadlines, cancellation, crashes, the end."""

import contextlib
import os
import signal
import time
import traceback

import pytest
import trio

from trio_swarm._io.host import Host
from trio_swarm.errors import ChildCrashed, FrameError, RemoteError, RestartIntensityExceeded
from trio_swarm.pools import WorkerInfo, open_pool

JOBS = "tests.pools.jobs:"


async def until(condition):
    """Wait for what another task or process brings about, without assuming how soon."""
    while not condition():
        await trio.sleep(0.005)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- results and errors ----------------------------------------------------------------


async def test_a_job_gives_its_result(host):
    """What the function returns is what run returns; the worker is used again."""
    async with open_pool(host, JOBS + "echo", size=1) as pool:
        for ctx in ({"a": [1, None, "x"]}, None, 0, "\u2028é"):
            assert await pool.run(ctx) == ctx
        pids = {await pool.run(code="import os\nreturn os.getpid()") for _ in range(5)}
        (info,) = pool.workers()
    assert pids == {info.pid}
    assert info == WorkerInfo(info.pid, info.sid, "idle", None)


async def test_workers_work_at_the_same_time(host):
    """As many jobs at once as there are workers: each of two waits for the other's query."""
    both = trio.Event()
    asked = []

    async def meet(query):
        asked.append(query)
        if len(asked) == 2:
            both.set()
        await both.wait()
        return "go"

    async with open_pool(host, JOBS + "ask_then_pid", on_query=meet) as pool:
        pids = []

        async def one():
            pids.append((await pool.run("x"))[1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
    assert len(set(pids)) == 2


async def test_an_error_arrives_as_its_own_type(host):
    """With its notes, and the remote traceback as the cause."""
    async with open_pool(host, JOBS + "fail", size=1) as pool:
        with pytest.raises(ValueError, match="too bad") as caught:
            await pool.run("too bad")
        assert pool.statistics().failed == 1
        assert await pool.run(code="return 1") == 1
    assert caught.value.args == ("too bad",)
    assert caught.value.__notes__ == ["a note"]
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "raise error" in caught.value.__cause__.traceback_text
    assert "too bad" in "".join(traceback.format_exception(caught.value))


async def test_errors_of_every_kind(host):
    """Groups as groups; what cannot be made safely as RemoteError with the type's name."""
    async with open_pool(host, JOBS + "fail_as", size=1) as pool:
        with pytest.raises(ExceptionGroup) as group:
            await pool.run("group")
        first, inner = group.value.exceptions
        assert type(first) is ValueError
        assert type(inner.exceptions[0]) is KeyError
        assert inner.exceptions[0].args == ("b",)
        with pytest.raises(RemoteError) as own:
            await pool.run("own")
        assert own.value.remote_type == "tests.pools.jobs.Own"
        with pytest.raises(RemoteError) as five_arguments:
            await pool.run("unicode")
        assert five_arguments.value.remote_type == "UnicodeDecodeError"
        with pytest.raises(KeyError, match=r"^'k'$"):
            await pool.run("key")
        with pytest.raises(OSError, match="udce9"):
            await pool.run("surrogate")
        with pytest.raises(RemoteError, match="SystemExit"):
            await pool.run("exit")
        with pytest.raises(TypeError, match=r"result\['a'\]\[1\] is of type set"):
            await pool.run("set")
        with pytest.raises(TypeError, match="nan"):
            await pool.run("nan")
        with pytest.raises(SyntaxError):
            await pool.run(code="return (")
        assert {info.pid for info in pool.workers()} == {await pool.run(code="import os\nreturn os.getpid()")}


async def test_a_missing_module_is_the_jobs_error(host):
    """The worker imports the target, at its first job."""
    async with open_pool(host, "no_such_module_here:job", size=1) as pool:
        with pytest.raises(ModuleNotFoundError):
            await pool.run()


@pytest.mark.parametrize("target", ["", "a", "a:", ":b", "a b:c", "a:b()", "a;b:c", "a.class:b"])
async def test_a_bad_target_is_refused_before_anything_starts(host, told, target):
    """The grammar is package.module:function."""
    with pytest.raises(ValueError, match="target"):
        async with open_pool(host, target):
            raise AssertionError
    assert told.events == []


async def test_a_context_that_is_not_json_is_the_callers_error(host):
    """Nothing was sent: the worker stays."""
    async with open_pool(host, JOBS + "echo", size=1) as pool:
        with pytest.raises(FrameError):
            await pool.run({1, 2})
        with pytest.raises(ValueError, match="no target"):
            async with open_pool(host) as empty:
                await empty.run()
        assert await pool.run(1) == 1
        assert pool.statistics().replaced == 0


async def test_lib_paths(host, tmp_path):
    """They are put in front of the workers' sys.path."""
    (tmp_path / "lonely.py").write_text("def job(ctx, query):\n    return ctx + 1\n")
    async with open_pool(host, "lonely:job", size=1, lib_paths=[str(tmp_path)]) as pool:
        assert await pool.run(1) == 2


# -- queries ---------------------------------------------------------------------------


async def test_on_query_gets_what_the_job_asks(host):
    """Prompt, system, max_tokens, id, context and attempt."""
    seen = []

    async def on_query(query):
        seen.append(query)
        return query.prompt.upper()

    code = "return [query('a', system='s', max_tokens=7), *query_all(['b', 'c']), query('d')]"
    async with open_pool(host, size=1, on_query=on_query) as pool:
        assert await pool.run("ctx", code=code) == ["A", "B", "C", "D"]
    first = seen[0]
    assert (first.prompt, first.system, first.max_tokens) == ("a", "s", 7)
    assert (first.query_id, first.ctx, first.attempt) == ("q-0", "ctx", 1)


async def test_queries_of_one_pause_are_answered_concurrently(host):
    """In any order; the job gets the answers in its own."""
    answered = {name: trio.Event() for name in "abc"}
    waits_for = {"a": "c", "b": "a"}

    async def on_query(query):
        if query.prompt in waits_for:
            await answered[waits_for[query.prompt]].wait()
        answered[query.prompt].set()
        return query.prompt * 2

    async with open_pool(host, size=1, on_query=on_query) as pool:
        assert await pool.run(code="return query_all(['a', 'b', 'c'])") == ["aa", "bb", "cc"]


@pytest.mark.parametrize("code", ["return query('x')", "return query_all(['x', 'y'])"])
async def test_an_error_of_on_query_ends_the_job(host, code):
    """It leaves run as itself; the worker is asked to end and replaced, which is no crash."""

    async def on_query(query):
        if query.prompt == "y":
            await trio.sleep_forever()
        raise LookupError("nobody knows")

    async with open_pool(host, size=1, on_query=on_query) as pool:
        with pytest.raises(LookupError, match="nobody knows"):
            await pool.run(code=code)
        assert await pool.run(code="return 1") == 1
        assert pool.statistics().restarts == 0
        assert pool.statistics().replaced == 1


async def test_a_query_without_on_query_ends_the_job(host):
    """The job's own error says so."""
    async with open_pool(host, JOBS + "ask", size=1) as pool:
        with pytest.raises(RuntimeError, match="no on_query"):
            await pool.run("what?")


async def test_a_wrong_answer_is_the_owners_error(host):
    """on_query must return a str that can be sent."""
    answers = iter([3, "\ud800"])

    async def on_query(query):
        return next(answers)

    async with open_pool(host, JOBS + "ask", size=1, on_query=on_query) as pool:
        with pytest.raises(TypeError, match="on_query must return a str"):
            await pool.run("x")
        with pytest.raises(FrameError):
            await pool.run("x")


# -- deadlines and cancellation --------------------------------------------------------


async def test_a_deadline_ends_a_busy_loop_and_the_worker_lives_on(host):
    """The worker ends the job by itself: the same process takes the next one."""
    async with open_pool(host, JOBS + "spin", size=1) as pool:
        pid = await pool.run(code="import os\nreturn os.getpid()")
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(0.1):
                await pool.run()
        assert await pool.run(code="import os\nreturn os.getpid()") == pid
        assert pool.statistics().replaced == 0


async def test_a_job_that_ignores_its_deadline_is_killed(host):
    """The caller does not wait for that."""
    code = "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass"
    async with open_pool(host, size=1) as pool:
        pid = await pool.run(code="import os\nreturn os.getpid()")
        with trio.move_on_after(0.1) as scope:
            await pool.run(code=code)
        assert scope.cancelled_caught
        assert await pool.run(code="import os\nreturn os.getpid()") != pid
        assert not alive(pid)
        assert pool.statistics().restarts == 0


async def test_cancelling_a_running_job_kills_its_worker(host):
    """The job may not go on; a fresh worker takes the place, and no restart is counted."""
    scope = trio.CancelScope()

    async def cancel_at_once():
        scope.cancel()

    async def on_query(query):
        (info,) = pool.workers()
        assert (info.state, info.job) == ("busy", 1)
        # By the time that this task runs, the answer is on its way and the job about to spin.
        nursery.start_soon(cancel_at_once)
        return "go"

    async with (
        trio.open_nursery() as nursery,
        open_pool(host, JOBS + "ask_then_spin", size=1, on_query=on_query) as pool,
    ):
        with scope:
            await pool.run()
        assert scope.cancelled_caught
        (old,) = [info.pid for info in pool.workers()]
        assert await pool.run(code="import os\nreturn os.getpid()") != old
        assert not alive(old)
        assert (pool.statistics().restarts, pool.statistics().replaced) == (0, 1)


async def test_cancelling_in_a_query_replaces_the_worker(host):
    """The next job finds a fresh one."""

    async def on_query(query):
        scope.cancel()
        await trio.sleep_forever()

    async with open_pool(host, JOBS + "ask_then_pid", size=1, on_query=on_query) as pool:
        with trio.CancelScope() as scope:
            await pool.run("x")
        assert scope.cancelled_caught
        (old,) = [info.pid for info in pool.workers()]
        new = await pool.run(code="import os\nreturn os.getpid()")
        assert new != old
        assert not alive(old)


async def test_cancelling_while_waiting_changes_nothing(host):
    """No worker was taken, none is replaced."""

    async def on_query(query):
        with trio.move_on_after(0.05) as scope:
            await pool.run("second")
        assert scope.cancelled_caught
        assert pool.statistics().waiting == 0
        return "go"

    async with open_pool(host, JOBS + "ask", size=1, on_query=on_query) as pool:
        assert await pool.run("first") == "go"
        assert pool.statistics().replaced == 0


# -- crashes ---------------------------------------------------------------------------


async def test_a_killed_workers_job_is_run_again(host, told):
    """kill -9 in the middle of the job: a fresh worker does it, and the caller sees only the result."""
    attempts = []

    async def on_query(query):
        attempts.append(query.attempt)
        (info,) = pool.workers()
        if len(attempts) == 1:
            os.kill(info.pid, signal.SIGKILL)
        return "go"

    async with open_pool(host, JOBS + "ask_then_pid", size=1, on_query=on_query) as pool:
        text, pid = await pool.run("x")
        assert (text, pid) == ("go", pool.workers()[0].pid)
        stats = pool.statistics()
    assert attempts == [1, 2]
    assert (stats.restarts, stats.retried, stats.completed, stats.failed) == (1, 1, 1, 0)
    assert told.kinds() == ["worker_started", "worker_crashed", "job_retried", "restart", "worker_started"]
    crashed = told.events[1][1]
    assert crashed["pool"] == "pool"
    assert crashed["how"] == "killed by SIGKILL"


async def test_a_worker_killed_while_idle_costs_no_attempt(host):
    """The job had not begun."""
    async with open_pool(host, JOBS + "echo", size=1, max_attempts=1) as pool:
        for i in range(3):
            assert await pool.run(i) == i
            (info,) = pool.workers()
            os.kill(info.pid, signal.SIGKILL)
            while alive(info.pid):
                # Not awaiting: the pool must not have noticed.
                time.sleep(0.001)
            assert await pool.run(i) == i
        assert pool.statistics().crashed == 0


async def test_a_job_that_kills_its_workers_is_given_up(host, told):
    """After max_attempts, with how the last one died; the pool goes on."""
    async with open_pool(host, JOBS + "die", size=1, max_attempts=2) as pool:
        with pytest.raises(ChildCrashed, match="killed by SIGKILL at attempt 2") as caught:
            await pool.run()
        assert caught.value.attempt == 2
        assert isinstance(caught.value.__cause__, ChildCrashed)
        assert await pool.run(code="return 1") == 1
        assert pool.statistics().crashed == 1
    assert "job_crashed" in told.kinds()


async def test_poison_jobs_do_not_end_the_pool(host):
    """However many: each is charged with its own deaths, none with the pool's intensity."""
    async with open_pool(host, JOBS + "poison", size=2, max_attempts=2, max_restarts=1) as pool:
        for _ in range(3):
            with pytest.raises(ChildCrashed, match="exited 7"):
                await pool.run("poison")
        assert await pool.run(4) == 8


async def test_a_context_that_kills_its_workers_is_given_up(host, tmp_path, monkeypatch):
    """Dying while the job is still being sent (too large for the memory, say) is an attempt as well."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, socket\n"
        "class Choking(socket.socket):\n"
        "    def recv(self, size):\n"
        "        data = super().recv(size)\n"
        "        if len(data) > 4096:\n"
        "            os._exit(8)\n"
        "        return data\n"
        "    def accept(self):\n"
        "        fd, address = self._accept()\n"
        "        return Choking(self.family, self.type, self.proto, fileno=fd), address\n"
        "socket.socket = Choking\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with trio.fail_after(20):
        async with open_pool(host, JOBS + "echo", size=1, max_attempts=2) as pool:
            with pytest.raises(ChildCrashed, match="exited 8 at attempt 2"):
                await pool.run("x" * 2**23)
            assert await pool.run("x") == "x"
            assert pool.statistics().restarts == 2


async def test_workers_that_die_before_their_first_job_end_the_pool(host):
    """A job that waits is not charged, so the pool is: it would go on for ever."""

    def kill(kind, data):
        if kind == "worker_started":
            os.kill(data["pid"], signal.SIGKILL)
            while alive(data["pid"]):
                # Not awaiting: the job must get this worker.
                time.sleep(0.001)

    deadly = Host(host.warden, host.runtime_dir, kill)
    with trio.fail_after(20), pytest.raises(RestartIntensityExceeded) as caught:
        async with open_pool(deadly, JOBS + "echo", size=1, max_attempts=1, max_restarts=1) as pool:
            await pool.run(1)
    assert [crash.how for crash in caught.value.attempts] == ["killed by SIGKILL"] * 2


async def test_workers_that_do_not_come_up_end_the_pool(host, tmp_path, monkeypatch):
    """RestartIntensityExceeded leaves the block as itself, with how they died."""
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import os, sys\nsys.stderr.write('broken here')\nsys.stderr.flush()\nos._exit(9)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RestartIntensityExceeded) as caught:
        async with open_pool(host, JOBS + "echo", size=1, max_restarts=1, name="sick") as pool:
            await pool.run(1)
    assert caught.value.max_restarts == 1
    assert len(caught.value.attempts) == 2
    assert "exited 9" in caught.value.attempts[0].how
    assert "broken here" in caught.value.attempts[0].how


async def test_stderr_of_a_crash_is_told(host):
    """The last that the worker wrote."""
    code = "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(3)"
    async with open_pool(host, size=1, max_attempts=1) as pool:
        with pytest.raises(ChildCrashed) as caught:
            await pool.run(code=code)
    assert "last words" in caught.value.stderr_tail
    assert caught.value.how == "exited 3"


# -- the end ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["return", "error", "cancel", "at once"])
async def test_leaving_the_block_ends_the_workers(host, way):
    """By return, error or cancellation, with a job under way or without."""
    pids = []
    with contextlib.suppress(ArithmeticError), trio.CancelScope() as scope:
        async with open_pool(host, JOBS + "spin") as pool:
            if way != "at once":
                await pool.run(code="return 1")
                await until(lambda: len(pool.workers()) == 2)
                pids += [info.pid for info in pool.workers()]
            if way == "error":
                raise ArithmeticError
            if way == "cancel":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pool.run)
                    await until(lambda: pool.statistics().busy == 1)
                    scope.cancel()
    assert not any(alive(pid) for pid in pids)
    how = [report.how for report in host.warden.report()]
    if way in ("return", "error"):
        assert how == ["asked", "asked"]


async def test_a_job_from_outside_is_told_when_the_block_is_left(host):
    """Running or waiting: ClosedResourceError, not a hang."""
    closed = []

    async def one(pool):
        with pytest.raises(trio.ClosedResourceError):
            await pool.run()
        closed.append(1)

    async with trio.open_nursery() as nursery, open_pool(host, JOBS + "spin", size=1) as pool:
        for _ in range(3):
            nursery.start_soon(one, pool)
        await until(lambda: pool.statistics().busy == 1 and pool.statistics().waiting == 2)
    assert closed == [1, 1, 1]
    with pytest.raises(trio.ClosedResourceError):
        await pool.run()
