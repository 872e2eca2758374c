"""Jobs of the user's own: found, run in a swarm, ended by signals, judged by what they return."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.job_support import Workplace, command
from trio_swarm.jobs.runner import JobError, load_job

HERE = "tests.jobs.test_runner"
ROOT = Path(__file__).parent.parent.parent


async def returns(swarm, argv):
    """Its first argument, as an exit status."""
    pool = await swarm.start_pool(size=1)
    return await pool.run(int(argv[0]), code="return ctx + 1")


async def returns_nothing(swarm, argv):
    """As most jobs will."""


async def returns_text(swarm, argv):
    return "text"


async def raises(swarm, argv):
    raise LookupError("what the job was looking for")


async def waits(swarm, argv):
    """Says that it is there, with a child; then waits for a signal."""
    import trio

    await swarm.start_child("echo")
    print("waiting", flush=True)
    await trio.sleep_forever()


SLOW_TO_END = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), open(sys.argv[1], "w").close(), sys.exit(0)))
print("ready", flush=True)
time.sleep(600)
"""


async def ends_slowly(swarm, argv):
    """With a process that takes a second to end in order, and leaves a file when it has."""
    import trio

    process = await swarm.start_process(
        [sys.executable, "-c", SLOW_TO_END, *argv], name="slow", stdout="pipe"
    )
    await process.stdout.receive_some(100)
    print("waiting", flush=True)
    await trio.sleep_forever()


def not_async(swarm, argv):
    """No job."""


async def no_arguments():
    """No job either."""


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("nothing", "module:function"),
        (":f", "module:function"),
        ("no_such_module_here:f", "cannot import"),
        (f"{HERE}:missing", "has no 'missing'"),
        (f"{HERE}:not_async", "not an async function"),
        (f"{HERE}:no_arguments", r"must take \(swarm, argv\)"),
    ],
)
def test_what_is_no_job_is_one_clear_error(target, word) -> None:
    """The error names the target and what is wrong with it."""
    with pytest.raises(JobError, match=word):
        load_job(target)


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(tmp_path)


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("job", "args", "status", "text"),
    [
        ("returns", ["41"], 42, ""),
        ("returns_nothing", [], 0, ""),
        ("returns_text", [], 2, "not an exit status"),
        ("raises", [], 1, "LookupError: what the job was looking for"),
    ],
)
def test_the_result_is_the_exit_status(job, args, status, text) -> None:
    """An int as it is, None as 0; an exception is a bug of the job's and shows its traceback."""
    done = _run(f"{HERE}:{job}", *args)

    assert done.returncode == status, done.stderr
    assert text in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_swarm_and_then_the_program(place, signum) -> None:
    """With the status that a shell gives, and with nobody left."""
    env = {name: value for name, value in place.env.items() if name not in ("XDG_RUNTIME_DIR", "TMPDIR")}
    with subprocess.Popen(
        command(f"{HERE}:waits"), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 128 + signum, errors
    assert place.survivors() == []
    assert sys.executable not in errors


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_more_of_the_same_signal_does_not_cut_the_end_short(place, tmp_path, signum) -> None:
    """The process that needs a second to end gets it; the status is the first signal's."""
    with subprocess.Popen(
        command(f"{HERE}:ends_slowly", str(tmp_path / "ended")),
        cwd=ROOT,
        env={**place.env, "XDG_RUNTIME_DIR": "", "TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        for _ in range(3):
            process.send_signal(signum)
            time.sleep(0.1)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 128 + signum, errors
    assert (tmp_path / "ended").exists()
    assert place.survivors() == []


def test_ctrl_c_again_and_again_does_not_hang_a_plain_swarm(place, tmp_path) -> None:
    """Trio raises each in the main task, shielded or not; the warden is shut down all the same."""
    script = (
        "import trio, trio_swarm\n"
        f"from {HERE} import ends_slowly\n"
        "async def main():\n"
        "    async with trio_swarm.open_swarm() as swarm:\n"
        f"        await ends_slowly(swarm, [{str(tmp_path / 'ended')!r}])\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**place.env, "XDG_RUNTIME_DIR": "", "TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, errors = process.communicate(timeout=30)

    assert "KeyboardInterrupt" in errors
    assert (tmp_path / "ended").exists()
    assert place.survivors() == []


def test_a_signal_that_was_ignored_stays_ignored(place, tmp_path) -> None:
    """nohup means what it says."""
    argv = [
        "sh",
        "-c",
        'trap "" HUP; exec "$@"',
        "sh",
        *command(f"{HERE}:ends_slowly", str(tmp_path / "ended")),
    ]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**place.env, "XDG_RUNTIME_DIR": "", "TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)

    assert process.returncode == 143


def test_a_tmpdir_that_is_not_there_is_one_line(tmp_path) -> None:
    """Before the job begins, and no traceback."""
    done = subprocess.run(
        command(f"{HERE}:returns_nothing"),
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": "", "TMPDIR": str(tmp_path / "missing")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("trio-swarm: error: no directory for the swarm: TMPDIR names ")
    assert done.stderr.count("\n") == 1
