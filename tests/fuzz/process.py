"""A server with every route, in a process of its own, that says how it fares.

``python -m tests.fuzz.process '{"limits": {...}}'`` prints one line of JSON with its address and
credentials, answers each line of its standard input with another, and ends with its input. What
it keeps and what it uses is measured where nothing but the server runs.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import trio

from trio_swarm import open_swarm
from trio_swarm._io.http import FrontLimits
from trio_swarm._io.http_routes import RouteTable
from trio_swarm.errors import SwarmError
from trio_swarm.operators import OperatorServer, Seat
from trio_swarm.operators import server as operators_server
from trio_swarm.swarm.core import Swarm

ADMIN = "admin-token-of-the-fuzzed-server"
GOOD = "good"
"""The role of an operator whose every request must be answered, and rightly."""


@attrs.define
class Watch:
    """What happened so far."""

    swarm: Swarm
    server: OperatorServer
    kinds: Counter[str] = attrs.field(factory=Counter)
    errors: list[Any] = attrs.field(factory=list)
    good_away: int = 0
    answered: int = 0
    unanswered: int = 0
    longest: float = 0.0

    async def follow(self, task_status) -> None:
        """Count the events; ask whoever is seated."""
        async with self.swarm.subscribe(capacity=100_000) as events, trio.open_nursery() as nursery:
            task_status.started()
            async for event in events:
                self.kinds[event.kind] += 1
                if event.kind == "connection_error":
                    self.errors.append(dict(event.data))
                if event.kind == "operator_joined":
                    seat = self.server.seat(str(event.data["sid"]))
                    nursery.start_soon(self.quiz if GOOD in event.data["roles"] else self.pester, seat)
                if event.kind == "operator_away" and event.data["name"] == GOOD:
                    self.good_away += 1

    async def quiz(self, seat: Seat) -> None:
        """One question after the other, each to be answered with itself."""
        number = 0
        await seat.wait_connected()
        while not seat.gone:
            number, asked = number + 1, trio.current_time()
            try:
                with trio.fail_after(10):
                    right = await seat.ask({"n": number}, task_id="quiz") == {"n": number}
            except (SwarmError, trio.TooSlowError):
                if seat.gone:
                    return
                right = False
            self.answered += right
            self.unanswered += not right
            self.longest = max(self.longest, trio.current_time() - asked)
            await trio.sleep(0.005)

    async def pester(self, seat: Seat) -> None:
        """Requests to a hostile operator: what it does with them is its affair."""
        while not seat.gone:
            with trio.move_on_after(1):
                try:
                    await seat.ask({"what": "now"}, task_id="pester")
                except SwarmError:
                    await trio.sleep(0.01)

    async def calm(self) -> None:
        """The baseline: what lives when connections that were closed are gone here too."""
        since = trio.current_time()
        while trio.current_time() < since + 0.2:
            living = trio.lowlevel.current_statistics().tasks_living
            if living != self.baseline:
                self.baseline, since = living, trio.current_time()
            await trio.sleep(0.02)

    async def settle(self) -> None:
        """Everybody but the good operator is gone."""
        for seat in self.server.seats():
            if seat.name != GOOD:
                await self.server.remove(seat.sid)
        for task in self.swarm.tasks.tasks():
            task.cancel("settled")
        with trio.move_on_after(10):
            while trio.lowlevel.current_statistics().tasks_living > self.baseline:
                await trio.sleep(0.01)

    baseline: int = 10**6

    def stats(self) -> dict[str, Any]:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        rss = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
        return {
            "rss_kib": int(rss.split()[1]),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "fds": len(os.listdir("/proc/self/fd")),
            "sessions": len(self.server.seats()),
            "answered": self.answered,
            "unanswered": self.unanswered,
            "longest": round(self.longest, 3),
            "good_away": self.good_away,
            "errors": self.errors,
            "events": dict(self.kinds),
        }

    def task(self) -> dict[str, Any]:
        """A step that runs, and the credentials of its worker."""
        task = self.swarm.tasks.create("coder", "do it", system="be brief", metadata={"k": "v"})
        attempt = task.begin()
        credentials = {"capability": attempt.capability_token, "handle": attempt.worker_handle}
        return {"task_id": task.task_id, **credentials}


class Obliging:
    """An operator in process that does every step at once."""

    def execute(self, frame: Any) -> Any:
        return {}

    def ask(self, frame: Any) -> Any:
        return frame.question


@asynccontextmanager
async def served(swarm: Swarm, **options: Any) -> AsyncIterator[tuple[OperatorServer, list[tuple[str, str]]]]:
    """The server, and the method and pattern of each of its routes, as its own table has them."""
    routes: list[tuple[str, str]] = []

    def noting(table: Iterable[Any]) -> RouteTable:
        listed = list(table)
        routes.extend((route.method, route.pattern) for route in listed)
        return RouteTable(listed)

    with patch.object(operators_server, "RouteTable", noting):
        async with swarm.serve_operators(admin_token=ADMIN, **options) as server:
            yield server, routes


async def main(options: dict[str, Any]) -> None:
    limits = FrontLimits(**options.pop("limits", {}))
    obliging = options.pop("obliging", False)
    async with open_swarm("fuzz") as swarm:
        if obliging:
            await swarm.attach(Obliging(), name="obliging")
        async with served(swarm, limits=limits, **options) as (server, routes):
            async with trio.open_nursery() as nursery:
                watch = Watch(swarm, server)
                await nursery.start(watch.follow)
                print(json.dumps({"url": server.url, "admin": ADMIN, "routes": routes}), flush=True)
                async with trio.lowlevel.FdStream(os.dup(0)) as orders:
                    async for line in orders:
                        for order in line.split():
                            await obey(watch, order.decode())
                nursery.cancel_scope.cancel()


async def obey(watch: Watch, order: str) -> None:
    answer: Any = None
    if order == "stats":
        answer = watch.stats()
    elif order == "task":
        answer = watch.task()
    elif order == "baseline":
        await watch.calm()
        answer = watch.stats()
    elif order == "settle":
        await watch.settle()
        answer = watch.stats()
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    trio.run(main, json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
