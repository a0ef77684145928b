"""The signed chain of an archive: heads, pieces and segments, read from the store and checked.

Reads headers only, so it needs no key that opens anything.  What is checked is what a reader relies
on: every signature holds, each piece names its predecessor, the newest head speaks of pieces that
are there, and WAL is without a hole up to it.

Reference: docs/format.md §6.4, §7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pitr.catalogue.coverage import coverage_intervals
from pitr.catalogue.expiry_record import ExpireRecord
from pitr.catalogue.records import HeadRecord
from pitr.catalogue.wal_records import (
    CoverageInterval,
    IndexedHeader,
    PieceHeader,
    SegmentHeader,
    WalUnit,
)
from pitr.errors import MalformedValue, NotAuthentic, PitrError
from pitr.layout import ArchiveId
from pitr.repository import Repository
from pitr.wal.segment import SegmentName
from pitr.wal_chain import contested, doubtful, foreign_pieces, left_by_crash, unacknowledged
from storage.store import StoreError
from verifiers.base import Finding, Severity

# Heads are walked back this far: a day of them, one each 30 s.
HEADS_MAX = 2880
_FORK_HINT = "find out who else has the signing key"
_HINT = "look at each region alone with --region: another one may have good copies"


@dataclass(slots=True)
class _Chain:
    """What was read of an archive's WAL."""

    pieces: dict[int, IndexedHeader] = field(default_factory=dict)
    segments: list[IndexedHeader] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    gone: ExpireRecord | None = None


def check_chain(repository: Repository, archive: ArchiveId) -> list[Finding]:
    """Check one archive; findings of what is wrong, or one that says how much was right."""
    subject = str(archive)
    try:
        chain = _read(repository, archive)
        findings = [
            *chain.findings,
            *_check_pieces(chain, subject),
            *_check_heads(repository, archive, chain),
        ]
        findings += _check_coverage(chain, subject)
    except (PitrError, StoreError) as error:
        hint = error.hint if isinstance(error, PitrError) else "the check may be repeated"
        return [Finding("chain.read", Severity.FAIL, subject, str(error), hint)]
    if not any(finding.severity is Severity.FAIL for finding in findings):
        text = f"{len(chain.pieces)} pieces and {len(chain.segments)} segments are signed and linked"
        findings.append(Finding("chain.pieces", Severity.OK, subject, text))
    return findings


def _read(repository: Repository, archive: ArchiveId) -> _Chain:
    pieces: list[IndexedHeader] = []
    # It speaks of what was put before it, so it is read before what is listed.
    head = repository.latest_head(archive)
    expiry = repository.expiry.newest(archive)
    chain = _Chain(gone=None if expiry is None else expiry.record)
    for timeline in repository.wal.timelines(archive):
        for key in repository.wal_objects(archive, timeline):
            try:
                entry = repository.wal.header(key)
            except (NotAuthentic, MalformedValue) as refused:
                chain.findings.append(
                    Finding(
                        "chain.signature", Severity.FAIL, str(key), refused.detail or refused.message, _HINT
                    )
                )
                continue
            if isinstance(entry.header, SegmentHeader):
                chain.segments.append(entry)
            else:
                pieces.append(entry)
    _settle(chain, archive, head, pieces)
    return chain


def _settle(
    chain: _Chain, archive: ArchiveId, head: HeadRecord | None, pieces: Sequence[IndexedHeader]
) -> None:
    """Take of each number the piece that the chain leads over, and say which others there are.

    What nobody was told of is no part of it: it was, or is, under way.
    """
    keys = [entry.key for entry in pieces]
    twice = contested(keys)
    foreign = foreign_pieces(pieces, head, doubtful(keys, head)) if twice else frozenset()
    spare = left_by_crash(pieces, foreign)
    wholes = [one.header.last_piece for one in chain.segments if isinstance(one.header, SegmentHeader)]
    stored_to = max(wholes, default=0)
    under_way = unacknowledged([key for key in keys if key not in foreign], head, stored_to=stored_to)
    for entry in pieces:
        number = _sequence(entry)
        if entry.key in spare:
            text = f"piece {number} was signed twice, and no reader uses {entry.key}: a crash lost the spool"
            chain.findings.append(Finding("chain.spare", Severity.WARN, str(archive), text))
        elif entry.key in foreign:
            _note_fork(chain, archive, f"piece {number} was signed twice: no head leads to {entry.key}")
        elif entry.key in under_way:
            continue
        elif (rival := chain.pieces.setdefault(number, entry)).header_sha256 != entry.header_sha256:
            _note_fork(chain, archive, f"piece {number} was signed twice: {rival.key} and {entry.key}")


def _note_fork(chain: _Chain, archive: ArchiveId, text: str) -> None:
    chain.findings.append(Finding("chain.fork", Severity.FAIL, str(archive), text, _FORK_HINT))


def _check_pieces(chain: _Chain, subject: str) -> Iterator[Finding]:
    """Check that each piece names the digest of the one before it, where that one is still there."""
    ordered = [chain.pieces[sequence] for sequence in sorted(chain.pieces)]
    for before, after in pairwise(ordered):
        header = after.header
        assert isinstance(header, PieceHeader)
        if header.sequence != _sequence(before) + 1:
            missing = f"pieces {_sequence(before) + 1} to {header.sequence - 1}"
            if not _is_retired(chain, _sequence(before) + 1, header.sequence - 1):
                text = f"{missing} are in no region, and no whole segment holds them"
                yield Finding("chain.gap", Severity.FAIL, subject, text, _HINT)
        elif header.previous != before.header_sha256:
            text = f"piece {header.sequence} does not follow the piece {_sequence(before)} that is stored"
            yield Finding("chain.link", Severity.FAIL, subject, text, _FORK_HINT)


def _sequence(entry: IndexedHeader) -> int:
    assert isinstance(entry.header, PieceHeader)
    return entry.header.sequence


def _is_retired(chain: _Chain, first: int, last: int) -> bool:
    """Tell whether whole segments hold pieces ``first`` to ``last``, or an expire record names them."""
    held: set[int] = set() if chain.gone is None else chain.gone.names_pieces(first, last)
    for entry in chain.segments:
        if isinstance(entry.header, SegmentHeader):
            held.update(range(max(first, entry.header.first_piece), min(last, entry.header.last_piece) + 1))
    return len(held) == last - first + 1


def _check_heads(repository: Repository, archive: ArchiveId, chain: _Chain) -> Iterator[Finding]:
    subject = str(archive)
    search = repository.find_head(archive)
    for refused in search.refused:
        yield Finding("chain.head", Severity.FAIL, refused.key, refused.reason, _HINT)
    if search.newest is None:
        severity = Severity.WARN if not chain.pieces else Severity.FAIL
        yield Finding(
            "chain.head", severity, subject, "there is no signed head", "start the daemon: pitr daemon"
        )
        return
    newest = search.newest.head
    piece = chain.pieces.get(newest.piece_sequence)
    if piece is not None and piece.header_sha256 != newest.piece_sha256:
        text = f"head {newest.sequence} names another piece {newest.piece_sequence} than is stored"
        yield Finding("chain.head", Severity.FAIL, subject, text, _FORK_HINT)
    elif (
        piece is None
        and newest.piece_sequence
        and not _is_retired(chain, newest.piece_sequence, newest.piece_sequence)
    ):
        text = f"head {newest.sequence} names piece {newest.piece_sequence}, which is in no region"
        yield Finding("chain.head", Severity.FAIL, subject, text, _HINT)
    walked = 1
    current = search.newest
    while current.head.sequence > 1 and walked < HEADS_MAX:
        try:
            before = repository.get_head(archive, current.head.sequence - 1)
        except (PitrError, StoreError) as error:
            yield Finding(
                "chain.head", Severity.FAIL, subject, f"head {current.head.sequence - 1}: {error}", _HINT
            )
            return
        if current.head.previous != before.payload_sha256:
            text = (
                f"head {current.head.sequence} does not follow the head {before.head.sequence} that is stored"
            )
            yield Finding("chain.head", Severity.FAIL, subject, text, _FORK_HINT)
            return
        current, walked = before, walked + 1
    yield Finding(
        "chain.head", Severity.OK, subject, f"{walked} heads up to {newest.sequence} are signed and linked"
    )


def _check_coverage(chain: _Chain, subject: str) -> Iterator[Finding]:
    units = [
        WalUnit(entry.key, entry.header.start, entry.header.end, entry.header.segment_bytes)
        for entry in [*chain.pieces.values(), *chain.segments]
    ]
    intervals = coverage_intervals(units)
    for before, after in pairwise(intervals):
        if before.timeline == after.timeline and not _is_expired(
            chain, before, after, units[0].segment_bytes
        ):
            text = f"WAL from {before.end} to {after.start} of timeline {before.timeline} is missing"
            yield Finding(
                "chain.coverage",
                Severity.WARN,
                subject,
                text,
                "targets in the hole are not restorable; see pitr wal list",
            )


def _is_expired(chain: _Chain, before: CoverageInterval, after: CoverageInterval, segment_bytes: int) -> bool:
    """Tell whether an expire record names every segment between two stretches of one timeline."""
    if chain.gone is None:
        return False
    first, last = before.end.offset // segment_bytes, after.start.last_segment_number(segment_bytes)
    one, other = (SegmentName.of(before.timeline, number, segment_bytes) for number in (first, last))
    return any(gone.holds(one) and gone.holds(other) for gone in chain.gone.wal)
