"""Which of several pieces of one number belong to an archive's chain.  Pure.

One writer makes each number once.  Two that share a key, such as a cloned host, each make it; or one made
it again after a crash that lost its spool.  Each piece names its predecessor, and the newest head one piece:
what neither leads to is no part of the archive, and no reader uses it.  Reference: docs/format.md §7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from pitr.catalogue.records import HeadRecord
from pitr.catalogue.wal_records import IndexedHeader, PieceHeader, SegmentHeader
from pitr.layout import PieceKey, SegmentKey
from pitr.wal.lsn import LSN
from pitr.wal.pacing import PUTS_MAX

_Pieces = Mapping[int, Sequence[IndexedHeader]]


def contested(keys: Iterable[PieceKey | SegmentKey]) -> frozenset[int]:
    """Return the numbers that more than one piece has."""
    seen: set[int] = set()
    twice: set[int] = set()
    for key in keys:
        if isinstance(key, PieceKey):
            (twice if key.sequence in seen else seen).add(key.sequence)
    return frozenset(twice)


def doubtful(keys: Iterable[PieceKey | SegmentKey], head: HeadRecord | None) -> frozenset[int]:
    """Return the numbers of which it must be seen which piece is right; none where each has one piece.

    Beyond the newest head all of them: a second writer may have come further than the first one.
    """
    twice = contested(keys)
    signed = 0 if head is None else head.piece_sequence
    beyond = {key.sequence for key in keys if isinstance(key, PieceKey) and key.sequence > signed}
    return twice | beyond if twice else frozenset()


def unacknowledged(
    keys: Iterable[PieceKey | SegmentKey], head: HeadRecord | None, *, stored_to: int = 0
) -> frozenset[PieceKey]:
    """Return the pieces that were under way when their writer ended, and that it told nobody of.

    It acknowledges in order, and puts no more than PUTS_MAX at a time: what lies so near behind a number that
    nobody has, beyond the newest head, was never acknowledged.  So it is not WAL after a hole, and what comes
    before it is the end.  ``stored_to`` is the last piece that a whole segment holds: one is put when all its
    pieces are at quorum.  Give all keys of the archive, from enough regions.
    """
    if head is None:
        return frozenset()
    told = max(head.piece_sequence, stored_to)
    pieces = [key for key in keys if isinstance(key, PieceKey) and key.sequence > told]
    numbers = {key.sequence for key in pieces}
    missing = told + 1
    while missing in numbers:
        missing += 1
    if max(numbers, default=0) >= missing + PUTS_MAX:
        return frozenset()
    return frozenset(key for key in pieces if key.sequence > missing)


def needed_numbers(numbers: Iterable[int]) -> frozenset[int]:
    """Return the numbers whose headers decide: the doubtful ones and those beside them."""
    return frozenset(near for number in numbers for near in (number - 1, number, number + 1))


def foreign_pieces(
    headers: Iterable[IndexedHeader], head: HeadRecord | None, numbers: Iterable[int]
) -> frozenset[PieceKey]:
    """Return the pieces of doubtful ``numbers`` that the chain does not lead over.

    ``headers`` are those of ``needed_numbers``.  Where nothing tells which one is right, none is left out:
    who reads them compares them.
    """
    pieces: dict[int, list[IndexedHeader]] = {}
    for entry in headers:
        if isinstance(entry.header, PieceHeader):
            pieces.setdefault(entry.header.sequence, []).append(entry)
    foreign: set[PieceKey] = set()
    for first, last in _stretches(sorted(numbers)):
        chosen = _chosen(pieces, head, first, last)
        for number in range(first, last + 1):
            if number in chosen:
                right = chosen[number]
                foreign |= {_key(one) for one in pieces.get(number, ()) if one.header_sha256 != right}
    return frozenset(foreign)


def _key(entry: IndexedHeader) -> PieceKey:
    assert isinstance(entry.key, PieceKey)
    return entry.key


def left_by_crash(headers: Iterable[IndexedHeader], foreign: Collection[PieceKey]) -> frozenset[PieceKey]:
    """Return those of the ``foreign`` pieces that a crash explains which lost the spool.

    They are no more than can be under way at once, and all came between the last piece that the chain has
    from before the crash, if that is there, and the first one from after it: whoever made them had ended by
    then.  A second writer goes on beside the first one.  ``headers`` are also those of the PUTS_MAX numbers
    before.
    """
    others: dict[int, list[IndexedHeader]] = {}
    chain: dict[int, IndexedHeader] = {}
    for entry in headers:
        if isinstance(entry.header, PieceHeader):
            if entry.key in foreign:
                others.setdefault(entry.header.sequence, []).append(entry)
            else:
                chain[entry.header.sequence] = entry
    found: set[PieceKey] = set()
    for first, last in _stretches(sorted(others)):
        left = [entry for number in range(first, last + 1) for entry in others[number]]
        times = [_at(entry) for entry in left]
        begun = first
        if not _follows(others[first], chain.get(first - 1)):
            # What it follows never came: the first piece after the crash has that number.
            while begun > 1 and (before := chain.get(begun - 1)) and max(times) < _at(before):
                begun -= 1
        before, after = chain.get(begun - 1), chain.get(begun)
        is_between = (
            after is not None and max(times) < _at(after) and (not before or _at(before) <= min(times))
        )
        if is_between and last < begun + PUTS_MAX:
            found |= {_key(one) for one in left}
    return frozenset(found)


def _follows(entries: Iterable[IndexedHeader], before: IndexedHeader | None) -> bool:
    return before is not None and any(_previous(one) == before.header_sha256 for one in entries)


def _at(entry: IndexedHeader) -> datetime:
    assert isinstance(entry.header, PieceHeader)
    return entry.header.received_at


def is_foreign_segment(header: SegmentHeader, pieces: Mapping[int, bytes]) -> bool:
    """Tell whether a whole segment was made of other pieces than the chain's, whose digests are given.

    False where not all of them are known.
    """
    digests = [pieces.get(number) for number in range(header.first_piece, header.last_piece + 1)]
    known = [digest for digest in digests if digest is not None]
    return len(known) == len(digests) and hashlib.sha256(b"".join(known)).digest() != header.pieces_sha256


def _stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the longest runs of numbers, as first and last."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _chosen(pieces: _Pieces, head: HeadRecord | None, first: int, last: int) -> dict[int, bytes | None]:
    """Return the digest of the chain's piece for each number of a stretch; None: no piece there is.

    A number for which nothing tells is left out.
    """
    signed = 0 if head is None else head.piece_sequence
    chosen = _back_from_head(pieces, head, first, last)
    start = max(first, signed + 1)
    if start > last:
        return chosen
    # Beyond the newest head as the writer itself goes on.
    if start - 1 == signed:
        previous = None if head is None else head.piece_sha256
    else:
        before = pieces.get(start - 1, ())
        if len(before) != 1:
            return chosen
        previous = before[0].header_sha256
    way = followed(pieces, previous, start, last)
    chosen |= {number: entry.header_sha256 for number, entry in enumerate(way, start)}
    # What comes after leads from somewhere else.
    return chosen | dict.fromkeys(range(start + len(way), last + 1))


def followed(pieces: _Pieces, previous: bytes | None, first: int, last: int) -> list[IndexedHeader]:
    """Return the pieces from number ``first`` on that follow ``previous``, as writer and readers take them.

    Of several that follow one, that from which the chain leads farthest: what another writer left of the
    same number may be longer, and what was acknowledged since goes on from its own.
    """
    reaches: dict[bytes, tuple[int, LSN]] = {}
    for number in range(last, first - 1, -1):
        for entry in pieces.get(number, ()):
            digest, after = entry.header_sha256, pieces.get(number + 1, ())
            beyond = [
                reaches[one.header_sha256] for one in after if _previous(one) == digest and number < last
            ]
            reaches[digest] = max([(entry.header.timeline.number, entry.header.end), *beyond])
    way: list[IndexedHeader] = []
    for number in range(first, last + 1):
        following = [one for one in pieces.get(number, ()) if _previous(one) == previous]
        if not following:
            break
        way.append(max(following, key=lambda one: (reaches[one.header_sha256], one.header_sha256)))
        previous = way[-1].header_sha256
    return way


def _back_from_head(
    pieces: _Pieces, head: HeadRecord | None, first: int, last: int
) -> dict[int, bytes | None]:
    """Return what the newest head, or the one piece after the stretch, leads back to."""
    signed = 0 if head is None else head.piece_sequence
    after = pieces.get(last + 1, ())
    if head is not None and first <= signed <= last:
        number, wanted = signed, head.piece_sha256
    elif last < signed and len(after) == 1:
        number, wanted = last, _previous(after[0])
    else:
        return {}
    chosen: dict[int, bytes | None] = {}
    while number >= first and wanted is not None:
        entry = next((one for one in pieces.get(number, ()) if one.header_sha256 == wanted), None)
        if entry is None:
            break
        chosen[number] = wanted
        number, wanted = number - 1, _previous(entry)
    return chosen


def _previous(entry: IndexedHeader) -> bytes | None:
    assert isinstance(entry.header, PieceHeader)
    return entry.header.previous
