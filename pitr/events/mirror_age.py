"""How old a mirror is: the time of the newest heartbeat of the source that reached the target."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from pitr.errors import MalformedValue
from pitr.events.broker import Broker, OffsetGone
from pitr.events.heartbeats import decode_heartbeat
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition

_BACK_OFFSETS: Final = 20
"""So many of the newest are read: some may be markers, or of other flows."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def mirrored_until(target: Broker, names: MirrorNames) -> datetime | None:
    """Return when the newest heartbeat that was mirrored was written, by MirrorMaker's clock.

    None where the mirror brings none.  Raises BrokerUnavailable, BrokerRefused.
    """
    at = TopicPartition(names.heartbeats, 0)
    if not target.topics([at.topic]):
        return None
    begin, end = target.begins([at])[at], target.ends([at])[at]
    newest: int | None = None
    try:
        for record in target.read(at, max(begin, end - _BACK_OFFSETS), end):
            try:
                stamp = decode_heartbeat(record.key, record.value).timestamp_ms
            except MalformedValue:
                continue
            newest = stamp if newest is None else max(newest, stamp)
    except OffsetGone:
        return None  # it was emptied meanwhile
    try:
        return None if newest is None else _EPOCH + timedelta(milliseconds=newest)
    except OverflowError:
        return None
