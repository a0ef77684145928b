"""What the daemon's log says at the end of a task: nobody waits for one of the timetable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.backup_runner import BackupRunner

BACKUP_TASK: Final = "backup"
# A disk that dies has more bad pages than anybody reads in a log; `pitr backups show` lists them all.
PAGES_LOGGED_MAX: Final = 20


def report_task(
    log: FilteringBoundLogger, name: str, event: str, error: str | None, backups: BackupRunner
) -> None:
    """Log that a task is done, or what became of it; of the backup's also what ``backups`` knows of it."""
    is_backup = name == BACKUP_TASK
    if is_backup and event in {"done", "failed"}:
        # Why it was full, or what it went on with.
        for note in backups.last_notes:
            log.info("backup note", task=name, note=note)
    if event != "done":
        log.warning(f"task {event}", task=name, reason=error)
    elif not is_backup or backups.last is None:
        log.info("task done", task=name)
    else:
        log.info("task done", task=name, backup=backups.last.backup)
        _report_pages(log, backups)


def _report_pages(log: FilteringBoundLogger, backups: BackupRunner) -> None:
    """Log the pages that the last backup has found bad, each with its relation, fork and block."""
    backup = backups.last
    assert backup is not None
    for finding in backup.findings[:PAGES_LOGGED_MAX]:
        log.error(
            "bad page",
            backup=backup.backup,
            relation=finding.relation or finding.path,
            fork=finding.fork,
            block=finding.block,
            reason=finding.reason,
        )
    if len(backup.findings) > PAGES_LOGGED_MAX:
        log.error("more bad pages", backup=backup.backup, count=len(backup.findings) - PAGES_LOGGED_MAX)
