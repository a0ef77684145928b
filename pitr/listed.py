"""Listed names, read: a name that is none of ours is passed over, and told.

Whoever may write to a region's folder can leave one there (a file manager, NFS, a person): no object of ours
is the worse for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from pitr.catalogue.records import HistoryRecord
from pitr.errors import MalformedValue, NotInitialised
from pitr.layout import ArchiveId
from pitr.verified import RefusedObject, VerifiedSearch
from pitr.wal.timeline import TimelineId
from storage.store import ObjectInfo, ObjectStore

# Enough to act on.
REFUSED_NAMES_MAX: Final = 1000

# Where strays are told; None: nobody wants to know.
Strays = list[RefusedObject] | None
_T = TypeVar("_T")


def read_names(
    listing: Iterable[ObjectInfo], parse: Callable[[str], _T], refused: Strays = None
) -> Iterator[_T]:
    """Yield what ``parse`` makes of each key.  One that it refuses is added to ``refused``, up to a bound."""
    for _, value in named_objects(listing, parse, refused):
        yield value


def named_objects(
    listing: Iterable[ObjectInfo], parse: Callable[[str], _T], refused: Strays = None
) -> Iterator[tuple[ObjectInfo, _T]]:
    """Yield the same together with what is listed."""
    for info in listing:
        try:
            value = parse(info.key)
        except MalformedValue as cause:
            if refused is not None and len(refused) < REFUSED_NAMES_MAX:
                refused.append(RefusedObject(info.key, cause.message))
            continue
        yield info, value


def listed_archives(
    store: ObjectStore, read_epoch: Callable[[ArchiveId], object], refused: Strays
) -> list[ArchiveId]:
    """Return the archives whose epoch record holds; see ``Repository.archives``.

    ``read_epoch`` raises NotAuthentic for one that must not be used, NotInitialised if there is none.
    """
    # Of real ones each is good in some region, so one that is not is enough to leave out who lists it.
    search = VerifiedSearch(store, "epochs/", "epoch records", bad_max=1, is_lenient=True)

    def read(key: str) -> ArchiveId | RefusedObject:
        try:
            archive = ArchiveId.parse(key.removeprefix("epochs/"))
        except MalformedValue as cause:
            return RefusedObject(key, cause.message)
        try:
            read_epoch(archive)
        except NotInitialised as cause:
            raise MalformedValue(cause.message) from cause
        return archive

    archives: list[ArchiveId] = []
    strays: list[RefusedObject] = []
    for found in search.each(read):
        if isinstance(found, ArchiveId):
            archives.append(found)
        elif len(strays) < REFUSED_NAMES_MAX:
            strays.append(found)
    if refused is not None:
        refused += [*strays, *search.passed]
    archives += [ArchiveId.parse(one.key.removeprefix("epochs/")) for one in search.kept]
    return sorted(archives, key=lambda one: (one.system_identifier, one.epoch))


@dataclass(frozen=True, slots=True)
class ListedHistories:
    """The timeline history files that hold, ascending by number, and those that cannot be used.

    ``passed`` lie in regions that can be left out: no quorum has them.  ``kept`` may be real ones.
    """

    records: tuple[HistoryRecord, ...]
    passed: tuple[RefusedObject, ...]
    kept: tuple[RefusedObject, ...]

    def with_unread(self, read_history: Callable[[TimelineId], HistoryRecord]) -> list[HistoryRecord]:
        """Return all that may be real ones.  Raises what ``read_history`` says of one that does not hold."""
        unread = [read_history(TimelineId.parse(one.key.rpartition("/")[2])) for one in self.kept]
        return sorted([*self.records, *unread], key=lambda record: record.timeline)


def listed_histories(
    store: ObjectStore, prefix: str, read_history: Callable[[TimelineId], HistoryRecord]
) -> ListedHistories:
    """Return the histories below ``prefix``; ``read_history`` raises for one that must not be used."""
    search = VerifiedSearch(store, prefix, "history files", bad_max=1, is_lenient=True)
    folder = prefix[: prefix.rindex("/") + 1]
    strays: list[RefusedObject] = []

    def read(key: str) -> HistoryRecord | None:
        try:
            timeline = TimelineId.parse(key.removeprefix(folder))
        except MalformedValue as cause:
            if len(strays) < REFUSED_NAMES_MAX:
                strays.append(RefusedObject(key, cause.message))
            return None
        return read_history(timeline)

    records = tuple(record for record in search.each(read) if record is not None)
    return ListedHistories(records, (*strays, *search.passed), tuple(search.kept))
