"""What is asked of a Kafka cluster.  ``kafka`` asks a real one; every call has a deadline.

Ends are last stable offsets (read_committed): a record below the high watermark but in an open Kafka
transaction may belong to a database commit that is yet to come; one below the last stable offset cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from pitr.errors import PitrError
from pitr.events.partition import TopicPartition


class BrokerUnavailable(PitrError):
    """The cluster gave no usable answer in time.  Nothing is known; the call may be repeated."""


class BrokerRefused(PitrError):
    """The cluster says no: an ACL, a topic or group that is not there, a group in use.  A person must act."""


class OffsetGone(PitrError):
    """Records from ``start`` on are wanted, and the log begins at ``log_start``: a gap, never skipped."""

    def __init__(self, partition: TopicPartition, start: int, log_start: int) -> None:
        super().__init__(
            f"{partition} no longer has offset {start}: its log begins at {log_start}",
            hint="read the mirror, or accept the gap by name",
        )
        self.partition = partition
        self.start = start
        self.log_start = log_start


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as the cluster has it now.  ``topic_id`` tells a recreated one from the one before.

    ``retention_ms`` and ``retention_bytes`` are None where unlimited.
    """

    name: str
    topic_id: str
    partitions: int
    is_compacted: bool
    is_deleted_by_age: bool
    retention_ms: int | None
    retention_bytes: int | None
    delete_retention_ms: int
    has_append_time: bool


class EventRecord(NamedTuple):
    """A record of a topic.  ``timestamp_ms`` is the producer's claim unless ``is_append_time``.

    ``unreadable`` says why its headers could not be read, though it has some; None: these are all.  A tuple:
    a frozen dataclass takes a microsecond longer to make, and there is one for each record.
    """

    at: TopicPartition
    offset: int
    timestamp_ms: int
    is_append_time: bool
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    unreadable: str | None = None

    @property
    def size_bytes(self) -> int:
        """Return how many bytes key, value and headers have."""
        size = len(self.key or b"") + len(self.value or b"")
        for name, value in self.headers:
            size += len(name) + len(value or b"")
        return size

    def header(self, name: str) -> bytes | None:
        """Return the last header of this name, as Kafka's own clients do."""
        return next((value for one, value in reversed(self.headers) if one == name), None)


@dataclass(frozen=True, slots=True)
class GroupState:
    """A consumer group: its next offsets, and whether members are in it (then nobody may move it)."""

    group: str
    is_empty: bool
    offsets: Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class ClusterNow:
    """What a cluster is just now: its id, and id and number of partitions of topics that it has."""

    cluster_id: str
    topics: Mapping[str, tuple[str, int]]


class Broker(Protocol):
    """One Kafka cluster.  All raise BrokerUnavailable and BrokerRefused; reads change nothing."""

    def cluster_id(self) -> str: ...

    def topics(self, names: Iterable[str]) -> Mapping[str, TopicFacts]:
        """Return what is there of these; a name that is missing is not."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names of all topics that may be seen, sorted."""
        ...

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return last stable offsets.  A partition that is missing raises: none is left out."""
        ...

    def high_watermarks(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return where logs end, with what open Kafka transactions hide: at or above ``ends``."""
        ...

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return log start offsets."""
        ...

    def offsets_at(
        self, moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """Return the first offsets with a timestamp at or after ``moment``; the end where there is none."""
        ...

    def group(self, name: str) -> GroupState:
        """Return a group's committed offsets; one that is unknown is empty and has none."""
        ...

    def set_group_offsets(self, name: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Move an empty group.  Raises BrokerRefused while it has members; may be repeated."""
        ...

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        """Yield committed records with ``start <= offset < end`` in order, until the position is at ``end``.

        Raises OffsetGone if the log begins after ``start``, before the first record or in between.
        """
        ...

    def close(self) -> None: ...
