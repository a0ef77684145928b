"""The decisions of replay: upcasters, quarantine, and the order of steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from fix_replay import CHANGED, FIRST_MS, PLACED, event, orders_handlers
from hypothesis import given
from hypothesis import strategies as st

from pitr.errors import MalformedValue
from pitr.events.broker import EventRecord
from pitr.events.classify import EventClass
from pitr.events.debezium import read_facts
from pitr.events.event_facts import read_headers
from pitr.events.flows import EventFormat
from pitr.events.handlers import Choice, Handler, Handlers, SinkKind, handler_mistakes, statement_mistake
from pitr.events.partition import TopicPartition
from pitr.events.quarantine import OffsetSpan, QuarantineRule, Reason, first_rule, rule_mistakes
from pitr.events.replay_batch import Batch, Event, Judge, json_fault, steps_of
from pitr.events.sink_topic import NoProducer, OutRecord, TopicSink, target_of
from pitr.events.upcast import Upcast, Upcasters, UpcastFailed, upcast_mistakes
from pitr.postgres.applied_events import EventsRefused
from pitr.wal.lsn import LSN

NEW = EventClass.NOT_IN_DATABASE
KNOWN = frozenset({("placed", 3)})


def judged(handlers: Handlers, *records: Any, fate: EventClass = NEW, **options: Any) -> Batch:
    batch = Batch()
    judge = Judge(handlers, set(), **options)
    for record in records:
        judge.judge(batch, record, read_headers(record), fate)
    return batch


def words(batch: Batch) -> list[tuple[int, str]]:
    return [(one.record.offset, str(one.reason)) for one in batch.held]


# -- upcasters


def test_upcasters_are_chained_up_to_the_version_that_a_handler_takes() -> None:
    first = Upcast("placed", 1, 2, rename={"total": "amount"}, remove=("legacy",))
    second = Upcast("placed", 2, 3, call="mine:double")
    chains = Upcasters(
        [first, second], KNOWN, {"mine:double": lambda one: {**one, "amount": one["amount"] * 2}}
    )
    chain = chains.chain(("placed", 1))
    assert chain == (first, second)
    assert chains.apply(chain, {"total": 4, "legacy": 1, "kept": "x"}) == {"amount": 8, "kept": "x"}
    assert chains.chain(("placed", 3)) == ()
    assert chains.chain(("placed", 4)) is None
    assert chains.chain(("changed", 1)) is None


@pytest.mark.parametrize(
    ("payload", "message"),
    [([1], "no JSON object"), ({}, "no field 'total'"), ({"total": 1, "amount": 2}, "'total' and 'amount'")],
)
def test_an_upcaster_refuses_what_is_not_of_its_version(payload: Any, message: str) -> None:
    one = Upcast("placed", 2, 3, rename={"total": "amount"})
    with pytest.raises(UpcastFailed, match=message):
        Upcasters([one], KNOWN).apply([one], payload)


def test_what_the_owners_upcaster_raises_or_returns_wrongly_is_about_the_event() -> None:
    def fails(_payload: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("total")

    def returns(_payload: dict[str, Any]) -> Any:
        return "text"

    for name, call, message in (("f", fails, "raised KeyError"), ("r", returns, "returned no JSON object")):
        step = Upcast("placed", 2, 3, call=name)
        with pytest.raises(UpcastFailed, match=message):
            Upcasters([step], KNOWN, {name: call}).apply([step], {})


def test_all_mistakes_of_upcasters_are_found() -> None:
    found = list(
        upcast_mistakes(
            [
                Upcast("placed", 2, 1),
                Upcast("placed", 2, 3),
                Upcast("placed", 3, 4),
                Upcast("gone", 1, 2, call="x:y", remove=("a",)),
            ],
            KNOWN,
        )
    )
    assert [at for at, _ in found] == [0, 1, 2, 3, 0, 2, 3]


# -- rules


def test_a_rule_holds_what_all_its_conditions_fit_and_nothing_else() -> None:
    bad = event(5, principal="mallory", key="account-7", headers=[("schema-id", b"12")])
    said = read_headers(bad)
    at_5ms = datetime.fromtimestamp((FIRST_MS + 5) / 1000, UTC)
    fitting = {
        "principals": ("mall*",),
        "keys": ("account-?",),
        "types": ("placed", "x"),
        "schemas": ("12",),
        "offsets": (OffsetSpan("orders", 0, 5, 6),),
        "since": at_5ms,
    }
    other = {
        "principals": ("alice",),
        "keys": ("account-77",),
        "types": ("x",),
        "schemas": ("13",),
        "offsets": (OffsetSpan("orders", 0, 6), OffsetSpan("other")),
        "since": datetime.fromtimestamp((FIRST_MS + 6) / 1000, UTC),
        "until": at_5ms,
    }
    assert QuarantineRule("all", **fitting).holds(bad, said)  # type: ignore[arg-type]
    for name, value in other.items():
        rule = QuarantineRule("one less", **{**fitting, name: value})  # type: ignore[arg-type]
        assert not rule.holds(bad, said), name
        assert first_rule([rule, QuarantineRule("by type", types=("placed",))], bad, said) is not None


def test_the_corruption_point_holds_what_is_not_proved_to_be_before_it() -> None:
    rule = QuarantineRule("after", after_lsn=LSN(100))
    for lsn, is_held in (("0/63", False), ("0/64", True), ("0/65", True), (None, True)):
        headers = [] if lsn is None else [("pg-commit-lsn", lsn.encode())]
        record = event(1, headers=headers)
        assert rule.holds(record, read_headers(record)) is is_held, lsn


def test_all_mistakes_of_rules_are_found() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rules = [
        QuarantineRule("a"),
        QuarantineRule("a", since=at, until=at),
        QuarantineRule("b", offsets=(OffsetSpan("t", 0, 5, 5),)),
    ]
    assert [one for one, _ in rule_mistakes(rules)] == [0, 1, 1, 2]


# -- the judge


def test_each_class_of_event_goes_where_it_belongs() -> None:
    handlers = orders_handlers(ignored=frozenset({"seen"}))
    assert judged(handlers, event(1), fate=EventClass.IN_DATABASE).skipped[event(1).at] == {"in database": 1}
    assert judged(handlers, event(1, event_type="seen")).skipped[event(1).at] == {"ignored": 1}
    assert [one.event_id for one in judged(handlers, event(1, value={})).events] == ["orders-0-1"]
    assert words(judged(handlers, event(1), fate=EventClass.LOST_BRANCH)) == [(1, Reason.LOST_BRANCH)]
    assert words(judged(handlers, event(1), fate=EventClass.UNKNOWN)) == [(1, Reason.UNCLASSIFIED)]
    for choice, count in ((Choice.APPLY, 1), (Choice.SKIP, 0)):
        chosen = orders_handlers(unknown=choice, lost_branch=choice)
        for fate in (EventClass.UNKNOWN, EventClass.LOST_BRANCH):
            batch = judged(chosen, event(1), fate=fate)
            assert (len(batch.events), len(batch.held)) == (count, 0)


def test_a_deletion_without_headers_is_held_and_only_passed_over_where_it_is_told_to() -> None:
    bare = EventRecord(TopicPartition("orders", 0), 1, FIRST_MS, False, b"k", None)
    other = event(2, key="k", value={})
    assert words(judged(orders_handlers(), bare, other)) == [(1, Reason.NO_ID), (2, Reason.BEHIND)]
    skipping = judged(orders_handlers(tombstone=Choice.SKIP), bare, other)
    assert (skipping.skipped[bare.at], len(skipping.events)) == ({"tombstone": 1}, 1)
    batch = Batch()
    described = read_facts(bare, EventFormat.DEBEZIUM)
    Judge(orders_handlers(), set()).judge(batch, bare, described, EventClass.UNKNOWN)
    assert batch.skipped[bare.at] == {"tombstone": 1}
    unreadable = bare._replace(unreadable="the name of a header is not UTF-8")
    assert words(judged(orders_handlers(tombstone=Choice.SKIP), unreadable)) == [(1, Reason.UNREADABLE)]


def test_an_event_that_cannot_be_applied_stops_its_key_and_no_other() -> None:
    batch = judged(
        orders_handlers(),
        event(1, key="a", value={}, headers=[("pg-xid", b"x")]),
        event(2, key="a", value={}),
        event(3, key="b", value={}),
        event(4, key="b", version=9),
        event(5, key="b", value={}),
        event(6, key=None, event_type="nobody"),
        event(7, key=None, value={}),
        event(8, key="c", event_id="", value={}),
        event(9, key="a", topic="others", value={}),
    )
    assert words(batch) == [
        (1, Reason.UNREADABLE),
        (2, Reason.BEHIND),
        (4, Reason.UNKNOWN_VERSION),
        (5, Reason.BEHIND),
        (6, Reason.UNKNOWN_TYPE),
        (8, Reason.UNREADABLE),
    ]
    assert [one.record.offset for one in batch.events] == [3, 7, 9]


def test_an_attackers_event_does_not_stop_its_key_unless_the_rule_says_so() -> None:
    for stops, held in ((False, 1), (True, 2)):
        rule = QuarantineRule("attack", principals=("mallory",), stops_key=stops)
        handlers = orders_handlers(rules=(rule,))
        batch = judged(
            handlers, event(1, key="a", principal="mallory", value={}), event(2, key="a", value={})
        )
        assert len(batch.held) == held
    # Once released, the rule no longer counts.
    batch = judged(handlers, event(1, key="a", principal="mallory", value={}), obeys_rules=False)
    assert not batch.held


def test_an_old_event_is_upcast_and_one_that_cannot_be_is_held() -> None:
    handlers = orders_handlers(
        handlers=(Handler("placed", 3, PLACED.statements),),
        upcasts=(Upcast("placed", 1, 3, rename={"total": "amount"}),),
    )
    batch = judged(
        handlers,
        event(1, key="a", value={"total": 4}),
        event(2, key="b", value={"amount": 4}),
        event(3, key="c", value=b"\xff"),
        event(4, key="d", version=2, value={}),
    )
    assert [(one.version, json.loads(one.value or b"")) for one in batch.events] == [(3, {"amount": 4})]
    assert words(batch) == [(2, Reason.UPCAST), (3, Reason.UPCAST), (4, Reason.UNKNOWN_VERSION)]


@pytest.mark.parametrize(
    ("number", "written"),
    [
        ("0.1", "0.1"),
        ("-12.50", "-12.5"),
        ("1e3", "1000.0"),
        ("12345678901234567890", "12345678901234567890"),
        ("12345678901234567.89", None),
        ("0.10000000000000000001", None),
        ("1e999", None),
        ("1e9999999999999999999", None),
        ("1e-9999999999999999999", None),
    ],
)
def test_an_upcast_changes_no_number_without_a_word(number: str, written: str | None) -> None:
    handlers = orders_handlers(
        handlers=(Handler("placed", 2, PLACED.statements),), upcasts=(Upcast("placed", 1, 2),)
    )
    batch = judged(handlers, event(1, key="a", value=b'{"total": %s}' % number.encode()))
    if written is None:
        assert words(batch) == [(1, Reason.UPCAST)]
    else:
        assert [one.value for one in batch.events] == [b'{"total": %s}' % written.encode()]


def test_a_value_that_is_no_json_is_seen_and_a_tombstone_is_none() -> None:
    assert [
        json_fault(one) is None for one in (None, b"", b"{}", b"1", b"{", b"\xff\xfe", b"[" * 100_000)
    ] == [
        True,
        True,
        True,
        True,
        False,
        False,
        False,
    ]


# -- steps


def _events(*kinds: tuple[Handler, str | None]) -> list[Event]:
    return [
        Event(event(at, key=key), str(at), handler.event_type, 1, None, handler)
        for at, (handler, key) in enumerate(kinds)
    ]


def test_events_of_one_key_are_in_steps_one_after_the_other() -> None:
    events = _events((PLACED, "a"), (PLACED, "b"), (CHANGED, "a"), (PLACED, "a"), (CHANGED, "b"))
    found = [[one.record.offset for one in step.events] for step in steps_of(events)]
    assert found == [[0, 1], [2, 4], [3]]


MANY = Handler("logged", 1, ("SELECT 1",), takes_many=True)


@given(
    st.lists(
        st.tuples(st.sampled_from([PLACED, CHANGED, MANY]), st.sampled_from(["a", "b", "c", None])),
        max_size=60,
    )
)
def test_steps_hold_every_event_once_and_keep_each_keys_order(
    kinds: list[tuple[Handler, str | None]],
) -> None:
    events = _events(*kinds)
    steps = steps_of(events)
    flat = [one for step in steps for one in step.events]
    assert sorted(one.record.offset for one in flat) == list(range(len(events)))
    for step in steps:
        assert {one.handler for one in step.events} == {step.handler}
        keys = [one.record.key for one in step.events if one.record.key is not None]
        assert step.handler is MANY or len(keys) == len(set(keys))
    for key in (b"a", b"b", b"c"):
        own = [one.record.offset for one in flat if one.record.key == key]
        assert own == sorted(own)


# -- handlers


@pytest.mark.parametrize(
    "statement",
    ["COMMIT", "-- harmless\n /* too */ rollback", "begin; SELECT 1", "", "(SELECT 1)", "copy x from stdin"],
)
def test_a_statement_that_would_end_the_batch_is_refused(statement: str) -> None:
    assert statement_mistake(statement) is not None


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    handlers = Handlers(
        SinkKind.SQL,
        (PLACED, PLACED, Handler("seen", 1, ("COMMIT",)), Handler("none", 1)),
        (Upcast("x", 1, 2),),
        (QuarantineRule("empty"),),
        frozenset({"seen"}),
        target="x",
    )
    places = [place for place, _ in handler_mistakes(handlers)]
    assert places == [
        ("sink",),
        ("handler", 1),
        ("handler", 2, "type"),
        ("handler", 2, "sql", 0),
        ("handler", 3, "sql"),
        ("upcast", 0),
        ("quarantine", 0),
    ]
    assert not list(handler_mistakes(orders_handlers()))
    assert not list(handler_mistakes(Handlers(SinkKind.TOPIC, target="t")))
    assert list(handler_mistakes(Handlers(SinkKind.CALLABLE)))


# -- where a topic's events go


class NoneSent:
    """An ``EventProducer`` that keeps what it is given; it stands for one batch ahead."""

    record_bytes_max = 1_000

    def __init__(self, done: dict[TopicPartition, int]) -> None:
        self._done = done
        self.sent: list[OutRecord] = []

    def done(self) -> Mapping[TopicPartition, int]:
        return self._done

    def send(self, records: Sequence[OutRecord], done: Mapping[TopicPartition, int]) -> None:
        self.sent += records
        self._done = dict(done)

    def close(self) -> None: ...


def test_a_topic_is_never_replayed_to_itself() -> None:
    assert target_of("{topic}.replayed", "orders") == "orders.replayed"
    for target in ("orders", "{topic}", "a/{topic}", ""):
        with pytest.raises(MalformedValue):
            target_of(target, "orders")


def test_what_kafka_has_already_is_not_sent_again_but_what_is_released_is() -> None:
    producer = NoneSent({event(0).at: 5})
    sink = TopicSink(producer, "{topic}.again", "cluster", "replay-1")
    old, new = Event(event(4), "4", "", 1, b"old"), Event(event(5), "5", "", 1, b"new")
    freed = Event(event(1), "1", "", 1, b"freed", quarantine_id=9)
    sink.apply([old, new, freed])
    assert producer.sent == []
    sink.settle({event(0).at: 6})
    assert [one.value for one in producer.sent] == [b"new", b"freed"]
    assert dict(producer.sent[0].headers)["replayed-from"] == b"cluster/orders/0/5"
    assert sink.cursors() == {event(0).at: 6}
    with pytest.raises(EventsRefused, match="larger"):
        sink.apply([Event(event(7), "7", "", 1, b"x" * 2_000)])
    dry = TopicSink(NoProducer(1_000), "{topic}.again", "cluster", "replay-1", is_dry_run=True)
    dry.apply([new])
    assert dry.cursors() == {}


def test_an_upcast_event_is_sent_with_its_new_version() -> None:
    producer = NoneSent({})
    sink = TopicSink(producer, "{topic}.again", "cluster", "replay-1")
    sink.apply([Event(event(0), "0", "placed", 3, b"{}", Handler("placed", 3))])
    sink.settle({})
    assert [value for name, value in producer.sent[0].headers if name == "event-version"] == [b"3"]
