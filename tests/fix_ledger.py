"""The ledger: clients that commit rows and write down what the server told them, and the judge of a restore.

Each acknowledged commit is bracketed by two LSNs: one from before its commit record was written, one
from after it was flushed.  So whatever a restore claims about its end can be checked row by row, as
Jepsen's list-append does: per client a prefix, everything up to the end, and nothing beyond it.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO

import psycopg

from pitr.wal.lsn import LSN

TABLE = """
    CREATE TABLE ledger (client int, number int, xid bigint NOT NULL, payload text NOT NULL,
                         PRIMARY KEY (client, number))"""
_INSERT = """
    INSERT INTO ledger VALUES (%s, %s, pg_current_xact_id()::text::bigint, %s)
    RETURNING xid, pg_current_wal_insert_lsn()"""
_AFTER = "SELECT pg_current_wal_flush_lsn(), clock_timestamp()"
_SAMPLE = """
    SELECT flush_lsn FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
    WHERE s.slot_name = 'pitr'"""
_TRUTH = "SELECT client, number, xid, pg_xact_commit_timestamp(xmin) FROM ledger"
_RECONNECT_S = 0.05
_SAMPLE_S = 0.02
_STATEMENT_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """Which row: the ``number`` of each ``client`` counts from 1 without a gap."""

    client: int
    number: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that the client knows of: its record lies between ``after`` and ``before``.

    ``after`` is None where a crash kept the client from learning it.
    """

    row: Row
    xid: int
    after: LSN | None
    before: LSN
    server_at: datetime
    acknowledged_s: float


@dataclass(frozen=True, slots=True)
class CommittedRow:
    """A row as the server that wrote it knows it; ``committed_at`` is in its commit record."""

    row: Row
    xid: int
    committed_at: datetime


class Ledger:
    """Clients that commit until told to stop, through crashes of the server; and a sampler of what is safe.

    ``dsn`` is the primary's.  Not more than one at a time on one cluster.
    """

    def __init__(
        self, dsn: str, folder: Path, *, seed: int, clients: int = 4, pause_s: float = 0.004
    ) -> None:
        self._dsn = f"{dsn} options='-c statement_timeout={_STATEMENT_TIMEOUT_S}s'"
        self._folder = folder
        self._seed = seed
        self._clients = clients
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._paused = threading.Event()
        self._lock = threading.Lock()
        self._commits: list[Commit] = []
        self._quorum_lsn: LSN | None = None
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._write, client), name=f"ledger-{client}")
            for client in range(1, clients + 1)
        ] + [threading.Thread(target=self._guarded, args=(self._sample,), name="ledger-sampler")]

    def __enter__(self) -> Ledger:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(TABLE.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all clients; what they were waiting for is then known or unknown, never half."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(60)
                assert not thread.is_alive(), f"{thread.name} hangs"
        if self._failures:
            raise self._failures[0]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let the clients rest after their commit in hand."""
        self._paused.set()
        try:
            yield
        finally:
            self._paused.clear()

    @property
    def commits(self) -> list[Commit]:
        """Everything acknowledged so far, in the order in which the clients learnt of it."""
        with self._lock:
            return list(self._commits)

    @property
    def quorum_lsn(self) -> LSN | None:
        """The furthest end that the server was told to be at quorum."""
        with self._lock:
            return self._quorum_lsn

    @property
    def commits_at_quorum(self) -> list[Commit]:
        """The acknowledged commits of which the server was also told that they are at quorum."""
        with self._lock:
            end = self._quorum_lsn
            return [commit for commit in self._commits if end is not None and commit.before <= end]

    def wait_commits(self, count: int, *, timeout_s: float = 60) -> None:
        """Return once ``count`` more commits are acknowledged than now."""
        wanted = len(self.commits) + count
        self._wait(lambda: len(self.commits) >= wanted, f"{wanted} commits", timeout_s)

    def wait_at_quorum(self, count: int = 1, *, timeout_s: float = 60) -> None:
        """Return once ``count`` more commits are at quorum than now."""
        wanted = len(self.commits_at_quorum) + count
        self._wait(lambda: len(self.commits_at_quorum) >= wanted, f"{wanted} commits at quorum", timeout_s)

    def wait_caught_up(self, *, timeout_s: float = 60) -> None:
        """Return once all that is acknowledged now, which must be something, is at quorum."""
        wanted = max(commit.before for commit in self.commits)
        self._wait(
            lambda: (end := self.quorum_lsn) is not None and end >= wanted, f"{wanted} at quorum", timeout_s
        )

    def _wait(self, is_so: object, what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        assert callable(is_so)
        while not is_so():
            if self._failures:
                raise self._failures[0]
            assert time.monotonic() < deadline, f"after {timeout_s:g} s still not {what}"
            time.sleep(0.01)

    def _guarded(self, work: object, *args: object) -> None:
        assert callable(work)
        try:
            work(*args)
        except BaseException as failure:  # noqa: BLE001 — the top of a thread: stop() raises it
            self._failures.append(failure)

    def _write(self, client: int) -> None:
        chance = random.Random(f"{self._seed}/{client}")
        number = 0
        with (self._folder / f"ledger-{client}.jsonl").open("a", encoding="utf-8") as log:
            while not self._stopping.is_set():
                try:
                    with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection:
                        warnings: list[str] = []
                        connection.add_notice_handler(partial(_keep_warning, warnings))
                        # The outcome of the commit that the crash interrupted is learnt now.
                        number = self._recover(connection, client, number, log)
                        number = self._commit_rows(connection, client, number, chance, log, warnings)
                except psycopg.OperationalError:
                    self._stopping.wait(_RECONNECT_S)

    def _recover(self, connection: psycopg.Connection, client: int, number: int, log: IO[str]) -> int:
        """Return the last number that is committed.  Fails if an acknowledged one is gone."""
        rows = connection.execute(
            "SELECT number, xid FROM ledger WHERE client = %s ORDER BY number DESC LIMIT 1", [client]
        ).fetchall()
        last, xid = rows[0] if rows else (0, 0)
        assert last in (number, number + 1), f"client {client}: {last} after {number} was acknowledged"
        if last == number + 1:
            self._note(connection, Row(client, last), xid, None, log)
        return int(last)

    def _commit_rows(
        self,
        connection: psycopg.Connection,
        client: int,
        number: int,
        chance: random.Random,
        log: IO[str],
        warnings: list[str],
    ) -> int:
        while not self._stopping.is_set():
            if self._paused.is_set():
                self._stopping.wait(_RECONNECT_S)
                continue
            payload = chance.randbytes(chance.choice((20, 200, 2000))).hex()
            try:
                row = connection.execute(_INSERT, [client, number + 1, payload]).fetchone()
            except psycopg.OperationalError:
                return number
            assert row is not None
            if warnings:
                # A wait for synchronous standbys that was cancelled is no acknowledgement.
                return number
            number += 1
            try:
                self._note(connection, Row(client, number), row[0], LSN.parse(row[1]), log)
            except psycopg.OperationalError:
                # Acknowledged, but by a server that ended before it said where: it is found again after.
                return number - 1
            self._stopping.wait(chance.random() * self._pause_s)
        return number

    def _note(
        self, connection: psycopg.Connection, row: Row, xid: int, after: LSN | None, log: IO[str]
    ) -> None:
        found = connection.execute(_AFTER).fetchone()
        assert found is not None
        commit = Commit(row, xid, after, LSN.parse(found[0]), found[1], time.monotonic())
        log.write(json.dumps(asdict(commit), default=str) + "\n")
        log.flush()
        with self._lock:
            self._commits.append(commit)

    def _sample(self) -> None:
        while not self._stopping.is_set():
            with (
                suppress(psycopg.OperationalError),
                psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection,
            ):
                while not self._stopping.is_set():
                    found = connection.execute(_SAMPLE).fetchone()
                    if found is not None and found[0] is not None:
                        end = LSN.parse(found[0])
                        with self._lock:
                            self._quorum_lsn = end if self._quorum_lsn is None else max(self._quorum_lsn, end)
                    self._stopping.wait(_SAMPLE_S)
            self._stopping.wait(_RECONNECT_S)


def _keep_warning(warnings: list[str], diagnostic: psycopg.errors.Diagnostic) -> None:
    if diagnostic.severity_nonlocalized == "WARNING":
        warnings.append(diagnostic.message_primary or "")


def read_rows(dsn: str) -> set[Row]:
    """Return the rows of a restored cluster; each client's are checked to be a prefix."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=20) as connection:
        if connection.execute("SELECT to_regclass('ledger')").fetchone() == (None,):
            return set()
        # Once through the index and once through the heap: a torn index must not hide a row.
        connection.execute(
            "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off"
        )
        heap = [Row(*row) for row in connection.execute("SELECT client, number FROM ledger").fetchall()]
        connection.execute("RESET ALL; SET enable_seqscan = off")
        indexed = [
            Row(*row)
            for row in connection.execute("SELECT client, number FROM ledger ORDER BY 1, 2").fetchall()
        ]
    assert sorted(heap) == indexed, "heap and index differ"
    assert len(set(heap)) == len(heap), "a row is there twice"
    for client in {row.client for row in heap}:
        numbers = [row.number for row in indexed if row.client == client]
        assert numbers == list(range(1, len(numbers) + 1)), f"client {client} has a hole: {numbers[-20:]}"
    return set(heap)


def read_truth(dsn: str) -> dict[Row, CommittedRow]:
    """Return what the server that wrote the rows knows of their commits; needs track_commit_timestamp."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=20) as connection:
        found = connection.execute(_TRUTH).fetchall()
    return {
        Row(client, number): CommittedRow(Row(client, number), xid, at) for client, number, xid, at in found
    }


def judge_quorum(present: set[Row], at_quorum: Iterable[Commit]) -> None:
    """Check that no commit is missing that was acknowledged and at quorum."""
    missing = [commit for commit in at_quorum if commit.row not in present]
    assert not missing, f"{len(missing)} commits at quorum are gone, the first of them {missing[0]}"


def judge_bound(present: set[Row], commits: Iterable[Commit], before_s: float) -> None:
    """Check that no commit is missing that was acknowledged before a moment of the ledger's clock."""
    missing = [one for one in commits if one.acknowledged_s < before_s and one.row not in present]
    assert not missing, (
        f"{len(missing)} commits older than the bound are gone, the last of them {missing[-1]}"
    )


def judge_end(present: set[Row], commits: Iterable[Commit], end: LSN) -> None:
    """Check that a restore whose replay ended at ``end`` holds every commit before it and none after."""
    for commit in commits:
        if commit.before <= end:
            assert commit.row in present, f"{commit} lies before the end {end} and is gone"
        # Its record begins at ``after`` or later, and a replayed one ends at ``end`` or before.
        if commit.after is not None and commit.after >= end:
            assert commit.row not in present, f"{commit} lies after the end {end} and is there"


def judge_instant(
    present: set[Row],
    truth: Mapping[Row, CommittedRow],
    commits: Iterable[Commit],
    at: datetime,
    stopped_before: LSN | None,
    *,
    clients: int,
) -> None:
    """Check a restore to the time ``at`` that stopped before the commit record at ``stopped_before``.

    Commit times are not quite in the order of the WAL: a commit of ``at`` or earlier may stand behind the
    first later one, and recovery stops there.  Each client can have one such in hand.
    """
    late = [truth[row] for row in present if truth[row].committed_at > at]
    assert not late, f"committed after {at}, and there: {late[:3]}"
    known = {commit.row: commit for commit in commits}
    absent = [one for row, one in truth.items() if one.committed_at <= at and row not in present]
    for one in absent:
        commit = known.get(one.row)
        assert stopped_before is not None, f"committed by {at}, and gone: {one}"
        assert commit is None or commit.before > stopped_before, (
            f"committed by {at}, and gone: {one}, {commit}"
        )
    assert len(absent) <= clients, f"{len(absent)} commits of {at} or before are gone: {absent[:5]}"
    if stopped_before is not None:
        judge_end(present, commits, stopped_before)
