"""Gaps: events that a replay wants and Kafka no longer has.  Pure.

A gap is named, never skipped: whoever replays across one must have said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pitr.errors import PitrError
from pitr.events.partition import TopicPartition


class GapsFound(PitrError):
    """Events that a replay needs are gone, and nobody accepted that.  Nothing was done."""


class GapKind(StrEnum):
    """Why events are missing."""

    DELETED = "deleted"
    """Retention, or somebody, deleted the records from ``start`` to ``end``."""
    RECREATED = "recreated"
    """The topic was deleted and made again: a topic of this name, with offsets that mean nothing here."""
    OTHER_CLUSTER = "other-cluster"
    """The fence is of another cluster: its offsets mean nothing in this one."""
    TRUNCATED = "truncated"
    """The log ends before the offset at which it stood at the fence: records were lost, or are others now."""
    MISSING = "missing"
    """There is no such topic, or no such partition, any more."""
    OPEN = "open"
    """A Kafka transaction that does not end hides what was published from ``start`` to ``end``."""
    UNMIRRORED = "unmirrored"
    """The mirror that is read has no copies of these; offsets are those of the source."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What is missing in one partition: offsets ``start`` to ``end`` (None: nobody can tell)."""

    kind: GapKind
    start: int
    end: int | None

    def told(self, at: TopicPartition) -> str:
        """Return the gap for people."""
        extent = f"from offset {self.start}" + ("" if self.end is None else f" to {self.end}")
        why = {
            GapKind.DELETED: f"records {extent} were deleted",
            GapKind.RECREATED: f"the topic was recreated: its old records {extent} are gone",
            GapKind.OTHER_CLUSTER: f"this is not the cluster of the fence: records {extent} are elsewhere",
            GapKind.TRUNCATED: f"the log ends before it did at the fence: records {extent} are lost",
            GapKind.MISSING: f"the partition is gone, and its records {extent} with it",
            GapKind.OPEN: f"an open Kafka transaction hides the records {extent}",
            GapKind.UNMIRRORED: f"the mirror has no copies of the source's records {extent}",
        }
        return f"{at}: {why[self.kind]}"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where reading really begins and ends, and what is missing before that."""

    start: int
    end: int
    gaps: tuple[Gap, ...] = ()


def place(
    wanted: int,
    *,
    is_same_cluster: bool,
    is_same_topic: bool,
    low: int | None,
    end: int | None,
    stood_at: int | None = None,
) -> Placed:
    """Return what can be read of a partition from ``wanted`` on.

    ``low`` and ``end`` are where its log begins and ends now, None if it is not there; ``stood_at`` is an end
    that it is known to have had.
    """
    if low is None or end is None:
        return Placed(wanted, wanted, (Gap(GapKind.MISSING, wanted, None),))
    if not is_same_cluster:
        return Placed(low, end, (Gap(GapKind.OTHER_CLUSTER, wanted, None),))
    if not is_same_topic:
        return Placed(low, end, (Gap(GapKind.RECREATED, wanted, None),))
    gaps: list[Gap] = []
    start = wanted
    if low > wanted:
        gaps.append(Gap(GapKind.DELETED, wanted, low))
        start = low
    stood_at = wanted if stood_at is None else max(stood_at, wanted)
    if stood_at > end:
        # What stands below the end may be other records too: nothing tells from where on.
        gaps.append(Gap(GapKind.TRUNCATED, end, stood_at))
        start = min(start, end)
    return Placed(start, max(start, end), tuple(gaps))
