"""How many regions must have an object, and so how many must answer, lest one that has it be missed.  Pure.

Of N regions a put waits for W.  Any N - W + 1 of them hold every object that was acknowledged, whichever
regions lag; of fewer, all may be behind.  A reader that has the configuration knows both numbers; one that
has only an identity and a region reads them in the newest signed head there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pitr.errors import MalformedValue

REGIONS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class WriteQuorum:
    """A put is acknowledged when ``acknowledged_by`` of the ``regions`` have the object."""

    regions: int
    acknowledged_by: int

    def __post_init__(self) -> None:
        if not 1 <= self.acknowledged_by <= self.regions <= REGIONS_MAX:
            raise MalformedValue(f"{self.acknowledged_by} of {self.regions} regions is no quorum")

    @property
    def answers_needed(self) -> int:
        """Return how many regions must answer, so that nothing that was acknowledged is missed."""
        return self.regions - self.acknowledged_by + 1


@dataclass(frozen=True, slots=True)
class Answers:
    """How many regions answer a reader; ``configured`` None where it has no configuration."""

    count: int
    configured: WriteQuorum | None = None

    def quorum(self, signed: WriteQuorum | None) -> WriteQuorum | None:
        """Return the quorum to reckon with; ``signed`` is what the newest head says, None if it says nothing.

        A configuration may be older than the head that one region has, or newer: the more demanding counts.
        """
        known = [quorum for quorum in (self.configured, signed) if quorum is not None]
        return max(known, key=lambda quorum: (quorum.answers_needed, quorum.regions), default=None)

    def are_enough(self, signed: WriteQuorum | None) -> bool:
        """Tell whether everything that was acknowledged is seen.  Where nobody says the quorum, it is not."""
        quorum = self.quorum(signed)
        return quorum is not None and self.count >= quorum.answers_needed

    def describe(self, signed: WriteQuorum | None) -> str:
        """Return who answered, of how many, and how many it takes."""
        quorum = self.quorum(signed)
        if quorum is None:
            were = "region was" if self.count == 1 else "regions were"
            return f"{self.count} {were} read, and nobody says of how many"
        text = f"{self.count} of {quorum.regions} regions answered"
        return text if self.are_enough(signed) else f"{text}, and it takes {quorum.answers_needed} to be sure"
