"""A fence: what stood in Kafka just before, and just after, a commit of PostgreSQL.  Pure.

The order is what it is worth: group offsets and ends *before*, then the mark, then ends *after*.  Every
event of a db-first topic below ``before`` was committed before the mark, so it is in any database that was
restored to the mark or later.  An event at or above ``after`` was appended after the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a record is, wherever it is mirrored to: mirrors keep key, value, headers and this timestamp."""

    timestamp_ms: int
    sha256: bytes
    """Over the lengths and bytes of key, value and headers in their order."""


@dataclass(frozen=True, slots=True)
class PartitionFence:
    """Offsets of one partition: log start, last stable offset before and after the mark (None: not known)."""

    number: int
    low: int
    before: int
    after: int | None = None
    last: Identity | None = None
    """The last committed record below ``before``, where it was looked at."""
    last_offset: int | None = None


@dataclass(frozen=True, slots=True)
class TopicFence:
    """One topic, as it was; ``topic_id`` tells whether a topic of this name is still that one."""

    name: str
    topic_id: str
    partitions: tuple[PartitionFence, ...]


@dataclass(frozen=True, slots=True)
class GroupFence:
    """Committed offsets of one group, read before the mark: topic → partition → next offset."""

    group: str
    offsets: Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class Mark:
    """The transaction that the fence is tied to.

    ``lsn`` is the insert position just before its commit, so the commit record is at or after it.
    ``next_xid`` is one past the highest 64-bit transaction id that had ended (``pg_snapshot_xmax``): no
    transaction from it on was over.  ``oldest_xid`` is the oldest in flight (``xmin``).  ``at`` is
    PostgreSQL's clock.
    """

    number: int
    system_identifier: int
    timeline: TimelineId
    lsn: LSN
    xid: int
    oldest_xid: int
    next_xid: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Fence:
    """One fence.  ``unknown`` says why nothing of Kafka is known; then it has neither topics nor groups.

    ``collector_at`` is this host's clock, ``broker_at`` a broker's (None where it gave none).
    """

    mark: Mark
    collector_at: datetime
    broker_at: datetime | None
    cluster_id: str | None
    topics: tuple[TopicFence, ...]
    groups: tuple[GroupFence, ...]
    unknown: str | None = None
    committed_by: LSN | None = None
    """Where WAL was just after the mark's commit: known to the signed copy, not to the database's row."""
