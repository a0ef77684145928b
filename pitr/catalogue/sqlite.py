"""The catalogue in SQLite: what is stored, without asking the store.  A cache and an index only.

Its *content* is derived from the store's signed objects and from nothing else, so that a rebuilt
catalogue is equal: epochs, histories, backups, WAL units and the newest head.  Which regions hold
what, and how they are, is observation; it is kept beside and is no content.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import sqlite_utils

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.coverage import coverage_intervals
from pitr.catalogue.records import EpochRecord, HeadRecord, HistoryRecord
from pitr.catalogue.wal_records import (
    CoverageInterval,
    PieceHeader,
    SegmentHeader,
    TransactionTimes,
    WalHeader,
    WalUnit,
    check_key,
    piece_numbers,
)
from pitr.errors import MalformedValue, NotInitialised, PitrError
from pitr.layout import ArchiveId, PieceKey, SegmentKey, parse_wal_key
from pitr.pipeline.sign import decode_payload, decode_time, encode_payload, encode_time
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory

SCHEMA_VERSION: Final = 1
_HINT: Final = "it is only a cache: run `pitr catalogue rebuild`"
# Content, with the order in which it is dumped; what is left out is observation.
_CONTENT: Final = {
    "epochs": ("system_identifier", "epoch", "payload"),
    "histories": ("system_identifier", "epoch", "timeline", "payload"),
    "backups": ("system_identifier", "epoch", "backup", "object_sha256", "payload"),
    "wal_units": (
        "key",
        "segment_bytes",
        "start_lsn",
        "end_lsn",
        "first_piece",
        "last_piece",
        "min_at",
        "max_at",
        "is_exact",
    ),
    "heads": ("system_identifier", "epoch", "sequence", "payload_sha256", "payload"),
}
_BUSY_TIMEOUT_S: Final = 10


@dataclass(frozen=True, slots=True)
class CataloguedBackup:
    """A backup as the catalogue has it, with the SHA-256 of its manifest's object."""

    manifest: BackupManifest
    object_sha256: bytes


@dataclass(frozen=True, slots=True)
class CataloguedHead:
    """The newest head that was recorded, and the SHA-256 of its payload."""

    head: HeadRecord
    payload_sha256: bytes


@dataclass(frozen=True, slots=True)
class RegionState:
    """How a region was when last seen; ``detail`` is its last error or empty."""

    name: str
    is_healthy: bool
    pending_objects: int
    seen_at: datetime
    detail: str = ""


class Catalogue:
    """One catalogue.  Thread-safe: one connection, one lock.

    Opening raises NotInitialised if the file is not there (``create=False``), MalformedValue if it is
    damaged, of another version, or no catalogue.
    """

    def __init__(self, path: Path | str, *, create: bool = True) -> None:
        self.path: Final = path
        if not create and path != ":memory:" and not Path(path).exists():
            raise NotInitialised(f"there is no catalogue {path}", hint=_HINT)
        self._lock = threading.RLock()
        with _own_errors(path):
            connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._database = sqlite_utils.Database(connection)
        try:
            with _own_errors(path):
                self._prepare()
        except PitrError:
            self._database.close()
            raise

    def _prepare(self) -> None:
        # A cache may lose its last second in a power cut, but must not be torn: WAL with NORMAL does that.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not self._database.table_names():
            schema = resources.files("pitr.catalogue").joinpath("schema.sql").read_text("utf-8")
            self._database.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
        elif version != SCHEMA_VERSION:
            raise MalformedValue(
                f"catalogue {self.path} has version {version}, this program knows {SCHEMA_VERSION}",
                hint=_HINT,
            )
        verdict = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise MalformedValue(f"catalogue {self.path} is damaged", detail=str(verdict), hint=_HINT)

    def close(self) -> None:
        """Close the file.  The catalogue must not be used afterwards."""
        with self._lock:
            self._database.close()

    def record_epoch(self, record: EpochRecord) -> None:
        """Record who writes an archive.  May be repeated, as all of these."""
        self._put("epochs", record.archive, record.to_payload())

    def record_history(self, record: HistoryRecord) -> None:
        """Record a timeline's history file."""
        self._put("histories", record.archive, record.to_payload(), timeline=str(record.timeline))

    def record_backup(self, manifest: BackupManifest, object_sha256: bytes) -> None:
        """Record a backup whose manifest is at quorum."""
        self._put(
            "backups",
            manifest.archive,
            manifest.to_payload(),
            backup=manifest.backup,
            object_sha256=object_sha256.hex(),
        )

    def record_head(self, head: HeadRecord, payload_sha256: bytes) -> None:
        """Record a signed end, unless a newer one is known."""
        with self._writing():
            known = self.head(head.archive)
            if known is None or known.head.sequence <= head.sequence:
                self._put(
                    "heads",
                    head.archive,
                    head.to_payload(),
                    sequence=head.sequence,
                    payload_sha256=payload_sha256.hex(),
                )

    def record_wal(self, header: WalHeader, key: PieceKey | SegmentKey, regions: Iterable[str] = ()) -> None:
        """Record a piece or segment that is at quorum.  A whole segment takes the place of its pieces.

        Raises MalformedValue if key and header disagree.
        """
        check_key(key, header)
        row = _wal_row(header, key, regions)
        with self._writing():
            if isinstance(header, SegmentHeader):
                self._record_segment(row)
            elif not self._is_superseded(row):
                self._upsert("wal_units", row, ("key",))

    def _is_superseded(self, row: Mapping[str, Any]) -> bool:
        found = self._database.execute(
            "SELECT 1 FROM wal_units WHERE system_identifier = ? AND epoch = ? AND is_segment = 1"
            " AND timeline = ? AND start_lsn <= ? AND end_lsn >= ? LIMIT 1",
            [row[name] for name in ("system_identifier", "epoch", "timeline", "start_lsn", "end_lsn")],
        )
        return found.fetchone() is not None

    def _record_segment(self, row: Mapping[str, Any]) -> None:
        """Keep one row for each segment: the copy that holds most, of equal ones the first by name."""
        place = [row[name] for name in ("system_identifier", "epoch", "segment")]
        rivals = self._database.query(
            "SELECT key, start_lsn, end_lsn FROM wal_units"
            " WHERE system_identifier = ? AND epoch = ? AND is_segment = 1 AND segment = ?",
            place,
        )
        best = min([row, *rivals], key=_segment_rank)
        if best["key"] != row["key"]:
            return
        self._database.execute(
            "DELETE FROM wal_units WHERE system_identifier = ? AND epoch = ? AND segment = ?"
            " AND (is_segment = 1 OR (start_lsn >= ? AND end_lsn <= ?))",
            [*place, row["start_lsn"], row["end_lsn"]],
        )
        self._upsert("wal_units", row, ("key",))

    def record_region_state(self, state: RegionState) -> None:
        """Record how a region is."""
        row = {
            "name": state.name,
            "is_healthy": int(state.is_healthy),
            "pending_objects": state.pending_objects,
            "seen_at": encode_time(state.seen_at),
            "detail": state.detail,
        }
        with self._writing():
            self._upsert("regions", row, ("name",))

    def archives(self) -> list[ArchiveId]:
        """Return the archives that have an epoch record."""
        rows = self._rows("SELECT system_identifier, epoch FROM epochs ORDER BY system_identifier, epoch")
        return [ArchiveId(int(row["system_identifier"]), row["epoch"]) for row in rows]

    def epochs(self) -> tuple[EpochRecord, ...]:
        """Return all epoch records."""
        rows = self._rows("SELECT payload FROM epochs ORDER BY system_identifier, epoch")
        return tuple(EpochRecord.from_payload(_payload(row)) for row in rows)

    def histories(self, archive: ArchiveId) -> tuple[TimelineHistory, ...]:
        """Return an archive's timeline histories, ascending by timeline."""
        return tuple(record.history() for record in self.history_records(archive))

    def history_records(self, archive: ArchiveId) -> tuple[HistoryRecord, ...]:
        """Return an archive's history files."""
        rows = self._of("SELECT payload FROM histories", archive, "ORDER BY timeline")
        return tuple(HistoryRecord.from_payload(_payload(row)) for row in rows)

    def backups(self, archive: ArchiveId) -> list[CataloguedBackup]:
        """Return an archive's backups by their ids."""
        rows = self._of("SELECT object_sha256, payload FROM backups", archive, "ORDER BY backup")
        return [
            CataloguedBackup(
                BackupManifest.from_payload(_payload(row)),
                bytes.fromhex(row["object_sha256"]),
            )
            for row in rows
        ]

    def wal_units(self, archive: ArchiveId) -> tuple[WalUnit, ...]:
        """Return an archive's WAL units by timeline and start."""
        rows = self._of("SELECT * FROM wal_units", archive, "ORDER BY timeline, start_lsn, end_lsn, key")
        return tuple(_wal_unit(row) for row in rows)

    def coverage(self, archive: ArchiveId) -> list[CoverageInterval]:
        """Return what is stored of an archive, by timeline, with its holes between the intervals."""
        return coverage_intervals(self.wal_units(archive))

    def head(self, archive: ArchiveId) -> CataloguedHead | None:
        """Return the newest head that was recorded."""
        for row in self._of("SELECT payload, payload_sha256 FROM heads", archive, ""):
            head = HeadRecord.from_payload(_payload(row))
            return CataloguedHead(head, bytes.fromhex(row["payload_sha256"]))
        return None

    def regions(self) -> list[RegionState]:
        """Return what was last seen of each region."""
        return [
            RegionState(
                row["name"],
                bool(row["is_healthy"]),
                row["pending_objects"],
                decode_time(row["seen_at"]),
                row["detail"],
            )
            for row in self._rows("SELECT * FROM regions ORDER BY name")
        ]

    def dump(self) -> str:
        """Return the content as text, one line for each row; equal content gives equal text."""
        lines: list[str] = []
        for table, columns in _CONTENT.items():
            names = ", ".join(columns)
            for row in self._rows(f"SELECT {names} FROM {table}"):
                lines.append(f"{table} {json.dumps(row, sort_keys=True, separators=(',', ':'))}")
        return "".join(f"{line}\n" for line in sorted(lines))

    def clear(self) -> None:
        """Remove all content, before a rebuild in the same transaction."""
        with self._writing():
            for table in _CONTENT:
                self._database.execute(f"DELETE FROM {table}")

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Make everything that is recorded inside visible at once, or not at all."""
        with self._writing():
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, _own_errors(self.path), self._database.atomic():
            yield

    def _put(self, table: str, archive: ArchiveId, payload: Mapping[str, object], **more: object) -> None:
        row = {**_place(archive), **more, "payload": encode_payload(payload).decode("ascii")}
        keys = ("system_identifier", "epoch", *(name for name in ("timeline", "backup") if name in more))
        with self._writing():
            self._upsert(table, row, keys)

    def _upsert(self, table: str, row: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        self._database.table(table).insert(dict(row), pk=keys, replace=True)

    def _of(self, select: str, archive: ArchiveId, order: str) -> list[dict[str, Any]]:
        place = _place(archive)
        return self._rows(f"{select} WHERE system_identifier = ? AND epoch = ? {order}", list(place.values()))

    def _rows(self, select: str, values: list[object] | None = None) -> list[dict[str, Any]]:
        with self._lock, _own_errors(self.path):
            return list(self._database.query(select, values or []))


def _place(archive: ArchiveId) -> dict[str, object]:
    return {"system_identifier": str(archive.system_identifier), "epoch": archive.epoch}


def _payload(row: Mapping[str, Any]) -> dict[str, object]:
    """Return a record's payload; it was verified before it was recorded, but a file can be edited."""
    return decode_payload(row["payload"].encode("utf-8"))


def _segment_rank(row: Mapping[str, Any]) -> tuple[int, str]:
    return (int(row["start_lsn"], 16) - int(row["end_lsn"], 16), row["key"])


def _wal_row(header: WalHeader, key: PieceKey | SegmentKey, regions: Iterable[str]) -> dict[str, object]:
    is_piece = isinstance(header, PieceHeader)
    first, last = piece_numbers(header)
    times = header.transactions
    return {
        "key": str(key),
        **_place(header.archive),
        "timeline": str(header.timeline),
        "segment": str(key.segment),
        "segment_bytes": header.segment_bytes,
        "start_lsn": f"{header.start.offset:016X}",
        "end_lsn": f"{header.end.offset:016X}",
        "first_piece": first,
        "last_piece": last,
        "is_segment": int(not is_piece),
        "min_at": None if times is None else encode_time(times.min_at),
        "max_at": None if times is None else encode_time(times.max_at),
        "is_exact": None if times is None else int(times.is_exact),
        "regions": ",".join(sorted(regions)),
    }


def _wal_unit(row: Mapping[str, Any]) -> WalUnit:
    times: TransactionTimes | None = None
    if row["min_at"] is not None:
        times = TransactionTimes(
            decode_time(row["min_at"]), decode_time(row["max_at"]), bool(row["is_exact"])
        )
    return WalUnit(
        key=parse_wal_key(row["key"]),
        start=LSN(int(row["start_lsn"], 16)),
        end=LSN(int(row["end_lsn"], 16)),
        segment_bytes=row["segment_bytes"],
        transactions=times,
        regions=tuple(name for name in row["regions"].split(",") if name),
        pieces=(row["first_piece"], row["last_piece"]),
    )


@contextmanager
def _own_errors(path: Path | str) -> Iterator[None]:
    """Let no error of SQLite's leave: each means that the cache is of no use now."""
    try:
        yield
    except sqlite3.OperationalError as cause:
        raise NotInitialised(
            f"catalogue {path} cannot be used",
            detail=str(cause),
            hint="check the disk and who holds the file",
        ) from cause
    except sqlite3.DatabaseError as cause:
        raise MalformedValue(f"catalogue {path} is damaged", detail=str(cause), hint=_HINT) from cause
