"""A fence as text, and back.  Pure.

The text is canonical JSON, so that one fence has one text: what a row of a database says can be compared with
what was signed.  A row is hostile, whoever may write the table may have written it, so reading is strict and
bounded.  Reference: docs/format.md §6.9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from pitr.catalogue.fields import Fields
from pitr.errors import MalformedValue
from pitr.events.fence import Fence, GroupFence, Identity, Mark, PartitionFence, TopicFence
from pitr.events.partition import OFFSET_MAX, check_topic
from pitr.pipeline.sign import decode_payload, encode_payload, encode_time

_KeyT = TypeVar("_KeyT", int, str)
KIND = "fence"
TEXT_BYTES_MAX = 8 << 20
TOPICS_MAX = 10_000
GROUPS_MAX = 1_000
PARTITIONS_MAX = 100_000
_NAME_CHARS_MAX = 255
REASON_CHARS_MAX = 500
_XID_MAX = (1 << 63) - 1


def encode_fence(fence: Fence) -> str:
    """Return the one text of a fence.  Raises MalformedValue for one that is too large."""
    text = encode_payload(_payload(fence))
    if len(text) > TEXT_BYTES_MAX:
        raise MalformedValue(f"a fence has {len(text)} bytes; the limit is {TEXT_BYTES_MAX}")
    return text.decode("ascii")


def encode_row(fence: Fence) -> str:
    """Return what the database's row says of a fence: what was known before its mark was committed."""
    return encode_fence(before_mark(fence))


def before_mark(fence: Fence) -> Fence:
    """Return a fence without what is known only after its mark."""
    topics = tuple(
        replace(
            topic,
            partitions=tuple(
                replace(one, after=None, last=None, last_offset=None) for one in topic.partitions
            ),
        )
        for topic in fence.topics
    )
    return replace(fence, committed_by=None, topics=topics)


def decode_fence(text: str) -> Fence:
    """Read a fence's text; only the one that ``encode_fence`` gives is accepted.  Raises MalformedValue."""
    if len(text) > TEXT_BYTES_MAX:
        raise MalformedValue(f"a fence has at most {TEXT_BYTES_MAX} bytes")
    try:
        content = text.encode("ascii")
    except UnicodeEncodeError as cause:
        raise MalformedValue("a fence's text is ASCII") from cause
    return _fence(Fields(decode_payload(content), KIND))


def _payload(fence: Fence) -> Mapping[str, object]:
    mark = fence.mark
    return {
        "kind": KIND,
        "number": mark.number,
        "system_identifier": str(mark.system_identifier),
        "timeline": str(mark.timeline),
        "lsn": str(mark.lsn),
        "committed_by": None if fence.committed_by is None else str(fence.committed_by),
        "xid": mark.xid,
        "oldest_xid": mark.oldest_xid,
        "next_xid": mark.next_xid,
        "at": encode_time(mark.at),
        "collector_at": encode_time(fence.collector_at),
        "broker_at": None if fence.broker_at is None else encode_time(fence.broker_at),
        "cluster_id": fence.cluster_id,
        "topics": [
            {
                "name": one.name,
                "id": one.topic_id,
                "partitions": [_partition(part) for part in one.partitions],
            }
            for one in fence.topics
        ],
        "groups": [
            {
                "group": one.group,
                "offsets": {
                    topic: [[number, at] for number, at in sorted(parts.items())]
                    for topic, parts in one.offsets.items()
                },
            }
            for one in fence.groups
        ],
        "unknown": fence.unknown,
    }


def _partition(one: PartitionFence) -> list[object]:
    last: list[object] | None = None
    if one.last is not None and one.last_offset is not None:
        last = [one.last_offset, one.last.timestamp_ms, one.last.sha256.hex()]
    return [one.number, one.low, one.before, one.after, last]


def _fence(fields: Fields) -> Fence:
    mark = Mark(
        number=fields.integer("number", least=1),
        system_identifier=_system_identifier(fields),
        timeline=fields.timeline("timeline"),
        lsn=fields.lsn("lsn"),
        xid=fields.integer("xid", most=_XID_MAX),
        oldest_xid=fields.integer("oldest_xid", most=_XID_MAX),
        next_xid=fields.integer("next_xid", most=_XID_MAX),
        at=fields.time("at"),
    )
    unknown = fields.optional("unknown", fields.text)
    if unknown is not None and len(unknown) > REASON_CHARS_MAX:
        raise MalformedValue("fence: the reason is too long")
    topics = _topics(fields)
    groups = _groups(fields)
    if unknown is not None and (topics or groups):
        raise MalformedValue("fence: one that knows nothing of Kafka has neither topics nor groups")
    return Fence(
        mark,
        collector_at=fields.time("collector_at"),
        broker_at=_time(fields, "broker_at"),
        cluster_id=fields.optional("cluster_id", lambda name: _name(fields.text(name))),
        topics=topics,
        groups=groups,
        unknown=unknown,
        committed_by=fields.optional("committed_by", fields.lsn),
    )


def _system_identifier(fields: Fields) -> int:
    text = fields.text("system_identifier")
    if not text.isascii() or not text.isdecimal() or not 0 < len(text) <= 20 or str(int(text)) != text:
        raise MalformedValue(f"fence: not a system identifier: {text[:40]!r}")
    return int(text)


def _time(fields: Fields, name: str) -> datetime | None:
    return fields.optional(name, fields.time)


def _name(text: str) -> str:
    if not 0 < len(text) <= _NAME_CHARS_MAX or not text.isprintable():
        raise MalformedValue(f"fence: not a name: {text[:40]!r}")
    return text


def _topics(fields: Fields) -> tuple[TopicFence, ...]:
    topics: list[TopicFence] = []
    room = PARTITIONS_MAX
    for one in fields.objects("topics", count_max=TOPICS_MAX):
        parts = tuple(_read_partition(item) for item in one.items("partitions", count_max=room))
        room -= len(parts)
        _check_ascending([part.number for part in parts])
        topics.append(TopicFence(check_topic(one.text("name")), _name(one.text("id")), parts))
    _check_ascending([topic.name for topic in topics])
    return tuple(topics)


def _read_partition(item: object) -> PartitionFence:
    if not isinstance(item, list) or len(item) != 5:
        raise MalformedValue("fence: a partition is a list of five")
    number, low, before, after, last = item
    part = PartitionFence(
        _whole(number, most=(1 << 31) - 1),
        _whole(low),
        _whole(before),
        None if after is None else _whole(after),
    )
    if part.low > part.before:
        raise MalformedValue("fence: a partition's log begins after its end")
    if last is None:
        return part
    if not isinstance(last, list) or len(last) != 3 or not isinstance(last[2], str):
        raise MalformedValue("fence: a last record is a list of offset, timestamp and digest")
    offset, timestamp, digest = last
    if type(timestamp) is not int or not -1 <= timestamp <= OFFSET_MAX or not _is_digest(digest):
        raise MalformedValue("fence: not the identity of a record")
    return replace(part, last=Identity(timestamp, bytes.fromhex(digest)), last_offset=_whole(offset))


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(one in "0123456789abcdef" for one in text)


def _groups(fields: Fields) -> tuple[GroupFence, ...]:
    groups: list[GroupFence] = []
    room = PARTITIONS_MAX
    for one in fields.objects("groups", count_max=GROUPS_MAX):
        offsets: dict[str, dict[int, int]] = {}
        for topic, pairs in one.mapping("offsets").items():
            if not isinstance(pairs, list) or len(pairs) > room:
                raise MalformedValue("fence: offsets of a group are a list, and not so many")
            room -= len(pairs)
            offsets[check_topic(topic)] = _read_offsets(pairs)
        groups.append(GroupFence(_name(one.text("group")), offsets))
    _check_ascending([group.group for group in groups])
    return tuple(groups)


def _read_offsets(pairs: list[object]) -> dict[int, int]:
    found: dict[int, int] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise MalformedValue("fence: an offset of a group is a list of partition and offset")
        found[_whole(pair[0], most=(1 << 31) - 1)] = _whole(pair[1])
    if [[number, at] for number, at in sorted(found.items())] != pairs:
        raise MalformedValue("fence: offsets of a group are in the order of partitions, none twice")
    return found


def _whole(value: object, *, most: int = OFFSET_MAX) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise MalformedValue(f"fence: not a number from 0 to {most}")
    return value


def _check_ascending(keys: Sequence[_KeyT]) -> None:
    if list(keys) != sorted(set(keys)):
        raise MalformedValue("fence: topics, partitions and groups are in order, none twice")
