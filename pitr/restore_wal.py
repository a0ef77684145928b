"""The WAL side of a restore: from a plan to the file that ``restore_command`` goes by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from pitr.errors import MalformedValue, NotAuthentic, NotInitialised, WalMissing
from pitr.foreign_wal import foreign_wal
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.repository import Repository
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_path import HistoryFile
from pitr.wal_plan_file import RegionAddress, ReplayedWal, WalPlanHeader, write_plan
from pitr.wal_sources import ArchivedSpan, find_segments, lay_path
from storage.store import ObjectMissing

_UNREADABLE = b"# the archive's copy of this history file cannot be used\n"


def write_wal_plan(
    file: Path,
    plan: RestorePlan,
    stop: StopPoint,
    repository: Repository,
    regions: Sequence[RegionAddress],
    identity_file: Path | None,
) -> None:
    """List the WAL objects of the plan and write them, segment by segment, to ``file``.

    Raises WalMissing if they do not cover the way, or a history file on it is gone; StoreError.
    """
    spans = archived_spans(plan, stop)
    histories = _histories(plan, spans, repository)
    taken = _taken(plan.archive.system_identifier, {one.timeline for one in histories}, repository)
    path = lay_path(spans, histories, segment_bytes=plan.backup.segment_bytes, taken=taken)

    listed = _list_own(spans, repository, plan.backup.segment_bytes)

    def list_wal(
        archive: ArchiveId, timeline: TimelineId, first: SegmentName
    ) -> Iterable[PieceKey | SegmentKey]:
        return listed[archive, timeline, first]

    header = WalPlanHeader(
        repository.repository_id,
        str(repository.root),
        path,
        tuple(regions),
        identity_file,
        ReplayedWal(plan.backup.start_lsn, stop.replay_end),
    )
    write_plan(file, header, find_segments(path, spans, list_wal))


def _list_own(
    spans: Sequence[ArchivedSpan], repository: Repository, segment_bytes: int
) -> dict[tuple[ArchiveId, TimelineId, SegmentName], list[PieceKey | SegmentKey]]:
    """List the WAL objects of the spans, without those that a second writer has put there."""
    listed = {}
    for span in spans:
        first = SegmentName.of(span.timeline, span.start.offset // segment_bytes, segment_bytes)
        keys = repository.wal.objects(span.archive, span.timeline, from_segment=first)
        listed[span.archive, span.timeline, first] = list(keys)
    for archive in {span.archive for span in spans}:
        own = [places for places in listed if places[0] == archive]
        foreign = foreign_wal(repository, archive, [key for place in own for key in listed[place]])
        for place in own if foreign else ():
            listed[place] = [key for key in listed[place] if key not in foreign]
    return listed


def archived_spans(plan: RestorePlan, stop: StopPoint) -> list[ArchivedSpan]:
    """Return the plan's way from the start of the backup's first segment to the last byte that is read."""
    spans = []
    for span in plan.spans:
        start = max(span.start, plan.backup.wal_start)
        end = stop.read_end if span.end is None else min(span.end, stop.read_end)
        if start < end:
            spans.append(ArchivedSpan(span.archive, span.timeline, start, end))
    return spans


def recovery_timeline(plan: RestorePlan, stop: StopPoint) -> TimelineId:
    """Return the timeline that PostgreSQL is to recover along: the last one that is read.

    Not the last of the plan's way: a server that stops before a fork and was told of the timeline after it
    takes that one for the parent of its own, and its history file then goes back (xlog.c, StartupXLOG).
    """
    return archived_spans(plan, stop)[-1].timeline


def _histories(plan: RestorePlan, spans: Sequence[ArchivedSpan], repository: Repository) -> list[HistoryFile]:
    """Return the history files of all timelines on the way: the target's must be there."""
    found: list[HistoryFile] = []
    # An archive repeats the history that it began with; the youngest is asked first.
    archives = list(dict.fromkeys([plan.archive, *(span.archive for span in reversed(spans))]))
    for timeline in sorted({plan.timeline, *(span.timeline for span in spans)}):
        if timeline.number == 1:
            continue
        for archive in archives:
            listed = repository.listed_histories(archive, timeline)
            # One that a quorum may have is asked for, and stops the restore if it is bad.
            records = listed.with_unread(partial(repository.get_history, archive))
            if records:
                found.append(HistoryFile(timeline, records[0].content))
                break
        else:
            if timeline == plan.timeline:
                raise WalMissing(
                    f"the history file of timeline {timeline} is in no region",
                    hint="ask for a target on another timeline",
                )
    return found


def _taken(system_identifier: int, known: set[TimelineId], repository: Repository) -> list[HistoryFile]:
    """Return the history files of all the cluster's other timelines, in whatever epoch they are.

    Where two epochs have one number the newest is asked first: that there is one is all that counts.
    """
    archives = [one for one in repository.archives() if one.system_identifier == system_identifier]
    found: dict[TimelineId, HistoryFile] = {}
    for archive in sorted(archives, key=lambda one: one.epoch, reverse=True):
        for timeline in repository.history_timelines(archive):
            if timeline not in known and timeline not in found:
                found[timeline] = HistoryFile(timeline, _content(archive, timeline, repository))
    return [found[timeline] for timeline in sorted(found)]


def _content(archive: ArchiveId, timeline: TimelineId, repository: Repository) -> bytes:
    try:
        return repository.get_history(archive, timeline).content
    except (MalformedValue, NotAuthentic, NotInitialised, ObjectMissing):
        # The number was given all the same, and PostgreSQL only looks whether the file is there.
        return _UNREADABLE
