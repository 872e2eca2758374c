"""What leaves a context manager that has a nursery of its own.

A nursery always raises a group, even for one exception. A context manager of this
library owns nurseries that its user never sees; an exception out of the user's block
must not come back wrapped because of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import trio

__all__ = ["collapse", "leaves", "reraise"]


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions of a group that are no groups themselves, in order; or just ``error``."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in leaves(each)]


def reraise(error: BaseException) -> NoReturn:
    """Raise ``error`` with the cause and the context that it already has."""
    context = error.__context__
    try:
        raise error
    finally:
        # A plain `raise` inside an `except` block would make the group the context.
        error.__context__ = context
        del error, context


@contextmanager
def collapse() -> Iterator[None]:
    """Let a group of exactly one exception leave as that exception.

    * ``Cancelled`` beside one other exception gives way to it, as it would in Trio: the
      scope that was cancelled has nothing to catch then, and the error goes on.
    * Nothing but ``Cancelled`` leaves as one ``Cancelled``.
    * Everything else leaves unchanged, as the group that it is.

    Put it around the nursery, inside the ``@asynccontextmanager``::

        with collapse():
            async with trio.open_nursery() as nursery:
                yield thing
    """
    try:
        yield
    except BaseExceptionGroup as group:
        found = leaves(group)
        errors = [leaf for leaf in found if not isinstance(leaf, trio.Cancelled)]
        if len(errors) > 1:
            raise
        chosen = errors[0] if errors else found[0]
    else:
        return
    reraise(chosen)
