"""Look for a record on the target of a mirror, by who it is.

The first that is alike counts: of two that are alike the earlier one is the safe one.  Timestamps only say
from where on to look, which they can: no record lies before the first that is as young as it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from pitr.events.broker import EventRecord, OffsetGone
from pitr.events.fence import Identity
from pitr.events.identity import identity_of
from pitr.events.partition import TopicPartition
from pitr.events.translate import Translation, with_found

READ_MAX: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Readable(Protocol):
    """The little of a Broker that a search asks."""

    def offsets_at(
        self, moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]: ...

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]: ...


@dataclass(frozen=True, slots=True)
class Searched:
    """What came of a search, and how many records it read; ``stopped`` says why it found nothing."""

    translation: Translation
    read: int
    stopped: str | None = None


def search(
    broker: Readable,
    at: TopicPartition,
    translation: Translation,
    last: Identity,
    *,
    read_max: int = READ_MAX,
) -> Searched:
    """Return a translation that is exact, if ``last`` is found within ``read_max`` records.

    ``at`` is the target's partition, ``last`` the identity of the last record below the translated offset.
    Raises BrokerUnavailable, BrokerRefused.
    """
    if not translation.may_search:
        return Searched(translation, 0, None if translation.is_exact else "where it should be may be gone")
    start = max(translation.lower, _hint(broker, at, last, translation.lower))
    read = 0
    try:
        for record in broker.read(at, start, translation.upper):
            read += 1
            if record.timestamp_ms == last.timestamp_ms and identity_of(record) == last:
                return Searched(with_found(translation, record.offset), read)
            if read >= read_max:
                return Searched(translation, read, f"not among the first {read_max} records that were read")
    except OffsetGone as gone:
        return Searched(translation, read, f"records were deleted meanwhile, up to offset {gone.log_start}")
    return Searched(translation, read, "the record is not there: it was not mirrored, or not yet")


def _hint(broker: Readable, at: TopicPartition, last: Identity, otherwise: int) -> int:
    try:
        # A millisecond earlier: how a client rounds must not matter.
        moment = _EPOCH + timedelta(milliseconds=last.timestamp_ms - 1)
    except OverflowError:
        return otherwise  # a producer's claim can be any number
    if moment < _EPOCH:
        return otherwise
    return broker.offsets_at(moment, [at])[at]
