"""Leave that several operators give together: a quorum, a veto, and what nobody settles in time."""

import trio

import trio_swarm


async def operator(url: str, role: str, decide) -> None:
    """What another program would do: it is asked for leave, and says yes, no or nothing."""
    async with trio_swarm.connect_operator(url, roles=[role]) as client:
        async for item in client:
            if isinstance(item, trio_swarm.GateRequest):
                decide(item)


def lead(request: trio_swarm.GateRequest) -> None:
    if request.agent != "mystery":  # about that one it thinks for ever
        request.ack()


def security(request: trio_swarm.GateRequest) -> None:
    if request.agent == "deployer":
        request.reject("not on a Friday")
    else:
        request.ack()


async def main() -> None:
    async with trio_swarm.open_swarm() as swarm:
        server = await swarm.start_operators()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operator, server.url, "lead", lead)
            nursery.start_soon(operator, server.url, "security", security)
            both = [await server.wait_seat("lead"), await server.wait_seat("security")]

            given = await trio_swarm.approve(
                both, trio_swarm.ApprovalPolicy(2), task_id="ST-1", agent="coder", attempt=1
            )
            print("approved by", " and ".join(sorted(given.approved)))

            everybody = trio_swarm.ApprovalPolicy("all", within=0.5)
            try:  # one no is enough, unless the policy says veto=False
                await trio_swarm.approve(both, everybody, task_id="ST-2", agent="deployer", attempt=1)
            except trio_swarm.ApprovalDenied as denied:
                print("denied by", denied.by, "because:", denied.reason)
            try:  # no word in time is a no, unless the policy says on_expiry="allow"
                await trio_swarm.approve(both, everybody, task_id="ST-3", agent="mystery", attempt=1)
            except trio_swarm.ApprovalExpired as expired:
                print("expired without", " and ".join(expired.approval.unanswered))
            nursery.cancel_scope.cancel()
    print("survivors:", swarm.report().survivors)


if __name__ == "__main__":
    trio.run(main)
