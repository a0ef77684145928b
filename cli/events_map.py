"""``pitr events map``: the last fence before a moment of the database, and the offsets that it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import common_options, current
from cli.errors import UsageRefused
from cli.reading import choose_archive, open_source, source_of, source_options
from cli.target import read_target, target_options

if TYPE_CHECKING:
    from pitr.events.fence import Fence
    from pitr.events.fence_choice import Span
    from pitr.events.partition import TopicPartition
    from pitr.layout import ArchiveId
    from pitr.restore_plan import RestorePlan


@click.command()
@click.option("--at", "target", metavar="TARGET", help="A moment of the database, as for a restore.")
@click.option("--offset", "offset_text", metavar="TOPIC[PARTITION]:OFFSET", help="A record of Kafka instead.")
@target_options
@source_options
@common_options
def events_map(
    target: str | None,
    offset_text: str | None,
    exclusive: bool,
    timeline: str,
    backup_id: str | None,
    damaged: tuple[str, ...],
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Say which offsets of Kafka belong to a moment of the database, or the other way round.

    With --at: the last signed fence that is surely in a database restored to TARGET. Below "before" every
    event of a db-first topic is in that database; what is at "after" or above came after the fence.
    With --offset: the two fences that a record was appended between.
    Needs the reader's identity, for fences are sealed; asks neither Kafka nor PostgreSQL.
    """
    from cli.planning import make_plan
    from pitr.datakeys import DataKeys
    from pitr.errors import KeyMissing
    from pitr.events.fence_store import FenceReader

    app = current()
    if (target is None) == (offset_text is None):
        raise UsageRefused("give either --at or --offset", hint="pitr events map --at latest")
    source = source_of(source_urls, source_identity, source_region, source_archive)
    parsed = (
        None if target is None else read_target(app, target, is_inclusive=not exclusive, timeline=timeline)
    )
    record = None if offset_text is None else read_offset(offset_text)
    with open_source(app, source) as reader:
        if reader.identity is None:
            raise KeyMissing(
                "fences are sealed: only an identity opens them", hint="give it with --identity FILE"
            )
        keys = DataKeys(reader.repository, reader.identity.identity)
        fences = FenceReader(reader.repository)
        if record is not None:
            archive = choose_archive(reader.repository, source.archive)
            _show_around(*fences.around_offset(archive, *record, keys))
            return
        assert parsed is not None, "one of both was given"
        plan = make_plan(reader, source, parsed, app.output, backup_id=backup_id, without=damaged)
        found: Fence | None = None
        faults: list[str] = []
        for archive, spans in spans_by_archive(plan):
            found, bad = fences.last_before(archive, spans, keys)
            faults += bad
            if found is not None:
                break
    for fault in faults:
        app.output.warn(fault)
    if found is None:
        app.output.warn("no fence is in the history of that moment: replay can only be estimated by time")
    else:
        _show(found)
    app.output.finish({"fence": None if found is None else fence_json(found), "faults": faults})


def read_offset(text: str) -> tuple[TopicPartition, int]:
    """Read ``orders[0]:1234``.  Raises UsageRefused."""
    from pitr.errors import MalformedValue
    from pitr.events.partition import OFFSET_MAX, TopicPartition

    match = re.fullmatch(r"([^\[\]]+)\[([0-9]{1,10})\]:([0-9]{1,19})", text)
    try:
        if match is None or int(match[3]) > OFFSET_MAX:
            raise MalformedValue(f"not an offset: {text[:300]!r}")
        return TopicPartition(match[1], int(match[2])), int(match[3])
    except MalformedValue as wrong:
        raise UsageRefused(f"--offset: {wrong.message}", hint="such as --offset 'orders[0]:1234'") from wrong


def _show_around(before: Fence | None, after: Fence | None) -> None:
    output = current().output
    for word, fence in (("after", before), ("before", after)):
        if fence is None:
            output.line(f"{word.ljust(6)} no fence that is kept")
        else:
            output.line(f"{word.ljust(6)} {_place(fence)}")
    output.finish(
        {
            "after": None if before is None else fence_json(before),
            "before": None if after is None else fence_json(after),
        }
    )


def _place(fence: Fence) -> str:
    mark = fence.mark
    at = mark.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return (
        f"fence {mark.number}: timeline {mark.timeline}, committed from {mark.lsn} to {fence.committed_by},"
        f" at {at}"
    )


def spans_by_archive(plan: RestorePlan) -> list[tuple[ArchiveId, list[Span]]]:
    """Return the parts of a plan's history by writer epoch, the newest epoch first."""
    from pitr.events.fence_choice import Span

    end = plan.wal_end if plan.stop is None else plan.stop.replay_end
    found: list[tuple[ArchiveId, list[Span]]] = []
    for one in plan.spans:
        if one.start > end:
            continue
        span = Span(one.timeline, end if one.end is None or one.end > end else one.end)
        if found and found[-1][0] == one.archive:
            found[-1][1].append(span)
        else:
            found.append((one.archive, [span]))
    return found[::-1]


def fence_json(fence: Fence) -> dict[str, object]:
    """Return a fence for JSON, in the words of its signed text."""
    import json

    from pitr.events.fence_code import encode_fence

    fields: dict[str, object] = json.loads(encode_fence(fence))
    return fields


def _show(fence: Fence) -> None:
    output = current().output
    output.line(_place(fence))
    if fence.unknown is not None:
        output.warn(f"it knows nothing of Kafka: {fence.unknown}")
    output.table(
        ["topic", "partition", "begins", "before", "after"],
        [
            [topic.name, str(one.number), str(one.low), str(one.before), _or_unknown(one.after)]
            for topic in fence.topics
            for one in topic.partitions
        ],
        empty="",
    )
    output.table(
        ["group", "topic", "partition", "next offset"],
        [
            [group.group, topic, str(number), str(offset)]
            for group in fence.groups
            for topic, parts in group.offsets.items()
            for number, offset in parts.items()
        ],
        empty="",
    )


def _or_unknown(offset: int | None) -> str:
    return "?" if offset is None else str(offset)
