"""What of the WAL path was handed to recovery: which segments, made of which objects, and their digests.

The feeder notes each segment when it lies in the spool.  The notes are kept beside it, so that a restore that
goes on after a crash still knows what its earlier runs delivered.  Losing them loses a part of the recovery
certificate, and nothing else.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.errors import MalformedValue
from pitr.wal.segment import SegmentName

_LINE_BYTES_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Delivery:
    """One segment as recovery got it: ``sha256`` is that of its WAL, without the zeros after its end."""

    segment: SegmentName
    wal_bytes: int
    sha256: str
    whole: int
    pieces: int


class DeliveryNotes:
    """The deliveries of one restore, in a file that is only added to.  Thread-safe."""

    def __init__(self, file: Path) -> None:
        """Take in what earlier runs noted; a line that a crash cut is left out.  Raises OSError."""
        self._lock = threading.Lock()
        self._by_segment: dict[str, Delivery] = {}
        self._file = file.open("ab+")
        self._file.seek(0)
        line = b"\n"
        for line in self._file:
            found = _parse(line)
            if found is not None:
                self._by_segment[str(found.segment)] = found
        if not line.endswith(b"\n"):
            self._file.write(b"\n")

    def add(self, delivery: Delivery) -> None:
        """Note a segment that was delivered, perhaps not for the first time.  Raises OSError."""
        fields = [
            str(delivery.segment), delivery.wal_bytes, delivery.sha256, delivery.whole, delivery.pieces
        ]  # fmt: skip
        line = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
        with self._lock:
            self._by_segment[str(delivery.segment)] = delivery
            self._file.write(line)
            self._file.flush()

    def get(self, segment: SegmentName) -> Delivery | None:
        with self._lock:
            return self._by_segment.get(str(segment))

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _parse(line: bytes) -> Delivery | None:
    if len(line) > _LINE_BYTES_MAX:
        return None
    try:
        segment, wal_bytes, sha256, whole, pieces = json.loads(line)
        return Delivery(SegmentName.parse(segment), int(wal_bytes), str(sha256), int(whole), int(pieces))
    except (ValueError, TypeError, MalformedValue):
        return None


def notes_file(plan_file: Path) -> Path:
    """Return where the notes of the plan's deliveries are."""
    return plan_file.with_name("deliveries.jsonl")
