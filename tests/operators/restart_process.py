"""A server of operators that asks, at its first operator, each question of its arguments.

``STATE PORT QUESTION...``: prints its URL, and the JSON of each answer that it gets; until its
standard input ends, or until it is killed.
"""

from __future__ import annotations

import json
import sys

import trio

from tests.operators.support import a_host
from trio_swarm.operators import serve_operators


async def main(state: str, port: str, *questions: str) -> None:
    async with (
        serve_operators(a_host(), state=state, port=int(port)) as server,
        trio.open_nursery() as nursery,
    ):
        print(server.url, flush=True)
        seat = await server.wait_seat()

        async def ask(question: str) -> None:
            print(json.dumps(await seat.ask(question, task_id="ST-1")), flush=True)

        for number, question in enumerate(questions, 1):
            nursery.start_soon(ask, question)
            while len(seat.pending()) < number:  # In this order.
                await trio.lowlevel.checkpoint()
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
