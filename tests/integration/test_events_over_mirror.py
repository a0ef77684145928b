"""``--mirror``: a plan and a replay from the copy of topics.  One broker has both; the test is the mirror."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import wait_until
from fix_kafka import KafkaNode
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby

from cli.config_template import NewConfig, NewRegion, render_config
from cli.main import run_cli
from pitr.events.fence import Fence
from pitr.events.fence_take import take_fence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.last_records import LastRecords
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition
from pitr.events.plan_code import decode_plan
from pitr.events.sync_book import SyncBook
from pitr.events.sync_keeper import SyncKeeper
from pitr.events.sync_pairs import Sync, SyncPair, encode_sync
from pitr.pipeline.keys import Identity, best_suite
from pitr.postgres.fence_mark import FenceMarker

HANDLERS = """
[sink]
kind = "sql"
[[handler]]
type = "made"
sql = "INSERT INTO work (id) SELECT event_id::bigint FROM pitr_batch"
"""
TO_TOPIC = '[sink]\nkind = "topic"\ntopic = "{topic}"\n'
WRITE = """
    INSERT INTO work DEFAULT VALUES RETURNING id, pg_current_xact_id()::text,
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), pg_current_wal_insert_lsn()::text"""


@dataclass
class Regions:
    """A topic, its copy on the same broker, and the pairs of offsets that a mirror would leave."""

    node: KafkaNode
    folder: Path
    topic: str
    names: MirrorNames
    written: int = 0
    copied: int = 0
    broker: KafkaBroker = field(init=False)

    def __post_init__(self) -> None:
        self.broker = KafkaBroker(KafkaSettings(self.node.bootstrap))
        self.node.create_topic(self.names.remote(self.topic))
        self.node.create_topic(self.names.syncs)

    def write(self, server: RunningPostgres, count: int) -> None:
        """Commit rows, and publish each in a Kafka transaction of its own: its marker takes an offset."""
        producer = self.node.producer(**{"transactional.id": f"over-{uuid.uuid4()}"})
        producer.init_transactions(60)
        with psycopg.connect(server.dsn, autocommit=True) as session:
            for _ in range(count):
                row = session.execute(WRITE).fetchone()
                assert row is not None
                said = {"event-id": row[0], "pg-xid": row[1], "pg-tl": row[2], "pg-lsn": row[3]}
                headers = [(name, str(value).encode()) for name, value in said.items()]
                producer.begin_transaction()
                producer.produce(
                    self.topic, b"{}", key=b"k", partition=0, headers=[*headers, ("event-type", b"made")]
                )
                producer.commit_transaction(60)
                self.written += 1
        at = TopicPartition(self.topic, 0)
        # Markers are written after the commit was acknowledged.
        wait_until(lambda: self.broker.ends([at])[at] == 2 * self.written, "all is committed")

    def mirror(self) -> None:
        """Copy what is new, and leave a pair at each fifth record."""
        at = TopicPartition(self.topic, 0)
        for record in self.broker.read(at, self.copied, self.broker.ends([at])[at]):
            remote = self.names.remote_partition(at)
            downstream = self.broker.ends([remote])[remote]
            parts = {"key": record.key, "headers": list(record.headers), "timestamp": record.timestamp_ms}
            self.node.produce(remote.topic, [record.value or b""], **parts)
            if downstream % 5 == 0:
                key, value = encode_sync(Sync(at, SyncPair(record.offset, downstream)))
                self.node.produce(self.names.syncs, [value], key=key)
            self.copied = record.offset + 1

    def fence(self, server: RunningPostgres) -> Fence:
        flows = (FlowDeclaration(self.topic, Flow.DB_FIRST),)
        identify = LastRecords(self.broker).identify
        with FenceMarker(lambda: server.dsn) as marker:
            return take_fence(
                self.broker, marker, flows, now=lambda: datetime.now(UTC), identify=identify
            ).fence

    @contextmanager
    def keeper(self) -> Iterator[SyncKeeper]:
        """Yield what the daemon has: it keeps pairs in the state directory."""
        (self.folder / "state").mkdir(exist_ok=True)
        book = SyncBook(self.folder / "state" / "mirror-pairs.sqlite")
        try:
            yield SyncKeeper(self.broker, self.names, book)
        finally:
            book.close()

    def configure(self) -> None:
        identity = Identity(bytes(range(32)))
        config = NewConfig(
            cluster="main",
            dsn="host=/run/nowhere user=postgres",
            slot="pitr",
            repository="0" * 32,
            root=str(identity.root_signer().public),
            recipients=(str(identity.recipient(best_suite())),),
            quorum=1,
            regions=(NewRegion("north", f"file://{self.folder}/north"),),
            signing_key_file=self.folder / "signing-key.toml",
            state_dir=self.folder / "state",
        )
        (self.folder / "handlers.toml").write_text(HANDLERS)
        # The source is not asked: it is not there.
        (self.folder / "pitr.toml").write_text(
            render_config(config)
            + '\n[events]\nbootstrap = "127.0.0.1:1"\n'
            + '[events.replay]\nhandlers_file = "handlers.toml"\n'
            + f'[events.mirror]\nbootstrap = "{self.node.bootstrap}"\n'
            + f'source_alias = "{self.names.source_alias}"\n'
            + f'[[events.topic]]\nname = "{self.topic}"\nflow = "db-first"\n'
        )


@pytest.fixture
def regions(kafka_node: KafkaNode, tmp_path: Path) -> Regions:
    return Regions(kafka_node, tmp_path, kafka_node.new_topic(), MirrorNames(f"eu{uuid.uuid4().hex[:6]}"))


def test_a_copy_stands_in_for_a_cluster_that_is_gone(
    regions: Regions, postgres_factory: PostgresFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    primary = postgres_factory(name="primary")
    primary.execute("CREATE TABLE work (id bigserial PRIMARY KEY)")
    standby = make_standby(postgres_factory, primary, {})
    regions.configure()

    def pitr(*words: object, exit_code: int = 0) -> dict[str, Any]:
        config = str(regions.folder / "pitr.toml")
        assert run_cli([*map(str, words), "--config", config, "--json"]) == exit_code, capsys.readouterr()
        found = json.loads(capsys.readouterr().out)
        assert isinstance(found, dict)
        return found

    regions.write(primary, 12)
    regions.mirror()
    with regions.keeper() as keeper:
        keeper.poll()
        keeper.poll(regions.fence(primary))
        regions.write(primary, 4)
        caught_up(primary, standby)
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        standby.execute("SELECT pg_reload_conf()")
        regions.write(primary, 6)
        regions.mirror()
        keeper.poll()
    truth = {int(str(row[0])) for row in primary.execute("SELECT id FROM work")}
    standby.instance.promote()
    lost = sorted(truth - {int(str(row[0])) for row in standby.execute("SELECT id FROM work")})
    assert len(lost) == 6

    plan_path, page = regions.folder / "plan", regions.folder / "page.html"
    planning = ("events", "plan", "--restored", standby.dsn, "--out", plan_path)
    assert "no answer from Kafka" in pitr(*planning, exit_code=1)["error"]["message"]
    told = pitr(*planning, "--mirror", "--page", page)["data"]
    plan = decode_plan(plan_path.read_bytes())
    # Who the last record was only the signed copy of a fence says: the pair below bounds it.
    [of_mirror] = told["mirror"]["partitions"]
    assert (of_mirror["source_offset"], of_mirror["offset"], of_mirror["basis"]) == (24, 11, "lower bound")
    assert of_mirror["stopped"] == "the fence does not say which record was its last"
    [partition] = plan.topics[0].partitions
    assert (plan.topics[0].topic, partition.start, partition.end) == (regions.topic, 11, 22)
    assert (partition.tally.in_database, partition.tally.to_apply, partition.gaps) == (5, 6, ())
    assert "over the mirror: 0 of 1" in page.read_text()

    replaying = ("events", "replay", "--plan", plan_path, "--restored", standby.dsn)
    named = (*replaying, "--plan-hash", plan.hash)
    assert "no answer from Kafka" in pitr(*named, exit_code=1)["error"]["message"]
    dry = pitr(*replaying, "--mirror", "--dry-run")["data"]
    assert [(one["table"], one["inserted"]) for one in dry["diff"]] == [("work", 6)]

    pitr(*named, "--mirror")
    assert sorted(row[0] for row in standby.execute("SELECT id FROM work")) == sorted(truth)

    # To a topic; how far that is stands in another database of the server, and in Kafka.
    standby.execute("CREATE DATABASE other")
    named = (*named, "--restored", f"{standby.dsn} dbname=other")
    remote = regions.names.remote(regions.topic)
    handlers = regions.folder / "to-topic.toml"
    handlers.write_text(TO_TOPIC.format(topic=remote))
    assert "itself" in pitr(*named, "--mirror", "--handlers", handlers, exit_code=2)["error"]["message"]
    target = regions.node.new_topic()
    handlers.write_text(TO_TOPIC.format(topic=target))
    pitr(*named, "--mirror", "--handlers", handlers)
    at = TopicPartition(target, 0)
    # A transaction's marker is written after its commit was acknowledged, and takes an offset.
    wait_until(lambda: regions.broker.ends([at])[at] > len(lost), "the events can be read")
    sent = list(regions.broker.read(at, 0, regions.broker.ends([at])[at]))
    assert [int(one.header("event-id") or b"") for one in sent] == lost
    group = regions.broker.group(f"pitr-replay-{plan.hash[:32]}").offsets
    assert group == {TopicPartition(remote, 0): 22}
    assert pitr("events", "reset-groups", "--plan", plan_path, "--mirror")["data"]["moves"] == []
