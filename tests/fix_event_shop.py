"""A shop: a site that is archived, and a topic with an event for each order that was committed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from fix_cli import MakeSite, Site, wait_until
from fix_kafka import KafkaNode

from cli.config_template import without_schedule

HANDLERS = """
[sink]
kind = "sql"
[[handler]]
type = "placed"
sql = '''
INSERT INTO orders (id, amount) SELECT (payload->>'id')::bigint, (payload->>'amount')::int FROM pitr_batch
'''
[[quarantine]]
name = "attack"
principals = ["mallory"]
"""
_PLACE = """
    INSERT INTO orders (amount) VALUES (%s) RETURNING id, pg_current_xact_id()::text,
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), pg_current_wal_insert_lsn()::text"""


@dataclass
class EventShop:
    """``place`` commits orders, and publishes each after its commit: the topic is db-first."""

    site: Site
    node: KafkaNode
    topic: str
    producer: Any = None

    @property
    def handlers(self) -> Path:
        return self.site.config.parent / "handlers.toml"

    def place(self, count: int, principal: str = "clerk") -> list[int]:
        """Place orders, each in a transaction of its own; return their numbers."""
        found = []
        if self.producer is None:
            self.producer = self.node.producer(**{"enable.idempotence": True})
        with psycopg.connect(self.site.server.dsn, autocommit=True) as session:
            for _ in range(count):
                row = session.execute(_PLACE, (7,)).fetchone()
                assert row is not None
                number, xid, timeline, lsn = row
                headers = {
                    "event-id": f"order-{number}",
                    "event-type": "placed",
                    "pg-xid": xid,
                    "pg-tl": timeline,
                    "pg-lsn": lsn,
                    "principal": principal,
                }
                value = json.dumps({"id": number, "amount": 7}).encode()
                said = [(name, str(text).encode()) for name, text in headers.items()]
                self.producer.produce(self.topic, value, partition=0, headers=said)
                found.append(int(str(number)))
        assert self.producer.flush(60) == 0
        return found

    def fence(self) -> int:
        """Take a fence; return its number once its signed copy is in the regions."""
        before = self._objects()
        number = int(self.site("events", "fence", "--json").data["number"])
        wait_until(lambda: self._objects() > before, "the signed copy is in the regions")
        return number

    def _objects(self) -> int:
        return min(len(region.objects("fences/")) for region in self.site.regions)

    def now(self) -> str:
        """Return this moment as a target that a restore stops at."""
        return f"lsn:{self.site.server.value('SELECT pg_current_wal_lsn()')}"


def open_shop(make_site: MakeSite, node: KafkaNode, more: str = "") -> EventShop:
    """Make the site, start its daemon, and return when there is a backup."""
    site = make_site()
    topic = node.new_topic()
    shop = EventShop(site, node, topic)
    shop.handlers.write_text(HANDLERS)
    site.config.write_text(
        without_schedule(site.config.read_text())
        + f'\n[events]\nbootstrap = "{node.bootstrap}"\nfence_every = "1h"\nstore_every = "1h"\n'
        + f'\n[[events.topic]]\nname = "{topic}"\nflow = "db-first"\n'
        + '\n[events.replay]\nhandlers_file = "handlers.toml"\n'
        + more
    )
    site.server.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, amount int NOT NULL)")
    site.daemon.start()
    wait_until(lambda: site.flush_lsn() is not None, f"it streams\n{site.daemon.tail()}")
    site("backup", "--type", "full", "--json")
    return shop


def numbers_in(dsn: str) -> list[int]:
    """Return the orders that a database has."""
    with psycopg.connect(dsn) as session:
        return [int(str(row[0])) for row in session.execute("SELECT id FROM orders ORDER BY id").fetchall()]


def one_partition(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the only partition's row."""
    (row,) = rows
    return row
