"""The writer epoch that ``pitr init`` gives a cluster: the one this host writes already, or the next one.

A host that writes the newest epoch keeps it while its server goes on from what is archived.  A server that
was restored or set back goes on from somewhere before; it gets an epoch of its own, and with it a new key,
for by its key a writer is told from all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from cli.epoch_proof import ArchiveProof
from cli.epochs import ArchivedPast, Sameness, find_parent, leaves_all
from cli.lock import RunLock
from cli.settings import LOCK_NAME, SPOOL_NAME
from cli.setup_keys import HostKeyFiles
from pitr.archive_resume import archived_end
from pitr.catalogue.records import EpochParent, EpochRecord, HeadRecord
from pitr.errors import AlreadyRunning, ArchiveDiverged
from pitr.layout import ArchiveId, PieceKey, parse_wal_key
from pitr.pipeline.keys import IdentityFile
from pitr.postgres.replication import ReplicationConnection, ServerIdentity
from pitr.repository import Repository
from pitr.spool import DirectorySpool
from pitr.wal.follow import ReceivedEnd, next_run
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId
from storage.regions import Region


@dataclass(frozen=True, slots=True)
class WrittenEpoch:
    """The epoch that this host writes now; ``left`` says how its server left the one that it wrote before."""

    record: EpochRecord
    is_new: bool
    left: str | None = None


@dataclass(frozen=True, slots=True)
class _Server:
    dsn: str
    identity: ServerIdentity
    history: TimelineHistory
    segment_bytes: int
    is_standby: bool


def put_epoch(
    dsn: str,
    repository: Repository,
    regions: Sequence[Region],
    identity: IdentityFile,
    keys: HostKeyFiles,
    slot_start: LSN,
    *,
    state_dir: Path | None,
    now: datetime,
    random: Callable[[int], bytes],
) -> WrittenEpoch:
    """Let this host write: take its epoch if it has the newest and goes on from it, else make the next one.

    ``state_dir`` is the host's if it may leave its epoch: where the server left what this host archived,
    a new key is made for a new epoch, and the old one is kept aside.  May be repeated after a kill.
    Raises AlreadyRunning if a daemon writes as the old one still.
    """
    server = _read_server(dsn)
    system_identifier = server.identity.system_identifier
    epochs = sorted(
        (
            repository.epoch(one)
            for one in repository.archives()
            if one.system_identifier == system_identifier
        ),
        key=lambda record: record.archive.epoch,
    )
    newest = epochs[-1] if epochs else None
    past = _Past(server, repository, identity, epochs)
    signer, left = keys.read_or_make(random), None
    staged = keys.read_next() if state_dir is not None else None
    is_new = False
    own = next((one for one in reversed(epochs) if one.signer == str(signer.public)), None)
    if newest is not None and staged is not None and newest.signer == str(staged.public):
        # A run before this one was killed when the epoch was made already.
        signer, is_new = staged, True
    elif own is not None and newest is not None and state_dir is not None:
        left = past.how_left(newest.archive, state_dir) if own == newest else _superseded(own, newest)
        if left is not None:
            _check_stopped(state_dir)
            signer = staged or keys.make_next(random)
    record = newest
    if record is None or record.signer != str(signer.public):
        parent = past.find_parent(slot_start)
        archive = ArchiveId(system_identifier, 1 if newest is None else newest.archive.epoch + 1)
        record = EpochRecord(identity.repository, archive, now, str(signer.public), parent)
        is_new = True
    # Also where it is there: a region that was down when the epoch was made gets its record now.
    for region in regions:
        Repository(region.store, identity.repository, identity.root).write_epoch(
            record, identity.identity.root_signer()
        )
    # Only now: before the new epoch is there, the old key is the one that may write.
    keys.take_next(signer, 0 if own is None else own.archive.epoch)
    return WrittenEpoch(record, is_new, left)


def _read_server(dsn: str) -> _Server:
    with closing(ReplicationConnection.connect(dsn)) as connection:
        identity = connection.identify()
        history = TimelineHistory(identity.timeline)
        if identity.timeline != TimelineId(1):
            content = connection.timeline_history(identity.timeline)
            history = TimelineHistory.parse(identity.timeline, content)
        return _Server(dsn, identity, history, connection.segment_bytes(), connection.is_standby())


def _superseded(own: EpochRecord, newest: EpochRecord) -> str:
    return f"it wrote epoch {own.archive.epoch}, and another host writes epoch {newest.archive.epoch}"


def _check_stopped(state_dir: Path) -> None:
    holder = RunLock.holder(state_dir / LOCK_NAME)
    if holder is not None:
        raise AlreadyRunning(
            "the daemon of this host still runs, with the key of the epoch that the server has left",
            detail=f"it is process {holder}",
            hint="stop it, then repeat the same command",
        )


def _last_spooled(state_dir: Path, archive: ArchiveId) -> PieceKey | None:
    """Return the last piece that a daemon, which has ended, has not put yet."""
    folder = state_dir / SPOOL_NAME
    if not folder.is_dir() or RunLock.holder(state_dir / LOCK_NAME) is not None:
        return None
    spool = DirectorySpool(folder, bytes_max=1)  # nothing is added
    try:
        keys = [parse_wal_key(one.key) for one in spool.objects() if one.key.startswith("wal/")]
    finally:
        spool.close()
    pieces = [key for key in keys if isinstance(key, PieceKey) and key.archive == archive]
    return max(pieces, key=lambda key: key.sequence, default=None)


class _Past:
    """What is archived of the server's cluster, read where it is needed."""

    def __init__(
        self, server: _Server, repository: Repository, identity: IdentityFile, epochs: Sequence[EpochRecord]
    ) -> None:
        self._server = server
        self._repository = repository
        self._identity = identity
        self._epochs = epochs
        self._histories: Mapping[ArchiveId, Sequence[TimelineHistory]] = {
            record.archive: repository.histories(record.archive) for record in epochs
        }

    def how_left(self, archive: ArchiveId, state_dir: Path) -> str | None:
        """Return in words how the server left what ``archive`` has; None if it goes on from there."""
        server = self._server
        end = archived_end(self._repository, archive)
        spooled = _last_spooled(state_dir, archive)
        if spooled is not None and (end is None or spooled.sequence > end.piece_sequence):
            received = ReceivedEnd(spooled.segment.timeline, spooled.end)
        elif end is not None and end.end is not None:
            received = ReceivedEnd(end.timeline, end.end)
        else:
            return None
        flushed = server.identity.flushed
        try:
            run = next_run(received, server.history, flushed, segment_bytes=server.segment_bytes)
        except ArchiveDiverged as diverged:
            return f"{diverged.message}: {diverged.detail}"
        if run is None:
            # A standby that lags gets there; a primary that ends earlier was set back.
            return (
                None if server.is_standby else f"its WAL ends at {flushed}, the archive's at {received.end}"
            )
        if self._compare(archive, received.timeline, received.end) is Sameness.DIFFERENT:
            return f"its WAL on timeline {received.timeline} is not what is archived up to {received.end}"
        return None

    def find_parent(self, start: LSN) -> EpochParent | None:
        """Return the epoch that has most of the server's way, the newest of those that have as much."""
        best: EpochParent | None = None
        for record in reversed(self._epochs):
            archive = record.archive
            head = self._repository.latest_head(archive)
            if head is None and record.parent is not None:
                continue  # it wrote nothing: what it has is its parent's
            found = find_parent(
                self._server.history,
                self._archived(archive, head),
                start,
                partial(self._compare, archive),
            )
            if found is not None and (best is None or best.lsn < found.lsn):
                best = found
            if leaves_all(self._server.history, best):
                break
        return best

    def _archived(self, archive: ArchiveId, head: HeadRecord | None) -> ArchivedPast:
        histories = self._histories[archive]
        if head is None:
            return ArchivedPast(archive.epoch, histories, None)
        return ArchivedPast(archive.epoch, histories, head.wal_end, head.timeline)

    def _compare(self, archive: ArchiveId, timeline: TimelineId, until: LSN) -> Sameness:
        proof = ArchiveProof(
            self._server.dsn,
            self._repository,
            self._identity.identity,
            archive,
            self._epochs,
            self._histories,
            flushed=self._server.identity.flushed,
            segment_bytes=self._server.segment_bytes,
        )
        return proof.compare(self._server.history, timeline, until)
