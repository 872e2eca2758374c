"""The discovery directory (children contract, A3)."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio

from trio_swarm._child.actor_announce import announced
from trio_swarm._io.fabric import Fabric
from trio_swarm._state.lease import Lease
from trio_swarm.frames import AgentRecord

NOON = datetime(2026, 6, 22, 12, tzinfo=UTC)


def record(agent_id="c", *, lease=60.0, **more):
    fields = {"role": "worker", "endpoint": "ws://127.0.0.1:1", "pid": 7, "started_at": NOON}
    expires = NOON + timedelta(seconds=lease)
    return AgentRecord(**{**fields, "agent_id": agent_id, "lease_expires_at": expires, **more})


@pytest.fixture
def fabric(tmp_path):
    return Fabric(tmp_path / "run" / "agents", clock=lambda: NOON)


def put(fabric, name, text):
    fabric.directory.mkdir(parents=True, exist_ok=True)
    (fabric.directory / name).write_text(text)


async def test_publish_discover_withdraw(fabric):
    """Sorted; resolve; withdraw; not found counts as success."""
    for agent_id in ("b", "c", "a"):
        await fabric.publish(record(agent_id))

    assert [r.agent_id for r in await fabric.discover()] == ["a", "b", "c"]
    assert await fabric.resolve("b") == record("b")
    assert await fabric.withdraw("b")
    assert not await fabric.withdraw("b")
    assert await fabric.resolve("b") is None


async def test_expired_lease_is_not_discovered_and_gc_removes_it(fabric):
    """Equal is stale; gc returns how many it removed; unparseable ones go, too."""
    await fabric.publish(record("live", lease=0.001))
    await fabric.publish(record("stale", lease=0))
    put(fabric, "broken.json", "{")
    put(fabric, ".hidden.json.tmp.1", "{")
    put(fabric, "notes.txt", "{")

    assert [r.agent_id for r in await fabric.discover()] == ["live"]
    assert await fabric.resolve("stale") is None
    assert (await fabric.read("stale")).agent_id == "stale"
    assert await fabric.gc() == 2
    assert sorted(os.listdir(fabric.directory)) == [".hidden.json.tmp.1", "live.json", "notes.txt"]


async def test_a_missing_directory_is_empty(fabric):
    """fabric_is_usable_as_dyn_discovery: gc 0 on empty."""
    assert await fabric.discover() == []
    assert await fabric.gc() == 0
    assert await fabric.resolve("x") is None
    assert not await fabric.withdraw("x")


async def test_the_file_is_pretty_complete_and_private(fabric):
    """labels and version are always written; one file per actor."""
    await fabric.publish(record("c"))
    path = fabric.directory / "c.json"

    assert json.loads(path.read_text()) == {
        "agent_id": "c",
        "role": "worker",
        "labels": [],
        "endpoint": "ws://127.0.0.1:1",
        "pid": 7,
        "version": "",
        "started_at": "2026-06-22T12:00:00Z",
        "lease_expires_at": "2026-06-22T12:01:00Z",
    }
    assert path.read_text().count("\n") > 5
    assert os.listdir(fabric.directory) == ["c.json"]
    assert fabric.directory.stat().st_mode & 0o777 == 0o700


BASE = '{{"agent_id":"c","role":"r","endpoint":"ws://127.0.0.1:1","pid":1,"started_at":"{0}",{1}"lease_expires_at":"{0}"}}'


@pytest.mark.parametrize(
    "instant",
    ["2026-06-22T12:00:00.000000001Z", "2026-06-22T12:00:01.123456789Z", "2026-06-22T14:00:01+02:00"],
)
async def test_records_of_other_writers_are_read(fabric, instant):
    """Up to nine fractional digits, any offset; labels and version default."""
    put(fabric, "c.json", BASE.format(instant, ""))
    read = await fabric.read("c")

    assert read.labels == ()
    assert read.version == ""
    assert (await fabric.resolve("c") is not None) == (":01" in instant)


@pytest.mark.parametrize("extra", ['"labels":null,', '"pid":-1,', '"labels":"x",', '"version":1,'])
async def test_records_that_are_none_are_not_discoverable(fabric, extra):
    """labels: null among them (A10)."""
    put(fabric, "c.json", BASE.format("2026-06-22T12:00:01Z", extra))

    assert await fabric.discover() == []
    assert await fabric.resolve("c") is None


async def test_a_record_that_speaks_for_another_is_none(fabric):
    """A file's name and its content must agree."""
    await fabric.publish(record("other"))
    (fabric.directory / "other.json").rename(fabric.directory / "c.json")

    assert await fabric.resolve("c") is None


@pytest.mark.parametrize("agent_id", ["a/b", "..", "../c", ".c", "", "a\0", "x" * 201])
async def test_an_agent_id_that_could_leave_the_directory_is_refused(fabric, agent_id):
    """For every call that makes a path of it."""
    for call in (fabric.read, fabric.resolve, fabric.withdraw):
        with pytest.raises(ValueError, match="agent_id"):
            await call(agent_id)
    with pytest.raises(ValueError, match="agent_id"):
        await fabric.publish(record(agent_id))


async def test_withdrawing_with_a_pid_spares_a_successor(fabric):
    """It may have published under the same id already."""
    await fabric.publish(record("c", pid=8))

    assert not await fabric.withdraw("c", pid=7)
    assert await fabric.withdraw("c", pid=8)


async def test_gc_spares_a_record_that_was_renewed_meanwhile(fabric, monkeypatch):
    """Read as stale, renewed by its owner, and only then looked at again."""
    await fabric.publish(record("c", lease=-5))
    listing = Fabric._listing

    def renewed_behind(self):
        for found in listing(self):
            self._publish(record("c", lease=60))
            yield found

    monkeypatch.setattr(Fabric, "_listing", renewed_behind)

    assert await fabric.gc() == 0
    assert await fabric.resolve("c") is not None


async def test_other_errors_are_raised(tmp_path):
    """Only what the contract forgives is forgiven."""
    (tmp_path / "file").touch()
    fabric = Fabric(tmp_path / "file")

    with pytest.raises(NotADirectoryError):
        await fabric.resolve("c")
    with pytest.raises(OSError, match="file"):
        await fabric.publish(record("c"))


# -- an actor's own record ---------------------------------------------------------------


async def test_an_announcement_is_renewed_and_withdrawn(fabric):
    """Everything but the lease's end stays as it was."""
    moving = attrs.evolve(fabric, clock=lambda: NOON + timedelta(seconds=trio.current_time() - begun))
    begun = trio.current_time()
    async with announced(moving, record("c"), lease=Lease(duration=60, period=0.01)) as announcement:
        first = await moving.read("c")
        while (now := await moving.read("c")) == first:
            await trio.sleep(0.005)

        assert now.lease_expires_at > first.lease_expires_at
        assert attrs.evolve(now, lease_expires_at=first.lease_expires_at) == first
        await announcement.withdraw()
        assert await moving.read("c") is None
    assert os.listdir(moving.directory) == []


async def test_a_failed_renewal_is_tried_again(fabric, monkeypatch):
    """A repair: upstream stops renewing for good."""
    lease = Lease(duration=60, period=0.01)
    async with announced(fabric, record("c"), lease=lease) as announcement:
        fabric.directory.rename(fabric.directory.with_name("away"))
        fabric.directory.touch()
        while not lease.failures:
            await trio.sleep(0.005)
        fabric.directory.unlink()
        while await fabric.read("c") is None:
            await trio.sleep(0.005)
        assert announcement.record.agent_id == "c"


async def test_a_first_publication_that_fails_is_raised(tmp_path):
    """As itself, and nothing is left running."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        async with announced(Fabric(tmp_path / "file"), record("c")):
            raise AssertionError("not reached")


async def test_a_cancelled_announcement_is_withdrawn(fabric):
    """Also with the block cancelled from outside."""
    with trio.CancelScope() as scope:
        async with announced(fabric, record("c")):
            scope.cancel()
            await trio.sleep_forever()

    assert await fabric.read("c") is None
