"""The archiver's settings and its last attempt, judged."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from verifiers.archiver import ArchiverWish, judge_archiver
from verifiers.base import Severity

OURS = "/gate/gate %f %p"
EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def found(
    settings: dict[str, str],
    *,
    is_source: bool,
    stats: dict[str, object] | None = None,
    is_standby: bool = False,
    has_slot: bool = False,
) -> dict[str, Severity]:
    whole = {"archive_mode": "on", "archive_command": OURS, "archive_library": "", "archive_timeout": "60"}
    findings = judge_archiver(
        {**whole, **settings},
        stats or {},
        ArchiverWish(OURS, is_source),
        is_standby=is_standby,
        has_slot=has_slot,
    )
    return {finding.id.removeprefix("server.archive."): finding.severity for finding in findings}


@pytest.mark.parametrize(
    ("settings", "streamed", "source"),
    [
        ({}, Severity.OK, Severity.OK),
        ({"archive_mode": "off", "archive_command": "(disabled)"}, Severity.OK, Severity.FAIL),
        ({"archive_command": ""}, Severity.WARN, Severity.FAIL),
        ({"archive_command": "cp %p /x"}, Severity.OK, Severity.FAIL),
        ({"archive_library": "basic_archive"}, Severity.OK, Severity.FAIL),
        ({"archive_timeout": "0"}, Severity.OK, Severity.WARN),
    ],
)
def test_settings_are_judged_by_where_wal_comes_from(
    settings: dict[str, str], streamed: Severity, source: Severity
) -> None:
    assert found(settings, is_source=False)["settings"] is streamed
    assert found(settings, is_source=True)["settings"] is source


def test_a_standby_must_archive_always_and_a_slot_that_nobody_moves_must_go() -> None:
    assert found({}, is_source=True, is_standby=True)["settings"] is Severity.WARN
    assert found({"archive_mode": "always"}, is_source=True, is_standby=True)["settings"] is Severity.OK
    assert found({}, is_source=True, has_slot=True)["slot"] is Severity.FAIL
    assert "slot" not in found({}, is_source=False, has_slot=True)


@pytest.mark.parametrize(
    ("failed", "done", "is_failing"),
    [(None, None, False), (EARLY, LATE, False), (LATE, EARLY, True), (LATE, None, True)],
)
def test_an_archiver_that_failed_since_it_last_succeeded_is_told(
    failed: datetime | None, done: datetime | None, is_failing: bool
) -> None:
    stats: dict[str, object] = {"last_failed_time": failed, "last_archived_time": done}
    by_source = found({}, is_source=True, stats=stats)["failing"]
    assert by_source is (Severity.FAIL if is_failing else Severity.OK)
    beside = found({}, is_source=False, stats=stats)["failing"]
    assert beside is (Severity.WARN if is_failing else Severity.OK)
    assert "failing" not in found({"archive_command": "cp %p /x"}, is_source=False, stats=stats)
