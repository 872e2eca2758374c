"""Square numbers in two processes; ask before the big ones."""

import trio

import trio_swarm


def square(ctx, query):
    """Runs in a worker process; ``query`` pauses it until the answer is there."""
    if ctx["n"] % 10 == 0:
        query(f"may I square {ctx['n']}?")
    return ctx["n"] ** 2


async def answer(question):
    print("asked:", question.prompt)
    return "yes"


async def main():
    async with trio_swarm.open_swarm() as swarm:
        async with swarm.open_pool(square, size=2, on_query=answer) as pool:
            async with pool.map([{"n": n} for n in range(1, 21)]) as results:
                total = sum([outcome.value async for _, outcome in results])
    print("sum of squares:", total)
    print("survivors:", swarm.report().survivors)


if __name__ == "__main__":
    trio.run(main)
