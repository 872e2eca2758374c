"""The routes of workers: our server beside Hypercorn on Trio with a hand-written ASGI application.

    python -m benchmarks.workers [--rounds 5] [--seconds 0.7] [--cores 1]

Server and client are processes of their own. The client sends whole requests as prepared bytes and
reads the answers by their length. Both servers look the worker's credential up by its digest and answer
``GET /v1/worker/prompt`` with the same JSON, ``POST /v1/worker/stats`` with 204; ours is the product as
it stands (limits, deadlines, Host and Origin checks, one task per connection), the other checks nothing
else. Prints, per server: microseconds of one request at a time on one connection, requests per second
on 16 connections, and connections per second with one request each; as medians over interleaved rounds,
with the ratio to Hypercorn in the same run in brackets. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial

import trio

import trio_swarm

OURS, PEER = "trio_swarm", "Hypercorn, Trio"
SERVERS = (PEER, OURS)
CONNECTIONS = 16
PROMPT = "write the function that the tests ask for; " * 12
BODY = json.dumps({"total_tokens": 1234, "tool_uses": 7, "model": "m" * 40}).encode()


# -- servers -------------------------------------------------------------------------------


async def serve_ours():
    """One step whose executor never ends: its worker's routes stay open."""

    async def execute(step):
        print(step.base_url.rpartition(":")[2], step.worker_handle, step.task_id, flush=True)
        await trio.sleep_forever()

    async with trio_swarm.open_swarm("bench") as swarm, swarm.serve_operators(max_connections=1024):
        await swarm.dispatch("coder", PROMPT, execute=execute)


async def serve_peer():
    """The least that an application has to do for the same answers."""
    from hypercorn.config import Config
    from hypercorn.trio import serve

    handle, task_id = f"wh-{os.urandom(4).hex()}", f"ST-{os.urandom(8).hex()}"
    payload = {"task_id": task_id, "attempt": 1, "agent": "coder", "prompt": PROMPT}
    known = {hashlib.sha256(handle.encode()).digest(): payload}
    kept = {}

    async def answer(send, status, body=b""):
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        headers = dict(scope["headers"])
        bearer = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        found = known.get(hashlib.sha256(bearer).digest())
        if found is None:
            await answer(send, 410)
        elif scope["method"] == "GET":
            await answer(send, 200, json.dumps(found).encode())
        else:
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            kept["stats"] = json.loads(body)
            await answer(send, 204)

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "CRITICAL"
    config.keep_alive_max_requests = 10**9  # After a thousand it would hang up.
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, application, config))
        print(urls[0].rpartition(":")[2], handle, task_id, flush=True)


# -- the client ----------------------------------------------------------------------------


def requests_for(port, handle, task_id, *, close=False):
    """The two requests as bytes."""
    common = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {handle}\r\n"
    common += "Connection: close\r\n" if close else ""
    fetch = f"GET /v1/worker/prompt?task_id={task_id} HTTP/1.1\r\n{common}\r\n".encode()
    head = f"POST /v1/worker/stats HTTP/1.1\r\n{common}Content-Type: application/json\r\n"
    post = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    return fetch, post


async def exchange(stream, request):
    """Send it, and read one answer to its end."""
    await stream.send_all(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += await some(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    status = int(lines[0].split()[1])
    if status not in (200, 204):
        raise AssertionError(data[:500])
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += await some(stream)


async def some(stream):
    data = await stream.receive_some()
    if not data:
        raise AssertionError("the server hung up")
    return bytes(data)


async def kept_alive(address, request, at_once, seconds):
    """Requests per second on ``at_once`` connections."""
    done, end = 0, time.perf_counter() + seconds

    async def keep_asking():
        nonlocal done
        async with await trio.open_tcp_stream("127.0.0.1", address[0]) as stream:
            while time.perf_counter() < end:
                await exchange(stream, request)
                done += 1

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(keep_asking)
    return done / (time.perf_counter() - begun)


async def connecting(address, request, seconds):
    """Requests per second with a connection each, ``CONNECTIONS`` at a time."""
    done, end = 0, time.perf_counter() + seconds

    async def keep_connecting():
        nonlocal done
        while time.perf_counter() < end:
            async with await trio.open_tcp_stream("127.0.0.1", address[0]) as stream:
                await exchange(stream, request)
            done += 1

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(keep_connecting)
    return done / (time.perf_counter() - begun)


async def one_round(address, seconds):
    fetch, post = requests_for(*address)
    await kept_alive(address, fetch, 4, 0.1)
    return [
        await kept_alive(address, fetch, 1, seconds),
        await kept_alive(address, fetch, CONNECTIONS, seconds),
        await kept_alive(address, post, CONNECTIONS, seconds),
        await connecting(address, requests_for(*address, close=True)[0], seconds),
    ]


# -- the run -------------------------------------------------------------------------------


def start(server, cores):
    command = [sys.executable, "-m", "benchmarks.workers", "--serve", server, "--cores", str(cores)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port, handle, task_id = process.stdout.readline().split()
    return process, (int(port), handle, task_id)


def compare(rounds, seconds, cores):
    results = {server: [] for server in SERVERS}
    servers = {server: start(server, cores) for server in SERVERS}
    try:
        for _ in range(rounds):
            for server in SERVERS:
                results[server].append(trio.run(one_round, servers[server][1], seconds))
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait()
            process.stdout.close()
    return {
        server: [statistics.median(column) for column in zip(*rows, strict=True)]
        for server, rows in results.items()
    }


def show(medians):
    print(f"{'':18}{'one at a time':>18}{'fetch, 16':>20}{'post, 16':>20}{'connect, 16':>20}")
    base = medians[PEER]
    for server, rates in medians.items():
        ratios = [rate / peer for rate, peer in zip(rates, base, strict=True)]
        cells = [f"{1e6 / rates[0]:.0f} us [{ratios[0]:.1f}x]".rjust(18)]
        for rate, ratio in zip(rates[1:], ratios[1:], strict=True):
            cells.append(f"{rate:,.0f}/s [{ratio:.1f}x]".rjust(20))
        print(f"{server:18}{''.join(cells)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    if given.serve:
        trio.run(serve_ours if given.serve == OURS else serve_peer)
    else:
        show(compare(given.rounds, given.seconds, given.cores))


if __name__ == "__main__":
    main()
