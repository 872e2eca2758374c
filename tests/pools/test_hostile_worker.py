"""Jobs that fork, and workers that break the contract: their own crash, and nobody else's failure."""

from __future__ import annotations

import pytest
import trio

from trio_swarm.errors import ChildCrashed
from trio_swarm.pools import open_pool

RETURNS = """\
import os
pid = os.fork()
if pid == 0:
    return "the copy"
os.waitpid(pid, 0)
return "the original"
"""

RAISES = RETURNS.replace('return "the copy"', 'raise ValueError("the copy")')
LEAVES = RETURNS.replace('return "the copy"', "raise SystemExit(3)")
ASKS = RETURNS.replace('return "the copy"', 'return query("the copy asks")')

IN_C = RETURNS.replace("os.fork()", "ctypes.CDLL(None).fork()").replace("import os", "import ctypes, os")

USES_MULTIPROCESSING = """\
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    return pool.map(abs, [-1, 2, -3])
"""

DESCRIPTORS = """\
import os, stat
read, write = os.pipe()
if os.fork() == 0:
    there = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    found = [int(fd.rpartition("/")[2]) for fd in there if os.path.exists(fd)]
    os.write(write, str(sum(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in found)).encode())
    os._exit(0)
os.close(write)
os.wait()
return os.read(read, 99).decode()
"""

PIDS = "import os\nreturn [ctx, os.getpid()]"


@pytest.mark.parametrize("code", [RETURNS, RAISES, LEAVES, ASKS, IN_C])
async def test_a_forked_copy_of_a_job_never_answers(host, code):
    """Each job has its own answer, the worker lives on, and its socket stays."""
    with trio.fail_after(30):
        async with open_pool(host, size=1) as pool:
            (worker, *_), before = [await pool.run(code=PIDS)], pool.statistics().restarts
            assert await pool.run(code=code) == "the original"
            for n in range(3):
                assert await pool.run(n, code=PIDS) == [n, worker[1]]
            assert pool.statistics().restarts == before
            assert len(list(host.runtime_dir.glob("*.sock"))) == 1


async def test_a_job_may_use_multiprocessing(host):
    """Copies that end by themselves are left alone, and terminating them works."""
    with trio.fail_after(30):
        async with open_pool(host, size=1) as pool:
            for _ in range(2):
                assert await pool.run(code=USES_MULTIPROCESSING) == [1, 2, 3]


async def test_a_forked_copy_has_no_socket_of_the_workers(host):
    """Even a copy that stays cannot keep the connection open, or write on it."""
    async with open_pool(host, size=1) as pool:
        assert await pool.run(code=DESCRIPTORS) == "0"


TWICE = """\
import gc
from trio_swarm._child.pool_server import PoolServer
(server,) = [each for each in gc.get_objects() if isinstance(each, PoolServer)]
if {when}:
    open({once!r}, "x").close()
    {act}
return ctx
"""


@pytest.mark.parametrize(
    "act",
    [
        "server.write(b'nonsense\\n')",
        "server.write(b'{}\\n{}\\n')",
        "server.write(server.line_of(server.machine._feed({'Completed': {'result': 'stale'}}).response))",
        "server.write(server.line_of(server.machine._feed({'Strange': {}}).response))",
        "server.write(server.line_of(server.machine._feed({'Paused': {'queries': []}}).response))",
        'server.write(b\'{"ok": false, "error": "worker already has an active session"}\\n\')',
    ],
)
async def test_a_worker_that_breaks_the_contract_is_replaced_and_its_job_run_again(host, told, tmp_path, act):
    """No job fails, none gets another's result."""
    once = str(tmp_path / "once")
    code = TWICE.format(when=f"not __import__('os').path.exists({once!r})", once=once, act=act)
    with trio.fail_after(30):
        async with open_pool(host, size=1) as pool:
            results = [await pool.run(n, code=code) for n in range(3)]
            if "stale" in act:
                # It bears the name of the first job's own session: nobody can tell these two apart.
                assert results[0] in (0, "stale")
                results[0] = 0
            assert results == [0, 1, 2]
            assert pool.statistics().restarts == 1
    (crash,) = [data for kind, data in told.events if kind == "worker_crashed"]
    assert "broke the contract" in crash["how"]


async def test_a_job_whose_workers_all_break_the_contract_is_an_outcome(host, tmp_path):
    """After its attempts, with what they did."""
    code = TWICE.format(when="True", once="/dev/null", act="server.write(b'nonsense\\n')").replace(
        "open('/dev/null', \"x\").close()", "pass"
    )
    async with open_pool(host, size=1, max_attempts=2) as pool:
        with pytest.raises(ChildCrashed, match="broke the contract") as caught:
            await pool.run(code=code)
        assert caught.value.attempt == 2
        assert await pool.run(5, code="return ctx") == 5


AFTER_A_FORK = """\
import os, signal, time
pid = os.fork()
if pid == 0:
    while True:
        time.sleep(60)
os.kill(pid, signal.SIGTERM)
return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


async def test_a_signal_to_a_copy_is_never_lost(host):
    """However early it comes: between the fork and the first line of the copy as well."""
    with trio.fail_after(60):
        async with open_pool(host, size=1) as pool:
            for _ in range(200):
                assert await pool.run(code=AFTER_A_FORK) == -15
