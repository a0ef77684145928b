"""All pairs of offsets that were ever seen of a mirror, in one SQLite file.

MirrorMaker's own topic is compacted and keeps the last pair of each partition only; a fence of last week
needs those of last week.  What was read and up to where goes in with one transaction, so a kill at any moment
neither loses a pair nor takes one twice.  ``journal`` are the pairs that the store does not have yet.

Bounded: old pairs are thinned (see ``sync_pairs.at_most``), and a journal that grew too long is dropped for
the whole book, which then goes to the store instead.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.errors import NotInitialised, PitrError
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import (
    JournalEntry,
    KnownPairs,
    Step,
    Sync,
    SyncPair,
    above,
    at_most,
    step,
    thin,
)

SCHEMA_VERSION: Final = 1
PARTITIONS_MAX: Final = 50_000
PAIRS_MAX: Final = 2_000
"""Of one partition, to which it is thinned at twice as many: then older ones are loose."""
WHOLE_MAX: Final = 500_000
"""Of all partitions, in the copy that goes to the store: they are in memory at once."""
JOURNAL_MAX: Final = 200_000
_THIN_AT: Final = 1_000
_BUSY_TIMEOUT_S: Final = 10
_SCHEMA: Final = f"""
    CREATE TABLE partition (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL,
                            topic_id TEXT NOT NULL, pairs INTEGER NOT NULL, thin_at INTEGER NOT NULL,
                            settled INTEGER NOT NULL DEFAULT -1, goal INTEGER, goal_pair INTEGER,
                            log_end INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, number)) STRICT;
    CREATE TABLE pair (partition INTEGER NOT NULL, number INTEGER NOT NULL, upstream INTEGER NOT NULL,
                       downstream INTEGER NOT NULL, PRIMARY KEY (partition, number)) STRICT, WITHOUT ROWID;
    CREATE TABLE journal (number INTEGER PRIMARY KEY AUTOINCREMENT, partition INTEGER NOT NULL,
                          topic_id TEXT NOT NULL, settled INTEGER NOT NULL, upstream INTEGER,
                          downstream INTEGER) STRICT;
    CREATE TABLE state (topic_id TEXT, next_offset INTEGER NOT NULL, unreadable INTEGER NOT NULL,
                        newest_ms INTEGER, is_whole_due INTEGER NOT NULL, book TEXT NOT NULL) STRICT;
    INSERT INTO state VALUES (NULL, 0, 0, NULL, 1, lower(hex(randomblob(16))));
    PRAGMA user_version = {SCHEMA_VERSION};
"""


class BookFailed(PitrError):
    """The file of pairs cannot be read or written.  Pairs that were not kept are read again."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far the syncs topic was read: a topic of another id begins anew.

    ``unreadable`` counts records that were no pairs; ``newest_ms`` is when the newest pair was written, by
    MirrorMaker's clock.
    """

    topic_id: str | None
    next_offset: int
    unreadable: int = 0
    newest_ms: int | None = None


class SyncBook:
    """The pairs of one mirror.  Thread-safe; other processes may read meanwhile.  All raise BookFailed."""

    def __init__(self, path: Path, *, is_read_only: bool = False, journal_max: int = JOURNAL_MAX) -> None:
        """Open the file and make it if it is not there.  Raises NotInitialised, BookFailed."""
        self._path: Final = path
        self._journal_max: Final = journal_max
        self._lock: Final = threading.Lock()
        if is_read_only and not path.exists():
            raise NotInitialised(
                f"no pairs of offsets of a mirror in {path}", hint="does the daemon keep them?"
            )
        try:
            if not is_read_only:
                path.touch(mode=0o600)
            self._database: Final = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
            )
            self._begin(is_read_only)
        except (OSError, sqlite3.Error) as cause:
            raise self._failed(cause) from cause

    def _begin(self, is_read_only: bool) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, SCHEMA_VERSION}:
            raise BookFailed(f"{self._path} is of another version of this program: {version}")
        if is_read_only:
            self._database.execute("PRAGMA query_only = ON")
            return
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        if version == 0:
            self._database.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")

    # -- what is known

    def position(self) -> Position:
        with self._transaction() as database:
            row = database.execute(
                "SELECT topic_id, next_offset, unreadable, newest_ms FROM state"
            ).fetchone()
        return Position(*row)

    def known(self, at: TopicPartition) -> KnownPairs | None:
        """Return the pairs of a partition of the source; None if none was ever seen."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT id, topic_id, settled FROM partition WHERE topic = ? AND number = ?",
                (at.topic, at.partition),
            ).fetchone()
            return None if row is None else KnownPairs(row[1], _pairs(database, row[0]), row[2])

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Return the partitions of the source that pairs were seen of, sorted."""
        with self._transaction() as database:
            rows = database.execute("SELECT topic, number FROM partition ORDER BY topic, number").fetchall()
        return tuple(TopicPartition(*row) for row in rows)

    # -- what is added

    def add(self, syncs: Iterable[Sync], topic_ids: Mapping[str, str], position: Position) -> None:
        """Keep pairs in the order in which they were written, and how far was read, or neither.

        ``topic_ids`` are those of the *target's* topics, by the source's names, asked for after the pairs
        were read.  Where an id is another one, all pairs before are void, and these too: they may be of
        before.  A topic without an id is not there, and its pairs are void.
        """
        by_partition: dict[TopicPartition, list[SyncPair]] = {}
        for sync in syncs:
            by_partition.setdefault(sync.at, []).append(sync.pair)
        with self._transaction() as database:
            for at, pairs in by_partition.items():
                self._add(database, at, pairs, topic_ids.get(at.topic, ""))
            database.execute(
                "UPDATE state SET topic_id = ?, next_offset = ?, unreadable = ?, newest_ms = ?",
                (position.topic_id, position.next_offset, position.unreadable, position.newest_ms),
            )
            if database.execute("SELECT count(*) FROM journal").fetchone()[0] > self._journal_max:
                database.execute("DELETE FROM journal")
                database.execute("UPDATE state SET is_whole_due = 1")

    def _add(
        self, database: sqlite3.Connection, at: TopicPartition, pairs: Sequence[SyncPair], topic_id: str
    ) -> None:
        row = database.execute(
            "SELECT id, topic_id FROM partition WHERE topic = ? AND number = ?", (at.topic, at.partition)
        ).fetchone()
        if row is None:
            if database.execute("SELECT count(*) FROM partition").fetchone()[0] >= PARTITIONS_MAX:
                raise BookFailed(f"the mirror has more than {PARTITIONS_MAX} partitions")
            new = (at.topic, at.partition, topic_id, _THIN_AT)
            sql = "INSERT INTO partition (topic, number, topic_id, pairs, thin_at) VALUES (?, ?, ?, 0, ?)"
            row = (database.execute(sql, new).lastrowid, topic_id)
        number = int(row[0])
        if row[1] != topic_id or not topic_id:
            _void(database, number, topic_id)
            return
        last = _last(database, number)
        for pair in pairs:
            what = step(last, pair)
            if what is Step.REPEATS:
                continue
            if what is Step.RESETS:
                _void(database, number, topic_id)
            _append(database, number, pair)
            _settle(database, number, pair)
            _note(database, number, topic_id, pair)
            last = pair
        _thin(database, number)

    def source_stood_at(self, ends: Mapping[TopicPartition, int]) -> None:
        """Say that source's partitions had no record at or above these offsets.

        They were read from the source *after* the last ``add`` returned.  A pair at or past one settles all
        pairs that were known by then.
        """
        with self._transaction() as database:
            for at, end in ends.items():
                row = database.execute(
                    "SELECT id, topic_id, settled FROM partition WHERE topic = ? AND number = ?",
                    (at.topic, at.partition),
                ).fetchone()
                last = None if row is None else _last(database, row[0])
                if last is None:
                    continue
                if last.upstream < end - 1:
                    database.execute(
                        # A goal above the source's end is of a topic that was there before this one.
                        "UPDATE partition SET goal = ?, goal_pair = ?"
                        " WHERE id = ? AND (goal IS NULL OR goal >= ?)",
                        (end - 1, last.downstream, row[0], end),
                    )
                elif row[2] != last.downstream:
                    # It is the last record of all: nothing that follows it was ever mirrored.
                    database.execute(
                        "UPDATE partition SET settled = ?, goal = NULL, goal_pair = NULL WHERE id = ?",
                        (last.downstream, row[0]),
                    )
                    _note(database, row[0], row[1], last)

    def target_stands(self, logs: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """Say where logs of the target begin and end, by the source's names, read before the next ``add``.

        Pairs that only tell of what is gone are forgotten; all are void where an end is lower than it was.
        """
        with self._transaction() as database:
            for at, (log_start, log_end) in logs.items():
                row = database.execute(
                    "SELECT id, topic_id, log_end FROM partition WHERE topic = ? AND number = ?",
                    (at.topic, at.partition),
                ).fetchone()
                if row is None:
                    continue
                if log_end < row[2]:
                    _void(database, row[0], row[1])
                database.execute("UPDATE partition SET log_end = ? WHERE id = ?", (log_end, row[0]))
                pairs = _pairs(database, row[0])
                kept = above(pairs, log_start)
                if len(kept) < len(pairs):
                    _replace(database, row[0], kept)

    # -- what the store does not have yet

    @property
    def book(self) -> str:
        """The file's own id: another file counts its journal anew."""
        with self._transaction() as database:
            return str(database.execute("SELECT book FROM state").fetchone()[0])

    def journal(self, most: int) -> tuple[JournalEntry, ...]:
        """Return the oldest entries that are not in the store."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT journal.number, topic, partition.number, journal.topic_id, journal.settled,"
                " upstream, downstream"
                " FROM journal JOIN partition ON partition.id = journal.partition"
                " ORDER BY journal.number LIMIT ?",
                (most,),
            ).fetchall()
        return tuple(
            JournalEntry(
                row[0],
                TopicPartition(row[1], row[2]),
                row[3],
                row[4],
                None if row[5] is None else SyncPair(*row[5:]),
            )
            for row in rows
        )

    def whole(self) -> tuple[int, dict[TopicPartition, KnownPairs]]:
        """Return pairs of all partitions, thinned, and the number of the journal's last entry among them."""
        with self._transaction() as database:
            upto = database.execute("SELECT coalesce(max(number), 0) FROM journal").fetchone()[0]
            rows = database.execute("SELECT id, topic, number, topic_id, settled FROM partition").fetchall()
            most = max(2, WHOLE_MAX // max(1, len(rows)))
            return upto, {
                TopicPartition(row[1], row[2]): KnownPairs(
                    row[3], at_most(_pairs(database, row[0]), most), row[4]
                )
                for row in rows
            }

    @property
    def is_whole_due(self) -> bool:
        """Whether the store needs the whole book: it has none yet, or the journal was dropped."""
        with self._transaction() as database:
            return bool(database.execute("SELECT is_whole_due FROM state").fetchone()[0])

    def shipped(self, number: int, *, is_whole: bool) -> None:
        """Forget entries of the journal up to ``number``: the store has them.  May be repeated."""
        with self._transaction() as database:
            database.execute("DELETE FROM journal WHERE number <= ?", (number,))
            if is_whole:
                database.execute("UPDATE state SET is_whole_due = 0")

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._database.execute("BEGIN")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.Error as cause:
                raise self._failed(cause) from cause

    def _failed(self, cause: Exception) -> BookFailed:
        return BookFailed(f"the pairs of a mirror in {self._path} cannot be kept: {cause}")


def _pairs(database: sqlite3.Connection, partition: int) -> tuple[SyncPair, ...]:
    rows = database.execute(
        "SELECT upstream, downstream FROM pair WHERE partition = ? ORDER BY number", (partition,)
    )
    return tuple(SyncPair(*row) for row in rows)


def _last(database: sqlite3.Connection, partition: int) -> SyncPair | None:
    row = database.execute(
        "SELECT upstream, downstream FROM pair WHERE partition = ? ORDER BY number DESC LIMIT 1", (partition,)
    ).fetchone()
    return None if row is None else SyncPair(*row)


def _settle(database: sqlite3.Connection, partition: int, pair: SyncPair) -> None:
    database.execute(
        "UPDATE partition SET settled = goal_pair, goal = NULL, goal_pair = NULL WHERE id = ? AND goal <= ?",
        (partition, pair.upstream),
    )


def _append(database: sqlite3.Connection, partition: int, pair: SyncPair) -> None:
    database.execute(
        "INSERT INTO pair SELECT ?, coalesce(max(number), 0) + 1, ?, ? FROM pair WHERE partition = ?",
        (partition, pair.upstream, pair.downstream, partition),
    )
    database.execute("UPDATE partition SET pairs = pairs + 1 WHERE id = ?", (partition,))


def _note(database: sqlite3.Connection, partition: int, topic_id: str, pair: SyncPair | None) -> None:
    offsets = (None, None) if pair is None else (pair.upstream, pair.downstream)
    database.execute(
        "INSERT INTO journal (partition, topic_id, settled, upstream, downstream)"
        " SELECT id, ?, settled, ?, ? FROM partition WHERE id = ?",
        (topic_id, *offsets, partition),
    )


def _void(database: sqlite3.Connection, partition: int, topic_id: str) -> None:
    database.execute("DELETE FROM pair WHERE partition = ?", (partition,))
    database.execute(
        "UPDATE partition SET topic_id = ?, pairs = 0, settled = -1, goal = NULL, goal_pair = NULL,"
        " log_end = 0 WHERE id = ?",
        (topic_id, partition),
    )
    _note(database, partition, topic_id, None)


def _thin(database: sqlite3.Connection, partition: int) -> None:
    count, thin_at = database.execute(
        "SELECT pairs, thin_at FROM partition WHERE id = ?", (partition,)
    ).fetchone()
    if count >= thin_at:
        _replace(database, partition, at_most(thin(_pairs(database, partition)), PAIRS_MAX))


def _replace(database: sqlite3.Connection, partition: int, pairs: Sequence[SyncPair]) -> None:
    database.execute("DELETE FROM pair WHERE partition = ?", (partition,))
    database.executemany(
        "INSERT INTO pair VALUES (?, ?, ?, ?)",
        ((partition, number, one.upstream, one.downstream) for number, one in enumerate(pairs, 1)),
    )
    thin_at = max(_THIN_AT, 2 * len(pairs))
    database.execute(
        "UPDATE partition SET pairs = ?, thin_at = ? WHERE id = ?", (len(pairs), thin_at, partition)
    )
