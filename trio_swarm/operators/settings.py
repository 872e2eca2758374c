"""The settings of a server, checked before anything is done with them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from trio_swarm._io.http_limits import FrontLimits

__all__ = ["above_zero", "check_limits", "from_zero", "texts"]

_WORDS: Final = {True: "above 0", False: "from 0"}


def above_zero(**settings: float) -> None:
    """Each is a number above 0. Raises ``ValueError``, which names it."""
    _check(settings, above=True)


def from_zero(**settings: float) -> None:
    """Each is a number from 0. Raises ``ValueError``, which names it."""
    _check(settings, above=False)


def _check(settings: dict[str, float], *, above: bool) -> None:
    for name, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        if not number or value < 0 or (above and value == 0):
            raise ValueError(f"{name}: expected a number {_WORDS[above]}, not {value!r}")


def texts(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """``values`` as a tuple; a single text, whose characters would be taken one by one, is none.

    Raises ``ValueError``, which names the setting.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected several texts, such as [{values!r}], not {values!r}")
    given = tuple(values)
    for each in given:
        if not isinstance(each, str):
            raise ValueError(f"{name}: expected texts, not {each!r}")
    return given


def check_limits(limits: FrontLimits | None) -> None:
    """Raises ``ValueError`` for what is none."""
    if limits is not None and not isinstance(limits, FrontLimits):
        raise ValueError(f"limits: expected FrontLimits, not {type(limits).__name__}")
