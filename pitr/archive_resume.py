"""Resume: where the archive ends, found in the store, so that a daemon goes on without a gap or a fork.

The newest signed head gives the last piece that it knew; pieces after it are found by name and
believed only if their signed headers go on the chain.  What the spool holds is put first, so the
store alone is asked.  Reference: docs/format.md §6.4, §7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from pitr.archive_intake import KnownWal
from pitr.archive_seal import ArchivedPiece
from pitr.archive_values import DurableEnd
from pitr.catalogue.wal_records import IndexedHeader, PieceHeader
from pitr.errors import ArchiveDiverged, MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, PieceKey, parse_wal_key, timeline_prefix, wal_index_range
from pitr.listed import read_names
from pitr.pipeline.sign import open_record, payload_sha256
from pitr.repository import ListedHead, Repository
from pitr.spool import Spool
from pitr.verified import BAD_MAX, VerifiedSearch, get_verified
from pitr.wal.follow import ReceivedEnd, find_fork
from pitr.wal.lsn import LSN
from pitr.wal.pacing import PUTS_MAX
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId
from pitr.wal_chain import followed
from storage.search import Search, search
from storage.store import CopyDamaged, ObjectConflict, ObjectMissing, StoreError

# Headers of so many pieces are read to know the segment that is being written; with more, it is left
# in pieces.  One piece per second for four minutes.
KNOWN_PIECES_MAX: Final = 256
_READERS: Final = 8
# Of a cluster's segments, the usual one first; the others are powers of two.
_SEGMENT_SIZES: Final = tuple(
    sorted((1 << bit for bit in range(20, 31)), key=lambda size_bytes: (size_bytes != 16 << 20, size_bytes))
)


@dataclass(frozen=True, slots=True)
class Resumed:
    """The archive as it was left.  ``end`` None: nothing is archived yet.

    ``unsigned`` are the pieces after the last head: an earlier run may have ended before it recorded them.
    ``left`` says where the timeline that it ends on, or one before it, left each earlier one.
    """

    end: DurableEnd | None
    known: KnownWal | None
    head: ListedHead | None
    index_sha256: bytes | None
    unsigned: tuple[IndexedHeader, ...]
    left: Mapping[TimelineId, LSN] = field(default_factory=dict)


def put_spooled(repository: Repository, spool: Spool, on_put: Callable[[str], None]) -> None:
    """Put what an earlier run may not have put, in its order, byte by byte the same.

    ``on_put`` is told each key that is at quorum.  May be repeated.  Raises ArchiveDiverged if another
    writer used a name, StoreError.
    """
    for held in spool.objects():
        try:
            repository.puts.put(
                held.key, held.body, sha256=held.sha256, after_all=held.key.startswith("heads/")
            )
        except ObjectConflict as cause:
            raise two_writers(held.key) from cause
        on_put(held.key)
        spool.remove(held.key)


def find_end(repository: Repository, archive: ArchiveId) -> Resumed:
    """Return where the archive ends; the last pieces are at quorum then.

    Raises NotAuthentic if the newest heads are all bad, StoreError.
    """
    head, found, end = _find(repository, archive)
    # No more than these were in flight, however that daemon was set: only they may be short of their quorum.
    for entry in found[-PUTS_MAX:]:
        # Verified in full: what one region made of it must not be put into the others.
        repository.puts.put(str(entry.key), repository.wal.whole(entry.key))
    known = None if end is None else _known_wal(repository, archive, end)
    index = None if end is None else _last_index(repository, archive, end.piece_sequence)
    left = {} if end is None else _left_before(repository, archive, end.timeline)
    return Resumed(end, known, head, index, tuple(found), left)


def _left_before(repository: Repository, archive: ArchiveId, timeline: TimelineId) -> dict[TimelineId, LSN]:
    """Return where each earlier timeline was left; of those in an unreadable history nobody knows."""
    if timeline.number == 1:
        return {}
    try:
        history = repository.get_history(archive, timeline).history()
    except (ObjectMissing, NotAuthentic):
        return {}
    return {switch.timeline: switch.lsn for switch in history.switches}


def archived_end(repository: Repository, archive: ArchiveId) -> DurableEnd | None:
    """Return where the archive ends, for whoever only reads; None if nothing is archived yet.

    Raises as ``find_end``.
    """
    return _find(repository, archive)[2]


def _find(
    repository: Repository, archive: ArchiveId
) -> tuple[ListedHead | None, list[IndexedHeader], DurableEnd | None]:
    """Return the newest head, the pieces after it in their order, and where the last one ends."""
    head = repository.find_head(archive).newest
    end: DurableEnd | None = None
    if head is not None:
        record = head.head
        end = DurableEnd(
            record.timeline, record.wal_start, record.wal_end, record.piece_sequence, record.piece_sha256
        )
    found = list(_pieces_after(repository, archive, end))
    for entry in found:
        end = _after(repository, end, entry)
    return head, found, end


def _pieces_after(
    repository: Repository, archive: ArchiveId, end: DurableEnd | None
) -> Iterator[IndexedHeader]:
    """Yield the pieces that go on the chain after ``end``, read and verified one after the other."""
    sequence = 0 if end is None else end.piece_sequence
    previous = None if end is None else end.piece_sha256
    by_sequence: dict[int, list[_Listed]] = {}
    for listed in _listed_after(repository, archive, end):
        if listed.key.sequence > sequence:
            by_sequence.setdefault(listed.key.sequence, []).append(listed)
    # Of two with one predecessor, one was sealed after a crash that lost the spool.  Readers follow the chain
    # by the same rule, so the other one is ignored by all.
    pieces: dict[int, list[IndexedHeader]] = {}
    number = sequence + 1
    while found := list(_readable(repository, by_sequence.get(number, ()))):
        pieces[number] = found
        number += 1
    yield from followed(pieces, previous, sequence + 1, number - 1)


@dataclass(frozen=True, slots=True)
class _Listed:
    """The name of a piece, and which regions list it: what those do not give, or nobody signed, is theirs."""

    key: PieceKey
    search: Search
    holders: tuple[str, ...]

    def refuse(self, error: NotAuthentic | StoreError) -> None:
        """Pass over the piece; raise the store's error if a quorum could have it."""
        damaged = CopyDamaged(str(error)) if isinstance(error, NotAuthentic) else error
        self.search.refuse(damaged, self.holders)


def _listed_pieces(
    repository: Repository, archive: ArchiveId, timeline: TimelineId, segment: SegmentName | None
) -> Iterator[_Listed]:
    """Yield the pieces of a timeline from ``segment`` on, by name; a name that is none is passed over."""
    prefix = timeline_prefix(archive, timeline)
    start_after = None if segment is None else f"{prefix}{segment}"
    found = search(repository.store, prefix, bad_max=BAD_MAX, is_lenient=True, start_after=start_after)
    for key in read_names(found, parse_wal_key):
        if isinstance(key, PieceKey):
            yield _Listed(key, found, found.holders)


def _readable(repository: Repository, listed: Iterable[_Listed]) -> Iterator[IndexedHeader]:
    """Yield the headers that are this host's; another's are no part of the chain."""
    for one in listed:
        if not one.search.counts(one.holders):
            continue
        try:
            yield repository.wal.header(one.key)
        except (NotAuthentic, StoreError) as cause:
            one.refuse(cause)


def _listed_after(repository: Repository, archive: ArchiveId, end: DurableEnd | None) -> Iterator[_Listed]:
    """Yield the names of pieces that may come after ``end``."""
    for timeline in repository.wal.timelines(archive):
        segment: SegmentName | None = None
        if end is not None and end.end is not None:
            if timeline < end.timeline:
                continue  # a later timeline has a greater number: a server takes one that is free
            if timeline == end.timeline:
                segment = _first_segment(repository, archive, end)
        yield from _listed_pieces(repository, archive, timeline, segment)


def _first_segment(repository: Repository, archive: ArchiveId, end: DurableEnd) -> SegmentName | None:
    """Return the segment that holds the last archived byte; how large segments are its last piece says.

    That is looked for by its name, in a segment of each size.  Any other object may be damaged,
    or nobody's: it must not keep the daemon from starting.
    """
    if end.end is None:
        return None
    for segment_bytes in _SEGMENT_SIZES:
        number = end.end.last_segment_number(segment_bytes)
        segment = SegmentName.of(end.timeline, number, segment_bytes)
        last = (
            one
            for one in _pieces_in(repository, archive, segment)
            if (one.key.sequence, one.key.end) == (end.piece_sequence, end.end)
        )
        if any(entry.header.segment_bytes == segment_bytes for entry in _readable(repository, last)):
            return segment
    return None


def _pieces_in(repository: Repository, archive: ArchiveId, segment: SegmentName) -> Iterator[_Listed]:
    """Yield the names of the pieces in a segment."""
    for one in _listed_pieces(repository, archive, segment.timeline, segment):
        if one.key.segment != segment:
            return
        yield one


def _after(repository: Repository, end: DurableEnd | None, entry: IndexedHeader) -> DurableEnd:
    """Return the end of the archive with one more piece of the chain."""
    piece = _piece(entry)
    start = piece.start
    if end is not None and end.start is not None and _joins(repository, end, piece):
        start = end.start
    return DurableEnd(piece.timeline, start, piece.end, piece.sequence, entry.header_sha256)


def _joins(repository: Repository, end: DurableEnd, piece: PieceHeader) -> bool:
    """Say whether nothing lies between the end and the piece, also across a timeline switch.

    After a failover that lost WAL the new timeline left the archive's below its end.
    """
    if end.start is None or end.end is None or piece.timeline == end.timeline:
        return piece.start == end.end
    try:
        history = repository.get_history(piece.archive, piece.timeline).history()
        own = TimelineHistory(end.timeline)
        if end.timeline.number > 1:
            own = repository.get_history(piece.archive, end.timeline).history()
        fork = find_fork(ReceivedEnd(end.timeline, end.end), own, history)
    except (ObjectMissing, NotAuthentic, ArchiveDiverged):
        return False
    if fork is not None:
        return end.start <= fork.left_at and piece.start <= fork.left_at
    left_at = next((one.lsn for one in history.switches if one.timeline == end.timeline), None)
    return left_at is not None and piece.start <= left_at <= end.end


def _piece(entry: IndexedHeader) -> PieceHeader:
    assert isinstance(entry.header, PieceHeader)
    return entry.header


def _known_wal(repository: Repository, archive: ArchiveId, end: DurableEnd) -> KnownWal | None:
    """Return the pieces of the segment in which the archive ends, as far back as the limit allows."""
    segment = _first_segment(repository, archive, end)
    if segment is None:
        return None
    listed = [
        one for one in _pieces_in(repository, archive, segment) if one.key.sequence <= end.piece_sequence
    ]
    listed = sorted(listed, key=lambda one: one.key.sequence)[-KNOWN_PIECES_MAX:]

    def read(one: _Listed) -> IndexedHeader | NotAuthentic | StoreError:
        try:
            return repository.wal.header(one.key)
        except (NotAuthentic, StoreError) as error:
            return error

    entries: list[IndexedHeader] = []
    with ThreadPoolExecutor(_READERS, "wal-header") as readers:
        for one, found in zip(listed, readers.map(read, listed), strict=True):
            if isinstance(found, IndexedHeader):
                entries.append(found)
            elif one.search.counts(one.holders):
                one.refuse(found)
    by_digest = {entry.header_sha256: entry for entry in entries}
    pieces: list[ArchivedPiece] = []
    wanted = end.piece_sha256
    while wanted is not None and (entry := by_digest.get(wanted)) is not None:
        piece = _piece(entry)
        pieces.append(
            ArchivedPiece(piece.start, piece.end, piece.sequence, piece.content_hmac, entry.header_sha256)
        )
        wanted = piece.previous
    return KnownWal(end.timeline, tuple(reversed(pieces)))


def _last_index(repository: Repository, archive: ArchiveId, end_sequence: int) -> bytes | None:
    """Return the digest of the newest WAL index that holds, which the next one names.

    One that a region alone lists, and that nobody signed, must not keep the daemon from starting.
    """
    search = VerifiedSearch(repository.store, f"walindex/{archive}/", f"WAL indexes of archive {archive}")
    verifier = repository.verifier(archive)

    def is_wanted(key: str) -> bool:
        # Of names that speak of pieces after the end none is ours, however many a region lists.
        try:
            return wal_index_range(key)[1] <= end_sequence
        except MalformedValue:
            return False

    def read(body: bytes) -> bytes:
        open_record(body, verifier, "wal-index")
        return payload_sha256(body)

    return search.last(lambda key: get_verified(repository.store, key, read), is_wanted)


def two_writers(key: str) -> ArchiveDiverged:
    """Return the error for a name that somebody else has used."""
    return ArchiveDiverged(
        "another writer writes this archive",
        detail=f"{key} holds other bytes than this host's.",
        hint="Stop the daemon that is not to write; on the host that goes on from a restore or a copy:"
        " `pitr adopt --as restore --identity FILE`.",
    )
