"""A store of sessions whose files were damaged or changed: one clear error, and nothing is touched."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from trio_swarm._io.session_db import FILE_NAME, SessionRow, open_session_db
from trio_swarm.errors import StoreError

ROW = SessionRow("S-1", bytes(range(32)), ("main",), None, None, 1000.0, 2000.0, True)
WAL = f"{FILE_NAME}-wal"


@pytest.fixture
async def killed(tmp_path) -> Path:
    """A store as a server leaves it that was killed before the log was written into the database."""
    alive, state = tmp_path / "alive", tmp_path / "state"
    async with open_session_db(alive) as db:
        db._connection.execute("PRAGMA wal_autocheckpoint = 0")
        await db.insert(ROW)
        shutil.copytree(alive, state)
    assert (state / WAL).stat().st_size > 0
    return state


@pytest.fixture
async def closed(tmp_path) -> Path:
    """A store as a server leaves it that ended in order."""
    state = tmp_path / "state"
    async with open_session_db(state) as db:
        await db.insert(ROW)
    assert [each.name for each in state.iterdir()] == [FILE_NAME]
    return state


def content(state: Path) -> dict[str, bytes | None]:
    """All but the log's index, of which nothing is kept."""
    files = [each for each in state.iterdir() if not each.name.endswith("-shm")]
    return {each.name: each.read_bytes() if each.is_file() else None for each in files}


async def rows(state: Path) -> list[SessionRow]:
    async with open_session_db(state) as db:
        found, unreadable = await db.load()
    assert not unreadable
    return found


async def refused(state: Path, match: str, name: str = FILE_NAME) -> None:
    """One line that names the file by its whole path; all files are as they were."""
    before = content(state)
    with pytest.raises(StoreError, match=match) as error:
        await rows(state)
    assert "\n" not in str(error.value)
    assert str(state / name) in str(error.value)
    assert content(state) == before


async def test_a_killed_servers_store_is_whole(killed) -> None:
    """The fixture is one: what the tests below change is what makes the difference."""
    assert await rows(killed) == [ROW]


@pytest.mark.parametrize("damage", ["gone", "empty", "wrong behind its header", "cut"])
async def test_what_was_answered_is_not_in_the_log_alone(tmp_path, damage) -> None:
    """So whatever becomes of the log of a killed server, the sessions are there."""
    alive, state = tmp_path / "alive", tmp_path / "state"
    kept = [attrs.evolve(ROW, sid=f"S-{n}", token_digest=bytes([n] * 32), joined_at=n) for n in range(5)]
    async with open_session_db(alive) as db:
        for row in [*kept, attrs.evolve(ROW, sid="S-gone")]:
            await db.insert(row)
        await db.delete("S-gone")
        await db.touch([("S-0", 9000.0, True)])
        shutil.copytree(alive, state)
    log = state / WAL
    if damage == "gone":
        log.unlink()
    elif damage == "empty":
        os.truncate(log, 0)
    elif damage == "cut":
        os.truncate(log, 3000)
    else:
        log.write_bytes(log.read_bytes()[:32] + b"\xa5" * (log.stat().st_size - 32))
    assert await rows(state) == [attrs.evolve(kept[0], last_access=9000.0), *kept[1:]]


@pytest.mark.parametrize("begin", [0, 16, 100, 200])
async def test_what_a_damaged_database_has_in_its_log_stays_there(killed, begin) -> None:
    """SQLite would write the log into the damage, and delete it."""
    file = killed / FILE_NAME
    whole = file.read_bytes()
    file.write_bytes(whole[:begin] + b"\xa5" * (len(whole) - begin))
    await refused(killed, "not a database|malformed")
    file.write_bytes(whole)
    assert await rows(killed) == [ROW]
    assert [each.name for each in killed.iterdir()] == [FILE_NAME]


async def test_a_damage_in_the_middle_is_found_before_the_log_is_written_into_it(tmp_path) -> None:
    """In a page that the log does not have."""
    alive, state = tmp_path / "alive", tmp_path / "state"
    async with open_session_db(alive) as db:
        for number in range(40):
            row = attrs.evolve(ROW, sid=f"S-{number}", token_digest=bytes([number] * 32), desc="x" * 3000)
            await db.insert(row)
    async with open_session_db(alive) as db:
        db._connection.execute("PRAGMA wal_autocheckpoint = 0")
        await db.delete("S-39")
        shutil.copytree(alive, state)
    whole = (state / FILE_NAME).read_bytes()
    page = whole.index(b"S-5" + bytes([5] * 32)) // 4096 * 4096
    (state / FILE_NAME).write_bytes(whole[:page] + b"\xa5" * 4096 + whole[page + 4096 :])
    await refused(state, "it is damaged: ")
    (state / FILE_NAME).write_bytes(whole)
    assert len(await rows(state)) == 39


@pytest.mark.parametrize("size", [0, 1])
async def test_an_emptied_database_is_damaged_and_its_log_is_kept(killed, size) -> None:
    """SQLite would delete the log, in which all the sessions are."""
    whole = (killed / FILE_NAME).read_bytes()
    os.truncate(killed / FILE_NAME, size)
    await refused(killed, "it is damaged: it is empty; remove it to begin anew")
    (killed / FILE_NAME).write_bytes(whole)
    assert await rows(killed) == [ROW]


@pytest.mark.parametrize("size", [0, 1, 50, 100, 512, 4096, 4097, 8192])
async def test_a_truncated_database_is_damaged(closed, size) -> None:
    """Not one to begin with anew, whatever is left of it."""
    assert size < (closed / FILE_NAME).stat().st_size
    os.truncate(closed / FILE_NAME, size)
    await refused(closed, "damaged|malformed")


@pytest.mark.parametrize("begin", [0, 100, 4096])
async def test_garbage_in_a_database_is_damage(closed, begin) -> None:
    """From its first byte, behind its header, behind its first page."""
    file = closed / FILE_NAME
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:begin] + b"\xa5" * (size - begin))
    await refused(closed, "not a database|malformed")


@pytest.mark.parametrize("at", [0, 3, 4, 11, 15, 16, 23, 24, 31])
async def test_a_log_with_a_wrong_header_is_damaged(killed, at) -> None:
    """One byte of it; SQLite would take it for an empty one, and write over it."""
    whole = (killed / WAL).read_bytes()
    (killed / WAL).write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
    await refused(killed, "it is damaged: its header is wrong", WAL)
    (killed / WAL).write_bytes(whole)
    assert await rows(killed) == [ROW]


async def test_a_log_of_the_other_order_of_bytes_is_a_log(killed) -> None:
    """As a server on another machine writes it; here one in which nothing is yet."""
    header = bytearray((killed / WAL).read_bytes()[:32])
    header[3] ^= 1
    one = two = 0
    for even, odd in struct.iter_unpack(">II" if header[3] & 1 else "<II", header[:24]):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    header[24:] = struct.pack(">II", one, two)
    (killed / WAL).write_bytes(header)
    assert await rows(killed) == []


@pytest.mark.parametrize("name", [b"se\nsions", b"se\x82sions", b"\xff" * 8])
async def test_what_sqlite_quotes_of_a_damage_is_one_line_of_text(closed, name) -> None:
    """Python cannot even read its message where the name is not UTF-8."""
    file = closed / FILE_NAME
    content = file.read_bytes()
    assert content.count(b"tablesessionssessions") == 1
    damaged = content.replace(b"tablesessionssessions", b"table" + name + name)
    file.write_bytes(damaged.replace(b"CREATE TABLE", b"CREATE TALBE"))
    await refused(closed, "malformed|damaged")


@pytest.mark.parametrize("log", [b"", bytes(5000)])
async def test_what_a_power_failure_leaves_of_a_log_that_was_just_begun_is_none(closed, log) -> None:
    """No bytes, or none that were written."""
    (closed / WAL).write_bytes(log)
    (closed / WAL).chmod(0o600)
    assert await rows(closed) == [ROW]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
async def test_a_log_without_its_database_is_damage(killed, suffix) -> None:
    """A new database beside it would be the end of it; or would have it applied."""
    (killed / FILE_NAME).unlink()
    name = f"{FILE_NAME}{suffix}"
    (killed / WAL).rename(killed / name)
    await refused(killed, f"it is damaged: {FILE_NAME} is gone", name)


async def test_what_stands_in_the_place_of_the_database_is_no_database(closed) -> None:
    """A directory; columns, or a table, that are not there."""
    file = closed / FILE_NAME
    file.rename(closed / "kept")
    file.mkdir()
    await refused(closed, "it is not a regular file")
    file.rmdir()
    (closed / "kept").rename(file)
    for statement, match in [
        ("ALTER TABLE sessions RENAME COLUMN seated TO sitting", "no such column: seated"),
        ("DROP TABLE sessions", "no such table: sessions"),
    ]:
        with sqlite3.connect(file) as connection:
            connection.execute(statement)
        connection.close()
        await refused(closed, match)


PLAIN = """
import sys, trio
from trio_swarm._io.session_db import open_session_db
from trio_swarm.errors import StoreError

async def main():
    try:
        async with open_session_db(sys.argv[1]) as db:
            rows, unreadable = await db.load()
        print(len(rows), "rows")
    except StoreError as error:
        print(error)

trio.run(main)
"""


async def as_anybody(state: Path) -> str:
    """What somebody hears to whom modes mean something: root, too, without its capabilities."""
    argv = [sys.executable, "-c", PLAIN, str(state)]
    if os.geteuid() == 0:
        argv = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *argv]
    with trio.fail_after(30):
        return (await trio.run_process(argv, capture_stdout=True)).stdout.decode()


needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="no setpriv, and root may do anything"
)


@needs_setpriv
@pytest.mark.parametrize("name", [FILE_NAME, WAL])
@pytest.mark.parametrize("mode", [0o400, 0o200, 0o000])
async def test_a_file_that_may_not_be_written_is_said_to_be_so(killed, name, mode) -> None:
    """Not `disk I/O error`."""
    (killed / name).chmod(mode)
    said = await as_anybody(killed)
    assert said == f"cannot use the state file {killed / name}: it cannot be read and written\n"
    (killed / name).chmod(0o600)
    assert await as_anybody(killed) == "1 rows\n"


@needs_setpriv
async def test_a_directory_that_may_not_be_written_is_said_to_be_so(killed) -> None:
    """Whether or not SQLite would notice: it has its log already here."""
    killed.chmod(0o500)
    said = await as_anybody(killed)
    killed.chmod(0o700)
    assert said == f"cannot use the state file {killed / FILE_NAME}: no file can be made beside it\n"
    killed.chmod(0o300)
    said = await as_anybody(killed)
    killed.chmod(0o700)
    assert said == f"cannot use the state directory {killed}: Permission denied\n"


@pytest.mark.parametrize("fails", ["connect", "rename"])
async def test_a_database_that_cannot_be_made_is_not_there(tmp_path, monkeypatch, fails) -> None:
    """No empty one that would be a damaged one the next time; what is left over is no hindrance."""
    state = tmp_path / "state"

    def broken(*args: object, **options: object) -> Callable[..., object]:
        raise sqlite3.OperationalError("disk on fire") if fails == "connect" else OSError(28, "No space")

    with monkeypatch.context() as patched:
        patched.setattr(*((sqlite3, "connect") if fails == "connect" else (os, "rename")), broken)
        with pytest.raises(StoreError, match=r"disk on fire|No space"):
            await rows(state)
    assert list(state.iterdir()) == []
    (state / f"{FILE_NAME}-new").write_bytes(b"half of one")
    (state / f"{FILE_NAME}-new-journal").write_bytes(b"and its journal")
    assert await rows(state) == []
    assert [each.name for each in state.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("PRAGMA user_version = 3", "schema version 3, this program knows 1 to 2 only"),
        ("PRAGMA application_id = 7", "a database of another program"),
    ],
)
async def test_what_is_not_ours_to_read_keeps_its_log(tmp_path, change, match) -> None:
    """Of a later version, or another program's: its log is not written into it, nor deleted."""
    alive, state = tmp_path / "alive", tmp_path / "state"
    async with open_session_db(alive) as db:
        db._connection.execute("PRAGMA wal_autocheckpoint = 0")
        db._connection.execute(change)
        shutil.copytree(alive, state)
    assert (state / WAL).stat().st_size > 0
    await refused(state, match)
