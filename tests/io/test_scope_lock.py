"""The machine-wide scope lock: its file, its lock, its five operations (pods contract, B4)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys

import pytest
import trio

from trio_swarm._io.scope_lock import ScopeLock, ScopeLockError, ScopeRefused, pid_is_dead
from trio_swarm.frames.pod import ScopeRule

ME = os.getpid()


def rule(target, permission="write", recursive=True):
    return ScopeRule(str(target), permission, recursive)


@pytest.fixture
def lock(tmp_path):
    return ScopeLock(tmp_path / "run" / "scope.lock")


@pytest.fixture
def repo(tmp_path):
    path = tmp_path / "repo"
    (path / "tests").mkdir(parents=True)
    return path


async def put(lock, name, *rules, spawner=None, pid=ME):
    if spawner is None:
        return await lock.register(name, rules, pid=pid, socket=f"/run/pods/{name}/sock")
    return await lock.delegate(name, rules, spawner=spawner, pid=pid, socket=f"/run/pods/{name}/sock")


async def table(lock):
    return {each.pod_name: each for each in await lock.allocations()}


async def test_open_creates_empty_lock_file(lock):
    """Owner-only, missing parents too; an empty file is an empty table."""
    assert await lock.allocations() == ()
    assert stat.S_IMODE(lock.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(lock.path.parent.stat().st_mode) == 0o700


async def test_save_and_reopen_roundtrip(lock, repo):
    """The contract's JSON, key by key, and the same inode throughout."""
    await put(lock, "lead", rule(repo))
    inode = lock.path.stat().st_ino
    await put(lock, "tests", rule(repo / "tests", recursive=False), rule(repo, "read"), spawner="lead")

    assert json.loads(lock.path.read_text()) == {
        "allocations": [
            {
                "pod_name": "lead",
                "pid": ME,
                "socket": "/run/pods/lead/sock",
                "scope_allow": [{"target": str(repo), "permission": "write", "recursive": True}],
                "delegated_from": None,
            },
            {
                "pod_name": "tests",
                "pid": ME,
                "socket": "/run/pods/tests/sock",
                "scope_allow": [
                    {"target": str(repo / "tests"), "permission": "write", "recursive": False},
                    {"target": str(repo), "permission": "read", "recursive": True},
                ],
                "delegated_from": "lead",
            },
        ]
    }
    assert lock.path.stat().st_ino == inode
    assert "\n  " in lock.path.read_text()


async def test_register_detects_write_conflict(lock, repo):
    """Names the pod that has the say there."""
    await put(lock, "a", rule(repo))

    with pytest.raises(ScopeRefused, match=r"requested scope `.*/tests` conflicts with pod `a`") as caught:
        await put(lock, "b", rule(repo / "tests"))
    assert caught.value.reason == "conflict"
    assert list(await table(lock)) == ["a"]


async def test_duplicate_pod_name_rejected(lock, repo, tmp_path):
    """At the top and by delegation."""
    await put(lock, "a", rule(repo))

    with pytest.raises(ScopeRefused, match="pod name `a` is already registered"):
        await put(lock, "a", rule(tmp_path / "other"))
    with pytest.raises(ScopeRefused, match="already registered"):
        await put(lock, "a", rule(repo), spawner="a")


async def test_delegate_must_be_subset(lock, repo, tmp_path):
    """Outside of the spawner is told before any conflict is looked at."""
    await put(lock, "root", rule(repo))
    await put(lock, "other", rule(tmp_path / "other"))

    with pytest.raises(ScopeRefused, match="is not within spawner `root`'s effective scope") as caught:
        await put(lock, "child", rule(tmp_path / "other"), spawner="root")
    assert caught.value.reason == "not_within"


async def test_delegate_to_an_unknown_spawner(lock, repo):
    """Nothing to delegate from."""
    with pytest.raises(ScopeRefused, match="pod `ghost` is not registered"):
        await put(lock, "child", rule(repo), spawner="ghost")


async def test_delegate_succeeds_within_parent_scope(lock, repo):
    """And the parent's own stored rules stay as they are."""
    await put(lock, "root", rule(repo))
    child = await put(lock, "child", rule(repo / "tests"), spawner="root")

    assert child.delegated_from == "root"
    assert (await table(lock))["root"].scope_allow == (rule(repo),)


async def test_delegate_rejects_sibling_overlap(lock, repo):
    """What was given away is not the spawner's to give: not within, rather than a conflict."""
    await put(lock, "root", rule(repo))
    await put(lock, "one", rule(repo / "tests"), spawner="root")

    with pytest.raises(ScopeRefused, match="not within"):
        await put(lock, "two", rule(repo / "tests" / "deep"), spawner="root")


async def test_release_reparents_children(lock, repo):
    """Children move to whoever delegated to the one that goes."""
    await put(lock, "root", rule(repo))
    await put(lock, "mid", rule(repo / "tests"), spawner="root")
    await put(lock, "leaf", rule(repo / "tests" / "deep"), spawner="mid")

    await lock.release("mid")

    assert {name: each.delegated_from for name, each in (await table(lock)).items()} == {
        "root": None,
        "leaf": "root",
    }
    with pytest.raises(ScopeRefused, match="pod `mid` is not registered"):
        await lock.release("mid")


async def test_delegated_scope_returns_to_parent_on_release(lock, repo):
    """It can be given to the next."""
    await put(lock, "root", rule(repo))
    await put(lock, "one", rule(repo / "tests"), spawner="root")
    await lock.release("one")

    assert await put(lock, "two", rule(repo / "tests"), spawner="root")


async def test_reclaim_stale_reparents_and_removes_dead_entries(lock, repo):
    """Also done by register and delegate."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    await put(lock, "root", rule(repo))
    await put(lock, "mid", rule(repo / "tests"), spawner="root")
    await put(lock, "leaf", rule(repo / "tests" / "deep"), spawner="mid")
    await lock.adopt("mid", pid=dead.pid)

    assert await lock.reclaim_stale() == ("mid",)
    assert (await table(lock))["leaf"].delegated_from == "root"

    await lock.adopt("root", pid=0)
    await put(lock, "next", rule(repo / "src"))
    assert set(await table(lock)) == {"leaf", "next"}


async def test_a_zombie_counts_as_dead(lock):
    """It answers signal 0, but writes nothing any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        with trio.fail_after(10):
            while not pid_is_dead(child.pid):
                await trio.sleep(0.01)
        os.kill(child.pid, 0)
    finally:
        child.wait()


def test_liveness_of_pids():
    """Ours is alive, one of another user too, 0 is dead."""
    assert not pid_is_dead(ME)
    assert not pid_is_dead(1)
    assert pid_is_dead(0)
    assert pid_is_dead(2**32 - 1)


async def test_read_rules_do_not_conflict_with_write(lock, repo):
    """Neither way."""
    await put(lock, "writer", rule(repo))
    await put(lock, "reader", rule(repo, "read"))

    assert set(await table(lock)) == {"writer", "reader"}


async def test_adopt_rewrites_pid(lock, repo):
    """The child's own for its spawner's."""
    await put(lock, "a", rule(repo), pid=ME)
    await lock.adopt("a", pid=1)

    assert (await table(lock))["a"].pid == 1


async def test_adopt_allocation_errors_on_unknown_pod(lock):
    """Fatal for a child."""
    with pytest.raises(ScopeRefused, match="pod `x` is not registered"):
        await lock.adopt("x", pid=ME)


async def test_dots_and_links_are_resolved_before_they_count(lock, repo, tmp_path):
    """``/srv/repo/../other`` is not inside ``/srv/repo``, nor is a link that leads out; upstream's gap."""
    (repo / "exit").symlink_to(tmp_path)
    await put(lock, "root", rule(repo))

    for target in (repo / "..", f"{repo}/../other", repo / "exit" / "other", f"{repo}/tests/../../other"):
        with pytest.raises(ScopeRefused, match="not within"):
            await put(lock, "child", rule(target), spawner="root")
    stored = await put(lock, "child", rule(f"{repo}/tests/../tests/./new"), spawner="root")
    assert stored.scope_allow == (rule(repo / "tests" / "new"),)


async def test_a_foreign_unresolved_rule_counts_as_what_it_is(lock, repo, tmp_path):
    """Another program stored it as given."""
    lock.path.parent.mkdir()
    entry = {"pod_name": "foreign", "pid": ME, "socket": "/s"}
    entry["scope_allow"] = [{"target": f"{repo}/../other", "permission": "write"}]
    lock.path.write_text(json.dumps({"allocations": [entry]}))

    await put(lock, "ours", rule(repo))
    with pytest.raises(ScopeRefused, match="conflicts with pod `foreign`"):
        await put(lock, "more", rule(tmp_path / "other" / "x"))


async def test_relative_targets_are_refused(lock):
    """With the path in the text."""
    with pytest.raises(ValueError, match="'repo' is not an absolute path"):
        await put(lock, "a", rule("repo"))


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
async def test_an_emptied_file_is_an_empty_table(lock, text):
    """What a crash between truncate and write leaves."""
    lock.path.parent.mkdir()
    lock.path.write_text(text)

    assert await lock.allocations() == ()


@pytest.mark.parametrize("text", ['{"allocations":[{"pod', "[]", '{"allocations":[{"pod_name":1}]}', "\0"])
async def test_a_cut_file_stops_everybody(lock, repo, text):
    """Told as a parse error, and not overwritten."""
    lock.path.parent.mkdir()
    lock.path.write_text(text)

    with pytest.raises(ScopeLockError, match=r"scope\.lock parse error: "):
        await put(lock, "a", rule(repo))
    assert lock.path.read_text() == text


async def test_io_errors_are_told(tmp_path):
    """The contract's text in front of the system's."""
    with pytest.raises(ScopeLockError, match=r"I/O error on scope\.lock: .*directory"):
        await ScopeLock(tmp_path).allocations()


async def test_a_held_lock_is_waited_for_and_given_up_on(lock, repo):
    """10 s by default; polled, so that it can be bounded at all."""
    await lock.allocations()
    impatient = ScopeLock(lock.path, wait=0.1, poll=0.01)
    with open(lock.path, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(ScopeLockError, match=r"not to be had within 0\.1 s"):
            await put(impatient, "a", rule(repo))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, lock, "a", rule(repo))
            await trio.sleep(0.05)
            fcntl.flock(holder, fcntl.LOCK_UN)

    assert set(await table(lock)) == {"a"}


async def test_a_cancelled_operation_leaves_no_lock_held(lock, repo):
    """The worker thread is waited for: the lock is never kept across an await."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await put(lock, "a", rule(repo))

    with open(lock.path if lock.path.exists() else "/dev/null", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


RACER = """
import sys, trio
from pathlib import Path
from trio_swarm._io.scope_lock import ScopeLock, ScopeRefused
from trio_swarm.frames.pod import ScopeRule
async def main():
    lock, won = ScopeLock(Path(sys.argv[1])), 0
    for n in range(40):
        try:
            rules = [ScopeRule(f"/srv/{n}", "write")]
            await lock.register(f"p{sys.argv[2]}-{n}", rules, pid=int(sys.argv[3]), socket="/s")
            won += 1
        except ScopeRefused:
            pass
    print(won)
trio.run(main)
"""


async def test_of_racing_processes_one_wins_each_scope(lock):
    """Two processes register 40 scopes each under other names: each scope has one owner, none is lost."""
    async with trio.open_nursery() as nursery:
        results = []

        async def race(number):
            argv = [sys.executable, "-c", RACER, str(lock.path), str(number), str(ME)]
            done = await trio.run_process(argv, capture_stdout=True)
            results.append(int(done.stdout))

        for number in range(2):
            nursery.start_soon(race, number)

    allocations = await lock.allocations()
    assert sum(results) == len(allocations) == 40
    assert len({each.scope_allow for each in allocations}) == 40


def fill_the_disk(monkeypatch):
    """The next write of a file is cut, the one after it fails, then there is room again."""
    calls = []

    def cut(real):
        def write(fd, data, *at):
            calls.append(fd)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, data[: len(data) // 2] if len(calls) == 1 else data, *at)

        return write

    monkeypatch.setattr(os, "write", cut(os.write))
    monkeypatch.setattr(os, "pwrite", cut(os.pwrite))


@pytest.mark.parametrize("operation", ["register", "release", "reclaim"])
async def test_a_full_disk_leaves_the_old_table(lock, repo, monkeypatch, operation):
    """Whatever was cut is put back before anybody else gets the lock."""
    await put(lock, "a", rule(repo))
    await put(lock, "b", rule(repo / "tests"), spawner="a")
    before, inode = lock.path.read_bytes(), lock.path.stat().st_ino
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        if operation == "reclaim":
            assert await ScopeLock(lock.path, is_dead=lambda pid: True).reclaim_stale()
        else:
            act = put(lock, "c", rule("/elsewhere")) if operation == "register" else lock.release("b")
            with pytest.raises(ScopeLockError, match="No space left"):
                await act

    assert lock.path.read_bytes() == before
    assert lock.path.stat().st_ino == inode
    await lock.release("b")
    assert set(await table(lock)) == {"a"}


async def test_a_writer_that_dies_after_taking_room_leaves_the_old_table(lock, repo, monkeypatch):
    """Growing begins with blanks behind what is there."""
    await put(lock, "a", rule(repo))

    class Died(BaseException):
        pass

    def die(*args):
        raise Died

    pwrite = os.pwrite
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data, at) if at else die())
        await put(lock, "b", rule("/elsewhere"))

    assert lock.path.read_bytes().endswith(b" ")
    assert set(await table(lock)) == {"a"}
