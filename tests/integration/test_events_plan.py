"""A plan of replay from a real server and a real broker, judged by what is in the database."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from fix_kafka import KafkaNode
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby

from cli.main import run_cli
from pitr.errors import MalformedValue, ServerRefused
from pitr.events.classify import EventClass, Lineage, classify, xids_to_ask
from pitr.events.event_facts import EventFacts
from pitr.events.fence import Mark
from pitr.events.fence_take import take_fence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.forks import narrow
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.plan_code import decode_plan
from pitr.events.restored import RestoredDatabase
from pitr.pipeline.keys import Identity, best_suite
from pitr.postgres.fence_mark import FenceMarker
from pitr.postgres.restored_history import WRITTEN_BYTES_MAX, RestoredServer
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

ONE, TWO = TimelineId(1), TimelineId(2)
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


def _write(session: psycopg.Connection[tuple[object, ...]]) -> Written:
    row = session.execute(_WRITE).fetchone()
    assert row is not None
    number, xid, timeline, lsn = row
    facts = EventFacts(xid=int(str(xid)), timeline=TimelineId.parse(str(timeline)), lsn=LSN.parse(str(lsn)))
    return Written(int(str(number)), facts)


def _rows(server: RunningPostgres, count: int) -> list[Written]:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        return [_write(session) for _ in range(count)]


def _pause(standby: RunningPostgres) -> None:
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


def _ids(server: RunningPostgres) -> set[object]:
    return {row[0] for row in server.execute("SELECT id FROM work")}


def _mark(server: RunningPostgres) -> Mark:
    with FenceMarker(lambda: server.dsn) as marker:
        facts = marker.mark(lambda _facts: "").facts
    return Mark(**{field.name: getattr(facts, field.name) for field in fields(Mark)})


def _classes(
    server: RunningPostgres, written: list[Written], marks: Sequence[Mark] = ()
) -> dict[int, EventClass]:
    with RestoredServer(server.dsn) as session:
        database = RestoredDatabase(session)
        branches = narrow(tuple(database.branches), marks)
        lineage = Lineage(branches, database.end, database.fork_xid)
        asked = xids_to_ask([one.facts for one in written], lineage)
        statuses = database.statuses(asked)
        return {one.id: classify(one.facts, lineage, statuses) for one in written}


@pytest.fixture
def primary(postgres_factory: PostgresFactory) -> RunningPostgres:
    server = postgres_factory(name="primary")
    server.execute("CREATE TABLE work (id bigserial PRIMARY KEY)")
    return server


def test_transactions_are_known_in_a_restored_server_and_over_a_failover_that_uses_their_ids_again(
    primary: RunningPostgres, postgres_factory: PostgresFactory
) -> None:
    standby = make_standby(postgres_factory, primary, {})
    with psycopg.connect(primary.dsn) as open_session, psycopg.connect(primary.dsn) as failing:
        in_flight, aborted = _write(open_session), _write(failing)
        failing.rollback()
        kept = _rows(primary, 10)
        before = _mark(primary)
        caught_up(primary, standby)
        _pause(standby)
        open_session.commit()
    tail = _rows(primary, 10)
    with RestoredServer(standby.dsn) as session:
        facts = session.facts()
    assert (facts.timeline, facts.is_promoted) == (ONE, False)
    assert facts.end == LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()")))
    classes = _classes(standby, [in_flight, aborted, *kept, *tail])
    in_it = _ids(standby)
    assert len(in_it) == 10
    assert {number for number, one in classes.items() if one is EventClass.IN_DATABASE} == in_it
    assert EventClass.UNKNOWN not in classes.values()
    # One with an id below others that are in it was in flight: ids alone would lose it.
    assert in_flight.facts.xid is not None
    assert in_flight.facts.xid < facts.fork_xid

    primary.stop("immediate")
    standby.instance.promote()
    with RestoredServer(standby.dsn) as session:
        promoted = session.facts()
    assert (promoted.timeline, promoted.end, promoted.is_promoted) == (ONE, facts.end, True)
    assert _classes(standby, [in_flight, aborted, *kept, *tail]) == classes

    behind = _mark(standby)
    after = _rows(standby, 15)
    assert {one.facts.xid for one in tail} & {one.facts.xid for one in after}
    again = make_standby(postgres_factory, standby, {})
    caught_up(standby, again)
    _pause(again)
    with RestoredServer(again.dsn) as session:
        assert session.facts().timeline == TWO
    written = [in_flight, *kept, *tail, *after]
    classes = _classes(again, written, [before, behind])
    lost = {in_flight.id, *(one.id for one in tail)}
    assert {number for number, one in classes.items() if one is EventClass.LOST_BRANCH} == lost
    assert {number for number, one in classes.items() if one is EventClass.IN_DATABASE} == _ids(again)
    # Without fences nobody knows where the ids of the first timeline end: then nothing is called wrong.
    vague = _classes(again, written)
    known = {number: one for number, one in vague.items() if one is not EventClass.UNKNOWN}
    assert known.items() <= classes.items()
    assert {one.id for one in after} <= known.keys()


def test_a_server_that_was_not_restored_or_was_written_to_is_refused(
    primary: RunningPostgres, postgres_factory: PostgresFactory
) -> None:
    with RestoredServer(primary.dsn) as session, pytest.raises(ServerRefused, match="not restored"):
        session.facts()
    standby = make_standby(postgres_factory, primary, {})
    caught_up(primary, standby)
    with RestoredServer(standby.dsn) as session, pytest.raises(ServerRefused, match="still in recovery"):
        session.facts()
    standby.instance.promote()
    standby.execute("CREATE TABLE big AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 5000) n")
    with RestoredServer(standby.dsn) as session:
        with pytest.raises(ServerRefused, match=r"written to") as refused:
            session.facts()
        assert int(str(refused.value.detail).split(" ", 1)[0]) > WRITTEN_BYTES_MAX
        assert session.cursor("SELECT 3, 70::bigint") == {3: 70}
        for bad in ("SELECT 3", "SELECT 3, 'x'", "SELECT 3, -1", "SELECT 3, 1 UNION ALL SELECT 3, 2"):
            with pytest.raises(MalformedValue, match="cursor_sql"):
                session.cursor(bad)
        with pytest.raises(ServerRefused, match="read-only"):
            session.cursor("CREATE TABLE owned ()")


def _config(folder: Path, server: RunningPostgres, kafka: KafkaNode, topic: str) -> Path:
    identity = Identity(bytes(range(32)))
    path = folder / "pitr.toml"
    path.write_text(f"""
[cluster]
dsn = "{server.dsn}"
[repository]
id = "{"0123456789abcdef" * 2}"
quorum = 1
[[region]]
name = "here"
url = "file://{folder / "store"}"
[keys]
signing_key_file = "signing.key"
root = "{identity.root_signer().public}"
recipients = ["{identity.recipient(best_suite())}"]
[daemon]
state_dir = "{folder / "state"}"
[events]
bootstrap = "{kafka.bootstrap}"
[[events.topic]]
name = "{topic}"
flow = "db-first"
""")
    return path


def test_the_command_plans_exits_with_a_gap_and_names_events_that_the_database_lacks(
    primary: RunningPostgres,
    postgres_factory: PostgresFactory,
    kafka_node: KafkaNode,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    topic = kafka_node.new_topic()
    broker = KafkaBroker(KafkaSettings(kafka_node.bootstrap))
    standby = make_standby(postgres_factory, primary, {})

    def publish(written: list[Written]) -> None:
        for one in written:
            kafka_node.produce(topic, [b"%d" % one.id], headers=one.headers())

    publish(_rows(primary, 5))
    with FenceMarker(lambda: primary.dsn) as marker:
        take_fence(
            broker,
            marker,
            (FlowDeclaration(topic, Flow.DB_FIRST),),
            now=lambda: datetime.now(UTC),
        )
    publish(_rows(primary, 4))
    caught_up(primary, standby)
    _pause(standby)
    tail = _rows(primary, 3)
    publish(tail)
    config, out, page = (
        _config(tmp_path, primary, kafka_node, topic),
        tmp_path / "plan",
        tmp_path / "page.html",
    )
    words = ["events", "plan", "-c", str(config), "--restored", standby.dsn, "--out", str(out)]
    assert run_cli([*words, "--page", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    plan = decode_plan(out.read_bytes())
    assert told["data"]["plan"]["hash"] == plan.hash
    [partition] = plan.topics[0].partitions
    assert (partition.start, partition.end) == (5, 12)
    assert (partition.tally.in_database, partition.tally.to_apply, partition.tally.unknown) == (4, 3, 0)
    assert [one.event_id for one in plan.phantoms.first] == [str(one.id) for one in tail]
    text = page.read_text()
    assert plan.hash in text
    assert "<script" not in text

    kafka_node.delete_records(topic, 7)
    out.unlink()
    assert run_cli(words) == 4
    shown = capsys.readouterr()
    assert "deleted" in shown.out
    assert f"{topic}[0]: records from offset 5 to 7 were deleted" in shown.err
    assert not out.exists()
    assert run_cli([*words, "--accept-gap", f"{topic}[0]"]) == 0
    assert decode_plan(out.read_bytes()).topics[0].partitions[0].start == 7
    assert run_cli([*words, "--accept-gap", f"{topic}[3]"]) == 2
    assert run_cli([*words, "--topic", "undeclared"]) == 2
    assert "not declared" in capsys.readouterr().err
