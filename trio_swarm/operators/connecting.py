"""`connect_operator`: be an operator of a server, this library's or an original."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from trio_swarm._io.groups import collapse
from trio_swarm._io.http_client import Address
from trio_swarm.errors import PeerGoneError
from trio_swarm.limits import CLOSE_DEADLINE, PEER_SILENCE, PING_EVERY
from trio_swarm.operators.client import OperatorClient
from trio_swarm.operators.joining import Login, OperatorSession, log_in, log_out
from trio_swarm.operators.reconnect import Reconnect

__all__ = ["connect_operator"]


@asynccontextmanager
async def connect_operator(
    url: str,
    *,
    roles: Sequence[str] = (),
    desc: str | None = None,
    capability_manifest: Mapping[str, Any] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    uds: str | os.PathLike[str] | None = None,
    session: OperatorSession | None = None,
    keep: bool = False,
    reconnect: Reconnect | None = None,
    rng: random.Random | None = None,
    ping_every: float | None = PING_EVERY,
    silence: float = PEER_SILENCE,
) -> AsyncIterator[OperatorClient]:
    """Log in at ``url`` (``http://127.0.0.1:7777``) and be its operator for the block.

    Args:
        roles: names to hold exclusively while the session lives.
        desc: what this operator is, for people.
        capability_manifest: opaque, told to the server.
        ssl_context: for ``https://`` with an authority of one's own.
        uds: the path of the Unix socket that the server listens on (103 bytes at most), for all
            connections. ``url`` is then no address, but says scheme, ``Host`` and the prefix of
            paths: ``http://localhost``.
        session: take this one over, `OperatorClient.session` of an earlier connection, instead
            of logging in. Its roles are its own: ``roles``, ``desc`` and the manifest are then
            not used. Whoever is connected to it loses it to this.
        keep: leave the session at the server, in every way out, to come back to it; what
            nobody answered is asked again then, if the server redelivers.
        reconnect: how a lost connection is opened again.
        rng: the source of the jitter in that, and in when a busy server is asked again.
        ping_every, silence: seconds; how a dead server is noticed.

    Raises:
        RolesTaken: others hold some of the roles; ``conflicts`` names them.
        HandshakeError: nobody listens, or the login was refused; ``status`` if there is one:
            401, 404 or 410 say that ``session`` is over. A login that a busy server sends away for
            a few seconds (429 with ``Retry-After``) is sent again, 6 times in all.
        ValueError: ``url`` is no HTTP URL, ``uds`` no path that a socket can have, or ``session``
            none that a server gave.

    On leaving without an error, replies that were given get ``CLOSE_DEADLINE`` to leave.
    In every way out, cancellation included, the session is deleted at the server, within
    the same bound, unless ``keep`` is set, ``session`` could not be taken over, or another
    connection has taken it over from this one, whose it is then. A login that
    is cancelled when its request was sent already waits as long for the answer, so that it
    can be deleted.
    """
    address = Address.parse(url, uds)
    jitter = rng if rng is not None else random.Random()
    if session is None:
        login = await log_in(address, roles, desc, capability_manifest, ssl_context, jitter)
    else:
        login = Login.resumed(address, session, ssl_context)
    client = OperatorClient(
        session=login,
        reconnect=reconnect if reconnect is not None else Reconnect(),
        rng=jitter,
        ping_every=ping_every,
        silence=silence,
    )
    try:
        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client._stay_connected)
                await client._begun.wait()
                yield client
                with trio.move_on_after(CLOSE_DEADLINE), suppress(PeerGoneError):
                    await client.flush()
                nursery.cancel_scope.cancel()
    finally:
        never_had = session is not None and client.connections == 0
        if not (keep or never_had or client.taken_over):
            with trio.move_on_after(CLOSE_DEADLINE, shield=True):
                await log_out(login)
