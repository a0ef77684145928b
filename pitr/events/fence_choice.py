"""Which fence counts: the last one whose mark is in a history; and whether a database's row says the same.

Pure.  A fence is in a history if its mark was surely committed before the history's end.  Timelines are
compared one by one: after a failover positions of the old one beyond the fork are those of commits that are
lost, and its numbers are used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pitr.errors import MalformedValue
from pitr.events.fence import Fence
from pitr.events.fence_code import decode_fence, encode_row
from pitr.events.fence_record import FencePlace
from pitr.events.history import Branch
from pitr.events.partition import TopicPartition
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a timeline that belongs to a history: up to ``end``, a fork or where recovery stopped."""

    timeline: TimelineId
    end: LSN


def spans_of(branches: Sequence[Branch], end: LSN) -> tuple[Span, ...]:
    """Return the spans of a history from its timelines, the first one first, and where it ends."""
    ends = [branch.fork_lsn for branch in branches[1:]] + [end]
    return tuple(Span(branch.timeline, at) for branch, at in zip(branches, ends, strict=True))


def is_before_end_of(span: Span, place: FencePlace) -> bool:
    """Tell whether a fence of this span's timeline was surely committed before the span's end."""
    return place.timeline == span.timeline and place.committed_by <= span.end


def last_in(fences: Iterable[Fence], spans: Sequence[Span]) -> Fence | None:
    """Return the last of these fences that is surely in a history; None if none is."""
    ends = {span.timeline: span.end for span in spans}
    found: Fence | None = None
    for fence in fences:
        end = ends.get(fence.mark.timeline)
        if end is None or fence.committed_by is None or fence.committed_by > end:
            continue
        if found is None or _order(fence) > _order(found):
            found = fence
    return found


def _order(fence: Fence) -> tuple[int, LSN]:
    return fence.mark.timeline.number, fence.mark.lsn


def topic_of(fence: Fence, name: str) -> str | None:
    """Return the id that a topic had; None if the fence does not know it."""
    return next((topic.topic_id for topic in fence.topics if topic.name == name), None)


def end_before(fence: Fence, at: TopicPartition) -> int | None:
    """Return a partition's end before the mark; None if the fence does not know it."""
    for topic in fence.topics:
        if topic.name == at.topic:
            return next((one.before for one in topic.partitions if one.number == at.partition), None)
    return None


class RowState(StrEnum):
    """What a row of ``pitr.fence`` is worth."""

    SIGNED = "signed"
    """A signed copy says the same."""
    UNSIGNED = "unsigned"
    """There is no signed copy of it: the host was lost before it was sent, or the row was invented."""
    TAMPERED = "tampered"
    """The signed copy says otherwise: somebody changed the row.  The copy counts."""
    UNREADABLE = "unreadable"
    """It is no fence at all."""
    GONE = "gone"
    """There is a signed copy of a fence of this history, and no row: somebody deleted it."""


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A row and what is thought of it.  ``fence`` is the one to use: the signed one wherever there is one."""

    number: int
    state: RowState
    fence: Fence | None
    detail: str | None = None


def judge_row(number: int, payload: str | None, signed: Mapping[int, Fence]) -> JudgedRow:
    """Compare a row with the signed fences of the same history, by number."""
    copy = signed.get(number)
    try:
        row = decode_fence(payload or "")
        if row.mark.number != number:
            raise MalformedValue(f"row {number} holds fence {row.mark.number}")
    except MalformedValue as cause:
        if copy is not None:
            return JudgedRow(number, RowState.TAMPERED, copy, f"the row is no fence: {cause.message}")
        return JudgedRow(number, RowState.UNREADABLE, None, cause.message)
    if copy is None:
        return JudgedRow(number, RowState.UNSIGNED, row)
    if payload != encode_row(copy):
        return JudgedRow(number, RowState.TAMPERED, copy, _difference(row, copy))
    return JudgedRow(number, RowState.SIGNED, copy)


def judge_last(row: tuple[int, str | None] | None, signed: Fence | None) -> JudgedRow | None:
    """Judge the newest row of a restored database by the newest signed fence of its history.

    None if there is neither: no fence was ever taken in it.
    """
    if signed is None:
        return None if row is None else judge_row(*row, {})
    number = signed.mark.number
    if row is None or row[0] < number:
        newest = "there is none" if row is None else f"the newest one is {row[0]}"
        return JudgedRow(number, RowState.GONE, signed, f"row {number} of pitr.fence is gone: {newest}")
    return judge_row(*row, {number: signed})


def missing_rows(rows: Iterable[int], signed: Iterable[Fence], spans: Sequence[Span]) -> tuple[int, ...]:
    """Return numbers of signed fences of a history that have no row, from the oldest row looked at on."""
    there = set(rows)
    if not there:
        return tuple(sorted(f.mark.number for f in signed if last_in([f], spans) is not None))
    oldest = min(there)
    return tuple(
        sorted(
            fence.mark.number
            for fence in signed
            if fence.mark.number >= oldest
            and fence.mark.number not in there
            and last_in([fence], spans) is not None
        )
    )


def _difference(row: Fence, copy: Fence) -> str:
    """Name what a row says otherwise, for people."""
    parts = [
        name
        for name in ("mark", "collector_at", "broker_at", "cluster_id", "groups", "unknown")
        if getattr(row, name) != getattr(copy, name)
    ]
    known = {topic.name: topic for topic in copy.topics}
    for topic in row.topics:
        other = known.get(topic.name)
        mine = [(one.number, one.low, one.before) for one in topic.partitions]
        theirs = [] if other is None else [(one.number, one.low, one.before) for one in other.partitions]
        if other is None or other.topic_id != topic.topic_id or mine != theirs:
            parts.append(f"topic {topic.name}")
    if {topic.name for topic in row.topics} != set(known):
        parts.append("which topics")
    return "the row differs from the signed copy in " + (", ".join(parts[:10]) or "what is known later only")
