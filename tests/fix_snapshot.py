"""What a daemon says of itself, for whoever shows it."""

from __future__ import annotations

from datetime import UTC, datetime

from cli.snapshot import BackupSnapshot, DaemonSnapshot, ProtectionSnapshot, RegionSnapshot

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
ERROR = "another host was let in as this cluster's writer"
SNAPSHOT = DaemonSnapshot(
    at=NOW,
    started_at=NOW,
    pid=1,
    cluster="main",
    archive="7000000000000000001/00000001",
    quorum=1,
    is_streaming=True,
    timeline="00000001",
    received_lsn=None,
    shipped_lsn=None,
    durable_lsn=None,
    server_lsn=None,
    received_bytes=0,
    durable_bytes=0,
    backlog_bytes=0,
    spool_bytes=0,
    rpo_s=0.5,
    slot_retained_bytes=None,
    wal_disk=None,
    head_at=None,
    is_catalogue_complete=True,
    regions=(RegionSnapshot("eu", True, 0.0, 0, 0, None, None, 0, ()),),
    protection=ProtectionSnapshot(False, 0, "durable in the quorum of regions", None, 0, None, None),
    backup=BackupSnapshot(None, None, None, None, None, 0, None, None, None, None, 2),
    tasks=(),
    events={},
    last_error=ERROR,
)
