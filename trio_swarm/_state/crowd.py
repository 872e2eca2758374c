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

Standing: TypeAlias = Literal["at ease", "hurried", "known", "gone"]


@attrs.define(eq=False)
class Guest:
    """One connection that was let in; made by `Crowd.enter`."""

    place: str
    """Where it comes from: those of one place share its share."""
    standing: Standing = "at ease"
    """``at ease`` within the share of its place; ``hurried`` beyond it: it has one request, soon, to
    show who it is; ``known`` once it has; ``gone`` when it has left, or must."""

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
    each has a good credential: but hurried, and when all is full the oldest that is hurried, of the
    place that has most of them, goes for whoever comes. So what one place holds without a credential,
    and in spite of others, is its share.
    """

    most: int
    share: int
    inside: int = 0
    """Connections now; those that must go are gone already."""
    _at_ease: Counter[str] = attrs.field(factory=Counter, repr=False)
    _hurried: dict[str, dict[Guest, None]] = attrs.field(factory=dict, repr=False)
    """Of each place, the oldest first."""

    def enter(self, place: str) -> Entry | None:
        """Somebody has connected. None: there is no room, and nobody who must make some."""
        ousted = None
        if self.inside >= self.most:
            ousted = self._oldest()
            if ousted is None:
                return None
            self.leave(ousted)
        guest = Guest(place)
        if self._at_ease[place] >= self.share:
            guest.standing = "hurried"
            self._hurried.setdefault(place, {})[guest] = None
        else:
            self._at_ease[place] += 1
        self.inside += 1
        return Entry(guest, ousted)

    def know(self, guest: Guest) -> None:
        """It has shown a good credential: for as long as it stays, it counts with its place no more."""
        if guest.standing != "gone":
            self._uncount(guest)
            guest.standing = "known"

    def leave(self, guest: Guest) -> None:
        """It has gone, or must. Once is as good as twice."""
        if guest.standing != "gone":
            self._uncount(guest)
            guest.standing = "gone"
            self.inside -= 1

    def _uncount(self, guest: Guest) -> None:
        """Nothing of a place is left behind when its last unknown guest is."""
        place = guest.place
        if guest.standing == "at ease":
            self._at_ease[place] -= 1
            if not self._at_ease[place]:
                del self._at_ease[place]
        elif guest.standing == "hurried":
            del self._hurried[place][guest]
            if not self._hurried[place]:
                del self._hurried[place]

    def _oldest(self) -> Guest | None:
        if not self._hurried:
            return None
        fullest = max(self._hurried, key=lambda place: len(self._hurried[place]))
        return next(iter(self._hurried[fullest]))
