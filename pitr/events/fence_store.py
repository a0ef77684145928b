"""Fences in the store: many in one sealed object, each object signed by the host and naming the one before.

A row in the database can be edited by whoever takes the database over; these cannot.  So where both speak,
the signed copy counts.  Reference: docs/format.md §6.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.errors import MalformedValue, NotAuthentic
from pitr.events.fence import Fence
from pitr.events.fence_choice import Span, end_before, is_before_end_of, topic_of
from pitr.events.fence_code import TEXT_BYTES_MAX, decode_fence, encode_fence
from pitr.events.fence_record import COUNT_MAX, KIND, FencePlace, FencesHeader
from pitr.events.partition import TopicPartition
from pitr.judged_puts import HEADER_BYTES_MAX, Place, SignedKind
from pitr.layout import ArchiveId, fences_key, fences_sequence
from pitr.pipeline.headed import (
    ENVELOPE_BYTES_MAX,
    HEADER_READ_BYTES,
    PREFIX_BYTES,
    encode_headed,
    header_bytes,
    open_header,
    split_headed,
    verify_body,
)
from pitr.pipeline.keys import DataKey
from pitr.pipeline.seal import Context, open_container, seal
from pitr.pipeline.sign import Signer, payload_sha256
from pitr.repository import Repository
from pitr.verified import BAD_MAX, VerifiedSearch, check_place, get_start_verified, get_verified
from pitr.wal_reader import DataKeySource
from storage.store import ObjectConflict, ObjectMissing

# Opened at once, so bounded; some hundred fences of a thousand partitions.
CONTENT_BYTES_MAX: Final = 32 << 20
# As with heads: so many that are bad are no rot but an attack, and a reader stops.


@dataclass(frozen=True, slots=True)
class ListedFences:
    """A verified header and the SHA-256 of its payload, which the next one names."""

    header: FencesHeader
    payload_sha256: bytes


@dataclass(frozen=True, slots=True)
class WrittenFence:
    """A fence as it waits to be put: its text, a tenth of the value's size, and where it lies."""

    place: FencePlace
    text: str

    @classmethod
    def of(cls, fence: Fence) -> WrittenFence:
        """Write a fence that is whole.  Raises MalformedValue for one that is too large."""
        return cls(FencePlace.of(fence), encode_fence(fence))


def _place(payload: dict[str, object], _key: str) -> Place:
    header = FencesHeader.from_payload(payload)
    return Place(header.repository, fences_key(header.archive, header.sequence))


_SIGNED: Final = SignedKind(KIND, _place, HEADER_BYTES_MAX, is_headed=True)


class FenceWriter:
    """Puts fences of one archive in their order.  Not thread-safe.

    ``data_key`` gives the key of the hour's WAL: what a fence is good for ends with that WAL, and so does its
    envelope.
    """

    def __init__(
        self,
        repository: Repository,
        archive: ArchiveId,
        signer: Signer,
        data_key: Callable[[datetime], DataKey],
    ) -> None:
        self._repository: Final = repository
        self._archive: Final = archive
        self._signer: Final = signer
        self._data_key: Final = data_key
        self._last: ListedFences | None = None
        self._knows_last = False
        self._waiting: tuple[FencesHeader, bytes, int] | None = None

    def put(self, fences: Sequence[WrittenFence], now: datetime) -> int:
        """Put the first of these as one object, and return how many those are.

        Raises StoreError and NotAuthentic; then none counts as put, and the call is repeated with a list that
        begins alike: what was sealed is kept and sent again, never sealed twice.
        """
        if self._waiting is None:
            if not self._knows_last:
                self._last, self._knows_last = FenceReader(self._repository).newest(self._archive), True
            self._waiting = self._sealed(_fitting(fences), now)
        header, body, count = self._waiting
        try:
            self._repository.puts.put(fences_key(self._archive, header.sequence), body, kind=_SIGNED)
        except ObjectConflict:
            # Another object has the name: one of an earlier run that only a region had, or another writer's.
            self._waiting, self._knows_last = None, False
            raise
        self._last = ListedFences(header, payload_sha256(split_headed(body).envelope))
        self._waiting = None
        return count

    def _sealed(self, fences: Sequence[WrittenFence], now: datetime) -> tuple[FencesHeader, bytes, int]:
        key = self._data_key(now)
        last = self._last
        header = FencesHeader(
            self._repository.repository_id,
            self._archive,
            1 if last is None else last.header.sequence + 1,
            None if last is None else last.payload_sha256,
            len(fences),
            fences[0].place,
            fences[-1].place,
            key.key_id,
        )
        content = "\n".join(fence.text for fence in fences).encode("ascii")
        body = encode_headed(header.to_payload(), seal(content, key, _context(header)), self._signer)
        return header, body, len(fences)


def _fitting(fences: Sequence[WrittenFence]) -> Sequence[WrittenFence]:
    """Return the first fences that go into one object, at least one."""
    if not fences:
        raise ValueError("an object holds at least one fence")
    size_bytes, count = 0, 0
    for fence in fences[:COUNT_MAX]:
        size_bytes += len(fence.text) + 1
        if count and size_bytes > CONTENT_BYTES_MAX:
            break
        count += 1
    return fences[:count]


class FenceReader:
    """Reads the fences of a repository's archives.  Thread-safe as far as the store is."""

    def __init__(self, repository: Repository) -> None:
        self._repository: Final = repository

    def sequences(self, archive: ArchiveId) -> list[int]:
        """Return the numbers of the objects that are listed, the newest first; unverified."""
        return [
            fences_sequence(info.key) for info in self._repository.store.list_objects(f"fences/{archive}/")
        ]

    def header(self, archive: ArchiveId, sequence: int) -> ListedFences:
        """Return one verified header.  Raises ObjectMissing, NotAuthentic, StoreError."""
        key, store = fences_key(archive, sequence), self._repository.store

        def read(start: bytes) -> ListedFences:
            return self._read_header(archive, key, start)

        def read_if_whole(start: bytes) -> ListedFences | None:
            return None if header_bytes(start) > len(start) == HEADER_READ_BYTES else read(start)

        found = get_start_verified(store, key, HEADER_READ_BYTES, read_if_whole)
        return found or get_start_verified(store, key, PREFIX_BYTES + ENVELOPE_BYTES_MAX, read)

    def read(self, archive: ArchiveId, sequence: int, data_keys: DataKeySource) -> tuple[Fence, ...]:
        """Return the fences of one object, oldest first.

        Raises ObjectMissing, NotAuthentic, KeyMissing, StoreError; MalformedValue if the host sealed what is
        no fence.
        """
        found, body = self._whole(archive, sequence)
        header = found.header
        data_key = data_keys.get(archive, header.key_id)
        content = open_container(
            body, data_key, _context(header), content_bytes_max=CONTENT_BYTES_MAX + TEXT_BYTES_MAX
        )
        fences = tuple(decode_fence(line.decode("ascii", "replace")) for line in content.split(b"\n"))
        if len(fences) != header.count or FencePlace.of(fences[-1]) != header.last:
            raise MalformedValue(f"fences {sequence} are others than their header says")
        return fences

    def verify(self, archive: ArchiveId, sequence: int) -> bytes:
        """Read a whole object, compare it with its signed header, and return the digest of that header.

        Opens nothing, so it needs no key.  Raises ObjectMissing, NotAuthentic, StoreError.
        """
        return self._whole(archive, sequence)[0].payload_sha256

    def newest(self, archive: ArchiveId) -> ListedFences | None:
        """Return the newest header that holds; None if there is none.

        Raises NotAuthentic if they are all bad (``VerifiedSearch``), StoreError.
        """
        store, what = self._repository.store, f"objects of fences of archive {archive}"
        search = VerifiedSearch(store, f"fences/{archive}/", what)
        return search.first(lambda key: self.header(archive, fences_sequence(key)))

    def last_before(
        self, archive: ArchiveId, spans: Sequence[Span], data_keys: DataKeySource
    ) -> tuple[Fence | None, tuple[str, ...]]:
        """Return the last fence whose mark is surely in a history, and what is wrong with objects on the way.

        ``spans`` are the history's timelines, each with its end.  Objects are in the order of (timeline,
        LSN), so it is found by halving: some twenty headers, however many there are.  Raises NotAuthentic
        after BAD_MAX bad objects, KeyMissing, StoreError.
        """
        faults: list[str] = []
        ordered = list(reversed(self.sequences(archive)))
        for span in reversed(spans):
            for sequence in self._downwards(archive, ordered, span, faults):
                try:
                    fences = self.read(archive, sequence, data_keys)
                except (NotAuthentic, MalformedValue, ObjectMissing) as cause:
                    _note(faults, f"fences {sequence} cannot be used: {cause}")
                    continue
                for fence in reversed(fences):
                    if is_before_end_of(span, FencePlace.of(fence)):
                        return fence, tuple(faults)
                if fences[0].mark.timeline.number < span.timeline.number:
                    break
        return None, tuple(faults)

    def around_offset(
        self, archive: ArchiveId, at: TopicPartition, offset: int, data_keys: DataKeySource
    ) -> tuple[Fence | None, Fence | None]:
        """Return the last fence whose end before the mark is not above ``offset``, and the first whose is.

        So the record was appended after the one had looked, and before the other's mark.  Only fences of the
        newest topic of the name count.  Found by halving.  Raises NotAuthentic, KeyMissing, StoreError.
        """
        ordered = list(reversed(self.sequences(archive)))
        newest = self._known(archive, ordered, len(ordered) - 1, at, data_keys)
        if newest is None:
            return None, None
        topic_id = topic_of(newest[1][-1], at.topic)

        def is_beyond(fence: Fence) -> bool:
            end = end_before(fence, at)
            return topic_of(fence, at.topic) == topic_id and end is not None and end > offset

        low, high = 0, newest[0] + 1
        while low < high:
            middle = (low + high) // 2
            found = self._known(archive, ordered, middle, at, data_keys)
            low, high = (low, middle) if found is not None and is_beyond(found[1][-1]) else (middle + 1, high)
        here = self._known(archive, ordered, low, at, data_keys) if low < len(ordered) else None
        after = None if here is None else next((one for one in here[1] if is_beyond(one)), None)
        place = len(ordered) - 1 if here is None else here[0]
        earlier = [] if here is None else [one for one in here[1] if not is_beyond(one)]
        if not earlier:
            below = self._known(archive, ordered, place if here is None else place - 1, at, data_keys)
            earlier = [] if below is None else list(below[1])
        same = [one for one in earlier if topic_of(one, at.topic) == topic_id]
        return (same[-1] if same else None), after

    def _known(
        self,
        archive: ArchiveId,
        ordered: Sequence[int],
        index: int,
        at: TopicPartition,
        data_keys: DataKeySource,
    ) -> tuple[int, tuple[Fence, ...]] | None:
        """Return the object at or below an index that knows a partition, with those of its fences that do."""
        for place in range(index, -1, -1):
            fences = self.read(archive, ordered[place], data_keys)
            known = tuple(one for one in fences if end_before(one, at) is not None)
            if known:
                return place, known
        return None

    def _downwards(
        self, archive: ArchiveId, ordered: Sequence[int], span: Span, faults: list[str]
    ) -> Iterator[int]:
        """Yield objects downwards from the last that begins in or before a span."""
        low, high = 0, len(ordered)
        while low < high:
            middle = (low + high) // 2
            try:
                first = self.header(archive, ordered[middle]).header.first
                is_after = (first.timeline.number, first.committed_by) > (span.timeline.number, span.end)
            except (NotAuthentic, MalformedValue, ObjectMissing) as cause:
                _note(faults, f"fences {ordered[middle]} cannot be used: {cause}")
                # Look below: a fence that is too early is safe, and costs only more to replay.
                is_after = True
            low, high = (low, middle) if is_after else (middle + 1, high)
        yield from reversed(ordered[:low])

    def _whole(self, archive: ArchiveId, sequence: int) -> tuple[ListedFences, memoryview]:
        key = fences_key(archive, sequence)

        def read(whole: bytes) -> tuple[ListedFences, memoryview]:
            found, parts = self._read_header(archive, key, whole), split_headed(whole)
            verify_body(open_header(whole, self._repository.verifier(archive), KIND), parts.body)
            return found, parts.body

        return get_verified(self._repository.store, key, read)

    def _read_header(self, archive: ArchiveId, key: str, start: bytes) -> ListedFences:
        repository = self._repository
        payload = open_header(start, repository.verifier(archive), KIND)
        header = FencesHeader.from_payload(payload)
        expected = fences_key(header.archive, header.sequence)
        check_place(key, expected, header.repository, repository.repository_id)
        return ListedFences(header, payload_sha256(split_headed(start).envelope))


def broken_chain(newer: ListedFences, older: ListedFences) -> str | None:
    """Say what is wrong between two neighbours, the newer one first; None if the one names the other."""
    after, before = newer.header, older.header
    if after.sequence != before.sequence + 1:
        return f"fences {before.sequence + 1} to {after.sequence - 1} are missing"
    if after.previous != older.payload_sha256:
        return f"fences {after.sequence} do not go on from fences {before.sequence} as they are stored"
    return None


def _context(header: FencesHeader) -> Context:
    """Return the context that a body is sealed in (docs/format.md §3.1)."""
    return Context(header.repository, header.archive, KIND, str(header.sequence))


def _note(faults: list[str], text: str) -> None:
    if text not in faults:
        faults.append(text)
    if len(faults) >= BAD_MAX:
        raise NotAuthentic(
            f"{len(faults)} objects of fences are bad",
            detail=faults[0],
            hint="look at the other regions one by one with `--region`",
        )
