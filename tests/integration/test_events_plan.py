"""A plan of replay from a real server and a real broker, judged by what is in the database."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from fix_cli import wait_until
from fix_kafka import KafkaNode
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby
from fix_written import WORK, Written, classes_of, pause_replay, row_ids, write_row, write_rows

from cli.main import run_cli
from pitr.errors import MalformedValue, ServerRefused
from pitr.events.classify import EventClass
from pitr.events.fence import Mark
from pitr.events.fence_take import take_fence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.plan_code import decode_plan
from pitr.pipeline.keys import Identity, best_suite
from pitr.postgres.fence_mark import FenceMarker
from pitr.postgres.restored_history import WRITTEN_BYTES_MAX, RestoredServer
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

ONE, TWO = TimelineId(1), TimelineId(2)


def _mark(server: RunningPostgres) -> Mark:
    with FenceMarker(lambda: server.dsn) as marker:
        facts = marker.mark(lambda _facts: "").facts
    return Mark(**{field.name: getattr(facts, field.name) for field in fields(Mark)})


@pytest.fixture
def primary(postgres_factory: PostgresFactory) -> RunningPostgres:
    server = postgres_factory(name="primary")
    server.execute(WORK)
    return server


def test_transactions_are_known_in_a_restored_server_and_over_a_failover_that_uses_their_ids_again(
    primary: RunningPostgres, postgres_factory: PostgresFactory
) -> None:
    standby = make_standby(postgres_factory, primary, {})
    with psycopg.connect(primary.dsn) as open_session, psycopg.connect(primary.dsn) as failing:
        in_flight, aborted = write_row(open_session), write_row(failing)
        failing.rollback()
        kept = write_rows(primary, 10)
        before = _mark(primary)
        caught_up(primary, standby)
        pause_replay(standby)
        open_session.commit()
    tail = write_rows(primary, 10)
    with RestoredServer(standby.dsn) as session:
        facts = session.facts()
    assert (facts.timeline, facts.is_promoted) == (ONE, False)
    assert facts.end == LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()")))
    classes = classes_of(standby, [in_flight, aborted, *kept, *tail])
    in_it = row_ids(standby)
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
    assert classes_of(standby, [in_flight, aborted, *kept, *tail]) == classes

    behind = _mark(standby)
    after = write_rows(standby, 15)
    assert {one.facts.xid for one in tail} & {one.facts.xid for one in after}
    again = make_standby(postgres_factory, standby, {})
    caught_up(standby, again)
    pause_replay(again)
    with RestoredServer(again.dsn) as session:
        assert session.facts().timeline == TWO
    written = [in_flight, *kept, *tail, *after]
    classes = classes_of(again, written, [before, behind])
    lost = {in_flight.id, *(one.id for one in tail)}
    assert {number for number, one in classes.items() if one is EventClass.LOST_BRANCH} == lost
    assert {number for number, one in classes.items() if one is EventClass.IN_DATABASE} == row_ids(again)
    # Without fences nobody knows where the ids of the first timeline end: then nothing is called wrong.
    vague = classes_of(again, written)
    known = {number: one for number, one in vague.items() if one is not EventClass.UNKNOWN}
    assert known.items() <= classes.items()
    assert {one.id for one in after} <= known.keys()


def test_a_server_that_was_not_restored_or_no_longer_tells_what_is_new_is_refused(
    primary: RunningPostgres, postgres_factory: PostgresFactory
) -> None:
    with RestoredServer(primary.dsn) as session, pytest.raises(ServerRefused, match="not restored"):
        session.facts()
    standby = make_standby(postgres_factory, primary, {})
    caught_up(primary, standby)
    with RestoredServer(standby.dsn) as session, pytest.raises(ServerRefused, match="still in recovery"):
        session.facts()
    standby.instance.promote()
    first = standby.data_dir / "pg_wal" / str(standby.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
    _switch(standby, 2)

    def is_gone() -> bool:
        standby.checkpoint()  # which leaves what is not summarized yet
        return not first.exists()

    wait_until(is_gone, "the WAL since the promotion is recycled")
    with RestoredServer(standby.dsn) as session:
        with pytest.raises(ServerRefused, match="no longer has the WAL since its promotion"):
            session.facts()
        _switch(standby, 4)
        with pytest.raises(ServerRefused, match="too much was written") as refused:
            session.facts()
        assert int(str(refused.value.detail).split(" ", 1)[0]) > WRITTEN_BYTES_MAX
        assert session.cursor("SELECT 3, 70::bigint") == {3: 70}
        for bad in ("SELECT 3", "SELECT 3, 'x'", "SELECT 3, -1", "SELECT 3, 1 UNION ALL SELECT 3, 2"):
            with pytest.raises(MalformedValue, match="cursor_sql"):
                session.cursor(bad)
        with pytest.raises(ServerRefused, match="read-only"):
            session.cursor("CREATE TABLE owned ()")


def _switch(server: RunningPostgres, segments: int) -> None:
    for number in range(segments):
        server.execute("SELECT pg_create_restore_point(%s)", f"point {number}")
        server.switch_wal()


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

    publish(write_rows(primary, 5))
    with FenceMarker(lambda: primary.dsn) as marker:
        take_fence(
            broker,
            marker,
            (FlowDeclaration(topic, Flow.DB_FIRST),),
            now=lambda: datetime.now(UTC),
        )
    publish(write_rows(primary, 4))
    caught_up(primary, standby)
    pause_replay(standby)
    tail = write_rows(primary, 3)
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


SINKS = """
CREATE TABLE stands (partition int, next_offset bigint);
INSERT INTO stands VALUES (0, 2);
"""
HANDLERS = """
[sink]
kind = "sql"
[classes]
unknown = "apply"
[[handler]]
type = "made"
sql = "INSERT INTO work SELECT event_id::bigint FROM pitr_batch"
"""


def test_what_a_promoted_server_published_is_not_replayed_into_it_and_sinks_that_go_on_are_refused(
    primary: RunningPostgres,
    postgres_factory: PostgresFactory,
    kafka_node: KafkaNode,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    topic, read = kafka_node.new_topic(), kafka_node.new_topic()
    primary.execute(SINKS)
    standby = make_standby(postgres_factory, primary, {})

    def publish(written: list[Written]) -> None:
        for one in written:
            headers = [*one.headers(), ("event-type", b"made")]
            kafka_node.produce(topic, [b"{}"], key=b"%d" % one.id, headers=headers)

    publish(write_rows(primary, 3))
    caught_up(primary, standby)
    pause_replay(standby)
    publish(write_rows(primary, 4))
    lost = [one for one in row_ids(primary) if one not in row_ids(standby)]
    primary.stop("immediate")
    standby.instance.promote()
    # Beyond the numbers that were lost, or the rows could not be told apart.
    standby.execute("SELECT setval('work_id_seq', 1000)")
    own = write_rows(standby, 6)
    publish(own)
    for number in range(2000, 2004):
        kafka_node.produce(read, [b"{}"], headers=[("event-id", b"%d" % number), ("event-type", b"made")])
    config, out, handlers = _config(tmp_path, primary, kafka_node, topic), tmp_path / "plan", tmp_path / "h"
    handlers.write_text(HANDLERS)
    sink = f'[[events.topic]]\nname = "{read}"\nflow = "sink-cursor"\n'
    sink += 'cursor_sql = "SELECT partition, next_offset FROM stands"\n'
    config.write_text(config.read_text() + sink)

    def pitr(*words: object, exit_code: int = 0) -> str:
        assert run_cli([*map(str, words), "-c", str(config)]) == exit_code, capsys.readouterr()
        shown = capsys.readouterr()
        return shown.out + shown.err

    told = pitr("events", "plan", "--restored", standby.dsn, "--out", out)
    assert "clients have committed 7 transactions in the restored server" in told
    plan = decode_plan(out.read_bytes())
    first, second = plan.topics
    assert (first.partitions[0].tally.in_database, first.partitions[0].tally.to_apply) == (3 + 6, 4)
    assert (second.partitions[0].start, second.partitions[0].tally.to_apply) == (2, 2)
    replay = ("events", "replay", "--plan", out, "--plan-hash", plan.hash, "--handlers", handlers)
    replay = (*replay, "--restored", standby.dsn)
    standby.execute("UPDATE stands SET next_offset = 3")
    told = pitr(*replay, exit_code=2)
    assert f"the sink of topic {read} has gone on since the plan was made" in told
    assert not {2002, 2003} & row_ids(standby)
    standby.execute("UPDATE stands SET next_offset = 2")
    before = row_ids(standby)
    pitr(*replay)
    assert row_ids(standby) == before | {*lost, 2002, 2003}
    # Its handlers may have moved the cursor; what is begun goes on.
    standby.execute("UPDATE stands SET next_offset = 4")
    pitr(*replay)
    # Another plan: what the replay did is not clients', and what was there counts no second time.
    pitr("events", "plan", "--restored", standby.dsn, "--out", out)
    again = decode_plan(out.read_bytes())
    assert again.topics[0].partitions[0].tally == first.partitions[0].tally
