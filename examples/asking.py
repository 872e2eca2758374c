"""Somebody who is asked: a remote operator over HTTP and WebSocket, and one in process."""

import trio

import trio_swarm


class Gatekeeper:
    """An operator in this process: any object with some of the four verbs."""

    def before_spawn(self, frame):
        return "no agents called eve" if frame.agent == "eve" else True


async def remote(url: str) -> None:
    """What another program would do; it may be anywhere that reaches the address."""
    async with trio_swarm.connect_operator(url, roles=["oracle"]) as client:
        async for request in client:
            if isinstance(request, trio_swarm.AskRequest):
                request.answer(f"the answer to {request.question!r} is 42")


async def main() -> None:
    async with trio_swarm.open_swarm() as swarm:
        gate = await swarm.attach(Gatekeeper())
        server = await swarm.start_operators()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote, server.url)
            oracle = await server.wait_seat("oracle")

            print(await oracle.ask("everything", task_id="ST-1"))
            await server.disconnect("oracle")  # its connection breaks; it will come back
            print(await oracle.ask("everything, again", task_id="ST-2"))
            nursery.cancel_scope.cancel()
        try:
            await gate.hook_before(task_id="ST-3", agent="eve", attempt=1)
        except trio_swarm.ApprovalDenied as denied:
            print("denied:", denied.reason)
    print("survivors:", swarm.report().survivors)


if __name__ == "__main__":
    trio.run(main)
