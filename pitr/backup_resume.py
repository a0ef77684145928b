"""What an interrupted attempt at a backup has stored, as the next one looks it up and takes it over.

The journals are read into an SQLite file beside them, for those of a large cluster do not fit into memory.
Losing it costs a new beginning.  Nothing is taken over because of a name, a size or a time: the files are
read again, and whoever reads them says what is the same (``pitr.backup_reuse``).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.backup_journal_line import JournaledPack, frames_fields, read_frames
from pitr.catalogue.backup_record import StoredObject
from pitr.errors import BackupFailed
from pitr.notes_database import open_notes
from pitr.pipeline.content_mac import ContentMac
from pitr.pipeline.pack_contents import PackedFile
from pitr.pipeline.pack_writer import FileStatus
from pitr.pipeline.packs import FramePlace
from pitr.postgres.datadir import DataFile
from storage.store import ObjectInfo

_SCHEMA: Final = """
    CREATE TABLE pack (id INTEGER PRIMARY KEY, part INTEGER NOT NULL, number INTEGER NOT NULL,
                       key TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, sha256 BLOB NOT NULL,
                       key_id BLOB NOT NULL, places TEXT NOT NULL, held INTEGER NOT NULL DEFAULT 0,
                       UNIQUE (part, number));
    CREATE TABLE piece (pack INTEGER NOT NULL, place INTEGER NOT NULL, path BLOB NOT NULL,
                        frames TEXT NOT NULL, PRIMARY KEY (pack, place)) WITHOUT ROWID;
    CREATE INDEX piece_path ON piece (path);
    CREATE TABLE taken (path BLOB PRIMARY KEY, part INTEGER NOT NULL, last INTEGER NOT NULL,
                        size INTEGER, mode INTEGER, mtime INTEGER, parent INTEGER) WITHOUT ROWID;
"""
# Each part has one file that was not ended, and there may be gaps; more are copied anew, by all workers.
PUT_OFF_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class PutOff:
    """A file of which a beginning is stored, unchanged; the rest is copied behind it."""

    file: DataFile
    known: Sequence[PackedFile]


@dataclass(frozen=True, slots=True)
class TakenFile:
    """A file that is listed as it is stored.  ``size_bytes`` None: its rest is to be copied yet."""

    path: bytes
    size_bytes: int | None
    status: FileStatus
    parent_bytes: int | None


@dataclass(frozen=True, slots=True)
class TakenPiece:
    """What of a file is taken over from one pack; ``is_last`` of the file's."""

    file: TakenFile
    content: PackedFile
    is_last: bool


@dataclass(frozen=True, slots=True)
class TakenPack:
    """A pack of which something is taken over, with the key it is sealed with."""

    stored: StoredObject
    number: int
    places: tuple[FramePlace, ...]
    pieces: tuple[TakenPiece, ...]


class Resume:
    """The packs of earlier attempts at ``backup``, and what is taken over of them.  Thread-safe.

    Everything may raise BackupFailed: the notes could not be kept.
    """

    def __init__(self, backup: str, path: Path, mac: ContentMac) -> None:
        self.backup: Final = backup
        self.mac: Final = mac
        self._path = path
        self._lock = threading.Lock()
        self._put_off: dict[bytes, PutOff] = {}
        self.taken_bytes = 0
        with _mapped():
            self._database = open_notes(path, _SCHEMA)

    def close(self) -> None:
        """Forget everything.  May be repeated."""
        self._database.close()
        self._path.unlink(missing_ok=True)

    def add(self, key_id: bytes, pack: JournaledPack) -> None:
        """Learn of a pack from the journal of an attempt with the data key ``key_id``."""
        stored, contents = pack.stored, pack.contents
        places = json.dumps([[each.offset, each.sealed_bytes] for each in contents.places])
        row = (pack.part, pack.number, stored.key, stored.size_bytes, stored.sha256, key_id, places)
        files = [(file.path, json.dumps(frames_fields(file))) for file in contents.files]
        with _mapped(), self._lock:
            self._database.execute("BEGIN")
            cursor = self._database.execute(
                "INSERT INTO pack (part, number, key, size, sha256, key_id, places)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            self._database.executemany(
                "INSERT INTO piece VALUES (?, ?, ?, ?)",
                ((cursor.lastrowid, place, *file) for place, file in enumerate(files)),
            )
            self._database.execute("COMMIT")

    def confirm(self, objects: Iterable[ObjectInfo]) -> None:
        """Learn what the store still has; of other packs nothing is taken over."""
        with _mapped(), self._lock:
            self._database.execute("BEGIN")
            self._database.executemany(
                "UPDATE pack SET held = 1 WHERE key = ? AND size = ?",
                ((found.key, found.size_bytes) for found in objects),
            )
            self._database.execute("COMMIT")

    @property
    def held_bytes(self) -> int:
        """The sealed size of all packs that may be taken over."""
        return self._number("SELECT coalesce(sum(size), 0) FROM pack WHERE held")

    @property
    def next_part(self) -> int:
        """The first number that is no earlier part's."""
        return max(1, self._number("SELECT coalesce(max(part), 0) + 1 FROM pack"))

    def next_pack(self, part: int) -> int:
        """Return the first number that is no pack's of ``part``."""
        return self._number("SELECT coalesce(max(number), -1) + 1 FROM pack WHERE part = ?", part)

    def known(self, path: bytes) -> tuple[PackedFile, ...]:
        """Return what the newest attempt that has it stored of a file, pack by pack from its beginning."""
        with _mapped(), self._lock:
            rows = self._database.execute(
                "SELECT pack.part, pack.number, held, frames FROM piece JOIN pack ON pack.id = piece.pack"
                " WHERE path = ? ORDER BY pack.part DESC, pack.number",
                (path,),
            ).fetchall()
        if not rows:
            return ()
        newest, first = rows[0][:2]
        found: list[PackedFile] = []
        for part, number, is_held, frames in rows:
            # A gap is a pack that was lost on its way.  What comes behind it has no beginning.
            if part != newest or number != first + len(found) or not is_held:
                break
            found.append(read_frames(path, json.loads(frames), number))
        return tuple(found)

    def take(
        self,
        path: bytes,
        known: Sequence[PackedFile],
        size_bytes: int,
        status: FileStatus,
        parent_bytes: int | None,
    ) -> None:
        """Note that a file is as it is stored."""
        self._take(path, known, (size_bytes, status.mode, status.mtime, parent_bytes))

    def put_off(self, put_off: PutOff) -> bool:
        """Note that a file begins as it is stored; False if its rest cannot come behind that.

        It cannot where another file comes behind it in its last pack: its lines must not come between.
        """
        path, last = put_off.file.path, put_off.known[-1].frames[-1].extents[-1].pack
        with _mapped(), self._lock:
            (behind,) = self._database.execute(
                "SELECT path FROM piece WHERE pack = ("
                "SELECT pack.id FROM piece JOIN pack ON pack.id = piece.pack"
                " WHERE path = ? AND number = ? ORDER BY part DESC LIMIT 1) ORDER BY place DESC LIMIT 1",
                (path, last),
            ).fetchone()
            if behind != path or len(self._put_off) >= PUT_OFF_MAX:
                return False
            self._put_off[path] = put_off
        self._take(path, put_off.known, (None, None, None, None))
        return True

    def rest(self, path: bytes) -> PutOff:
        """Return what was put off."""
        with self._lock:
            return self._put_off[path]

    def _take(self, path: bytes, known: Sequence[PackedFile], status: tuple[int | None, ...]) -> None:
        extents = known[-1].frames[-1].extents
        with _mapped(), self._lock:
            # The part: that of the newest pack that holds the file, as ``known`` has it.
            self._database.execute(
                "INSERT INTO taken SELECT ?, max(pack.part), ?, ?, ?, ?, ? FROM piece"
                " JOIN pack ON pack.id = piece.pack WHERE path = ?",
                (path, extents[-1].pack, *status, path),
            )
            self.taken_bytes += sum(piece.content_bytes for piece in known)

    @property
    def taken_files(self) -> int:
        """How many files are as they are stored."""
        return self._number("SELECT count(*) FROM taken WHERE size IS NOT NULL")

    def parts(self) -> list[int]:
        """Return the parts of which something is taken over, ascending."""
        with _mapped(), self._lock:
            rows = self._database.execute("SELECT DISTINCT part FROM taken ORDER BY part").fetchall()
        return [part for (part,) in rows]

    def packs(self, part: int) -> Iterator[TakenPack]:
        """Yield the packs of ``part`` of which something is taken over, in the order of their numbers."""
        with _mapped(), self._lock:
            numbers = self._database.execute(
                "SELECT DISTINCT pack.id FROM pack JOIN piece ON piece.pack = pack.id JOIN taken USING (path)"
                " WHERE pack.part = ? AND taken.part = pack.part AND pack.number <= taken.last"
                " ORDER BY pack.number",
                (part,),
            ).fetchall()
        for (pack,) in numbers:
            yield self._pack(pack)

    def _pack(self, pack: int) -> TakenPack:
        with _mapped(), self._lock:
            number, key, size, sha256, key_id, places = self._database.execute(
                "SELECT number, key, size, sha256, key_id, places FROM pack WHERE id = ?", (pack,)
            ).fetchone()
            rows = self._database.execute(
                "SELECT path, frames, last, taken.size, mode, mtime, parent"
                " FROM piece JOIN taken USING (path) JOIN pack ON pack.id = piece.pack"
                " WHERE pack.id = ? AND taken.part = pack.part AND pack.number <= last ORDER BY place",
                (pack,),
            ).fetchall()
        frames = tuple(FramePlace(offset, sealed) for offset, sealed in json.loads(places))
        pieces = tuple(
            TakenPiece(
                TakenFile(path, file_size, FileStatus(mode or 0, mtime or 0), parent),
                read_frames(path, json.loads(content), number),
                is_last=last == number,
            )
            for path, content, last, file_size, mode, mtime, parent in rows
        )
        return TakenPack(StoredObject(key, size, sha256, len(frames), key_id), number, frames, pieces)

    def _number(self, query: str, *parameters: int) -> int:
        with _mapped(), self._lock:
            (value,) = self._database.execute(query, parameters).fetchone()
        return int(value)


@contextmanager
def _mapped() -> Iterator[None]:
    """Say that the notes cannot be kept, for no SQLite error leaves this module."""
    try:
        yield
    except sqlite3.Error as cause:
        raise BackupFailed(
            "could not keep notes on what an interrupted backup has stored",
            detail=str(cause),
            hint="free some room below the state directory, and take the backup again",
        ) from cause
