"""What a replication slot costs its server: the WAL that it keeps, how much more it may, and the disk.

Reference: PostgreSQL manual, pg_replication_slots, pg_ls_waldir (for pg_monitor); 15 to 18.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.errors import ServerRefused
from pitr.postgres.server import Server
from pitr.wal.lsn import LSN

_SLOT: Final = (
    "SELECT s.restart_lsn::text, s.wal_status, s.safe_wal_size, s.active, e.lsn::text,"
    " (SELECT redo_lsn::text FROM pg_control_checkpoint())"
    " FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
    " ELSE pg_current_wal_lsn() END AS lsn) e"
    " LEFT JOIN pg_replication_slots s ON s.slot_name = %s"
)
_DIRECTORY: Final = "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
_RATE: Final = "SELECT wal_bytes, extract(epoch FROM clock_timestamp() - stats_reset) FROM pg_stat_wal"
_LIMIT: Final = "SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
_RATE_SPAN_MIN_S: Final = 600.0
_WAL_DIRECTORY: Final = "SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()"


@dataclass(frozen=True, slots=True)
class SlotWatch:
    """One look at a slot.  ``restart`` None: it keeps nothing, or there is none (``status`` None, too).

    ``redo`` is where recovery after a crash would begin.
    ``spare_bytes``: how much more it may keep; None without max_slot_wal_keep_size.
    ``wal_directory_bytes`` None: the role may not see it.
    """

    end: LSN
    redo: LSN
    restart: LSN | None
    status: str | None
    spare_bytes: int | None
    is_active: bool
    wal_directory_bytes: int | None
    data_directory: Path | None

    @property
    def kept_bytes(self) -> int:
        return 0 if self.restart is None else max(0, self.end - self.restart)

    @property
    def droppable_bytes(self) -> int:
        return 0 if self.restart is None else max(0, self.redo - self.restart)


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The file system that holds ``pg_wal``, as an ordinary user may use it."""

    free_bytes: int
    total_bytes: int


def watch_slot(server: Server, slot: str) -> SlotWatch:
    """Look at a slot.  Raises as ``Server`` does."""
    restart, status, spare, active, end, redo = server.rows(_SLOT, slot)[0]
    directory = server.rows(_DIRECTORY)
    try:
        wal_bytes: int | None = int(str(server.rows(_WAL_DIRECTORY)[0][0]))
    except ServerRefused:
        wal_bytes = None
    return SlotWatch(
        end=LSN.parse(str(end)),
        redo=LSN.parse(str(redo)),
        restart=None if restart is None else LSN.parse(str(restart)),
        status=None if status is None else str(status),
        spare_bytes=None if spare is None else int(str(spare)),
        is_active=bool(active),
        wal_directory_bytes=wal_bytes,
        data_directory=Path(str(directory[0][0])) if directory else None,
    )


def wal_rate(server: Server) -> float | None:
    """Return the bytes of WAL a second since the statistics began; None where that is not long ago."""
    wal_bytes, seconds = server.rows(_RATE)[0]
    if wal_bytes is None or seconds is None or float(str(seconds)) < _RATE_SPAN_MIN_S:
        return None
    return float(str(wal_bytes)) / float(str(seconds))


def slot_limit_bytes(server: Server) -> int | None:
    """Return max_slot_wal_keep_size; None where a slot may keep all."""
    megabytes = int(str(server.rows(_LIMIT)[0][0]))
    return None if megabytes < 0 else megabytes << 20


def wal_disk_space(data_directory: Path) -> DiskSpace | None:
    """Return the space where this host has ``pg_wal``; None where it is not seen from here."""
    try:
        # A link as well: pg_wal is often on a disk of its own.
        found = os.statvfs(data_directory / "pg_wal")
    except OSError:
        return None
    return DiskSpace(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
