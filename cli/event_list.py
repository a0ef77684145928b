"""``pitr log``: the signed events of an archive, which say what changed its promises."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import common_options, current
from cli.reading import choose_archive, open_source, source_of, source_options

if TYPE_CHECKING:
    from pitr.event_reader import ListedEvent


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="The newest ones."
)
@source_options
@common_options
def log(
    limit: int,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Show the signed events: what changed the archive's promises.

    When acknowledged commits were worth less, and which WAL was lost or left behind. The host signs each one,
    and each names the one before. Exit code 7 if one is missing or damaged.
    """
    from cli.copy_faults import telling_faults
    from cli.errors import ChecksFailed
    from pitr.event_reader import EventReader
    from pitr.recovery import instant_text

    app = current()
    source = source_of(source_urls, source_identity, source_region, source_archive)
    fields: dict[str, object] = {}
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        archive = choose_archive(reader.repository, source.archive)
        page = EventReader(reader.repository).page(archive, limit=limit)
    app.output.table(
        ["number", "at", "event", "what"],
        [
            [
                str(one.record.sequence),
                instant_text(one.record.happening.at),
                one.record.happening.event,
                one.record.happening.message,
            ]
            for one in page.events
        ],
        empty="nothing has changed what this archive promises",
    )
    fields |= {
        "archive": str(archive),
        "events": [_fields(one) for one in page.events],
        "faults": list(page.faults),
    }
    for fault in page.faults:
        app.output.warn(fault)
    if page.faults:
        app.partial_result = fields
        raise ChecksFailed(
            "the signed events are not whole",
            detail=page.faults[0],
            hint="look at each region alone with --region; another one may have what is missing",
        )
    app.output.finish(fields)


def _fields(event: ListedEvent) -> dict[str, object]:
    record = event.record
    return {
        "sequence": record.sequence,
        "at": record.to_payload()["at"],
        "event": record.happening.event,
        "message": record.happening.message,
        "facts": dict(record.happening.facts),
        "payload_sha256": event.payload_sha256.hex(),
    }
