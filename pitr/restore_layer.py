"""One backup of a chain as a restore reads it: its indexes, and of its packs what is wanted."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.errors import KeyMissing, MalformedValue, NoGoodCopy, NotAuthentic
from pitr.layout import part_and_number
from pitr.patience import with_patience
from pitr.pipeline.frames import LENGTH
from pitr.pipeline.keys import DataKey
from pitr.pipeline.packs import FramePlace, IndexPack
from pitr.pipeline.seal import HEADER_BYTES, Context, Opener, iter_frames
from storage.store import CopyDamaged, ObjectMissing, ObjectStore

# A request costs about as much as so many bytes; frames that lie nearer to each other are read together.
_GAP_BYTES: Final = 256 * 1024
# Of a pack of which more than this is wanted all is read, and its digest compared with the manifest.
_WHOLE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Fetching:
    """How objects are fetched: how long it is tried, until when, and who counts the bytes."""

    store: ObjectStore
    patience_s: float
    stopping: threading.Event
    count: Callable[[int], None]


class Layer:
    """One backup: its signed manifest, and the key that opens its objects.  Thread-safe.

    ``other_keys`` open the packs of attempts that it resumed, by id.
    """

    def __init__(
        self,
        manifest: BackupManifest,
        data_key: DataKey,
        fetching: Fetching,
        other_keys: Mapping[bytes, DataKey] | None = None,
    ) -> None:
        self.manifest = manifest
        self._data_key = data_key
        self._other_keys = other_keys or {}
        self._fetching = fetching

    def parts(self) -> dict[int, tuple[list[StoredObject], dict[int, StoredObject]]]:
        """Return each part's index objects in order, and its packs by number.  Raises MalformedValue."""
        packs: dict[int, dict[int, StoredObject]] = {}
        for stored in self.manifest.packs:
            part, number = part_and_number(stored.key)
            if packs.setdefault(part, {}).setdefault(number, stored) is not stored:
                raise MalformedValue(f"pack {number} of part {part} is in the manifest twice")
        found = {}
        for part, indexes in sorted(_by_part(self.manifest.indexes).items()):
            found[part] = (indexes, packs.pop(part, {}))
        if packs:
            raise MalformedValue(f"parts {sorted(packs)} are in the manifest and have no index")
        return found

    def open_index(self, part: int, stored: StoredObject) -> Iterator[bytes]:
        """Yield the contents of the frames of one index object."""
        context = self._context("index", part, part_and_number(stored.key)[1])
        yield from iter_frames(self._get(stored), self._data_key, context)

    def frames(
        self, part: int, pack: IndexPack, stored: StoredObject, wanted: Sequence[int]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the number and content of the frames that are ``wanted``, ascending.

        Raises NoGoodCopy if no region has them as they were written.
        """
        if fetch_bytes(pack, stored, wanted) == stored.size_bytes:
            context = self._context("pack", part, pack.number)
            body = memoryview(self._get(stored))
            opener = Opener(bytes(body[:HEADER_BYTES]), self._key_of(stored), context)
            last = len(pack.frames) - 1
            for number in wanted:
                sealed = _sealed(body, 0, pack.frames[number])
                yield number, opener.open_frame(sealed, number, last=number == last)
            return
        _, opener = self.open_pack(part, pack, stored)
        for number, _sealed_frame, content in self.sealed_frames(stored, pack, opener, wanted):
            yield number, content

    def open_pack(self, part: int, pack: IndexPack, stored: StoredObject) -> tuple[bytes, Opener]:
        """Fetch a pack's header alone; return it, and what opens its frames."""
        context = self._context("pack", part, pack.number)
        data_key = self._key_of(stored)
        header = self._get_range(stored, 0, HEADER_BYTES, _is_header(data_key, context))
        return header, Opener(header, data_key, context)

    def sealed_frames(
        self, stored: StoredObject, pack: IndexPack, opener: Opener, wanted: Sequence[int]
    ) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield number, sealed bytes and content of the frames that are ``wanted``, ascending."""
        for numbers in _near(pack.frames, wanted):
            yield from self._get_frames(stored, pack, opener, numbers)

    def _get_frames(
        self, stored: StoredObject, pack: IndexPack, opener: Opener, numbers: Sequence[int]
    ) -> Iterator[tuple[int, bytes, bytes]]:
        start, end = pack.frames[numbers[0]].offset, _end(pack.frames[numbers[-1]])
        last = len(pack.frames) - 1
        contents: list[tuple[int, bytes, bytes]] = []

        def check(body: bytes) -> None:
            """Open the frames: a region whose bytes do not open is passed over for the next one."""
            contents.clear()
            try:
                for number in numbers:
                    sealed = bytes(_sealed(memoryview(body), start, pack.frames[number]))
                    contents.append((number, sealed, opener.open_frame(sealed, number, last=number == last)))
            except (NotAuthentic, MalformedValue) as cause:
                raise CopyDamaged(f"{stored.key} at {start}: {cause}") from cause

        self._get_range(stored, start, end - start, check)
        yield from contents

    def _key_of(self, stored: StoredObject) -> DataKey:
        if stored.key_id in {None, self._data_key.key_id}:
            return self._data_key
        try:
            return self._other_keys[stored.key_id]
        except KeyError as cause:
            raise KeyMissing(f"the data key of {stored.key} was not opened") from cause

    def _context(self, kind: Literal["pack", "index"], part: int, number: int) -> Context:
        name = f"{self.manifest.backup}/{part:04d}/{number:06d}"
        return Context(self.manifest.repository, self.manifest.archive, kind, name)

    def _get(self, stored: StoredObject) -> bytes:
        """Return the object as the manifest has it, from whichever region has it so."""

        def check(body: bytes) -> None:
            if len(body) != stored.size_bytes or hashlib.sha256(body).digest() != stored.sha256:
                raise CopyDamaged(f"{stored.key} is not the object that the manifest names")

        return self._patiently(stored, lambda: self._fetching.store.get(stored.key, check=check))

    def _get_range(
        self, stored: StoredObject, start: int, length: int, check: Callable[[bytes], None]
    ) -> bytes:
        return self._patiently(
            stored, lambda: self._fetching.store.get_range(stored.key, start, length, check=check)
        )

    def _patiently(self, stored: StoredObject, get: Callable[[], bytes]) -> bytes:
        try:
            body = with_patience(get, patience_s=self._fetching.patience_s, stopping=self._fetching.stopping)
        except (CopyDamaged, ObjectMissing) as cause:
            raise NoGoodCopy(
                f"no region has a good copy of {stored.key}",
                detail=str(cause),
                hint=f"restore from other backups: --without {self.manifest.backup}",
            ) from cause
        self._fetching.count(len(body))
        return body


def _is_header(data_key: DataKey, context: Context) -> Callable[[bytes], None]:
    def check(header: bytes) -> None:
        try:
            Opener(header, data_key, context)
        except NotAuthentic as cause:
            raise CopyDamaged(str(cause)) from cause

    return check


def fetch_bytes(pack: IndexPack, stored: StoredObject, wanted: Collection[int]) -> int:
    """Return about how many bytes it takes to fetch these frames: all of a pack of which most is wanted."""
    sealed_bytes = sum(pack.frames[number].sealed_bytes for number in wanted)
    return (
        stored.size_bytes if sealed_bytes > stored.size_bytes * _WHOLE_SHARE else HEADER_BYTES + sealed_bytes
    )


def _by_part(objects: Iterable[StoredObject]) -> dict[int, list[StoredObject]]:
    """Group index objects by part, in each by number."""
    parts: dict[int, list[tuple[int, StoredObject]]] = {}
    for stored in objects:
        part, number = part_and_number(stored.key)
        parts.setdefault(part, []).append((number, stored))
    ordered = {}
    for part, numbered in parts.items():
        numbered.sort(key=lambda pair: pair[0])
        if [number for number, _ in numbered] != list(range(len(numbered))):
            raise MalformedValue(f"index objects of part {part} are missing from the manifest")
        ordered[part] = [stored for _, stored in numbered]
    return ordered


def _end(place: FramePlace) -> int:
    return place.offset + LENGTH.size + place.sealed_bytes


def _sealed(body: memoryview, begin: int, place: FramePlace) -> memoryview:
    """Return a frame of a pack from bytes that begin at ``begin`` of it."""
    start = place.offset + LENGTH.size - begin
    return body[start : start + place.sealed_bytes]


def _near(places: Sequence[FramePlace], wanted: Sequence[int]) -> Iterator[list[int]]:
    """Yield ``wanted`` in groups of frames that are cheaper to read together."""
    group: list[int] = []
    for number in wanted:
        if group and places[number].offset - _end(places[group[-1]]) > _GAP_BYTES:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
