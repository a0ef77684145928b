"""Is an event's effect in the restored database?  Pure.

An event of a db-first topic names the transaction that wrote it.  That is in the database if it was committed
in the WAL that was restored: on a timeline of the way there, before the way left it, and before the end.

A failover makes numbers ambiguous: the new primary hands out transaction ids and LSNs again that the old one
used for commits which nobody else got.  So a number counts only below the fork, or on its own timeline; where
an event does not name its timeline, all that it can mean must agree, timelines beside the way included.
What is not certain is ``UNKNOWN``.

Events of other flows are judged by offsets: those from the sink's cursor on, or appended after a fence that
is itself after the end, are not in the database.

Reference: PostgreSQL manual, "Transaction ID and Snapshot Information Functions"; docs/events.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from pitr.events.broker import EventRecord
from pitr.events.debezium import read_facts
from pitr.events.event_facts import EventFacts
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.history import Branch, OwnLine, XactStatus
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal.xids import nearest_xid


class EventClass(StrEnum):
    """Where an event's effect is."""

    IN_DATABASE = "in-database"
    NOT_IN_DATABASE = "not-in-database"
    LOST_BRANCH = "lost-branch"
    """Committed by a primary which a failover left behind, after the fork: in no database that goes on."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Lineage:
    """The timelines that matter: the way to the restored one, and what followed it before the restore.

    ``branches`` go from the first timeline to the restored one, ``later`` on from there to the last that is
    known.  ``beside`` are the others, which left this way somewhere and used its numbers again; one may have
    the number of a timeline on the way, if another writer began it.  ``own`` is what clients have committed
    in the restored server itself, None if it was not promoted, or nobody has worked with it.

    ``end`` is where recovery stopped, ``fork_xid`` the first transaction id that is not in the database; None
    if no restored database was asked, and then LSNs alone decide.
    """

    branches: tuple[Branch, ...]
    end: LSN
    fork_xid: int | None
    later: tuple[Branch, ...] = ()
    beside: tuple[Branch, ...] = ()
    own: OwnLine | None = None

    @cached_property
    def way(self) -> tuple[Branch, ...]:
        return self.branches + self.later

    @property
    def timeline(self) -> TimelineId:
        """Return the restored timeline."""
        return self.branches[-1].timeline

    @cached_property
    def places(self) -> Mapping[int, int]:
        """Return where on the way a timeline is, by its number."""
        return {branch.timeline.number: at for at, branch in enumerate(self.way)}

    def next_fork(self, timeline: TimelineId) -> Branch | None:
        """Return what followed a timeline of the way; None if it is the last one."""
        at = self.places.get(timeline.number)
        return None if at is None or at + 1 >= len(self.way) else self.way[at + 1]

    def widen(self, facts: EventFacts) -> int | None:
        """Return the event's 64-bit transaction id; one of 32 bits is the one nearest to the end."""
        if facts.xid is None or facts.is_xid_wide:
            return facts.xid
        if self.fork_xid is None:
            return None
        return nearest_xid(facts.xid, self.fork_xid)


@dataclass(frozen=True, slots=True)
class OffsetBounds:
    """What offsets alone say in one partition: events at or above ``out_from`` are not in the database."""

    out_from: int | None = None


def xids_to_ask(facts: Iterable[EventFacts], lineage: Lineage) -> list[int]:
    """Return the transaction ids whose status decides, sorted: those that the restored database can know."""
    if lineage.fork_xid is None:
        return []
    widened = (lineage.widen(one) for one in facts)
    return sorted({xid for xid in widened if xid is not None and xid < lineage.fork_xid})


def classify_offset(offset: int, bounds: OffsetBounds) -> EventClass:
    """Return the class of an event of a flow that is not db-first, by where it stands.

    For db-first it would be wrong: there an event may be appended long after its commit.
    """
    if bounds.out_from is not None and offset >= bounds.out_from:
        return EventClass.NOT_IN_DATABASE
    return EventClass.UNKNOWN


def classify(facts: EventFacts, lineage: Lineage, statuses: Mapping[int, XactStatus]) -> EventClass:
    """Return the class of an event of a db-first topic.

    ``statuses`` holds those of ``xids_to_ask``; one that is missing is not known.
    """
    if facts.problem is not None:
        return EventClass.UNKNOWN
    xid = lineage.widen(facts)
    if xid is None and facts.lsn is None and facts.commit_lsn is None:
        return EventClass.UNKNOWN
    verdicts = {
        _elsewhere(branch.timeline, lineage)
        for branch in lineage.beside
        if facts.timeline in (None, branch.timeline) and _may_be_of(facts, xid, branch)
    }
    is_own = _may_be_own(facts, xid, lineage)
    if is_own:
        verdicts.add(EventClass.IN_DATABASE)
    if facts.timeline is not None:
        # Who names the server's own timeline and one of its transactions means it, unless there is another
        # timeline of that number.
        if not is_own or xid is None or facts.timeline.number in lineage.places:
            verdicts.add(_on_timeline(facts, xid, facts.timeline, lineage, statuses))
    else:
        verdicts |= {
            _on_timeline(facts, xid, branch.timeline, lineage, statuses)
            for branch in lineage.way
            if _may_be_of(facts, xid, branch)
        }
    return verdicts.pop() if len(verdicts) == 1 else EventClass.UNKNOWN


def _may_be_own(facts: EventFacts, xid: int | None, lineage: Lineage) -> bool:
    """Tell whether it can be a transaction that was committed in the restored server since its promotion."""
    own = lineage.own
    if own is None or facts.timeline not in (None, own.timeline):
        return False
    if xid is not None and not own.has(xid):
        return False
    return all(at is None or lineage.end <= at < own.until for at in (facts.lsn, facts.commit_lsn))


def _may_be_of(facts: EventFacts, xid: int | None, branch: Branch) -> bool:
    """Tell whether a transaction can have been committed on a timeline: none is before it begins.

    One that was in flight at the fork was aborted by it.
    """
    if branch.fork_xid is not None and xid is not None and xid < branch.fork_xid:
        return False
    return facts.commit_lsn is None or facts.commit_lsn >= branch.fork_lsn


def _on_timeline(
    facts: EventFacts,
    xid: int | None,
    timeline: TimelineId,
    lineage: Lineage,
    statuses: Mapping[int, XactStatus],
) -> EventClass:
    at = lineage.places.get(timeline.number)
    if at is None:
        return _elsewhere(timeline, lineage)
    was_left = _left(facts, xid, lineage.way[at + 1] if at + 1 < len(lineage.way) else None)
    if was_left:
        return EventClass.LOST_BRANCH
    if at >= len(lineage.branches):
        # After the end by being later; whether a later failover lost it is known only by the fork.
        return EventClass.NOT_IN_DATABASE
    is_last = at == len(lineage.branches) - 1
    verdict = _within(facts, xid, lineage, statuses, is_last=is_last)
    if is_last or verdict is EventClass.UNKNOWN:
        return verdict
    if verdict is EventClass.NOT_IN_DATABASE:
        # It was published, so it was committed; not in what became of its timeline, so after the fork.
        return EventClass.LOST_BRANCH
    # The status is that of a transaction of this number in the restored history: is it this one?
    return EventClass.UNKNOWN if was_left is None else verdict


def _elsewhere(timeline: TimelineId, lineage: Lineage) -> EventClass:
    """Return the class of what was committed on a timeline whose WAL was not restored.

    One that is older than ours, but not of our past, was left behind by it; a newer one can be what followed.
    """
    return EventClass.LOST_BRANCH if timeline < lineage.timeline else EventClass.NOT_IN_DATABASE


def _left(facts: EventFacts, xid: int | None, fork: Branch | None) -> bool | None:
    """Tell whether the transaction was committed after its timeline was left; None if that is not certain.

    False also where the number is surely below the fork, though its commit may not be: its status tells.
    """
    if fork is None:
        return False
    if facts.commit_lsn is not None:
        return facts.commit_lsn >= fork.fork_lsn
    if facts.lsn is not None and facts.lsn >= fork.fork_lsn:
        return True
    own_from = fork.own_from
    if xid is None or fork.fork_xid is None or own_from is None:
        return None
    if xid < fork.fork_xid:
        return False
    return True if xid >= own_from else None


def _within(
    facts: EventFacts,
    xid: int | None,
    lineage: Lineage,
    statuses: Mapping[int, XactStatus],
    *,
    is_last: bool,
) -> EventClass:
    """Return whether the transaction is in the restored WAL, given that its timeline is.

    Where position and number both tell, they must agree: else one of them is not what it claims to be.
    """
    by_lsn, by_xid = _by_lsn(facts, lineage, is_last=is_last), _by_xid(xid, lineage, statuses)
    if by_lsn is None or by_xid is None or by_lsn is by_xid:
        return by_lsn or by_xid or EventClass.UNKNOWN
    return EventClass.UNKNOWN


def _by_lsn(facts: EventFacts, lineage: Lineage, *, is_last: bool) -> EventClass | None:
    if facts.commit_lsn is not None:
        # The commit record begins there: it was replayed if the end lies behind it.
        is_in = facts.commit_lsn < lineage.end or not is_last
        return EventClass.IN_DATABASE if is_in else EventClass.NOT_IN_DATABASE
    is_after = is_last and facts.lsn is not None and facts.lsn >= lineage.end
    return EventClass.NOT_IN_DATABASE if is_after else None


def _by_xid(xid: int | None, lineage: Lineage, statuses: Mapping[int, XactStatus]) -> EventClass | None:
    if xid is None or lineage.fork_xid is None:
        return None
    if xid >= lineage.fork_xid:
        return EventClass.NOT_IN_DATABASE
    status = statuses.get(xid)
    if status is None or status is XactStatus.TOO_OLD:
        return None
    if status is XactStatus.PREPARED:
        # The event says that it was committed; here somebody has still to decide it.
        return EventClass.UNKNOWN
    is_in = status is XactStatus.COMMITTED
    return EventClass.IN_DATABASE if is_in else EventClass.NOT_IN_DATABASE


@dataclass(frozen=True, slots=True)
class Classified:
    """An event, who it is, and where its effect is."""

    record: EventRecord
    facts: EventFacts
    event_class: EventClass


@dataclass(frozen=True, slots=True)
class Classifier:
    """Classifies the events of one topic, batch by batch; the plan and the replay use the same one.

    ``bounds``: by partition.  ``ask`` returns the statuses of transactions below the lineage's ``fork_xid``;
    it is called once for a batch, and not at all where none is needed.
    """

    declaration: FlowDeclaration
    lineage: Lineage
    bounds: Mapping[int, OffsetBounds]
    ask: Callable[[Sequence[int]], Mapping[int, XactStatus]]

    def __call__(self, records: Sequence[EventRecord]) -> list[Classified]:
        """Return the batch in its order.  Raises what ``ask`` raises."""
        facts = [read_facts(record, self.declaration.format) for record in records]
        flow = self.declaration.flow
        if flow is not Flow.DB_FIRST:
            nothing = OffsetBounds()
            return [
                Classified(
                    record, one, classify_offset(record.offset, self.bounds.get(record.at.partition, nothing))
                )
                for record, one in zip(records, facts, strict=True)
            ]
        xids = xids_to_ask(facts, self.lineage)
        statuses = self.ask(xids) if xids else {}
        return [
            Classified(record, one, classify(one, self.lineage, statuses))
            for record, one in zip(records, facts, strict=True)
        ]
