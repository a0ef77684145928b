"""What an expire record names, by key: a region that has deleted it lacks nothing, whoever still holds it.

A region that was down, or whose objects are locked, deletes later than the others.  Reference:
docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from pitr.catalogue.expiry_record import ExpireRecord, NumberedKind
from pitr.errors import MalformedValue, PitrError
from pitr.layout import envelope_key, fences_sequence, parse_wal_key, syncs_sequence, wal_index_range
from pitr.repository import Repository
from storage.store import StoreError


@dataclass(frozen=True)
class GoneKeys:
    """The keys of one archive that its newest expire record says are gone."""

    record: ExpireRecord

    def holds(self, key: str) -> bool:
        """Tell whether the object is gone.  A name that is none, or of another archive, is not."""
        kind, _, rest = key.partition("/")
        place = f"{self.record.archive}/"
        if not rest.startswith(place):
            return False
        try:
            return self._holds(kind, rest.removeprefix(place), key)
        except MalformedValue:
            return False

    def _holds(self, kind: str, name: str, key: str) -> bool:
        match kind:
            case "manifests":
                return name in self._backups
            case "backups":
                return name.partition("/")[0] in self._backups
            case "wal":
                return self.record.names_wal(parse_wal_key(key))
            case "walindex":
                first, last = wal_index_range(key)
                pieces = [gone.pieces for gone in self.record.wal if gone.pieces is not None]
                return any(begin <= first and last <= end for begin, end in pieces)
            case "envelopes":
                return key in self._envelopes
            case "fences":
                return fences_sequence(key) < self.record.beside.first(NumberedKind.FENCES)
            case "syncs":
                return syncs_sequence(key) < self.record.beside.first(NumberedKind.SYNCS)
            case "derived":
                return self.record.beside.names_snapshot(name.split("/")[1] if "/" in name else "")
        return False

    @cached_property
    def _backups(self) -> frozenset[str]:
        return frozenset(self.record.deletions)

    @cached_property
    def _envelopes(self) -> frozenset[str]:
        return frozenset(envelope_key(self.record.archive, gone.key_id) for gone in self.record.envelopes)


def what_is_gone(repository: Repository) -> Callable[[str], bool]:
    """Return what tells whether a key has expired, of whichever archive.

    Where an archive's records cannot be read nothing of it is gone: a copy more does no harm, one less might.
    """
    found: list[GoneKeys] = []
    with suppress(PitrError, StoreError):
        for archive in repository.archives():
            with suppress(PitrError, StoreError):
                newest = repository.expiry.newest(archive)
                if newest is not None:
                    found.append(GoneKeys(newest.record))
    return lambda key: any(gone.holds(key) for gone in found)
