"""The recovery certificate: a JSON statement of what a recovery read, where it ended, and that all was there.

It is written before the cluster is opened, and only if every segment of the plan's path was delivered by this
restore and replay stands exactly at the planned LSN; after promotion the new timeline is added.

Not here: a signature.  Who restores holds the reader's identity and no writer's key; the statement can be
compared with the signed archive, for it has the digest of each segment's WAL.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from pitr.errors import RecoveryFailed, RestoreRefused
from pitr.recovery import instant_text
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_deliveries import Delivery, DeliveryNotes
from pitr.wal_path import PathSpan, WalPath
from storage.synced_file import sync_directory

FORMAT: Final = "pitr-recovery-certificate/1"
# What a timeline begins with: perhaps a page header of 40 bytes, then the record of the recovery's end with
# its time in microseconds, or a checkpoint's, whose time is in the first 138; a checkpoint of ours follows,
# so that more is on disk.  PostgreSQL src/include: access/xlog_internal.h, catalog/pg_control.h.
BEGIN_BYTES: Final = 160
_SHOWN_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Promoted:
    """The timeline that the opened cluster is on, and where it left the old one.

    ``begin_sha256`` is the digest of the timeline's first ``BEGIN_BYTES`` bytes of WAL, which no other
    cluster has: they hold the microsecond when it began.  None where they do not lie within one segment.
    """

    timeline: TimelineId
    left_at: LSN
    begin_sha256: str | None = None


def begin_of(left_at: LSN, segment_bytes: int) -> LSN | None:
    """Return where a timeline's first bytes end, which began at ``left_at``; None if in the next segment."""
    end = LSN(left_at.offset + BEGIN_BYTES)
    return end if left_at.offset % segment_bytes + BEGIN_BYTES <= segment_bytes else None


class Certifier:
    """Makes the certificate of one recovery.

    ``is_resumed``: after an earlier run was killed its server may have fetched WAL alone, which nobody noted.
    """

    def __init__(
        self,
        file: Path,
        plan: RestorePlan,
        stop: StopPoint,
        path: WalPath,
        notes: DeliveryNotes,
        *,
        is_resumed: bool,
    ) -> None:
        self._file = file
        self._plan = plan
        self._stop = stop
        self._path = path
        self._notes = notes
        self._is_resumed = is_resumed
        self._replayed: LSN | None = None
        self._last_xact_at: datetime | None = None

    @property
    def segment_bytes(self) -> int:
        return self._path.segment_bytes

    def arrived(self, replayed: LSN, last_xact_at: datetime | None) -> None:
        """State that replay stands at ``replayed``, which is the planned LSN; to be called before promotion.

        Raises RecoveryFailed if WAL came from elsewhere than the plan, or the file cannot be written: either
        way the cluster must not be opened.
        """
        absent = [name for name in self._path.segment_names() if self._notes.get(name) is None]
        if absent and not self._is_resumed:
            shown = ", ".join(str(name) for name in absent[:_SHOWN_MAX])
            raise RecoveryFailed(
                "replay reached its target without WAL that is on the way",
                detail=f"{len(absent)} segments were not delivered by this restore: {shown}",
                hint="do not use this cluster; something else answered the server's questions: restore again",
            )
        self._replayed, self._last_xact_at = replayed, last_xact_at
        self._write(None)

    def promoted(self, promoted: Promoted) -> None:
        """Add what the cluster became.  Raises RecoveryFailed if the file cannot be written."""
        self._write(promoted)

    def _write(self, promoted: Promoted | None) -> None:
        statement = certificate(
            self._plan, self._stop, self._path, self._notes, self._replayed, self._last_xact_at, promoted
        )
        staged = self._file.with_name(f".{self._file.name}.new")
        try:
            with staged.open("w", encoding="utf-8") as stream:
                json.dump(statement, stream, indent=1)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            staged.replace(self._file)
            sync_directory(self._file.parent)
        except OSError as cause:
            raise RecoveryFailed(
                f"the recovery certificate {self._file} could not be written",
                detail=str(cause),
                hint="free some room or mend the disk, and run the restore again",
            ) from cause


def check_writable(file: Path) -> None:
    """Raise RestoreRefused if the certificate cannot be written there; change nothing."""
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK) or file.is_dir():
        raise RestoreRefused(
            f"the recovery certificate cannot be written to {file}",
            detail="its folder must exist and be writable",
            hint="name another place: --certificate FILE",
        )


def certificate(
    plan: RestorePlan,
    stop: StopPoint,
    path: WalPath,
    notes: DeliveryNotes,
    replayed: LSN | None,
    last_xact_at: datetime | None,
    promoted: Promoted | None,
) -> Mapping[str, object]:
    """Return the statement's fields (docs/restore.md, "The recovery certificate")."""
    deliveries = [(name, notes.get(name)) for name in path.segment_names()]
    found = [one for _, one in deliveries if one is not None]
    last = stop.last_commit
    return {
        "format": FORMAT,
        "repository": plan.backup.repository,
        "archive": str(plan.archive),
        "system_identifier": str(path.system_identifier),
        "backup": plan.backup.backup,
        "parents": [one.backup for one in plan.parents],
        "target": str(plan.target),
        "timelines": [_span(span, path) for span in path.spans],
        "wal": {
            "start": str(LSN(path.spans[0].first * path.segment_bytes)),
            "redo": str(plan.backup.start_lsn),
            "end": str(path.end),
            "segments": len(deliveries),
            "objects": {
                "whole": sum(one.whole for one in found),
                "pieces": sum(one.pieces for one in found),
            },
            "bytes": sum(one.wal_bytes for one in found),
            "sha256": _sum(found),
            "delivered": [
                {"segment": str(one.segment), "bytes": one.wal_bytes, "sha256": one.sha256} for one in found
            ],
            "fetched_alone_after_a_crash": [str(name) for name, one in deliveries if one is None],
        },
        "holes": "none",
        "replay": {"planned_end": str(stop.replay_end), "end": str(replayed)},
        "last_commit": None
        if last is None
        else {"at": instant_text(last.at), "xid": last.xid, "lsn": str(last.end)},
        "last_transaction_at": None if last_xact_at is None else instant_text(last_xact_at),
        "promoted": None
        if promoted is None
        else {
            "timeline": str(promoted.timeline),
            "left_at": str(promoted.left_at),
            "begin_sha256": promoted.begin_sha256,
        },
    }


def _span(span: PathSpan, path: WalPath) -> Mapping[str, object]:
    first, last = _names(span, path)
    return {
        "timeline": str(span.timeline),
        "first_segment": str(first),
        "last_segment": str(last),
        "segments": span.last - span.first + 1,
    }


def _names(span: PathSpan, path: WalPath) -> Iterator[SegmentName]:
    for number in (span.first, span.last):
        yield SegmentName.of(span.timeline, number, path.segment_bytes)


def _sum(deliveries: list[Delivery]) -> str:
    """Return one digest over all segments, by their names and digests, in the order of replay."""
    digest = hashlib.sha256()
    for one in deliveries:
        digest.update(f"{one.segment} {one.wal_bytes} {one.sha256}\n".encode("ascii"))
    return digest.hexdigest()
