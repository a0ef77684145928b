"""What of each file an incremental backup must read: asked of the server's WAL summaries, or of every page.

17 and later: WAL summaries (``pitr.postgres.summaries`` has the rules).  Where there are none, before 17 and
with summarize_wal = off: each page's LSN, against the parent's start; so all pages are read, and those that
changed are stored.  Reference: docs/adr/0004-incremental-backups.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from pitr.backup_checks import switched_checksums
from pitr.backup_parent import ParentBackup, ParentNote
from pitr.errors import MalformedValue, ServerRefused, ServerUnavailable
from pitr.postgres.datadir import DataFile
from pitr.postgres.page import PAGE_BYTES
from pitr.postgres.server import Server, ServerFacts
from pitr.postgres.summaries import (
    MAP_FORKS,
    ChangedPart,
    Changes,
    NotIncremental,
    Stretch,
    choose_summaries,
    plan_file,
    way_from,
)
from pitr.postgres.summary_source import SummarizerState, SummarySource
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, history_file_name

# The summarizer is a few seconds behind; PostgreSQL's own backup waits as long as it moves at all.
_POLL_S: Final = 0.1
_STALLED_LOOKS_MAX: Final = 600


@dataclass(frozen=True, slots=True)
class PagesSince:
    """All pages must be read, and those whose LSN is ``since`` or later be kept."""

    since: LSN


@dataclass(frozen=True, slots=True)
class LeftEmpty:
    """Nothing of the file is of use; it is restored with no bytes."""


# None: all of the file.
FilePlan: TypeAlias = ChangedPart | PagesSince | LeftEmpty | None


class ChangeFinder(Protocol):
    """Says what of a file, as large as it was opened, an incremental backup needs.  Thread-safe."""

    def plan(self, file: DataFile) -> FilePlan: ...


@dataclass(frozen=True, slots=True)
class SummaryFinder:
    """By WAL summaries."""

    changes: Changes
    note: ParentNote
    relation_segment_blocks: int

    def plan(self, file: DataFile) -> FilePlan:
        return plan_file(
            file,
            self.changes,
            is_in_parent=self.note.holds(file.path),
            relation_segment_blocks=self.relation_segment_blocks,
        )


@dataclass(frozen=True, slots=True)
class PageLsnFinder:
    """By the LSN of every page.

    ``databases`` are those of now: one whose row has another version may have been dropped and made again,
    from a template whose pages have old LSNs, and is read whole.  Free space maps are not logged, and
    clearing a bit of a visibility map leaves its LSN as it is; so both forks are whole.

    Without data checksums VACUUM marks a heap page all-visible and leaves its LSN (visibilitymap_set), so the
    parent's page may be taken, which is not marked; and a bit of the map over such a page is never cleared
    again.  So no map is kept then: rows are looked up in the heap until the next VACUUM.
    """

    since: LSN
    note: ParentNote
    databases: dict[int, str]
    has_checksums: bool

    def plan(self, file: DataFile) -> FilePlan:
        relation = file.relation
        if relation is not None and relation.fork == "vm" and not self.has_checksums:
            return LeftEmpty()
        if relation is None or relation.fork in MAP_FORKS or not self.note.holds(file.path):
            return None
        if file.size_bytes == 0 or file.size_bytes % PAGE_BYTES:
            return None
        if relation.database and (
            relation.database not in self.databases
            or self.note.databases.get(relation.database) != self.databases[relation.database]
        ):
            return None
        return PagesSince(self.since)


def find_changes(
    server: Server,
    facts: ServerFacts,
    data_dir: bytes,
    parent: ParentBackup,
    start: LSN,
    databases: dict[int, str],
    *,
    compare_pages: bool,
    wait: Callable[[float], object],
) -> ChangeFinder:
    """Return who says what changed from the parent's start to ``start``, where this backup's WAL begins.

    ``wait`` pauses for seconds, and returns what is true if the backup is being cancelled.
    ``compare_pages`` reads every page although there may be summaries.
    Raises NotIncremental with the reason if nobody can; a full backup is what helps then.
    """
    manifest = parent.manifest
    if manifest.archive.system_identifier != facts.system_identifier:
        raise NotIncremental(f"backup {manifest.backup} is of another cluster")
    if manifest.server_version // 10_000 != facts.major:
        raise NotIncremental(f"backup {manifest.backup} is of PostgreSQL {manifest.server_version // 10_000}")
    switched = switched_checksums(manifest, facts)
    if switched is not None:
        raise NotIncremental(switched)
    history = _read_history(data_dir, facts.timeline)
    way = way_from(manifest.timeline, manifest.start_lsn, manifest.stop_lsn, history, start)
    has_summaries = dict(facts.settings).get("summarize_wal") == "on"
    if compare_pages or not has_summaries:
        return PageLsnFinder(manifest.start_lsn, parent.note, databases, facts.has_checksums)
    source = SummarySource(server)
    await_summaries(source.state, start, wait)
    return SummaryFinder(_read_summaries(server, source, way), parent.note, facts.relation_segment_blocks)


def _read_summaries(server: Server, source: SummarySource, way: Sequence[Stretch]) -> Changes:
    changes = Changes()
    try:
        for summary in choose_summaries(way, source.available()):
            for rows in source.rows(summary):
                changes.add_rows(rows)
    except ValueError as cause:
        raise NotIncremental(str(cause)) from cause
    except (ServerRefused, ServerUnavailable) as cause:
        # The server removes summaries by their age, also one that it has just listed; a session that was
        # lost is no such case, and says so here.
        server.insert_lsn()
        raise NotIncremental(f"a WAL summary cannot be read: {cause}") from cause
    changes.finish()
    return changes


def await_summaries(look: Callable[[], SummarizerState], start: LSN, wait: Callable[[float], object]) -> None:
    """Wait for the summarizer to come to ``start``; not for one that does not move.  Raises NotIncremental.

    One summary may take minutes, so WAL that was read for the next one counts as a move.  ``wait`` pauses,
    and returns what is true if the backup is being cancelled.
    """
    state, stalled = look(), 0
    while state.summarized is None or state.summarized < start:
        if stalled >= _STALLED_LOOKS_MAX or wait(_POLL_S):
            raise NotIncremental(f"the WAL summarizer stays at {state.summarized}, and {start} is needed")
        now = look()
        state, stalled = now, stalled + 1 if now == state else 0


def _read_history(data_dir: bytes, timeline: TimelineId) -> TimelineHistory:
    if timeline.number == 1:
        return TimelineHistory(timeline)
    path = Path(os.fsdecode(data_dir)) / "pg_wal" / history_file_name(timeline)
    try:
        return TimelineHistory.parse(timeline, path.read_bytes())
    except (OSError, MalformedValue) as cause:
        raise NotIncremental(f"the history of timeline {timeline} cannot be read: {cause}") from cause
