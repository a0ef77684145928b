"""Pairs of offsets that MirrorMaker 2 writes down: a source's record, and where its copy is.  Pure.

A pair is always true of the target topic that it was written for.  It is no longer true of one that was made
anew or cut: such pairs are forgotten here.  A mirror that was killed goes back and copies again, so upstream
offsets may fall; that begins another *epoch*.

Until the mirror has caught up again, some records have copies only in the epoch before.  So a pair may be
built upon only once it is *settled*: the source's end was read after the pair was seen, and a later pair is
at or past that end.  Then all that was on the target before the pair, and follows it, is there once more.
Reference: Apache Kafka, ``OffsetSync``, ``OffsetSyncWriter``; big-endian, without a version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, Protocol

from pitr.errors import MalformedValue
from pitr.events.partition import OFFSET_MAX, TopicPartition

_TOPIC_BYTES_MAX: Final = 249
_LENGTH: Final = struct.Struct(">h")
_PARTITION: Final = struct.Struct(">i")
_OFFSETS: Final = struct.Struct(">qq")
# Neighbours no further apart than this need no pair between them: a search reads at most so many records.
SPACING_OFFSETS: Final = 500


@dataclass(frozen=True, slots=True)
class SyncPair:
    """The source's record at ``upstream`` has a copy at ``downstream`` of the target."""

    upstream: int
    downstream: int

    def __post_init__(self) -> None:
        if self.upstream < 0 or self.downstream < 0:
            raise MalformedValue(f"not a pair of offsets: {self.upstream}, {self.downstream}")


@dataclass(frozen=True, slots=True)
class Sync:
    """A record of the syncs topic; ``at`` is the partition at the *source*."""

    at: TopicPartition
    pair: SyncPair


@dataclass(frozen=True, slots=True)
class KnownPairs:
    """What is known of a partition of the source; ``topic_id`` is that of the target's topic.

    Downstream offsets rise.  Pairs up to the downstream offset ``settled`` are settled; -1: none is.
    """

    topic_id: str
    pairs: tuple[SyncPair, ...]
    settled: int = -1


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A pair in the order in which it was seen; None: what was known of the partition is void.

    ``settled`` is as in ``KnownPairs``, once this pair was seen.
    """

    number: int
    at: TopicPartition
    topic_id: str
    settled: int
    pair: SyncPair | None


class PairSource(Protocol):
    """Whoever keeps pairs: the daemon's book, or its copy in the store."""

    def known(self, at: TopicPartition) -> KnownPairs | None:
        """Return the pairs of a partition of the source; None if none was ever seen."""
        ...


@dataclass(frozen=True, slots=True)
class Epoch:
    """Pairs in which both offsets rise: one life of the mirror, or several that did not go back."""

    pairs: tuple[SyncPair, ...]

    @property
    def first(self) -> SyncPair:
        return self.pairs[0]


def decode_sync(key: bytes | None, value: bytes | None) -> Sync:
    """Decode a record of the syncs topic.  Raises MalformedValue for anything else."""
    if key is None or value is None:
        raise MalformedValue("a record of the syncs topic has a key and a value")
    return Sync(_decode_key(key), _decode_pair(value))


def _decode_key(key: bytes) -> TopicPartition:
    length = _LENGTH.unpack_from(key)[0] if len(key) >= _LENGTH.size else -1
    if not 0 < length <= _TOPIC_BYTES_MAX or len(key) != _LENGTH.size + length + _PARTITION.size:
        raise MalformedValue(f"not a key of the syncs topic: {len(key)} bytes")
    name = key[_LENGTH.size : _LENGTH.size + length]
    if not name.isascii():
        raise MalformedValue("not a Kafka topic's name: it is not ASCII")
    return TopicPartition(name.decode("ascii"), _PARTITION.unpack_from(key, _LENGTH.size + length)[0])


def _decode_pair(value: bytes) -> SyncPair:
    if len(value) != _OFFSETS.size:
        raise MalformedValue(f"not a value of the syncs topic: {len(value)} bytes")
    return SyncPair(*_OFFSETS.unpack(value))


def encode_sync(sync: Sync) -> tuple[bytes, bytes]:
    """Return key and value as MirrorMaker writes them."""
    name = sync.at.topic.encode("ascii")
    key = _LENGTH.pack(len(name)) + name + _PARTITION.pack(sync.at.partition)
    return key, _OFFSETS.pack(sync.pair.upstream, sync.pair.downstream)


class Step(StrEnum):
    """What a pair does to those before it, of the same target topic."""

    REPEATS = "repeats"
    FOLLOWS = "follows"
    RESETS = "resets"
    """The target's topic was made anew or cut: of copies made before, nobody knows which are still there."""


def step(last: SyncPair | None, pair: SyncPair) -> Step:
    """Return what ``pair`` does, which was written after ``last``."""
    if last == pair:
        return Step.REPEATS
    return Step.RESETS if last is not None and last.downstream >= pair.downstream else Step.FOLLOWS


def add_pairs(known: Sequence[SyncPair], new: Iterable[SyncPair]) -> tuple[SyncPair, ...]:
    """Return ``known`` and then ``new``, from the last fall of the downstream offset on."""
    pairs = list(known)
    for pair in new:
        what = step(pairs[-1] if pairs else None, pair)
        if what is Step.RESETS:
            pairs.clear()
        if what is not Step.REPEATS:
            pairs.append(pair)
    return tuple(pairs)


def epochs(pairs: Sequence[SyncPair]) -> tuple[Epoch, ...]:
    """Split pairs, whose downstream offsets rise, wherever the upstream offset does not."""
    found: list[list[SyncPair]] = []
    for pair in pairs:
        if found and found[-1][-1].upstream < pair.upstream:
            found[-1].append(pair)
        else:
            found.append([pair])
    return tuple(Epoch(tuple(one)) for one in found)


def thin(pairs: Sequence[SyncPair], *, spacing: int = SPACING_OFFSETS) -> tuple[SyncPair, ...]:
    """Leave out pairs inside an epoch whose neighbours are within ``spacing`` target offsets.

    What is left bounds less tightly, but never wrongly: the first and the last pair of an epoch stay.
    """
    if len(pairs) < 3:
        return tuple(pairs)
    kept = [pairs[0]]
    for pair, following in pairwise(pairs[1:]):
        is_inside = kept[-1].upstream < pair.upstream < following.upstream
        if not (is_inside and following.downstream - kept[-1].downstream <= spacing):
            kept.append(pair)
    return (*kept, pairs[-1])


def at_most(pairs: Sequence[SyncPair], most: int) -> tuple[SyncPair, ...]:
    """Return at most ``most`` pairs: the older ones are thinned first, and in the end left out."""
    kept, spacing = tuple(pairs), SPACING_OFFSETS
    while len(kept) > most:
        older, newer = kept[: len(kept) // 2 + 1], kept[len(kept) // 2 + 1 :]
        spacing *= 2
        thinner = thin(older, spacing=spacing)
        # Each pair an epoch of its own: what is left out makes a bound looser, never wrong.
        kept = (*(thinner if len(thinner) < len(older) or spacing < OFFSET_MAX else ()), *newer)
    return kept


def above(pairs: Sequence[SyncPair], log_start: int) -> tuple[SyncPair, ...]:
    """Leave out pairs that only say where records were that the target no longer has.

    The last pair at or below ``log_start`` stays: it says which records were before it, and so are gone.
    """
    first = max((i for i, pair in enumerate(pairs) if pair.downstream <= log_start), default=0)
    return tuple(pairs[first:])
