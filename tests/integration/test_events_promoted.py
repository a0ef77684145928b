"""A promoted server is asked for the first transaction id that it had not: whoever has taken some since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby
from fix_written import WORK, Written, classes_of, pause_replay, row_ids, write_row, write_rows

from pitr.events.classify import EventClass
from pitr.postgres.restored_history import RestoredFacts, RestoredServer
from pitr.wal.lsn import LSN

SETTINGS = {"max_prepared_transactions": "10", "wal_log_hints": "on", "autovacuum": "off"}
TAKE = "SELECT pg_current_xact_id()"


def facts_of(server: RunningPostgres) -> RestoredFacts:
    with RestoredServer(server.dsn) as session:
        return session.facts()


def next_xid(server: RunningPostgres) -> int:
    return int(str(server.value("SELECT pg_snapshot_xmax(pg_current_snapshot())")))


def prepare(server: RunningPostgres, name: str) -> Written:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("BEGIN")
        written = write_row(session)
        session.execute(f"PREPARE TRANSACTION '{name}'".encode())
    return written


@contextmanager
def running(server: RunningPostgres, statement: str) -> Iterator[None]:
    """Hold a transaction open, and commit it."""
    with psycopg.connect(server.dsn) as session:
        session.execute(statement.encode())
        yield


def take_ids(server: RunningPostgres) -> list[Written]:
    """Take ids in the ways that there are: by rows, by nothing, in subtransactions, and rolled back."""
    with psycopg.connect(server.dsn) as session:
        write_row(session)
        session.rollback()
        write_row(session)
        for _ in range(3):
            with session.transaction():
                session.execute("INSERT INTO work DEFAULT VALUES")
    taken = write_rows(server, 15)
    server.execute(TAKE)
    server.execute("ANALYZE work")
    prepare(server, "new")
    return taken


def test_ids_that_were_taken_since_the_promotion_are_not_those_that_were_lost(
    postgres_factory: PostgresFactory,
) -> None:
    primary = postgres_factory(name="primary", settings=SETTINGS)
    primary.execute(WORK)
    standby = make_standby(postgres_factory, primary, SETTINGS)
    kept = write_rows(primary, 5)
    done, undone, waiting = (prepare(primary, name) for name in ("done", "undone", "waiting"))
    caught_up(primary, standby)
    pause_replay(standby)
    tail = write_rows(primary, 10)
    primary.stop("immediate")
    standby.instance.promote()
    first = next_xid(standby)
    written = [*kept, done, undone, waiting, *tail]
    before = classes_of(standby, written)
    assert facts_of(standby).fork_xid == first
    assert {before[one.id] for one in (done, undone, waiting)} == {EventClass.UNKNOWN}

    # The first id is only in the snapshot: it logged nothing, and has not ended.
    with running(standby, TAKE):
        assert standby.value("SELECT pg_snapshot_xmin(pg_current_snapshot())") != str(first)
        taken = take_ids(standby)
        assert {one.facts.xid for one in tail} & {one.facts.xid for one in taken}
        assert classes_of(standby, written) == before
        assert facts_of(standby).fork_xid == first
    # And now only in its commit's record, which nobody waited for.
    facts = facts_of(standby)
    assert facts.fork_xid == first < next_xid(standby) - 15
    standby.execute("COMMIT PREPARED 'done'")
    standby.execute("ROLLBACK PREPARED 'undone'")
    standby.execute("COMMIT PREPARED 'new'")
    assert facts_of(standby) == facts
    after = classes_of(standby, written)
    assert after == {**before, done.id: EventClass.IN_DATABASE, undone.id: EventClass.NOT_IN_DATABASE}
    assert after[waiting.id] is EventClass.UNKNOWN
    assert (
        {number for number, one in after.items() if one is EventClass.IN_DATABASE}
        == {one.id for one in (*kept, done)}
        <= row_ids(standby)
    )


def test_a_servers_own_housekeeping_takes_no_ids_however_much_it_writes(
    postgres_factory: PostgresFactory,
) -> None:
    primary = postgres_factory(name="primary", settings=SETTINGS)
    primary.execute("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 16) FROM generate_series(1, 12000) n")
    standby = make_standby(postgres_factory, primary, SETTINGS)
    caught_up(primary, standby)
    standby.instance.promote()
    first = next_xid(standby)
    standby.checkpoint()
    assert standby.value("SELECT count(*) FROM big") == 12000  # sets hints in its pages
    standby.execute("VACUUM (FREEZE) big")
    facts = facts_of(standby)
    assert LSN.parse(str(standby.value("SELECT pg_current_wal_insert_lsn()"))) - facts.end > 4 << 20
    assert facts.fork_xid == first == next_xid(standby)
    taken = int(str(standby.value(f"{TAKE}::text")))
    assert facts_of(standby).fork_xid == taken == first
