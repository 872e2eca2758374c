"""A host with a warden for one test, and actor processes started by hand."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import asynccontextmanager

import trio

from trio_swarm._io.host import Host
from trio_swarm._io.process import open_warden, python_argv, python_env

HERE = "tests.children.engines"


class Heard(list):
    """Events of a host, as (kind, data)."""

    def __call__(self, kind, data):
        self.append((kind, dict(data)))

    def kinds(self):
        return [kind for kind, _ in self]

    def of(self, kind):
        return [data for each, data in self if each == kind]


@asynccontextmanager
async def open_host(tmp_path):
    heard = Heard()
    async with open_warden() as warden:
        host = Host(warden, tmp_path, heard)
        yield host, heard


async def iterate(child, assignment):
    async with child.open_run(assignment) as run:
        return [event async for event in run]


def provision(fabric, **changes):
    document = {
        "version": 1,
        "identity": {"child_id": "child-7", "role": "worker"},
        "executor": {"kind": "echo"},
        "fabric_dir": str(fabric),
    }
    return json.dumps(document | changes).encode()


@asynccontextmanager
async def actor(document: bytes):
    """The bare process, without our parent's side: what a parent of the originals would start."""
    process = await trio.lowlevel.open_process(
        python_argv("trio_swarm._child.actor"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | python_env(),
    )
    try:
        async with process.stdin:
            await process.stdin.send_all(document)
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()


async def stderr_of(process) -> str:
    return b"".join([chunk async for chunk in process.stderr]).decode()


async def registered(fabric, agent_id="child-7"):
    """Poll for the record, as the contract has it (A4.1)."""
    while (record := await fabric.resolve(agent_id)) is None:
        await trio.sleep(0.02)
    return record
