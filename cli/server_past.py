"""What a server says of its past, and where this host's archive ends: what a decision about both rests on."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cli.lock import RunLock
from cli.settings import LOCK_NAME, SPOOL_NAME
from pitr.archive_resume import archived_end
from pitr.errors import AlreadyRunning
from pitr.layout import ArchiveId, PieceKey, parse_wal_key
from pitr.postgres.replication import ReplicationConnection, ServerIdentity
from pitr.repository import Repository
from pitr.spool import DirectorySpool
from pitr.wal.follow import ReceivedEnd
from pitr.wal.timeline import TimelineHistory, TimelineId


@dataclass(frozen=True, slots=True)
class ServerPast:
    """A server and the history of its timeline."""

    dsn: str
    identity: ServerIdentity
    history: TimelineHistory
    segment_bytes: int
    is_standby: bool


def read_server(dsn: str) -> ServerPast:
    """Ask a server.  Raises ServerUnavailable, ServerRefused."""
    with closing(ReplicationConnection.connect(dsn)) as connection:
        identity = connection.identify()
        history = TimelineHistory(identity.timeline)
        if identity.timeline != TimelineId(1):
            content = connection.timeline_history(identity.timeline)
            history = TimelineHistory.parse(identity.timeline, content)
        return ServerPast(dsn, identity, history, connection.segment_bytes(), connection.is_standby())


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
