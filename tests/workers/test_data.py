"""The data store over a real socket (contract 1.2, 1.5): who reads what, and how much of it."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import stat
import subprocess
import sys
import tracemalloc

import pytest
import trio

from tests.cli.test_serve_state import private_mounts
from tests.workers.support import Bench, bearer, files_in, inline, serving
from trio_swarm._io.http import FrontLimits
from trio_swarm._state.board import Denied
from trio_swarm._state.outputs import OutputIndex
from trio_swarm.limits import INLINE_OUTPUT, KEY_LIFE
from trio_swarm.workers import Outcome, OutputStore

MISSING = "out-0000000000"


def bounded(**bounds):
    """A store with other bounds."""
    return lambda board, spool: OutputStore(
        new_hex=board._new_hex,
        spool=lambda: spool,
        index=OutputIndex(**bounds),
        yielding=board._machine.yielding,
        gave_way=board._gave_way,
    )


EVENTS = {
    "progress": {"type": "progress", "stage": "s", "note": None},
    "partial": inline("partial", {"a": [1]}),
    "artifact": {
        "type": "artifact",
        "name": "n",
        "content": {"kind": "file_ref", "path": "/x", "mime": None, "size_hint": 5},
    },
    "final": inline("final", None),
}


@pytest.mark.parametrize("route", ["emit", "named"])
@pytest.mark.parametrize("kind", EVENTS)
async def test_an_output_comes_back_as_the_contracts_record(tmp_path, route, kind) -> None:
    """O1, O3: by id; the id's form; unknown keys are not kept."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        body = {"task_id": task.task_id, "attempt": 1, "event": {**EVENTS[kind], "whatever": 1}}
        body |= {"producer_agent": "maker"} if route == "emit" else {}
        path = "/v1/data/emit" if route == "emit" else "/v1/data/maker"
        answer = await bench.client.post(path, json=body, headers=bearer(attempt.worker_handle))
        assert answer.status_code == 200
        out_id = answer.json()["out_id"]
        assert re.fullmatch("out-[0-9a-f]{10}", out_id)
        record = await bench.get(out_id, attempt.worker_handle)
        assert record.json() == {
            "id": out_id,
            "task_id": task.task_id,
            "attempt": 1,
            "producer_agent": "maker",
            "event": EVENTS[kind],
            "parent_refs": [],
        }
        assert attempt.finals == (kind == "final")
        (told,) = bench.events.of("output")
        assert (told["task_id"], told["attempt"], told["out_id"]) == (task.task_id, 1, out_id)


async def test_the_token_may_stand_in_the_query(tmp_path) -> None:
    """1.2 #12: `?token=` is accepted where something is posted, and nowhere else; a header wins."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        body = {"task_id": task.task_id, "attempt": 1, "event": inline("partial", 1)}
        for token in (attempt.capability_token, attempt.worker_handle):
            posted = await bench.client.post("/v1/data/x", params={"token": token}, json=body)
            assert posted.status_code == 200
            assert (await bench.client.get("/v1/data/x", params={"token": token})).status_code == 401
        refused = await bench.client.post(
            "/v1/data/x",
            params={"token": attempt.capability_token},
            json=body,
            headers={"Authorization": "Basic x"},
        )
        assert refused.status_code == 400
        assert (await bench.client.post("/v1/data/x", params={"token": ""}, json=body)).status_code == 400


async def test_the_newest_of_a_name_is_found(tmp_path) -> None:
    """O4, O5, and id before name: a producer that is named as an id does not hide it."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        handle = attempt.worker_handle
        first = (await bench.emit(task.task_id, handle, 1, producer_agent="a")).json()["out_id"]
        await bench.emit(task.task_id, handle, 2, producer_agent="a")
        await bench.emit(task.task_id, handle, 3, producer_agent=first)
        assert (await bench.get("a", handle)).json()["event"]["chunk"]["value"] == 2
        assert (await bench.get(first, handle)).json()["event"]["chunk"]["value"] == 1
        assert (await bench.get("b", handle)).status_code == 404


async def test_only_readers_of_the_task_see_it(tmp_path) -> None:
    """To others, and to nobody, it is as if it were not there; by name they see their own."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        _, other = bench.begun()
        own = (await bench.emit(task.task_id, attempt.worker_handle, "mine")).json()["out_id"]
        for key in (own, "coder"):
            for credential in (None, other.worker_handle, other.capability_token, "wh-00000000"):
                shown = await bench.get(key, credential)
                missing = await bench.get(MISSING, credential)
                assert (
                    shown.status_code
                    == missing.status_code
                    == {None: 401, "wh-00000000": 410}.get(credential, 404)
                )
                assert shown.content == missing.content
        await bench.emit(other.task_id, other.worker_handle, "theirs")
        for credential, value in ((attempt.worker_handle, "mine"), (other.worker_handle, "theirs")):
            assert (await bench.get("coder", credential)).json()["event"]["chunk"]["value"] == value


async def test_a_public_output_takes_no_others_place(tmp_path) -> None:
    """What a task has of a name is what its own readers find; others, and it without any, the public."""
    async with serving(tmp_path) as bench:
        (task, attempt), (other, foreign), (_, third) = bench.begun(), bench.begun(), bench.begun()
        await bench.emit(task.task_id, attempt.worker_handle, "good", producer_agent="plan")
        artifact = {"producer_agent": "x", "event": inline("artifact", "good")}
        await bench.emit(task.task_id, attempt.worker_handle, **artifact)
        for name in ("plan", "report"):
            await bench.emit(other.task_id, foreign.worker_handle, "evil", producer_agent=name, public=True)
            found = [
                (await bench.get(name, each)).json()["task_id"]
                for each in (attempt.worker_handle, foreign.worker_handle, third.worker_handle, None)
            ]
            assert found == [task.task_id] + [other.task_id] * 3


async def test_what_is_public_is_seen_by_all(tmp_path) -> None:
    """By id and by name, without a credential too; other outputs of that name stay hidden."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        _, other = bench.begun()
        public = await bench.emit(task.task_id, attempt.worker_handle, "public", public=True)
        await bench.emit(task.task_id, attempt.worker_handle, "hidden")
        for key in (public.json()["out_id"], "coder"):
            for credential in (None, other.worker_handle):
                assert (await bench.get(key, credential)).json()["event"]["chunk"]["value"] == "public"
        assert (await bench.get("coder", attempt.worker_handle)).json()["event"]["chunk"]["value"] == "hidden"


async def test_parents_must_exist_for_the_emitter(tmp_path) -> None:
    """O7: kept; 422 for those that are not there, or that it may not see."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        foreign, other = bench.begun()
        mine = (await bench.emit(task.task_id, attempt.worker_handle)).json()["out_id"]
        theirs = (await bench.emit(foreign.task_id, other.worker_handle)).json()["out_id"]
        shared = (await bench.emit(foreign.task_id, other.worker_handle, public=True)).json()["out_id"]
        good = await bench.emit(task.task_id, attempt.worker_handle, parent_refs=[mine, shared])
        record = (await bench.get(good.json()["out_id"], attempt.worker_handle)).json()
        assert record["parent_refs"] == [mine, shared]
        texts = []
        for ref in (theirs, MISSING, "coder"):
            bad = await bench.emit(task.task_id, attempt.worker_handle, parent_refs=[mine, ref])
            assert bad.status_code == 422
            texts.append(bad.text.replace(ref, "REF"))
        assert len(set(texts)) == 1
        many = await bench.emit(task.task_id, attempt.worker_handle, parent_refs=[mine] * 65)
        assert many.status_code == 422
        raw = await bench.raw("r", task.task_id, attempt.worker_handle, b"x", parent_refs=f"{mine},{theirs}")
        assert raw.status_code == 422
        assert len(bench.board.outputs.of(task.task_id)) == 2


# -- large ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, INLINE_OUTPUT, INLINE_OUTPUT + 1, 1_000_000])
async def test_raw_bodies_come_back_as_they_were(tmp_path, size) -> None:
    """Content type and all; on disk when large, in a private directory, readable by the owner only."""
    content = os.urandom(size)
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        handle = attempt.worker_handle
        posted = await bench.raw("table", task.task_id, handle, content)
        assert posted.status_code == 200
        for key in ("table", posted.json()["out_id"]):
            got = await bench.get(key, handle)
            assert got.content == content
            assert got.headers["content-type"] == "text/csv"
            assert got.headers["content-length"] == str(size)
            assert got.headers["content-disposition"] == "attachment"
            assert got.headers["x-content-type-options"] == "nosniff"
            assert got.headers["trio-swarm-output"] == posted.json()["out_id"]
            assert got.headers["trio-swarm-features"] == "idempotency"
        head = await bench.client.head("/v1/data/table", headers=bearer(handle))
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
        assert (await bench.get("table")).status_code == 401
        files = files_in(bench.spool)
        assert len(files) == (size > INLINE_OUTPUT)
        for file in files:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert bench.board.outputs.size == size


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("text/csv; charset=utf-8", "text/csv; charset=utf-8"),
        ("application/x-thing+json", "application/x-thing+json"),
        ("nonsense", "application/octet-stream"),
        ("text/html, text/html", "application/octet-stream"),
        (None, "application/octet-stream"),
    ],
)
async def test_content_types(tmp_path, sent, kept) -> None:
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        headers = bearer(attempt.worker_handle) | ({"content-type": sent} if sent else {})
        params = {"raw": "1", "task_id": task.task_id, "attempt": "1"}
        await bench.client.post("/v1/data/x", params=params, content=b"x", headers=headers)
        assert (await bench.get("x", attempt.worker_handle)).headers["content-type"] == kept


async def test_a_large_event_is_kept_on_disk(tmp_path) -> None:
    """And read without coming back into memory as a whole."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        value = "x" * 1_500_000
        posted = await bench.emit(task.task_id, attempt.worker_handle, value)
        assert len(files_in(bench.spool)) == 1
        got = await bench.get(posted.json()["out_id"], attempt.worker_handle)
        assert got.json()["event"]["chunk"]["value"] == value
        assert int(got.headers["content-length"]) == len(got.content)


async def test_outputs_go_with_their_task(tmp_path) -> None:
    """Evicted: the files are gone, the room is free, the names are unknown."""
    async with serving(tmp_path, max_tasks=1) as bench:
        task, attempt = bench.begun()
        posted = await bench.raw("x", task.task_id, attempt.worker_handle, b"x" * 200_000, public="true")
        await bench.emit(task.task_id, attempt.worker_handle, event=inline("artifact", 1))
        task.settle(Outcome(task.task_id, "pass", None, 1))
        out_id = posted.json()["out_id"]
        assert (await bench.get(out_id)).status_code == 200
        bench.board.create("next", "x")
        assert files_in(bench.spool) == []
        assert bench.board.outputs.size == 0
        assert (await bench.get(out_id)).status_code == 401


async def test_a_body_is_not_taken_to_its_end_for_an_attempt_that_is_over(tmp_path) -> None:
    """The client is told before it has sent all."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        async with await trio.open_tcp_stream("127.0.0.1", bench.port) as stream:
            await stream.send_all(raw_head(bench, task, attempt, "Content-Length: 100000000"))
            await stream.send_all(b"x" * 200_000)
            while not files_in(bench.spool):
                await trio.testing.wait_all_tasks_blocked(0.01)
            attempt.end()
            await stream.send_all(b"x" * 200_000)
            with trio.fail_after(5):
                assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 410 ")
        assert_gone(bench)


async def test_a_body_in_the_air_goes_with_its_task(tmp_path) -> None:
    """The task is forgotten while the body comes: 410, and nothing is left."""
    async with serving(tmp_path, max_tasks=1) as bench:
        task, attempt = bench.begun()

        async def content():
            yield b"x" * 200_000
            while not files_in(bench.spool):
                await trio.testing.wait_all_tasks_blocked()
            task.settle(Outcome(task.task_id, "pass", None, 1))
            bench.board.create("next", "x")
            yield b"x" * 200_000

        answer = await bench.raw("x", task.task_id, attempt.worker_handle, content())
        assert answer.status_code == 410
        assert_gone(bench)


@pytest.mark.parametrize("pieces", [0, 1])
@pytest.mark.parametrize("event", ["ended", "superseded"])
async def test_a_body_in_the_air_goes_with_its_attempt(tmp_path, event, pieces) -> None:
    """At the next piece, or at its end."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()

        async def content():
            yield b"x" * 200_000
            attempt.end() if event == "ended" else task.begin()
            yield b"x" * pieces

        answer = await bench.raw("x", task.task_id, attempt.worker_handle, content())
        assert answer.status_code == (410 if event == "ended" else 409)
        assert_gone(bench)


def assert_gone(bench: Bench) -> None:
    """Nothing is left of any body."""
    assert (files_in(bench.spool), bench.board.outputs.size) == ([], 0)


@pytest.mark.parametrize(
    ("bounds", "sizes", "statuses"),
    [
        ({"max_output": 300_000}, [300_000, 300_001, 10], [200, 413, 200]),
        ({"max_task": 300_000}, [200_000, 100_001, 100_000, 1], [200, 413, 200, 413]),
        ({"max_all": 300_000}, [200_000, 100_001, 100_000, 1], [200, 507, 200, 507]),
        ({"max_records": 2}, [1, 1, 1], [200, 200, 413]),
    ],
)
async def test_bodies_are_bounded(tmp_path, bounds, sizes, statuses) -> None:
    """Each output, each task, all together, and their number; a refused one takes no room."""
    async with serving(tmp_path, store=bounded(**bounds)) as bench:
        task, attempt = bench.begun()

        async def pieces(size: int):
            for at in range(0, size, 50_000):
                yield b"x" * min(50_000, size - at)

        got = [
            (await bench.raw("x", task.task_id, attempt.worker_handle, pieces(size))).status_code
            for size in sizes
        ]
        assert got == statuses
        kept = [size for size, status in zip(sizes, statuses, strict=True) if status == 200]
        assert bench.board.outputs.size == sum(kept)
        on_disk = sum(file.stat().st_size for file in files_in(bench.spool))
        assert on_disk == sum(size for size in kept if size > INLINE_OUTPUT)


# -- giving way ----------------------------------------------------------------------------


async def ended_with(bench: Bench, size: int, name: str = "x", **options) -> str:
    """The id of an output of a task that has ended."""
    task, attempt = bench.begun(**options)
    answer = await bench.raw(name, task.task_id, attempt.worker_handle, b"x" * size, public="true")
    task.settle(Outcome(task.task_id, "pass", None, 1))
    return answer.json()["out_id"]


@pytest.mark.parametrize("sizes", [(120_000, 120_000), (60_000, 60_000)], ids=["files", "memory"])
async def test_outputs_of_ended_tasks_give_way_oldest_first(tmp_path, sizes) -> None:
    """What is asked for afterwards was given up, and its answer says why; the younger one stays."""
    room = sum(sizes) + 30_000
    async with serving(tmp_path, store=bounded(max_all=room)) as bench:
        old, young = [await ended_with(bench, size) for size in sizes]
        task, attempt = bench.begun()
        for size, status in ((20_000, 200), (40_000, 200)):
            answer = await bench.raw("y", task.task_id, attempt.worker_handle, b"y" * size)
            assert answer.status_code == status
        gone, stays = await bench.get(old, attempt.worker_handle), await bench.get(young)
        assert (gone.status_code, stays.status_code) == (410, 200)
        assert "given up" in gone.json()["error"]
        assert (await bench.get(old)).status_code == 410
        assert bench.board.outputs.size == sizes[1] + 60_000
        assert len(files_in(bench.spool)) == (1 if sizes[1] > INLINE_OUTPUT else 0)
        assert bench.events.of("outputs_given_up") == [
            {"task_id": bench.board.tasks()[0].task_id, "outputs": 1, "size": sizes[0]}
        ]


async def test_a_given_up_output_stays_private_and_nothing_takes_its_place(tmp_path) -> None:
    """To those who could not see it it never was there; for a name nothing else is found."""
    async with serving(tmp_path, store=bounded(max_all=100_000)) as bench:
        owner, first = bench.begun()
        private = (await bench.raw("x", owner.task_id, first.worker_handle, b"x" * 60_000)).json()["out_id"]
        other, attempt = bench.begun()
        await bench.raw("x", other.task_id, attempt.worker_handle, b"", public="true")
        owner.settle(Outcome(owner.task_id, "pass", None, 1))
        assert (await bench.raw("y", other.task_id, attempt.worker_handle, b"y" * 50_000)).status_code == 200
        assert (await bench.get(private, attempt.worker_handle)).status_code == 404
        assert (await bench.get(private)).status_code == 401
        assert bench.board.outputs.find("x", task_id=owner.task_id).given_up
        assert not bench.board.outputs.find("x", task_id=other.task_id).given_up


@pytest.mark.parametrize(("over", "declared"), [(0, True), (1, True), (1, False)])
async def test_a_hopeless_upload_destroys_nothing(tmp_path, over, declared) -> None:
    """If its length is known: it is refused before its body. At the limit it has all the room."""
    room = 300_000
    async with serving(tmp_path, store=bounded(max_all=room)) as bench:
        old = [await ended_with(bench, 90_000, f"x{number}") for number in range(3)]
        task, attempt = bench.begun()
        content = b"y" * (room + over)

        async def pieces():
            for at in range(0, len(content), 50_000):
                yield content[at:][:50_000]

        if over and declared:
            async with bench.client.stream(
                "POST",
                "/v1/data/y",
                params={"raw": "1", "task_id": task.task_id, "attempt": 1},
                headers={**bearer(attempt.worker_handle), "content-length": str(len(content))},
                content=pieces(),
            ) as answer:
                assert answer.status_code == 507
        else:
            body = content if declared else pieces()
            answer = await bench.raw("y", task.task_id, attempt.worker_handle, body)
            assert answer.status_code == (507 if over else 200)
        left = 200 if over and declared else 410
        assert [(await bench.get(each)).status_code for each in old] == [left] * 3
        assert bench.board.outputs.size == (270_000 if left == 200 else 0 if over else room)


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
import trio
from tests.workers.support import bearer, serving
from tests.workers.test_data import ended_with

async def main(where, sizes):
    async with serving(where) as bench:
        old = [await ended_with(bench, 303_104, f"x{number}") for number in range(3)]
        task, attempt = bench.begun()
        for size in sizes:
            answer = await bench.raw("y", task.task_id, attempt.worker_handle, b"y" * size)
            kept = [(await bench.get(each)).status_code for each in old]
            print(answer.status_code, *kept, flush=True)

trio.run(main, Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
"""


def test_a_hopeless_upload_destroys_nothing_on_a_full_disk(tmp_path) -> None:
    """A disk of 1 MiB: larger than it, one byte larger than it, and as large as it."""
    disk = 2**20
    sizes = [str(size) for size in (5_000_000, disk + 1, disk)]
    argv = [*private_mounts(tmp_path), "sh", "-c", 'mount -t tmpfs -o size=1m x "$1" && shift && exec "$@"']
    argv += ["sh", str(tmp_path), sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path), *sizes]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    told = ["507 200 200 200", "507 200 200 200", "200 410 410 410"]
    assert (done.stdout.splitlines(), done.stderr) == (told, "")


async def test_a_small_upload_without_room_on_the_disk_destroys_nothing_in_memory(
    tmp_path, monkeypatch
) -> None:
    """Where its length says that it will be too large for memory in the end."""
    monkeypatch.setattr("trio_swarm._state.outputs.INLINE_OUTPUTS", 50_000)

    def full(fd, data):
        raise OSError(errno.ENOSPC, "no room")

    async with serving(tmp_path) as bench:
        old = await ended_with(bench, 50_000)
        monkeypatch.setattr("trio_swarm._io.spool.os.write", full)
        task, _ = bench.begun()
        async with bench.board.outputs.draft(task.task_id, expected=100_000) as draft:
            with pytest.raises(Denied) as refused:
                await draft.write(b"y" * 20_000)
        assert refused.value.status == 507
        assert (await bench.get(old)).status_code == 200


async def test_nothing_of_a_running_task_gives_way(tmp_path) -> None:
    async with serving(tmp_path, store=bounded(max_all=300_000)) as bench:
        await ended_with(bench, 100_000)
        running, first = bench.begun()
        await bench.raw("x", running.task_id, first.worker_handle, b"x" * 150_000, public="true")
        task, attempt = bench.begun()
        answer = await bench.raw("y", task.task_id, attempt.worker_handle, b"y" * 250_000)
        assert answer.status_code == 507
        assert (await bench.get("x", first.worker_handle)).status_code == 200


async def test_what_a_running_task_may_look_at_goes_last(tmp_path) -> None:
    """Outputs of the steps below it, though they ended first."""
    async with serving(tmp_path, store=bounded(max_all=300_000)) as bench:
        above, attempt = bench.begun()
        below = await ended_with(bench, 100_000, "below", parent=above.task_id)
        alone = await ended_with(bench, 100_000, "alone")
        answer = await bench.raw("y", above.task_id, attempt.worker_handle, b"y" * 150_000)
        assert answer.status_code == 200
        statuses = [(await bench.get(each, attempt.worker_handle)).status_code for each in (below, alone)]
        assert statuses == [200, 410]


async def test_an_output_that_is_being_read_does_not_give_way(tmp_path) -> None:
    """Who needs the room is refused, until the last byte has been read."""
    size = 20_000_000
    async with serving(tmp_path, store=bounded(max_all=size + 50_000)) as bench:
        out_id = await ended_with(bench, size)
        task, attempt = bench.begun()

        async def emit() -> int:
            answer = await bench.raw("y", task.task_id, attempt.worker_handle, b"y" * 100_000)
            return answer.status_code

        got = 0
        async with bench.client.stream("GET", f"/v1/data/{out_id}") as answer:
            async for piece in answer.aiter_bytes():
                if not got:
                    assert await emit() == 507
                got += len(piece)
        assert got == size
        with trio.fail_after(10):  # The server is done a moment after its client.
            while await emit() != 200:
                await trio.sleep(0.005)
        assert (await bench.get(out_id)).status_code == 410


async def test_one_that_gives_way_between_the_look_up_and_the_read_is_410(tmp_path, monkeypatch) -> None:
    async with serving(tmp_path) as bench:
        out_id = await ended_with(bench, 100_000)
        store = bench.board.outputs
        read = store.read

        async def late(output, send) -> None:
            store._remove(store._index.give_up(1, bench.board._machine.yielding()))
            await read(output, send)

        monkeypatch.setattr(store, "read", late)
        answer = await bench.get(out_id)
        assert (answer.status_code, "given up" in answer.text) == (410, True)


async def test_files_of_ended_tasks_give_way_on_a_full_disk(tmp_path, monkeypatch) -> None:
    """The write that failed, half done, is done again; what comes back is whole."""
    write = os.write

    async with serving(tmp_path) as bench:

        def on_a_small_disk(fd, data):
            room = 300_000 - sum(file.stat().st_size for file in files_in(bench.spool))
            if room <= 0:
                raise OSError(errno.ENOSPC, "no room")
            return write(fd, data[: min(room, 7_001)])

        old = [await ended_with(bench, 90_000, f"x{number}") for number in range(3)]
        small = await ended_with(bench, 10)
        task, attempt = bench.begun()
        content = os.urandom(250_000)
        monkeypatch.setattr("trio_swarm._io.spool.os.write", on_a_small_disk)
        answer = await bench.raw("y", task.task_id, attempt.worker_handle, content)
        assert answer.status_code == 200
        assert (await bench.get("y", attempt.worker_handle)).content == content
        assert [(await bench.get(each)).status_code for each in (*old, small)] == [410, 410, 410, 200]
        refused = await bench.raw("y", task.task_id, attempt.worker_handle, content)
        assert refused.status_code == 507
        assert bench.errors == []


async def test_a_declared_length_is_refused_before_the_body(tmp_path) -> None:
    """413 without reading a byte of it, and without `100 Continue`."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        async with await trio.open_tcp_stream("127.0.0.1", bench.port) as stream:
            await stream.send_all(
                raw_head(bench, task, attempt, f"Content-Length: {2**40}\r\nExpect: 100-continue")
            )
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 413 ")


async def test_a_bad_credential_is_refused_before_the_body(tmp_path) -> None:
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        attempt.end()
        async with await trio.open_tcp_stream("127.0.0.1", bench.port) as stream:
            await stream.send_all(
                raw_head(bench, task, attempt, "Content-Length: 1000000\r\nExpect: 100-continue")
            )
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 410 ")


def raw_head(bench: Bench, task, attempt, more: str) -> bytes:
    return (
        f"POST /v1/data/x?raw=1&task_id={task.task_id}&attempt={attempt.number} HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{bench.port}\r\nAuthorization: Bearer {attempt.worker_handle}\r\n{more}\r\n\r\n"
    ).encode()


# -- the same one again ---------------------------------------------------------------------

KEYED = "Content-Length: 100000\r\nExpect: 100-continue\r\nConnection: close\r\nIdempotency-Key: k"


async def admitted(bench: Bench, task, attempt) -> trio.SocketStream:
    """A raw output of 100 kB whose body the server has begun to wait for."""
    stream = await trio.open_tcp_stream("127.0.0.1", bench.port)
    await stream.send_all(raw_head(bench, task, attempt, KEYED))
    assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
    return stream


async def answer_to(stream: trio.SocketStream, rest: bytes) -> tuple[int, str]:
    """What the server says to it, the rest of the body having come."""
    async with stream:
        await stream.send_all(rest)
        answer = b"".join([bytes(piece) async for piece in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("bounds", [{"max_records": 1}, {"max_task": 150_000}, {"max_all": 150_000}])
async def test_a_repeated_raw_output_needs_no_room(tmp_path, bounds, settled) -> None:
    """Its answer was lost: it is the old one again, and the first copy does not give way to the second."""
    content = b"x" * 100_000
    async with serving(tmp_path, store=bounded(**bounds)) as bench:
        task, attempt = bench.begun()
        first = await answer_to(await admitted(bench, task, attempt), content)
        assert first[0] == 200
        if settled:
            task.settle(Outcome(task.task_id, "pass", None, 1))
        assert await answer_to(await admitted(bench, task, attempt), content) == first
        refused = await answer_to(await admitted(bench, task, attempt), b"y" * 100_000)
        assert (refused[0], "Idempotency-Key" in refused[1]) == (422, True)
        (output,) = bench.board.outputs.of(task.task_id)
        assert (output.out_id, output.given_up) == (json.loads(first[1])["out_id"], False)
        assert bench.board.outputs.size == 100_000


async def test_one_that_turns_out_to_be_a_repetition_takes_no_more_room(tmp_path) -> None:
    """Both were on their way at once: as soon as the one is kept, the other is only compared with it."""
    async with serving(tmp_path, store=bounded(max_task=170_000)) as bench:
        task, attempt = bench.begun()
        slow = await admitted(bench, task, attempt)
        await slow.send_all(b"x" * 60_000)
        with trio.fail_after(5):
            while bench.board.outputs.size < 60_000:
                await trio.testing.wait_all_tasks_blocked(0.01)
        first = await answer_to(await admitted(bench, task, attempt), b"x" * 100_000)
        assert (first[0], await answer_to(slow, b"x" * 40_000)) == (200, first)
        assert bench.board.outputs.size == 100_000
        assert len(files_in(bench.spool)) == len(bench.board.outputs.of(task.task_id)) == 1


async def test_a_repetition_whose_answer_is_forgotten_meanwhile_is_not_done_again(
    tmp_path, monkeypatch
) -> None:
    """Its body was not kept, so it is to come once more."""
    monkeypatch.setattr("trio_swarm._state.attempt.IDEMPOTENCY_KEYS", 1)
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        await answer_to(await admitted(bench, task, attempt), b"x" * 100_000)
        again = await admitted(bench, task, attempt)
        bench.clock.now += KEY_LIFE
        other = {**bearer(attempt.worker_handle), "Idempotency-Key": "other"}
        assert (await bench.client.post("/v1/worker/submit", content=b"", headers=other)).status_code == 204
        assert (await answer_to(again, b"x" * 100_000))[0] == 503
        assert len(bench.board.outputs.of(task.task_id)) == 1


# -- bodies that break off ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "closed", "slow", "malformed"])
async def test_a_body_that_does_not_come_to_its_end_leaves_nothing(tmp_path, how) -> None:
    """No record, no file, no room taken; and nobody is told of a crash."""
    limits = FrontLimits(body_deadline=0.3)
    async with serving(tmp_path, limits=limits) as bench:
        task, attempt = bench.begun()
        stream = await trio.open_tcp_stream("127.0.0.1", bench.port)
        await stream.send_all(raw_head(bench, task, attempt, "Transfer-Encoding: chunked"))
        await stream.send_all(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")
        with trio.fail_after(5):
            while not files_in(bench.spool):
                await trio.testing.wait_all_tasks_blocked(0.01)
        if how == "malformed":
            await stream.send_all(b"zz\r\n")
        elif how == "closed":
            await stream.send_eof()
        elif how == "reset":
            await trio.aclose_forcefully(stream)
        if how != "reset":
            status = b"408" if how == "slow" else b"400"
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 " + status)
            await stream.aclose()
        with trio.fail_after(5):
            while how == "reset" and files_in(bench.spool):
                await trio.testing.wait_all_tasks_blocked(0.01)  # nobody can be told when
        assert_gone(bench)
        assert bench.board.outputs.of(task.task_id) == ()
        assert bench.errors == []


async def test_a_trickle_is_no_progress(tmp_path) -> None:
    """A byte now and then does not hold a connection for ever."""
    async with serving(tmp_path, limits=FrontLimits(body_deadline=0.5)) as bench:
        task, attempt = bench.begun()
        async with await trio.open_tcp_stream("127.0.0.1", bench.port) as stream:
            await stream.send_all(raw_head(bench, task, attempt, "Content-Length: 100000000"))
            answer = bytearray()
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:

                    async def read() -> None:
                        answer.extend(await stream.receive_some())
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(read)
                    while True:
                        await stream.send_all(b"x")
                        await trio.sleep(0.05)
            assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_steady_sender_may_take_longer_than_the_deadline(tmp_path) -> None:
    """The deadline is for each piece of progress, not for the whole."""
    async with serving(tmp_path, limits=FrontLimits(body_deadline=0.5, min_progress=10)) as bench:
        task, attempt = bench.begun()

        async def content():
            for _ in range(8):
                await trio.sleep(0.15)
                yield b"x" * 10

        answer = await bench.raw("x", task.task_id, attempt.worker_handle, content())
        assert answer.status_code == 200


async def test_one_who_does_not_read_a_download_is_dropped(tmp_path) -> None:
    async with serving(tmp_path, limits=FrontLimits(send_deadline=0.3)) as bench:
        task, attempt = bench.begun()
        content = b"x" * 20_000_000
        assert (await bench.raw("x", task.task_id, attempt.worker_handle, content)).status_code == 200
        async with await trio.open_tcp_stream("127.0.0.1", bench.port) as stream:
            await stream.send_all(
                f"GET /v1/data/x HTTP/1.1\r\nHost: 127.0.0.1:{bench.port}\r\n"
                f"Authorization: Bearer {attempt.worker_handle}\r\n\r\n".encode()
            )
            await trio.testing.wait_all_tasks_blocked(0.6)
            received = 0
            with trio.fail_after(10):
                try:
                    while data := await stream.receive_some():
                        received += len(data)
                except trio.BrokenResourceError:
                    pass
            assert received < len(content)
        assert bench.errors == []


async def test_a_download_outlives_its_output(tmp_path) -> None:
    """The file is removed under it, and it comes to its end all the same."""
    async with serving(tmp_path, max_tasks=1) as bench:
        task, attempt = bench.begun()
        content = os.urandom(20_000_000)
        await bench.raw("x", task.task_id, attempt.worker_handle, content, public="true")
        got = bytearray()
        async with bench.client.stream("GET", "/v1/data/x") as answer:
            async for piece in answer.aiter_bytes():
                if not got:
                    task.settle(Outcome(task.task_id, "pass", None, 1))
                    bench.board.create("next", "x")
                    assert files_in(bench.spool) == []
                got += piece
        assert bytes(got) == content


@pytest.mark.parametrize("gone_file", ["removed", "unreadable"])
async def test_a_file_that_is_gone_is_no_half_answer(tmp_path, gone_file) -> None:
    """404 if it was removed, 500 for anything else; never a head with half a body."""
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        await bench.raw("x", task.task_id, attempt.worker_handle, b"x" * 100_000)
        (file,) = files_in(bench.spool)
        file.unlink()
        if gone_file == "unreadable":
            file.mkdir()
        answer = await bench.get("x", attempt.worker_handle)
        assert answer.status_code == (404 if gone_file == "removed" else 500)
        assert str(tmp_path) not in answer.text
        if gone_file == "unreadable":
            file.rmdir()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 3])
async def test_a_full_disk_is_507(tmp_path, monkeypatch, error, after) -> None:
    """Nothing is half kept, and when there is room again it works."""
    write, calls = os.write, 0

    def full(fd, data):
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(error, os.strerror(error))
        return write(fd, data[:1000])

    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        with monkeypatch.context() as patch:
            patch.setattr("trio_swarm._io.spool.os.write", full)
            answer = await bench.raw("x", task.task_id, attempt.worker_handle, b"x" * 500_000)
            assert answer.status_code == 507
            emitted = await bench.emit(task.task_id, attempt.worker_handle, "x" * 100_000)
            assert emitted.status_code == 507
            small = await bench.emit(task.task_id, attempt.worker_handle, "small")
            assert small.status_code == 200
        left = len(json.dumps(inline("partial", "small"), separators=(",", ":")))
        assert (files_in(bench.spool), bench.board.outputs.size) == ([], left)
        answer = await bench.raw("x", task.task_id, attempt.worker_handle, b"x" * 500_000)
        assert answer.status_code == 200
        assert bench.errors == []


async def test_a_file_size_limit_is_507(tmp_path) -> None:
    """The system's own refusal, EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            answer = await bench.raw("x", task.task_id, attempt.worker_handle, b"x" * 500_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert answer.status_code == 507
        assert_gone(bench)


async def test_small_ones_of_ended_tasks_give_way_where_the_disk_has_no_room(tmp_path, monkeypatch) -> None:
    """Memory is full of them: what is small is kept in their place, what is not is refused."""

    def full(fd, data):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("trio_swarm._state.outputs.INLINE_OUTPUTS", 100_000)
    async with serving(tmp_path) as bench:
        old, young = [await ended_with(bench, size) for size in (50_000, 40_000)]
        monkeypatch.setattr("trio_swarm._io.spool.os.write", full)
        task, attempt = bench.begun()
        content = os.urandom(40_000)

        async def pieces(count: int):
            for at in range(count):
                yield content[at * 20_000 :][:20_000] or b"x" * 30_000

        small = await bench.raw("y", task.task_id, attempt.worker_handle, pieces(2))
        assert small.status_code == 200
        assert (await bench.get("y", attempt.worker_handle)).content == content
        large = await bench.raw("z", task.task_id, attempt.worker_handle, pieces(4))
        assert large.status_code == 507
        assert [(await bench.get(each)).status_code for each in (old, young)] == [410, 410]
        assert bench.board.outputs.size == 40_000
        assert (files_in(bench.spool), bench.errors) == ([], [])


async def test_an_output_that_was_kept_in_memory_after_all_can_still_grow(tmp_path, monkeypatch) -> None:
    """Its first piece found no room on the disk, its next ones do."""
    write, room = os.write, [False]

    def full_at_first(fd, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "no room")
        return write(fd, data)

    monkeypatch.setattr("trio_swarm._state.outputs.INLINE_OUTPUTS", 60_000)
    monkeypatch.setattr("trio_swarm._io.spool.os.write", full_at_first)
    async with serving(tmp_path) as bench:
        old = await ended_with(bench, 50_000)
        content = os.urandom(90_000)
        task, _ = bench.begun()
        async with bench.board.outputs.draft(task.task_id) as draft:
            await draft.write(content[:40_000])
            assert (await bench.get(old)).status_code == 410
            room[0] = True
            await draft.write(content[40_000:])
            output = draft.keep(1, "x", parent_refs=(), public=True)
        assert output.file.read_bytes() == content
        assert output.content is None


async def test_a_file_size_limit_makes_nothing_give_way(tmp_path) -> None:
    """It would not help."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with serving(tmp_path) as bench:
        old = await ended_with(bench, 90_000)
        task, attempt = bench.begun()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            answer = await bench.raw("y", task.task_id, attempt.worker_handle, b"x" * 500_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert answer.status_code == 507
        assert (await bench.get(old)).status_code == 200


async def test_memory_is_bounded_while_a_large_body_streams(tmp_path) -> None:
    """64 MiB in and out, with no more than a few MiB of Python's memory at any time."""
    size, piece = 64 * 2**20, b"x" * 2**18
    async with serving(tmp_path) as bench:
        task, attempt = bench.begun()

        async def content():
            for _ in range(size // len(piece)):
                yield piece

        tracemalloc.start()
        try:
            posted = await bench.raw("x", task.task_id, attempt.worker_handle, content())
            assert posted.status_code == 200
            received = 0
            async with bench.client.stream(
                "GET", "/v1/data/x", headers=bearer(attempt.worker_handle)
            ) as answer:
                async for each in answer.aiter_bytes():
                    received += len(each)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert received == size
        assert peak < 8 * 2**20
