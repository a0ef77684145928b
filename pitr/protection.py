"""The ladder: what an acknowledged commit is worth while too few regions answer, and when that ends.

By the owner's policy either commits wait for the quorum however long it is away (``data``), or after so
many seconds of waiting they are worth a step less (``primary``): fewer regions, then the local disk alone,
then nothing but what the server itself has.  Pure: observations in, the level out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

# Regions that come and go must not make commits hang and go on by turns.
HOLD_S: Final = 10.0


class Protect(StrEnum):
    """Whose availability the owner chose to give up first."""

    DATA = "data"
    PRIMARY = "primary"


class Level(IntEnum):
    """What an acknowledgement is worth, from the most to the least."""

    QUORUM = 0
    FEWER_REGIONS = 1
    SPOOLED = 2
    ASYNCHRONOUS = 3

    @property
    def described(self) -> str:
        """Return it in a person's words."""
        return _WORDS[self]


_WORDS = {
    Level.QUORUM: "durable in the quorum of regions",
    Level.FEWER_REGIONS: "durable in one region",
    Level.SPOOLED: "on this host's disk only",
    Level.ASYNCHRONOUS: "not waited for: the server has released commits",
}


@dataclass(frozen=True, slots=True)
class ProtectionPolicy:
    """``lower_after_s``: how long commits wait at one level before they are worth a step less."""

    protect: Protect = Protect.DATA
    lower_after_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known at a moment; ``at_s`` is monotonic.

    ``unflushed_age_s``: the age of the oldest WAL received that does not count as flushed at this level.
    ``regions_answering`` have answered lately, ``regions_level`` lack nothing that is older than seconds.
    """

    at_s: float
    is_synchronous: bool
    commits_waiting: int
    unflushed_age_s: float
    regions_answering: int
    regions_level: int
    quorum: int
    can_release: bool


class Ladder:
    """One archive's level.  Not thread-safe."""

    def __init__(self, policy: ProtectionPolicy, level: Level = Level.QUORUM) -> None:
        self._policy: Final = policy
        self._level = level
        self._changed_s = float("-inf")
        self._good_since_s: float | None = None

    @property
    def level(self) -> Level:
        """The level now."""
        return self._level

    def step(self, seen: Observation) -> Level:
        """Return the level from now on."""
        level = self._next(seen)
        if level is not self._level:
            self._level, self._changed_s, self._good_since_s = level, seen.at_s, None
        return level

    def stay(self, level: Level) -> None:
        """Take back the last step, which could not be taken; the next one waits as after any other."""
        self._level = level

    def must_release_again(self, seen: Observation) -> bool:
        """Say whether commits wait although they were released; not more often than a step is taken."""
        if self._level is not Level.ASYNCHRONOUS or not seen.can_release or not self._must_lower(seen):
            return False
        self._changed_s = seen.at_s
        return True

    def _next(self, seen: Observation) -> Level:
        if self._level is not Level.QUORUM and self._is_good_again(seen):
            return Level.QUORUM
        if self._policy.protect is Protect.DATA or not self._must_lower(seen):
            return self._level
        steps = [level for level in Level if level > self._level and _helps(level, seen)]
        return steps[0] if steps else self._level

    def _is_good_again(self, seen: Observation) -> bool:
        """Say whether the quorum has been back for a while, or nobody waits for us any more."""
        # Below, commits do not wait because we have released them.
        nobody_waits = not seen.is_synchronous and self._level is not Level.ASYNCHRONOUS
        is_back = seen.regions_level >= seen.quorum and seen.unflushed_age_s < HOLD_S
        if not (nobody_waits or is_back):
            self._good_since_s = None
            return False
        if self._good_since_s is None:
            self._good_since_s = seen.at_s
        return seen.at_s - self._good_since_s >= HOLD_S

    def _must_lower(self, seen: Observation) -> bool:
        after_s = self._policy.lower_after_s
        is_waited_for = seen.is_synchronous and seen.commits_waiting > 0
        return is_waited_for and seen.unflushed_age_s >= after_s and seen.at_s - self._changed_s >= after_s


def _helps(level: Level, seen: Observation) -> bool:
    """Say whether commits could go on at a level."""
    if level is Level.FEWER_REGIONS:
        return seen.quorum > 1 and seen.regions_answering > 0
    return level is not Level.ASYNCHRONOUS or seen.can_release
