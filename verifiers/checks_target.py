"""C05, C09 and C10: what was replayed, where that ended, and that the last commit before it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pitr.errors import MalformedValue, PitrError
from pitr.recovery import instant_text
from pitr.recovery_certificate import FORMAT
from pitr.restore_plan import RestorePlan
from pitr.restore_wal import archived_spans, recovery_timeline
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, history_file_name
from pitr.wal.transactions import TransactionEnd
from pitr.wal_sources import lay_path
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.scratch_server import ScratchServer

_CERTIFICATE_BYTES_MAX: Final = 512 * 1024 * 1024
MARKER_TIMEOUT_S: Final = 60.0
_REPLAY: Final = """
SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()"""
_TIMELINE: Final = "SELECT timeline_id FROM pg_control_checkpoint()"
_HISTORY: Final = "SELECT pg_read_binary_file(%s, 0, 1048576, true)"
# The next transaction's id has the epoch that 32 bits of a record's lack.
_NEXT_XID: Final = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
_STATUS: Final = "SELECT pg_xact_status(%s::text::xid8)"
_TIME: Final = """
SELECT CASE WHEN current_setting('track_commit_timestamp')::bool
            THEN pg_xact_commit_timestamp(%s::text::xid) END"""


@dataclass(frozen=True, slots=True)
class Marker:
    """The owner's own heart: ``sql`` returns the time of its newest row; there is one every ``every_s``."""

    sql: str
    database: str
    every_s: float


@dataclass(frozen=True, slots=True)
class Reached:
    """Where the restored server stands, and what it says of the commits around that."""

    replay_lsn: LSN | None
    last_xact_at: datetime | None
    before_status: str | None
    before_at: datetime | None
    after_status: str | None


def look_at_target(server: ScratchServer, plan: RestorePlan, replayed: LSN | None) -> Reached:
    """Ask a server, mostly paused at the target; ``replayed`` (``left_at``) is of one that is open already.

    Raises QueryFailed.
    """
    with server.session() as session:
        in_recovery, lsn, last_xact_at = session.rows(_REPLAY)[0]
        next_xid = int(str(session.value(_NEXT_XID)))
        commits = plan.commits
        before = None if commits is None else commits.before
        after = None if commits is None else commits.after
        at = session.value(_TIME, [str(before.xid)]) if before is not None else None
        return Reached(
            LSN.parse(lsn) if in_recovery and isinstance(lsn, str) else replayed,
            last_xact_at.astimezone(UTC) if isinstance(last_xact_at, datetime) else None,
            _status(session.value, before, next_xid),
            at.astimezone(UTC) if isinstance(at, datetime) else None,
            _status(session.value, after, next_xid),
        )


def left_at(server: ScratchServer, plan: RestorePlan) -> LSN | None:
    """Return where an open server's timeline left the one that was recovered along, by its history file.

    For a server that opened by itself, which nobody saw paused.  None if there is no such file, or it does
    not say.  Raises QueryFailed.
    """
    assert plan.stop is not None, "it was restored to it"
    with server.session() as session:
        timeline = TimelineId(int(str(session.value(_TIMELINE))))
        body = session.value(_HISTORY, [f"pg_wal/{history_file_name(timeline)}"])
    try:
        history = TimelineHistory.parse(timeline, bytes(body) if isinstance(body, bytes) else b"")
        return history.end_of(recovery_timeline(plan, plan.stop))
    except MalformedValue:
        return None


def _status(ask: Any, end: TransactionEnd | None, next_xid: int) -> str | None:
    """Return what the server says of a transaction: "future" for one that it has not seen begin."""
    if end is None:
        return None
    full = (next_xid & ~0xFFFF_FFFF) | end.xid
    if full > next_xid + (1 << 31):
        full -= 1 << 32
    elif full < next_xid - (1 << 31):
        full += 1 << 32
    if full >= next_xid:
        return "future"
    found = ask(_STATUS, [str(full)])
    return None if found is None else str(found)


def check_reached(plan: RestorePlan, reached: Reached, maker: CheckMaker) -> CheckResult:
    """C09: replay stands at the LSN that the plan found in the WAL, the next commit is not there."""

    def judge() -> Judgement:
        stop = plan.stop
        assert stop is not None, "a plan without a stop was not restored"
        after = None if plan.commits is None else plan.commits.after
        expected = f"replay ended at {stop.replay_end}"
        observed = f"replay ended at {reached.replay_lsn}"
        if after is not None:
            expected += f", transaction {after.xid} of {instant_text(after.at)} not committed"
            observed += f", transaction {after.xid} is {reached.after_status}"
        if reached.replay_lsn != stop.replay_end:
            return failed(expected, observed, "recovery ended elsewhere than planned", observed.encode())
        if after is not None and reached.after_status == "committed":
            return failed(expected, observed, "a transaction after the target is there", observed.encode())
        return passed(expected, observed, observed.encode())

    return maker.run("C09", _REPLAY + _STATUS, judge)


def check_last_commit(plan: RestorePlan, reached: Reached, maker: CheckMaker) -> CheckResult:
    """C10: the marker is the last commit in the WAL before the stop: a heartbeat's, or anybody's."""

    def judge() -> Judgement:
        before = None if plan.commits is None else plan.commits.before
        if before is None:
            expected = "no commit since the backup began"
            if plan.commits is None or not plan.commits.is_searched:
                return failed(expected, "not known", "the WAL before the target was not searched to its end")
            return passed(expected, "none in the WAL")
        expected = f"transaction {before.xid} committed at {instant_text(before.at)}"
        at = "at a time that is not tracked" if reached.before_at is None else instant_text(reached.before_at)
        observed = f"transaction {before.xid} is {reached.before_status}, {at}"
        if reached.before_status != "committed":
            return failed(expected, observed, "the last commit before the target is not there")
        if reached.before_at is not None and reached.before_at != before.at:
            return failed(expected, observed, "it has another time")
        return passed(expected, observed, observed.encode())

    return maker.run("C10", _STATUS + _TIME, judge)


def check_marker(
    server: ScratchServer, plan: RestorePlan, marker: Marker, maker: CheckMaker
) -> tuple[CheckResult, datetime | None]:
    """C10.marker: the newest row that the owner's own heart wrote; return its time as well.

    It is from before the last commit, and no longer before it than the heart pauses.
    """
    found: list[datetime] = []
    before = None if plan.commits is None else plan.commits.before

    def judge() -> Judgement:
        with server.session(marker.database, timeout_s=MARKER_TIMEOUT_S, search_path="public") as session:
            value = session.value(marker.sql)
        if before is None:
            why = "no commit in the WAL before the target tells how new a row must be"
            return Judgement(Outcome.SKIPPED, "a row's time", "not compared", why)
        expected = f"a time of at most {marker.every_s:g} s before {instant_text(before.at)}"
        if not isinstance(value, datetime) or value.utcoffset() is None:
            return failed(expected, "no time with a zone", "the query must return one timestamptz")
        at = value.astimezone(UTC)
        found.append(at)
        observed = instant_text(at)
        if at > before.at:
            return failed(expected, observed, "the row is from after the last commit before the target")
        if (before.at - at).total_seconds() > marker.every_s:
            return failed(expected, observed, "the newest row is older than it may be")
        return passed(expected, observed, observed.encode())

    result = maker.run("C10.marker", marker.sql, judge)
    return result, found[0] if found else None


def check_replayed_wal(certificate: Path, plan: RestorePlan, maker: CheckMaker) -> CheckResult:
    """C05: the restore's own notes of each segment that it delivered, against the plan's way and objects."""

    def judge() -> Judgement:
        with certificate.open("rb") as file:
            body = file.read(_CERTIFICATE_BYTES_MAX)
        try:
            stated: Mapping[str, Any] = json.loads(body)
            return _judge_certificate(stated, plan, body)
        except (ValueError, KeyError, TypeError) as cause:
            raise PitrError("the recovery certificate cannot be read", detail=str(cause)) from cause

    return maker.run("C05", "compare the recovery certificate with the plan", judge)


def _hole_of(plan: RestorePlan) -> str | None:
    """Return the first stretch of the way that no stored object of the plan holds, up to where it stops."""
    assert plan.stop is not None, "it was resolved"
    reached = plan.backup.wal_start
    for link in plan.links:
        if link.start > reached:
            return f"{reached} to {link.start}"
        reached = max(reached, link.until)
    return f"{reached} to {plan.stop.read_end}" if reached < plan.stop.read_end else None


def _judge_certificate(stated: Mapping[str, Any], plan: RestorePlan, evidence: bytes) -> Judgement:
    stop = plan.stop
    assert stop is not None
    wal = stated["wal"]
    delivered = {str(one["segment"]) for one in wal["delivered"]}
    alone = {str(one) for one in wal["fetched_alone_after_a_crash"]}
    path = lay_path(archived_spans(plan, stop), (), segment_bytes=plan.backup.segment_bytes)
    wanted = {str(name) for name in path.segment_names()}
    expected = f"{len(wanted)} segments delivered, replay up to {stop.replay_end}, no hole"
    observed = f"{len(delivered)} segments delivered, replay up to {stated['replay']['end']}"
    faults = []
    if stated["format"] != FORMAT or stated["backup"] != plan.backup.backup:
        faults.append("it is the certificate of another restore")
    hole = _hole_of(plan)
    if hole is not None:
        faults.append(f"the plan's WAL objects leave {hole} out")
    if missing := sorted(wanted - delivered - alone):
        faults.append(f"{len(missing)} segments on the way were not delivered: {missing[0]}")
    if others := sorted((delivered | alone) - wanted):
        faults.append(f"{len(others)} segments that are not on the way were delivered: {others[0]}")
    if alone:
        faults.append(f"{len(alone)} segments came without a note")
    if stated["replay"]["end"] != str(stop.replay_end):
        faults.append("replay ended elsewhere")
    if faults:
        return failed(expected, observed, "; ".join(faults), evidence)
    return passed(expected, observed, evidence)
