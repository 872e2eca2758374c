"""Requests and replies over one connection: our links beside stock trio-websocket.

    python -m benchmarks.links [--rounds 5] [--seconds 0.7] [--cores 1]

Two processes, small JSON frames of about 150 bytes, every reply decoded and found by its id
over a memory channel of its own. Prints, per stack: microseconds of one request at a time, and
requests per second with 64 and 1,024 in flight, as medians over interleaved rounds, and in
brackets the ratio to stock trio-websocket in the same run. ``--cores 1`` puts both
processes on one core, as the figures of the survey were taken; 0 leaves them alone.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from functools import partial

import trio
import trio_websocket

from trio_swarm._io.calls import ReplyTable
from trio_swarm._io.guard import serve_guarded
from trio_swarm._io.head import read_head
from trio_swarm._io.lines import LineTransport
from trio_swarm._io.link import open_link
from trio_swarm._io.ws import accept_ws, open_ws_client
from trio_swarm.frames import ClientMsg, ServerMsg
from trio_swarm.frames.operator import Answer, Ask

STOCK, OURS, LINES = "stock trio-websocket", "trio_swarm, WebSocket", "trio_swarm, Unix lines"
STACKS = (STOCK, OURS, LINES)
IN_FLIGHT = (1, 64, 1024)
QUESTION = {"reason": "the worker failed", "value": "x" * 40}


# -- servers -------------------------------------------------------------------------------


async def answer_link(transport):
    async with open_link(transport, ServerMsg, outgoing_frames=2048, incoming_frames=2048) as link:
        while True:
            try:
                asked = await link.receive_many()
            except trio.EndOfChannel:
                return
            await link.send_many([Answer(each.req_id, each.question) for each in asked])


async def serve_ws(stream):
    head, _ = await read_head(stream)
    async with accept_ws(stream, head.raw) as transport:
        await answer_link(transport)


async def serve_lines(stream):
    await answer_link(LineTransport(stream))


async def serve_stock(request):
    ws = await request.accept()
    try:
        while True:
            asked = json.loads(await ws.get_message())
            reply = {"type": "answer", "req_id": asked["req_id"], "value": asked["question"]}
            await ws.send_message(json.dumps(reply))
    except trio_websocket.ConnectionClosed:
        pass


async def serve(stack, path):
    if stack == LINES:
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(path)
        sock.listen()
        print(path, flush=True)
        await serve_guarded([trio.SocketListener(sock)], serve_lines)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    if stack == OURS:
        print(listeners[0].socket.getsockname()[1], flush=True)
        await serve_guarded(listeners, serve_ws)
    await listeners[0].aclose()
    start = partial(
        trio_websocket.serve_websocket, serve_stock, "127.0.0.1", 0, None, message_queue_size=2048
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(start)
        print(server.port, flush=True)


# -- clients -------------------------------------------------------------------------------


@asynccontextmanager
async def link_caller(transport):
    table = ReplyTable(max_pending=4096)

    async def route(link):
        while True:
            try:
                replies = await link.receive_many()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                return
            for reply in replies:
                table.resolve(reply.req_id, reply)

    async with (
        open_link(transport, ClientMsg, outgoing_frames=2048, incoming_frames=2048) as link,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(route, link)

        async def call(req_id):
            with table.expect(req_id, (Answer,)) as waiter:
                await link.send(Ask(req_id, "ST-0123456789abcdef", QUESTION))
                return await waiter.wait()

        yield call
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stock_caller(port):
    waiting = {}

    async def route(ws):
        try:
            while True:
                reply = json.loads(await ws.get_message())
                waiting.pop(reply["req_id"]).send_nowait(reply)
        except trio_websocket.ConnectionClosed:
            pass

    async with (
        trio_websocket.open_websocket_url(f"ws://127.0.0.1:{port}/", message_queue_size=2048) as ws,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(route, ws)

        async def call(req_id):
            waiting[req_id], replies = trio.open_memory_channel(1)
            ask = {"type": "ask", "req_id": req_id, "task_id": "ST-0123456789abcdef", "question": QUESTION}
            await ws.send_message(json.dumps(ask))
            return await replies.receive()

        yield call
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def caller(stack, where):
    if stack == STOCK:
        async with stock_caller(int(where)) as call:
            yield call
    elif stack == OURS:
        async with open_ws_client(f"ws://127.0.0.1:{where}/") as transport, link_caller(transport) as call:
            yield call
    else:
        async with link_caller(LineTransport(await trio.open_unix_socket(where))) as call:
            yield call


async def measure(call, in_flight, seconds):
    """Calls per second with ``in_flight`` tasks that each call one after the other."""
    done = 0
    end = time.perf_counter() + seconds

    async def keep_calling(name):
        nonlocal done
        number = 0
        while time.perf_counter() < end:
            number += 1
            await call(f"S-0123456789abcdef-ask-{name}-{number}")
            done += 1

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for name in range(in_flight):
            nursery.start_soon(keep_calling, name)
    return done / (time.perf_counter() - begun)


async def one_round(stack, where, seconds):
    async with caller(stack, where) as call:
        await measure(call, 8, 0.1)
        return [await measure(call, in_flight, seconds) for in_flight in IN_FLIGHT]


def start_server(stack, path, cores):
    command = [
        sys.executable,
        "-m",
        "benchmarks.links",
        "--serve",
        stack,
        "--path",
        path,
        "--cores",
        str(cores),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def compare(rounds, seconds, cores):
    results = {stack: [] for stack in STACKS}
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        servers = {stack: start_server(stack, os.path.join(directory, "s"), cores) for stack in STACKS}
        try:
            for _ in range(rounds):
                for stack in STACKS:
                    results[stack].append(trio.run(one_round, stack, servers[stack][1], seconds))
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait()
                process.stdout.close()
    return {
        stack: [statistics.median(column) for column in zip(*rows, strict=True)]
        for stack, rows in results.items()
    }


def show(medians):
    print(f"{'':24}{'one at a time':>20}{'64 in flight':>24}{'1,024 in flight':>24}")
    base = medians[STOCK]
    for stack, rates in medians.items():
        ratios = [rate / stock for rate, stock in zip(rates, base, strict=True)]
        cells = [f"{1e6 / rates[0]:.0f} us [{ratios[0]:.1f}x]"]
        cells += [f"{rate:,.0f}/s [{ratio:.1f}x]" for rate, ratio in zip(rates[1:], ratios[1:], strict=True)]
        print(f"{stack:24}{cells[0]:>20}{cells[1]:>24}{cells[2]:>24}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--serve", choices=STACKS, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    if given.serve:
        trio.run(serve, given.serve, given.path)
    else:
        show(compare(given.rounds, given.seconds, given.cores))


if __name__ == "__main__":
    main()
