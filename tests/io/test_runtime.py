"""The private directory: where it is, who may enter, when it goes."""

from __future__ import annotations

import errno
import os
import stat
import tempfile

import pytest
import trio

from trio_swarm._io.runtime import MAX_NAME, MAX_SOCKET_PATH, private_dir


@pytest.fixture
def short(monkeypatch):
    """Two directories of ours with short paths: for the runtime, and for temporary files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        os.mkdir(f"{base}/run", 0o700)
        os.mkdir(f"{base}/tmp", 0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", f"{base}/run")
        monkeypatch.setattr(tempfile, "tempdir", f"{base}/tmp")
        yield base


async def test_private_and_gone(short):
    """Mode 0700 whatever the umask, a socket fits, and nothing of it stays."""
    old = os.umask(0)
    try:
        async with private_dir("p-") as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            assert str(path).startswith(f"{short}/run/p-")
            name = path / ("n" * MAX_NAME + ".sock")
            assert len(os.fsencode(name)) <= MAX_SOCKET_PATH
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(str(name))
            sock.close()
            (path / "deep").mkdir()
            (path / "deep" / "file").touch()
    finally:
        os.umask(old)
    assert not path.exists()


async def test_gone_when_cancelled(short):
    """The deleting itself is not cancelled."""
    with trio.CancelScope() as scope:
        async with private_dir() as path:
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert not path.exists()


async def test_gone_already(short):
    """Somebody was quicker, as the warden is."""
    async with private_dir() as path:
        path.rmdir()


async def test_two_are_two(short):
    """Never the same."""
    async with private_dir() as one, private_dir() as two:
        assert one != two


@pytest.mark.parametrize("fault", ["missing", "file", "link", "group", "others", "relative", "unset"])
async def test_unfit_runtime_directories_are_passed_over(short, monkeypatch, fault):
    """A link, a directory that others may write to, none at all: temporary files' place then."""
    run = f"{short}/run"
    if fault == "missing":
        os.rmdir(run)
    elif fault == "file":
        os.rmdir(run)
        open(run, "x").close()
    elif fault == "link":
        os.rename(run, f"{short}/real")
        os.symlink("real", run)
    elif fault == "group":
        os.chmod(run, 0o770)
    elif fault == "others":
        os.chmod(run, 0o707)
    elif fault == "relative":
        monkeypatch.chdir(short)
        monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    else:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    async with private_dir() as path:
        assert path.parent == type(path)(f"{short}/tmp")


async def test_a_foreigners_directory_is_passed_over(short, monkeypatch):
    """Owned by another user."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    async with private_dir() as path:
        assert str(path.parent) == f"{short}/tmp"


async def test_too_long_is_told(short, monkeypatch):
    """No place is short enough for a socket: the error says what to set."""
    long = f"{short}/{'x' * 80}"
    os.mkdir(long, 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", long)
    async with private_dir() as path:
        assert str(path.parent) == f"{short}/tmp"
    monkeypatch.setattr(tempfile, "tempdir", long)
    with pytest.raises(OSError, match="TMPDIR") as caught:
        async with private_dir():
            raise AssertionError("unreachable")
    assert caught.value.errno == errno.ENAMETOOLONG


async def test_a_place_for_files_is_where_temporary_files_go(short, monkeypatch):
    """Not in memory, however long the path: no socket is to fit; a TMPDIR of no use is still told."""
    deep = f"{short}/tmp/" + "d" * 120
    os.mkdir(deep)
    monkeypatch.setattr(tempfile, "tempdir", deep)
    async with private_dir("spool-", sockets=False) as path:
        assert str(path).startswith(f"{deep}/spool-")
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert not path.exists()
    monkeypatch.setenv("TMPDIR", f"{short}/nowhere")
    with pytest.raises(FileNotFoundError, match="TMPDIR"):
        async with private_dir("spool-", sockets=False):
            pass
