"""What is kept of the outputs where there is no room for another, and where its task is over."""

from __future__ import annotations

import errno
import os
import resource
import secrets
from contextlib import contextmanager

import pytest

from tests.workers.support import files_in, serving
from tests.workers.test_data import ended_with
from trio_swarm._state.board import Denied
from trio_swarm.limits import INLINE_OUTPUT
from trio_swarm.workers import OutputStore


@contextmanager
def file_size_limit(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_for_what_is_larger_than_a_file_may_be_nothing_gives_way(tmp_path) -> None:
    """Not even where as much as it would go: the file could be no larger then."""
    async with serving(tmp_path) as bench:
        old = await ended_with(bench, 300_000)
        task, attempt = bench.begun()
        with file_size_limit(100_000):
            answer = await bench.raw("y", task.task_id, attempt.worker_handle, b"y" * 150_000)
        assert answer.status_code == 507
        assert (await bench.get(old)).status_code == 200


async def test_for_what_is_too_large_for_memory_nothing_there_gives_way(tmp_path, monkeypatch) -> None:
    """On a full disk, by its length; though there would be room for it."""

    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trio_swarm._state.outputs.INLINE_OUTPUTS", 2 * INLINE_OUTPUT)
    async with serving(tmp_path) as bench:
        old = [await ended_with(bench, INLINE_OUTPUT) for _ in range(2)]
        monkeypatch.setattr("trio_swarm._io.spool.os.write", full)
        task, attempt = bench.begun()
        body = b"y" * (INLINE_OUTPUT + 1)
        answer = await bench.raw("y", task.task_id, attempt.worker_handle, body)
        assert answer.status_code == 507
        assert [(await bench.get(each)).status_code for each in old] == [200, 200]


async def test_a_file_whose_task_was_forgotten_while_it_came_goes(tmp_path) -> None:
    """It is nobody's, and nothing else would remove it while the board lasts."""
    store = OutputStore(new_hex=secrets.token_hex, spool=lambda: tmp_path / "spool")
    with pytest.raises(Denied, match="the task has ended"):
        async with store.draft("T") as draft:
            await draft.write(bytes(100_000))
            assert len(files_in(tmp_path / "spool")) == 1
            store.forget("T")
            draft.keep(1, "p", parent_refs=(), public=False)
    assert (files_in(tmp_path / "spool"), store.size) == ([], 0)
