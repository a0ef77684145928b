"""How to come to a moment: on from where a server stands, from a kept copy, or by a restore.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pitr.restore_plan import RestorePlan

# A server that was stopped in recovery replays again what came since its last restart point.
_RESTART_BYTES: Final = 16 << 20
# Whatever its size, a restore lists the archive, opens every index and begins recovery from the start.
_RESTORE_BYTES: Final = 128 << 20


class Way(StrEnum):
    """How a server came to a moment."""

    RESTORE = "restored"
    FORWARD = "went on"
    KEPT = "went back to the copy, and on"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a way costs: bytes to fetch and to replay; one is taken to last as long as the other."""

    way: Way
    size_bytes: int


def cheapest(offers: Sequence[Cost]) -> Way:
    """Return the cheapest way; of equal ones the first."""
    return min(offers, key=lambda offer: offer.size_bytes).way


def restore_bytes(plan: RestorePlan) -> int:
    """Return what a restore of a plan writes and replays."""
    assert plan.stop is not None, "it was resolved"
    wal_bytes = max(0, plan.stop.replay_end - plan.backup.start_lsn)
    return _RESTORE_BYTES + plan.backup.size_bytes + wal_bytes


def forward_bytes(here: RestorePlan, wanted: RestorePlan) -> int | None:
    """Return what is replayed from where a server stands; None if recovery does not lead there."""
    assert here.stop is not None, "they were resolved"
    assert wanted.stop is not None, "they were resolved"
    if here.timeline != wanted.timeline or here.stop.replay_end > wanted.stop.replay_end:
        return None
    return (wanted.stop.replay_end - here.stop.replay_end) + _RESTART_BYTES
