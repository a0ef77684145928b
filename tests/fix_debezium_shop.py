"""Orders and their outbox in a database that Debezium reads, and a ledger of who wrote what.

Which transaction made a change is what its writer noted when it was committed, and nobody else.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

WRITERS = 4
TABLES = """
CREATE TABLE orders (id bigserial PRIMARY KEY, note text NOT NULL);
CREATE TABLE outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, aggregateid text NOT NULL,
    type text NOT NULL, payload text NOT NULL, xid text DEFAULT pg_current_xact_id()::text,
    tl text DEFAULT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),
    lsn text DEFAULT pg_current_wal_insert_lsn()::text);
INSERT INTO orders (note) VALUES ('old'), ('old'), ('old');
"""

Change = tuple[str, int]
"""An operation and a row's id: each row is inserted, updated and deleted at most once."""


@dataclass
class Ledger:
    """Which transaction made each change and each outbox event, of those that were committed."""

    changes: dict[Change, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)


class Shop:
    """Four writers of orders and an outbox; some transactions are rolled back, whole or to a savepoint."""

    def __init__(self, dsn: str) -> None:
        self.ledger = Ledger()
        self.failures: list[BaseException] = []
        self.rolled_back = 0
        self._dsn = dsn
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._open = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(number,)) for number in range(WRITERS)]

    def __enter__(self) -> Shop:
        self._open.set()
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._open.set()
        for one in self._threads:
            one.join(60)

    def pause(self) -> None:
        """Let the writers begin no more transactions until ``go_on``."""
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    def prepare(self, name: str) -> None:
        """Leave a transaction prepared; what it wrote counts once ``COMMIT PREPARED`` comes."""
        with psycopg.connect(self._dsn) as session:
            self._note(_order(session, name))
            session.execute(f"PREPARE TRANSACTION '{name}'")

    def truncate(self) -> None:
        with psycopg.connect(self._dsn) as session:
            session.execute("TRUNCATE orders")
            self._note(Ledger({("t", 0): _xid(session)}))

    def _guarded(self, number: int) -> None:
        try:
            self._write(number, random.Random(number))
        except BaseException as failed:  # noqa: BLE001 - a thread's, told by the test
            self.failures.append(failed)

    def _write(self, number: int, chance: random.Random) -> None:
        mine: list[int] = []
        with psycopg.connect(self._dsn, connect_timeout=20) as session:
            while self._open.wait() and not self._ending.is_set():
                made = _order(session, f"w{number}")
                session.execute("SAVEPOINT half")
                more = _order(session, f"w{number}")
                if chance.random() < 0.2:
                    session.execute("ROLLBACK TO half")
                else:
                    made.changes.update(more.changes)
                    made.events.update(more.events)
                if mine and chance.random() < 0.7:
                    row = mine.pop(0)
                    session.execute("UPDATE orders SET note = 'new' WHERE id = %s", (row,))
                    made.changes["u", row] = _xid(session)
                if mine and chance.random() < 0.5:
                    row = mine.pop(0)
                    session.execute("DELETE FROM orders WHERE id = %s", (row,))
                    made.changes["d", row] = _xid(session)
                # Some are in flight while others, with later numbers, commit.
                time.sleep(chance.random() * 0.3)
                if chance.random() < 0.15:
                    session.rollback()
                    self.rolled_back += 1
                    continue
                session.commit()
                mine += [row for operation, row in made.changes if operation == "c"]
                self._note(made)

    def _note(self, made: Ledger) -> None:
        with self._lock:
            self.ledger.changes.update(made.changes)
            self.ledger.events.update(made.events)


def _xid(session: psycopg.Connection[Any]) -> int:
    [found] = session.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()
    return int(found[0])


def _order(session: psycopg.Connection[Any], note: str) -> Ledger:
    [row] = session.execute("INSERT INTO orders (note) VALUES (%s) RETURNING id", (note,)).fetchall()
    insert = (
        "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)"
        """ VALUES ('events', %s, 'OrderPlaced', '{"n": 1}') RETURNING id::text"""
    )
    [event] = session.execute(insert, (str(row[0]),)).fetchall()
    xid = _xid(session)
    return Ledger({("c", row[0]): xid}, {event[0]: xid})
