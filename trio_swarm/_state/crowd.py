"""Who is connected, and who of them has shown a credential: so that one peer cannot hold every place.

A connection asks for nothing before it is let in, so a peer that only connects costs as much as
one that works. Here each is a guest until it has shown a credential that is good, and is known from
then on. Pure: it decides, and whoever serves the connections carries it out.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, TypeAlias

import attrs

__all__ = ["Crowd", "Entry", "Guest"]

Standing: TypeAlias = Literal["at ease", "hurried", "seated", "known", "gone"]
Rank: TypeAlias = Literal["hurried", "silent", "heard"]
_RANKS: Final[tuple[Rank, ...]] = ("hurried", "silent", "heard")
"""In this order they go when all is full: beyond the share; never made a request; made one before."""


@attrs.define(eq=False)
class Guest:
    """One connection that was let in; made by `Crowd.enter`."""

    place: str
    """Where it comes from: those of one place share its share."""
    standing: Standing = "at ease"
    """``at ease`` within the share of its place; ``hurried`` beyond it: it has one request, soon, to
    show who it is; ``seated`` as the seat of somebody who logged in, which asks for no credential;
    ``known`` once it has shown one; ``gone`` when it has left, or must."""
    heard: bool = False
    """It has made a request: within its share it goes only when nobody else can."""
    asking: bool = False
    """A whole request has come and has its turn, and no answer yet: it is not cut off in that."""

    @property
    def hurried(self) -> bool:
        """It has one request, soon, to show who it is."""
        return self.standing == "hurried"

    @property
    def gone(self) -> bool:
        """It has left, or must."""
        return self.standing == "gone"

    @property
    def rank(self) -> Rank | None:
        """When it may have to go for another; None: never, as things are."""
        if self.asking or self.standing not in ("at ease", "hurried"):
            return None
        return "hurried" if self.hurried else "heard" if self.heard else "silent"


@attrs.frozen
class Entry:
    """A guest that was let in, and the one that must go for it."""

    guest: Guest
    ousted: Guest | None = None


@attrs.define(eq=False)
class _Part:
    """Some of all connections: so many, and of one place three quarters of them."""

    most: int
    _taken: Counter[str] = attrs.field(factory=Counter)
    _all: int = 0

    def has_room(self, place: str) -> bool:
        return self._all < self.most and self._taken[place] < self.most - self.most // 4

    def places(self) -> tuple[str, ...]:
        return tuple(self._taken)

    def take(self, place: str) -> None:
        self._taken[place] += 1
        self._all += 1

    def give_back(self, place: str) -> None:
        _less(self._taken, place)
        self._all -= 1


@attrs.define(eq=False)
class _Seats:
    """Half of all connections, and an eighth beyond for those that take a seat over.

    Who is beyond counts there until there is room in the half, also where the one that it took over from
    leaves room for it: so that the eighth is there for the next.
    """

    own: _Part
    beyond: _Part

    @classmethod
    def of(cls, most: int) -> _Seats:
        return cls(_Part(max(1, most // 2)), _Part(most // 8))

    def has_room(self, place: str, *, replacing: bool) -> bool:
        return self.own.has_room(place) or (replacing and self.beyond.has_room(place))

    def take(self, place: str) -> None:
        (self.own if self.own.has_room(place) else self.beyond).take(place)

    def give_back(self, place: str) -> None:
        (self.beyond if place in self.beyond.places() else self.own).give_back(place)
        for other in self.beyond.places():
            if self.own.has_room(other):
                self.beyond.give_back(other)
                self.own.take(other)
                return


@attrs.define(eq=False)
class Crowd:
    """At most ``most`` connections; of one place, ``share`` that are not known are at ease.

    Who comes beyond the share is let in all the same, for a swarm starts its workers at once and
    each has a good credential: but hurried. When all is full, one goes for the next: of the hurried, else
    of those that never made a request, else of those that made one before; the one that has been so for
    longest, of the place that has most of them. Never one that is known, or seated, or *asks*: whose whole
    request is there and has its turn, until its answer begins.

    Half of the connections may be seats, and a quarter may ask without a credential, of one place three
    quarters of that; an eighth more, likewise, may be seats that take over from another, which ends then. So,
    with ``most`` at least 4, an eighth is known or can be made room of: no number of places without a
    credential shuts anybody out. Beyond the quarter, a request waits in line.
    """

    most: int
    share: int
    inside: int = 0
    """Connections now; those that must go are gone already."""
    _idle: dict[Rank, dict[str, dict[Guest, None]]] = attrs.field(
        factory=lambda: {rank: {} for rank in _RANKS}, repr=False
    )
    """Who may have to go: of each rank and place, who has been so for longest first."""
    _at_ease: Counter[str] = attrs.field(factory=Counter, repr=False)
    _asking: _Part = attrs.field(init=False, repr=False)
    _seated: _Seats = attrs.field(init=False, repr=False)
    _waiting: dict[Guest, None] = attrs.field(factory=dict, repr=False)
    """In line to ask, first come first."""

    def __attrs_post_init__(self) -> None:
        self._asking, self._seated = _Part(max(1, self.most // 4)), _Seats.of(self.most)

    def enter(self, place: str) -> Entry | None:
        """Somebody has connected. None: there is no room, and nobody who must make some."""
        ousted = None
        if self.inside >= self.most:
            ousted = self._next_to_go()
            if ousted is None:
                return None
            self.leave(ousted)
        guest = Guest(place, "at ease" if self._at_ease[place] < self.share else "hurried")
        self._count(guest)
        self.inside += 1
        return Entry(guest, ousted)

    def know(self, guest: Guest) -> None:
        """It has shown a good credential: for as long as it stays, it counts with its place no more."""
        self._become(guest, "known")

    def ask(self, guest: Guest) -> bool:
        """Its request is whole. False: it waits in line, until `call` names it; or it is gone."""
        if guest.standing in ("known", "seated") or guest.asking:
            return True
        if guest.gone:
            return False
        if not self._asking.has_room(guest.place):
            self._waiting[guest] = None
            return False
        self._let_ask(guest)
        return True

    def call(self) -> list[Guest]:
        """Whose turn in the line has come; they ask from now on. To be called when anything was given up."""
        called: list[Guest] = []
        for guest in tuple(self._waiting):
            if self._asking.has_room(guest.place):
                self._let_ask(guest)
                called.append(guest)
        return called

    def give_up(self, guest: Guest) -> None:
        """It waits in line no more."""
        self._waiting.pop(guest, None)

    def answered(self, guest: Guest) -> None:
        """Its request is."""
        if guest.asking:
            self._uncount(guest)
            guest.asking = False
            self._count(guest)

    def sit(self, guest: Guest, *, replacing: bool = False) -> bool:
        """Its request is for a seat; ``replacing`` one whose holder must go at once then.

        False: too many are seated, or it is gone.
        """
        if guest.gone or not self._seated.has_room(guest.place, replacing=replacing):
            return False
        self._become(guest, "seated")
        return True

    def leave(self, guest: Guest) -> None:
        """It has gone, or must. Once is as good as twice."""
        if not guest.gone:
            self._become(guest, "gone")
            self.inside -= 1

    def _let_ask(self, guest: Guest) -> None:
        self._waiting.pop(guest, None)
        self._uncount(guest)
        guest.asking = guest.heard = True
        self._count(guest)

    def _become(self, guest: Guest, standing: Standing) -> None:
        if not guest.gone:
            self._waiting.pop(guest, None)
            self._uncount(guest)
            guest.standing, guest.asking = standing, False
            self._count(guest)

    def _count(self, guest: Guest) -> None:
        if guest.standing == "seated":
            self._seated.take(guest.place)
        elif guest.standing == "at ease":
            self._at_ease[guest.place] += 1
        if guest.asking:
            self._asking.take(guest.place)
        elif guest.rank is not None:
            self._idle[guest.rank].setdefault(guest.place, {})[guest] = None

    def _uncount(self, guest: Guest) -> None:
        """Nothing of a place is left behind when its last guest is gone, or known."""
        place = guest.place
        if guest.standing == "seated":
            self._seated.give_back(place)
        elif guest.standing == "at ease":
            _less(self._at_ease, place)
        if guest.asking:
            self._asking.give_back(place)
        elif guest.rank is not None:
            idle = self._idle[guest.rank]
            del idle[place][guest]
            if not idle[place]:
                del idle[place]

    def _next_to_go(self) -> Guest | None:
        for rank in _RANKS:
            if places := self._idle[rank]:
                fullest = max(places, key=lambda place: len(places[place]))
                return next(iter(places[fullest]))
        return None


def _less(counts: Counter[str], place: str) -> None:
    counts[place] -= 1
    if not counts[place]:
        del counts[place]
