"""The parts of one backup as they are sealed and put: its data key, its names, its objects on their way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from pitr.backup_puts import PATIENCE_S, Acknowledged, PutPool
from pitr.catalogue.backup_record import BackupManifest, BackupType, StoredObject
from pitr.layout import ArchiveId, index_key, pack_key
from pitr.patience import with_patience
from pitr.pipeline.content_mac import ContentMac
from pitr.pipeline.keys import DataKey, Recipient, seal_envelope
from pitr.pipeline.pack_writer import PACK_BYTES_DEFAULT, PartWriter
from pitr.pipeline.part_objects import PartKind
from pitr.pipeline.seal import Context
from pitr.pipeline.sign import Signer
from pitr.repository import Repository


class BackupParts:
    """Parts under one new data key.  The backup has its name before the first part is made.

    ``stop`` ends what is on its way; ``cancel`` also ends the waits of who puts envelope and manifest.
    """

    def __init__(
        self,
        repository: Repository,
        archive: ArchiveId,
        stop: threading.Event,
        *,
        cancel: threading.Event,
        random: Callable[[int], bytes],
        on_stored: Callable[[int], None],
        on_acknowledged: Acknowledged = lambda _part, _stored: None,
        puts_in_flight: int = 2,
        pack_bytes: int = PACK_BYTES_DEFAULT,
    ) -> None:
        self.backup = ""
        self.key = DataKey.generate(random)
        self._repository = repository
        self._archive = archive
        self._cancel = cancel
        self._random = random
        self._pack_bytes = pack_bytes
        self._puts = PutPool(
            repository.puts,
            self._object_key,
            stop,
            in_flight_max=puts_in_flight,
            jitter=self._jitter,
            on_stored=on_stored,
            on_acknowledged=on_acknowledged,
        )

    @property
    def failure(self) -> Exception | None:
        """What a put failed with."""
        return self._puts.failure

    def put_envelope(self, signer: Signer, recipients: Sequence[Recipient], created_at: datetime) -> None:
        """Put the data key, sealed to the recipients: before anything under it.  Raises StoreError."""
        envelope = seal_envelope(
            self.key,
            recipients,
            repository=self._repository.repository_id,
            archive=self._archive,
            purpose="backup",
            created_at=created_at,
        )
        self._patiently(lambda: self._repository.put_envelope(envelope, signer))

    def put_manifest(self, manifest: BackupManifest, signer: Signer) -> None:
        """Put what makes it a backup.  The same record gives the same bytes.  Raises StoreError."""
        self._patiently(lambda: self._repository.put_manifest(manifest, signer))

    def name(self, started_at: datetime, kind: BackupType) -> None:
        """Give the backup its id.  Called once."""
        self.backup = f"{started_at:%Y%m%dT%H%M%SZ}-{kind}-{self._random(4).hex()}"

    def resume(self, backup: str) -> None:
        """Go on with the id of an interrupted attempt, instead of ``name``."""
        self.backup = backup

    def part(self, number: int, *, mac: ContentMac | None = None, first_pack: int = 0) -> PartWriter:
        """Return the writer of a part; see PartWriter."""
        assert self.backup, "a part's objects are named by the backup"
        return PartWriter(
            number,
            self.key,
            self._context,
            self._puts.put,
            pack_bytes=self._pack_bytes,
            mac=mac,
            first_pack=first_pack,
        )

    def finish(self) -> None:
        """Wait for all that is on its way.  May be repeated."""
        self._puts.finish()

    def stored(self, kind: PartKind) -> tuple[StoredObject, ...]:
        """Return the objects that the store has acknowledged, by key."""
        return self._puts.stored(kind)

    def _patiently(self, put: Callable[[], object]) -> None:
        with_patience(put, patience_s=PATIENCE_S, stopping=self._cancel, jitter=self._jitter)

    def _jitter(self) -> float:
        return self._random(1)[0] / 256

    def _context(self, kind: PartKind, part: int, number: int) -> Context:
        name = f"{self.backup}/{part:04d}/{number:06d}"
        return Context(self._repository.repository_id, self._archive, kind, name)

    def _object_key(self, kind: PartKind, part: int, number: int) -> str:
        name = pack_key if kind == "pack" else index_key
        return name(self._archive, self.backup, part, number, self._random(4).hex())
