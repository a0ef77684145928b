"""What the daemon counts over all of its runs, and shows also while it is none."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from cli.daemon_state import DaemonState
from cli.put_bill import PutBill
from pitr.archive_status import status_before_start
from pitr.catalogue.event_record import EventKind
from pitr.event_log import Tally
from pitr.protection import Level

AT = datetime(2026, 1, 2, tzinfo=UTC)


def state(**tallies: int) -> DaemonState:
    kept = {kind.replace("_", "-"): Tally(count, AT) for kind, count in tallies.items()}
    backups = SimpleNamespace(
        last=None, progress=None, is_running=False, last_duration_s=None, last_result=None, bad_pages=()
    )
    pace = SimpleNamespace(limits=SimpleNamespace(rate=None, workers=2))
    return DaemonState(
        cluster="main",
        archive="7/1",
        quorum=1,
        started_at=AT,
        now=lambda: AT,
        monotonic=lambda: 0.0,
        backups=cast("Any", backups),
        pace=cast("Any", pace),
        archiver=cast("Any", SimpleNamespace(status=lambda: status_before_start(None, 0))),
        regions=tuple,
        tasks=tuple,
        is_catalogue_complete=lambda: True,
        put_bill=PutBill(price_per_1000=0.005, regions=1),
        events_waiting=lambda: 0,
        level=lambda: Level.QUORUM,
        tally=lambda kind: kept.get(kind.value),
    )


def test_what_an_alert_asks_for_is_there_from_the_start() -> None:
    """From a counter that begins with its first event Prometheus sees no increase."""
    events = state().snapshot().events
    assert (events["wal-lost"], events["writers-conflict"], events["commits-released"]) == (0, 0, 0)


def test_what_earlier_runs_counted_goes_on() -> None:
    one = state(wal_lost=2, writers_conflict=1, commits_released=3)
    one.count(EventKind.WRITERS_CONFLICT.value)
    one.count("streaming")
    events = one.snapshot().events
    assert events == {"streaming": 1, "wal-lost": 2, "writers-conflict": 2, "commits-released": 3}
