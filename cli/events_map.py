"""``pitr events map``: the last fence before a moment of the database, and the offsets that it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import common_options, current
from cli.reading import open_source, source_of, source_options
from cli.target import read_target, target_options

if TYPE_CHECKING:
    from pitr.events.fence import Fence
    from pitr.events.fence_choice import Span
    from pitr.layout import ArchiveId
    from pitr.restore_plan import RestorePlan


@click.command()
@click.option(
    "--at", "target", required=True, metavar="TARGET", help="A moment of the database, as for a restore."
)
@target_options
@source_options
@common_options
def events_map(
    target: str,
    exclusive: bool,
    timeline: str,
    backup_id: str | None,
    damaged: tuple[str, ...],
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Say which offsets of Kafka belong to a moment of the database.

    Finds the last signed fence that is surely in a database restored to TARGET. Below "before" every event of
    a db-first topic is in that database; from "after" on none is in it as it was at the fence. Needs the
    reader's identity, for fences are sealed; asks neither Kafka nor PostgreSQL.
    """
    from cli.planning import make_plan
    from pitr.datakeys import DataKeys
    from pitr.errors import KeyMissing
    from pitr.events.fence_store import FenceReader

    app = current()
    parsed = read_target(app, target, is_inclusive=not exclusive, timeline=timeline)
    source = source_of(source_urls, source_identity, source_region, source_archive)
    with open_source(app, source) as reader:
        if reader.identity is None:
            raise KeyMissing(
                "fences are sealed: only an identity opens them", hint="give it with --identity FILE"
            )
        plan = make_plan(reader, source, parsed, app.output, backup_id=backup_id, without=damaged)
        keys = DataKeys(reader.repository, reader.identity.identity)
        fences = FenceReader(reader.repository)
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
        app.output.finish({"fence": None, "faults": faults})
        return
    _show(found)
    app.output.finish({"fence": fence_json(found), "faults": faults})


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
    output, mark = current().output, fence.mark
    output.line(
        f"fence {mark.number}: timeline {mark.timeline}, committed from {mark.lsn} to {fence.committed_by},"
        f" at {mark.at.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}"
    )
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
