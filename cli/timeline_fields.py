"""The map of timelines for programs: the shape that docs/timeline.md promises; and one span in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pitr.recovery import instant_text

if TYPE_CHECKING:
    from datetime import datetime

    from pitr.restore_plan import RestorableMoment
    from pitr.timeline_map import Branch, TimelineMap
    from pitr.timeline_spans import TimelineSpan


def map_fields(made: TimelineMap, *, gaps_only: bool = False) -> dict[str, object]:
    """Return the map for JSON.  With ``gaps_only`` spans that can be restored are left out."""
    head = made.end.head
    return {
        "archive": str(made.way.archive),
        "timeline": str(made.way.timeline),
        "is_whole": made.is_whole,
        "first": _moment(made.first),
        "last": _moment(made.last),
        "times": [{"since": instant_text(one.since), "until": _time(one.until)} for one in made.times],
        "end": {
            "is_certain": made.end.is_certain,
            "detail": made.end.detail,
            "signed_at": None if head is None else instant_text(head.at),
            "signed_timeline": None if head is None else str(head.timeline),
            "signed_lsn": None if head is None or head.wal_end is None else str(head.wal_end),
        },
        "gaps": [span_fields(span) for span in made.gaps],
        "branches": [_branch(branch, gaps_only=gaps_only) for branch in made.branches],
    }


def shown_spans(spans: Iterable[TimelineSpan], *, gaps_only: bool) -> list[TimelineSpan]:
    """Return the spans that are to be shown."""
    return [span for span in spans if not (gaps_only and span.is_restorable)]


def _branch(branch: Branch, *, gaps_only: bool) -> dict[str, object]:
    parent = branch.parent
    return {
        "archive": str(branch.id.archive),
        "epoch": branch.id.archive.epoch,
        "timeline": str(branch.id.timeline),
        "is_on_way": branch.is_on_way,
        "left_at": None if branch.left_at is None else str(branch.left_at),
        "parent": None
        if parent is None
        else {
            "archive": str(parent.branch.archive),
            "timeline": str(parent.branch.timeline),
            "lsn": str(parent.lsn),
        },
        "spans": [span_fields(span) for span in shown_spans(branch.spans, gaps_only=gaps_only)],
    }


def span_fields(span: TimelineSpan) -> dict[str, object]:
    """Return a span for JSON."""
    segments = span.segments
    return {
        "archive": str(span.archive),
        "timeline": str(span.timeline),
        "start": str(span.start),
        "end": str(span.end),
        "is_restorable": span.is_restorable,
        "cause": None if span.cause is None else str(span.cause),
        "detail": span.detail,
        "aside": None if span.aside is None else str(span.aside),
        "regions": list(span.regions),
        "lacking": [{"region": one.region, "reason": str(one.lack)} for one in span.lacking],
        "segments": None
        if segments is None
        else {"first": str(segments.first), "last": str(segments.last), "count": segments.count},
        "first_at": _time(span.first_at),
        "last_at": _time(span.last_at),
    }


def gap_text(span: TimelineSpan) -> str:
    """Return where a gap is, and why, in words."""
    return f"{span.start} to {span.end} on timeline {span.timeline}{_between(span)}: {why_text(span)}"


def why_text(span: TimelineSpan) -> str:
    """Return why a span cannot be restored, or what is to be known of one that can; may be empty."""
    parts: list[str] = []
    if span.cause is not None:
        segments = span.segments
        named = ""
        if segments is not None:
            named = f" {segments.first}" + ("" if segments.count == 1 else f" to {segments.last}")
        parts.append(
            f"{str(span.cause).replace('-', ' ')}{named}" + (f": {span.detail}" if span.detail else "")
        )
    elif not span.regions and span.lacking:
        parts.append("no region suffices alone")
    for one in span.lacking:
        parts.append(f"{one.region}: {str(one.lack).replace('-', ' ')}")
    if span.aside is not None:
        parts.append(f"aside: {str(span.aside).replace('-', ' ')}, {how_to_name(span)}")
    return "; ".join(parts)


def how_to_name(span: TimelineSpan) -> str:
    """Return the options that lead to a span that is not on the way."""
    return f"--archive {span.archive} --timeline {span.timeline.number}"


def _between(span: TimelineSpan) -> str:
    if span.segments is None:
        return ""
    after = "" if span.first_at is None else f", after {instant_text(span.first_at)}"
    return after + ("" if span.last_at is None else f", before {instant_text(span.last_at)}")


def _moment(moment: RestorableMoment | None) -> dict[str, object] | None:
    return None if moment is None else {"lsn": str(moment.lsn), "at": _time(moment.at)}


def _time(at: datetime | None) -> str | None:
    return None if at is None else instant_text(at)
