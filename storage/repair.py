"""RepairQueue: which region lacks which object.  Durable, ordered, bounded; it holds no bodies.

One SQLite file.  What is in it was acknowledged on the strength of other regions'
copies, so an entry is on disk before the put that needs it returns.  Losing the
file loses no object: ``ReplicatedStore.reconcile`` finds the same entries by
comparing the regions' listings.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.store import StoreRefused, StoreUnavailable

# Ten days of one piece a second to one lost region, and about 200 MB of SQLite.
ENTRIES_MAX = 1_000_000
_BUSY_TIMEOUT_S = 5.0
_SET_ASIDE_MAX = 1000
_VERSION = 1
# Not in files of before 2026-11-25.
_OPEN = "is_open"
_SCHEMA = f"""
CREATE TABLE repair (
    region TEXT NOT NULL, sequence INTEGER NOT NULL, key TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    sha256 BLOB, after_all INTEGER NOT NULL, recorded_at TEXT NOT NULL, stuck TEXT,
    PRIMARY KEY (region, sequence), UNIQUE (key, region)
) WITHOUT ROWID, STRICT;
CREATE INDEX repair_stuck ON repair (region) WHERE stuck IS NOT NULL;
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID, STRICT;
INSERT INTO state VALUES ('must_reconcile', 0);
PRAGMA application_id = 0x50495452;
PRAGMA user_version = {_VERSION};
"""


class RepairQueueDamaged(StoreRefused):
    """The queue's file cannot be read.  No object is lost: ``replace_damaged``, then reconcile."""


class RepairQueueFull(StoreRefused):
    """A region was away for so long that the queue is full.  Bring it back, or remove it."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One object that one region lacks.  ``sequence`` orders the entries of all regions."""

    region: str
    sequence: int
    key: str
    size_bytes: int
    # None where only a listing told of the object: any good copy is then the source.
    sha256: bytes | None
    after_all: bool


@dataclass(frozen=True, slots=True)
class RepairCounts:
    """What one region waits for."""

    pending: int
    stuck: int
    oldest_at: datetime | None


class RepairQueue:
    """The durable queue in the file ``path``; made if missing.  Thread-safe; one process at a time.

    ``is_new`` tells that the file was not there: with regions that already hold
    objects, reconcile them.  ``was_cut`` tells that whoever had it open before did not close it: a put that
    was on its way then may be in some regions, and no entry says which lack it.  Raises RepairQueueDamaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        entries_max: int = ENTRIES_MAX,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = path
        self._entries_max = entries_max
        self._now = now
        self._lock = threading.Lock()
        # Read on every put: answering these from SQLite would wait for another put's commit.
        self._state_lock = threading.Lock()
        self._oldest: dict[str, int] = {}
        self._pending: Counter[str] = Counter()
        self.is_new = not path.exists() or path.stat().st_size == 0
        with _mapped(path):
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    @classmethod
    def replace_damaged(cls, path: Path) -> RepairQueue:
        """Set the damaged file aside and start an empty queue that asks for ``reconcile``."""
        for number in range(1, _SET_ASIDE_MAX):
            aside = path.with_name(f"{path.name}.damaged-{number}")
            if not aside.exists():
                break
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        if path.exists():
            path.rename(aside)
        queue = cls(path)
        queue.set_must_reconcile(True)
        return queue

    def next_sequence(self) -> int:
        """Return a number greater than all before, also those of earlier runs that are still queued."""
        with self._state_lock:
            self._sequence += 1
            return self._sequence

    def record(self, repairs: Sequence[Repair]) -> None:
        """Add the entries durably, all or none.

        An object that its region already waits for stays where it is.  Raises
        RepairQueueFull, or StoreUnavailable if the disk fails; nothing is added then.
        """
        at = self._now().isoformat()
        with self._lock:
            added = self._insert(repairs, at)
            # Under the lock: a removal in between must not be undone by this.
            with self._state_lock:
                for repair in added:
                    self._pending[repair.region] += 1
                    before = self._oldest.get(repair.region, repair.sequence)
                    self._oldest[repair.region] = min(before, repair.sequence)

    def done(self, region: str, key: str) -> None:
        """Remove the entry, if there is one.  Losing this costs one more copy, so it waits for no disk."""
        self._remove("DELETE FROM repair WHERE key = ? AND region = ? RETURNING region", (key, region))

    def forget(self, key: str) -> None:
        """Remove the object's entries for all regions: it is about to be deleted."""
        self._remove("DELETE FROM repair WHERE key = ? RETURNING region", (key,))

    def forget_region(self, region: str) -> None:
        """Remove all entries of a region that is no longer one."""
        with self._lock:
            with self._transaction(durable=False):
                self._connection.execute("DELETE FROM repair WHERE region = ?", (region,))
            with _mapped(self._path):
                self._recount()

    def set_stuck(self, region: str, key: str, reason: str) -> None:
        """Mark an entry that trying again cannot help; it still counts as pending."""
        with self._lock, self._transaction(durable=False):
            self._connection.execute(
                "UPDATE repair SET stuck = ? WHERE region = ? AND key = ?", (reason, region, key)
            )

    def retry_stuck(self) -> None:
        """Let all stuck entries be tried again."""
        with self._lock, self._transaction(durable=False):
            self._connection.execute("UPDATE repair SET stuck = NULL WHERE stuck IS NOT NULL")

    def oldest_sequence(self, region: str) -> int | None:
        """Return the sequence of the first object that ``region`` lacks, stuck ones included."""
        with self._state_lock:
            return self._oldest.get(region)

    def pending(self, region: str) -> int:
        """Return how many objects ``region`` lacks, stuck ones included."""
        with self._state_lock:
            return self._pending[region]

    def first(self, region: str, limit: int, *, with_late: bool = True) -> list[Repair]:
        """Return up to ``limit`` entries of ``region`` that may be tried, in order.

        ``with_late`` False leaves out those that follow everything before them.
        """
        with self._lock, _mapped(self._path):
            rows = self._connection.execute(
                "SELECT sequence, key, size_bytes, sha256, after_all FROM repair"
                " WHERE region = ? AND stuck IS NULL AND after_all <= ? ORDER BY sequence LIMIT ?",
                (region, with_late, limit),
            ).fetchall()
        return [Repair(region, row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def counts(self, region: str) -> RepairCounts:
        """Return how much ``region`` waits for, and since when."""
        with self._lock, _mapped(self._path):
            (stuck,) = self._connection.execute(
                "SELECT count(*) FROM repair WHERE region = ? AND stuck IS NOT NULL", (region,)
            ).fetchone()
            oldest = self._connection.execute(
                "SELECT recorded_at FROM repair WHERE region = ? ORDER BY sequence LIMIT 1", (region,)
            ).fetchone()
            return RepairCounts(
                self._pending[region], stuck, None if oldest is None else datetime.fromisoformat(oldest[0])
            )

    def regions(self) -> list[str]:
        """Return the names of the regions that wait for something, known or not."""
        with self._state_lock:
            return sorted(self._oldest)

    @property
    def must_reconcile(self) -> bool:
        """Whether entries were lost with a damaged file, so that no region is known to be complete."""
        with self._state_lock:
            return self._must_reconcile

    def set_must_reconcile(self, value: bool) -> None:
        """Record durably whether the regions must be compared before anything may be put ``after_all``."""
        with self._lock, self._transaction(durable=True):
            self._connection.execute("UPDATE state SET value = ? WHERE name = 'must_reconcile'", (value,))
        with self._state_lock:
            self._must_reconcile = value

    def close(self) -> None:
        """Close the file.  May be repeated."""
        with self._lock:
            # What cannot be said here is asked of the regions at the next start.
            with contextlib.suppress(sqlite3.Error):
                self._set_open(False)
            self._connection.close()

    def _open(self) -> None:
        # Beside another process's queue the entries of both would be lost by turns.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if version == 0 and tables == 0:
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif version != _VERSION:
            raise RepairQueueDamaged(f"{self._path} is not a repair queue of version {_VERSION}")
        (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise RepairQueueDamaged(f"the repair queue {self._path} is damaged: {verdict}")
        (last,) = self._connection.execute("SELECT coalesce(max(sequence), 0) FROM repair").fetchone()
        (flag,) = self._connection.execute(
            "SELECT value FROM state WHERE name = 'must_reconcile'"
        ).fetchone() or (1,)
        self._sequence = int(last)
        self._must_reconcile = bool(flag)
        row = self._connection.execute(f"SELECT value FROM state WHERE name = '{_OPEN}'").fetchone()
        self.was_cut = row is not None and bool(row[0])
        self._set_open(True)
        self._recount()

    def _set_open(self, value: bool) -> None:
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (_OPEN, value))

    def _recount(self) -> None:
        rows = self._connection.execute(
            "SELECT region, min(sequence), count(*) FROM repair GROUP BY region"
        ).fetchall()
        with self._state_lock:
            self._oldest = {region: oldest for region, oldest, _ in rows}
            self._pending = Counter({region: count for region, _, count in rows})

    def _insert(self, repairs: Sequence[Repair], at: str) -> list[Repair]:
        with self._transaction(durable=True):
            count = self._pending.total()
            if count + len(repairs) > self._entries_max:
                raise RepairQueueFull(
                    f"the repair queue {self._path} is full: {count} objects wait for their regions"
                )
            statement = (
                "INSERT INTO repair VALUES (?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT (key, region) DO NOTHING"
            )
            return [
                r
                for r in repairs
                if self._connection.execute(
                    statement, (r.region, r.sequence, r.key, r.size_bytes, r.sha256, int(r.after_all), at)
                ).rowcount
            ]

    def _remove(self, statement: str, parameters: tuple[str, ...]) -> None:
        with self._lock:
            with self._state_lock:
                if not self._pending:
                    return
            with self._transaction(durable=False):
                regions = [row[0] for row in self._connection.execute(statement, parameters).fetchall()]
            for region in regions:
                with _mapped(self._path):
                    (oldest,) = self._connection.execute(
                        "SELECT min(sequence) FROM repair WHERE region = ?", (region,)
                    ).fetchone()
                with self._state_lock:
                    self._pending[region] -= 1
                    self._pending = +self._pending
                    if oldest is None:
                        self._oldest.pop(region, None)
                    else:
                        self._oldest[region] = oldest

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[None]:
        with _mapped(self._path):
            # NORMAL does not wait for the disk on commit in WAL mode; FULL does, for all before it too.
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the store's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise _damaged(path, error) from error
        if name.startswith(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise StoreRefused(f"the repair queue {path} cannot be written: {error}") from error
        if name.startswith("SQLITE_BUSY"):
            raise StoreRefused(f"the repair queue {path} is in use by another process") from error
        raise StoreUnavailable(f"the repair queue {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RepairQueueDamaged:
    return RepairQueueDamaged(
        f"the repair queue {path} is damaged: {error}; no object is lost: set the file aside, "
        "and reconcile the regions"
    )
