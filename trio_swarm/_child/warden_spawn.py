"""Starting one process from an order; the standard library only.

``posix_spawn`` and not ``subprocess``: a descriptor must arrive under the number that it has in
the coordinator, whatever number it got on its way through the warden.
"""

from __future__ import annotations

import os
import signal

__all__ = ["out_of_the_way", "spawn"]


def spawn(order: dict[str, object], fds: list[int], lifeline: int) -> int:
    """Start what ``order`` says and return its pid.

    ``targets`` of the order are the numbers that ``fds`` get in the child; ``lifeline`` is the
    number that the lifeline gets. A standard stream without a descriptor is ``/dev/null``.
    The child leads a session of its own, with no signal blocked or ignored.

    Raises:
        OSError: what the kernel (or the search for the program) said.
        ValueError: a NUL in an argument, an ``=`` in a variable's name.
    """
    argv = [text.encode("latin-1") for text in _strings(order["argv"])]
    flat = [text.encode("latin-1") for text in _strings(order["env"])]
    env = dict(zip(flat[::2], flat[1::2], strict=True))
    targets = [int(text) for text in _strings(order["targets"])] + [int(str(order["lifeline"]))]
    sources, spare = out_of_the_way([*fds, lifeline], {0, 1, 2, *targets})
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in range(3) if n not in targets
    ]
    actions += [(os.POSIX_SPAWN_DUP2, *pair) for pair in zip(sources, targets, strict=True)]
    defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    try:
        os.chdir(str(order["cwd"]).encode("latin-1"))
        return os.posix_spawn(
            _program(argv[0], env),
            argv,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=defaults,
        )
    finally:
        os.chdir("/")
        for fd in spare:
            os.close(fd)


def _strings(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def out_of_the_way(fds: list[int], targets: set[int]) -> tuple[list[int], list[int]]:
    """Sources that nothing overwrites before they were copied; and the copies made for that."""
    sources, spare = [], []
    for each in fds:
        fd = each
        while fd in targets:
            fd = os.dup(fd)
            spare.append(fd)
        sources.append(fd)
    return sources, spare


def _program(name: bytes, env: dict[bytes, bytes]) -> bytes:
    """The file to run, found along the child's own PATH as a shell would."""
    if os.path.dirname(name):
        return name
    path = env.get(b"PATH", os.fsencode(os.defpath))
    found = [os.path.join(each, name) for each in path.split(b":")]
    there = [each for each in found if os.path.isfile(each)]
    usable = [each for each in there if os.access(each, os.X_OK)]
    return (usable or there or [name])[0]
