"""What a base backup asks of server, label and pages before it is signed."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import FINDINGS_MAX, BackupManifest, PageFinding
from pitr.errors import BackupFailed, ServerRefused
from pitr.layout import ArchiveId
from pitr.postgres.basebackup import FoundPage, parse_backup_label, read_control_file
from pitr.postgres.control import ControlFile
from pitr.postgres.server import Server, ServerFacts, StoppedBackup, have_checksums
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# The file is written first; before the time that SQL gives, libraries are loaded and addresses looked up.
_START_MAX: Final = timedelta(minutes=2)
# The clock may have been set between the two.
_CLOCK_STEP: Final = timedelta(seconds=5)


def check_cluster(archive: ArchiveId, facts: ServerFacts) -> None:
    """Raise ServerRefused unless the server is of the archive's cluster."""
    if facts.system_identifier != archive.system_identifier:
        raise ServerRefused(
            "this is another cluster than the archive's",
            detail=f"The server is {facts.system_identifier}, the archive {archive.system_identifier}.",
            hint="check the DSN, or make an archive for this cluster with `pitr init`",
        )


def check_server(archive: ArchiveId, facts: ServerFacts, data_dir: bytes) -> None:
    """Raise ServerRefused unless the server is the archive's, writes enough WAL, and has these files."""
    check_cluster(archive, facts)
    if facts.wal_level == "minimal":
        raise ServerRefused(
            "the server writes too little WAL for a base backup", hint="set wal_level = replica and restart"
        )
    found = read_control_file(data_dir, threading.Event().wait).control
    if found.system_identifier != facts.system_identifier:
        raise ServerRefused(
            "the data directory belongs to another cluster than the server",
            detail=f"{os.fsdecode(data_dir)} has system identifier {found.system_identifier}.",
            hint="the daemon must run on the server's own host",
        )
    check_instance(facts, data_dir, found)


def check_instance(facts: ServerFacts, data_dir: bytes, control: ControlFile) -> None:
    """Raise ServerRefused unless the server runs on these files, and not on a copy of them on another host.

    A primary and its standbys have one system identifier, and mostly one path.  Their control files differ in
    the state; of two standbys ``postmaster.pid`` tells when the server here was started.
    """
    why = None
    if control.is_in_archive_recovery != facts.is_in_recovery:
        asked, here = ("a standby", "a primary's") if facts.is_in_recovery else ("a primary", "a standby's")
        why = f"The server is {asked}, and the control file {here}."
    else:
        started_at = _started_at(data_dir)
        if started_at is None:
            why = "No postmaster.pid there says since when a server runs on it."
        elif not -_CLOCK_STEP <= facts.started_at - started_at <= _START_MAX:
            why = f"The server runs since {facts.started_at}, the one on these files since {started_at}."
    if why is not None:
        raise ServerRefused(
            f"{os.fsdecode(data_dir)} is not the server's own data directory, but one of the same cluster",
            detail=why,
            hint="name the server of this host in [cluster] dsn, alone, or set [backup] source = 'protocol'",
        )


def runs_here(server: Server, data_dir: Path) -> bool:
    """Tell whether the server runs on that directory of this host, and not on another host's of that path.

    Raises as ``Server`` does.
    """
    facts, path = server.facts(), os.fsencode(data_dir)
    try:
        control = read_control_file(path, threading.Event().wait).control
        check_instance(facts, path, control)
    except (BackupFailed, ServerRefused, OSError):
        return False
    return control.system_identifier == facts.system_identifier


def _started_at(data_dir: bytes) -> datetime | None:
    """Return when the postmaster was started that runs on a directory.  Reference: miscadmin.h, pidfile.h."""
    try:
        lines = (Path(os.fsdecode(data_dir)) / "postmaster.pid").read_text("utf-8", "replace").split("\n")
        return datetime.fromtimestamp(int(lines[2]), UTC)
    except (OSError, IndexError, ValueError, OverflowError):
        return None


def check_label(stopped: StoppedBackup, start_lsn: LSN) -> TimelineId:
    """Return the timeline that ``backup_label`` names.  Raises BackupFailed if it is of another backup."""
    label = parse_backup_label(stopped.backup_label)
    if label.start_lsn != start_lsn:
        raise BackupFailed(
            "the server's backup label is not that of this backup",
            detail=f"It starts at {label.start_lsn}, the backup at {start_lsn}.",
        )
    return label.timeline


def check_timeline(asked: TimelineId, actual: TimelineId) -> None:
    """Raise BackupFailed if a promotion came between the question what changed and the backup's start."""
    if actual != asked:
        raise BackupFailed(
            "the server was promoted while the incremental backup began",
            detail=f"What changed was asked on timeline {asked}, and the backup starts on timeline {actual}.",
            hint="take it again",
        )


def switched_checksums(parent: BackupManifest, facts: ServerFacts) -> str | None:
    """Return why nothing can be built on ``parent``: switching them changes pages that no WAL names."""
    if parent.page_checksums == facts.has_checksums:
        return None
    was = "on" if parent.page_checksums else "off"
    return f"data checksums were {was} at backup {parent.backup}, and are not now"


def check_checksums_stayed(facts: ServerFacts, data_checksums: str) -> None:
    """Raise BackupFailed if they were on when the backup began, and are not now: pages look bad that are not.

    The other way, all pages were judged as those of a cluster without.
    """
    if facts.has_checksums and not have_checksums(data_checksums):
        raise BackupFailed(
            "data checksums were switched while the files were read",
            detail=f"They were on when the backup began, and are {data_checksums} now.",
            hint="take it again",
        )


def name_findings(server: Server, pages: Sequence[FoundPage], count: int) -> tuple[PageFinding, ...]:
    """Return the bad pages with the names of their relations; ``count`` is how many there are in all."""
    if not pages:
        return ()
    relations = [replace(page.relation, fork="main", segment=0) for page in pages]
    names = server.relation_names(set(relations))
    findings = [
        PageFinding(names.get(relation), os.fsdecode(page.path), page.relation.fork, page.block, page.reason)
        for page, relation in zip(pages, relations, strict=True)
    ]
    if count > len(findings):
        more = count - FINDINGS_MAX
        findings[-1] = replace(findings[-1], reason=f"{findings[-1].reason}; {more} more pages are bad")
    return tuple(findings)
