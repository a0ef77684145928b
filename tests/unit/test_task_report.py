"""What the daemon's log says at the end of a task."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import fix_archive as fix
import pytest
import structlog
from structlog.testing import CapturingLogger

from cli.backup_runner import BackupRunner
from cli.task_report import BACKUP_TASK, PAGES_LOGGED_MAX, report_task
from pitr.catalogue.backup_record import BackupManifest, PageFinding
from pitr.errors import BackupFailed
from pitr.wal.lsn import LSN

MADE = fix.backup_of(LSN(fix.SEGMENT_BYTES), LSN(fix.SEGMENT_BYTES + 8), stopped_at=fix.at_second(5))
BAD = PageFinding("app.public.patients", "base/5/16384", "main", 7, "checksum")


def told(
    runner: BackupRunner, event: str = "done", *, task: str = BACKUP_TASK
) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (level, event, fields) of each line that the end of a task gives."""
    lines = CapturingLogger()
    log = structlog.wrap_logger(lines, processors=[], wrapper_class=structlog.make_filtering_bound_logger(0))
    report_task(log, task, event, "why" if event != "done" else None, runner)
    return [(call.method_name, call.kwargs.pop("event"), dict(call.kwargs)) for call in lines.calls]


def ran(*findings: PageFinding, note: str | None = None, fails: bool = False) -> BackupRunner:
    """Return a runner whose one backup has these bad pages."""

    def take(*given: Any) -> BackupManifest:
        if note is not None:
            given[4](note)
        if fails:
            raise BackupFailed("no")
        return replace(MADE, findings=findings)

    runner = BackupRunner(take)
    try:
        runner.run(threading.Event())
    except BackupFailed:
        assert fails
    return runner


def test_each_bad_page_is_an_error_in_the_log() -> None:
    assert told(ran(BAD, replace(BAD, relation=None, block=9)))[1:] == [
        (
            "error",
            "bad page",
            {
                "backup": MADE.backup,
                "relation": place,
                "fork": "main",
                "block": block,
                "reason": "checksum",
            },
        )
        for place, block in ((BAD.relation, 7), (BAD.path, 9))
    ]


def test_many_bad_pages_are_counted_and_not_all_logged() -> None:
    lines = told(ran(*(replace(BAD, block=number) for number in range(PAGES_LOGGED_MAX + 3))))
    assert [line[1] for line in lines].count("bad page") == PAGES_LOGGED_MAX
    assert lines[-1] == ("error", "more bad pages", {"backup": MADE.backup, "count": 3})


@pytest.mark.parametrize("fails", [False, True])
def test_the_notes_of_a_backup_are_logged_once(fails: bool) -> None:
    runner = ran(note="it is full because", fails=fails)
    lines = told(runner, "failed" if fails else "done")
    assert lines[0] == ("info", "backup note", {"task": "backup", "note": "it is full because"})
    assert [line[1] for line in lines[1:]] == ["task failed" if fails else "task done"]
    # Another task's end knows nothing of it, and names no backup.
    assert told(runner, task="verification") == [("info", "task done", {"task": "verification"})]
    assert told(runner, "overdue", task="verification") == [
        ("warning", "task overdue", {"task": "verification", "reason": "why"})
    ]
    # What has not ended yet has no notes: those would be of the one before.
    assert [line[1] for line in told(runner, "overdue")] == ["task overdue"]


def test_bad_pages_of_earlier_runs_are_remembered() -> None:
    runner = BackupRunner(lambda *_: replace(MADE, stopped_at=fix.at_second(9)))
    older = replace(MADE, stopped_at=MADE.stopped_at - timedelta(seconds=1), findings=(BAD,))
    runner.remember([replace(MADE, type="incr", parent=older.backup), older])
    assert runner.bad_pages == (BAD,)
    assert runner.last is not None
    assert runner.last.stopped_at == MADE.stopped_at
    runner.run(threading.Event())
    assert runner.bad_pages == ()
