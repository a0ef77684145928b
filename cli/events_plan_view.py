"""A plan of replay for people: tables, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cli.errors import UsageRefused
from cli.mirror_parts import mirror_fields
from cli.output import Output
from pitr.events.gaps import Gap, GapsFound
from pitr.events.mirror_plan import MirrorPlan
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomList
from pitr.events.plan import PartitionPlan, ReplayPlan, TopicPlan, plan_fields
from pitr.events.starts import StartReason
from pitr.recovery import instant_text

COLUMNS = (
    "topic",
    "partition",
    "start",
    "end",
    "from",
    "events",
    "in database",
    "to apply",
    "lost by failover",
    "unknown",
    "missing",
)
# More would be no message but a list; the table above is one.
_GAPS_TOLD_MAX = 5
_INEXACT_MAX = 20
_WORDS = {
    StartReason.CURSOR: "the sink's cursor",
    StartReason.GROUP: "the group's offset at fence {fence}",
    StartReason.FENCE: "fence {fence}",
    StartReason.FENCE_BEFORE_LAG: "fence {fence}, older than the lag",
    StartReason.FENCE_BEFORE_FAILOVER: "fence {fence}, before a failover",
    StartReason.NEW_PARTITION: "its beginning: newer than fence {fence}",
    StartReason.TIMESTAMP: "a time: ESTIMATED",
    StartReason.LOG_START: "its beginning: nothing is known",
}

Located = tuple[TopicPartition, Gap]


def plan_json(plan: ReplayPlan, mirror: MirrorPlan | None = None) -> dict[str, object]:
    """Return the plan for JSON, with its hash, and how exact one over a mirror is."""
    found: dict[str, object] = {"plan": {**plan_fields(plan), "hash": plan.hash}}
    return found if mirror is None else {**found, "mirror": mirror_fields(mirror)}


def unaccepted(plan: ReplayPlan, accepted: Sequence[str]) -> list[Located]:
    """Return the gaps that nobody accepted.  Raises UsageRefused for an accepted one that is none."""
    gaps = [
        (TopicPartition(topic.topic, one.partition), gap)
        for topic in plan.topics
        for one in topic.partitions
        for gap in one.gaps
    ]
    there = {str(at) for at, _ in gaps}
    needless = sorted(set(accepted) - there)
    if needless:
        raise UsageRefused(
            f"--accept-gap {needless[0]}: there is no gap",
            hint="write TOPIC[N]; gaps are: " + (", ".join(sorted(there)) or "none"),
        )
    return [(at, gap) for at, gap in gaps if str(at) not in accepted]


def refuse_gaps(missing: Sequence[Located]) -> None:
    """Raise GapsFound if anything is missing."""
    if not missing:
        return
    names = list(dict.fromkeys(str(at) for at, _ in missing))
    more = f"\nand {len(missing) - _GAPS_TOLD_MAX} more" if len(missing) > _GAPS_TOLD_MAX else ""
    raise GapsFound(
        f"events that a replay needs are missing in {len(names)} partition{'' if len(names) == 1 else 's'}",
        detail="\n".join(gap.told(at) for at, gap in missing[:_GAPS_TOLD_MAX]) + more,
        hint="read the mirror with --mirror; or go on without them: "
        + " ".join(f"--accept-gap '{name}'" for name in names[:_GAPS_TOLD_MAX]),
    )


def reason_text(one: PartitionPlan) -> str:
    """Say where a start comes from."""
    return _WORDS[one.reason].format(fence=one.fence)


def partition_row(topic: TopicPlan, one: PartitionPlan) -> list[str]:
    """Return a partition's row of the table."""
    tally = one.tally
    counts = (tally.records, tally.in_database, tally.to_apply, tally.lost_branch, tally.unknown)
    gaps = ", ".join(gap.kind.value for gap in one.gaps)
    return [
        topic.topic,
        str(one.partition),
        str(one.start),
        str(one.end),
        reason_text(one),
        *map(str, counts),
        gaps or "-",
    ]


def mirror_lines(found: MirrorPlan) -> list[str]:
    """Say how exact a plan over a mirror is, and what was lost with the source."""
    inexact = [one for one in found.partitions if not one.translation.is_exact]
    exact = len(found.partitions) - len(inexact)
    lost = sum(one.unmirrored_max for one in found.tail)
    until = "nothing says when" if found.until is None else instant_text(found.until)
    return [
        f"over the mirror: {exact} of {len(found.partitions)} partitions of the fence translated exactly",
        *(f"{one.at}: {one.translation.basis}, {one.stopped or 'safe'}" for one in inexact[:_INEXACT_MAX]),
        f"mirrored until: {until}; up to {lost} offsets before the newest fence are lost with the source",
    ]


def summary(plan: ReplayPlan, mirror: MirrorPlan | None = None) -> list[str]:
    """Return what a plan comes to, in sentences."""
    restored, tally = plan.restored, plan.tally
    asked = "no server was asked" if restored.fork_xid is None else f"below transaction {restored.fork_xid}"
    counts = (
        f"{tally.in_database} in the database, {tally.to_apply} to apply,"
        f" {tally.lost_branch} lost by a failover, {tally.unknown} unknown"
    )
    lines = [
        f"restored: timeline {restored.timeline} up to {restored.end}, {asked}",
        f"{tally.records} events to read: {counts}",
        f"{plan.phantoms.count} were published by transactions that are not in the database",
    ]
    if plan.own is not None:
        lines.append(
            f"clients have committed {plan.own.count} transactions in the server since its promotion"
        )
    grown = [
        topic.topic
        for topic in plan.topics
        if any(one.reason is StartReason.NEW_PARTITION for one in topic.partitions)
    ]
    if grown:
        lines.append(
            f"partitions were added since the fence, so keys may have moved between them: {', '.join(grown)}"
        )
    lossy = [topic.topic for topic in plan.topics if topic.is_lossy]
    if lossy:
        lines.append(f"LOSSY, last values only, for they are compacted: {', '.join(lossy)}")
    if mirror is not None:
        lines += mirror_lines(mirror)
    return [*lines, f"hash {plan.hash}"]


def phantom_rows(found: PhantomList) -> Iterable[list[str]]:
    """Return the rows of the events that are listed."""
    for one in found.first:
        words = (one.event_id, one.type, one.timeline, one.xid)
        yield [str(one.at), str(one.offset), *("-" if word is None else str(word) for word in words)]


def show_plan(output: Output, plan: ReplayPlan, mirror: MirrorPlan | None = None) -> None:
    """Write the plan for people; nothing with ``--json``."""
    if output.is_json:
        return
    rows = [partition_row(topic, one) for topic in plan.topics for one in topic.partitions]
    output.table(COLUMNS, rows, empty="no topic is declared")
    resets = [
        [one.group, str(TopicPartition(at.topic, at.partition)), _or_dash(at.before), str(at.to)]
        for one in plan.groups
        for at in one.resets
    ]
    if resets:
        output.line()
        output.table(["group to reset", "partition", "stands at", "to"], resets, empty="")
    if plan.lost.first:
        output.line()
        output.table(PHANTOM_COLUMNS, phantom_rows(plan.lost), empty="")
    output.line()
    for line in summary(plan, mirror):
        output.line(line)


PHANTOM_COLUMNS = ("partition", "offset", "event", "type", "timeline", "transaction")


def _or_dash(offset: int | None) -> str:
    return "-" if offset is None else str(offset)
