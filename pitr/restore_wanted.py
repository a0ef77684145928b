"""What of a backup's files is still wanted from the backups before it, and the sums of what was found.

A chain is read from its newest backup to the full one.  Each byte of a file is taken from the first backup
that has it and from no other, so each is read and written once, however long the chain is.  A backup of which
something is wanted must list the file: an older one's bytes are no substitute for it.

Of files that are whole in the newest backup nothing is kept here.  The others are in an SQLite file in the
restore's work directory: a large cluster's do not fit into memory.  Losing it costs a new beginning.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.errors import MalformedValue, NotAuthentic, RestoreRefused
from pitr.notes_database import open_notes
from pitr.pipeline.crc import FileCrc32c
from pitr.pipeline.packs import Extent, IndexFile

_SCHEMA: Final = """
    CREATE TABLE file (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
                       mode INTEGER NOT NULL, mtime INTEGER NOT NULL, wanted BLOB NOT NULL,
                       depth INTEGER NOT NULL);
    CREATE INDEX unfinished ON file (depth) WHERE length(wanted) > 0;
    CREATE TABLE piece (file INTEGER NOT NULL, start INTEGER NOT NULL, size INTEGER NOT NULL,
                        crc INTEGER NOT NULL, PRIMARY KEY (file, start)) WITHOUT ROWID;
"""
_BATCH_PIECES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file from ``start`` to ``end``."""

    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file that was put together, and their CRC-32C."""

    file: int
    start: int
    size_bytes: int
    crc32c: int


class Claim:
    """One file of one backup while its lines are read: what it gives of what is still wanted."""

    def __init__(self, path: bytes, wanted: list[Span], file: int | None) -> None:
        self.path = path
        # None in the newest backup, where it is not known yet whether the file is whole.
        self.file = file
        # Whole ones, of which the sums are known without looking at bytes.
        self.taken: list[Extent] = []
        self._left = deque(wanted)
        self._kept: list[Span] = []

    def take(self, extent: Extent) -> tuple[Span, ...]:
        """Return what of the extent is wanted, and want it no more.  Extents come in order."""
        taken = []
        end = extent.offset + extent.size_bytes
        while self._left and self._left[0].start < end:
            span = self._left.popleft()
            if span.start < extent.offset:
                self._kept.append(Span(span.start, min(span.end, extent.offset)))
            if span.end > extent.offset:
                taken.append(Span(max(span.start, extent.offset), min(span.end, end)))
            if span.end > end:
                self._left.appendleft(Span(end, span.end))
        if self.file is None:
            self.taken.append(extent)
        return tuple(taken)

    def rest(self, parent_bytes: int | None) -> list[Span]:
        """Return what is wanted of the parent; what it cannot have is zero, and stays as it is."""
        limit = parent_bytes or 0
        rest = [Span(span.start, min(span.end, limit)) for span in (*self._kept, *self._left)]
        return [span for span in rest if span.start < span.end]


class WantedFiles:
    """The files that are not whole in the newest backup.  ``add_piece`` may be called from any thread.

    Everything may raise RestoreRefused: the notes could not be written.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._lock = threading.Lock()
        self._pieces: list[Piece] = []
        # Of the backup that is being read; 0 is the newest.
        self._depth = 0
        with _mapped():
            self._database = open_notes(path, _SCHEMA)
            # One transaction to the end: nobody else reads the file, and each statement by itself would write
            # its pages: 40 µs of CPU for each file and backup of a chain.
            self._database.execute("BEGIN")

    def close(self) -> None:
        """Forget everything, also after a failure: recovery, which comes next, may need the room."""
        # To close within a transaction is to roll back, and without a journal SQLite must not be made to.
        with suppress(sqlite3.Error):
            self._database.execute("COMMIT")
        self._database.close()
        # Left over it is only large; the next restore here begins anew.
        with suppress(OSError):
            self._path.unlink()

    def begin(self, file: IndexFile, rest: list[Span]) -> int:
        """Note a file of the newest backup that its parents must complete; return its number."""
        try:
            with _mapped(), self._lock:
                cursor = self._database.execute(
                    "INSERT INTO file (path, size, mode, mtime, wanted, depth) VALUES (?, ?, ?, ?, ?, 0)",
                    (file.path, file.size_bytes, file.mode, file.mtime, _encode(rest)),
                )
        except sqlite3.IntegrityError as cause:
            raise MalformedValue(f"the index lists {file.path!r} twice") from cause
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def claim(self, path: bytes) -> Claim | None:
        """Return what is wanted of a file; None if it is not one of ours, or nothing is.

        Raises MalformedValue if this backup has listed it before.
        """
        with _mapped(), self._lock:
            row = self._database.execute(
                "SELECT id, wanted, depth FROM file WHERE path = ?", (path,)
            ).fetchone()
        if row is None:
            return None
        number, wanted, depth = row
        if depth == self._depth:
            raise MalformedValue(f"the index lists {path!r} twice")
        return Claim(path, _decode(wanted), number) if wanted else None

    def settle(self, claim: Claim, rest: list[Span]) -> None:
        """Note what the backup of this claim has not given."""
        with _mapped(), self._lock:
            self._database.execute(
                "UPDATE file SET wanted = ?, depth = ? WHERE id = ?", (_encode(rest), self._depth, claim.file)
            )

    def begin_parent(self) -> None:
        """Go on with the next older backup."""
        self._depth += 1

    def end_backup(self, backup: str) -> None:
        """Check that ``backup``, which has been read, listed every file of which something was wanted.

        Raises NotAuthentic: those before it are no substitute.
        """
        with _mapped(), self._lock:
            missing = self._database.execute(
                "SELECT path FROM file WHERE length(wanted) > 0 AND depth < ? LIMIT 1", (self._depth,)
            ).fetchone()
        if missing is not None:
            raise NotAuthentic(
                f"backup {backup} lacks {os.fsdecode(missing[0])}",
                detail="a later backup holds only what changed of it since",
                hint=f"restore from other backups: --without {backup}",
            )

    def add_piece(self, piece: Piece) -> None:
        """Note the sum of bytes that were taken."""
        with _mapped(), self._lock:
            self._pieces.append(piece)
            if len(self._pieces) >= _BATCH_PIECES:
                self._flush()

    def finish(self, backup: str) -> Iterator[IndexFile]:
        """Yield the files with the CRC of all their bytes, in the order of ``begin``.

        Raises NotAuthentic if something is still wanted: ``backup``, the oldest of the chain, lacks it.
        """
        with _mapped(), self._lock:
            self._flush()
        with _mapped():
            for number, path, size, mode, mtime, wanted in self._database.execute(
                "SELECT id, path, size, mode, mtime, wanted FROM file ORDER BY id"
            ):
                if wanted:
                    raise NotAuthentic(
                        f"backup {backup} lacks {os.fsdecode(path)}",
                        detail="a later backup holds only what changed of it since",
                    )
                yield IndexFile(path, size, mode, mtime, self._sum(number, size), ())

    def _sum(self, number: int, size_bytes: int) -> int:
        sums = FileCrc32c()
        for start, length, crc in self._database.execute(
            "SELECT start, size, crc FROM piece WHERE file = ? ORDER BY start", (number,)
        ):
            sums.add(start, length, crc)
        return sums.finish(size_bytes)

    def _flush(self) -> None:
        self._database.executemany(
            "INSERT INTO piece VALUES (?, ?, ?, ?)",
            [(each.file, each.start, each.size_bytes, each.crc32c) for each in self._pieces],
        )
        self._pieces.clear()


def whole(path: bytes) -> Claim:
    """Return the claim of a file of the newest backup: all of it is wanted, however long it is."""
    return Claim(path, [Span(0, 1 << 62)], None)


@contextmanager
def _mapped() -> Iterator[None]:
    """Say that the notes cannot be kept, for no SQLite error leaves this module."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as cause:
        raise RestoreRefused(
            "could not keep notes in the restore's work directory",
            detail=str(cause),
            hint="free some room or mend the disk, and run the restore again",
        ) from cause


def _encode(spans: list[Span]) -> bytes:
    return array("Q", [edge for span in spans for edge in (span.start, span.end)]).tobytes()


def _decode(content: bytes) -> list[Span]:
    edges = array("Q")
    edges.frombytes(content)
    return [Span(edges[at], edges[at + 1]) for at in range(0, len(edges), 2)]
