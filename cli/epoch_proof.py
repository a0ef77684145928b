"""Whether a server's WAL is an archive's: the bytes that both have, compared.

Only a reader's identity opens what is archived, so this is for ``pitr init`` and not for the daemon,
which knows no more than keyed digests of its own.  WAL is a chain of records with the times of
transactions in microseconds: where two branches agree on such a record they agree on all before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from cli.epochs import Sameness
from cli.server_past import ServedWal
from pitr.catalogue.records import EpochRecord
from pitr.datakeys import DataKeys
from pitr.errors import KeyMissing, NotAuthentic, TargetRefused
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.pipeline.keys import Identity
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId
from pitr.wal_runs import Histories, WalSpan, way_to
from storage.store import ObjectMissing

# Of an idle cluster many pieces in a row have no transaction; what proves nothing by then is not proven.
OBJECTS_COMPARED_MAX: Final = 32
# How far back it is looked for what both have: a server keeps max_wal_size, 1 GiB by default.
_LOOK_BACK_BYTES: Final = 1 << 30


class ArchiveProof:
    """Compares one server with one epoch and the epochs that it came from.  Reads only.

    ``served`` gives the server's WAL, ``flushed`` is how far it has some, ``segment_bytes`` the size of its
    segments.
    """

    def __init__(
        self,
        served: ServedWal,
        repository: Repository,
        identity: Identity,
        archive: ArchiveId,
        epochs: Sequence[EpochRecord],
        histories: Histories,
        *,
        flushed: LSN,
        segment_bytes: int,
    ) -> None:
        self._served: Final = served
        self._repository: Final = repository
        self._keys: Final = DataKeys(repository, identity)
        self._archive: Final = archive
        self._epochs: Final = epochs
        self._histories: Final = histories
        self._flushed: Final = flushed
        self._segment_bytes: Final = segment_bytes

    def compare(self, history: TimelineHistory, timeline: TimelineId, until: LSN) -> Sameness:
        """Compare WAL of ``timeline`` up to ``until``; ``history`` is the server's own.

        The same WAL after ``until`` proves as much; other WAL there proves nothing, for it may have
        been left there.  Raises ServerUnavailable, StoreError.
        """
        left_at = history.end_of(timeline)
        reach = min(self._flushed, until + self._segment_bytes, left_at or self._flushed)
        begun_at = self._begun_at(timeline)
        upto: LSN | None = None
        compared = 0
        for key, start, end in self._objects(timeline, reach):
            if upto is not None and end > upto:
                continue  # a whole segment that holds the piece that was compared, or a second attempt
            if compared == OBJECTS_COMPARED_MAX:
                break
            try:
                header = self._repository.read_header(key)
                archived = self._repository.read_wal(key, self._keys)
            except (NotAuthentic, KeyMissing, ObjectMissing):
                continue
            served = self._served(timeline, start, end)
            if served is None:
                break  # what is older is gone from the server as well
            compared, upto = compared + 1, start
            if served != archived:
                if end <= until:
                    return Sameness.DIFFERENT
                continue
            # A timeline begins with a record that holds the time when it did.
            has_begin = begun_at is not None and start <= begun_at < end
            if header.transactions is not None or has_begin:
                return Sameness.SAME
        return Sameness.UNKNOWN

    def holds(self, segment: SegmentName, wal_bytes: int, sha256: str) -> bool:
        """Tell whether the archive's WAL of a segment begins with ``wal_bytes`` bytes of that digest.

        Raises StoreError.
        """
        base = segment.start_offset(self._segment_bytes)
        for span in self._way(segment.timeline):
            content = bytearray()
            if span.timeline != segment.timeline:
                continue
            for key in self._repository.wal.objects(span.archive, segment.timeline, from_segment=segment):
                if key.segment != segment or len(content) >= wal_bytes:
                    break
                start, end = _range_of(key, self._segment_bytes)
                at = base + len(content)
                if not start.offset <= at < end.offset:
                    continue  # a second attempt, or what comes after a hole
                try:
                    content += self._repository.read_wal(key, self._keys)[at - start.offset :]
                except (NotAuthentic, KeyMissing, ObjectMissing):
                    continue
            if len(content) >= wal_bytes and hashlib.sha256(content[:wal_bytes]).hexdigest() == sha256:
                return True
        return False

    def _begun_at(self, timeline: TimelineId) -> LSN | None:
        for history in self._histories.get(self._archive, ()):
            if history.timeline == timeline and history.switches:
                return history.switches[-1].lsn
        return None

    def _objects(self, timeline: TimelineId, reach: LSN) -> Iterator[tuple[PieceKey | SegmentKey, LSN, LSN]]:
        """Yield archived WAL of the timeline that ends at or before ``reach``, the latest first."""
        for span in reversed(self._way(timeline)):
            if span.timeline != timeline or span.start >= reach:
                continue
            limit = reach if span.end is None else min(reach, span.end)
            first = max(span.start.offset, limit.offset - _LOOK_BACK_BYTES)
            number = max(1, first // self._segment_bytes)
            found = []
            for key in self._repository.wal.objects(
                span.archive,
                timeline,
                from_segment=SegmentName.of(timeline, number, self._segment_bytes),
            ):
                start, end = _range_of(key, self._segment_bytes)
                if start >= limit:
                    break
                if end <= limit:
                    found.append((key, start, end))
            # The smallest first of those that end together.
            yield from sorted(found, key=lambda one: (one[2], one[1]), reverse=True)

    def _way(self, timeline: TimelineId) -> tuple[WalSpan, ...]:
        try:
            return way_to(self._archive, timeline, self._epochs, self._histories)
        except TargetRefused:
            return ()


def _range_of(key: PieceKey | SegmentKey, segment_bytes: int) -> tuple[LSN, LSN]:
    if isinstance(key, PieceKey):
        return key.start, key.end
    end = key.segment.end(segment_bytes)
    return LSN(end.offset - segment_bytes), end
