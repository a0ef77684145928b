"""A server's own ``pg_wal``, read as files: where no replication connection is allowed.

The server writes and recycles meanwhile.  Of WAL that it has flushed the files hold what was flushed; each
page says where it stands, so one that holds other WAL already is seen.

Reference: PostgreSQL src/backend/replication/walsender.c (which file holds the end of a timeline that was
left), src/include/access/xlog_internal.h.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pitr.errors import MalformedValue, ServerRefused
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_BYTES, WalGeometry, decode_page_header
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import HISTORY_BYTES_MAX, TimelineHistory, TimelineId


class WalFolder:
    """Reads WAL and history files; changes nothing."""

    def __init__(self, path: Path, segment_bytes: int) -> None:
        self._path: Final = path
        self._geometry: Final = WalGeometry(segment_bytes)

    def timeline_history(self, timeline: TimelineId) -> bytes:
        """Return the content of a timeline's history file.  Raises ServerRefused, MalformedValue."""
        path = self._path / f"{timeline}.history"
        try:
            with path.open("rb") as file:
                content = file.read(HISTORY_BYTES_MAX + 1)
        except OSError as cause:
            raise ServerRefused(
                f"the history of the server's timeline cannot be read: {cause.strerror}",
                detail=f"it is in {path}",
                hint="run pitr on the database host, as the user who owns the data directory",
            ) from cause
        if len(content) > HISTORY_BYTES_MAX:
            raise MalformedValue(
                f"history file of timeline {timeline} has more than {HISTORY_BYTES_MAX} bytes"
            )
        return content

    def read_wal(self, start: LSN, end: LSN, history: TimelineHistory, timeline: TimelineId) -> bytes | None:
        """Return WAL of a timeline of this history, within one segment; None if it is not there any more."""
        segment_bytes = self._geometry.segment_bytes
        number = start.offset // segment_bytes
        assert end.offset <= (number + 1) * segment_bytes, "WAL is archived within segments"
        left_at = history.end_of(timeline)
        if left_at is not None and end > left_at:
            return None
        for name in self._names(number, history, timeline):
            content = self._read(name, number * segment_bytes, start, end)
            if content is not None:
                return content
        return None

    def _names(self, number: int, history: TimelineHistory, timeline: TimelineId) -> list[str]:
        """Return the files that may hold it: a timeline that was left ends in the next one's first."""
        way = [*(switch.timeline for switch in history.switches), history.timeline]
        following = way[way.index(timeline) + 1 :] if timeline in way else []
        own, *others = [
            str(SegmentName.of(one, number, self._geometry.segment_bytes)) for one in (timeline, *following)
        ]
        return [own, f"{own}.partial", *others]

    def _read(self, name: str, begin: int, start: LSN, end: LSN) -> bytes | None:
        """Return the bytes if every page of them stands where it says."""
        first_page = start.offset - start.offset % PAGE_BYTES
        try:
            with (self._path / name).open("rb") as file:
                file.seek(first_page - begin)
                content = file.read(end.offset - first_page)
        except OSError:
            return None
        if len(content) != end.offset - first_page:
            return None
        try:
            for offset in range(first_page, end.offset, PAGE_BYTES):
                header = content[offset - first_page : offset - first_page + PAGE_BYTES]
                if len(header) >= self._geometry.header_bytes(offset):
                    decode_page_header(header, offset, self._geometry)
        except MalformedValue:
            return None
        return content[start.offset - first_page :]
