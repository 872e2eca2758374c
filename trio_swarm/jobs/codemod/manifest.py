"""Which files came out, and their contents' digests, in one canonical form.

The text form is that of ``sha256sum``: ``<sha256>  <path>`` and a newline for each output,
sorted by path; a path with a backslash, newline or carriage return is escaped, and its line
begins with a backslash. The digest of that text, in UTF-8, is the manifest's id.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["differences", "digest", "manifest_id", "manifest_text", "read_outputs"]


def digest(data: bytes) -> str:
    """SHA-256 of *data*, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def manifest_text(entries: Mapping[str, str]) -> str:
    """The canonical text of *entries*, relative POSIX path to digest."""
    return "".join(_line(path, entries[path]) for path in sorted(entries))


def manifest_id(entries: Mapping[str, str]) -> str:
    """The digest of the canonical text, 64 hex digits: equal exactly when the outputs are."""
    return digest(manifest_text(entries).encode("utf-8"))


def read_outputs(out_dir: Path) -> dict[str, str]:
    """The entries of what is on disk below *out_dir*: every file there, whatever its name.

    A link is taken as its target's text, so that it never equals a file. Raises OSError.
    """
    entries: dict[str, str] = {}
    pending = [(out_dir, "")]
    while pending:
        directory, prefix = pending.pop()
        with os.scandir(directory) as found:
            for entry in found:
                path = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                if entry.is_dir(follow_symlinks=False):
                    pending.append((Path(entry.path), path + "/"))
                elif entry.is_symlink():
                    entries[path] = digest(b"link to " + os.fsencode(os.readlink(entry.path)))
                else:
                    entries[path] = digest(Path(entry.path).read_bytes())
    return entries


def differences(
    actual: Mapping[str, str], expected: Mapping[str, str], *, ignore: Collection[str] = ()
) -> list[str]:
    """What is wrong with *actual*, a line each: missing, unexpected and different files."""
    wrong = []
    for path in sorted({*actual, *expected}.difference(ignore)):
        if path not in actual:
            wrong.append(f"{path}: missing from the output")
        elif path not in expected:
            wrong.append(f"{path}: unexpected in the output")
        elif actual[path] != expected[path]:
            wrong.append(f"{path}: differs from the serial reference")
    return wrong


def _line(path: str, sha256: str) -> str:
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != path else ""
    return f"{mark}{sha256}  {escaped}\n"
