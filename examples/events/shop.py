"""A shop for the example: it commits orders in PostgreSQL, and then produces an event of each to Kafka.

    python3 shop.py COUNT PRINCIPAL

What `pitr` wants of an application is in the headers: who the event is, and which transaction wrote it.
PostgreSQL is where libpq finds it, Kafka where $KAFKA says.  Needs psycopg and confluent-kafka.
"""

import json
import os
import sys

import psycopg
from confluent_kafka import Producer

PLACE = """
    INSERT INTO orders (customer, amount) VALUES (%s, 100)
    RETURNING id, pg_current_xact_id()::text, pg_current_wal_insert_lsn()::text,
              substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"""


def main(count: int, principal: str) -> None:
    """Place orders, each in a transaction of its own."""
    producer = Producer({"bootstrap.servers": os.environ["KAFKA"], "enable.idempotence": True})
    with psycopg.connect(autocommit=True) as session:
        for _ in range(count):
            row = session.execute(PLACE, [principal]).fetchone()
            assert row is not None
            number, xid, lsn, timeline = row
            headers = {
                "event-id": f"order-{number}",
                "event-type": "order.placed",
                "event-version": "1",
                "pg-xid": xid,
                "pg-lsn": lsn,
                "pg-tl": timeline,
                "principal": principal,
            }
            producer.produce(
                "orders",
                json.dumps({"id": number, "customer": principal, "amount": 100}).encode(),
                key=str(number).encode(),
                headers=[(name, str(text).encode()) for name, text in headers.items()],
            )
    assert producer.flush(60) == 0, "Kafka did not take all events"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
