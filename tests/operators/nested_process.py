"""One of several processes in a ring: each serves operators, and is the operator of the next.

Prints the URL of its server; reads from its standard input the URL at which it is an operator.
What it is asked there, it asks its own operator in turn, while it answers. With ``start`` as its
argument it asks its own operator first, and prints what came of that as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

import trio

from trio_swarm._io.host import Host
from trio_swarm.errors import AskCycle
from trio_swarm.operators import connect_operator, serve_operators


async def main(name: str, start: bool) -> None:
    host = Host(warden=cast("object", None), runtime_dir=Path("/nonexistent"), emit=lambda kind, data: None)
    async with serve_operators(host) as server:
        print(server.url, flush=True)
        upstream = (await trio.to_thread.run_sync(sys.stdin.readline)).strip()
        async with connect_operator(upstream, roles=[name]) as client, trio.open_nursery() as nursery:

            async def answer(request) -> None:
                seat = await server.wait_seat()
                try:
                    answer = await seat.ask([*request.question, name], task_id=request.task_id)
                except AskCycle as cycle:
                    lineage = [entry.split("#")[0] for entry in request.lineage]
                    answer = {"cycle": str(cycle), "lineage": lineage, "parent": request.parent_req_id}
                request.answer(answer)

            nursery.start_soon(client.serve, answer)
            if start:
                seat = await server.wait_seat()
                with trio.fail_after(30):
                    print(json.dumps(await seat.ask([name], task_id="ST-1")), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)  # Until the test has seen enough.
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], "start" in sys.argv[2:])
