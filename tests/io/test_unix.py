"""Unix sockets that only this user can reach."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest
import trio

from trio_swarm._io import unix


async def test_listens_privately_and_cleans_up(tmp_path):
    """Mode 0600; the file goes with the listener."""
    path = tmp_path / "sock"
    async with unix.open_unix_listener(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = await unix.connect_unix(path)
        server = await listener.accept()
        assert unix.peer_uid(server) == os.geteuid()
        assert unix.peer_is_ours(server)
        await client.aclose()
        await server.aclose()

    assert not path.exists()


async def test_a_stale_socket_is_replaced(tmp_path):
    """Left by a process that crashed: nobody has it open."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    assert not unix.is_alive(path)

    async with unix.open_unix_listener(path):
        assert unix.is_alive(path)


async def test_a_live_socket_is_respected(tmp_path):
    """Neither removed nor bothered with a connection."""
    path = tmp_path / "sock"
    async with unix.open_unix_listener(path) as listener:
        with pytest.raises(OSError, match="somebody listens") as caught:
            await unix.open_unix_listener(path).__aenter__()
        assert caught.value.errno == errno.EADDRINUSE
        with trio.move_on_after(0.05) as scope:
            await listener.accept()
        assert scope.cancelled_caught


async def test_another_file_is_not_removed(tmp_path):
    """Something stands there that is no socket."""
    path = tmp_path / "sock"
    path.write_text("precious")

    with pytest.raises(OSError, match="no socket"):
        await unix.open_unix_listener(path).__aenter__()
    assert path.read_text() == "precious"


async def test_somebody_elses_socket_survives_our_end(tmp_path):
    """The file is removed by identity, not by name."""
    path = tmp_path / "sock"
    async with unix.open_unix_listener(path):
        path.unlink()
        path.write_text("new owner")

    assert path.read_text() == "new owner"


def test_too_long_a_path_is_told():
    """At the limit, and one over it."""
    assert unix.check_socket_path("/" + "x" * 102)
    with pytest.raises(ValueError, match="104 bytes, more than 103"):
        unix.check_socket_path("/" + "x" * 103)
    with pytest.raises(ValueError, match="NUL"):
        unix.check_socket_path("/a\0")


def test_private_directory_is_made_and_locked(tmp_path):
    """0700, and one holder at a time."""
    path = tmp_path / "pod"
    with unix.locked_directory(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        with pytest.raises(OSError, match="another process") as caught, unix.locked_directory(path):
            raise AssertionError
        assert caught.value.errno == errno.EBUSY
    with unix.locked_directory(path):
        assert path.is_dir()


def test_a_directory_that_others_may_enter_is_refused(tmp_path):
    """And a symbolic link, and one of somebody else."""
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path)

    with pytest.raises(PermissionError, match="must be 700"), unix.locked_directory(tmp_path / "open"):
        raise AssertionError
    with pytest.raises(OSError, match=r"directory|symbolic"), unix.locked_directory(tmp_path / "link"):
        raise AssertionError


def test_a_foreign_directory_is_refused(tmp_path, monkeypatch):
    """By its owner's uid."""
    monkeypatch.setattr(unix.os, "geteuid", lambda: 4242)

    with pytest.raises(PermissionError, match="belongs to uid"), unix.locked_directory(tmp_path / "pod"):
        raise AssertionError


def test_a_directory_removed_between_open_and_lock_is_made_again(tmp_path, monkeypatch):
    """The last holder removes it as it goes: whoever locked the old inode has locked nothing."""
    path, removed = tmp_path / "pod", []
    check = unix._check_private

    def remove_once(fd, where):
        check(fd, where)
        if not removed:
            removed.append(where)
            where.rmdir()

    monkeypatch.setattr(unix, "_check_private", remove_once)
    with unix.locked_directory(path) as fd:
        assert os.path.samestat(os.fstat(fd), path.stat())


async def test_a_peer_of_another_user_is_not_ours(tmp_path, monkeypatch):
    """The uid at the other end decides."""
    async with unix.open_unix_listener(tmp_path / "sock") as listener:
        client = await unix.connect_unix(tmp_path / "sock")
        server = await listener.accept()
        monkeypatch.setattr(unix, "peer_uid", lambda stream: os.geteuid() + 1)
        assert not unix.peer_is_ours(server)
        await client.aclose()
        await server.aclose()


def test_a_directory_removed_before_it_is_opened_is_made_again(tmp_path, monkeypatch):
    """It stood there for mkdir, and its last holder removed it then."""
    path, asked, mkdir = tmp_path / "pod", [], os.mkdir

    def stood_there(where, mode):
        asked.append(where)
        if len(asked) == 1:
            raise FileExistsError(where)
        mkdir(where, mode)

    monkeypatch.setattr(unix.os, "mkdir", stood_there)
    with unix.locked_directory(path) as fd:
        assert os.path.samestat(os.fstat(fd), path.stat())
    with pytest.raises(FileNotFoundError), unix.locked_directory(tmp_path / "no" / "parent"):
        raise AssertionError


async def test_a_full_queue_is_no_connection(tmp_path) -> None:
    """To ``trio.open_unix_socket`` it is one, and what is sent on it reaches nobody."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        async with await unix.connect_unix(tmp_path / "s"):
            with pytest.raises(BlockingIOError):
                await unix.connect_unix(tmp_path / "s")
            listener.accept()[0].close()
            async with await unix.connect_unix(tmp_path / "s") as stream:
                await stream.send_all(b"hello")
                with listener.accept()[0] as accepted:
                    assert accepted.recv(100) == b"hello"
