"""A step that an operator has done by a worker over HTTP, and decides about when it went wrong."""

import trio

import trio_swarm
from trio_swarm.workers import connect_worker


async def worker(url: str, spawn: trio_swarm.SpawnRequest) -> None:
    """Any program that knows the server's address and the spawn's handle; it fetches and posts over HTTP."""
    handle = spawn.frame.worker_handle
    async with connect_worker(url, handle, task_id=spawn.task_id) as session:
        work = await session.fetch_prompt()
        await session.submit(f"{work.agent}: 2 tests failed after {work.prompt!r}", ok=False)


async def operator(url: str) -> None:
    """What another program would do: give leave, start the worker, decide, take note."""
    async with trio_swarm.connect_operator(url, roles=["lead"]) as client:
        async for item in client:
            if isinstance(item, trio_swarm.GateRequest):
                print("gate: may", item.agent, "start attempt", item.attempt)
                item.ack()
            elif isinstance(item, trio_swarm.SpawnRequest):
                await worker(url, item)
                item.ack()  # an empty value: what the worker posted is the result
            elif isinstance(item, trio_swarm.AskRequest):
                print("asked:", item.question["reason"])
                item.answer("accept, known flake")


async def main() -> None:
    async with trio_swarm.open_swarm() as swarm:
        server = await swarm.start_operators()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operator, server.url)
            lead = await server.wait_seat("lead")

            with trio.fail_after(30):  # the time that is left travels with each request
                result = await swarm.dispatch("reviewer", "review the parser", operator=lead)
            print("ok:", result.ok)
            print("senior:", result.value["senior_answer"])
            nursery.cancel_scope.cancel()
    print("survivors:", swarm.report().survivors)


if __name__ == "__main__":
    trio.run(main)
