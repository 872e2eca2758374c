"""A step that a process of its own does: it knows four lines, fetches its prompt and posts the result."""

import sys

import trio

import trio_swarm
from trio_swarm.workers import connect_worker


async def worker() -> None:
    """The sub-agent's process. The four lines are all that it is told."""
    brief = trio_swarm.WorkerBrief.parse(sys.stdin.read())
    async with connect_worker(brief.base_url, brief.worker_handle, task_id=brief.task_id) as session:
        work = await session.fetch_prompt()
        draft = work.prompt.upper().encode() * 10_000
        out_id = await session.put("draft", draft)  # large: it goes to the server's disk, by its id to others
        await session.submit(f"a draft of {len(await session.read(out_id)):,} bytes")


async def start(swarm: trio_swarm.Swarm, step: trio_swarm.Step) -> dict:
    """Start it and wait for its end; what it posted is the result, so that this gives an empty value."""
    brief = trio_swarm.WorkerBrief(step.agent, step.worker_handle, step.base_url, step.task_id)
    argv = [sys.executable, __file__, "--worker"]
    process = await swarm.start_process(argv, name=step.agent, stdin=brief.text.encode())
    await process.wait()
    return {}


async def main() -> None:
    async with trio_swarm.open_swarm() as swarm:
        await swarm.start_operators()

        async def execute(step: trio_swarm.Step) -> dict:
            # Whoever has the token can narrow it, without the server: this one may fetch, and nothing else.
            token = trio_swarm.CapabilityToken.decode(step.capability_token)
            reader = trio_swarm.attenuate(token, scopes=["fetch_prompt"]).encode()
            async with connect_worker(step.base_url, reader, task_id=step.task_id) as session:
                print("the prompt:", (await session.fetch_prompt()).prompt)
                try:
                    await session.submit("not mine to say")
                except trio_swarm.BadTokenError:
                    print("refused: the token was narrowed")
            return await start(swarm, step)

        with trio.fail_after(30):
            result = await swarm.dispatch("writer", "two words", execute=execute)
        print("result:", result.value)
    print("survivors:", swarm.report().survivors)


if __name__ == "__main__":
    trio.run(worker if "--worker" in sys.argv else main)
