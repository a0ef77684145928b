"""A server, a repository and the way back: WAL shipped by hand from pg_wal, plans, restores, a judge."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
from fix_backup import BackupHouse
from fix_ports import free_port
from fix_postgres import RunningPostgres, server_settings, table_digests

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.records import HistoryRecord
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader, TransactionTimes, WalUnit
from pitr.datakeys import DataKeys, HostKeys
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.pipeline.headed import encode_headed, split_headed
from pitr.pipeline.keys import Identity, content_hmac, content_key
from pitr.pipeline.seal import seal
from pitr.pipeline.sign import payload_sha256
from pitr.postgres.installation import Installation
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser, as_user
from pitr.recovery import RecoveryTarget
from pitr.repository import Repository
from pitr.restore import restore
from pitr.restore_plan import RestorePlan
from pitr.restore_request import RestoreRequest, RestoreResult
from pitr.stop import resolve_plan
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from pitr.wal.scanner import TransactionScanner
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId, history_file_name
from pitr.wal_reader import wal_context
from storage.local import DirectoryStore
from storage.store import ObjectStore

PIECE_BYTES = 4 * 1024 * 1024
# pg_amcheck reads every table and every index of a cluster; the largest has 3 GiB.
TOOL_TIMEOUT_S = 600.0
# A restore must not lose what it needs between shipments: there is no slot here.
KEEP_WAL = {"wal_keep_size": "2GB"}


@dataclass
class HandArchiver:
    """Ships the WAL of a server's timeline as pieces, and whole segments when they are complete."""

    house: BackupHouse
    server: RunningPostgres
    timeline: TimelineId = field(default_factory=lambda: TimelineId(1))
    segment_bytes: int = 16 * 1024 * 1024
    with_segments: bool = True
    shipped: LSN | None = None
    sequence: int = 0
    previous: bytes | None = None
    # What the gate was asked for: the WAL of a timeline from where to where.
    asked: list[tuple[TimelineId, LSN, LSN]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keys = HostKeys(
            self.house.repository,
            self.house.archive,
            self.house.signer,
            [self.house.identity.recipient()],
            random=os.urandom,
        )
        self._hmac_key = content_key(self.house.signer, self.house.repository.repository_id)
        self._scanner = TransactionScanner(self.segment_bytes)
        self._pieces: list[PieceHeader] = []

    def begin(self) -> None:
        """Start at the segment that the server writes now, as a slot does."""
        at = LSN.parse(str(self.server.value("SELECT pg_current_wal_flush_lsn()")))
        self.shipped = LSN(at.offset - at.offset % self.segment_bytes)

    def ship(self, until: LSN | None = None) -> LSN:
        """Ship everything that the server has flushed; return where that ends."""
        assert self.shipped is not None, "begin first"
        end = until or LSN.parse(str(self.server.value("SELECT pg_current_wal_flush_lsn()")))
        while self.shipped < end:
            name = SegmentName.holding(self.timeline, self.shipped, self.segment_bytes)
            stop = min(end, name.end(self.segment_bytes), self.shipped + PIECE_BYTES)
            self._ship_piece(name, self.shipped, stop)
            self.shipped = stop
            if stop == name.end(self.segment_bytes):
                self._ship_segment(name)
        return end

    def follow(self, timeline: TimelineId, server: RunningPostgres | None = None) -> None:
        """Go on with a new timeline: its history first, its WAL from a segment boundary on."""
        self.server = server or self.server
        content = (self.server.data_dir / "pg_wal" / history_file_name(timeline)).read_bytes()
        record = HistoryRecord(self.house.repository.repository_id, self.house.archive, timeline, content)
        self.house.repository.put_history(record, self.house.signer)
        left_at = TimelineHistory.parse(timeline, content).switches[-1].lsn
        self.timeline = timeline
        self.shipped = LSN(left_at.offset - left_at.offset % self.segment_bytes)
        self._scanner = TransactionScanner(self.segment_bytes)
        self._pieces = []

    def gate(self, timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool:
        """Stand for the daemon's wait until WAL is at quorum: ship it now."""
        assert timeline == self.timeline
        self.asked.append((timeline, start, end))
        return self.ship() >= end

    def _read(self, name: SegmentName, start: LSN, end: LSN) -> bytes:
        file = self.server.data_dir / "pg_wal" / str(name)
        origin = name.start_offset(self.segment_bytes)
        with file.open("rb") as segment:
            segment.seek(start.offset - origin)
            return segment.read(end - start)

    def _ship_piece(self, name: SegmentName, start: LSN, end: LSN) -> None:
        content = self._read(name, start, end)
        scan = self._scanner.feed(start, content)
        times = None
        if scan.min_at is not None and scan.max_at is not None:
            times = TransactionTimes(scan.min_at, scan.max_at, scan.is_exact)
        now = datetime.now(UTC)
        data_key = self._keys.wal_key(now)
        self.sequence += 1
        header = PieceHeader(
            repository=self.house.repository.repository_id,
            archive=self.house.archive,
            timeline=self.timeline,
            segment_bytes=self.segment_bytes,
            start=start,
            end=end,
            sequence=self.sequence,
            previous=self.previous,
            content_hmac=content_hmac(self._hmac_key, content),
            key_id=data_key.key_id,
            received_at=now,
            transactions=times,
        )
        body = encode_headed(
            header.to_payload(), seal(content, data_key, wal_context(header)), self.house.signer
        )
        key = PieceKey(self.house.archive, name, start, end, self.sequence, os.urandom(4).hex())
        self.house.store.put(str(key), body)
        self.previous = payload_sha256(split_headed(body).envelope)
        self._pieces.append(header)

    def _ship_segment(self, name: SegmentName) -> None:
        pieces, self._pieces = self._pieces, []
        if not self.with_segments or pieces[0].start.offset != name.start_offset(self.segment_bytes):
            return
        content = self._read(name, pieces[0].start, pieces[-1].end)
        times = [piece.transactions for piece in pieces if piece.transactions is not None]
        data_key = self._keys.wal_key(datetime.now(UTC))
        header = SegmentHeader(
            repository=self.house.repository.repository_id,
            archive=self.house.archive,
            timeline=self.timeline,
            segment_bytes=self.segment_bytes,
            segment=name,
            start=pieces[0].start,
            end=pieces[-1].end,
            first_piece=pieces[0].sequence,
            last_piece=pieces[-1].sequence,
            pieces_sha256=hashlib.sha256(b"pieces").digest(),
            content_hmac=content_hmac(self._hmac_key, content),
            key_id=data_key.key_id,
            transactions=TransactionTimes(
                min(time.min_at for time in times),
                max(time.max_at for time in times),
                all(time.is_exact for time in times),
            )
            if times
            else None,
        )
        body = encode_headed(
            header.to_payload(), seal(content, data_key, wal_context(header)), self.house.signer
        )
        self.house.store.put(str(SegmentKey(self.house.archive, name, os.urandom(4).hex())), body)


@dataclass
class RestoreReader:
    """Whoever has a store and the identity, and nothing else."""

    store: ObjectStore
    identity: Identity
    wrong_identity: Identity | None = None

    @property
    def repository(self) -> Repository:
        """The repository as the reader opens it: by its own root key, in the store it can reach."""
        return Repository.open(self.store, self.identity.root_signer().public)

    @property
    def data_keys(self) -> DataKeys:
        return DataKeys(self.repository, self.wrong_identity or self.identity)

    def survey(self) -> ArchiveSurvey:
        """Gather what the store holds, straight from its headers."""
        repository = self.repository
        archives = repository.archives()
        units = [
            WalUnit.of(key, repository.read_header(key))
            for archive in archives
            for timeline in repository.wal.timelines(archive)
            for key in repository.wal.objects(archive, timeline)
        ]
        return ArchiveSurvey(
            archive=max(archives),
            epochs=tuple(repository.epoch(archive) for archive in archives),
            histories={archive: repository.histories(archive) for archive in archives},
            backups=tuple(
                listed.manifest for archive in archives for listed in repository.manifests(archive).backups
            ),
            units=tuple(units),
            end=ArchiveEnd(None, True, "all regions answered"),
        )

    def plan(self, target: RecoveryTarget, *, backup: str | None = None) -> RestorePlan:
        """Return the plan with its exact stop."""
        repository, data_keys = self.repository, self.data_keys
        return resolve_plan(
            target, self.survey(), lambda unit: repository.read_wal(unit.key, data_keys), backup=backup
        )


def reader_of(folder: Path, identity: str) -> RestoreReader:
    """Return the reader of a repository that lies in one directory."""
    return RestoreReader(DirectoryStore(folder), Identity.parse(identity))


class RestoreHouse(RestoreReader):
    """A reader who also has the server's user, and restores."""

    def __init__(self, backups: BackupHouse, user: ServerUser | None) -> None:
        super().__init__(backups.store, backups.identity)
        self.backups = backups
        self.user = user

    def request(
        self, plan: RestorePlan, target: Path, server: RunningPostgres, **options: Any
    ) -> RestoreRequest:
        """Return a request with the tests' defaults; ``options`` are its fields."""
        request = RestoreRequest(
            plan=plan,
            target=target,
            action="promote",
            installation=server.instance.installation,
            fetch_command=(),
            user=self.user,
            patience_s=0.5,
            server_settings={"fsync": "off"},
        )
        return replace(request, **options)

    def restore(self, request: RestoreRequest) -> RestoreResult:
        return restore(request, self.repository, self.data_keys)


def archive_of(server: RunningPostgres, epoch: int = 1) -> ArchiveId:
    """Return the archive of a server's cluster."""
    system = server.value("SELECT system_identifier FROM pg_control_system()")
    return ArchiveId(int(str(system)), epoch)


def take_test_backup(archiver: HandArchiver, **options: object) -> BackupManifest:
    """Take a backup whose WAL is shipped by the archiver."""
    return archiver.house.back_up(archiver.server.dsn, wait_for_wal=archiver.gate, **options)


@dataclass(frozen=True)
class Moment:
    """One commit, and what the tables looked like right before and right after it."""

    number: int
    at: datetime
    xid: int
    before: LSN
    after: LSN
    tables_before: dict[str, str]
    tables: dict[str, str]


@dataclass
class History:
    """A server that has committed numbered rows, its archive, and what it looked like at each."""

    server: RunningPostgres
    archiver: HandArchiver
    restores: RestoreHouse
    base: dict[str, str]
    moments: list[Moment]
    end: dict[str, str]


# Every database, each index against its table, and each page of an index against the one above it.
AMCHECK = ("--all", "--install-missing", "--heapallindexed", "--parent-check", "-d", "postgres")
RESTORE_POINT = "before-the-fall"
HISTORY_SETTINGS = {**KEEP_WAL, "track_commit_timestamp": "on"}


def commit_row(server: RunningPostgres, number: int) -> Moment:
    """Commit one row and say when, where and as whom."""
    tables_before = table_digests(server.dsn)
    before = LSN.parse(str(server.value("SELECT pg_current_wal_insert_lsn()")))
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute(
            "INSERT INTO ledger VALUES (%s, repeat(md5(%s::text), 20))"
            " RETURNING pg_current_xact_id()::text::bigint",
            [number, number],
        ).fetchone()
        assert row is not None
    after = LSN.parse(str(server.value("SELECT pg_current_wal_insert_lsn()")))
    # The time in the commit record, which is what a time target is compared with.
    at = server.value("SELECT pg_xact_commit_timestamp(%s::text::xid)", str(row[0]))
    assert isinstance(at, datetime)
    return Moment(number, at, int(row[0]), before, after, tables_before, table_digests(server.dsn))


def make_history(server: RunningPostgres, user: ServerUser | None, store: ObjectStore) -> History:
    """Back the server up and go on: rows, updates, a restore point, a disaster; three segments and a part."""
    server.execute("CREATE TABLE ledger (n int PRIMARY KEY, filler text)")
    server.execute("CREATE TABLE bulk (id int PRIMARY KEY, text text)")
    server.execute("INSERT INTO bulk SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
    house = BackupHouse(store, archive_of(server))
    archiver = HandArchiver(house, server)
    archiver.begin()
    base = table_digests(server.dsn)
    take_test_backup(archiver)
    moments = [commit_row(server, 1)]
    server.execute("UPDATE bulk SET text = md5(text) WHERE id % 3 = 0")
    server.switch_wal()
    moments.append(commit_row(server, 2))
    server.execute("SELECT pg_create_restore_point(%s)", RESTORE_POINT)
    moments.append(commit_row(server, 3))
    server.execute("DELETE FROM bulk WHERE id > 100")
    server.switch_wal()
    moments.append(commit_row(server, 4))
    archiver.ship()
    return History(server, archiver, RestoreHouse(house, user), base, moments, table_digests(server.dsn))


def restore_to(history: History, target: RecoveryTarget, folder: Path, **options: object) -> RestoreResult:
    """Plan and restore into ``folder/data``."""
    house = history.restores
    return house.restore(house.request(house.plan(target), folder / "data", history.server, **options))


# What a restored cluster comes from: its server, or a history that has one.
Origin: TypeAlias = RunningPostgres | History


def _server(origin: Origin) -> RunningPostgres:
    return origin if isinstance(origin, RunningPostgres) else origin.server


def has_amcheck(instance: Instance) -> bool:
    """Tell whether pg_amcheck can judge a running server: the package of 16 has not what it asks for."""
    if instance.installation.major == 16:
        with psycopg.connect(instance.dsn) as connection:
            asked = "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'"
            return connection.execute(asked).fetchone() is not None
    return True


class Judge:
    """Looks at restored clusters, and ends every server that it or a restore started there."""

    def __init__(self, user: ServerUser | None) -> None:
        self._user = user
        self._instances: list[Instance] = []

    def tables(self, result: RestoreResult, databases: Sequence[str] = ("postgres",)) -> dict[str, str]:
        """Let PostgreSQL's own tools judge a cluster that the restore kept running; return its tables."""
        instance = self.adopt(result)
        digests = table_digests(instance.dsn, databases)
        examine_running(instance)
        return digests

    def adopt(self, result: RestoreResult) -> Instance:
        """Return the instance that the restore kept running; it is ended with the test."""
        assert result.instance is not None
        self._instances.append(result.instance)
        return result.instance

    def instance(self, origin: Origin, target: Path) -> Instance:
        """Return a restored cluster's instance as its owner has it; it is ended with the test."""
        instance = Instance(
            _server(origin).instance.installation,
            target,
            user=self._user,
            socket_dir=target.parent / "judge",
            port=free_port(),
            log_path=target.parent / "judge.log",
        )
        self._instances.append(instance)
        return instance

    def start(self, origin: Origin, target: Path, **settings: str) -> Instance:
        """Start a restored cluster as its owner would."""
        instance = self.instance(origin, target)
        instance.start(server_settings(instance.installation, settings), timeout_s=60)
        return instance

    def examine(
        self, origin: Origin, target: Path, databases: Sequence[str] = ("postgres",)
    ) -> dict[str, str]:
        """Let PostgreSQL's own tools judge a stopped cluster; return the tables of ``databases``."""
        self._run(origin, "pg_checksums", "--check", "-D", str(target))
        instance = self.start(origin, target)
        where = ["-h", str(instance.socket_dir), "-p", str(instance.port), "-U", "postgres"]
        if has_amcheck(instance):
            self._run(origin, "pg_amcheck", *AMCHECK, *where)
        digests = table_digests(instance.dsn, databases)
        instance.stop()
        return digests

    def close(self) -> None:
        for instance in self._instances:
            instance.kill()

    def _run(self, origin: Origin, name: str, *words: str) -> None:
        _run_tool(_server(origin).instance.installation, self._user, name, *words)


def examine_running(instance: Instance, *only: str) -> None:
    """Let PostgreSQL's own tools judge a restored cluster that runs; it is stopped in between.

    ``only`` are pg_amcheck's words for some tables, where all would take too long.
    """
    if has_amcheck(instance):
        where = ["-h", str(instance.socket_dir), "-p", str(instance.port), "-U", "postgres"]
        _run_tool(instance.installation, instance.user, "pg_amcheck", *AMCHECK, *only, *where)
    instance.stop()
    checked = ["--check", "-D", str(instance.data_dir)]
    _run_tool(instance.installation, instance.user, "pg_checksums", *checked)


def _run_tool(installation: Installation, user: ServerUser | None, name: str, *words: str) -> None:
    prefix, options = as_user(user)
    done = subprocess.run(
        [*prefix, str(installation.tool(name)), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
        cwd="/",
        **options,
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


@pytest.fixture
def judge(server_user_or_none: ServerUser | None) -> Iterator[Judge]:
    """A judge for this test's restores."""
    found = Judge(server_user_or_none)
    yield found
    found.close()
