"""``trio-swarm serve --state`` when the disk is full, the store damaged, or several want it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from tests.cli.test_serve import WITHIN, Serving, _env, known, log_in, refused, serving

ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1m tmpfs "$1" || exit 77
shift
for round in 1 2; do
    sh -c 'echo $$; exec "$@"' sh "$@"
done
"""
"""Two servers, the one after the other, on a disk that is there as long as this shell."""


def private_mounts(where: Path) -> list[str]:
    """How to run something that may mount what nobody else sees; skips where nobody may."""
    argv = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    try:
        may = subprocess.run(
            [*argv, "mount", "-t", "tmpfs", "tmpfs", str(where)], capture_output=True, check=False
        )
    except OSError:
        pytest.skip("no unshare command")
    if may.returncode:
        pytest.skip("this user may mount nothing")
    return argv


@contextmanager
def small_disk(where: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [*private_mounts(where), "sh", "-c", ON_A_SMALL_DISK, "sh", where]
    argv += [sys.executable, "-m", "trio_swarm", "serve", "--port", "0", "--state", where / "state"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, stdout=pipe, stderr=pipe, text=True, env=_env(), start_new_session=True
    ) as shell:
        try:
            yield shell
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)


def next_server(shell: subprocess.Popen[str]) -> tuple[int, Serving]:
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    return pid, Serving(shell, [shell.stdout.readline().rstrip("\n") for _ in range(2)])


def test_a_full_disk_loses_nothing_that_was_answered(tmp_path) -> None:
    """A login beyond is 500, and says nothing of this machine; a logout is whole or not at all.

    Those that were answered 200 live on, also after a kill, and also while the disk is full still.
    """
    with small_disk(tmp_path) as shell:
        pid, at = next_server(shell)
        try:
            logins, large = [], {"desc": "x" * 20_000}
            for number in range(200):
                body = {"roles": [f"r{number}"], **large}
                answer = httpx2.post(f"{at.url}/v1/operators", json=body, trust_env=False)
                if answer.status_code != 200:
                    break
                logins.append(answer.json())
            assert answer.status_code == 500
            assert answer.json()["error"].startswith("session persist failed: ")
            assert str(tmp_path) not in answer.text
            assert len(logins) > 10
            leaving = logins.pop()
            gone = httpx2.delete(
                f"{at.url}/v1/operators/{leaving['sid']}",
                headers={"Authorization": f"Bearer {leaving['token']}"},
                trust_env=False,
            )
            assert gone.status_code in (204, 500)
            left = 404 if gone.status_code == 204 else 200
            assert known(at, leaving) == left
            assert {known(at, login) for login in logins} == {200}
        finally:
            os.kill(pid, signal.SIGKILL)
        pid, at = next_server(shell)
        try:
            assert {known(at, login) for login in logins} == {200}
            assert known(at, leaving) == left
        finally:
            os.kill(pid, signal.SIGTERM)
        shell.communicate(timeout=WITHIN)
    assert shell.returncode == 0


def test_of_several_that_start_at_once_one_has_the_state(tmp_path) -> None:
    """The others say so in one line, status 4, and harm nothing."""
    state = tmp_path / "state"
    argv = [sys.executable, "-m", "trio_swarm", "serve", "--port", "0", "--state", str(state)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=_env()))
            for _ in range(3)
        ]
        for each in started:
            stack.callback(each.kill)
        serves = []
        for each in started:
            assert each.stdout is not None
            assert each.stderr is not None
            line = each.stdout.readline()
            if line:
                serves.append(Serving(each, [line.rstrip("\n")]))
                continue
            assert each.stderr.read() == (
                f"trio-swarm: error: cannot use the state directory {state}: another server is using it\n"
            )
            assert each.wait(WITHIN) == 4
        (at,) = serves
        login = log_in(at)
        at.process.kill()
    with serving("--state", state) as again:
        assert known(again, login) == 200


@pytest.mark.parametrize("damage", ["emptied", "garbage", "later version", "directory", "mode"])
def test_a_store_that_cannot_be_used_is_one_line_and_stays_as_it_is(tmp_path, damage) -> None:
    """Status 4, the file by its whole path, and whoever repairs it has all the sessions again."""
    state, token = tmp_path / "state", tmp_path / "token"
    with serving("--state", state) as at:
        login = log_in(at, roles=["r"])
        if damage == "later version":  # With a log SQLite would put that into it.
            at.end(signal.SIGTERM)
        at.process.kill()
    file, log = state / "sessions.sqlite", state / "sessions.sqlite-wal"
    kept = file.read_bytes()
    assert log.exists() == (damage != "later version")
    if damage == "emptied":
        os.truncate(file, 0)
    elif damage == "garbage":
        file.write_bytes(b"\xa5" * len(kept))
    elif damage == "later version":
        assert 0 < int.from_bytes(kept[60:64], "big") < 99, "where SQLite keeps user_version"
        file.write_bytes(kept[:60] + (99).to_bytes(4, "big") + kept[64:])
    elif damage == "directory":
        file.unlink()
        file.mkdir()
    else:
        file.chmod(0o640)
    before = [each.read_bytes() if each.is_file() else None for each in (file, log)]
    status, line = refused("--port", "0", "--state", state, "--token-file", token)
    assert (status, str(file) in line) == (4, True)
    assert [each.read_bytes() if each.is_file() else None for each in (file, log)] == before
    assert not token.exists()
    if damage == "directory":
        file.rmdir()
    file.write_bytes(kept)
    file.chmod(0o600)
    with serving("--state", state) as again:
        assert known(again, login) == 200
