"""Sessions in SQLite: what is there afterwards, who may read it, and what is refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from trio_swarm._io.session_db import FILE_NAME, ObservedRow, SessionRow, open_session_db
from trio_swarm.errors import StoreError

ROW = SessionRow(
    sid="S-1",
    token_digest=bytes(range(32)),
    roles=("main", "ü\n"),
    desc="\U0001f41d \x00",
    capability_manifest={"provider_id": "p", "deep": [1, None, {"x": 1.5}]},
    joined_at=1000.25,
    last_access=2000.5,
    seated=True,
)
BARE = SessionRow("S-2", bytes(32), (), None, None, 1001.0, 1001.0, False)


@pytest.fixture
def state(tmp_path) -> Path:
    return tmp_path / "state"


def _sql(state: Path, *statements: str, **values: object) -> None:
    with sqlite3.connect(state / FILE_NAME) as connection:
        for statement in statements:
            connection.execute(statement, values)
    connection.close()


async def test_rows_come_back_as_they_were_put(state) -> None:
    """In the order of their logins, over a reopening; any text included."""
    async with open_session_db(state) as db:
        await db.insert(BARE)
        await db.insert(ROW)
        assert await db.load() == ([ROW, BARE], [])
    async with open_session_db(state) as db:
        assert await db.load() == ([ROW, BARE], [])


def noted(sid: str, *numbers: int) -> list[ObservedRow]:
    return [ObservedRow(sid, number, {"run_id": f"ST-{number}", "goal": "ü\n\x00"}) for number in numbers]


async def test_logs_come_back_in_their_order_with_the_latest_entries_only(state) -> None:
    """Each session has its own; what was written twice is there once."""
    async with open_session_db(state) as db:
        await db.insert(ROW)
        await db.insert(BARE)
        await db.note_observed([*noted("S-1", 1, 2), *noted("S-2", 1)], most=3)
        await db.note_observed([*noted("S-1", 2, 3, 4, 5)], most=3)
        await db.note_observed([], most=3)
    async with open_session_db(state) as db:
        assert await db.load_observed() == ([*noted("S-1", 3, 4, 5), *noted("S-2", 1)], [])


async def test_a_log_goes_with_its_session(state) -> None:
    """And none is written for one that is gone."""
    async with open_session_db(state) as db:
        await db.insert(ROW)
        await db.insert(BARE)
        await db.note_observed([*noted("S-1", 1), *noted("S-2", 1)], most=3)
        await db.delete("S-1")
        await db.note_observed(noted("S-1", 2), most=3)
        await db.note_observed(noted("S-3", 1), most=3)
        assert await db.load_observed() == (noted("S-2", 1), [])


_FIRST_VERSION = """
    CREATE TABLE sessions (
        sid TEXT PRIMARY KEY NOT NULL, token_digest BLOB NOT NULL, roles_json TEXT NOT NULL,
        desc_json TEXT NOT NULL, capability_manifest_json TEXT NOT NULL, joined_at_secs REAL NOT NULL,
        last_access_secs REAL NOT NULL, seated INTEGER NOT NULL
    );
    INSERT INTO sessions VALUES ('S-2', zeroblob(32), '[]', 'null', 'null', 1001.0, 1001.0, 0);
    PRAGMA application_id = 1953724275;
    PRAGMA user_version = 1;
"""


async def test_a_store_of_the_first_version_is_taken_over(state) -> None:
    """Its sessions are there as they were, and get a log."""
    state.mkdir(mode=0o700)
    connection = sqlite3.connect(state / FILE_NAME)
    connection.executescript(_FIRST_VERSION)
    connection.close()
    (state / FILE_NAME).chmod(0o600)
    for _ in range(2):
        async with open_session_db(state) as db:
            assert await db.load() == ([BARE], [])
            await db.note_observed(noted("S-2", 1), most=3)
            assert await db.load_observed() == (noted("S-2", 1), [])
    connection = sqlite3.connect(state / FILE_NAME)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("number", 0),
        ("number", "x"),
        ("number", 2**53 + 1),
        ("number", 2**63 - 1),
        ("entry_json", "{"),
        ("entry_json", "[]"),
        ("entry_json", b"\xff"),
        ("entry_json", 7),
        ("sid", b"\xff"),
    ],
)
async def test_a_poisoned_entry_is_skipped_and_named(state, column, value) -> None:
    """The others are read all the same."""
    async with open_session_db(state) as db:
        await db.insert(ROW)
        await db.note_observed(noted("S-1", 5, 6), most=3)
    _sql(state, f"UPDATE observed SET {column} = :value WHERE number = 5", value=value)
    async with open_session_db(state) as db:
        rows, (bad,) = await db.load_observed()
        assert rows == noted("S-1", 6)
        assert bad.reason.startswith("observed.")


async def test_a_number_that_sqlite_does_not_have_is_an_error_of_the_store(state) -> None:
    """Nothing else: who writes the logs takes no other, and nothing of the call was written."""
    async with open_session_db(state) as db:
        await db.insert(ROW)
        await db.note_observed(noted("S-1", 2**53), most=3)
        with pytest.raises(StoreError, match=r"cannot write .*too large"):
            await db.note_observed(noted("S-1", 7, 2**63), most=3)
        assert await db.load_observed() == (noted("S-1", 2**53), [])


async def test_a_row_is_deleted_once_and_missing_is_no_error(state) -> None:
    """Contract 8.4, I13: a row that is gone already is a success."""
    async with open_session_db(state) as db:
        await db.insert(ROW)
        await db.delete(ROW.sid)
        await db.delete(ROW.sid)
        assert await db.load() == ([], [])


async def test_accesses_are_noted_all_or_none(state) -> None:
    """Those of unknown sids change nothing."""
    async with open_session_db(state) as db:
        await db.insert(ROW)
        await db.insert(BARE)
        await db.touch([(BARE.sid, 5000.0, True), ("S-nobody", 1.0, True)])
        touched = attrs.evolve(BARE, last_access=5000.0, seated=True)
        assert await db.load() == ([ROW, touched], [])
        db._connection.execute(
            "CREATE TRIGGER t BEFORE UPDATE ON sessions WHEN NEW.sid = 'S-2'"
            " BEGIN SELECT RAISE(ABORT, 'disk on fire'); END"
        )
        with pytest.raises(StoreError, match=r"cannot write .*disk on fire"):
            await db.touch([(ROW.sid, 1.0, False), (BARE.sid, 1.0, False)])
        assert await db.load() == ([ROW, touched], [])


async def test_a_write_that_failed_wrote_nothing_and_can_be_repeated(state) -> None:
    """A full disk, as SQLite reports it: the same call succeeds when there is room again."""
    big = attrs.evolve(ROW, desc="x" * 60_000)
    async with open_session_db(state) as db:
        await db.insert(BARE)
        (pages,) = db._connection.execute("PRAGMA page_count").fetchone()
        db._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full"):
            await db.insert(big)
        assert await db.load() == ([BARE], [])
        db._connection.execute("PRAGMA max_page_count = 100000")
        await db.insert(big)
        assert await db.load() == ([big, BARE], [])


async def test_every_file_is_its_owners_alone(state) -> None:
    """Whatever the umask; the write-ahead log as well, while it is there."""
    before = os.umask(0)
    try:
        async with open_session_db(state) as db:
            await db.insert(ROW)
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in state.iterdir()}
            assert modes == {FILE_NAME: 0o600, f"{FILE_NAME}-wal": 0o600}
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert [each.name for each in state.iterdir()] == [FILE_NAME]


async def _refused(state: Path, match: str) -> None:
    with pytest.raises(StoreError, match=match) as refused:
        async with open_session_db(state):
            raise AssertionError("it was opened")
    assert "\n" not in str(refused.value)
    assert str(state) in str(refused.value) or FILE_NAME in str(refused.value)


async def test_a_directory_that_is_not_private_is_refused(state, tmp_path) -> None:
    """A symbolic link, a file, one that others may enter, one without a parent."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    await _refused(tmp_path / "link", "symbolic link, or not a directory")
    (tmp_path / "file").write_text("")
    await _refused(tmp_path / "file", "symbolic link, or not a directory")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    await _refused(tmp_path / "open", "its mode is 750, it must be 700")
    await _refused(tmp_path / "no" / "parent", "No such file")
    assert list((tmp_path / "open").iterdir()) == list((tmp_path / "real").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_what_belongs_to_another_is_refused(state) -> None:
    """The directory, and the file in it."""
    async with open_session_db(state):
        pass
    os.chown(state / FILE_NAME, 12345, -1)
    await _refused(state, "belongs to uid 12345")
    os.chown(state, 12345, -1)
    await _refused(state, "belongs to uid 12345")


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal", "-shm"])
async def test_a_file_that_another_could_have_put_there_is_refused(state, tmp_path, suffix) -> None:
    """A symbolic link, one that others may read, no file at all."""
    state.mkdir(mode=0o700)
    file, elsewhere = state / f"{FILE_NAME}{suffix}", tmp_path / "elsewhere"
    file.symlink_to(elsewhere)
    await _refused(state, "not a regular file")
    assert not elsewhere.exists()
    file.unlink()
    file.write_bytes(b"")
    file.chmod(0o604)
    await _refused(state, "its mode is 604, it must be 600")
    file.unlink()
    os.mkfifo(file, 0o600)
    await _refused(state, "not a regular file")


async def test_a_second_server_is_refused_while_the_first_lives(state) -> None:
    """And none after it: the lock goes with its holder."""
    async with open_session_db(state):
        await _refused(state, "another server is using it")
    async with open_session_db(state):
        pass


async def test_a_database_that_another_program_reads_is_refused(state) -> None:
    """SQLite's own lock, which ours does not replace."""
    async with open_session_db(state):
        pass
    other = sqlite3.connect(state / FILE_NAME, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        await _refused(state, "another program has it open")
    finally:
        other.close()


async def test_what_is_no_store_of_ours_is_refused_and_left_alone(state) -> None:
    """No database, another program's, a damaged one, a later version."""
    state.mkdir(mode=0o700)
    file = state / FILE_NAME

    def put(content: bytes) -> bytes:
        file.write_bytes(content)
        file.chmod(0o600)
        return content

    for content, match in [
        (b"no database " * 200, "not a database"),
        (b"SQLite format 3\0" + bytes(4080), "cannot open"),
    ]:
        put(content)
        await _refused(state, match)
        assert file.read_bytes() == content
        file.unlink()
    put(b"")
    _sql(state, "CREATE TABLE people (name)")
    before = file.read_bytes()
    await _refused(state, "another program")
    assert file.read_bytes() == before
    file.unlink()
    async with open_session_db(state):
        pass
    for version in (3, 0):
        _sql(state, f"PRAGMA user_version = {version}")
        await _refused(state, f"schema version {version}, this program knows 1 to 2 only")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("token_digest", b"short"),
        ("token_digest", "x" * 31),
        ("roles_json", "{"),
        ("roles_json", '"main"'),
        ("roles_json", "[1]"),
        ("roles_json", b"\xff\xfe"),
        ("roles_json", "[" * 100_000),
        ("desc_json", "7"),
        ("capability_manifest_json", "[]"),
        ("capability_manifest_json", '{"x": NaN}'),
        ("capability_manifest_json", "1" * 5000),
        ("joined_at_secs", "yesterday"),
        ("last_access_secs", float("inf")),
        ("last_access_secs", b"\0"),
        ("seated", 7),
        ("sid", b"\xff"),
    ],
)
async def test_a_poisoned_row_is_skipped_and_named(state, column, value) -> None:
    """The others are read all the same; it stays for whoever wants to look at it."""
    async with open_session_db(state) as db:
        await db.insert(ROW)
        await db.insert(BARE)
    _sql(state, f"UPDATE sessions SET {column} = :value WHERE sid = 'S-1'", value=value)
    async with open_session_db(state) as db:
        for _ in range(2):
            rows, unreadable = await db.load()
            assert rows == [BARE]
            assert [each.reason.startswith(column) for each in unreadable] == [True]


async def test_a_call_that_has_begun_is_not_given_up_by_a_cancellation(state) -> None:
    """And does not raise Cancelled then: its caller knows that it happened. One not begun never is."""
    async with open_session_db(state) as db:
        in_thread, go_on = trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()

        def slow(name: str, *args: object) -> int:
            token.run_sync_soon(in_thread.set)
            go_on.wait(10)
            return 1

        db._connection.create_function("slow", 1, slow)
        db._connection.execute("CREATE TEMP TRIGGER t BEFORE INSERT ON sessions BEGIN SELECT slow(1); END")
        ended: list[str] = []

        async def insert(row: SessionRow, scope: trio.CancelScope) -> None:
            with scope:
                await db.insert(row)
                ended.append(row.sid)

        first, second = trio.CancelScope(), trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(insert, ROW, first)
            await in_thread.wait()
            nursery.start_soon(insert, BARE, second)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            second.cancel()
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert ended == [ROW.sid]
        assert second.cancelled_caught
        assert await db.load() == ([ROW], [])


WRITER = """
import sys, trio
from trio_swarm._io.session_db import SessionRow, open_session_db

async def main():
    async with open_session_db(sys.argv[1]) as db:
        for number in range(1_000_000):
            sid = f"{sys.argv[2]}-{number}"
            await db.insert(SessionRow(sid, bytes(32), (), None, None, 1.0, 1.0, False))
            print(sid, flush=True)

trio.run(main)
"""


def test_what_was_said_to_be_there_is_there_after_a_kill(state) -> None:
    """Several rounds, each with a writer that is killed in the middle of its work."""
    told: list[str] = []
    for round_ in range(5):
        argv = [sys.executable, "-c", WRITER, str(state), str(round_)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 7 * round_):
                told.append(writer.stdout.readline().strip())
            writer.send_signal(signal.SIGKILL)
            told += [line.strip() for line in writer.stdout if line.endswith("\n")]
    assert len(told) >= 5 * 20

    async def kept() -> list[str]:
        async with open_session_db(state) as db:
            rows, unreadable = await db.load()
            assert not unreadable
            return [row.sid for row in rows]

    assert set(told) <= set(trio.run(kept))
