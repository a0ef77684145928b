"""``pitr wal``: archived WAL listed; and the help of ``wal fetch``, which runs in ``cli.wal_fetch``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import common_options, current
from cli.reading import choose_archive, open_source, source_of, source_options
from cli.wal_gate import gate

if TYPE_CHECKING:
    from pitr.catalogue.records import HeadRecord
    from pitr.catalogue.wal_records import CoverageInterval
    from pitr.orphans import OrphanedEnd


@click.group()
def wal() -> None:
    """List archived WAL, fetch it for PostgreSQL, or set up archive_command."""


wal.add_command(gate)


@wal.command("fetch")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path), required=True, help="The restore's WAL plan."
)
@click.option(
    "--standby", is_flag=True, help="For a standby: doubt is 'not now', and nothing padded is served."
)
@click.option("--json", "is_json", is_flag=True, help="One JSON object as result.")
def fetch(name: str, destination: Path, plan_file: Path, standby: bool, is_json: bool) -> int:
    """Hand PostgreSQL the file NAME as DESTINATION: its restore_command.

    Exit codes are PostgreSQL's, not those of the other commands: 0 the file is there; 1 the name is outside
    the plan's signed WAL path; 200 anything doubtful, which stops recovery. The restore_command that pitr
    restore writes takes what the restore has fetched, and runs this where no restore waits beside the server.
    """
    from cli.wal_fetch import run

    # Reached only with options before the words "wal fetch"; main() takes the usual call by itself.
    flags = [*(["--standby"] if standby else []), *(["--json"] if is_json else [])]
    return run([name, str(destination), "--plan", str(plan_file), *flags])


@wal.command("list")
@click.option("--gaps-only", is_flag=True, help="Show what is missing only.")
@source_options
@common_options
def list_wal(
    gaps_only: bool,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """List the stretches of WAL that are stored without a hole, and the holes between them.

    What is listed as orphaned is the end of a timeline that the newest one left behind, after a failover to a
    standby that had less; restore --timeline reaches it.
    """
    from cli.copy_faults import telling_faults
    from cli.planning import read_regions
    from pitr.catalogue.sqlite import Catalogue
    from pitr.orphans import orphaned_ends
    from pitr.recovery import instant_text

    app = current()
    source = source_of(source_urls, source_identity, source_region, source_archive)
    fields: dict[str, object] = {}
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        archive = choose_archive(reader.repository, source.archive)
        catalogue = Catalogue(":memory:")
        read_regions(reader, catalogue, app.output)
        intervals = catalogue.coverage(archive)
        head = catalogue.head(archive)
        histories = catalogue.histories(archive)
        catalogue.close()
    orphans = () if head is None else orphaned_ends(head.head.timeline, histories, intervals)
    stretches = _stretches(intervals) + [_orphan_fields(one) for one in orphans]
    if gaps_only:
        stretches = [one for one in stretches if one["kind"] == "gap"]
    app.output.table(
        ["what", "timeline", "start", "end", "first commit", "last commit"],
        [
            [str(one.get(name) or "-") for name in ("kind", "timeline", "start", "end", "min_at", "max_at")]
            for one in stretches
        ],
        empty="there is no gap" if gaps_only else "there is no WAL yet",
    )
    end = None if head is None else head.head
    if end is not None and not gaps_only:
        app.output.line(f"signed end: {end.wal_end} on timeline {end.timeline} at {instant_text(end.at)}")
    app.output.finish(
        {
            **fields,
            "archive": str(archive),
            "stretches": stretches,
            "head": None if end is None else _head_fields(end),
        }
    )


def _stretches(intervals: Sequence[CoverageInterval]) -> list[dict[str, object]]:
    """Return the intervals and the gaps between those of one timeline, for JSON."""
    from pitr.recovery import instant_text

    stretches: list[dict[str, object]] = []
    previous: CoverageInterval | None = None
    for interval in intervals:
        place = {"timeline": str(interval.timeline)}
        if previous is not None and previous.timeline == interval.timeline:
            gap = {"kind": "gap", **place, "start": str(previous.end), "end": str(interval.start)}
            stretches.append(dict(gap))
        previous = interval
        stretches.append(
            {
                "kind": "wal",
                **place,
                "start": str(interval.start),
                "end": str(interval.end),
                "min_at": instant_text(interval.min_at) if interval.min_at is not None else None,
                "max_at": instant_text(interval.max_at) if interval.max_at is not None else None,
                "regions": list(interval.regions),
            }
        )
    return stretches


def _orphan_fields(orphan: OrphanedEnd) -> dict[str, object]:
    """Return an end that the newest timeline left behind: part of a stretch that is listed as well."""
    from pitr.recovery import instant_text

    last_at = orphan.interval.max_at
    return {
        "kind": "orphaned",
        "timeline": str(orphan.timeline),
        "start": str(orphan.start),
        "end": str(orphan.end),
        "min_at": None,
        "max_at": instant_text(last_at) if last_at is not None else None,
        "regions": list(orphan.interval.regions),
    }


def _head_fields(head: HeadRecord) -> dict[str, object]:
    from pitr.recovery import instant_text

    return {
        "sequence": head.sequence,
        "at": instant_text(head.at),
        "timeline": str(head.timeline),
        "wal_end": str(head.wal_end) if head.wal_end is not None else None,
    }
