"""Which files a run works on.

``stdlib`` is the standard library of the interpreter that runs this, without
``site-packages``, ``dist-packages`` and ``__pycache__``. Any other tree is a directory, or one
Python file. There, what is not the project's own source is left out too: hidden directories
(``.git``, ``.venv``), ``__pycache__``, ``node_modules`` and virtual environments (a directory
with ``pyvenv.cfg``), below the root that was named; that one is walked whatever it is called.

Files are those whose names end in ``.py``. Links to directories are not followed; links to
files are read as files.
"""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import attrs

__all__ = ["STDLIB", "OptionError", "Tree", "resolve_tree"]

STDLIB: Final = "stdlib"
"""The ``--tree`` that means the standard library."""

_NOT_STDLIB: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
_NOT_SOURCE: Final = frozenset({"__pycache__", "node_modules"})
_SHOWN: Final = 200


class OptionError(Exception):
    """A run that was asked for cannot begin; the text is one line. Nothing was touched.

    ``status`` is the exit status: 2 for what the user can set right on the command line.
    """

    def __init__(self, message: str, *, status: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


@attrs.frozen
class Tree:
    """A source tree, resolved before the run begins."""

    name: str
    """As it was asked for."""
    root: Path
    """Absolute, without links."""
    files: tuple[str, ...] = attrs.field(repr=lambda files: f"<{len(files)} paths>")
    """Relative POSIX paths, sorted, each once."""
    size: int = 0
    """Bytes of all files: the most that a run can come to write, but for the insertions."""
    misnamed: tuple[str, ...] = ()
    """Python files left out because their names are not UTF-8 (escaped here): no frame carries them."""
    single: bool = False
    """Whether one file was named: then its directory is the root, but no part of the tree."""

    def holds(self, path: Path) -> bool:
        """Whether the resolved *path* lies in the tree."""
        return path == self.root / self.files[0] if self.single else path.is_relative_to(self.root)


def resolve_tree(spec: str) -> Tree:
    """The tree that *spec* names: ``stdlib``, a directory, or one ``.py`` file.

    Reads directories, no file. Raises OptionError with one clear line.
    """
    if spec == STDLIB:
        root, stdlib = Path(sysconfig.get_path("stdlib")), True
    else:
        root, stdlib = Path(spec), False
    try:
        root = root.resolve(strict=True)
        about = root.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise OptionError(f"cannot read the tree {shown(spec)}: {_why(error)}") from error
    if stat.S_ISREG(about.st_mode):
        return _single(spec, root, about.st_size)
    if not stat.S_ISDIR(about.st_mode):
        raise OptionError(f"the tree {shown(spec)} is neither a directory nor a Python file")
    return _directory(spec, root, stdlib=stdlib)


def shown(text: str | os.PathLike[str]) -> str:
    """A path for one line of text: no control characters, no surrogates, not endless."""
    raw = os.fspath(text)
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in raw)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _single(spec: str, path: Path, size: int) -> Tree:
    if path.suffix != ".py":
        raise OptionError(f"the tree {shown(spec)} is a file, and not a Python file")
    if _escaped(path.name) != path.name:
        raise OptionError(f"the name of {shown(spec)} is not UTF-8")
    return Tree(spec, path.parent, (path.name,), size, single=True)


def _directory(spec: str, root: Path, *, stdlib: bool) -> Tree:
    files, misnamed, size = [], [], 0
    try:
        for path, length in _walk(root, stdlib=stdlib):
            if _escaped(path) == path:
                files.append(path)
                size += length
            else:
                misnamed.append(_escaped(path))
    except OSError as error:
        where = shown(error.filename or spec)
        raise OptionError(f"cannot read the directory {where}: {_why(error)}") from error
    if not files:
        raise OptionError(f"the tree {shown(spec)} holds no Python files")
    return Tree(spec, root, tuple(sorted(files)), size, tuple(sorted(misnamed)))


def _walk(root: Path, *, stdlib: bool) -> Iterator[tuple[str, int]]:
    """(relative POSIX path, bytes) of each Python file; a directory that cannot be read raises."""
    pending = [PurePosixPath()]
    while pending:
        relative = pending.pop()
        with os.scandir(root / relative) as found:
            entries = list(found)
        if not stdlib and relative.parts and any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if _is_walked(entry.name, stdlib=stdlib):
                    pending.append(relative / entry.name)
            elif entry.name.endswith(".py") and not _leads_to_directory(entry):
                yield str(relative / entry.name), _length(entry)


def _leads_to_directory(entry: os.DirEntry[str]) -> bool:
    """A link to a directory is left out; one that leads nowhere is a file that cannot be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_walked(name: str, *, stdlib: bool) -> bool:
    if stdlib:
        return name not in _NOT_STDLIB
    return name not in _NOT_SOURCE and not name.startswith(".")


def _length(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0  # a dangling link: reading it is an outcome of the run


def _escaped(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _why(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
