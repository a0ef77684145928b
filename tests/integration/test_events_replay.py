"""Events into a real PostgreSQL: once, in order, resumable; what cannot be applied is held with its key."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_replay import (
    CHANGED,
    FORK_XID,
    ORDERS,
    PLACED,
    MemoryBroker,
    all_committed,
    event,
    orders_handlers,
    plan_of,
)

from pitr.errors import AlreadyRunning, ServerRefused
from pitr.events.broker import OffsetGone
from pitr.events.flows import Flow
from pitr.events.gaps import Gap, GapKind, GapsFound
from pitr.events.handlers import Handler, Handlers, SinkKind
from pitr.events.history import XactStatus
from pitr.events.partition import TopicPartition
from pitr.events.quarantine import QuarantineRule, Reason
from pitr.events.refusals import PlanRefused
from pitr.events.release import ReleaseChoice, ReleaseRefused, ReleaseResult, drop, release
from pitr.events.replay import (
    Ports,
    Replay,
    ReplayRequest,
    ReplayResult,
    check_plan,
    statuses_of,
)
from pitr.events.replay_apply import Sink
from pitr.events.sink_callable import CallableFailed, CallableSink, ReplayContext
from pitr.events.sink_sql import SqlSink
from pitr.events.upcast import Upcast
from pitr.postgres.applied_events import EventsRefused, ReplaySession
from pitr.postgres.held_events import held_rows

AT = TopicPartition("orders", 0)


@dataclass
class House:
    """One server, a database of its own for each test, and a broker in memory."""

    server: RunningPostgres
    database: str
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    pauses: list[float] = field(default_factory=list)
    now: float = 0.0

    @property
    def dsn(self) -> str:
        return f"{self.server.dsn} dbname={self.database}"

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, dbname=self.database)

    def orders(self) -> dict[object, tuple[object, ...]]:
        return {row[0]: row[1:] for row in self.sql("SELECT id, customer, amount, changes FROM orders")}

    def held(self) -> list[tuple[int, str]]:
        with ReplaySession(self.dsn) as session:
            return [(one.offset, one.reason) for one in held_rows(session, limit=1000)]

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def request(self, handlers: Handlers, **options: Any) -> ReplayRequest:
        ends = options.pop("ends", None)
        gaps = options.pop("gaps", None)
        flow = options.pop("flow", Flow.DB_FIRST)
        plan = plan_of(self.broker, system_identifier=1, ends=ends, gaps=gaps, flow=flow)
        return ReplayRequest(plan, handlers, **options)

    def replay(self, handlers: Handlers, sink: Any = None, **options: Any) -> ReplayResult:
        request = self.request(handlers, **options)
        ports = Ports(self.broker, all_committed, lambda: self.now, self.sleep)
        with ReplaySession(self.dsn) as session:
            found: Sink = SqlSink(session, wants_headers=handlers.wants_headers)
            if sink is not None:
                found = sink(session, request)
            return Replay(request, ports, session, found).run()


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    return module_postgres_factory(17)


@pytest.fixture
def house(server: RunningPostgres, request: pytest.FixtureRequest) -> Iterator[House]:
    name = f"t{abs(hash(request.node.name)) % 10**12}"
    server.execute(f"CREATE DATABASE {name}")
    found = House(server, name)
    found.sql(ORDERS)
    yield found
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def order(offset: int, number: int, amount: int = 5, **options: Any) -> Any:
    value = {"id": number, "customer": f"c{number}", "amount": amount}
    return event(offset, key=f"order-{number}", value=value, **options)


def change(offset: int, number: int, amount: int, **options: Any) -> Any:
    options = {"value": {"id": number, "amount": amount}, **options}
    return event(offset, key=f"order-{number}", event_type="changed", **options)


def test_events_are_applied_once_in_their_keys_order_and_counted(house: House) -> None:
    for record in (
        order(0, 1, xid=FORK_XID - 5),
        order(2, 2),
        change(3, 2, 7),
        change(4, 2, 9),
        order(5, 3),
        order(7, 3, event_id="orders-0-5"),
        order(8, 4, event_id="orders-0-0", xid=FORK_XID + 3),
    ):
        house.broker.add(record)
    house.sql("INSERT INTO orders VALUES (1, 'c1', 5)")
    result = house.replay(orders_handlers())
    assert house.orders() == {1: ("c1", 5, 0), 2: ("c2", 9, 2), 3: ("c3", 5, 0), 4: ("c4", 5, 0)}
    assert result.counts[AT] == {"in database": 1, "read": 7, "applied": 5, "duplicate": 1, "held": 0}
    # Behind the last record there are only the markers of transactions: the position is at the end.
    assert result.cursors == {AT: 11}
    again = house.replay(orders_handlers())
    assert again.resumed
    assert (again.counts, again.cursors) == (result.counts, result.cursors)
    assert house.sql("SELECT count(*), count(ended_at) FROM pitr.replay") == [(1, 1)]


def test_another_plan_over_the_same_events_finds_them_applied(house: House) -> None:
    for at in range(50):
        house.broker.add(order(at, at))
    house.replay(orders_handlers(), ends={AT: 30})
    result = house.replay(orders_handlers(), ends={AT: 50})
    assert result.counts[AT] == {"read": 50, "applied": 20, "duplicate": 30, "held": 0}
    assert len(house.orders()) == 50


def test_a_poison_event_is_found_and_held_with_the_later_ones_of_its_key(house: House) -> None:
    broken = random.Random(7).sample(range(10, 190), 4)
    expected, held = {}, []
    for at in range(200):
        if at in broken:
            house.broker.add(order(at, at, amount=10**9))
            held.append((at, str(Reason.POISON)))
        else:
            house.broker.add(order(at, at))
            expected[at] = (f"c{at}", 6, 1)
    for at in range(200):
        house.broker.add(change(200 + at, at, 6))
        if at in broken:
            held.append((200 + at, str(Reason.BEHIND)))
    result = house.replay(orders_handlers())
    assert house.orders() == expected
    assert sorted(house.held()) == sorted(held)
    assert result.counts[AT] == {"read": 400, "applied": 392, "duplicate": 0, "held": 8}
    assert house.sql("SELECT count(*) FROM pitr.applied") == [(392,)]
    reasons = house.sql("SELECT DISTINCT detail FROM pitr.quarantine WHERE reason = 'poison'")
    assert "violates check constraint" in str(reasons)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_what_a_key_waits_for_is_the_same_whatever_the_batches_are(house: House, batch: int) -> None:
    house.broker.add(order(0, 1))
    house.broker.add(change(1, 1, 10**9))
    house.broker.add(order(2, 2))
    house.broker.add(change(3, 1, 8))
    house.broker.add(change(4, 2, 9))
    house.replay(orders_handlers(), batch_records=batch)
    assert house.orders() == {1: ("c1", 5, 0), 2: ("c2", 9, 1)}
    assert house.held() == [(1, "poison"), (3, "behind a held event")]


def test_json_that_only_postgresql_refuses_is_poison_and_no_more(house: House) -> None:
    house.broker.add(event(0, key="a", value=b'{"id": 1, "customer": "\\u0000", "amount": 1}'))
    house.broker.add(event(1, key="b", value=b'{"id": 2, "customer": "x", "amount": 1e999999}'))
    house.broker.add(event(2, key="c", value=b'{"id": 3, "customer": "\\t\\\\N \xc3\xa4", "amount": 1}'))
    house.broker.add(event(3, key=b"\xff\x00", value={"id": 4, "customer": None, "amount": None}))
    house.broker.add(event(4, key="e", value=b'{"id": 5'))
    house.broker.add(event(5, key="f", value=b"\xff"))
    house.broker.add(event(6, key="e", value={"id": 6}))
    house.replay(orders_handlers())
    assert house.orders() == {3: ("\t\\N ä", 1, 0), 4: (None, None, 0)}
    assert sorted(house.held()) == [
        (0, "poison"),
        (1, "poison"),
        (4, "unreadable"),
        (5, "unreadable"),
        (6, "behind a held event"),
    ]


def test_why_an_event_is_poison_is_told_without_its_value(house: House) -> None:
    house.broker.add(event(0, key="a", value={"id": 'four"teen\nsecret', "customer": "x", "amount": 1}))
    house.replay(orders_handlers())
    with ReplaySession(house.dsn) as session:
        [row] = held_rows(session, limit=10)
    assert (row.reason, row.detail) == ("poison", 'invalid input syntax for type bigint: "…"')
    assert b"secret" in (row.value or b"")


def test_a_deferred_constraint_is_looked_at_where_the_event_is_still_known(house: House) -> None:
    house.sql(
        "CREATE TABLE customers (name text PRIMARY KEY);"
        "INSERT INTO customers VALUES ('c1');"
        "ALTER TABLE orders ADD FOREIGN KEY (customer) REFERENCES customers DEFERRABLE INITIALLY DEFERRED"
    )
    house.broker.add(order(0, 1))
    house.broker.add(order(1, 2))
    house.replay(orders_handlers())
    assert list(house.orders()) == [1]
    assert house.held() == [(1, "poison")]


def test_a_wrong_handler_stops_the_run_and_changes_nothing(house: House) -> None:
    house.broker.add(order(0, 1))
    for statement in (
        "INSERT INTO nowhere SELECT 1",
        "SELECT 1; COMMIT",
        "DO $$ BEGIN COMMIT; END $$",
    ):
        wrong = orders_handlers(handlers=(Handler("placed", 1, (statement,)),))
        with pytest.raises(ServerRefused):
            house.replay(wrong)
    assert house.sql(
        "SELECT (SELECT count(*) FROM pitr.applied), (SELECT count(*) FROM pitr.replay_cursor)"
    ) == [(0, 0)]
    # Corrected, it goes on.
    house.replay(orders_handlers())
    assert list(house.orders()) == [1]


def test_rules_hold_an_attackers_events_and_a_release_applies_them(house: House) -> None:
    house.broker.add(order(0, 1))
    house.broker.add(change(1, 1, 666, principal="mallory"))
    house.broker.add(change(2, 1, 7))
    handlers = orders_handlers(rules=(QuarantineRule("attack", principals=("mallory",)),))
    replay_id = house.replay(handlers).replay_id
    assert house.orders() == {1: ("c1", 7, 1)}
    with ReplaySession(house.dsn) as session:
        row = held_rows(session, limit=10)[0]
        assert (row.reason, row.detail, row.headers[-1]) == ("rule", "attack", ("principal", b"mallory"))
        done = release(session, SqlSink(session), handlers, replay_id, ReleaseChoice(numbers=(row.number,)))
        assert (done.applied, done.held) == (1, 0)
        again = release(session, SqlSink(session), handlers, replay_id, ReleaseChoice(everything=True))
        assert (again.applied, again.held) == (0, 0)
    assert house.orders() == {1: ("c1", 666, 2)}


def test_a_key_is_released_in_its_order_once_the_handler_is_corrected(house: House) -> None:
    house.broker.add(order(0, 1, version=2))
    house.broker.add(change(1, 1, 8))
    house.broker.add(order(2, 2))
    replay_id = house.replay(orders_handlers()).replay_id
    assert house.held() == [(0, "unknown version"), (1, "behind a held event")]
    both = orders_handlers(handlers=(PLACED, Handler("placed", 2, PLACED.statements), CHANGED))
    with ReplaySession(house.dsn) as session:
        sink = SqlSink(session)
        first, second = held_rows(session, limit=10)
        with pytest.raises(ReleaseRefused, match="cannot go alone"):
            release(session, sink, both, replay_id, ReleaseChoice(numbers=(second.number,)))
        # With the old handlers nothing comes of it, and both stay.
        done = release(session, sink, orders_handlers(), replay_id, ReleaseChoice(everything=True))
        assert (done.applied, done.held) == (0, 2)
        done = release(session, sink, both, replay_id, ReleaseChoice(numbers=(first.number, second.number)))
        assert (done.applied, done.held) == (2, 0)
    assert house.orders() == {1: ("c1", 8, 1), 2: ("c2", 5, 0)}
    assert house.held() == []


def test_what_an_upcaster_quotes_of_a_strangers_text_ends_neither_a_replay_nor_a_release(
    house: House,
) -> None:
    def refuse(payload: dict[str, Any]) -> dict[str, Any]:
        raise LookupError(payload["customer"])

    house.broker.add(event(0, key="order-1", version=2, value=b'{"customer": "half \\ud800, none \\u0000"}'))
    house.broker.add(order(1, 2))
    handlers = orders_handlers(
        handlers=(Handler("placed", 3, PLACED.statements), PLACED),
        upcasts=(Upcast("placed", 2, 3, call="refuse"),),
    )
    request = house.request(handlers, calls={"refuse": refuse})
    with ReplaySession(house.dsn) as session:
        sink = SqlSink(session)
        ports = Ports(house.broker, all_committed, lambda: house.now, house.sleep)
        result = Replay(request, ports, session, sink).run()
        assert result.counts[AT] == {"read": 2, "applied": 1, "duplicate": 0, "held": 1}
        everything = ReleaseChoice(everything=True)
        done = release(session, sink, handlers, result.replay_id, everything, calls={"refuse": refuse})
        assert done == ReleaseResult(held=1)
        assert held_rows(session, limit=9)[0].detail == "refuse raised LookupError: half ?, none \ufffd"


def test_what_can_never_be_applied_is_dropped_and_its_key_goes_on(house: House) -> None:
    house.broker.add(order(0, 1))
    house.broker.add(event(1, key="order-1", value=b"{no json", event_type="changed"))
    house.broker.add(change(2, 1, 8))
    house.broker.add(change(3, 1, 9))
    result = house.replay(orders_handlers())
    assert house.held() == [(1, "unreadable"), (2, "behind a held event"), (3, "behind a held event")]
    behind = ReleaseChoice(reason=str(Reason.BEHIND))
    with ReplaySession(house.dsn) as session:
        first, *_ = held_rows(session, limit=10)
        words = (session, SqlSink(session), orders_handlers(), result.replay_id)
        assert release(*words, ReleaseChoice(everything=True)) == ReleaseResult(held=3)
        with pytest.raises(ReleaseRefused, match="cannot go alone"):
            release(*words, ReleaseChoice((first.number + 1,)))
        with pytest.raises(ReleaseRefused, match="is not held"):
            drop(session, result.replay_id, ReleaseChoice((first.number, 10**6)))
        assert drop(session, result.replay_id, ReleaseChoice((first.number,))) == 1
        assert release(*words, behind) == ReleaseResult(applied=2)
        dropped, *_ = held_rows(session, limit=10, with_released=True)
        assert (dropped.reason, dropped.value) == ("dropped", b"{no json")
        assert dropped.detail.startswith("unreadable: it is no JSON")
        with pytest.raises(ReleaseRefused, match="is not held"):
            release(*words, ReleaseChoice((first.number,)))
    assert house.orders() == {1: ("c1", 9, 2)}
    assert house.held() == []


def test_held_events_are_read_in_pages_that_are_bounded_by_bytes(house: House) -> None:
    for at in range(4):
        house.broker.add(order(at, at, event_type="nobody's", headers=[("note", b"n" * 1000)]))
    house.replay(orders_handlers())
    with ReplaySession(house.dsn) as session:
        pages, after = [], 0
        while rows := held_rows(session, after=after, limit=10, bytes_max=2000):
            pages.append([row.offset for row in rows])
            after = rows[-1].number
        assert pages == [[0, 1], [2, 3]]
        plain = held_rows(session, limit=3, bytes_max=2000, is_whole=False)
        assert [(row.offset, row.value, row.headers) for row in plain] == [(n, None, ()) for n in range(3)]
        assert all(row.key and row.event_id for row in plain)


def test_a_dry_run_shows_the_rows_and_leaves_nothing(house: House) -> None:
    house.sql(
        "INSERT INTO orders VALUES (1, 'c1', 5);"
        "CREATE TABLE seen (order_id bigint REFERENCES orders ON DELETE CASCADE);"
        "INSERT INTO seen VALUES (1), (1);"
        "CREATE TABLE audit (what text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO audit VALUES (TG_OP); RETURN NULL; END $$;"
        "CREATE TRIGGER note AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note()"
    )
    gone = Handler("gone", 1, ("DELETE FROM orders USING pitr_batch WHERE id = (payload->>'id')::bigint",))
    handlers = orders_handlers(handlers=(PLACED, CHANGED, gone))
    house.broker.add(order(0, 2))
    house.broker.add(change(1, 2, 6))
    house.broker.add(change(2, 2, 7))
    house.broker.add(order(3, 3, amount=10**8))
    house.broker.add(event(4, key="order-1", event_type="gone", value={"id": 1}))
    house.broker.add(order(5, 4))
    house.broker.add(event(6, key="order-4", event_type="gone", value={"id": 4}))
    before = house.orders()
    result = house.replay(handlers, is_dry_run=True, batch_records=2)
    diff = {one.table: (one.inserted, one.updated, one.deleted) for one in result.diff}
    assert diff == {"orders": (1, 0, 1), "seen": (0, 0, 2), "audit": (2, 0, 0)}
    samples = {one.table: one.samples for one in result.diff}["orders"]
    assert '"amount": 7' in str(samples)
    assert '"changes": 2' in str(samples)
    assert result.counts[AT] == {"read": 7, "applied": 6, "duplicate": 0, "held": 1}
    assert house.orders() == before
    assert house.sql("SELECT to_regnamespace('pitr'), (SELECT count(*) FROM pg_trigger)")[0][0] is None
    real = house.replay(handlers, batch_records=2)
    assert real.counts == result.counts
    assert house.orders() == {2: ("c2", 7, 2)}


def test_a_row_that_is_changed_shows_what_was_there(house: House) -> None:
    house.sql("INSERT INTO orders VALUES (1, 'c1', 5)")
    house.broker.add(change(0, 1, 6))
    (diff,) = house.replay(orders_handlers(), is_dry_run=True).diff
    assert (diff.inserted, diff.updated, diff.deleted) == (0, 1, 0)
    assert diff.samples[0].changed_fields() == ("amount", "changes")


def test_a_gap_stops_the_run_unless_it_is_accepted_by_name(house: House) -> None:
    house.broker.add(order(10, 1))
    house.broker.log_starts[AT] = 10
    gaps = {AT: (Gap(GapKind.DELETED, 4, 10),)}
    with pytest.raises(GapsFound, match="gone") as refused:
        house.replay(orders_handlers(), gaps=gaps)
    assert refused.value.detail == "orders[0]"
    house.replay(orders_handlers(), gaps=gaps, accepted_gaps=frozenset({AT}))
    assert list(house.orders()) == [1]


def test_records_that_go_while_it_runs_stop_it(house: House) -> None:
    house.broker.add(order(10, 1))
    request = house.request(orders_handlers())
    house.broker.log_starts[AT] = 5
    ports = Ports(house.broker, all_committed, lambda: 0.0, house.sleep)
    with ReplaySession(house.dsn) as session:
        run = Replay(request, ports, session, SqlSink(session))
        with pytest.raises(OffsetGone, match="no longer has offset 0"):
            run.run()


def test_two_replays_never_run_into_one_database(house: House) -> None:
    house.broker.add(order(0, 1))
    with ReplaySession(house.dsn) as other:
        other.lock()
        with pytest.raises(AlreadyRunning):
            house.replay(orders_handlers())
    house.replay(orders_handlers())


def test_a_session_that_is_about_to_end_is_waited_for(house: House) -> None:
    with ReplaySession(house.dsn) as other, ReplaySession(house.dsn) as session:
        other.lock()
        ending = threading.Timer(0.3, other.close)
        ending.start()
        session.lock()
        ending.join()


def test_a_plan_for_another_place_or_under_another_hash_is_refused(house: House) -> None:
    house.broker.add(order(0, 1))
    with ReplaySession(house.dsn) as session:
        own = session.system_identifier()
        good = plan_of(house.broker, system_identifier=own)
        check_plan(good, good.hash, session, house.broker)
        with pytest.raises(PlanRefused, match="not the one that was named"):
            check_plan(good, "0" * 64, session, house.broker)
        other = plan_of(house.broker, system_identifier=own + 1)
        with pytest.raises(PlanRefused, match="another database"):
            check_plan(other, other.hash, session, house.broker)
        house.broker.records.clear()
        with pytest.raises(PlanRefused, match="topic orders is gone"):
            check_plan(good, good.hash, session, house.broker)


def test_the_rate_is_kept_to(house: House) -> None:
    for at in range(100):
        house.broker.add(order(at, at))
    house.replay(orders_handlers(), rate=50.0, batch_records=10)
    # 100 records at 50 a second take two seconds, less what a bucket holds at first.
    assert 1.5 < sum(house.pauses) < 2.1


def test_events_of_many_small_partitions_share_a_batch_and_headers_are_given(house: House) -> None:
    house.sql("CREATE TABLE told (partition int, headers jsonb, at timestamptz)")
    handler = Handler(
        "placed", 1, ("INSERT INTO told SELECT partition, headers, happened_at FROM pitr_batch ORDER BY seq",)
    )
    for partition in range(30):
        house.broker.add(
            event(
                5,
                partition=partition,
                value={},
                headers=[("tenant", b"t1"), ("raw", b"\xff"), ("none", None)],
            )
        )
    house.replay(orders_handlers(handlers=(handler,), wants_headers=True))
    rows = house.sql(
        "SELECT partition, headers->'tenant', headers->'raw', headers->'none' FROM told ORDER BY 1"
    )
    assert rows == [(at, "t1", {"base64": "/w=="}, None) for at in range(30)]
    assert house.sql("SELECT count(DISTINCT xmin::text) FROM pitr.replay_cursor") == [(1,)]


def test_events_from_the_sinks_cursor_on_need_no_transaction(house: House) -> None:
    house.broker.add(order(0, 1, xid=None))
    house.replay(orders_handlers(), flow=Flow.SINK_CURSOR)
    assert list(house.orders()) == [1]


def test_what_the_server_says_of_transactions_decides_on_the_overlap(house: House) -> None:
    with ReplaySession(house.dsn) as session:
        xid = "SELECT pg_current_xact_id()::text::bigint"

        def take() -> int:
            row = session.connection.execute(xid).fetchone()
            assert row is not None
            return int(str(row[0]))

        committed = take()
        with session.transaction(is_kept=False):
            aborted = take()
        with session.transaction():
            running = take()
            found = statuses_of(session)([committed, aborted, running])
    assert found == {
        committed: XactStatus.COMMITTED,
        aborted: XactStatus.ABORTED,
        running: XactStatus.PREPARED,
    }


# -- a function of the owner


def call(function: Any) -> Any:
    def make(session: ReplaySession, request: ReplayRequest) -> Sink:
        context = ReplayContext(request.replay_id, request.is_dry_run, session.connection)
        return CallableSink(session, function, "mine:function", context)

    return make


def test_a_function_writes_in_the_batches_own_transaction(house: House) -> None:
    for at in range(6):
        house.broker.add(order(at, at))
    house.broker.add(event(6, key="order-6", value=b"\x00avro"))

    def write(events: Sequence[Any], context: ReplayContext) -> None:
        for one in events:
            if one.value == b"\x00avro":
                raise EventsRefused("not mine")
            context.connection.execute("INSERT INTO orders VALUES (%s, 'f', 1)", (one.record.offset,))

    handlers = Handlers(SinkKind.CALLABLE, target="mine:function")
    assert house.replay(handlers, call(write), is_dry_run=True).total("applied") == 6
    assert house.orders() == {}
    house.replay(handlers, call(write), batch_records=4)
    assert sorted(house.orders(), key=str) == list(range(6))
    assert house.held() == [(6, "poison")]


def test_what_a_function_raises_undoes_its_batch_and_stops(house: House) -> None:
    for at in range(4):
        house.broker.add(order(at, at))
    is_broken = True

    def write(events: Sequence[Any], context: ReplayContext) -> None:
        for one in events:
            context.connection.execute("INSERT INTO orders VALUES (%s, 'f', 1)", (one.record.offset,))
        if is_broken and events[0].record.offset >= 2:
            raise KeyError("later")

    handlers = Handlers(SinkKind.CALLABLE, target="mine:function")
    with pytest.raises(CallableFailed, match="KeyError"):
        house.replay(handlers, call(write), batch_records=2)
    assert sorted(house.orders(), key=str) == [0, 1]
    is_broken = False
    house.replay(handlers, call(write), batch_records=2)
    assert sorted(house.orders(), key=str) == [0, 1, 2, 3]
