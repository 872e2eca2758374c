"""A child actor that asks before it acts, and a pod that may write in one directory only."""

import tempfile

import trio

import trio_swarm


async def draft(run: trio_swarm.ActorRun) -> str:
    """Runs in the child's process: an assignment in, events on the way, a result out."""
    await run.emit({"type": "token", "content": "thinking "})
    if not await run.request_approval(
        tool_name="publish", permission="write", resource="note.txt", question="May I?"
    ):
        return "(withheld)"
    return run.assignment.upper()


async def save(turn: trio_swarm.PodTurn) -> str:
    """Runs in the pod's process: its files are those of its scope, and no others."""
    name, _, text = turn.input.partition(":")
    await turn.files.write_bytes(name, text.encode())
    return f"saved {len(text)} characters"


async def approve(request: trio_swarm.Approval) -> bool:
    print("asked:", request.question)
    return True


async def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        async with trio_swarm.open_swarm() as swarm:
            child = await swarm.start_child(draft, name="author", on_approval=approve)
            rule = trio_swarm.ScopeRule(target=out, permission="write")
            pod = await swarm.start_pod(save, name="shelf", scope=[rule])

            with trio.fail_after(30):  # the time that is left travels to both
                text = await child.run("a note")
                print((await pod.run(f"note.txt:{text}")).text)
            try:
                await pod.run(f"{out}/../escape.txt:{text}")
            except trio_swarm.RemoteError as error:
                print("refused:", error.message.splitlines()[0].replace(out, "OUT"))
        print("written:", await trio.Path(out, "note.txt").read_text())
    print("survivors:", swarm.report().survivors)


if __name__ == "__main__":
    trio.run(main)
