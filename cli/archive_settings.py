"""What the configuration says to the archiver.  Pure."""

from __future__ import annotations

from cli.settings import Settings
from pitr.archive_values import PIECE_BYTES_MAX, ArchiveSettings


def archive_settings(settings: Settings) -> ArchiveSettings:
    """Return how WAL is streamed and shipped."""
    wal = settings.wal
    # Several must fit the spool, or the first that does not shrink would wait for ever.
    fits_bytes = min(PIECE_BYTES_MAX, settings.daemon.spool_bytes_max // 4)
    return ArchiveSettings(
        slot=settings.cluster.slot,
        piece_bytes=wal.piece_bytes,
        piece_age_s=wal.piece_age_s,
        piece_bytes_max=max(fits_bytes, wal.piece_bytes),
        puts_in_flight=wal.puts_in_flight,
        sync_puts_in_flight=wal.sync_puts_in_flight,
        sync_spacing_s=wal.sync_spacing_s,
        quorum=settings.write_quorum,
    )
