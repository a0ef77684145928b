"""Data keys in use: the reader's, opened from envelopes, and the host's, made for each hour of WAL.

The two sides never meet in one process: a host makes keys that it cannot open again, a reader
opens keys that it never makes.  Reference: docs/format.md §5.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pitr.errors import NotAuthentic
from pitr.layout import ArchiveId, envelope_key
from pitr.pipeline.keys import DataKey, Identity, Recipient, open_envelope, seal_envelope
from pitr.pipeline.sign import Signer
from pitr.repository import Repository
from storage.store import ObjectMissing

# A key is used for one hour of WAL; a restore walks WAL in order, so a few are enough.
KEYS_HELD_MAX: Final = 64
KEY_LIFE: Final = timedelta(hours=1)


class DataKeys:
    """Opens data keys with an identity and keeps the last KEYS_HELD_MAX.  Thread-safe."""

    def __init__(self, repository: Repository, identity: Identity) -> None:
        self._repository: Final = repository
        self._identity: Final = identity
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[ArchiveId, bytes], DataKey] = OrderedDict()

    def get(self, archive: ArchiveId, key_id: bytes) -> DataKey:
        """Return the data key of an archive by its id.

        Raises KeyMissing if the identity is none of the recipients, NotAuthentic if the envelope is
        missing or not the host's, StoreError.
        """
        place = (archive, key_id)
        with self._lock:
            if place in self._held:
                self._held.move_to_end(place)
                return self._held[place]
        data_key = self._open(archive, key_id)
        with self._lock:
            self._held[place] = data_key
            while len(self._held) > KEYS_HELD_MAX:
                self._held.popitem(last=False)
        return data_key

    def _open(self, archive: ArchiveId, key_id: bytes) -> DataKey:
        try:
            envelope = self._repository.get_envelope(archive, key_id)
        except ObjectMissing as cause:
            # Envelopes are put before what they open, so this one was deleted.
            raise NotAuthentic(
                f"the envelope of data key {key_id.hex()} is in no region",
                detail=f"{envelope_key(archive, key_id)} is missing; what it sealed cannot be opened.",
                hint="look for it in the regions' old versions",
            ) from cause
        return open_envelope(envelope, self._identity)


@dataclass(frozen=True, slots=True)
class HostKey:
    """A data key in use by the host, and until when it may be used for new objects."""

    data_key: DataKey
    until_at: datetime


class HostKeys:
    """Makes the host's data keys: the envelope is at quorum before anyone can seal with the key.

    Thread-safe.  A key that was given out may still be used for what was begun with it.
    """

    def __init__(
        self,
        repository: Repository,
        archive: ArchiveId,
        signer: Signer,
        recipients: Sequence[Recipient],
        *,
        random: Callable[[int], bytes],
        key_life: timedelta = KEY_LIFE,
    ) -> None:
        self._repository: Final = repository
        self._archive: Final = archive
        self._signer: Final = signer
        self._recipients: Final = tuple(recipients)
        self._random: Final = random
        self._key_life: Final = key_life
        self._lock = threading.Lock()
        self._wal: HostKey | None = None

    def wal_key(self, now: datetime) -> DataKey:
        """Return the data key for WAL that is sealed now; a new one each hour.

        Raises StoreError if a new envelope does not reach its quorum: nothing was given out then, and
        the call may be repeated.
        """
        with self._lock:
            # A clock that went back must not stretch a key's life beyond an hour from now.
            held = self._wal
            if held is None or not held.until_at - self._key_life <= now < held.until_at:
                held = HostKey(self._new("wal", now), now + self._key_life)
                self._wal = held
            return held.data_key

    def backup_key(self, now: datetime) -> DataKey:
        """Return a new data key for one backup.  Raises StoreError as ``wal_key``."""
        return self._new("backup", now)

    def forget(self) -> None:
        """Drop the WAL key: what comes later gets a new one."""
        with self._lock:
            self._wal = None

    def _new(self, purpose: str, now: datetime) -> DataKey:
        data_key = DataKey.generate(self._random)
        envelope = seal_envelope(
            data_key,
            self._recipients,
            repository=self._repository.repository_id,
            archive=self._archive,
            purpose=purpose,
            created_at=now,
        )
        self._repository.put_envelope(envelope, self._signer)
        return data_key
