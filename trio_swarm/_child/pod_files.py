"""The files that an engine may touch: each path is checked against the scope, then opened so that it holds.

The check alone would be a race. What makes it hold is that the very path that was checked, with every
link in it resolved, is then opened in a way that follows no link at all: if somebody puts one there
in between, the open fails instead of leading elsewhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, Literal, TypeVar

import trio

from trio_swarm._io import beneath
from trio_swarm._io.paths import resolve
from trio_swarm._io.scope_lock import pid_is_dead
from trio_swarm._state.scope import Grant
from trio_swarm.errors import GrantError

__all__ = ["ScopedFiles"]

T = TypeVar("T")

_CHANGED: Final = (errno.ELOOP, errno.EXDEV)
"""What an open says when a component is a link by now, or leads out."""


class ScopedFiles:
    """Reading and writing within one pod's scope (pods contract, B4.4).

    ``owner`` names its temporary files, so that what a killed process left is removed by its next life.
    """

    def __init__(self, grant: Grant, cwd: str, *, owner: str = "pod") -> None:
        self.grant = grant
        """What is allowed now; replaced as a whole when a part of it is delegated."""
        self.cwd = cwd
        """Where relative paths start."""
        self._temporaries = beneath.Temporaries(owner, pid_is_dead)

    async def read_bytes(self, path: str | os.PathLike[str], *, limit: int = beneath.MAX_READ) -> bytes:
        """The content of a regular file.

        Args:
            path: absolute, or relative to `cwd`.
            limit: bytes; a larger file is an error.

        Raises:
            GrantError: it is outside the scope; names path and grant.
            ValueError: no path, no regular file, or too large.
            OSError: the operating system said so.

        When cancelled, the read in its thread is waited for (it is bounded) and dropped.
        """
        return await trio.to_thread.run_sync(self._read, os.fspath(path), limit)

    async def write_bytes(
        self, path: str | os.PathLike[str], data: bytes, *, mode: int | None = None, sync: bool = False
    ) -> None:
        """Replace, or make, a file; all or nothing. Missing directories in the scope are made.

        Args:
            path: absolute, or relative to `cwd`.
            data: the whole content.
            mode: permission bits; None keeps those of a file that is replaced.
            sync: wait until the content is on disk.

        Raises as `read_bytes` does; nothing was written then. When cancelled, the write has been
        done whole, or not at all.
        """
        await trio.to_thread.run_sync(self._write, os.fspath(path), data, mode, sync)

    def check(self, path: str, wanted: Literal["read", "write"]) -> str:
        """The path resolved, if it may be used so; blocks. Raises as `read_bytes` does."""
        found = resolve(path, cwd=self.cwd)
        if not self.grant.allows(found, wanted):
            raise GrantError(_told(wanted, path, found), str(self.grant))
        return found

    # -- in a worker thread --------------------------------------------------------------

    def _read(self, path: str, limit: int) -> bytes:
        found = self.check(path, "read")

        def read() -> bytes:
            root = beneath.open_directory()
            try:
                return beneath.read_file(root, found[1:], limit=limit)
            finally:
                os.close(root)

        return self._unchanged(read, _told("read", path, found))

    def _write(self, path: str, data: bytes, mode: int | None, sync: bool) -> None:
        found = self.check(path, "write")
        above, below = self._split(found)

        def write() -> None:
            root = beneath.open_directory()
            try:
                parent = beneath.open_directory_beneath(root, above[1:])
            finally:
                os.close(root)
            try:
                beneath.replace_file(parent, below, data, mode=mode, sync=sync, temporaries=self._temporaries)
            finally:
                os.close(parent)

        self._unchanged(write, _told("write", path, found))

    def _split(self, path: str) -> tuple[str, str]:
        """Above: the part that has to be there already, since directories outside the scope are not made."""
        above, below = os.path.split(path)
        while above != "/" and self.grant.allows(above, "write"):
            above, name = os.path.split(above)
            below = f"{name}/{below}"
        return above, below

    def _unchanged(self, act: Callable[[], T], wanted: str) -> T:
        try:
            return act()
        except OSError as error:
            if error.errno not in _CHANGED:
                raise
            raise GrantError(f"{wanted}, whose links changed meanwhile,", str(self.grant)) from error


def _told(wanted: str, path: str, found: str) -> str:
    return f"{wanted} {path}" if path == found else f"{wanted} {path} (that is {found})"
