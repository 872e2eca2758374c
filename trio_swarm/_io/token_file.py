"""A secret in a file that only its owner can read: made once, used again by the next server.

All calls here block; run them in a worker thread.
"""

from __future__ import annotations

import os
import re
import stat
import uuid
from pathlib import Path
from typing import Final

from trio_swarm._io.files import read_small, remove

__all__ = ["keep_token"]

_MAX_FILE: Final = 4096
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
"""What goes into a header as it is; sixteen characters are the least that is hard to guess."""


def keep_token(path: Path, fresh: str) -> tuple[str, bool]:
    """The token in the file at ``path``, or else ``fresh``, which is in it then. True: it was made.

    A file is made with mode 0600, whole or not at all, and never over another; of two that make it
    at once, both use the same token. Symbolic links are not followed.

    Raises:
        ValueError: it is not a regular file, not ours, open to others, or holds no token. The text
            never holds anything of its content.
        OSError: what the system said.
    """
    while True:
        try:
            return _kept(path), False
        except FileNotFoundError:
            if _make(path, fresh):
                return fresh, True
            # Somebody else has just made it.


def _kept(path: Path) -> str:
    data, found = read_small(path, limit=_MAX_FILE)
    text = data.decode("latin-1").strip()
    if not _TOKEN.fullmatch(text):
        text = ""
    del data  # It may be another program's: a traceback that shows variables does not show it.
    if found.st_uid != os.geteuid():
        problem = f"it belongs to uid {found.st_uid}, not to us"
    elif stat.S_IMODE(found.st_mode) & 0o077:
        problem = f"its mode is {stat.S_IMODE(found.st_mode):o}, it must be 600"
    elif text:
        return text
    else:
        problem = "it holds no token (16 to 512 letters, digits and ._~+/=-)"
    del text
    raise ValueError(problem)


def _make(path: Path, token: str) -> bool:
    """False if there is something by now."""
    temporary = path.with_name(f".{path.name}.tmp.{uuid.uuid4()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
        try:
            file.write(f"{token}\n")
            file.flush()
            os.fsync(file.fileno())
            # Unlike a rename, a link never takes the place of something.
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            return False
        finally:
            remove(temporary)
    return True
