"""An archive in three regions of memory, to expire: chains of backups, WAL by the hour, faults by count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import fix_archive as fix
from fix_repository import RepositoryHouse

from pitr.abandoned import AbandonedAttempt, abandoned_before
from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.catalogue.expiry_record import ExpireRecord, GoneBeside
from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import NamedRegion, RebuildResult, rebuild
from pitr.catalogue_survey import survey_archive
from pitr.events.fence_sieve import FENCES_READ_MAX
from pitr.expire import RegionDeletion, carry_out, put_record
from pitr.expire_attempts import find_abandoned
from pitr.expire_beside import plan_beside
from pitr.expire_record import ExpiryPolicy, next_record, used_keys
from pitr.layout import index_key, pack_key
from pitr.quorum import Answers, WriteQuorum
from pitr.repository import ListedBackup, Repository, backups_sha256
from pitr.retention import ExpiryPlan, plan_expiry
from pitr.retention_beside import first_moment, first_positions
from pitr.retention_proof import prove_plan
from pitr.survey import ArchiveSurvey
from pitr.wal.lsn import LSN
from storage.memory import MemoryStore
from storage.regions import Region
from storage.replicated import ReplicatedStore
from storage.store import CopyCheck, ObjectInfo, ObjectStore

SEG = fix.SEGMENT_BYTES
QUARTER = SEG // 4
HOUR_S = 3600
DEADLINE = timedelta(hours=12)


class Killed(BaseException):
    """The process has ended here."""


@dataclass
class FaultPoint:
    """Counts what changes a store, and ends the process before change number ``kill_at``."""

    kill_at: int | None = None
    changes: list[str] = field(default_factory=list)

    def met(self, change: str) -> None:
        if self.kill_at is not None and len(self.changes) >= self.kill_at:
            raise Killed(change)
        self.changes.append(change)


@dataclass
class CountedStore:
    """An ``ObjectStore`` whose puts and deletes pass a fault point first."""

    name: str
    inner: ObjectStore
    point: FaultPoint

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        self.point.met(f"put {self.name} {key}")
        self.inner.put(key, body, sha256=sha256, after_all=after_all)

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        return self.inner.get(key, check=check)

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        return self.inner.get_range(key, start, length, check=check)

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        return self.inner.list_objects(prefix, start_after=start_after)

    def delete(self, key: str) -> None:
        self.point.met(f"delete {self.name} {key}")
        self.inner.delete(key)


@dataclass
class Expired:
    """What one run decided and did."""

    plan: ExpiryPlan
    record: ExpireRecord | None
    outcomes: tuple[RegionDeletion, ...]


class ExpiryHouse:
    """A day of WAL, an hour each segment, with a chain every eight hours: full, incremental, incremental."""

    # So many hours of WAL are in one index.
    indexed_hours = 4

    def __init__(self, hours: int = 24) -> None:
        origin = MemoryStore()
        self.house = RepositoryHouse(origin)
        self.archive = self.house.archive
        self.backups: list[BackupManifest] = []
        for hour in range(hours):
            if hour % 8 in (0, 2, 5):
                self.add_backup(hour, origin)
            self.add_wal(hour)
            if (hour + 1) % self.indexed_hours == 0:
                self.house.wal_index(self.house.sequence - 4 * self.indexed_hours + 1, self.house.sequence)
        self.head(self.house.backups)
        self.stores = {name: MemoryStore() for name in ("eu", "us", "ap")}
        self.begin_again()
        self.now = self.at(hours)

    @staticmethod
    def at(hour: float) -> datetime:
        return fix.at_second(hour * HOUR_S)

    def head(self, backups: Sequence[ListedBackup]) -> None:
        """Sign the end as the daemon does, with these backups."""
        self.house.heads += 1
        head = fix.head_of(
            sequence=self.house.heads,
            wal_start=LSN(SEG),
            wal_end=self.house.wal_end,
            at=fix.at_second(0),
            piece_sequence=self.house.sequence,
            backups_count=len(backups),
            backups_sha256=backups_sha256(backups),
        )
        head = replace(head, previous=self.house.head_digest, piece_sha256=self.house.digest)
        self.house.head_digest = self.house.repository.put_head(head, self.house.host)

    def begin_again(self) -> None:
        """Put every region back to how it was made."""
        origin = self.house.store
        for name in self.stores:
            self.stores[name] = MemoryStore()
            for info in origin.list_objects(""):
                self.stores[name].put(info.key, origin.get(info.key))

    def add_wal(self, hour: int) -> None:
        start = LSN((hour + 1) * SEG)
        first = self.house.sequence + 1
        for number in range(4):
            begin = start + number * QUARTER
            at = fix.times(hour * HOUR_S + 600 * number + 700)
            self.house.piece(begin, begin + QUARTER, at, hour=hour)
        if hour % 3 != 2:
            at = fix.times(hour * HOUR_S + 700, hour * HOUR_S + 2500)
            self.house.segment(start, first, first + 3, at)

    def add_backup(self, hour: int, store: ObjectStore) -> None:
        key = self.house.keys.backup_key(self.at(hour))
        made = fix.backup_of(
            LSN((hour + 1) * SEG + 40),
            LSN((hour + 1) * SEG + 1000),
            stopped_at=self.at(hour) + timedelta(seconds=600),
            number=hour * HOUR_S,
        )
        name, parent = made.backup, None
        if hour % 8:
            name, parent = name.replace("-full-", "-incr-"), self.backups[-1].backup
        stored = []
        for make in (index_key, pack_key):
            object_key = make(self.archive, name, 0, 0, f"{hour:08x}")
            store.put(object_key, b"x" * 100)
            stored.append(StoredObject(object_key, 100, bytes(32), 1))
        manifest = replace(
            made,
            backup=name,
            parent=parent,
            type="full" if parent is None else "incr",
            started_at=self.at(hour),
            key_id=key.key_id,
            indexes=(stored[0],),
            packs=(stored[1],),
        )
        self.house.backup(manifest)
        self.backups.append(manifest)

    def regions(self, point: FaultPoint | None = None) -> list[Region]:
        point = point or FaultPoint()
        return [Region(name, CountedStore(name, store, point)) for name, store in self.stores.items()]

    def repository(self, *names: str) -> Repository:
        """Return the repository as these regions have it; all of them if none is named."""
        regions = [one for one in self.regions() if not names or one.name in names]
        quorum = 2 if len(regions) > 1 else 1
        store = ReplicatedStore(regions, quorum=quorum, read_only_regions_minimum=1)
        return Repository(store, fix.REPOSITORY, self.house.root.public)

    def survey(self, *names: str) -> tuple[ArchiveSurvey, RebuildResult, Catalogue]:
        """Read these regions as a command does."""
        catalogue = Catalogue(":memory:")
        regions = [NamedRegion(n, s) for n, s in self.stores.items() if not names or n in names]
        answers = Answers(len(regions), WriteQuorum(3, 2))
        result = rebuild(self.repository(*names), catalogue, answers=answers, regions=regions)
        return survey_archive(catalogue, self.archive, answers), result, catalogue

    def expire(
        self,
        window_h: float,
        *,
        grace_h: float = 0,
        point: FaultPoint | None = None,
        minimum: int = 1,
        fences_read_max: int = FENCES_READ_MAX,
    ) -> Expired:
        """Do what ``pitr expire --confirm`` does, at ``self.now``."""
        repository, regions = self.repository(), self.regions(point)
        survey, _, catalogue = self.survey()
        window = timedelta(hours=window_h)
        plan = plan_expiry(survey, window=window, minimum_full_backups=minimum, now=self.now)
        plan = replace(plan, attempts=self.abandoned())
        prove_plan(survey, plan, now=self.now)
        previous = repository.expiry.newest(self.archive)
        beside = plan_beside(
            repository,
            self.archive,
            GoneBeside() if previous is None else previous.record.beside,
            first_positions(survey, plan).get(self.archive),
            first_moment(plan),
            read_max=fences_read_max,
        )
        record = next_record(
            repository,
            self.archive,
            previous,
            plan,
            {each.manifest.backup: each.object_sha256 for each in catalogue.backups(self.archive)},
            used_keys(repository, self.archive, plan, previous),
            regions,
            policy=ExpiryPolicy(window, minimum, timedelta(hours=grace_h)),
            now=self.now,
            beside=beside,
        )
        newest = record or (None if previous is None else previous.record)
        if newest is None:
            return Expired(plan, None, ())
        body = repository.expiry.sign(newest, self.house.root)
        put_record(newest, body, regions, root=self.house.root.public, quorum=2)
        return Expired(plan, record, carry_out(newest, body, regions, now=self.now, workers=1))

    def abandoned(self, *names: str) -> tuple[AbandonedAttempt, ...]:
        """Return what of these regions' attempts at backups nobody goes on with; of all if none is named."""
        before = abandoned_before(self.now, DEADLINE)
        regions = [one for one in self.regions() if not names or one.name in names]
        return find_abandoned(self.repository(), self.archive, regions, before=before, now=self.now)

    def keys(self, region: str = "eu", prefix: str = "") -> set[str]:
        return {info.key for info in self.stores[region].list_objects(prefix)}
