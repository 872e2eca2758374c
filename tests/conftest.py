"""What every test is held to: it ends, and it leaves nothing behind."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel

QUICK, SLOW = 60.0, 400.0


def _run_limited(seconds: float, async_fn, *args, **kwargs):
    """Like trio.run, but a hung test fails by itself and the next one still runs."""

    async def limited():
        with trio.fail_after(seconds):
            return await async_fn(*args)

    return trio.run(limited, **kwargs)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            seconds = SLOW if item.get_closest_marker("slow") else QUICK
            item.add_marker(pytest.mark.trio(run=functools.partial(_run_limited, seconds)))


def _open_fds() -> dict[str, str]:
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    return fds


def _children() -> set[int]:
    me, found = str(os.getpid()), set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == me:
            found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Descriptors, threads (but Trio's cached ones) and children are the same before and after."""
    if not os.path.isdir("/proc/self/fd"):
        yield
        return
    fds, threads, children = _open_fds(), set(threading.enumerate()), _children()
    yield
    new_fds = {fd: to for fd, to in _open_fds().items() if fd not in fds and "/proc/" not in to}
    new_threads = [
        t for t in threading.enumerate() if t not in threads and t.is_alive() and "trio" not in t.name.lower()
    ]
    assert not new_fds, f"descriptors left open: {new_fds}"
    assert not new_threads, f"threads left: {new_threads}"
    assert not (_children() - children), f"processes left: {_children() - children}"
