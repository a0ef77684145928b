"""A lease in the store: one holder at a time, by records that are written once and counted up.

Record N + 1 fences record N: whoever puts it holds the lease, and the store lets only one put it.  A holder
puts the next record before its last one ends; one that died leaves it to run out.
Reference: docs/format.md §6.5, docs/adr/0005.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from pitr.catalogue.lease_record import Holder, LeaseRecord
from pitr.errors import AlreadyRunning, BackupFailed, NotAuthentic
from pitr.layout import ArchiveId, lease_key, lease_number, lease_prefix
from pitr.lease_terms import LeaseTerms, held_until
from pitr.patience import with_patience
from pitr.pipeline.sign import Signer, open_record, sign_record
from pitr.repository import Repository
from pitr.verified import VerifiedSearch, check_place, get_verified
from storage.store import ObjectConflict, StoreError

# As with heads: so many newer ones that are bad are no rot but an attack.
BAD_RECORDS_MAX: Final = 16
# Longer than a put's own patience, and far shorter than a lease.
_PATIENCE_S: Final = 30.0
_RETRY_S: Final = 2.0
_LAST_PATIENCE_S: Final = 2.0


def newest_record(repository: Repository, archive: ArchiveId, name: str) -> LeaseRecord | None:
    """Read the newest record that can be used; of a listing only its first lines.

    Raises NotAuthentic if they are all bad (``VerifiedSearch``), StoreError.
    """
    search = VerifiedSearch(repository.store, lease_prefix(name), f"records of lease {name}")
    return search.first(lambda key: _read(repository, archive, name, lease_number(key)))


def _read(repository: Repository, archive: ArchiveId, name: str, number: int) -> LeaseRecord:
    key, host = lease_key(name, number), repository.verifier(archive)

    def read(body: bytes) -> LeaseRecord:
        record = LeaseRecord.from_payload(open_record(body, host, "lease"))
        check_place(key, lease_key(record.name, record.number), record.repository, repository.repository_id)
        return record

    return get_verified(repository.store, key, read)


def check_free(record: LeaseRecord | None, own: Holder, terms: LeaseTerms, now: datetime) -> None:
    """Raise AlreadyRunning, naming the holder and until when, if ``own`` may not take the lease now."""
    until = held_until(record, own, terms, now.astimezone(UTC))
    if until is not None and record is not None:
        raise AlreadyRunning(
            "another base backup of this cluster is being taken",
            detail=f"{record.holder.described} holds the lease {record.name} until "
            f"{record.until_at:%Y-%m-%d %H:%M:%S} UTC (record {record.number})",
            hint=f"wait for its end; if it is dead, the lease runs out at {until:%H:%M:%S} UTC",
        )


class Lease:
    """One holder's hold on a lease.  Thread-safe once taken; a thread renews it until ``release``."""

    def __init__(
        self,
        repository: Repository,
        signer: Signer,
        archive: ArchiveId,
        name: str,
        holder: Holder,
        *,
        terms: LeaseTerms,
        clock: Callable[[], datetime],
        cancel: threading.Event,
    ) -> None:
        self._cancel = cancel
        self._repository = repository
        self._signer = signer
        self._archive = archive
        self._name = name
        self._holder = holder
        self._terms = terms
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._is_held = False
        # A record whose put may have arrived is put again as it was: another one would conflict with it.
        self._pending: LeaseRecord | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._renew_on, name="backup-lease", daemon=True)
        self.lost: BackupFailed | None = None

    def take(self) -> None:
        """Take the lease and keep it.  Raises AlreadyRunning with its holder, StoreError, NotAuthentic."""
        newest = self._newest()
        check_free(newest, self._holder, self._terms, self._clock())
        self._number = 0 if newest is None else newest.number
        try:
            with_patience(self._put_next, patience_s=_PATIENCE_S, stopping=self._cancel)
        except ObjectConflict as cause:
            check_free(self._newest(), self._holder, self._terms, self._clock())
            raise AlreadyRunning(
                "another base backup of this cluster was begun in the same moment",
                hint="try again in a minute",
            ) from cause
        self._is_held = True
        self._thread.start()

    def confirm(self) -> None:
        """Make sure that nobody else has taken the lease meanwhile.  Raises BackupFailed, StoreError.

        The lease is renewed for it, so what is done right after lies within its length.
        """
        if self.lost is not None:
            raise self.lost
        try:
            with_patience(self._put_next, patience_s=_PATIENCE_S, stopping=self._cancel)
        except ObjectConflict as cause:
            raise self._fenced() from cause
        # Under the lock: a renewal in between would put a newer record of ours, and seem to be somebody else.
        with self._lock:
            newest = self._newest()
            if newest is None or (newest.number, newest.holder) != (self._number, self._holder):
                raise self._fenced()

    def release(self) -> None:
        """Let the lease go, as far as the store lets us: else it runs out.  May be repeated."""
        if not self._is_held:
            return
        self._is_held = False
        self._ending.set()
        self._thread.join()
        if self.lost is not None:
            return
        try:
            with_patience(
                lambda: self._put_next(is_released=True),
                patience_s=_LAST_PATIENCE_S,
                stopping=threading.Event(),
            )
        except StoreError:
            return  # the next one waits until it has run out

    def _newest(self) -> LeaseRecord | None:
        return newest_record(self._repository, self._archive, self._name)

    def _put_next(self, *, is_released: bool = False) -> None:
        """Put the record that may have been put, then one that says what is true now."""
        with self._lock:
            if self._pending is not None:
                self._put(self._pending)
            now = self._clock().astimezone(UTC)
            self._pending = LeaseRecord(
                repository=self._repository.repository_id,
                archive=self._archive,
                name=self._name,
                number=self._number + 1,
                holder=self._holder,
                taken_at=now,
                until_at=now if is_released else now + timedelta(seconds=self._terms.length_s),
                is_released=is_released,
            )
            self._put(self._pending)

    def _put(self, record: LeaseRecord) -> None:
        """Put a record, past numbers under which lies what is no record of ours or anybody's."""
        for _ in range(BAD_RECORDS_MAX):
            try:
                self._repository.store.put(
                    lease_key(record.name, record.number), sign_record(record.to_payload(), self._signer)
                )
            except ObjectConflict:
                self._pending = None
                newest = self._newest()
                if (0 if newest is None else newest.number) != self._number:
                    raise
                self._pending = record = replace(record, number=record.number + 1)
            else:
                break
        else:
            raise NotAuthentic(f"the next {BAD_RECORDS_MAX} records of lease {record.name} are all bad")
        self._number = record.number
        self._pending = None

    def _renew_on(self) -> None:
        pause_s = self._terms.renew_s
        while not self._ending.wait(pause_s):
            try:
                self._put_next()
                pause_s = self._terms.renew_s
            except (ObjectConflict, NotAuthentic):
                self.lost = self._fenced()
                return
            except StoreError:
                # Whether it is still ours is asked before the manifest is signed.
                pause_s = min(_RETRY_S, self._terms.renew_s)

    def _fenced(self) -> BackupFailed:
        return BackupFailed(
            "another base backup of this cluster has taken the lease",
            detail=f"Ours was record {self._number} of {self._name}. It ended while this process was stopped "
            "or the store away, or the other host's clock is ahead. Nothing lists this backup.",
            hint="let the other one end; check the clocks of both hosts",
        )
