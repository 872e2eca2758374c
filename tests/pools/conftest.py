"""A host with a real warden and a private directory, and what the pool told it."""

import shutil
import tempfile
from pathlib import Path

import attrs
import pytest

from trio_swarm._io.host import Host
from trio_swarm._io.process import open_warden


@attrs.define
class Told:
    """Events in order."""

    events: list = attrs.field(factory=list)

    def __call__(self, kind, data):
        self.events.append((kind, dict(data)))

    def kinds(self):
        return [kind for kind, _ in self.events]


@pytest.fixture
def told():
    return Told()


@pytest.fixture
async def host(told):
    # Not tmp_path: a socket's path must be short.
    directory = Path(tempfile.mkdtemp(prefix="ts-"))
    async with open_warden() as warden:
        yield Host(warden, directory, told)
    left = [path.name for path in directory.iterdir()]
    shutil.rmtree(directory)
    assert left == [], "socket files left behind"
