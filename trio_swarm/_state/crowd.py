"""Who is connected, and who of them has shown a credential: so that one peer cannot hold every place.

A connection asks for nothing before it is let in, so a peer that only connects costs as much as
one that works. Here each is a guest until it has shown a credential that is good, and is known from
then on. Pure: it decides, and whoever serves the connections carries it out.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, TypeAlias

import attrs

__all__ = ["Crowd", "Entry", "Guest"]

Standing: TypeAlias = Literal["at ease", "hurried", "seated", "known", "gone"]


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
    """It has sent the head of a request: within its share it may keep its connection open from then on."""
    asking: bool = False
    """The head of a request has come, and its answer is not given yet: it is not cut off in that."""

    @property
    def hurried(self) -> bool:
        """It has one request, soon, to show who it is."""
        return self.standing == "hurried"


@attrs.frozen
class Entry:
    """A guest that was let in, and the one that must go for it."""

    guest: Guest
    ousted: Guest | None = None


@attrs.define(eq=False)
class Crowd:
    """At most ``most`` connections; of one place, ``share`` that are not known are at ease.

    Who comes beyond the share is let in all the same, for a swarm starts its workers at once and
    each has a good credential: but hurried, and when all is full the oldest goes that is in no
    request: a hurried one before one at ease that never made any, of the place that has most of them. Half
    of the connections may be in requests of one place that show no credential, and three quarters seats.
    """

    most: int
    share: int
    inside: int = 0
    """Connections now; those that must go are gone already."""
    _silent: dict[Standing, dict[str, dict[Guest, None]]] = attrs.field(
        factory=lambda: {"hurried": {}, "at ease": {}}, repr=False
    )
    """Of each place those that have not asked for anything, the oldest first."""
    _at_ease: Counter[str] = attrs.field(factory=Counter, repr=False)
    _asking: Counter[str] = attrs.field(factory=Counter, repr=False)
    _seated: int = 0

    def enter(self, place: str) -> Entry | None:
        """Somebody has connected. None: there is no room, and nobody who must make some."""
        ousted = None
        if self.inside >= self.most:
            ousted = self._oldest("hurried") or self._oldest("at ease")
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
        """The head of its request has come. False: too many of its place are in one already."""
        if guest.standing in ("known", "seated"):
            return True
        if guest.standing == "gone" or self._asking[guest.place] >= max(1, self.most // 2):
            return False
        self._uncount(guest)
        guest.asking = guest.heard = True
        self._count(guest)
        return True

    def answered(self, guest: Guest) -> None:
        """Its request is."""
        if guest.asking:
            self._uncount(guest)
            guest.asking = False
            self._count(guest)

    def sit(self, guest: Guest) -> bool:
        """Its request is for a seat. False: too many are seated."""
        if guest.standing == "gone" or self._seated >= max(1, self.most - self.most // 4):
            return False
        self._become(guest, "seated")
        return True

    def leave(self, guest: Guest) -> None:
        """It has gone, or must. Once is as good as twice."""
        if guest.standing != "gone":
            self._become(guest, "gone")
            self.inside -= 1

    def _become(self, guest: Guest, standing: Standing) -> None:
        if guest.standing != "gone":
            self._uncount(guest)
            guest.standing, guest.asking = standing, False
            self._count(guest)

    def _count(self, guest: Guest) -> None:
        if guest.standing == "seated":
            self._seated += 1
        if guest.standing not in ("at ease", "hurried"):
            return
        if guest.standing == "at ease":
            self._at_ease[guest.place] += 1
        if guest.asking:
            self._asking[guest.place] += 1
        elif guest.hurried or not guest.heard:
            self._silent[guest.standing].setdefault(guest.place, {})[guest] = None

    def _uncount(self, guest: Guest) -> None:
        """Nothing of a place is left behind when its last unknown guest is."""
        place = guest.place
        if guest.standing == "seated":
            self._seated -= 1
        if guest.standing not in ("at ease", "hurried"):
            return
        if guest.standing == "at ease":
            _less(self._at_ease, place)
        if guest.asking:
            _less(self._asking, place)
        elif guest.hurried or not guest.heard:
            silent = self._silent[guest.standing]
            del silent[place][guest]
            if not silent[place]:
                del silent[place]

    def _oldest(self, standing: Standing) -> Guest | None:
        places = self._silent[standing]
        if not places:
            return None
        fullest = max(places, key=lambda place: len(places[place]))
        return next(iter(places[fullest]))


def _less(counts: Counter[str], place: str) -> None:
    counts[place] -= 1
    if not counts[place]:
        del counts[place]
