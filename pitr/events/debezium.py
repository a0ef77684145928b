"""Debezium's change envelope, and what its outbox router makes.  Pure.

``source.lsn`` is where the change stands in the WAL, not where its commit does: a change before the end of a
restore may have its commit after it.  ``source.txId`` has 32 bits.  Debezium knows no timelines.
``transaction.id`` is no commit's position either: in a change and in BEGIN it ends with a change's LSN, and
only in END with the end of the commit record.

Reference: Debezium documentation, "Connector for PostgreSQL" (data change events, transaction metadata),
"Outbox Event Router" and "New Record State Extraction"; 3.x.  tests/integration/test_debezium.py runs it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace

from pitr.errors import MalformedValue
from pitr.events.broker import EventRecord
from pitr.events.event_facts import TEXT_CHARS_MAX, EventFacts, HeaderNames, HeaderReader, read_headers
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
_LSN_MAX = (1 << 63) - 1
# What the records beside the changes hold, and nothing else.
_TRANSACTION_FIELDS = {"status", "id", "event_count", "data_collections", "ts_ms"}
_TRANSACTION_ID = re.compile(r"([0-9]{1,10}):([0-9]{1,19})")
_HEARTBEAT_FIELDS = {"ts_ms"}


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
    if record.value is None and not _is_flattened(record):
        # It follows the change that says what was deleted.
        return replace(headers, is_tombstone=True)
    try:
        change = None if record.value is None else _payload(record.value)
        if change is None:
            change = _deletion(record)
        elif change.keys() == _TRANSACTION_FIELDS:
            return _transaction(headers, change)
        elif change.keys() == _HEARTBEAT_FIELDS:
            return replace(headers, type=headers.type or "heartbeat")
        source = _source(change)
        lsn = _whole(source, "lsn", 1, _LSN_MAX)
        xid = _whole(source, "txId", 3, _XID32_MAX)
        operation = change.get("op", change.get("__op"))
        kind = _type(source, operation)
    except (MalformedValue, ValueError, RecursionError) as error:
        problem = str(error)[:TEXT_CHARS_MAX] or "not Debezium's envelope"
        return EventFacts(version=headers.version, principal=headers.principal, problem=problem)
    # A snapshot's rows were read, not written, by the transaction that is named: it says nothing of them.
    # A message outside a transaction is nowhere undone: neither does its position.
    is_outside = operation == "r" or (operation == "m" and xid is None)
    return replace(
        headers,
        event_id=headers.event_id or _event_id(record, change, kind, xid, lsn, headers.timeline),
        type=headers.type or kind,
        xid=headers.xid if headers.xid is not None else None if is_outside else xid,
        is_xid_wide=headers.xid is not None,
        lsn=headers.lsn or (None if is_outside or lsn is None else LSN(lsn)),
    )


def _payload(value: bytes) -> Mapping[str, object] | None:
    """Return the envelope, out of the JSON converter's wrapping if it has one; None if it says null."""
    if len(value) > VALUE_BYTES_MAX:
        raise MalformedValue(f"value is larger than {VALUE_BYTES_MAX} bytes")
    try:
        found = json.loads(value)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise MalformedValue("value is not JSON") from None
    if isinstance(found, dict) and found.keys() == {"schema", "payload"}:
        found = found["payload"]
    if found is not None and not isinstance(found, dict):
        raise MalformedValue("value is not Debezium's envelope")
    return found


def _is_flattened(record: EventRecord) -> bool:
    """Tell whether the headers are those that the flattening adds to a row."""
    return any(name == "__op" for name, _ in record.headers)


def _deletion(record: EventRecord) -> Mapping[str, object]:
    """Return what the headers say of a deleted row, of which flattening leaves no value: null, in JSON.

    It is no tombstone that follows a deletion, but the deletion: without its transaction it is not readable.
    """
    reader = HeaderReader(record)
    texts = {f"__{name}": reader.text(f"__{name}") for name in ("op", "schema", "table")}
    numbers = {
        name: reader.number(name, 1, _LSN_MAX)
        for name in ("__lsn", "__source_lsn", "__txId", "__source_txId")
    }
    found = {name: one for name, one in {**texts, **numbers}.items() if one is not None}
    if reader.problem is not None:
        raise MalformedValue(reader.problem)
    if found.keys().isdisjoint(numbers):
        raise MalformedValue("value is null, and no header names the transaction that deleted the row")
    return found


def _transaction(headers: EventFacts, change: Mapping[str, object]) -> EventFacts:
    """Return what a record of the transaction metadata's topic says."""
    status, name = change["status"], change["id"]
    found = _TRANSACTION_ID.fullmatch(name) if isinstance(name, str) else None
    if found is None or status not in ("BEGIN", "END"):
        raise MalformedValue("not Debezium's transaction metadata")
    place = {"xid": int(found[1]), "lsn": int(found[2])}
    xid, lsn = _whole(place, "xid", 3, _XID32_MAX), LSN(_whole(place, "lsn", 1, _LSN_MAX) or 0)
    # The end of a commit record is where the next one begins: its last byte is still the commit's.
    return replace(
        headers,
        event_id=headers.event_id or f"{found[1]}.{found[2]}.{status}",
        type=headers.type or f"transaction.{str(status).lower()}",
        xid=xid if headers.xid is None else headers.xid,
        is_xid_wide=headers.xid is not None,
        lsn=headers.lsn or (lsn if status == "BEGIN" else None),
        commit_lsn=headers.commit_lsn or (LSN(lsn.offset - 1) if status == "END" else None),
    )


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
    kind: str | None,
    xid: int | None,
    lsn: int | None,
    timeline: TimelineId | None,
) -> str | None:
    """Return an id that a second delivery of the change has too, and no other change; None if there is none.

    One WAL record can hold many rows, which then have one LSN: the key parts them, or Debezium's own count.
    It can truncate many tables, which have no keys: their names part them.  A failover gives transactions and
    LSNs out again: the time of the commit parts those, and the timeline where a header says it.
    """
    if xid is None or lsn is None:
        return None
    transaction = change.get("transaction")
    order = transaction.get("total_order") if isinstance(transaction, dict) else None
    if record.key is not None:
        parts = record.key
    elif kind is not None and kind.endswith(".truncate"):
        parts = kind.encode()
    elif isinstance(order, int):
        parts = str(order).encode()
    else:
        return None
    source = change.get("source")
    committed_at = source.get("ts_ms") if isinstance(source, dict) else None
    digest = hashlib.sha256(f"{committed_at} {timeline} ".encode())
    digest.update(parts)
    return f"{xid}.{lsn}.{digest.hexdigest()[:24]}"
