"""One started process: how it begins, what it gets, how it ends and how that is told."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from functools import partial

import pytest
import trio
import trio.testing

from tests.io.processes import DAEMON, STUBBORN, python, survivors, token_env, until_gone, wait_for_file
from trio_swarm._io.process import Exit, open_warden, python_argv, python_env
from trio_swarm.errors import SpawnError


@pytest.mark.parametrize(
    ("code", "end", "how"),
    [
        ("", Exit(0, None), "exited"),
        ("raise SystemExit(3)", Exit(3, None), "crashed"),
        ("import os; os.kill(os.getpid(), 11)", Exit(None, 11), "crashed"),
        ("import os; os.kill(os.getpid(), 9)", Exit(None, 9), "crashed"),
    ],
)
async def test_exit_is_told(code, end, how):
    """Code and signal come from the kernel; what was not our doing is a crash."""
    async with open_warden() as warden:
        process = await warden.start(python(code), name="it")
        assert await process.wait() == end
        assert process.exit == end
        await process.stop()
    (report,) = warden.report()
    assert (report.name, report.pid, report.exit, report.how) == ("it", process.pid, end, how)
    assert 0 < report.seconds < 30


def test_exit_reads_well():
    """The text names codes and signals."""
    texts = [str(Exit(0, None)), str(Exit(None, 9)), str(Exit(None, 250)), str(Exit(None, None))]
    assert texts == ["exited 0", "killed by SIGKILL", "killed by signal 250", "lost"]


async def test_stop_needs_only_sigterm():
    """A process that obeys SIGTERM is not killed."""
    async with open_warden() as warden:
        process = await warden.start(["sleep", "100"], name="it")
        assert await process.stop() == Exit(None, signal.SIGTERM)
        assert await process.stop() == Exit(None, signal.SIGTERM)  # again: nothing more
    assert [r.how for r in warden.report()] == ["terminated"]


async def test_stop_escalates(tmp_path):
    """A process that ignores SIGTERM is killed after the grace, not before."""
    async with open_warden() as warden:
        process = await warden.start([*python(STUBBORN), str(tmp_path / "up")], name="it")
        await wait_for_file(tmp_path / "up")
        begun = trio.current_time()
        assert await process.stop(grace=0.3) == Exit(None, signal.SIGKILL)
        assert 0.3 <= trio.current_time() - begun < 3
    assert [r.how for r in warden.report()] == ["killed"]


async def test_kill_has_no_grace(tmp_path):
    """SIGTERM is not even tried."""
    async with open_warden() as warden:
        process = await warden.start(["sleep", "100"], name="it")
        assert await process.kill() == Exit(None, signal.SIGKILL)


async def test_stop_begun_is_not_cancelled(tmp_path):
    """The ladder goes on; the cancellation comes after it."""
    async with open_warden() as warden:
        process = await warden.start([*python(STUBBORN), str(tmp_path / "up")], name="it")
        await wait_for_file(tmp_path / "up")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(process.stop, grace=0.3))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert process.exit == Exit(None, signal.SIGKILL)


async def test_a_stopped_process_is_terminated():
    """SIGSTOP does not keep SIGTERM away."""
    async with open_warden() as warden:
        process = await warden.start(["sleep", "100"], name="it")
        await process.signal(signal.SIGSTOP)
        assert await process.stop(grace=20) == Exit(None, signal.SIGTERM)


async def test_signal_is_one_process_only():
    """A signal by hand arrives; an unknown one is refused; after the end it is nothing."""
    async with open_warden() as warden:
        process = await warden.start(["sleep", "100"], name="it")
        with pytest.raises(ValueError, match="12345"):
            await process.signal(12345)
        await process.signal(signal.SIGUSR1)
        assert await process.wait() == Exit(None, signal.SIGUSR1)
        await process.signal(signal.SIGUSR1)
    assert [r.how for r in warden.report()] == ["crashed"]


async def test_mark_tells_why():
    """A process that was asked over its protocol is told so, unless a signal was needed."""
    async with open_warden() as warden:
        asked = await warden.start(["cat"], name="asked", stdin="pipe")
        asked.mark("asked")
        await asked.stdin.aclose()
        await asked.wait()
        forced = await warden.start(["sleep", "100"], name="forced")
        forced.mark("asked")
        await forced.stop()
    assert {r.name: r.how for r in warden.report()} == {"asked": "asked", "forced": "terminated"}


async def test_grandchild_in_the_group_dies_with_its_leader(tmp_path):
    """Whoever ends, by itself or not, takes its group along."""
    env, token = token_env()
    async with open_warden() as warden:
        process = await warden.start(["sh", "-c", "sleep 100 & exit 0"], name="it", env=env)
        assert await process.wait() == Exit(0, None)
        await process.stop()
        await until_gone(token)


async def test_daemon_of_a_stopped_process_dies(tmp_path):
    """Twice forked and in a session of its own: it is gone when stop returns, and counted."""
    env, token = token_env()
    async with open_warden() as warden:
        process = await warden.start([*python(DAEMON), str(tmp_path / "up")], name="it", env=env)
        other = await warden.start([*python(DAEMON), str(tmp_path / "up2")], name="other")
        await wait_for_file(tmp_path / "up")
        await wait_for_file(tmp_path / "up2")
        await process.stop()
        assert survivors(token) == []
        assert process.strays == 1
        daemon = int((tmp_path / "up2").read_text())
        os.kill(daemon, 0)  # another's daemon is left alone
        await other.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(daemon, 0)
    assert [r.strays for r in warden.report()] == [1, 1]


async def test_daemon_without_its_mark_dies_with_the_block(tmp_path):
    """A stray that hid its origin is nobody's; it is told by its command line."""
    env = {"PATH": os.environ["PATH"]}
    hidden = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execve('/bin/sh', ['sh', '-c', ': > $0; exec sleep 100', sys.argv[1]], {})\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "time.sleep(100)"
    )
    async with open_warden() as warden:
        await warden.start([*python(hidden), str(tmp_path / "up")], name="it", env=env)
        await wait_for_file(tmp_path / "up")
    strays = [r for r in warden.report() if r.how == "stray"]
    told = sum(r.strays for r in warden.report()) + len(strays)
    assert told == 1
    assert all(r.exit is None for r in strays)


async def test_stdin_bytes_arrive(tmp_path):
    """8 MiB, and then the end of the file."""
    data = os.urandom(2**20) * 8
    code = "import sys, hashlib; print(hashlib.sha1(sys.stdin.buffer.read()).hexdigest())"
    async with open_warden() as warden:
        process = await warden.start(python(code), name="it", stdin=data, stdout="pipe")
        got = b"".join([part async for part in process.stdout])
        assert got.decode().strip() == hashlib.sha1(data).hexdigest()


async def test_stdin_that_nobody_reads_keeps_nothing():
    """A child that does not read, or ends early, does not hold up anything."""
    async with open_warden() as warden:
        early = await warden.start(["true"], name="early", stdin=b"x" * 2**22)
        deaf = await warden.start(["sleep", "100"], name="deaf", stdin=b"x" * 2**22)
        assert await early.wait() == Exit(0, None)
        await deaf.stop()


async def test_pipes_talk():
    """stdin and stdout as pipes are Trio streams."""
    async with open_warden() as warden:
        cat = await warden.start(["cat"], name="cat", stdin="pipe", stdout="pipe")
        await cat.stdin.send_all(b"hello")
        assert await cat.stdout.receive_some() == b"hello"
        await cat.stdin.aclose()
        assert await cat.stdout.receive_some() == b""
        assert await cat.wait() == Exit(0, None)


async def test_stderr_tail_is_bounded():
    """The last 4 KiB are kept, complete once wait returned."""
    code = "import sys; sys.stderr.write('x' * 100_000 + 'end')"
    async with open_warden() as warden:
        process = await warden.start(python(code), name="it")
        await process.wait()
        assert len(process.stderr_tail) == 4096
        assert process.stderr_tail.endswith("xend")


async def test_stderr_held_by_a_foreigner_does_not_hold_up():
    """Somebody else has the pipe open after the exit: a short drain, no more."""
    async with open_warden() as warden, open_warden() as other:
        code = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read(); sys.stderr.write('told')"
        process = await warden.start(python(code), name="it", stdin="pipe", stdout="pipe")
        pid = int(await process.stdout.receive_some())
        fd = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY)
        holder = await other.start(["sleep", "100"], name="holder", pass_fds=[fd])
        os.close(fd)
        await process.stdin.aclose()
        with trio.fail_after(5):
            assert await process.wait() == Exit(0, None)
        assert process.stderr_tail == "told"
        assert holder.exit is None


async def test_stdio_is_null_unless_asked():
    """Nothing of the coordinator's is inherited by accident."""
    code = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)], flush=True)"
    async with open_warden() as warden:
        process = await warden.start(python(code), name="it", stdout="pipe", stderr="null")
        assert await process.stdout.receive_some() == b"['/dev/null', '/dev/null']\n"


async def test_inherit_is_the_coordinators_own():
    """stdout as it is here."""
    code = "import os, sys; sys.exit(os.fstat(1).st_ino % 100)"
    async with open_warden() as warden:
        process = await warden.start(python(code), name="it", stdout="inherit", stderr="inherit")
        assert await process.wait() == Exit(os.fstat(1).st_ino % 100, None)


async def test_passed_descriptors_arrive_under_their_numbers():
    """Several at a time, in any order, and in processes started side by side; no others do."""
    code = (
        "import os, sys\n"
        "for n in sys.argv[1:]: os.write(int(n), n.encode() + b'/')\n"
        "known = {0, 1, 2, int(os.environ['TRIO_SWARM_LIFELINE'])}\n"
        "print(sorted(set(map(int, os.listdir('/proc/self/fd'))) - known))"
    )
    async with open_warden() as warden:

        async def one(moved: int) -> None:
            reader, writer = os.pipe()
            fds = [os.dup(writer) for _ in range(5)]
            high = os.dup2(writer, 300 + moved, inheritable=False)
            fds = [high, *reversed(fds)]
            argv = [*python(code), *map(str, fds)]
            process = await warden.start(argv, name="it", stdout="pipe", pass_fds=fds)
            for fd in (*fds, writer):
                os.close(fd)
            output = b"".join([part async for part in process.stdout]).decode()
            async with trio.lowlevel.FdStream(reader) as stream:
                got = b"".join([part async for part in stream]).decode()
            assert got == "".join(f"{n}/" for n in fds)
            listed = set(eval(output))
            assert set(fds) <= listed
            assert len(listed) == len(fds) + 1  # and the one of the listing itself

        async with trio.open_nursery() as nursery:
            for moved in range(8):
                nursery.start_soon(one, moved)


@pytest.mark.parametrize("fds", [[0], [7, 7], [987654], list(range(3, 300))])
async def test_bad_descriptors_are_refused(fds):
    """Before anything is started."""
    async with open_warden() as warden:
        with pytest.raises(SpawnError):
            await warden.start(["true"], name="it", pass_fds=fds)
        assert await (await warden.start(["true"], name="next")).wait() == Exit(0, None)


async def test_spawn_errors_name_the_program(tmp_path):
    """No such file, no permission, no such directory, too long, a NUL, nothing: each is told."""
    plain = tmp_path / "plain"
    plain.write_text("echo")
    async with open_warden() as warden:
        for argv, options, match in [
            (["no-such-program"], {}, "'no-such-program'.*No such file"),
            (["/no/such/program"], {}, "/no/such/program.*No such file"),
            ([str(plain)], {}, "plain.*Permission denied"),
            (["true", "x" * 2**22], {}, "'true'.*too long"),
            (["true", "a\0b"], {}, "'true'.*null"),
            (["true"], {"cwd": "/no/such/directory"}, "/no/such/directory"),
            (["true"], {"env": {"a=b": "c"}}, "environment"),
            ([], {}, "empty"),
        ]:
            with pytest.raises(SpawnError, match=f"bad: .*{match}"):
                await warden.start(argv, name="bad", stdin="pipe", stdout="pipe", **options)
        assert await (await warden.start(["true"], name="good")).wait() == Exit(0, None)
    assert [r.name for r in warden.report()] == ["good"]


async def test_environment_and_directory(tmp_path):
    """Overrides go over the coordinator's own; texts that are no UTF-8 arrive as they are."""
    odd = os.fsdecode(b"\xff\xfe")
    code = "import os; print(os.getcwd(), ascii(os.environ['ODD']), 'PATH' in os.environ)"
    async with open_warden() as warden:
        process = await warden.start(
            python(code), name="it", stdout="pipe", env={"ODD": odd}, cwd=str(tmp_path)
        )
        got = b"".join([part async for part in process.stdout]).decode()
        assert got == f"{tmp_path} {odd!a} True\n"


async def test_signals_are_at_their_defaults(tmp_path):
    """Nothing ignored, nothing blocked: what the warden does with signals is not inherited."""
    async with open_warden() as warden:
        process = await warden.start(["cat", "/proc/self/status"], name="it", stdout="pipe")
        got = b"".join([part async for part in process.stdout]).decode()
    masks = dict(line.split(":\t") for line in got.splitlines() if line.startswith(("SigBlk", "SigIgn")))
    assert len(masks) == 2
    internal = 0b11 << 31  # the C library's own, which posix_spawn leaves ignored
    assert {int(mask, 16) & ~internal for mask in masks.values()} == {0}


async def test_cancelled_start_leaks_nothing():
    """The warden is held up, the start cancelled: what it starts afterwards is killed at once."""
    env, token = token_env()
    async with open_warden() as warden:
        os.kill(warden.pid, signal.SIGSTOP)
        with trio.move_on_after(0.1) as scope:
            await warden.start(["sleep", "100"], name="late", env=env, stdin="pipe", stdout="pipe")
        assert scope.cancelled_caught
        os.kill(warden.pid, signal.SIGCONT)
        after = await warden.start(["true"], name="after")
        await after.wait()
        await until_gone(token)
    assert {r.name: r.how for r in warden.report()} == {"late": "killed", "after": "exited"}


async def test_many_spawns_leak_no_descriptor():
    """200 processes, here and in the warden."""
    async with open_warden() as warden:
        await (await warden.start(["true"], name="warm")).stop()
        before = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{warden.pid}/fd"))

        async def some() -> None:
            for n in range(25):
                process = await warden.start(["true"], name=str(n), stdin=b"x")
                assert await process.wait() == Exit(0, None)
                await process.stop()

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(some)
        await trio.testing.wait_all_tasks_blocked()
        assert (len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{warden.pid}/fd"))) == before
        assert warden.processes() == ()
    assert len(warden.report()) == 201


async def test_python_argv_finds_what_is_found_here(tmp_path, monkeypatch):
    """The package, and a module of the user's that only sys.path knows; not the working directory."""
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "users_module.py").write_text("import trio_swarm, sys; print(sys.argv[1:])")
    (tmp_path / "trio_swarm.py").write_text("raise Exception('shadowed')")
    monkeypatch.syspath_prepend(str(tmp_path / "users"))
    async with open_warden() as warden:
        process = await warden.start(
            python_argv("users_module", "a", "b"), name="it", stdout="pipe", cwd=str(tmp_path)
        )
        got = b"".join([part async for part in process.stdout])
        assert await process.wait() == Exit(0, None), process.stderr_tail
    assert got == b"['a', 'b']\n"


def test_python_env_leaves_the_standard_library_out(monkeypatch):
    """It would come before itself; a relative entry is made absolute."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    paths = python_env()["PYTHONPATH"].split(os.pathsep)
    assert os.getcwd() in paths
    assert os.path.dirname(os.__file__) not in paths
    assert not any(path.endswith("site-packages") for path in paths)


async def test_start_is_quick():
    """The warden is up in a fraction of a second; a generous bound, the benchmark has the figure."""
    begun = time.perf_counter()
    async with open_warden():
        assert time.perf_counter() - begun < 5
