"""The repository: signed records and WAL, put and got through an object store.

Nothing that comes out of here is unverified: the root key (the reader's own trust anchor) signs
which host may write an archive, that host signs all else, and what a record says must agree with
the key that it lies under, so a renamed or swapped object is refused and another region is asked.
It knows no catalogue.  Reference: docs/format.md §1, §4, §6 to §8.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from pitr.catalogue.backup_record import BackupManifest, check_backup_id
from pitr.catalogue.records import EpochRecord, HeadRecord, HistoryRecord, RepositoryRecord
from pitr.catalogue.wal_records import WalHeader, WalIndexRecord
from pitr.errors import MalformedValue, NotAuthentic, NotInitialised
from pitr.expiry_reader import ExpiryReader
from pitr.judged_puts import JudgedPuts
from pitr.layout import (
    REPOSITORY_KEY,
    ArchiveId,
    PieceKey,
    SegmentKey,
    envelope_key,
    epoch_key,
    head_key,
    head_sequence,
    history_key,
    manifest_key,
    wal_index_key,
)
from pitr.listed import ListedHistories, Strays, listed_archives, listed_histories, read_names
from pitr.pipeline.envelope import EnvelopeRecord
from pitr.pipeline.sign import Signer, Verifier, open_record, payload_sha256, record_key_id, sign_record
from pitr.repository_record import read_repository_record
from pitr.verified import RefusedObject, VerifiedSearch, check_place, get_verified
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId
from pitr.wal_reader import DataKeySource, WalReader
from storage.store import ObjectMissing, ObjectStore

# What a reader may make of what is stored, and then signs with the root key: it has no host's.
_BY_ROOT_TOO: Final = frozenset({"backup", "envelope"})


class _Record(Protocol):
    @property
    def repository(self) -> str: ...


_RecordT = TypeVar("_RecordT", bound=_Record)


@dataclass(frozen=True, slots=True)
class ListedBackup:
    """A verified manifest and the SHA-256 of its object, as the head's list of backups has it."""

    manifest: BackupManifest
    object_sha256: bytes


@dataclass(frozen=True, slots=True)
class ManifestListing:
    """All backups of an archive in the order of their ids, and the manifests that cannot be used."""

    backups: tuple[ListedBackup, ...]
    refused: tuple[RefusedObject, ...]


@dataclass(frozen=True, slots=True)
class ListedHead:
    """A verified head and the SHA-256 of its payload, which the next head names."""

    head: HeadRecord
    payload_sha256: bytes


@dataclass(frozen=True, slots=True)
class HeadSearch:
    """The newest head whose signature holds, if any, and newer ones that were refused."""

    newest: ListedHead | None
    refused: tuple[RefusedObject, ...]


class Repository:
    """One repository in one store.  Thread-safe as far as the store is."""

    def __init__(self, store: ObjectStore, repository_id: str, root: Verifier) -> None:
        self.store: Final = store
        self.repository_id: Final = repository_id
        self.root: Final = root
        self.puts: Final = JudgedPuts(store, repository_id, root, self.verifier)
        self.wal: Final = WalReader(store, repository_id, self.verifier)
        self.expiry: Final = ExpiryReader(store, repository_id, root)
        self._epochs: dict[ArchiveId, EpochRecord] = {}
        self._lock = threading.Lock()

    @staticmethod
    def open(store: ObjectStore, root: Verifier, *, repository_id: str | None = None) -> Repository:
        """Open the repository whose record ``root`` signed; ``repository_id`` must be its id if given.

        Raises NotInitialised if there is none, NotAuthentic if another root signed it, StoreError.
        """
        record = read_repository_record(store, root)
        if repository_id is not None and record.repository != repository_id:
            raise NotAuthentic(
                "this is another repository than the identity belongs to",
                detail=f"found {record.repository}, expected {repository_id}",
                hint="check the region's URL and the identity file",
            )
        return Repository(store, record.repository, root)

    @staticmethod
    def create(store: ObjectStore, record: RepositoryRecord, root_signer: Signer) -> Repository:
        """Put the repository's record.  May be repeated; raises ObjectConflict over another repository."""
        root = root_signer.public
        if record.root != str(root):
            raise MalformedValue("the repository's record must name the root key that signs it")
        store.put(REPOSITORY_KEY, sign_record(record.to_payload(), root_signer))
        return Repository(store, record.repository, root)

    def alone(self, store: ObjectStore) -> Repository:
        """Return this repository as one region alone has it.  Epochs that are known are not read again."""
        other = Repository(store, self.repository_id, self.root)
        with self._lock:
            other._epochs.update(self._epochs)
        return other

    def record(self) -> RepositoryRecord:
        """Return the verified record, with the recipients of new data keys."""
        return read_repository_record(self.store, self.root)

    def archives(self, refused: Strays = None) -> list[ArchiveId]:
        """Return the archives that have an epoch record, by system identifier and epoch.

        One that cannot be used is told in ``refused`` if its regions can be left out, and else returned: it
        may be an archive, and whoever reads it is told what is wrong.  Raises StoreError.
        """
        return listed_archives(self.store, self.epoch, refused)

    def epoch(self, archive: ArchiveId) -> EpochRecord:
        """Return who may write ``archive``, signed by root; read once.

        Raises NotInitialised if the epoch is not there, NotAuthentic, StoreError.
        """
        with self._lock:
            known = self._epochs.get(archive)
        if known is None:
            known = self._read_epoch(archive)
            with self._lock:
                self._epochs[archive] = known
        return known

    def _read_epoch(self, archive: ArchiveId) -> EpochRecord:
        def read(body: bytes) -> EpochRecord:
            record = EpochRecord.from_payload(open_record(body, self.root, "epoch"))
            self._check_place(epoch_key(archive), epoch_key(record.archive), record.repository)
            Verifier.parse(record.signer)
            return record

        try:
            return get_verified(self.store, epoch_key(archive), read)
        except ObjectMissing as cause:
            raise NotInitialised(
                f"archive {archive} has no epoch record",
                detail="Nobody was allowed to write it.",
                hint="run `pitr init` with the identity",
            ) from cause

    def write_epoch(self, record: EpochRecord, root_signer: Signer) -> None:
        """Put an epoch record.  May be repeated; raises ObjectConflict if the epoch is another's."""
        self._check_own(record.repository)
        if root_signer.public != self.root:
            raise NotAuthentic("only the root key signs an epoch", hint="use this repository's identity")
        Verifier.parse(record.signer)
        self.store.put(epoch_key(record.archive), sign_record(record.to_payload(), root_signer))

    def verifier(self, archive: ArchiveId) -> Verifier:
        """Return the public key of the host that writes ``archive``.  Raises as ``epoch``."""
        return Verifier.parse(self.epoch(archive).signer)

    def check_signer(self, archive: ArchiveId, signer: Signer) -> None:
        """Refuse to write as somebody whom the epoch record does not name.  Raises NotAuthentic."""
        if signer.public != self.verifier(archive):
            raise NotAuthentic(
                f"this signing key may not write archive {archive}",
                detail=f"The epoch names {self.verifier(archive)}, the key is {signer.public}.",
                hint="use the key file that `pitr init` wrote for this host, or start a new epoch",
            )

    def put_envelope(self, record: EnvelopeRecord, signer: Signer) -> None:
        """Put the envelope of a data key; it must be there before the first object under that key."""
        self._put(envelope_key(record.archive, record.key_id), record.repository, record.to_payload(), signer)

    def get_envelope(self, archive: ArchiveId, key_id: bytes) -> EnvelopeRecord:
        """Return the verified envelope.  Raises ObjectMissing, NotAuthentic, StoreError."""
        return self._get(
            archive,
            envelope_key(archive, key_id),
            "envelope",
            EnvelopeRecord.from_payload,
            lambda record: envelope_key(record.archive, record.key_id),
        )

    def put_history(self, record: HistoryRecord, signer: Signer) -> None:
        """Put a timeline history file.  Raises ObjectConflict if the timeline has another history."""
        record.history()
        self._put(
            history_key(record.archive, record.timeline), record.repository, record.to_payload(), signer
        )

    def get_history(self, archive: ArchiveId, timeline: TimelineId) -> HistoryRecord:
        """Return a verified history file.  Raises ObjectMissing, NotAuthentic, StoreError."""
        record = self._get(
            archive,
            history_key(archive, timeline),
            "timeline-history",
            HistoryRecord.from_payload,
            lambda record: history_key(record.archive, record.timeline),
        )
        record.history()
        return record

    def history_records(self, archive: ArchiveId, refused: Strays = None) -> list[HistoryRecord]:
        """Return all timeline history files of an archive, ascending by number; timeline 1 has none.

        One that cannot be used is told in ``refused`` if no quorum can have it; else raises as
        ``get_history``.
        """
        found = self.listed_histories(archive)
        if refused is not None:
            refused += found.passed
        return found.with_unread(lambda one: self.get_history(archive, one))

    def listed_histories(self, archive: ArchiveId, timeline: TimelineId | None = None) -> ListedHistories:
        """Return the history files that hold, or that of one timeline, and what else is listed."""
        prefix = f"history/{archive}/" if timeline is None else history_key(archive, timeline)
        return listed_histories(self.store, prefix, lambda one: self.get_history(archive, one))

    def history_timelines(self, archive: ArchiveId, refused: Strays = None) -> list[TimelineId]:
        """Return the timelines whose history files are listed in an archive; unverified."""
        prefix = f"history/{archive}/"
        listing = self.store.list_objects(prefix)
        return list(read_names(listing, lambda key: TimelineId.parse(key.removeprefix(prefix)), refused))

    def histories(self, archive: ArchiveId) -> list[TimelineHistory]:
        """Return what the history files of an archive say."""
        return [record.history() for record in self.history_records(archive)]

    def put_manifest(self, manifest: BackupManifest, signer: Signer) -> bytes:
        """Put a backup's manifest, which makes it a backup; return the SHA-256 of the object."""
        key = manifest_key(manifest.archive, manifest.backup)
        return self._put(key, manifest.repository, manifest.to_payload(), signer)

    def get_manifest(self, archive: ArchiveId, backup: str) -> ListedBackup:
        """Return one verified manifest.  Raises ObjectMissing, NotAuthentic, StoreError."""
        check_backup_id(backup)
        digests: list[bytes] = []

        def place(manifest: BackupManifest) -> str:
            return manifest_key(manifest.archive, manifest.backup)

        def digest(body: bytes) -> None:
            digests[:] = [hashlib.sha256(body).digest()]

        manifest = self._get(
            archive, manifest_key(archive, backup), "backup", BackupManifest.from_payload, place, digest
        )
        return ListedBackup(manifest, digests[0])

    def manifests(self, archive: ArchiveId) -> ManifestListing:
        """Return every backup of an archive by its id.  A bad manifest is reported and hides no other.

        What the newest expire record names is no backup, wherever its manifest still lies.
        """
        gone, prefix = self.expiry.newest(archive), f"manifests/{archive}/"

        def is_gone(key: str) -> bool:
            return gone is not None and gone.record.names_backup(key[len(prefix) :])

        def read(key: str) -> ListedBackup | None:
            return None if is_gone(key) else self.get_manifest(archive, key[len(prefix) :])

        search = VerifiedSearch(self.store, prefix, f"backups of archive {archive}", is_lenient=True)
        backups = tuple(listed for listed in search.each(read) if listed is not None)
        if search.refused:
            # Perhaps deleted since it was listed; the record of that came before.
            gone = self.expiry.newest(archive)
        return ManifestListing(backups, tuple(one for one in search.refused if not is_gone(one.key)))

    def put_head(self, head: HeadRecord, signer: Signer) -> bytes:
        """Put a signed end of the archive after all that it speaks of; return its payload's SHA-256.

        Raises ObjectConflict if another writer has put this head: the epoch has two writers.
        """
        self._check_own(head.repository)
        body = sign_record(head.to_payload(), signer)
        self.puts.put(head_key(head.archive, head.sequence), body, after_all=True)
        return payload_sha256(body)

    def find_head(self, archive: ArchiveId) -> HeadSearch:
        """Look for the newest head whose signature holds; refused ones before it are reported.

        Raises NotAuthentic if they are all bad (``VerifiedSearch``), StoreError.
        """
        search = VerifiedSearch(self.store, f"heads/{archive}/", f"heads of archive {archive}")
        newest = search.first(lambda key: self.get_head(archive, head_sequence(key)))
        return HeadSearch(newest, tuple(search.refused))

    def latest_head(self, archive: ArchiveId) -> HeadRecord | None:
        """Return the newest head whose signature holds, None if there is none; see ``find_head``."""
        newest = self.find_head(archive).newest
        return None if newest is None else newest.head

    def get_head(self, archive: ArchiveId, sequence: int) -> ListedHead:
        """Return one verified head.  Raises ObjectMissing, NotAuthentic, StoreError."""
        digests: list[bytes] = []

        def place(head: HeadRecord) -> str:
            return head_key(head.archive, head.sequence)

        def digest(body: bytes) -> None:
            digests[:] = [payload_sha256(body)]

        key = head_key(archive, sequence)
        return ListedHead(self._get(archive, key, "head", HeadRecord.from_payload, place, digest), digests[0])

    def put_wal_index(self, record: WalIndexRecord, signer: Signer) -> bytes:
        """Put an index of WAL headers; return its payload's SHA-256, which the next one names."""
        self._check_own(record.repository)
        body = sign_record(record.to_payload(), signer)
        self.puts.put(wal_index_key(record.archive, record.first, record.last), body)
        return payload_sha256(body)

    def wal_objects(
        self, archive: ArchiveId, timeline: TimelineId, *, from_segment: SegmentName | None = None
    ) -> Iterator[PieceKey | SegmentKey]:
        """See ``WalReader.objects``."""
        return self.wal.objects(archive, timeline, from_segment=from_segment)

    def read_header(self, key: PieceKey | SegmentKey) -> WalHeader:
        """See ``WalReader.header``."""
        return self.wal.header(key).header

    def read_wal(self, key: PieceKey | SegmentKey, data_keys: DataKeySource) -> bytes:
        """See ``WalReader.read``."""
        return self.wal.read(key, data_keys)

    def _put(self, key: str, repository: str, payload: Mapping[str, object], signer: Signer) -> bytes:
        self._check_own(repository)
        body = sign_record(payload, signer)
        digest = hashlib.sha256(body).digest()
        self.puts.put(key, body, sha256=digest)
        return digest

    def _get(
        self,
        archive: ArchiveId,
        key: str,
        kind: str,
        parse: Callable[[dict[str, object]], _RecordT],
        place: Callable[[_RecordT], str],
        digest: Callable[[bytes], None] = lambda _body: None,
    ) -> _RecordT:
        host = self.verifier(archive)

        def read(body: bytes) -> _RecordT:
            is_by_root = kind in _BY_ROOT_TOO and record_key_id(body) == self.root.key_id
            record = parse(open_record(body, self.root if is_by_root else host, kind))
            self._check_place(key, place(record), record.repository)
            digest(body)
            return record

        return get_verified(self.store, key, read)

    def _check_own(self, repository: str) -> None:
        if repository != self.repository_id:
            raise MalformedValue(
                f"a record of repository {repository} does not belong in {self.repository_id}"
            )

    def _check_place(self, key: str, expected: str, repository: str) -> None:
        check_place(key, expected, repository, self.repository_id)


def backups_sha256(backups: Iterable[ListedBackup]) -> bytes:
    """Return the digest that a head gives of all listed backups (docs/format.md §6.4)."""
    return named_backups_sha256({each.manifest.backup: each.object_sha256 for each in backups})


def named_backups_sha256(digests: Mapping[str, bytes]) -> bytes:
    """Return the same from the backups' ids and the SHA-256 of their manifests' objects."""
    lines = (f"{backup} {digests[backup].hex()}\n" for backup in sorted(digests))
    return hashlib.sha256("".join(lines).encode("ascii")).digest()
