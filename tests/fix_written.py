"""Rows whose transactions say of themselves what events would, and servers that stop where a restore does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from fix_postgres import RunningPostgres

from pitr.events.classify import EventClass, Lineage, classify, xids_to_ask
from pitr.events.event_facts import EventFacts
from pitr.events.fence import Mark
from pitr.events.forks import narrow
from pitr.events.restored import RestoredDatabase
from pitr.postgres.restored_history import RestoredServer
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

WORK = "CREATE TABLE work (id bigserial PRIMARY KEY)"
_WRITE = """
    INSERT INTO work DEFAULT VALUES RETURNING id, pg_current_xact_id()::text,
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), pg_current_wal_insert_lsn()::text"""


@dataclass(frozen=True)
class Written:
    """A row, and what its transaction said of itself, as an application would put it into headers."""

    id: int
    facts: EventFacts

    def headers(self) -> list[tuple[str, bytes]]:
        facts = self.facts
        return [
            ("event-id", b"%d" % self.id),
            ("pg-xid", b"%d" % (facts.xid or 0)),
            ("pg-tl", str(facts.timeline).encode()),
            ("pg-lsn", str(facts.lsn).encode()),
        ]


def write_row(session: psycopg.Connection[tuple[object, ...]]) -> Written:
    row = session.execute(_WRITE).fetchone()
    assert row is not None
    number, xid, timeline, lsn = row
    facts = EventFacts(xid=int(str(xid)), timeline=TimelineId.parse(str(timeline)), lsn=LSN.parse(str(lsn)))
    return Written(int(str(number)), facts)


def write_rows(server: RunningPostgres, count: int) -> list[Written]:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        return [write_row(session) for _ in range(count)]


def pause_replay(standby: RunningPostgres) -> None:
    """Stop a standby as a restore stops at its target: no more WAL, and replay paused."""
    standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
    standby.execute("SELECT pg_reload_conf()")
    for _ in range(600):
        if not standby.execute("SELECT 1 FROM pg_stat_wal_receiver"):
            break
        threading.Event().wait(0.1)
    standby.execute("SELECT pg_wal_replay_pause()")
    for _ in range(600):
        if standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused":
            return
        threading.Event().wait(0.1)
    raise AssertionError("replay does not pause")


def row_ids(server: RunningPostgres) -> set[object]:
    return {row[0] for row in server.execute("SELECT id FROM work")}


def classes_of(
    server: RunningPostgres, written: list[Written], marks: Sequence[Mark] = ()
) -> dict[int, EventClass]:
    with RestoredServer(server.dsn) as session:
        database = RestoredDatabase(session)
        branches = narrow(tuple(database.branches), marks)
        lineage = Lineage(branches, database.end, database.fork_xid, own=database.own_line())
        asked = xids_to_ask([one.facts for one in written], lineage)
        statuses = database.statuses(asked)
        return {one.id: classify(one.facts, lineage, statuses) for one in written}
