"""Records of a real Debezium, each classified against where pg_waldump finds its transaction's commit.

One connector has plain JSON, one JSON with schemas, one flattens rows, and two route an outbox, of which one
has its headers in the JSON converter's wrapping.  Which transaction wrote a row is what its writer noted.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fix_cli import MakeSite, Site, end_servers, wait_until
from fix_debezium import JSON, DebeziumWorker, MakeDebezium
from fix_debezium_shop import TABLES, Change, Ledger, Shop
from fix_kafka import KafkaNode

from cli.config_template import without_schedule
from pitr.events.broker import EventRecord
from pitr.events.classify import Classified, Classifier, EventClass, Lineage, classify
from pitr.events.flows import EventFormat, Flow, FlowDeclaration
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.partition import TopicPartition
from pitr.events.plan import Tally
from pitr.events.plan_code import decode_plan
from pitr.events.restored import RestoredDatabase
from pitr.postgres.restored_history import RestoredServer
from pitr.wal.lsn import LSN

# pg_waldump reads all of it in the end.
SETTINGS = {"wal_level": "logical", "max_prepared_transactions": "4", "wal_keep_size": "1GB"}
WAIT_S = 600.0
ORDERS = {
    "provide.transaction.metadata": "true",
    "heartbeat.interval.ms": "2000",
    "message.prefix.include.list": "pitr.*",
    "skipped.operations": "none",
}
WITH_SCHEMAS = {
    "value.converter": JSON,
    "value.converter.schemas.enable": "true",
    "key.converter": JSON,
    "key.converter.schemas.enable": "true",
    "skipped.operations": "none",
}
FLATTENED = {
    "transforms": "row",
    "transforms.row.type": "io.debezium.transforms.ExtractNewRecordState",
    "transforms.row.add.fields": "op,schema,table,lsn,source.txId",
    "transforms.row.add.headers": "op,schema,table,lsn,source.txId",
}
ROUTER = {
    "tombstones.on.delete": "false",
    "transforms": "router",
    "transforms.router.type": "io.debezium.transforms.outbox.EventRouter",
    "transforms.router.table.expand.json.payload": "true",
    "transforms.router.table.fields.additional.placement": (
        "type:header:eventType,xid:header:pg-xid,tl:header:pg-tl,lsn:header:pg-lsn"
    ),
}
CHANGES = ("plain.public.orders", "wrapped.public.orders", "flat.public.orders")
EVENTS = ("box.events", "boxed.events")
BESIDE = ("plain.transaction", "plain.message")
_COMMIT = re.compile(
    r"len \(rec/tot\): +\d+/ +(\d+), tx: +(\d+), lsn: ([0-9A-F/]+),.* desc: COMMIT(?:_PREPARED (\d+):)? "
)

# -- the truth


@dataclass(frozen=True)
class Commit:
    """A commit record, as pg_waldump has it."""

    begin: LSN
    size_bytes: int


def commits(site: Site, begin: object) -> Mapping[int, Commit]:
    server = site.server
    end = server.value("SELECT pg_current_wal_flush_lsn()")
    words = [str(server.instance.installation.bin_dir / "pg_waldump"), "-p", str(server.data_dir / "pg_wal")]
    words += ["-r", "Transaction", "-s", str(begin), "-e", str(end)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    return {
        int(prepared or xid): Commit(LSN.parse(lsn), int(size))
        for size, xid, lsn, prepared in _COMMIT.findall(told.stdout)
    }


def payload(raw: bytes | None) -> Any:
    found = None if raw is None else json.loads(raw)
    return found["payload"] if isinstance(found, dict) and found.keys() == {"schema", "payload"} else found


def change_of(record: EventRecord) -> Change | None:
    """Return what a record of a table's topic is of, read without the product; None for a tombstone."""
    if record.value is None:
        return None
    headers = {name: raw.decode() for name, raw in record.headers if raw is not None}
    value, key = payload(record.value), payload(record.key)
    operation = headers["__op"] if "__op" in headers else value["op"]
    return operation, 0 if key is None else key["id"]


def xid_of(record: EventRecord, ledger: Ledger) -> int | None:
    """Return whose record it is; None where it names no transaction."""
    topic = record.at.topic
    if topic in CHANGES:
        change = change_of(record)
        return None if change is None or change[0] == "r" else ledger.changes[change]
    if topic in EVENTS:
        return ledger.events[event_of(record)]
    value = payload(record.value)
    return int(value["id"].partition(":")[0]) if topic == "plain.transaction" else value["source"]["txId"]


def event_of(record: EventRecord) -> str:
    raw = dict(record.headers)["id"]
    assert raw is not None
    return str(json.loads(raw)["payload"]) if raw.startswith(b"{") else raw.decode()


# -- what is compared with it


def form_of(topic: str) -> EventFormat:
    return EventFormat.DEBEZIUM_OUTBOX if topic in EVENTS else EventFormat.DEBEZIUM


def read_all(node: KafkaNode, topic: str) -> list[EventRecord]:
    broker, at = KafkaBroker(KafkaSettings(node.bootstrap)), TopicPartition(topic, 0)
    return list(broker.read(at, 0, broker.ends([at])[at]))


@contextmanager
def restored(site: Site, target: object) -> Iterator[str]:
    """Restore to a target, and wait there."""
    into = site.folder / f"into-{time.monotonic_ns()}"
    site.started.append(into)
    try:
        yield str(site.restore(target, into, "--action", "pause").data["dsn"])
    finally:
        end_servers([into])


def classify_all(
    dsn: str, records: Mapping[str, list[EventRecord]]
) -> tuple[LSN, dict[str, list[Classified]]]:
    with RestoredServer(dsn) as session:
        database = RestoredDatabase(session)
        lineage = Lineage(tuple(database.branches), database.end, database.fork_xid)
        found = {
            topic: Classifier(
                FlowDeclaration(topic, Flow.DB_FIRST, form_of(topic)), lineage, {}, database.statuses
            )(batch)
            for topic, batch in records.items()
        }
        alone = replace(lineage, fork_xid=None)
        for one in found["plain.transaction"]:
            if one.facts.commit_lsn is not None:
                assert classify(one.facts, alone, {}) is one.event_class, "no server is needed for it"
        return database.end, found


def expected(record: EventRecord, ledger: Ledger, known: Mapping[int, Commit], end: LSN) -> EventClass:
    xid = xid_of(record, ledger)
    if xid is None:
        return EventClass.UNKNOWN
    return EventClass.IN_DATABASE if known[xid].begin < end else EventClass.NOT_IN_DATABASE


def wanted_of(topic: str, ledger: Ledger) -> set[object]:
    """Return what a topic has to hold, and nothing else."""
    if topic in EVENTS:
        return set(ledger.events)
    # Flattening drops truncates.
    changes = {one for one in ledger.changes if topic != "flat.public.orders" or one[0] != "t"}
    return changes | {("r", number) for number in (1, 2, 3)}


def named(record: EventRecord) -> object:
    """Return what a record is of; None for a tombstone."""
    return event_of(record) if record.at.topic in EVENTS else change_of(record)


def check_complete(records: Mapping[str, list[EventRecord]], ledger: Ledger) -> None:
    """Each committed change is there, and nothing that was rolled back: so the ledger is the truth."""
    for topic in (*CHANGES, *EVENTS):
        seen = Counter(one for record in records[topic] if (one := named(record)) is not None)
        assert seen.keys() == wanted_of(topic, ledger), topic
        print(f"{topic}: {len(seen)} records, {seen.total() - len(seen)} of them twice, after the crash")


def check_classes(
    found: Mapping[str, list[Classified]], ledger: Ledger, known: Mapping[int, Commit], end: LSN
) -> dict[str, list[EventClass]]:
    """Compare each record's class with the truth, which is returned: 0 missing, 0 extra."""
    truth = {
        topic: [expected(one.record, ledger, known, end) for one in batch] for topic, batch in found.items()
    }
    for topic, batch in found.items():
        wrong = [
            (one.record.offset, one.event_class, right, one.facts)
            for one, right in zip(batch, truth[topic], strict=True)
            if one.event_class is not right
        ]
        assert wrong == [], topic
        counts = Counter(truth[topic])
        assert min(counts[EventClass.IN_DATABASE], counts[EventClass.NOT_IN_DATABASE]) > 0, topic
        print(f"{end} {topic}: {dict(counts)}")
    return truth


def check_plan(
    site: Site, dsn: str, truth: Mapping[str, list[EventClass]], records: Mapping[str, list[EventRecord]]
) -> None:
    """The command counts the same from where it starts, and starts at nothing too late."""
    out = site.folder / f"plan-{time.monotonic_ns()}"
    words = ["-c", site.config, "events", "plan", "--restored", dsn, "--identity", site.identity]
    site.program(*words, "--out", out, "--json", timeout_s=WAIT_S)
    for topic in decode_plan(out.read_bytes()).topics:
        [partition] = topic.partitions
        assert partition.fence is not None
        assert not partition.is_estimated
        pairs = list(zip(records[topic.topic], truth[topic.topic], strict=True))
        read = Counter(one for record, one in pairs if record.offset >= partition.start)
        assert partition.tally == Tally(
            read.total(),
            read[EventClass.IN_DATABASE],
            read[EventClass.NOT_IN_DATABASE],
            0,
            read[EventClass.UNKNOWN],
        ), topic.topic
        missed = [one for record, one in pairs if record.offset < partition.start]
        assert EventClass.NOT_IN_DATABASE not in missed, topic.topic


def check_facts(
    found: Mapping[str, list[Classified]], ledger: Ledger, known: Mapping[int, Commit], end: LSN
) -> None:
    """Ids, types, and the one position of a commit that Debezium tells."""
    for batch in found.values():
        told = [one for one in batch if one.event_class is not EventClass.UNKNOWN]
        assert all(one.facts.event_id and one.facts.type and one.facts.problem is None for one in told)
    for topic in (*CHANGES, *EVENTS):
        ids = {(named(one.record), one.facts.event_id) for one in found[topic]}
        ids = {(what, name) for what, name in ids if what is not None and name is not None}
        # What came twice has one id, and no other has it.
        assert len({what for what, _ in ids}) == len(ids) == len({name for _, name in ids}), topic
    kinds = {one.facts.type for one in found["plain.public.orders"]} - {None}
    words = ("create", "update", "delete", "read", "truncate")
    assert kinds == {f"public.orders.{word}" for word in words}
    assert kinds - {"public.orders.truncate"} == {one.facts.type for one in found["flat.public.orders"]}
    assert {one.facts.type for one in found["box.events"]} == {"OrderPlaced"}
    ends = [one for one in found["plain.transaction"] if one.facts.type == "transaction.end"]
    assert len(set(ledger.changes.values()) - {one.facts.xid for one in ends}) <= 1, "each has its end"
    for one in ends:
        xid, place = one.facts.xid, one.facts.commit_lsn
        assert xid is not None
        assert place is not None
        # A record that goes over pages has their headers in it.
        assert known[xid].begin < place < known[xid].begin + known[xid].size_bytes + 64
        assert (place < end) is (one.event_class is EventClass.IN_DATABASE)


# -- the test


def _configure(site: Site, node: KafkaNode) -> None:
    said = f'\n[events]\nbootstrap = "{node.bootstrap}"\nfence_every = "1s"\nstore_every = "1s"\n'
    for topic in (*CHANGES, *EVENTS, *BESIDE):
        said += f'[[events.topic]]\nname = "{topic}"\nflow = "db-first"\nformat = "{form_of(topic)}"\n'
        node.create_topic(topic)
    site.config.write_text(without_schedule(site.config.read_text()) + said)


def _connect(worker: DebeziumWorker) -> None:
    worker.add("plain", "public.orders", ORDERS)
    worker.add("wrapped", "public.orders", WITH_SCHEMAS)
    worker.add("flat", "public.orders", FLATTENED)
    for prefix, more in (("box", {}), ("boxed", {"header.converter": JSON})):
        route = {"transforms.router.route.topic.replacement": f"{prefix}.events"}
        worker.add(prefix, "public.outbox", {**ROUTER, **route, **more})
    worker.start()


def _fences(site: Site) -> int:
    if site.server.value("SELECT to_regclass('pitr.fence') IS NULL"):
        return 0
    return int(str(site.server.value("SELECT count(*) FROM pitr.fence")))


def _wait_published(node: KafkaNode, worker: DebeziumWorker, ledger: Ledger) -> None:
    def is_done() -> bool:
        assert worker.failures() == []
        return all(
            wanted_of(topic, ledger) <= {named(one) for one in read_all(node, topic)}
            for topic in (*CHANGES, *EVENTS)
        )

    wait_until(is_done, "all is published", timeout_s=WAIT_S, every_s=2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_each_record_of_a_real_debezium_is_classified_by_its_commit(
    make_site: MakeSite, kafka_node: KafkaNode, make_debezium: MakeDebezium
) -> None:
    site = make_site(settings=SETTINGS)
    begin = site.server.value("SELECT pg_current_wal_lsn()")
    site.server.execute(TABLES)
    _configure(site, kafka_node)
    site.daemon.start()
    wait_until(lambda: _fences(site) > 0, "it takes fences", timeout_s=240)
    worker = make_debezium(site.server, kafka_node)
    _connect(worker)
    site("backup", "--type", "full", "--json")
    targets: list[object] = []
    with Shop(site.server.dsn) as shop:
        for number in range(2):
            shop.prepare(f"early{number}")
            shop.prepare(f"late{number}")
            begun = _fences(site)
            wait_until(lambda begun=begun: _fences(site) >= begun + 3, "fences are taken while others write")
            site.server.execute(f"COMMIT PREPARED 'early{number}'")
            targets.append(f"lsn:{site.server.value('SELECT pg_current_wal_insert_lsn()')}")
            wait_until(lambda begun=begun: _fences(site) >= begun + 5, "fences are taken while others write")
            site.server.execute(f"COMMIT PREPARED 'late{number}'")
            if number == 0:
                worker.crash()
                shop.pause()
                worker.start()
                shop.go_on()
    assert shop.failures == []
    assert shop.rolled_back > 0
    shop.truncate()
    _wait_published(kafka_node, worker, shop.ledger)
    worker.stop()
    site.wait_durable()
    known = commits(site, begin)
    assert site.daemon.stop() == 0
    records = {topic: read_all(kafka_node, topic) for topic in (*CHANGES, *EVENTS, *BESIDE)}
    check_complete(records, shop.ledger)
    for target in targets:
        with restored(site, target) as dsn:
            end, found = classify_all(dsn, records)
            truth = check_classes(found, shop.ledger, known, end)
            check_facts(found, shop.ledger, known, end)
            check_plan(site, dsn, truth, records)
