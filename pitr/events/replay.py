"""Replay: read what a plan names, decide on each event, and take it to the sink, batch by batch.

    plan ─→ records ─→ class (again, by the code that made the plan) ─→ judge ─→ batch ─→ sink

The same run goes on where an earlier one of the same plan ended, whatever ended it: the cursor is in the
restored database, in the transaction of the effects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pitr.events.broker import Broker, EventRecord
from pitr.events.chunks import CHUNK_RECORDS, Chunk, chunks
from pitr.events.classify import (
    EventClass,
    Lineage,
    OffsetBounds,
    classify,
    classify_offset,
    xids_to_ask,
)
from pitr.events.debezium import read_facts
from pitr.events.event_facts import EventFacts
from pitr.events.flows import Flow
from pitr.events.gaps import GapsFound
from pitr.events.handlers import Handlers
from pitr.events.history import XactStatus, status_of
from pitr.events.partition import TopicPartition
from pitr.events.plan import PartitionPlan, ReplayPlan, TopicPlan
from pitr.events.quarantine import KEYS_STOPPED_MAX
from pitr.events.refusals import PlanRefused
from pitr.events.replay_apply import Applier, Sink
from pitr.events.replay_batch import Batch, Judge
from pitr.events.starts import StartReason
from pitr.events.upcast import Change
from pitr.postgres.applied_events import ReplaySession
from pitr.postgres.held_events import HeldBecause, held_because, stopped_keys
from pitr.postgres.row_diff import RowDiff, TableDiff
from pitr.throttle import TokenBucket
from pitr.wal.lsn import LSN

BATCH_RECORDS: Final = 10_000
"""Of 1,000 to 100,000 the fastest within a few per cent: a round trip to the server is spread over enough."""
BATCH_BYTES_MAX: Final = 64 << 20
BECAUSE_MAX: Final = 10

Statuses = Callable[[Sequence[int]], Mapping[int, XactStatus]]
"""What the restored database says of transactions (``RestoredHistory.statuses``)."""


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What is asked for.  ``rate`` is in records a second; None is no limit."""

    plan: ReplayPlan
    handlers: Handlers
    is_dry_run: bool = False
    batch_records: int = BATCH_RECORDS
    rate: float | None = None
    accepted_gaps: frozenset[TopicPartition] = frozenset()
    calls: Mapping[str, Change] = field(default_factory=dict)

    @property
    def replay_id(self) -> str:
        """Return what all runs of one plan have in common."""
        return self.plan.hash[:32]


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How far it is: records read, of how many, and the topic."""

    topic: str
    read: int
    total: int


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What was done since the replay's first run, per partition, by words; ``diff`` of a dry run."""

    replay_id: str
    counts: Mapping[TopicPartition, Mapping[str, int]]
    cursors: Mapping[TopicPartition, int]
    diff: tuple[TableDiff, ...] = ()
    resumed: bool = False
    because: tuple[HeldBecause, ...] = ()
    """What holds most of the events that are held."""

    def total(self, word: str) -> int:
        """Return the sum over all partitions."""
        return sum(one.get(word, 0) for one in self.counts.values())


@dataclass(frozen=True, slots=True)
class Ports:
    """The world outside: a cluster, the database's history, the time, and whoever is told."""

    broker: Broker
    statuses: Statuses
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    progress: Callable[[ReplayProgress], None] = lambda _progress: None


def statuses_of(session: ReplaySession) -> Statuses:
    """Return what the restored database says of transactions below the plan's ``fork_xid``.

    It is promoted, or nothing could be replayed into it.
    """

    def ask(xids: Sequence[int]) -> Mapping[int, XactStatus]:
        found = session.xact_statuses(xids)
        return {xid: status_of(said, is_promoted=True) for xid, said in found.items()}

    return ask


def check_plan(plan: ReplayPlan, named_hash: str, session: ReplaySession, broker: Broker) -> None:
    """Refuse a plan that is not the one that was named, or was made for another cluster or database."""
    if plan.hash != named_hash.lower():
        raise PlanRefused(
            "this plan is not the one that was named",
            detail=f"its hash is {plan.hash}",
            hint="read the plan, and name its hash with --plan-hash",
        )
    found = session.system_identifier()
    if found != plan.restored.system_identifier:
        raise PlanRefused(
            "the plan is for another database",
            detail=f"the plan's system identifier is {plan.restored.system_identifier}, the server's {found}",
            hint="name the restored database with --restored, or make a plan for this one",
        )
    if plan.restored.fork_xid is None:
        raise PlanRefused(
            "the plan was made without a restored database",
            detail="which transactions are in it is not known",
            hint="pitr events plan --restored DSN",
        )
    if (cluster := broker.cluster_id()) != plan.cluster_id:
        raise PlanRefused(
            "the plan is for another Kafka cluster",
            detail=f"the plan's is {plan.cluster_id}, this one is {cluster}",
            hint="make a plan for this one; one that was made with --mirror needs it here, too",
        )
    topics = broker.topics(one.topic for one in plan.topics)
    for topic in plan.topics:
        if all(one.start >= one.end for one in topic.partitions):
            continue
        now = topics.get(topic.topic)
        if now is None or now.topic_id != topic.topic_id:
            raise PlanRefused(
                f"topic {topic.topic} is "
                + ("gone" if now is None else "not the one that the plan was made for"),
                detail="it was deleted" + ("" if now is None else " and made again") + " since",
                hint="make a new plan",
            )


def check_place(plan: ReplayPlan, left_at: LSN | None) -> None:
    """Refuse a plan that was made for another restore of this cluster: it counts from another moment.

    ``left_at`` is where the server left the plan's timeline; None: never.  Raises PlanRefused.
    """
    restored = plan.restored
    if left_at == restored.end:
        return
    there = "it never left that timeline" if left_at is None else f"it left that timeline at {left_at}"
    raise PlanRefused(
        "the plan is for another restore of this cluster",
        detail=f"the plan's ends at {restored.end} of timeline {restored.timeline}; of this server: {there}",
        hint="name the server that the plan was made for, or make a plan for this one",
    )


def moved_cursors(topic: TopicPlan, cursors: Mapping[int, int]) -> list[int]:
    """Return partitions whose sink took events since the plan was made: they would be applied once more."""
    return [
        one.partition
        for one in topic.partitions
        if one.reason is StartReason.CURSOR and not one.gaps and cursors.get(one.partition, 0) > one.start
    ]


def check_gaps(plan: ReplayPlan, accepted: frozenset[TopicPartition]) -> None:
    """Refuse gaps that nobody accepted by name.  Raises GapsFound with all of them."""
    missing = [
        f"{topic.topic}[{one.partition}]"
        for topic in plan.topics
        for one in topic.partitions
        if one.gaps and TopicPartition(topic.topic, one.partition) not in accepted
    ]
    if missing:
        raise GapsFound(
            "records that should be replayed are gone",
            detail=", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else ""),
            hint="read the mirror, or accept each by name: --accept-gap 'TOPIC[N]'",
        )


def _check_ahead(
    sink: Mapping[TopicPartition, int], cursors: Mapping[TopicPartition, int], *, is_same: bool
) -> None:
    """Refuse other handlers where the sink is a batch ahead: what they decide on it would go nowhere."""
    ahead = [at for at, offset in sink.items() if offset > cursors.get(at, 0)]
    if ahead and not is_same:
        raise PlanRefused(
            "the handlers file was changed, and the topic is one batch ahead of the database",
            detail=f"an earlier run was ended between both, at {ahead[0]}",
            hint="finish with the handlers file of before, or give the topic's events up for what they are",
        )


class Replay:
    """One run."""

    def __init__(self, request: ReplayRequest, ports: Ports, session: ReplaySession, sink: Sink) -> None:
        self._request = request
        self._ports = ports
        self._session = session
        self._sink = sink
        plan = request.plan
        self._lineage = Lineage(
            plan.branches, plan.restored.end, plan.restored.fork_xid, plan.later, plan.beside, plan.own
        )
        self._bucket = TokenBucket(request.rate, ports.clock())
        self._read = 0

    def run(self) -> ReplayResult:
        """Replay to the plan's end; may be repeated.  Raises what broker, session and sink raise."""
        check_gaps(self._request.plan, self._request.accepted_gaps)
        self._session.lock()
        if not self._request.is_dry_run:
            self._session.prepare()
            result = self._go(None)
            self._session.end(result.replay_id)
            return result
        with self._session.transaction(is_kept=False):
            self._session.prepare()
            return self._go(RowDiff(self._session))

    def _go(self, diff: RowDiff | None) -> ReplayResult:
        request, session = self._request, self._session
        handlers = request.handlers.sha256
        earlier = session.enter(request.replay_id, request.plan.hash, handlers)
        stopped = stopped_keys(session, request.replay_id, keys_max=KEYS_STOPPED_MAX)
        judge = Judge(request.handlers, stopped, calls=request.calls)
        applier = Applier(session, self._sink, judge, request.replay_id, diff)
        cursors: dict[TopicPartition, int] = {}
        for one in session.cursors(request.replay_id):
            at = TopicPartition(one.topic, one.partition)
            cursors[at], applier.counts[at] = one.next_offset, Counter(one.counts)
        resumed = bool(cursors)
        _check_ahead(self._sink.cursors(), cursors, is_same=earlier == handlers)
        session.note_handlers(request.replay_id, handlers)
        self._read = sum(counts["read"] for counts in applier.counts.values())
        for batch in self._batches(judge, cursors):
            applier.apply(batch)
            cursors.update(batch.cursors)
            self._pace(batch)
        found = () if diff is None else tuple(diff.result())
        because = tuple(held_because(session, request.replay_id, BECAUSE_MAX))
        return ReplayResult(request.replay_id, applier.counts, cursors, found, resumed, because)

    def _pace(self, batch: Batch) -> None:
        records = sum(batch.read.values())
        self._read += records
        topic = next(reversed(batch.cursors)).topic
        total = max(self._read, self._request.plan.tally.records)
        self._ports.progress(ReplayProgress(topic, self._read, total))
        self._bucket.take(records, self._ports.clock())
        while (wait_s := self._bucket.take(0, self._ports.clock())) > 0:
            self._ports.sleep(min(wait_s, 1.0))

    def _batches(self, judge: Judge, cursors: Mapping[TopicPartition, int]) -> Iterator[Batch]:
        """Yield batches, full but for the last; small partitions share one."""
        batch = Batch()
        for topic in self._request.plan.topics:
            for plan in topic.partitions:
                at = TopicPartition(topic.topic, plan.partition)
                start = cursors.get(at, plan.start)
                if start >= plan.end and at in cursors:
                    continue
                count_max = min(CHUNK_RECORDS, self._request.batch_records)
                for chunk in chunks(self._ports.broker.read(at, start, plan.end), count_max=count_max):
                    self._judge(judge, batch, topic, plan, chunk)
                    batch.cursors[at] = chunk.records[-1].offset + 1
                    if self._is_full(batch):
                        yield batch
                        batch = Batch()
                # Its position is at the end, though the last record may lie before markers of transactions.
                batch.cursors[at] = plan.end
        if batch.cursors:
            yield batch

    def _is_full(self, batch: Batch) -> bool:
        return sum(batch.read.values()) >= self._request.batch_records or batch.size_bytes >= BATCH_BYTES_MAX

    def _judge(
        self,
        judge: Judge,
        batch: Batch,
        topic: TopicPlan,
        plan: PartitionPlan,
        chunk: Chunk,
    ) -> None:
        records = chunk.records
        facts = [read_facts(one, topic.format) for one in records]
        for record, said, fate in zip(
            records, facts, self._classes(topic, plan, records, facts), strict=True
        ):
            judge.judge(batch, record, said, fate)
        batch.size_bytes += chunk.size_bytes
        batch.read[records[0].at] += len(records)

    def _classes(
        self,
        topic: TopicPlan,
        plan: PartitionPlan,
        records: Sequence[EventRecord],
        facts: Sequence[EventFacts],
    ) -> list[EventClass]:
        if topic.flow is not Flow.DB_FIRST:
            bounds = OffsetBounds(plan.out_from)
            return [classify_offset(one.offset, bounds) for one in records]
        wanted = xids_to_ask(facts, self._lineage)
        statuses = self._ports.statuses(wanted) if wanted else {}
        return [classify(one, self._lineage, statuses) for one in facts]
