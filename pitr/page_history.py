"""When a page was last read and found good: what is lost with a bad page is what came after that.  Pure.

Only a full backup that was read from the server has read every page; an incremental one read those that
changed, and one that was made of a chain read none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pitr.catalogue.backup_record import FINDINGS_MAX, BackupManifest, PageFinding, taken_before


@dataclass(frozen=True, slots=True)
class PageHistory:
    """A bad page: the newest backup before in which it was clean, and the first since in which it was bad.

    ``last_clean`` None: no earlier backup has read it and found it good.
    """

    finding: PageFinding
    last_clean: BackupManifest | None
    first_bad: BackupManifest


def page_histories(backup: BackupManifest, others: Iterable[BackupManifest]) -> tuple[PageHistory, ...]:
    """Return the history of each bad page of a backup; ``others`` are all backups of its archive."""
    earlier = taken_before(backup, others)
    bad = {each.backup: {_page(finding) for finding in each.findings} for each in earlier}
    return tuple(_history(finding, backup, earlier, bad) for finding in backup.findings)


def still_bad(
    backups: Iterable[BackupManifest], known: Iterable[PageFinding] = ()
) -> tuple[PageFinding, ...]:
    """Return the pages that are bad as far as the backups know; ``known``: what was before them.

    Those of the last full backup that named all it found, and those of incremental ones after it: an
    incremental one that finds nothing has not read the page again.  At most FINDINGS_MAX, the oldest first.
    """
    bad = {_page(finding): finding for finding in known}
    for backup in sorted(backups, key=lambda one: one.stopped_at):
        if backup.stands_for is None and _read_and_named_all(backup):
            bad.clear()
        bad |= {_page(finding): finding for finding in backup.findings}
    return tuple(bad.values())[:FINDINGS_MAX]


def _history(
    finding: PageFinding,
    backup: BackupManifest,
    earlier: list[BackupManifest],
    bad: dict[str, set[tuple[str, int]]],
) -> PageHistory:
    first_bad = backup
    for each in earlier:
        if _page(finding) in bad[each.backup]:
            first_bad = each
        elif _read_and_named_all(each):
            return PageHistory(finding, each, first_bad)
    return PageHistory(finding, None, first_bad)


def _read_and_named_all(backup: BackupManifest) -> bool:
    """Whether a page that the backup does not name was clean: a list that was cut does not say."""
    return backup.parent is None and backup.page_checksums and len(backup.findings) < FINDINGS_MAX


def _page(finding: PageFinding) -> tuple[str, int]:
    # The path names fork and segment; the block counts from the relation's first segment.
    return finding.path, finding.block
