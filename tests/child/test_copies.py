"""Engines that fork: the copy never goes on as its original."""

from __future__ import annotations

import pytest
import trio

from tests.children.support import HERE, open_host
from tests.pods.test_open_pod import rigged
from trio_swarm.children import open_child


@pytest.mark.parametrize(("then", "status"), [("return", 0), ("raise", 1), ("exit", 3), ("emit", 0)])
@pytest.mark.parametrize("engine", ["fork", "fork_in_thread"])
async def test_a_copy_of_an_actor_says_nothing(tmp_path, engine, then, status):
    """One terminal for each run, nothing stray, its own status for the copy, and the process serves on."""
    async with open_host(tmp_path) as (host, heard), open_child(host, f"{HERE}:{engine}") as child:
        for _ in range(2):
            with trio.fail_after(20):
                async with child.open_run(then) as run:
                    assert [event async for event in run] == []
                assert run.result == f"the original of one that ended with {status}"
        assert child._counts["stray"] == 0
        assert heard.kinds() == ["child_started"]


@pytest.mark.parametrize("then", ["return", "text"])
async def test_a_copy_of_a_pod_says_nothing(tmp_path, then):
    """Nor does it take what the kernel has for the original."""
    async with rigged(tmp_path) as rig, rig.open("fork") as pod:
        for _ in range(2):
            with trio.fail_after(20):
                assert (await pod.run(then)).text == "the original"
        assert len((await pod.history()).items) == 4
        assert rig.kinds() == ["pod_started"]
