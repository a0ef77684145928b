"""The file of a plan of replay: written in one way, and read as strictly as a stranger's file.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pitr.catalogue.fields import Fields
from pitr.errors import MalformedValue
from pitr.events.flows import EventFormat, Flow
from pitr.events.gaps import Gap, GapKind
from pitr.events.history import Branch, OwnLine
from pitr.events.partition import OFFSET_MAX, TopicPartition, check_topic
from pitr.events.phantoms import LISTED_MAX, Phantom, PhantomList
from pitr.events.plan import (
    SCHEMA,
    GroupPlan,
    OffsetReset,
    PartitionPlan,
    ReplayPlan,
    RestoredPoint,
    Tally,
    TopicPlan,
    plan_fields,
)
from pitr.events.starts import StartReason
from pitr.pipeline.sign import decode_payload, encode_payload
from pitr.wal.timeline import TimelineId

PLAN_BYTES_MAX = 64 << 20
_KIND = "plan"
_TOPICS_MAX = 10_000
_PARTITIONS_MAX = 100_000
_GAPS_MAX = 10
_TIMELINES_MAX = 10_000
# More than 64 MiB of WAL can hold.
_RANGES_MAX = 2_000_000
_XID_MAX = (1 << 63) - 1


def encode_plan(plan: ReplayPlan) -> bytes:
    """Return the plan's file: one line of canonical JSON, with its hash."""
    return encode_payload({**plan_fields(plan), "hash": plan.hash}) + b"\n"


def decode_plan(content: bytes) -> ReplayPlan:
    """Read a plan's file.  Raises MalformedValue for one that is damaged, altered or of another version."""
    if len(content) > PLAN_BYTES_MAX:
        raise MalformedValue(f"a plan has at most {PLAN_BYTES_MAX} bytes")
    payload = decode_payload(content.removesuffix(b"\n"))
    if payload.get("schema") != SCHEMA:
        raise MalformedValue(
            f"not a plan of replay that this version reads: {str(payload.get('schema'))[:80]}"
        )
    fields = Fields(payload, _KIND, checked=True)
    plan = _plan(fields)
    if plan_fields(plan) != {name: value for name, value in payload.items() if name != "hash"}:
        raise MalformedValue("the plan holds what no plan does")
    if fields.text("hash") != plan.hash:
        raise MalformedValue("the plan is not the one that its hash names", hint="make it anew")
    return plan


def _plan(fields: Fields) -> ReplayPlan:
    restored = fields.inner("restored")
    system = restored.text("system_identifier")
    if not system.isascii() or not system.isdecimal() or len(system) > 20:
        raise MalformedValue("plan: not a system identifier")
    return ReplayPlan(
        fields.text("cluster_id"),
        RestoredPoint(
            int(system),
            _timeline(restored),
            restored.lsn("end_lsn"),
            restored.optional("fork_xid", lambda name: restored.integer(name, most=_XID_MAX)),
        ),
        tuple(_branches(fields, "branches")),
        tuple(_branches(fields, "later")),
        tuple(_branches(fields, "beside")),
        tuple(_topic(one) for one in fields.objects("topics", count_max=_TOPICS_MAX)),
        tuple(_group(one) for one in fields.objects("groups", count_max=_TOPICS_MAX)),
        _phantoms(fields.inner("phantoms")),
        _phantoms(fields.inner("lost")),
        _own(fields.inner("own")) if fields.holds("own") else None,
    )


def _timeline(fields: Fields, name: str = "timeline") -> TimelineId:
    return TimelineId(fields.integer(name, least=1, most=(1 << 32) - 1))


def _whole(fields: Fields, name: str) -> int | None:
    return fields.optional(name, lambda one: fields.integer(one, most=OFFSET_MAX))


def _branches(fields: Fields, name: str) -> Iterator[Branch]:
    for one in fields.objects(name, count_max=_TIMELINES_MAX):
        yield Branch(
            _timeline(one), one.lsn("fork_lsn"), _whole(one, "fork_xid"), _whole(one, "fork_xid_max")
        )


def _own(fields: Fields) -> OwnLine:
    xids = tuple(
        (one.integer("first", most=_XID_MAX), one.integer("last", most=_XID_MAX))
        for one in fields.objects("xids", count_max=_RANGES_MAX)
    )
    flat = [xid for one in xids for xid in one]
    is_ordered = flat == sorted(flat) and all(last < first for (_, last), (first, _) in pairwise(xids))
    if not xids or not is_ordered:
        raise MalformedValue("plan: no transactions in order")
    return OwnLine(_timeline(fields), fields.lsn("until_lsn"), xids)


def _topic(fields: Fields) -> TopicPlan:
    return TopicPlan(
        check_topic(fields.text("topic")),
        fields.text("topic_id"),
        Flow(fields.choice("flow", tuple(Flow))),
        EventFormat(fields.choice("format", tuple(EventFormat))),
        fields.boolean("is_lossy"),
        tuple(_partition(one) for one in fields.objects("partitions", count_max=_PARTITIONS_MAX)),
    )


def _partition(fields: Fields) -> PartitionPlan:
    start, end = fields.integer("start"), fields.integer("end")
    if end < start:
        raise MalformedValue("plan: a partition ends before it starts")
    counts = ("records", "in_database", "to_apply", "lost_branch", "unknown")
    return PartitionPlan(
        fields.integer("partition", most=(1 << 31) - 1),
        start,
        end,
        StartReason(fields.choice("reason", tuple(StartReason))),
        fields.boolean("is_estimated"),
        _whole(fields, "fence"),
        _whole(fields, "out_from"),
        Tally(*(fields.integer(name) for name in counts)),
        tuple(
            Gap(GapKind(one.choice("kind", tuple(GapKind))), one.integer("start"), _whole(one, "end"))
            for one in fields.objects("gaps", count_max=_GAPS_MAX)
        ),
    )


def _group(fields: Fields) -> GroupPlan:
    resets = tuple(
        OffsetReset(
            check_topic(one.text("topic")),
            one.integer("partition", most=(1 << 31) - 1),
            _whole(one, "from"),
            one.integer("to"),
        )
        for one in fields.objects("resets", count_max=_PARTITIONS_MAX)
    )
    return GroupPlan(fields.text("group"), resets)


def _phantoms(fields: Fields) -> PhantomList:
    first = tuple(
        Phantom(
            TopicPartition(one.text("topic"), one.integer("partition", most=(1 << 31) - 1)),
            one.integer("offset"),
            one.optional("event_id", one.text),
            one.optional("type", one.text),
            None if one.is_null("timeline") else _timeline(one),
            _whole(one, "xid"),
        )
        for one in fields.objects("first", count_max=LISTED_MAX)
    )
    return PhantomList(fields.integer("count", least=len(first)), first)
