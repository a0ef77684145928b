"""What a server says of its past, and where this host's archive ends: what a decision about both rests on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from cli.lock import RunLock
from cli.settings import LOCK_NAME, SPOOL_NAME
from pitr.archive_resume import archived_end
from pitr.errors import AlreadyRunning, ServerRefused
from pitr.layout import ArchiveId, PieceKey, parse_wal_key
from pitr.postgres.replication import ReplicationConnection, ServerIdentity
from pitr.postgres.server import Server
from pitr.postgres.wal_folder import WalFolder
from pitr.repository import Repository
from pitr.spool import DirectorySpool
from pitr.wal.follow import ReceivedEnd
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId

# Returns the server's WAL of a timeline from one LSN to another, within a segment; None if it has none there
# any more, or never had.  Raises ServerUnavailable.
ServedWal: TypeAlias = Callable[[TimelineId, LSN, LSN], bytes | None]


@dataclass(frozen=True, slots=True)
class ServerPast:
    """A server, the history of its timeline, and its WAL.

    ``history_files`` are for an archive that no stream brings them to: PostgreSQL hands none over that was
    made while it archived nothing, as in a restore.
    """

    identity: ServerIdentity
    history: TimelineHistory
    segment_bytes: int
    is_standby: bool
    served: ServedWal
    history_files: tuple[tuple[TimelineId, bytes], ...] = ()
    data_directory: Path | None = None


def read_server(dsn: str, *, streams: bool = True) -> ServerPast:
    """Ask a server.  Raises ServerUnavailable, ServerRefused.

    ``streams`` False: it lets nobody replicate; it is asked by SQL, and its files are read.
    """
    if not streams:
        return _read_files(dsn)
    with closing(ReplicationConnection.connect(dsn)) as connection:
        identity = connection.identify()
        history = TimelineHistory(identity.timeline)
        if identity.timeline != TimelineId(1):
            content = connection.timeline_history(identity.timeline)
            history = TimelineHistory.parse(identity.timeline, content)
        return ServerPast(
            identity,
            history,
            connection.segment_bytes(),
            connection.is_standby(),
            partial(_streamed, dsn),
            data_directory=connection.data_directory(),
        )


def _read_files(dsn: str) -> ServerPast:
    with Server.connect(dsn) as server:
        facts = server.facts()
        timeline, flushed, is_standby = server.wal_position()
    folder = WalFolder(facts.data_directory / "pg_wal", facts.segment_bytes)
    history, files = TimelineHistory(timeline), []
    if timeline != TimelineId(1):
        own = folder.timeline_history(timeline)
        history = TimelineHistory.parse(timeline, own)
        for ancestor in (one.timeline for one in history.switches if one.timeline != TimelineId(1)):
            # A restored server need not have it, and the newest one names all of them.
            with suppress(ServerRefused):
                files.append((ancestor, folder.timeline_history(ancestor)))
        files.append((timeline, own))
    return ServerPast(
        ServerIdentity(facts.system_identifier, timeline, flushed),
        history,
        facts.segment_bytes,
        is_standby,
        lambda of, start, end: folder.read_wal(start, end, history, of),
        tuple(files),
        facts.data_directory,
    )


def _streamed(dsn: str, timeline: TimelineId, start: LSN, end: LSN) -> bytes | None:
    try:
        with closing(ReplicationConnection.connect(dsn)) as connection:
            return connection.read_wal(start, end, timeline)
    except ServerRefused:
        return None


def received_end(repository: Repository, archive: ArchiveId, state_dir: Path) -> ReceivedEnd | None:
    """Return where the archive ends with what a daemon, which has ended, has not put yet.

    None if nothing is archived.  Raises as ``archived_end``.
    """
    end = archived_end(repository, archive)
    spooled = _last_spooled(state_dir, archive)
    if spooled is not None and (end is None or spooled.sequence > end.piece_sequence):
        return ReceivedEnd(spooled.segment.timeline, spooled.end)
    if end is not None and end.end is not None:
        return ReceivedEnd(end.timeline, end.end)
    return None


def check_stopped(state_dir: Path, why: str) -> None:
    """Raise AlreadyRunning while a daemon works on a state directory."""
    holder = RunLock.holder(state_dir / LOCK_NAME)
    if holder is not None:
        raise AlreadyRunning(
            f"the daemon of this host still runs{why}",
            detail=f"it is process {holder}",
            hint="stop it, then repeat the same command",
        )


def _last_spooled(state_dir: Path, archive: ArchiveId) -> PieceKey | None:
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
