"""Applications that couple a database and topics, each by its own flow, and a ledger of what became true.

Four writers commit orders with an outbox, which a relay publishes (db-first).  A producer fills three more
topics, which sinks take into the database: one keeps its cursor there, one commits its group's offset after
the database, one says nothing but its largest lag.  Transactions of both sides are rolled back now and then.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from fix_cli import wait_until
from fix_kafka import KafkaNode
from fix_postgres import RunningPostgres

WRITERS = 4
PARTITIONS = 2
MAX_LAG_S = 20
SCHEMA = """
CREATE TABLE effect (n bigserial, event_id text NOT NULL, key text, by text NOT NULL);
CREATE TABLE effect_once (event_id text PRIMARY KEY, by text NOT NULL);
CREATE TABLE outbox (id bigserial PRIMARY KEY, event_id text NOT NULL, key text NOT NULL,
                     xid text NOT NULL, timeline text NOT NULL, lsn text NOT NULL);
CREATE TABLE sink_cursor (partition int PRIMARY KEY, next_offset bigint NOT NULL);
"""
# `effect` has no key: what is applied twice is there twice.
HANDLERS = """
[sink]
kind = "sql"
[classes]
unknown = "{unknown}"
[[handler]]
type = "ordered"
keys = "many"
sql = "INSERT INTO effect (event_id, key, by) SELECT event_id, key, 'replay' FROM pitr_batch ORDER BY seq"
[[handler]]
type = "consumed"
keys = "many"
sql = "INSERT INTO effect (event_id, key, by) SELECT event_id, key, 'replay' FROM pitr_batch ORDER BY seq"
[[handler]]
type = "consumed-once"
keys = "many"
sql = "INSERT INTO effect_once SELECT event_id, 'replay' FROM pitr_batch ON CONFLICT DO NOTHING"
"""
_WRITE = "INSERT INTO effect (event_id, key, by) VALUES (%s, %s, 'writer')"
_OUTBOX = """
    INSERT INTO outbox (event_id, key, xid, timeline, lsn)
    VALUES (%s, %s, pg_current_xact_id()::text, substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),
            pg_current_wal_insert_lsn()::text)"""
_TAKE = """
    DELETE FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT 100)
    RETURNING id, event_id, key, xid, timeline, lsn"""
_CURSOR = """
    INSERT INTO sink_cursor VALUES (%s, %s)
    ON CONFLICT (partition) DO UPDATE SET next_offset = EXCLUDED.next_offset"""

Session = psycopg.Connection[tuple[Any, ...]]


@dataclass
class Ledger:
    """The events that became true: orders that were committed, others whose Kafka transaction was."""

    orders: set[str] = field(default_factory=set)
    consumed: set[str] = field(default_factory=set)
    once: set[str] = field(default_factory=set)

    @property
    def effects(self) -> set[str]:
        """What ``effect`` holds in the end, each once."""
        return self.orders | self.consumed


@dataclass(frozen=True)
class Topics:
    """Names; the last three are None where only orders flow."""

    orders: str
    cursor: str | None = None
    group: str | None = None
    lagging: str | None = None

    @classmethod
    def make(cls, node: KafkaNode, *, all_flows: bool) -> Topics:
        names = [node.new_topic(PARTITIONS) for _ in range(4 if all_flows else 1)]
        return cls(*names)

    @property
    def consumed(self) -> list[str]:
        return [one for one in (self.cursor, self.group, self.lagging) if one is not None]

    def config(self) -> str:
        """Return the tables of the configuration that declare them."""
        said = f'[[events.topic]]\nname = "{self.orders}"\nflow = "db-first"\n'
        if self.cursor is not None:
            said += f'[[events.topic]]\nname = "{self.cursor}"\nflow = "sink-cursor"\n'
            said += 'cursor_sql = "SELECT partition, next_offset FROM sink_cursor"\n'
            said += (
                f'[[events.topic]]\nname = "{self.group}"\nflow = "sink-group"\ngroup = "{self.group}-sink"\n'
            )
            said += (
                f'[[events.topic]]\nname = "{self.lagging}"\nflow = "event-first"\nmax_lag = "{MAX_LAG_S}s"\n'
            )
        return said


class Applications:
    """All of them, as threads.  A context manager; ``finish`` lets each come to its end."""

    def __init__(self, server: RunningPostgres, node: KafkaNode, topics: Topics, seed: int) -> None:
        self.ledger = Ledger()
        self.topics = topics
        self.failures: list[BaseException] = []
        self.lag_s_most = 0.0
        self._server = server
        self._node = node
        self._seed = seed
        self._lock = threading.Lock()
        self._writing = threading.Event()
        self._running = threading.Event()
        self._sources: list[threading.Thread] = []
        self._others: list[threading.Thread] = []

    def __enter__(self) -> Applications:
        self._writing.set()
        self._running.set()
        for number in range(WRITERS):
            self._sources.append(self._thread(lambda number=number: self._write(number)))
        self._others.append(self._thread(self._relay))
        if self.topics.consumed:
            self._sources.append(self._thread(self._produce))
            for topic in self.topics.consumed:
                self._others.append(self._thread(lambda topic=topic: self._sink(topic)))
        return self

    def __exit__(self, *_: object) -> None:
        self._writing.clear()
        self._running.clear()
        for one in (*self._sources, *self._others):
            one.join(60)

    def check(self) -> None:
        """Fail if one of them failed."""
        assert not self.failures, self.failures

    def finish(self) -> None:
        """End the writers, and return when all that they wrote is published and consumed."""
        self._writing.clear()
        for one in self._sources:
            one.join(60)
        wait_until(lambda: self.failures or self._is_done(), "all is published and consumed", every_s=0.2)
        self._running.clear()
        for one in self._others:
            one.join(60)
        self.check()
        assert self.lag_s_most < MAX_LAG_S, "this machine is slower than the flow declares"

    def _is_done(self) -> bool:
        is_published = self._server.value("SELECT count(*) FROM outbox") == 0
        effects = self._server.value("SELECT count(*) FROM effect")
        once = self._server.value("SELECT count(*) FROM effect_once")
        return is_published and (effects, once) == (len(self.ledger.effects), len(self.ledger.once))

    def _thread(self, run: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                run()
            except BaseException as failed:  # noqa: BLE001 - a thread's, told by the test
                self.failures.append(failed)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _connect(self) -> Session:
        return psycopg.connect(self._server.dsn, connect_timeout=20)

    # -- db-first: four writers, an outbox and its relay

    def _write(self, number: int) -> None:
        chance, count = random.Random(f"{self._seed}-{number}"), 0
        with self._connect() as session:
            while self._writing.is_set():
                names = [f"w{number}-{count + at}" for at in range(chance.randint(1, 3))]
                count += len(names)
                for name in names:
                    session.execute(_WRITE, (name, f"k{number}"))
                    session.execute(_OUTBOX, (name, f"k{number}"))
                # Some are in flight while others, with later numbers, commit.
                time.sleep(chance.random() * 0.06)
                if chance.random() < 0.1:
                    session.rollback()
                    continue
                session.commit()
                with self._lock:
                    self.ledger.orders.update(names)

    def _relay(self) -> None:
        chance = random.Random(f"{self._seed}-relay")
        producer = self._producer()
        with self._connect() as session:
            while self._running.is_set():
                rows = sorted(session.execute(_TAKE).fetchall())
                if not rows:
                    session.rollback()
                    time.sleep(0.02)
                    continue
                producer.begin_transaction()
                for _, name, key, xid, timeline, lsn in rows:
                    headers = {"event-id": name, "event-type": "ordered"}
                    headers |= {"pg-xid": xid, "pg-tl": timeline, "pg-lsn": lsn}
                    partition = int(key[1:]) % PARTITIONS
                    self._send(producer, self.topics.orders, partition, key, headers)
                producer.flush(60)  # what is aborted was there
                if chance.random() < 0.1:
                    producer.abort_transaction(60)
                    session.rollback()
                    continue
                producer.commit_transaction(60)
                session.commit()

    # -- the other flows

    def _produce(self) -> None:
        chance, count = random.Random(f"{self._seed}-producer"), 0
        producer = self._producer()
        while self._writing.is_set():
            producer.begin_transaction()
            consumed, once = set(), set()
            for _ in range(chance.randint(1, 8)):
                topic, count = chance.choice(self.topics.consumed), count + 1
                is_cursor = topic == self.topics.cursor
                (consumed if is_cursor else once).add(f"c{count}")
                kind = "consumed" if is_cursor else "consumed-once"
                headers = {"event-id": f"c{count}", "event-type": kind}
                self._send(producer, topic, count % PARTITIONS, f"c{count}", headers)
            producer.flush(60)
            if chance.random() < 0.1:
                producer.abort_transaction(60)
            else:
                producer.commit_transaction(60)
                with self._lock:
                    self.ledger.consumed |= consumed
                    self.ledger.once |= once
            time.sleep(chance.random() * 0.05)

    def _sink(self, topic: str) -> None:
        from confluent_kafka import TopicPartition

        chance = random.Random(f"{self._seed}-{topic == self.topics.lagging}")
        consumer = self._node.consumer(f"{topic}-sink", **{"isolation.level": "read_committed"})
        consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        try:
            with self._connect() as session:
                while self._running.is_set():
                    found = [one for one in consumer.consume(20, 0.1) if one.error() is None]
                    if found:
                        if topic == self.topics.lagging:
                            time.sleep(chance.random())
                        self._consume(session, topic, found)
                        if topic == self.topics.group:
                            consumer.commit(asynchronous=False)
        finally:
            consumer.close()

    def _consume(self, session: Session, topic: str, found: Sequence[Any]) -> None:
        for one in found:
            name, key = dict(one.headers())["event-id"].decode(), one.key().decode()
            if topic == self.topics.cursor:
                session.execute("INSERT INTO effect (event_id, key, by) VALUES (%s, %s, 'sink')", (name, key))
                session.execute(_CURSOR, (one.partition(), one.offset() + 1))
            else:
                insert = "INSERT INTO effect_once VALUES (%s, 'sink') ON CONFLICT DO NOTHING"
                session.execute(insert, (name,))
        session.commit()
        oldest_ms = min(one.timestamp()[1] for one in found)
        self.lag_s_most = max(self.lag_s_most, time.time() - oldest_ms / 1000)

    def _producer(self) -> Any:
        producer = self._node.producer(
            **{
                "transactional.id": f"app-{uuid.uuid4()}",
                "linger.ms": 0,
                # A machine with much to do stalls.
                "transaction.timeout.ms": 600_000,
            }
        )
        producer.init_transactions(60)
        return producer

    @staticmethod
    def _send(producer: Any, topic: str, partition: int, key: str, headers: dict[str, str]) -> None:
        said = [(name, text.encode()) for name, text in headers.items()]
        producer.produce(topic, b'{"n": 1}', key=key.encode(), partition=partition, headers=said)
        producer.poll(0)
