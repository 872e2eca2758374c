"""A person at ``trio-swarm operator``, whose server is killed and started again."""

from __future__ import annotations

import trio

from tests.cli.test_operator import environment, person
from tests.operators.restarts import line_of_servers


async def test_what_a_killed_server_had_asked_leaves_the_list(tmp_path) -> None:
    """Its replies did not count; what the next server asks is all that waits."""
    async with line_of_servers(tmp_path / "state") as line:
        await line.start("open?", "written?", "kept?")
        async with person(line.url, "--name", "me", env=environment(tmp_path)) as who:
            await who.sees("-- joined")
            for question in ("open?", "written?", "kept?"):
                await who.sees(question)
            line.stop()
            await who.says("#2 answer 5")
            await who.sees("-- replied to #2")
            await line.kill()
            await who.says("#3 answer 6")
            await who.sees("-- replied to #3")
            await who.says("list")
            await who.sees("> #1  ask")

            await line.start("new?")
            await who.sees("-- #1 was withdrawn: server_restarted")
            said = await who.sees("new?")
            assert "-- the reply to #2 did not count: unknown" in said
            assert "-- the reply to #3 did not count: unknown" in said
            await who.sees("answer VALUE")
            await who.says("#1 answer 4")
            await who.sees("#1 does not wait")
            await who.says("list")
            await who.says("answer 7")
            listed = await who.sees("nothing was sent: #1 was withdrawn; #4 is next, say it again\n")
            assert listed.splitlines()[1:-1] == ["  #4  ask  step ST-1"]
            await who.says("answer 7")
            assert await line.says() == "7"
            await who.says("leave")
            with trio.fail_after(20):
                assert await who.process.wait() == 0
