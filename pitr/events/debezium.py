"""Debezium's change envelope, and what its outbox router makes.  Pure.

``source.lsn`` is where the change stands in the WAL, not where its commit does: a change before the end of a
restore may have its commit after it.  ``source.txId`` has 32 bits.  Debezium knows no timelines.

Reference: Debezium documentation, "Connector for PostgreSQL" (data change events), "Outbox Event Router" and
"New Record State Extraction"; 3.x.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from pitr.errors import MalformedValue
from pitr.events.broker import EventRecord
from pitr.events.event_facts import TEXT_CHARS_MAX, EventFacts, HeaderNames, read_headers
from pitr.events.flows import EventFormat
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# Kafka's own default for a message is 1 MiB; nobody parses a JSON that is larger than this by accident.
VALUE_BYTES_MAX = 32 << 20
OUTBOX_NAMES = HeaderNames(event_id="id", type="eventType")
_OPERATIONS = {
    "c": "create",
    "u": "update",
    "d": "delete",
    "r": "read",
    "t": "truncate",
    "m": "message",
}
_XID32_MAX = (1 << 32) - 1


def read_facts(record: EventRecord, form: EventFormat) -> EventFacts:
    """Return what an event says of itself, in whichever format its topic is declared to have."""
    if form is EventFormat.HEADERS:
        return read_headers(record)
    if form is EventFormat.DEBEZIUM_OUTBOX:
        return read_headers(record, OUTBOX_NAMES)
    return read_change(record)


def read_change(record: EventRecord) -> EventFacts:
    """Return what a change event says; headers that are there beside it say more, such as the timeline."""
    headers = read_headers(record)
    if headers.problem is not None:
        return headers
    if record.value is None:
        # It follows the change that says what was deleted.
        return replace(headers, is_tombstone=True)
    try:
        change = _payload(record.value)
        source = _source(change)
        lsn = _whole(source, "lsn", 1, (1 << 64) - 1)
        xid = _whole(source, "txId", 3, _XID32_MAX)
        operation = change.get("op", change.get("__op"))
        kind = _type(source, operation)
    except (MalformedValue, ValueError, RecursionError) as error:
        problem = str(error)[:TEXT_CHARS_MAX] or "not Debezium's envelope"
        return EventFacts(version=headers.version, principal=headers.principal, problem=problem)
    # A snapshot's rows were read, not written, by the transaction that is named: it says nothing of them.
    is_read = operation == "r"
    return replace(
        headers,
        event_id=headers.event_id or _event_id(record, change, xid, lsn, headers.timeline),
        type=headers.type or kind,
        xid=headers.xid if headers.xid is not None else None if is_read else xid,
        is_xid_wide=headers.xid is not None,
        lsn=headers.lsn or (None if is_read or lsn is None else LSN(lsn)),
    )


def _payload(value: bytes) -> Mapping[str, object]:
    """Return the envelope, out of the JSON converter's wrapping if it has one."""
    if len(value) > VALUE_BYTES_MAX:
        raise MalformedValue(f"value is larger than {VALUE_BYTES_MAX} bytes")
    try:
        found = json.loads(value)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise MalformedValue("value is not JSON") from None
    if isinstance(found, dict) and isinstance(found.get("payload"), dict) and "schema" in found:
        found = found["payload"]
    if not isinstance(found, dict):
        raise MalformedValue("value is not Debezium's envelope")
    return found


def _source(change: Mapping[str, object]) -> Mapping[str, object]:
    """Return the source block, or what is left of it in a flattened row (``__txId`` or ``__source_txId``)."""
    source = change.get("source")
    if isinstance(source, dict):
        return source
    if source is not None or "op" in change:
        raise MalformedValue("source is not an object")
    names = ("lsn", "txId", "schema", "table")
    return {
        name: change.get(f"__source_{name}", change.get(f"__{name}"))
        for name in names
        if f"__source_{name}" in change or f"__{name}" in change
    }


def _whole(source: Mapping[str, object], name: str, least: int, most: int) -> int | None:
    found = source.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
        raise MalformedValue(f"source.{name} is not a number from {least} to {most}")
    return found


def _type(source: Mapping[str, object], operation: object) -> str | None:
    """Return ``schema.table.create``, or None where the event does not say what happened to what."""
    if operation is None:
        return None
    word = _OPERATIONS.get(operation) if isinstance(operation, str) else None
    if word is None:
        raise MalformedValue("op is none of Debezium's operations")
    names = [source.get("schema"), source.get("table")]
    if word == "message":
        return "message"
    if not all(isinstance(name, str) and 0 < len(name) <= 63 and name.isprintable() for name in names):
        return None
    return f"{names[0]}.{names[1]}.{word}"


def _event_id(
    record: EventRecord,
    change: Mapping[str, object],
    xid: int | None,
    lsn: int | None,
    timeline: TimelineId | None,
) -> str | None:
    """Return an id that a second delivery of the change has too, and no other change; None if there is none.

    One WAL record can hold many rows, which then have one LSN: the key parts them, or Debezium's own count.
    A failover gives transactions and LSNs out again: the time of the commit parts those, and the timeline
    where a header says it.
    """
    if xid is None or lsn is None:
        return None
    transaction = change.get("transaction")
    order = transaction.get("total_order") if isinstance(transaction, dict) else None
    if record.key is None and not isinstance(order, int):
        return None
    source = change.get("source")
    committed_at = source.get("ts_ms") if isinstance(source, dict) else None
    digest = hashlib.sha256(f"{committed_at} {timeline} ".encode())
    digest.update(record.key if record.key is not None else str(order).encode())
    return f"{xid}.{lsn}.{digest.hexdigest()[:24]}"
