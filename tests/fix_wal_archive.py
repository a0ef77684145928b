"""An archiver at work between a real server and a store of ours, and the archive as a reader sees it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from fix_postgres import RunningPostgres

from pitr.archive import WalArchiver
from pitr.archive_values import (
    ArchiveEvent,
    ArchiveEventKind,
    ArchiveSettings,
    DrainResult,
    ForkJudge,
    NoJudge,
)
from pitr.catalogue.records import EpochRecord, HeadRecord, HistoryRecord, RepositoryRecord
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader
from pitr.datakeys import DataKeys, HostKeys
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.pipeline.keys import Identity
from pitr.pipeline.sign import Signer
from pitr.postgres.address import ConfiguredAddress
from pitr.repository import Repository
from pitr.spool import DirectorySpool, Spool
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import ObjectStore

REPOSITORY_ID = "00112233445566778899aabbccddeeff"
SLOT = "pitr_test"
# Far longer than anything here takes, even on a busy machine: a test that waits so long has failed.
WAIT_S = 90.0


def now() -> datetime:
    return datetime.now(UTC)


def wait_until(is_so: Callable[[], object], what: str) -> None:
    """Poll: the other side is a real server or a thread of ours, and has no event to wait for."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.02)


@dataclass
class Told:
    """An ``ArchiveEvents`` that remembers."""

    histories: list[HistoryRecord] = field(default_factory=list)
    pieces: list[tuple[PieceKey, PieceHeader]] = field(default_factory=list)
    segments: list[tuple[SegmentKey, SegmentHeader]] = field(default_factory=list)
    heads: list[HeadRecord] = field(default_factory=list)
    events: list[ArchiveEvent] = field(default_factory=list)
    backups_wanted: list[str] = field(default_factory=list)

    def on_history(self, history: HistoryRecord) -> None:
        self.histories.append(history)

    def on_piece_durable(self, key: PieceKey, header: PieceHeader, header_sha256: bytes) -> None:
        self.pieces.append((key, header))

    def on_segment_durable(self, key: SegmentKey, header: SegmentHeader, header_sha256: bytes) -> None:
        self.segments.append((key, header))

    def on_head(self, head: HeadRecord, payload_sha256: bytes) -> None:
        self.heads.append(head)

    def on_event(self, event: ArchiveEvent) -> None:
        self.events.append(event)

    def request_full_backup(self, reason: str) -> None:
        self.backups_wanted.append(reason)

    def has(self, kind: ArchiveEventKind) -> bool:
        return any(event.kind == kind for event in self.events)


class WalHouse:
    """A repository in ``store`` with one archive, the host that writes it and the reader that opens it."""

    def __init__(self, store: ObjectStore, system_identifier: int, seed: int = 1) -> None:
        self.identity = Identity(bytes([seed]) * 32)
        self.signer = Signer(bytes([seed + 1]) * 32)
        self.archive = ArchiveId(system_identifier, 1)
        root = self.identity.root_signer()
        self.recipient = self.identity.recipient()
        record = RepositoryRecord(REPOSITORY_ID, now(), str(root.public), (str(self.recipient),))
        epoch = EpochRecord(REPOSITORY_ID, self.archive, now(), str(self.signer.public))
        self.repository = Repository(store, REPOSITORY_ID, root.public)
        if not any(True for _ in store.list_objects("repository")):
            Repository.create(store, record, root)
            self.repository.write_epoch(epoch, root)

    def reopened(self, store: ObjectStore) -> Repository:
        """The same repository through another store object, as a new process sees it."""
        return Repository(store, REPOSITORY_ID, self.repository.root)

    def archiver(
        self,
        dsn: str,
        spool: Spool,
        told: Told,
        *,
        settings: ArchiveSettings | None = None,
        repository: Repository | None = None,
        judge: ForkJudge = NoJudge(),  # noqa: B008 - it has no state
        clock: Callable[[], datetime] = now,
    ) -> WalArchiver:
        repository = repository or self.repository
        return WalArchiver(
            address=ConfiguredAddress(dsn),
            archive=self.archive,
            repository=repository,
            signer=self.signer,
            keys=HostKeys(repository, self.archive, self.signer, [self.recipient], random=os.urandom),
            spool=spool,
            events=told,
            settings=settings or quick_settings(),
            judge=judge,
            clock=clock,
            random=os.urandom,
        )

    def wal(self, timeline: int, repository: Repository | None = None) -> ArchivedWal:
        """All WAL of a timeline as a reader opens it."""
        return read_wal(repository or self.repository, self.archive, self.identity, TimelineId(timeline))


def quick_settings(**changes: Any) -> ArchiveSettings:
    values: dict[str, Any] = {
        "slot": SLOT,
        "piece_age_s": 0.1,
        "head_interval_s": 0.5,
        "retry_pause_s_max": 0.3,
        **changes,
    }
    return ArchiveSettings(**values)


@dataclass
class RunningArchiver:
    """``run`` in a thread, and what it returned or raised."""

    archiver: WalArchiver
    told: Told
    thread: threading.Thread = field(init=False)
    result: DrainResult | None = None
    failure: BaseException | None = None

    def start(self) -> RunningArchiver:
        self.thread = threading.Thread(target=self._run, name="archiver", daemon=True)
        self.thread.start()
        return self

    def _run(self) -> None:
        try:
            self.result = self.archiver.run()
        except BaseException as failure:  # noqa: BLE001 - the top of a thread: join() raises it
            self.failure = failure

    def stop(self, deadline_s: float = 30.0) -> DrainResult:
        self.archiver.stop(deadline_s)
        return self.join()

    def join(self) -> DrainResult:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the archiver does not end"
        if self.failure is not None:
            raise self.failure
        assert self.result is not None
        return self.result

    def wait_streaming(self) -> None:
        wait_until(lambda: self.failure or self.archiver.status().is_streaming, "streaming")
        if self.failure is not None:
            raise self.failure

    def wait_durable(self, lsn: str | LSN) -> None:
        end = LSN.parse(lsn) if isinstance(lsn, str) else lsn

        def is_durable() -> bool:
            durable = self.archiver.status().durable
            return self.failure is not None or (durable is not None and durable >= end)

        wait_until(is_durable, f"{end} to be durable: {self.archiver.status()} {self.told.events[-3:]}")
        if self.failure is not None:
            raise self.failure


@contextmanager
def archiving(
    house: WalHouse,
    dsn: str,
    spool_dir: Path,
    *,
    settings: ArchiveSettings | None = None,
    repository: Repository | None = None,
    spool: Spool | None = None,
    judge: ForkJudge = NoJudge(),  # noqa: B008 - it has no state
    clock: Callable[[], datetime] = now,
) -> Iterator[RunningArchiver]:
    """An archiver that streams; at the end it is stopped, in order unless the test failed."""
    own = None
    if spool is None:
        spool = own = DirectorySpool(spool_dir, bytes_max=1 << 30)
    told = Told()
    running = RunningArchiver(
        house.archiver(dsn, spool, told, settings=settings, repository=repository, judge=judge, clock=clock),
        told,
    )
    running.start()
    try:
        yield running
        if running.thread.is_alive():
            running.stop()
    finally:
        running.archiver.stop(0.0)
        running.thread.join(WAIT_S)
        if own is not None:
            own.close()


@dataclass(frozen=True)
class ArchivedWal:
    """A timeline as its pieces and its whole segments hold it."""

    timeline: TimelineId
    pieces: tuple[tuple[PieceHeader, bytes], ...]
    segments: dict[str, bytes]

    @property
    def start(self) -> LSN:
        return self.pieces[0][0].start

    @property
    def end(self) -> LSN:
        return self.pieces[-1][0].end

    def content(self) -> bytes:
        """The pieces' WAL, which must be contiguous."""
        for (before, _), (after, _) in zip(self.pieces, self.pieces[1:], strict=False):
            assert after.start == before.end, f"{after.start} follows {before.end}"
            assert after.sequence == before.sequence + 1
        return b"".join(content for _, content in self.pieces)

    def assert_equals_server(self, data_dir: Path, segment_bytes: int = 16 << 20) -> int:
        """Compare with every segment file that the server has; return how many bytes were compared."""
        content, start, compared = self.content(), self.start.offset, 0
        assert start % segment_bytes == 0
        for at in range(start, start + len(content), segment_bytes):
            part = content[at - start : at - start + segment_bytes]
            number = at // segment_bytes
            per_high = (1 << 32) // segment_bytes
            name = f"{self.timeline}{number // per_high:08X}{number % per_high:08X}"
            if name in self.segments:
                assert self.segments[name] == part, f"segment {name} differs from its pieces"
            path = data_dir / "pg_wal" / name
            if path.exists():
                with path.open("rb") as file:
                    assert file.read(len(part)) == part, f"{name} differs from the server's"
                compared += len(part)
        return compared


def read_wal(
    repository: Repository, archive: ArchiveId, identity: Identity, timeline: TimelineId
) -> ArchivedWal:
    keys = DataKeys(repository, identity)
    pieces: dict[int, tuple[PieceHeader, bytes]] = {}
    segments: dict[str, bytes] = {}
    for key in repository.wal_objects(archive, timeline):
        header = repository.read_header(key)
        content = repository.read_wal(key, keys)
        if isinstance(header, PieceHeader):
            assert header.sequence not in pieces
            pieces[header.sequence] = (header, content)
        else:
            segments[str(header.segment)] = content
    return ArchivedWal(timeline, tuple(pieces[sequence] for sequence in sorted(pieces)), segments)


class Load:
    """A few sessions that commit all the while; the server may go away under them."""

    def __init__(self, server: RunningPostgres, sessions: int = 2, row_bytes: int = 200) -> None:
        self._server = server
        self._row_bytes = row_bytes
        self._stopping = threading.Event()
        self.commits = 0
        server.execute("CREATE TABLE IF NOT EXISTS load (id bigserial PRIMARY KEY, text text)")
        self._threads = [threading.Thread(target=self._commit_all, daemon=True) for _ in range(sessions)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(WAIT_S)

    def wait_commits(self, more: int) -> None:
        target = self.commits + more
        wait_until(lambda: self.commits >= target, f"{more} commits")

    def _commit_all(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._server.dsn, autocommit=True, connect_timeout=5) as connection:
                    while not self._stopping.is_set():
                        connection.execute(
                            "INSERT INTO load (text) SELECT repeat(md5(random()::text), %s)",
                            [self._row_bytes // 32 or 1],
                        )
                        self.commits += 1
            except psycopg.Error:
                self._stopping.wait(0.1)


def system_identifier(server: RunningPostgres) -> int:
    return int(str(server.value("SELECT system_identifier FROM pg_control_system()")))


def flush_lsn(server: RunningPostgres) -> LSN:
    return LSN.parse(str(server.value("SELECT pg_current_wal_flush_lsn()")))
