"""Reconciliation: a plan of replay against what was replayed, partition by partition.  Pure.

Each record of the plan must be accounted for: in the database already, applied, a duplicate, held back, or
passed over by the owner's word.  What is not is missing, as are records that Kafka had no longer.

Reference: docs/events.md, "Reconciliation".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pitr.events.partition import TopicPartition
from pitr.events.plan import PartitionPlan, ReplayPlan


class Verdict(StrEnum):
    """What became of a partition."""

    RECONCILED = "reconciled"
    """Every record of the plan was replayed and is accounted for."""
    REPLAYABLE = "replayable"
    """Nothing was replayed, and nothing would be missing."""
    HELD = "held back"
    """Accounted for, but some events wait in quarantine."""
    ESTIMATED = "estimated"
    """Only a time says where replay starts: nothing proves that all before it is in the database."""
    INCOMPLETE = "incomplete"
    """Replay has not come to the plan's end."""
    DIFFERS = "differs"
    """Replay counted otherwise than the plan did."""
    MISSING = "missing"
    """Records that the database lacks cannot be had, or are not accounted for."""


COMPLETE = frozenset({Verdict.RECONCILED, Verdict.HELD, Verdict.ESTIMATED})
"""What a replay that did all it could ends with."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What ``pitr.replay_cursor`` says of a partition: the next offset, and counts by words."""

    next_offset: int
    counts: Mapping[str, int]

    def count(self, word: str) -> int:
        """Return one count."""
        return self.counts.get(word, 0)

    @property
    def accounted(self) -> int:
        """How many records have a fate."""
        return sum(count for word, count in self.counts.items() if word != "read")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One partition.

    ``offset_at_target``: everything below is in the restored database, as the plan has it.
    ``high_watermark``: where the plan ends, the last stable offset.  ``replayed_to`` and the counts after it
    are None and 0 where nothing was replayed; ``in_database`` is then what the plan counted.
    ``gap_offsets`` were gone before the replay, at least so many; ``lost`` records disappeared, or have no
    fate.
    """

    at: TopicPartition
    offset_at_target: int
    high_watermark: int
    replayed_from: int | None
    replayed_to: int | None
    in_database: int
    applied: int
    duplicates: int
    held: int
    passed_over: int
    gap_offsets: int
    lost: int
    verdict: Verdict
    detail: str

    @property
    def missing(self) -> int:
        """How many records are missing, at least."""
        return self.gap_offsets + self.lost

    @property
    def result(self) -> str:
        """The verdict in words."""
        return f"{self.verdict}: {self.detail}" if self.detail else str(self.verdict)


def reconcile(plan: ReplayPlan, replayed: Mapping[TopicPartition, Replayed] | None) -> tuple[Reconciled, ...]:
    """Return the plan's partitions in order; ``replayed`` None: nothing was to be replayed."""
    return tuple(
        _unplayed(TopicPartition(topic.topic, one.partition), one)
        if replayed is None
        else _replayed(TopicPartition(topic.topic, one.partition), one, replayed)
        for topic in plan.topics
        for one in topic.partitions
    )


def unreconciled(rows: Sequence[Reconciled], accepted: Collection[TopicPartition] = ()) -> list[Reconciled]:
    """Return what keeps a replay from being done; gaps of ``accepted`` partitions do not."""
    return [
        one
        for one in rows
        if one.verdict not in COMPLETE
        and not (one.verdict is Verdict.MISSING and one.lost == 0 and one.at in accepted)
    ]


def misread(plan: ReplayPlan, counts: Mapping[TopicPartition, Mapping[str, int]]) -> list[str]:
    """Say in which partitions replay read another number of records than the plan did: their logs changed.

    What the plan counted of transactions is not compared: of prepared ones it changes once they are decided.
    """
    found = []
    for topic in plan.topics:
        for one in topic.partitions:
            at = TopicPartition(topic.topic, one.partition)
            read = counts.get(at, {}).get("read", 0)
            if read != one.tally.records:
                found.append(f"{at}: the plan has {one.tally.records} events, and {read} were read")
    return found


def came_since(plan: ReplayPlan, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Return how many offsets came behind the plan's ends, by partition; one that it does not have is new.

    ``ends`` are the last stable offsets now.
    """
    planned = {
        TopicPartition(topic.topic, one.partition): one.end
        for topic in plan.topics
        for one in topic.partitions
    }
    return {at: end - planned.get(at, 0) for at, end in sorted(ends.items()) if end > planned.get(at, 0)}


def _gap_offsets(plan: PartitionPlan) -> int:
    # Where nobody can tell how far a gap goes, it is one at least.
    return sum(max(1, 1 if gap.end is None else gap.end - gap.start) for gap in plan.gaps)


def _at_target(plan: PartitionPlan) -> int:
    """Return where replay had to start, also where the records from there on are gone."""
    return min([plan.start, *(gap.start for gap in plan.gaps)])


def _gaps_told(plan: PartitionPlan) -> str:
    return ", ".join(
        f"{gap.kind} from {gap.start}" + ("" if gap.end is None else f" to {gap.end}") for gap in plan.gaps
    )


def _unplayed(at: TopicPartition, plan: PartitionPlan) -> Reconciled:
    tally, gaps = plan.tally, _gap_offsets(plan)
    if gaps:
        verdict, detail = Verdict.MISSING, _gaps_told(plan)
    elif plan.is_estimated:
        verdict, detail = Verdict.ESTIMATED, "no fence knows the topic"
    else:
        detail = f"{tally.to_apply} of {tally.records} events to apply"
        if tally.lost_branch or tally.unknown:
            detail += f", {tally.lost_branch} lost by a failover, {tally.unknown} unknown"
        verdict = Verdict.REPLAYABLE
    return Reconciled(
        at,
        _at_target(plan),
        plan.end,
        None,
        None,
        tally.in_database,
        applied=0,
        duplicates=0,
        held=0,
        passed_over=0,
        gap_offsets=gaps,
        lost=0,
        verdict=verdict,
        detail=detail,
    )


def _replayed(
    at: TopicPartition, plan: PartitionPlan, replayed: Mapping[TopicPartition, Replayed]
) -> Reconciled:
    # A partition in which there was nothing to read may have no cursor.
    found = replayed.get(at) or Replayed(plan.start, {})
    known = ("read", "in database", "applied", "duplicate", "held")
    unread = max(0, plan.tally.records - found.count("read"))
    lost = unread + max(0, found.count("read") - found.accounted)
    gaps = _gap_offsets(plan)
    verdict, detail = _judge(plan, found, gaps, lost)
    return Reconciled(
        at,
        _at_target(plan),
        plan.end,
        plan.start,
        found.next_offset,
        found.count("in database"),
        applied=found.count("applied"),
        duplicates=found.count("duplicate"),
        held=found.count("held"),
        passed_over=sum(count for word, count in found.counts.items() if word not in known),
        gap_offsets=gaps,
        lost=lost,
        verdict=verdict,
        detail=detail,
    )


def _judge(plan: PartitionPlan, found: Replayed, gaps: int, lost: int) -> tuple[Verdict, str]:
    """Return the verdict; what is worse is said first."""
    read, tally = found.count("read"), plan.tally
    if found.next_offset < plan.end:
        return Verdict.INCOMPLETE, f"replayed to {found.next_offset} of {plan.end}"
    if lost:
        return Verdict.MISSING, f"{lost} of {tally.records} events have no fate"
    if read > tally.records or found.accounted > read:
        return Verdict.DIFFERS, f"{tally.records} events in the plan, {read} read, {found.accounted} judged"
    if found.count("in database") != tally.in_database:
        return Verdict.DIFFERS, (
            f"{tally.in_database} events were in the database by the plan,"
            f" {found.count('in database')} by the replay"
        )
    if gaps:
        return Verdict.MISSING, _gaps_told(plan)
    if plan.is_estimated:
        return Verdict.ESTIMATED, "no fence knows the topic"
    if held := found.count("held"):
        return Verdict.HELD, f"{held} events are in quarantine"
    return Verdict.RECONCILED, ""
