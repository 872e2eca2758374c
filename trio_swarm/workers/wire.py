"""How a worker's request gets to the server, once: retries, keys, and what became of it.

Each request has a connection of its own, so a dropped connection costs one request only. A
request that was lost is sent again; what must not happen twice carries an ``Idempotency-Key``,
the same for all tries, by which the server knows it again. A server that does not say that it
does (the originals) is sent a post again only if it certainly never left. One that had no room
for the request (429) and says that it soon has is asked again too: it did nothing.
"""

from __future__ import annotations

import logging
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import attrs
import trio

from trio_swarm._io.http_client import Address, Outgoing, Reply, exchange
from trio_swarm.errors import HandshakeError, PeerError, PeerGoneError, ProtocolError, SlowPeerError
from trio_swarm.workers.bodies import Sink
from trio_swarm.workers.refusals import raise_for

__all__ = ["Retry", "Wire"]

_log: Final = logging.getLogger("trio_swarm.workers")

_FEATURES: Final = "trio-swarm-features"
_KEY: Final = "Idempotency-Key"


@attrs.frozen
class Retry:
    """How a lost request is sent again; times in seconds.

    Before the n-th repetition ``first * 2**(n - 1)`` is waited, ``longest`` at most, times a
    random factor between one half and one.
    """

    tries: int = attrs.field(default=6, validator=attrs.validators.ge(1))
    """In all, the first included."""
    first: float = attrs.field(default=0.1, validator=attrs.validators.ge(0))
    longest: float = attrs.field(default=5.0, validator=attrs.validators.ge(0))

    def delay(self, repetition: int, rng: random.Random) -> float:
        """Before the n-th repetition, from 1."""
        return min(self.longest, self.first * 2.0 ** min(repetition - 1, 30)) * rng.uniform(0.5, 1.0)


@attrs.define(eq=False)
class Wire:
    """One worker's connections to its server."""

    _address: Address
    _secrets: tuple[str, ...] = attrs.field(repr=False)
    """What is cut out of every text that the server sends back."""
    _retry: Retry
    _silence: float
    _max_answer: int
    _ssl_context: ssl.SSLContext | None = attrs.field(repr=False)
    _knows_keys: bool = attrs.field(default=False, init=False)
    """The server drops what it has had already."""
    _closed: bool = attrs.field(default=False, init=False)
    _under_way: set[trio.CancelScope] = attrs.field(factory=set, repr=False, init=False)
    _rng: random.Random = attrs.field(factory=random.Random, repr=False, init=False)

    async def request(
        self,
        what: str,
        outgoing: Outgoing,
        *,
        absent: int | None = None,
        repeatable: bool = True,
        sink: Sink | None = None,
        max_answer: int | None = None,
    ) -> Reply:
        """The answer to one logical request, sent as often as need be; ``absent`` is a status to return.

        What is not ``repeatable`` is sent again only if nothing of it was. ``sink`` takes the
        body of an answer of 200, of ``max_answer`` bytes at most.

        Raises what `WorkerSession` says, and ``trio.ClosedResourceError`` at `close`.
        """
        if self._closed:
            raise trio.ClosedResourceError("the worker's block is over")
        if outgoing.method == "POST":
            key = (_KEY, secrets.token_urlsafe(16))
            outgoing = attrs.evolve(outgoing, headers=(*outgoing.headers, key))
        with trio.CancelScope() as scope:
            self._under_way.add(scope)
            try:
                once = partial(self._once, outgoing, sink=sink, max_answer=max_answer)
                reply, doubted = await self._tried(what, outgoing, once, sink, repeatable)
            finally:
                self._under_way.discard(scope)
            if reply.status in (200, 201, 204, absent):
                return reply
            note = " (an earlier try of it may have arrived)" if doubted else ""
            raise_for(what, reply, secrets=self._secrets, note=note)
        raise trio.ClosedResourceError("the worker's block is over")

    async def _tried(
        self,
        what: str,
        outgoing: Outgoing,
        once: Callable[[Callable[[], None]], Awaitable[Reply]],
        sink: Sink | None,
        repeatable: bool,
    ) -> tuple[Reply, bool]:
        """The answer, and whether an earlier try that got none may have arrived."""
        doubted = False
        for repetition in range(self._retry.tries):
            if repetition:
                await trio.sleep(self._retry.delay(repetition, self._rng))
            sending = trio.Event()
            try:
                reply = await once(sending.set)
            except (HandshakeError, PeerGoneError, SlowPeerError) as error:
                doubted = doubted or sending.is_set()
                lost: PeerError = error
                _log.debug("%s: try %d: %s", what, repetition + 1, error)
            except ProtocolError as error:
                raise ProtocolError(f"{what}: {error}") from error
            else:
                self._learn(reply)
                soon = self._soon(reply)
                if soon is None or not repeatable or repetition + 1 == self._retry.tries:
                    return reply, doubted
                await trio.sleep(soon)
                continue
            if doubted and outgoing.method == "POST" and not (repeatable and self._knows_keys):
                break
            if sink is not None and not await sink.again():
                break
        if outgoing.method == "POST":
            fate = "may or may not have arrived" if doubted else "was not sent"
        else:
            fate = "was not answered to the end"
        raise PeerGoneError(f"{what} {fate}: {lost}") from lost

    async def _once(
        self,
        outgoing: Outgoing,
        on_sending: Callable[[], None],
        *,
        sink: Sink | None,
        max_answer: int | None,
    ) -> Reply:
        return await exchange(
            self._address,
            outgoing,
            ssl_context=self._ssl_context,
            silence=self._silence,
            max_body=self._max_answer if max_answer is None else max_answer,
            on_sending=on_sending,
            take=None if sink is None else sink.take,
        )

    def _soon(self, reply: Reply) -> float | None:
        """Seconds to wait, if the server is busy and soon is no more."""
        seconds = reply.retry_after
        if seconds is None or seconds > self._retry.longest:
            return None
        return seconds * self._rng.uniform(1.0, 2.0)

    def _learn(self, reply: Reply) -> None:
        named = {feature.strip() for feature in (reply.header(_FEATURES) or "").split(",")}
        if "idempotency" in named:
            self._knows_keys = True
        elif reply.status < 300:
            # Another server than before. (An error may come from something in between.)
            self._knows_keys = False

    def close(self) -> None:
        """End what other tasks have under way, and refuse what comes."""
        self._closed = True
        for scope in self._under_way:
            scope.cancel()
