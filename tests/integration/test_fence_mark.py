"""The mark of a fence on a real server: what it leaves there, and that nobody is held up by it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import psycopg
import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from psycopg.conninfo import make_conninfo

from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres import fence_mark
from pitr.postgres.fence_mark import PAYLOAD_BYTES_MAX, FenceMarker, MarkFacts, newest_rows
from pitr.postgres.fence_rights import lacking_rights
from pitr.wal.timeline import TimelineId

SETTINGS = {"wal_level": "logical"}


def payload(facts: MarkFacts) -> str:
    return f'{{"number":{facts.number}}}'


@dataclass
class Place:
    """A database of a test's own on the module's server."""

    server: RunningPostgres
    name: str

    @property
    def dsn(self) -> str:
        return make_conninfo(self.server.dsn, dbname=self.name)

    def execute(self, sql: str, *params: object) -> list[tuple[object, ...]]:
        return self.server.execute(sql, *params, dbname=self.name)

    def value(self, sql: str, *params: object) -> object:
        return self.execute(sql, *params)[0][0]


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    return module_postgres_factory(major=17, settings=SETTINGS)


@pytest.fixture
def place(server: RunningPostgres) -> Place:
    name = f"d{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE DATABASE {name}")
    return Place(server, name)


@pytest.fixture
def marker(place: Place) -> Iterator[FenceMarker]:
    with FenceMarker(lambda: place.dsn) as found:
        yield found


def test_a_mark_is_a_row_and_a_message_at_one_commit(place: Place, marker: FenceMarker) -> None:
    place.execute("SELECT pg_create_logical_replication_slot('watch', 'test_decoding')")
    first, second = marker.mark(payload), marker.mark(payload)
    rows = newest_rows(place.dsn, 10)
    assert [(row.number, row.payload) for row in rows] == [
        (second.facts.number, payload(second.facts)),
        (first.facts.number, payload(first.facts)),
    ]
    facts = second.facts
    assert facts.system_identifier == place.value("SELECT system_identifier FROM pg_control_system()")
    assert facts.timeline == TimelineId(1)
    assert first.facts.lsn < first.committed_by <= facts.lsn < second.committed_by
    assert facts.xid > first.facts.xid
    assert facts.oldest_xid <= facts.next_xid <= facts.xid
    assert place.value("SELECT pg_xact_status(%s::text::xid8)", facts.xid) == "committed"
    # The transaction's commit lies between the two positions, and the message is in it.
    changes = place.execute(
        "SELECT lsn::text, xid::text, data FROM pg_logical_slot_get_changes('watch', NULL, NULL)"
    )
    own = [(lsn, data) for lsn, xid, data in changes if xid == str(facts.xid % (1 << 32))]
    assert any(
        "pitr.fence" in str(data) and payload(facts) in str(data) for _, data in own if "message" in str(data)
    )
    (commit,) = [lsn for lsn, data in own if str(data).startswith("COMMIT")]
    assert place.value(
        "SELECT %s::pg_lsn BETWEEN %s::pg_lsn AND %s::pg_lsn",
        commit,
        str(facts.lsn),
        str(second.committed_by),
    )


def test_a_standby_that_nobody_plays_holds_no_mark(place: Place, marker: FenceMarker) -> None:
    place.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    place.execute("SELECT pg_reload_conf()")
    began = time.monotonic()
    try:
        marker.mark(payload)  # makes the table, too
        marker.mark(payload)
    finally:
        place.execute("ALTER SYSTEM RESET synchronous_standby_names")
        place.execute("SELECT pg_reload_conf()")
    assert time.monotonic() - began < 60, "it waited for a standby"
    assert len(newest_rows(place.dsn, 10)) == 2


def test_a_lock_holds_no_mark_for_long_and_the_mark_holds_nobody(place: Place, marker: FenceMarker) -> None:
    marker.mark(payload)
    with psycopg.connect(place.dsn) as holder:
        holder.execute("LOCK TABLE pitr.fence IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="could not be committed"):
            marker.mark(payload)
        assert time.monotonic() - began < 60
        # Others commit meanwhile, and nothing of ours is left waiting or open.
        place.execute("CREATE TABLE others (n int)")
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pitr fence' AND state <> 'idle'"
        )
        assert place.value(waiting) == 0
    marker.mark(payload)
    assert len(newest_rows(place.dsn, 10)) == 2


def test_a_session_that_is_lost_is_made_again(place: Place, marker: FenceMarker) -> None:
    marker.mark(payload)
    place.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'pitr fence'"
    )
    with pytest.raises(ServerUnavailable):
        marker.mark(payload)
    marker.mark(payload)
    assert len(newest_rows(place.dsn, 10)) == 2


def test_a_payload_that_cannot_be_written_leaves_no_row_and_no_open_transaction(
    place: Place, marker: FenceMarker
) -> None:
    def fail(_facts: MarkFacts) -> str:
        raise ServerRefused("no payload")

    marker.mark(payload)
    with pytest.raises(ServerRefused):
        marker.mark(fail)
    assert len(newest_rows(place.dsn, 10)) == 1
    marker.mark(payload)


def test_a_role_with_the_rights_on_the_table_alone_marks(place: Place) -> None:
    place.execute("CREATE ROLE clerk LOGIN")
    dsn = make_conninfo(place.dsn, user="clerk")
    with FenceMarker(lambda: dsn) as marker:
        with pytest.raises(ServerRefused, match="may not be written"):
            marker.mark(payload)
        assert lacking_rights(dsn) == ("CREATE on the database",)
        place.execute(fence_mark.SCHEMA_SQL)
        assert lacking_rights(dsn) == ("CREATE on the database", "CREATE on schema pitr")
        place.execute(fence_mark.TABLE_SQL)
        for count, grant in enumerate(fence_mark.GRANTS_SQL):
            assert len(lacking_rights(dsn)) == (6, 5, 1)[count]
            place.execute(grant.format(role="clerk"))
        assert lacking_rights(dsn) == ()
        marker.mark(payload)
        assert marker.unpruned is None
    assert len(newest_rows(dsn, 10)) == 1


def test_old_rows_go_and_one_that_is_locked_is_left(place: Place) -> None:
    with FenceMarker(lambda: place.dsn, rows_kept=3, prune_every=1) as marker:
        for _ in range(4):
            marker.mark(payload)
        with psycopg.connect(place.dsn) as holder:
            holder.execute("SELECT * FROM pitr.fence WHERE id = 2 FOR UPDATE")
            marker.mark(payload)
            assert [row.number for row in newest_rows(place.dsn, 10)] == [5, 4, 3, 2]
        marker.mark(payload)
        assert [row.number for row in newest_rows(place.dsn, 10)] == [6, 5, 4]


def test_rows_are_read_within_bounds(place: Place, marker: FenceMarker) -> None:
    assert newest_rows(place.dsn, 10) == (), "a database without the table has none"
    marker.mark(payload)
    place.execute("INSERT INTO pitr.fence (id, payload) VALUES (999, repeat('x', %s))", PAYLOAD_BYTES_MAX + 1)
    newest = newest_rows(place.dsn, 1)
    assert [(row.number, row.payload, row.payload_bytes) for row in newest] == [
        (999, None, PAYLOAD_BYTES_MAX + 1)
    ]


def test_a_server_that_is_away_is_said_so(place: Place, marker: FenceMarker) -> None:
    marker.mark(payload)
    place.server.stop()
    with pytest.raises(ServerUnavailable):
        marker.mark(payload)
    place.server.start(SETTINGS)
    marker.mark(payload)


def test_writers_go_on_while_marks_are_made(place: Place, marker: FenceMarker) -> None:
    place.execute("CREATE TABLE work (n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT now())")
    stopping = threading.Event()
    counts = [0]

    def write() -> None:
        with psycopg.connect(place.dsn, autocommit=True) as session:
            while not stopping.is_set():
                session.execute("INSERT INTO work DEFAULT VALUES")
                counts[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        marks = [marker.mark(payload) for _ in range(20)]
    finally:
        stopping.set()
        writer.join(30)
    assert counts[0] > 0
    assert all(a.committed_by <= b.facts.lsn for a, b in pairwise(marks))
