"""A plan of replay: the value, its JSON, and the hash that a run must name.  Pure.

Two plans are the same if their hashes are.  ``plan_code`` writes and reads its file.
Reference: docs/events.md, "The plan".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pitr.events.flows import EventFormat, Flow
from pitr.events.gaps import Gap
from pitr.events.history import Branch, OwnLine
from pitr.events.phantoms import PhantomList
from pitr.events.starts import StartReason
from pitr.pipeline.sign import encode_payload
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SCHEMA = "pitr.events.plan/1"


@dataclass(frozen=True, slots=True)
class RestoredPoint:
    """What was restored.  ``fork_xid`` None: no restored database was asked."""

    system_identifier: int
    timeline: TimelineId
    end: LSN
    fork_xid: int | None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many committed records there are; ``to_apply`` are not in the database."""

    records: int = 0
    in_database: int = 0
    to_apply: int = 0
    lost_branch: int = 0
    unknown: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.records + other.records,
            self.in_database + other.in_database,
            self.to_apply + other.to_apply,
            self.lost_branch + other.lost_branch,
            self.unknown + other.unknown,
        )


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """Where replay of one partition starts and ends, and why.

    ``out_from``: offsets from there on are surely not in the database (flows that are not db-first).
    ``fence``: the number of the fence that the start is from, None if from none.
    """

    partition: int
    start: int
    end: int
    reason: StartReason
    is_estimated: bool
    fence: int | None
    out_from: int | None
    tally: Tally
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic.  ``is_lossy``: it is compacted and holds last values only; replay is an upsert of state."""

    topic: str
    topic_id: str
    flow: Flow
    format: EventFormat
    is_lossy: bool
    partitions: tuple[PartitionPlan, ...]


@dataclass(frozen=True, slots=True)
class OffsetReset:
    """Where a group's next offset is to be moved; ``before`` is where it stands, None: nowhere."""

    topic: str
    partition: int
    before: int | None
    to: int


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A consumer group whose sink would otherwise go on behind what the restore lost."""

    group: str
    resets: tuple[OffsetReset, ...]


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """All of it; ``topics`` are in the order in which they are replayed.

    ``phantoms``: events that consumers saw, of transactions which are not in the database.  ``lost``: those
    of them that were committed by a primary which a failover left behind.
    """

    cluster_id: str
    restored: RestoredPoint
    branches: tuple[Branch, ...]
    later: tuple[Branch, ...]
    beside: tuple[Branch, ...]
    topics: tuple[TopicPlan, ...]
    groups: tuple[GroupPlan, ...]
    phantoms: PhantomList
    lost: PhantomList
    own: OwnLine | None = None
    """What clients had committed in the restored server itself by then; None for nothing."""

    @property
    def tally(self) -> Tally:
        """Return the sums over all partitions."""
        return sum((one.tally for topic in self.topics for one in topic.partitions), Tally())

    @property
    def hash(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(encode_payload(plan_fields(self))).hexdigest()


def plan_fields(plan: ReplayPlan) -> dict[str, object]:
    """Return the plan as JSON's values, without its hash."""
    restored = plan.restored
    return {
        "schema": SCHEMA,
        "cluster_id": plan.cluster_id,
        "restored": {
            # 64 bits: as a number, some readers of JSON would round it.
            "system_identifier": str(restored.system_identifier),
            "timeline": restored.timeline.number,
            "end_lsn": str(restored.end),
            "fork_xid": restored.fork_xid,
        },
        "branches": _branches(plan.branches),
        "later": _branches(plan.later),
        "beside": _branches(plan.beside),
        **_own(plan.own),
        "topics": [_topic(topic) for topic in plan.topics],
        "groups": [
            {
                "group": one.group,
                "resets": [
                    {"topic": at.topic, "partition": at.partition, "from": at.before, "to": at.to}
                    for at in one.resets
                ],
            }
            for one in plan.groups
        ],
        "phantoms": _phantoms(plan.phantoms),
        "lost": _phantoms(plan.lost),
    }


def _branches(branches: Sequence[Branch]) -> list[dict[str, object]]:
    return [
        {
            "timeline": one.timeline.number,
            "fork_lsn": str(one.fork_lsn),
            "fork_xid": one.fork_xid,
            "fork_xid_max": one.fork_xid_max,
        }
        for one in branches
    ]


def _own(line: OwnLine | None) -> dict[str, object]:
    if line is None:
        return {}
    fields = {
        "timeline": line.timeline.number,
        "until_lsn": str(line.until),
        "xids": [{"first": first, "last": last} for first, last in line.xids],
    }
    return {"own": fields}


def _topic(topic: TopicPlan) -> dict[str, object]:
    return {
        "topic": topic.topic,
        "topic_id": topic.topic_id,
        "flow": topic.flow.value,
        "format": topic.format.value,
        "is_lossy": topic.is_lossy,
        "partitions": [
            {
                "partition": one.partition,
                "start": one.start,
                "end": one.end,
                "reason": one.reason.value,
                "is_estimated": one.is_estimated,
                "fence": one.fence,
                "out_from": one.out_from,
                "records": one.tally.records,
                "in_database": one.tally.in_database,
                "to_apply": one.tally.to_apply,
                "lost_branch": one.tally.lost_branch,
                "unknown": one.tally.unknown,
                "gaps": [{"kind": gap.kind.value, "start": gap.start, "end": gap.end} for gap in one.gaps],
            }
            for one in topic.partitions
        ],
    }


def _phantoms(found: PhantomList) -> dict[str, object]:
    return {
        "count": found.count,
        "first": [
            {
                "topic": one.at.topic,
                "partition": one.at.partition,
                "offset": one.offset,
                "event_id": one.event_id,
                "type": one.type,
                "timeline": None if one.timeline is None else one.timeline.number,
                "xid": one.xid,
            }
            for one in found.first
        ],
    }
