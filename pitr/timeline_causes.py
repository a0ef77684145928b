"""What signed records and refused objects say of WAL that is not there, for the map of timelines.  Pure.

The map takes any ``KnownCause``; ``pitr.timeline_events`` gives those of signed events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from pitr.catalogue.expiry_record import ExpireRecord
from pitr.catalogue.records import EpochRecord
from pitr.catalogue.wal_records import WalUnit
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId, PieceKey, parse_wal_key
from pitr.timeline_spans import Cause, KnownCause
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_runs import Histories

# Longer reasons are an attacker's; a span has room for one line.
_REASON_CHARS_MAX: Final = 200


class Refused(Protocol):
    """An object that is listed, but of which no copy can be used; and why (``pitr.verified``)."""

    @property
    def key(self) -> str: ...

    @property
    def reason(self) -> str: ...


def expired_wal(records: Iterable[ExpireRecord], segment_bytes: int) -> Iterator[KnownCause]:
    """Yield the WAL that expire records name."""
    for record in records:
        for gone in record.wal:
            yield KnownCause(
                record.archive,
                gone.first.timeline,
                _start(gone.first, segment_bytes),
                gone.last.end(segment_bytes),
                Cause.EXPIRED,
                f"expire record {record.sequence} declared it gone",
            )


def damaged_wal(refused: Iterable[Refused], segment_bytes: int) -> Iterator[KnownCause]:
    """Yield the WAL of objects that are there and cannot be used; refused objects of other kinds are none."""
    for one in refused:
        try:
            key = parse_wal_key(one.key)
            start, end = _start(key.segment, segment_bytes), key.segment.end(segment_bytes)
        except MalformedValue:
            continue
        if isinstance(key, PieceKey):
            start, end = key.start, key.end
        if start < end:
            reason = one.reason[:_REASON_CHARS_MAX]
            yield KnownCause(
                key.archive,
                key.segment.timeline,
                start,
                end,
                Cause.WAL_DAMAGED,
                f"it is stored and cannot be used: {reason}",
            )


def unproven_past(
    epochs: Iterable[EpochRecord], histories: Histories, units: Iterable[WalUnit]
) -> Iterator[KnownCause]:
    """Yield the WAL before an epoch that its server's history names, and that no archive is proven to have.

    To be asked after all else that is known: an epoch's own first WAL may have expired.
    """
    begins: dict[ArchiveId, tuple[TimelineId, LSN]] = {}
    for unit in units:
        at = (unit.timeline, unit.start)
        begins[unit.archive] = min(at, begins.get(unit.archive, at))
    for record in epochs:
        begun_on = begins.get(record.archive, (None,))[0]
        known = histories.get(record.archive, ())
        start = LSN(1) if record.parent is None else record.parent.lsn
        for switch in next((one.switches for one in known if one.timeline == begun_on), ()):
            if start < switch.lsn:
                yield KnownCause(
                    record.archive,
                    switch.timeline,
                    start,
                    switch.lsn,
                    Cause.PAST_UNPROVEN,
                    f"epoch {record.archive.epoch} began on timeline {begun_on}, and no archive is proven to"
                    " have the WAL before it",
                )
                start = switch.lsn


def _start(segment: SegmentName, segment_bytes: int) -> LSN:
    # The first byte of segment 0 has no LSN.
    return LSN(max(1, segment.start_offset(segment_bytes)))
