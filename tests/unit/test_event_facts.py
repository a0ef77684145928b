"""What events say of themselves: headers, Debezium's envelope, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from pitr.events.broker import EventRecord
from pitr.events.debezium import read_facts
from pitr.events.event_facts import EventFacts
from pitr.events.flows import EventFormat
from pitr.events.partition import TopicPartition
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

AT = TopicPartition("outbox", 0)


def _record(
    headers: Mapping[str, bytes] | None = None, value: bytes | None = b"{}", key: bytes | None = b"k"
) -> EventRecord:
    return EventRecord(AT, 7, 0, False, key, value, tuple((headers or {}).items()))


def _change(**source: object) -> dict[str, Any]:
    block = {"lsn": 369382000, "txId": 7459, "schema": "public", "table": "orders", **source}
    return {"op": "c", "source": block, "transaction": {"id": "7459:369382000", "total_order": 3}}


def _read(change: object, key: bytes | None = b"k", headers: Mapping[str, bytes] | None = None) -> EventFacts:
    return read_facts(_record(headers, json.dumps(change).encode(), key), EventFormat.DEBEZIUM)


def test_headers_say_who_an_event_is() -> None:
    headers = {
        "event-id": b"e1",
        "event-type": b"order.paid",
        "event-version": b"2",
        "pg-xid": b"8589934599",
        "pg-tl": b"0000000A",
        "pg-lsn": b"0/1600000",
        "pg-commit-lsn": b"0/1600100",
        "principal": b"app",
    }
    assert read_facts(_record(headers), EventFormat.HEADERS) == EventFacts(
        "e1",
        "order.paid",
        2,
        8589934599,
        True,
        TimelineId(10),
        LSN(0x1600000),
        LSN(0x1600100),
        "app",
    )


@pytest.mark.parametrize(("text", "number"), [(b"10", 10), (b"00000010", 16), (b"4294967295", (1 << 32) - 1)])
def test_a_timeline_is_hexadecimal_as_in_a_wal_files_name_or_a_decimal_number(
    text: bytes, number: int
) -> None:
    assert read_facts(_record({"pg-tl": text}), EventFormat.HEADERS).timeline == TimelineId(number)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pg-xid", b"-5"),
        ("pg-xid", b"12x"),
        ("pg-xid", b"012"),
        ("pg-xid", b"2"),
        ("pg-xid", b"9223372036854775808"),
        ("pg-tl", b"0"),
        ("pg-tl", b"0000000g"),
        ("pg-tl", b"4294967296"),
        ("pg-tl", "\u0661".encode()),
        ("pg-lsn", b"0/0"),
        ("pg-lsn", b"16B374D848"),
        ("event-id", b"\xff\xfe"),
        ("event-id", b""),
        ("event-id", b"a" * 2000),
        ("event-type", b"a\x1b[31m"),
        ("event-version", b"0"),
    ],
)
def test_a_header_that_cannot_be_read_takes_the_transaction_with_it(name: str, text: bytes) -> None:
    found = read_facts(_record({"pg-xid": b"700", "pg-lsn": b"0/1", name: text}), EventFormat.HEADERS)
    assert found.problem is not None
    assert name in found.problem
    assert (found.xid, found.timeline, found.lsn) == (None, None, None)


def test_the_outbox_routers_headers_are_understood_quoted_or_not() -> None:
    headers = {"id": b'"4f0c"', "eventType": b"OrderPaid", "pg-xid": b"700"}
    found = read_facts(_record(headers), EventFormat.DEBEZIUM_OUTBOX)
    assert (found.event_id, found.type, found.xid) == ("4f0c", "OrderPaid", 700)


def _wrapped(payload: object, **schema: object) -> bytes:
    return json.dumps({"schema": {"type": "string", "optional": True, **schema}, "payload": payload}).encode()


def test_headers_in_the_json_converters_wrapping_are_understood() -> None:
    named = _wrapped("0dbd1fcc", name="io.debezium.data.Uuid", default="0" * 400)
    headers = {"id": named, "eventType": _wrapped("OrderPaid"), "pg-xid": _wrapped("751")}
    headers |= {"pg-tl": _wrapped("00000001"), "pg-lsn": _wrapped("0/1702C88"), "principal": _wrapped(None)}
    found = read_facts(_record(headers), EventFormat.DEBEZIUM_OUTBOX)
    assert found == EventFacts("0dbd1fcc", "OrderPaid", 1, 751, True, TimelineId(1), LSN(0x1702C88))
    without_schemas = {"id": b'"4f0c"', "pg-xid": b'"751"', "pg-tl": b'"00000001"', "event-version": b"2"}
    found = read_facts(_record(without_schemas), EventFormat.DEBEZIUM_OUTBOX)
    assert found == EventFacts("4f0c", None, 2, 751, True, TimelineId(1))
    assert read_facts(_record({"pg-xid": _wrapped(751)}), EventFormat.HEADERS).xid == 751
    for odd in (_wrapped(True), _wrapped({"a": 1}), b'{"payload": "751"}', b'"751', b"{" * 100_000):
        assert read_facts(_record({"pg-xid": odd}), EventFormat.HEADERS).problem is not None


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_change_says_its_transaction_in_32_bits_and_a_position_before_its_commit(is_wrapped: bool) -> None:
    change = _change()
    found = _read({"schema": {}, "payload": change} if is_wrapped else change, headers={"pg-tl": b"2"})
    assert (found.xid, found.is_xid_wide, found.lsn, found.commit_lsn) == (7459, False, LSN(369382000), None)
    assert (found.type, found.timeline) == ("public.orders.create", TimelineId(2))
    assert found.event_id is not None
    assert found.event_id.startswith("7459.369382000.")


def test_a_flattened_row_with_added_fields_is_understood() -> None:
    found = _read({"id": 1, "__op": "u", "__source_txId": 7459, "__lsn": 5, "__schema": "s", "__table": "t"})
    assert (found.xid, found.lsn, found.type) == (7459, LSN(5), "s.t.update")


def test_a_redelivered_change_has_its_id_again_and_another_row_of_the_record_another() -> None:
    once, again, other = _read(_change()), _read({**_change(), "ts_ms": 5}), _read(_change(), key=b"k2")
    assert once.event_id == again.event_id != other.event_id
    # The old primary's change of the same numbers is another one.
    elsewhere = _read(_change(ts_ms=1_790_000_000_000)), _read(_change(), headers={"pg-tl": b"2"})
    assert len({once.event_id, *(one.event_id for one in elsewhere)}) == 3
    without_key = _read({**_change(), "transaction": None}, key=None)
    assert without_key.event_id is None


def test_a_snapshots_rows_name_no_transaction() -> None:
    found = _read({**_change(), "op": "r"})
    assert (found.xid, found.lsn, found.type) == (None, None, "public.orders.read")


@pytest.mark.parametrize("value", [b"null", b'{"schema": null, "payload": null}', None])
def test_a_flattened_deletion_is_known_by_its_headers_alone(value: bytes | None) -> None:
    headers = {"__op": b"d", "__lsn": b"24129400", "__source_txId": b"754"}
    named = {**headers, "__schema": b"public", "__table": b"orders"}
    found = read_facts(_record(named, value, b'{"id":2}'), EventFormat.DEBEZIUM)
    assert (found.xid, found.is_xid_wide, found.lsn) == (754, False, LSN(24129400))
    assert found.type == "public.orders.delete"
    assert found.event_id is not None
    assert found.event_id.startswith("754.24129400.")
    assert read_facts(_record(headers, value), EventFormat.DEBEZIUM).xid == 754
    silent = read_facts(_record({"__op": b"d"}, value), EventFormat.DEBEZIUM)
    assert silent.problem == "value is null, and no header names the transaction that deleted the row"
    odd = read_facts(_record({**headers, "__lsn": b"x"}, value), EventFormat.DEBEZIUM)
    assert (odd.xid, odd.problem is None) == (None, False)


def test_a_null_without_headers_is_no_tombstone_that_may_be_passed_over() -> None:
    found = read_facts(_record(value=b"null"), EventFormat.DEBEZIUM)
    assert (found.is_tombstone, found.problem is None) == (False, False)


def _metadata(status: str, name: str) -> dict[str, object]:
    return {"status": status, "id": name, "event_count": None, "data_collections": None, "ts_ms": 1}


def test_transaction_metadata_has_a_changes_position_at_begin_and_the_end_of_the_commit_at_end() -> None:
    begin, end = _read(_metadata("BEGIN", "751:24128648")), _read(_metadata("END", "751:24129400"))
    assert (begin.type, begin.xid, begin.lsn, begin.commit_lsn) == (
        "transaction.begin",
        751,
        LSN(24128648),
        None,
    )
    assert (end.type, end.xid, end.is_xid_wide, end.lsn) == ("transaction.end", 751, False, None)
    # The record is 0/1702F40 to 0/1702F78: in a restore that ended there, not in one that ended before.
    assert end.commit_lsn == LSN(0x1702F77)
    assert begin.event_id != end.event_id
    for odd in (_metadata("END", "751"), _metadata("OPEN", "751:5"), _metadata("END", "1:5")):
        assert _read(odd).problem is not None


def test_a_heartbeat_is_one() -> None:
    assert _read({"ts_ms": 1796080468226}) == EventFacts(type="heartbeat")


def test_a_message_outside_a_transaction_names_none() -> None:
    found = _read({**_change(txId=None, schema="", table=""), "op": "m", "transaction": None})
    assert (found.type, found.xid, found.lsn, found.event_id) == ("message", None, None, None)


def test_truncated_tables_have_no_keys_and_their_names_part_them() -> None:
    one, other = (_read({**_change(table=table), "op": "t"}, key=None) for table in ("orders", "items"))
    assert one.type == "public.orders.truncate"
    assert None not in {one.event_id, other.event_id}
    assert one.event_id != other.event_id


def test_only_behind_debeziums_deletions_no_value_means_nothing() -> None:
    assert read_facts(_record(value=None), EventFormat.DEBEZIUM).is_tombstone
    assert not read_facts(_record(), EventFormat.DEBEZIUM).is_tombstone
    for form in (EventFormat.HEADERS, EventFormat.DEBEZIUM_OUTBOX):
        assert not read_facts(_record(value=None), form).is_tombstone


@pytest.mark.parametrize(
    "value",
    [
        b"not json",
        b"\xff",
        b"[1]",
        b"[" * 100_000,
        json.dumps({"op": "c", "source": 5}).encode(),
        json.dumps({"op": "c"}).encode(),
        json.dumps({**_change(), "op": "z"}).encode(),
        json.dumps({**_change(), "op": ["c"]}).encode(),
        json.dumps(_change(txId=True)).encode(),
        json.dumps(_change(txId=1 << 32)).encode(),
        json.dumps(_change(lsn="5")).encode(),
        json.dumps(_change(lsn=0)).encode(),
    ],
)
def test_what_is_no_change_event_is_a_problem_and_no_transaction(value: bytes) -> None:
    found = read_facts(_record(value=value), EventFormat.DEBEZIUM)
    assert found.problem is not None
    assert (found.xid, found.lsn, found.event_id) == (None, None, None)
