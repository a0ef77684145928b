"""How the archiver does at a moment, put together from what its parts say.  Pure."""

from __future__ import annotations

from datetime import datetime

from pitr.archive_flow_values import FlowStatus
from pitr.archive_values import ArchiveStatus
from pitr.wal.lsn import LSN


def status_at(
    now_s: float,
    flow: FlowStatus,
    *,
    is_streaming: bool,
    is_handed_over: bool,
    server_end: LSN | None,
    spool_bytes: int,
    last_head_at: datetime | None,
    last_error: str | None,
) -> ArchiveStatus:
    """Return the status; ``now_s`` is monotonic, as the flow's times are."""
    received, durable = flow.received, flow.durable
    return ArchiveStatus(
        is_streaming=is_streaming,
        timeline=None if received is None else received.timeline,
        received=None if received is None else received.end,
        sealed=flow.sealed,
        durable=None if durable is None else durable.end,
        server_end=server_end,
        received_bytes=flow.received_bytes,
        durable_bytes=flow.durable_bytes,
        backlog_bytes=flow.backlog_bytes,
        spool_bytes=spool_bytes,
        pieces_waiting=flow.pieces_waiting,
        segments_waiting=flow.segments_waiting,
        oldest_unshipped_age_s=_age_s(now_s, flow.oldest_s),
        oldest_unflushed_age_s=_age_s(now_s, flow.oldest_unflushed_s),
        last_head_at=last_head_at,
        last_error=last_error,
        durable_since=None if durable is None else durable.start,
        acknowledged=flow.flushed,
        is_synchronous=flow.is_synchronous,
        puts=flow.puts,
        is_handed_over=is_handed_over,
    )


def status_before_start(last_error: str | None, spool_bytes: int) -> ArchiveStatus:
    """Return the status of an archiver that does not know yet where its archive ends."""
    return ArchiveStatus(
        is_streaming=False,
        timeline=None,
        received=None,
        sealed=None,
        durable=None,
        server_end=None,
        received_bytes=0,
        durable_bytes=0,
        backlog_bytes=0,
        spool_bytes=spool_bytes,
        pieces_waiting=0,
        segments_waiting=0,
        oldest_unshipped_age_s=None,
        last_head_at=None,
        last_error=last_error,
    )


def _age_s(now_s: float, since_s: float | None) -> float | None:
    return None if since_s is None else max(now_s - since_s, 0.0)
