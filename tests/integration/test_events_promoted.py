"""A promoted server is asked for the first transaction id that it had not: whoever has taken some since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby
from fix_written import WORK, Written, classes_of, pause_replay, row_ids, write_row, write_rows

from pitr.events.classify import EventClass
from pitr.events.history import OwnLine
from pitr.events.restored import RestoredDatabase
from pitr.postgres.applied_events import ReplaySession
from pitr.postgres.fence_mark import FenceMarker
from pitr.postgres.restored_history import RestoredFacts, RestoredServer
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

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
            with session.connection.transaction():
                session.connection.execute("INSERT INTO work DEFAULT VALUES")
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


def line_of(server: RunningPostgres) -> OwnLine | None:
    with RestoredServer(server.dsn) as session:
        return RestoredDatabase(session).own_line()


def without_timeline(written: list[Written]) -> list[Written]:
    return [replace(one, facts=replace(one.facts, timeline=None)) for one in written]


def test_what_clients_commit_in_a_promoted_server_is_in_it_and_not_to_be_applied(
    postgres_factory: PostgresFactory,
) -> None:
    primary = postgres_factory(name="primary", settings=SETTINGS)
    primary.execute(WORK)
    primary.execute("CREATE UNLOGGED TABLE light (id int)")
    with FenceMarker(lambda: primary.dsn) as marker:
        marker.mark(lambda _facts: "")
    standby = make_standby(postgres_factory, primary, SETTINGS)
    kept = write_rows(primary, 3)
    caught_up(primary, standby)
    pause_replay(standby)
    assert line_of(standby) is None
    tail = write_rows(primary, 40)
    primary.stop("immediate")
    standby.instance.promote()
    # What the server does by itself, a fence, and a replay are no clients.
    standby.execute("ANALYZE work")
    with FenceMarker(lambda: standby.dsn) as marker:
        marker.mark(lambda _facts: "")
    with ReplaySession(standby.dsn) as session:
        session.prepare()
        with session.transaction():
            session.enter("r", "h", "s")
            with session.connection.transaction():
                session.connection.execute("INSERT INTO work DEFAULT VALUES")
    with psycopg.connect(standby.dsn) as failing:
        write_row(failing)
        failing.rollback()
    assert line_of(standby) is None
    assert set(classes_of(standby, without_timeline(tail)).values()) == {EventClass.NOT_IN_DATABASE}

    own = write_rows(standby, 10)
    with psycopg.connect(standby.dsn) as session:
        top = int(str(session.execute(TAKE).fetchone()[0]))  # type: ignore[index]
        with session.transaction():
            write_row(session)
    others = [
        int(str(standby.value(statement)))
        for statement in (
            "INSERT INTO light VALUES (1) RETURNING pg_current_xact_id()",
            "SELECT pg_current_xact_id() FROM (SELECT pg_logical_emit_message(true, 'app', 'x')) AS said",
            "SELECT pg_current_xact_id() FROM (SELECT lo_from_bytea(0, 'x')) AS made",
            TAKE,
        )
    ]
    line = line_of(standby)
    assert line is not None
    assert line.timeline == TimelineId(2)
    wanted = {*(one.facts.xid for one in own), top, *others}
    assert {xid for first, last in line.xids for xid in range(first, last + 1)} == wanted
    # The sequence gives the rows' numbers again too, so each list is asked for by itself.
    assert set(classes_of(standby, [*kept, *own]).values()) == {EventClass.IN_DATABASE}
    assert set(classes_of(standby, tail).values()) == {EventClass.NOT_IN_DATABASE}
    # Whose number and position can be both timelines' is unknown; of all others the class is the true one.
    assert set(classes_of(standby, without_timeline(own)).values()) == {EventClass.UNKNOWN}
    vague = classes_of(standby, without_timeline(tail))
    assert set(vague.values()) == {EventClass.UNKNOWN, EventClass.NOT_IN_DATABASE}
    assert {xid for one in tail if vague[one.id] is EventClass.UNKNOWN and (xid := one.facts.xid)} <= wanted
