"""Files that stay only if they are whole."""

from __future__ import annotations

import errno
import os
import stat
import threading

import attrs
import pytest
import trio
import trio.testing

from trio_swarm._io import spool
from trio_swarm._io.spool import DiskFull, free_bytes, read_spooled, spooled


async def read(path) -> bytes:
    got = bytearray()

    async def send(data: bytes) -> None:
        got.extend(data)

    await read_spooled(path, send)
    return bytes(got)


async def test_a_write_that_found_no_room_added_nothing(tmp_path, monkeypatch) -> None:
    """So that it can be done again, once somebody has made room."""
    write, room = os.write, [5, 0]

    def full(fd, data):
        if room and not (left := room.pop(0)):
            raise OSError(errno.ENOSPC, "no room")
        return write(fd, data[: left if room else None])

    async with spooled(tmp_path, "x") as file:
        await file.write(b"before ")
        monkeypatch.setattr(spool.os, "write", full)
        with pytest.raises(DiskFull):
            await file.write(b"0123456789")
        assert await read(file.path) == b"before "
        await file.write(b"0123456789")
        assert await read(file.path) == b"before 0123456789"


async def test_a_file_that_is_kept(tmp_path) -> None:
    """Private, in a directory that is made for it, and read back whole."""
    directory = tmp_path / "spool"
    content = os.urandom(300_000)
    async with spooled(directory, "out-1") as file:
        await file.write(content[:100_000])
        await file.write(memoryview(content)[100_000:])
        file.kept = True
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert await read(file.path) == content


@pytest.mark.parametrize("how", ["left", "raised", "cancelled"])
async def test_a_file_that_is_not_kept_is_gone(tmp_path, how) -> None:
    with trio.CancelScope() as scope:
        try:
            async with spooled(tmp_path, "x") as file:
                await file.write(b"x")
                assert file.path.exists()
                if how == "raised":
                    raise KeyError
                if how == "cancelled":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
        except KeyError:
            assert how == "raised"
    assert list(tmp_path.iterdir()) == []


async def test_a_name_that_is_there_or_leads_elsewhere_is_refused(tmp_path) -> None:
    """Nothing of others is overwritten or followed, and nothing of others is removed."""
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            async with spooled(tmp_path, name):
                pass
    for name in ("../x", "", ".x", "a/b"):
        with pytest.raises(ValueError, match="name"):
            async with spooled(tmp_path, name):
                pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
    assert (tmp_path / "there").read_text() == "old"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
async def test_a_full_disk_is_told_from_a_broken_one(tmp_path, monkeypatch, error) -> None:
    def fail(fd, data):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(spool.os, "write", fail)
    with pytest.raises(OSError if error == errno.EIO else DiskFull):
        async with spooled(tmp_path, "x") as file:
            await file.write(b"x")
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_may_show_at_opening(tmp_path, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "open", fail)
        with pytest.raises(DiskFull):
            async with spooled(tmp_path, "x"):
                pass


async def test_nothing_is_left_when_no_thread_is_free(tmp_path) -> None:
    """Others may hold all of Trio's threads for as long as they like. (A descriptor: the fixture.)"""
    limiter = trio.to_thread.current_default_thread_limiter()
    before, go = limiter.total_tokens, threading.Event()
    limiter.total_tokens = 1
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with spooled(tmp_path, "x") as file:
                    nursery.start_soon(trio.to_thread.run_sync, go.wait)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            left = list(tmp_path.iterdir())
            go.set()
    finally:
        limiter.total_tokens = before
    assert left == []
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file._fd)


async def test_a_file_that_is_begun_again(tmp_path) -> None:
    async with spooled(tmp_path, "x") as file:
        await file.write(b"abc")
        await file.clear()
        await file.write(b"d")
        assert await read(file.path) == b"d"


async def test_reading_a_file_that_is_gone(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        await read(tmp_path / "x")


async def test_reading_follows_no_link(tmp_path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic"):
        await read(tmp_path / "link")


async def test_a_reader_that_stops_leaves_no_descriptor(tmp_path) -> None:
    """Checked by the fixture that every test has."""
    (tmp_path / "x").write_bytes(b"x" * 300_000)

    async def send(data: bytes) -> None:
        raise trio.BrokenResourceError

    with pytest.raises(trio.BrokenResourceError):
        await read_spooled(tmp_path / "x", send)


async def test_what_a_disk_has_left_counts_the_rest_of_the_last_block(tmp_path, monkeypatch) -> None:
    """Of the file that is to grow; a directory that is not there has nothing."""
    told = attrs.make_class("Told", ["f_bavail", "f_frsize"])(3, 4096)
    assert await free_bytes(tmp_path / "nowhere", 1) == 0
    monkeypatch.setattr(spool.os, "statvfs", lambda path: told)
    assert [await free_bytes(tmp_path, size) - 3 * 4096 for size in (0, 1, 4096)] == [0, 4095, 0]
