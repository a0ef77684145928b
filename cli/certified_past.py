"""What a recovery certificate says of a restored server's past: whose WAL it replayed, up to its own begin.

A restored server has of the timeline that it left only what its first segment repeats: at a segment's
boundary nothing, so its WAL cannot be compared (``cli.epoch_proof``).  The restore has left the proof: what
it read, and how the new timeline begins.  Not believed alone: the server must begin so, and the archive must
have what was read.
Reference: docs/restore.md, "The recovery certificate".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli.epochs import leaves_all
from cli.errors import UsageRefused
from cli.server_past import ServerPast
from pitr.catalogue.records import EpochParent
from pitr.errors import MalformedValue
from pitr.recovery_certificate import FORMAT, begin_of
from pitr.restore_request import CERTIFICATE_SUFFIX
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_deliveries import Delivery

# A line for each segment: a year of WAL at a segment a minute.
_BYTES_MAX: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class CertifiedPast:
    """``archive`` was read up to ``left_at`` of ``timeline``, where ``following`` began as ``begin_sha256``.

    ``last`` is the last segment of ``timeline`` that was read.
    """

    repository: str
    archive: str
    timeline: TimelineId
    left_at: LSN
    following: TimelineId
    begin_sha256: str
    last: Delivery

    def is_of(self, server: ServerPast, timeline: TimelineId, until: LSN) -> bool:
        """Tell whether the server is the one of this recovery, and left ``timeline`` there.

        Raises ServerUnavailable.
        """
        way = [*((one.timeline, one.lsn) for one in server.history.switches), (server.history.timeline, None)]
        if (timeline, until) != (self.timeline, self.left_at) or (timeline, until) not in way:
            return False
        end = begin_of(self.left_at, server.segment_bytes)
        if way[way.index((timeline, until)) + 1][0] != self.following or end is None:
            return False
        begin = server.served(self.following, self.left_at, end)
        return begin is not None and hashlib.sha256(begin).hexdigest() == self.begin_sha256


def find_certified(server: ServerPast, file: Path | None) -> CertifiedPast | None:
    """Read the certificate that is named, else the one beside the data directory; None without one.

    One that was not named and cannot be read is as good as none.  Raises UsageRefused for one that was.
    """
    if file is None:
        data = server.data_directory
        if data is None:
            return None
        try:
            return read_certified(data.with_name(f"{data.name}{CERTIFICATE_SUFFIX}"))
        except (OSError, MalformedValue):
            return None
    try:
        found = read_certified(file)
    except (OSError, MalformedValue) as cause:
        raise UsageRefused(
            f"{file} is no recovery certificate", detail=str(cause), hint="pitr restore leaves one beside DIR"
        ) from cause
    if found is None:
        raise UsageRefused(
            f"{file} says nothing of how its cluster began: it was not promoted, or by an earlier version",
            hint="without it, an archive of which nothing is proven is restored with --archive",
        )
    return found


def read_certified(file: Path) -> CertifiedPast | None:
    """Read a certificate; None if its cluster was not promoted.  Raises MalformedValue, OSError."""
    with file.open("rb") as stream:
        content = stream.read(_BYTES_MAX + 1)
    try:
        fields: Any = json.loads(content) if len(content) <= _BYTES_MAX else {}
        if fields["format"] != FORMAT:
            raise MalformedValue(f"its format is not {FORMAT}")
        promoted, spans = fields["promoted"], fields["timelines"]
        if promoted is None or promoted.get("begin_sha256") is None:
            return None
        timeline = TimelineId.parse(spans[-1]["timeline"])
        last = fields["wal"]["delivered"][-1]
        delivery = Delivery(
            SegmentName.parse(last["segment"]), int(last["bytes"]), str(last["sha256"]), whole=0, pieces=0
        )
        if delivery.segment.timeline != timeline or delivery.wal_bytes < 1:
            return None  # what was read last is not of the timeline that was left
        return CertifiedPast(
            repository=str(fields["repository"]),
            archive=str(fields["archive"]),
            timeline=timeline,
            left_at=LSN.parse(promoted["left_at"]),
            following=TimelineId.parse(promoted["timeline"]),
            begin_sha256=str(promoted["begin_sha256"]),
            last=delivery,
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as cause:
        raise MalformedValue("it lacks what a recovery certificate has") from cause


def unproven(server: ServerPast, parent: EpochParent | None) -> str | None:
    """Return in words what of the server's past is not proven to be archived; None if all of it is."""
    if not server.history.switches or leaves_all(server.history, parent):
        return None
    left = server.history.switches[-1]
    return (
        f"the server left timeline {left.timeline} at {left.lsn}, and no archive is proven to have that WAL:"
        " until its next base backup is complete nothing of the new epoch can be restored, and what was"
        " archived before only with --archive and --timeline (docs/failover.md)"
    )
