"""A restore plan for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.output import Output, format_bytes
from pitr.commits_around import stop_limits
from pitr.recovery import instant_text, local_text

if TYPE_CHECKING:
    from datetime import datetime

    from pitr.commits_around import EndLimits
    from pitr.restore_plan import RestorePlan, StopPoint
    from pitr.wal.lsn import LSN
    from pitr.wal.transactions import TransactionEnd


def show_plan(output: Output, plan: RestorePlan, zone: str, *, into: str | None = None) -> None:
    """Write the plan as a person reads it before a restore."""
    backup, stored, wal = plan.backup, format_bytes(plan.backup_bytes), format_bytes(plan.wal_bytes)
    rows = [
        ("target", plan.target.describe(zone)),
        ("archive", str(plan.archive)),
        ("backup", f"{backup.backup} ({backup.type}), complete {_moment(backup.stopped_at, zone)}"),
        ("", f"{format_bytes(backup.size_bytes)} in {backup.files} files, {stored} stored"),
        ("WAL", f"{plan.segments} segments, {wal}, from {plan.links[0].start} to {plan.wal_end}"),
    ]
    if plan.parents:
        rows.insert(
            4, ("", f"built on {len(plan.parents)} earlier backups, down to {plan.parents[-1].backup}")
        )
    for span in plan.spans:
        until = f"to {span.end}" if span.end is not None else "on"
        rows.append(
            ("", f"timeline {span.timeline} of epoch {span.archive.epoch}, from {span.start} {until}")
        )
    rows += _stop_rows(plan, zone)
    if into is not None:
        rows.append(("into", into))
    for name, text in rows:
        output.line(f"{name.ljust(9)} {text}")
    later = [skipped for skipped in plan.skipped if skipped.is_later]
    if later:
        output.note(f"{len(later)} later backups are not used: {later[0].backup} and on")
    for skipped in plan.skipped:
        if not skipped.is_later:
            output.warn(f"backup {skipped.backup} is not used: {skipped.reason}")
    for warning in plan.all_warnings:
        output.warn(warning)


def _stop_rows(plan: RestorePlan, zone: str) -> list[tuple[str, str]]:
    stop = plan.stop
    if stop is None:
        return _limit_rows(plan, zone)
    timeline = plan.span_at(stop.replay_end).timeline
    rows = [("stop", f"replay ends at {stop.replay_end} on timeline {timeline}")]
    commits = plan.commits
    if commits is None:
        return rows
    for name, commit in (("last kept", commits.before), ("first gone", commits.after)):
        if commit is not None:
            rows.append((name, _transaction(commit, zone)))
        else:
            rows.append(
                (name, "no commit in this WAL" if commits.is_searched else "not near; see docs/targets.md")
            )
    return rows


def _limit_rows(plan: RestorePlan, zone: str) -> list[tuple[str, str]]:
    """Return what signed headers tell of the stop, said as such."""
    exact = ("", "an interval from signed headers; the exact place needs --identity FILE")
    limits = stop_limits(plan)
    if limits is None:
        what = f"transaction {plan.target.xid}" if plan.target.xid is not None else "the restore point"
        return [("stop", f"{what} must be looked for in WAL, which only a reader can open: --identity FILE")]
    rows = [
        (
            "stop",
            f"between {limits.since} and {limits.until} on timeline {plan.span_at(limits.until).timeline}",
        )
    ]
    for name, end in (("last kept", limits.before), ("first gone", limits.after)):
        rows.append((name, "not known without the identity" if end is None else _limits_text(end, zone)))
    return [*rows, exact]


def _limits_text(end: EndLimits, zone: str) -> str:
    text = f"a transaction between {end.since} and {end.until}"
    if end.since_at is not None:
        text += f", from {_moment(end.since_at, zone)}"
    return text if end.until_at is None else f"{text}, to {_moment(end.until_at, zone)}"


def _transaction(end: TransactionEnd, zone: str) -> str:
    return f"transaction {end.xid} at {end.start}, {_moment(end.at, zone)}"


def _moment(at: datetime, zone: str) -> str:
    return f"{instant_text(at)} = {local_text(at, zone)}"


def plan_fields(plan: RestorePlan, zone: str) -> dict[str, object]:
    """Return the plan for JSON."""
    return {
        "target": str(plan.target),
        "target_text": plan.target.describe(zone),
        "is_inclusive": plan.target.is_inclusive,
        "archive": str(plan.archive),
        "timeline": str(plan.timeline),
        "backup": plan.backup.backup,
        "parents": [parent.backup for parent in plan.parents],
        "backup_bytes": plan.backup_bytes,
        "restored_bytes": plan.backup.size_bytes,
        "server_version": plan.backup.server_version,
        "wal_start": str(plan.links[0].start),
        "wal_end": str(plan.wal_end),
        "wal_segments": plan.segments,
        "wal_bytes": plan.wal_bytes,
        "wal_path": [
            {
                "archive": str(span.archive),
                "timeline": str(span.timeline),
                "start": str(span.start),
                "end": str(span.end) if span.end is not None else None,
            }
            for span in plan.spans
        ],
        "is_past_end": plan.is_past_end,
        "stop": None if plan.stop is None else stop_fields(plan.stop),
        "resolved": _resolved(plan),
        "commits": _commits(plan),
        "candidates": [{"start": str(link.start), "end": str(link.until)} for link in plan.candidates],
        "skipped": [{"backup": one.backup, "reason": one.reason} for one in plan.skipped],
        "plan_warnings": list(plan.all_warnings),
    }


def _resolved(plan: RestorePlan) -> dict[str, object] | None:
    """Return the (timeline, LSN) that the target stands for; an interval where WAL could not be opened."""
    if plan.stop is not None:
        end = plan.stop.replay_end
        return {**_place(plan, end), "is_exact": True, "since": str(end), "until": str(end)}
    limits = stop_limits(plan)
    if limits is None:
        return None
    since, until = str(limits.since), str(limits.until)
    return {**_place(plan, limits.until), "is_exact": False, "since": since, "until": until}


def _place(plan: RestorePlan, end: LSN) -> dict[str, object]:
    span = plan.span_at(end)
    return {"archive": str(span.archive), "timeline": str(span.timeline)}


def _commits(plan: RestorePlan) -> dict[str, object] | None:
    """Return the commits around the stop, or the limits of the transactions there."""
    if plan.commits is not None:
        commits = plan.commits
        return {
            "is_exact": True,
            "is_searched": commits.is_searched,
            "before": _transaction_fields(commits.before),
            "after": _transaction_fields(commits.after),
        }
    limits = stop_limits(plan)
    if limits is None:
        return None
    before, after = _limit_fields(limits.before), _limit_fields(limits.after)
    return {"is_exact": False, "is_searched": False, "before": before, "after": after}


def _limit_fields(end: EndLimits | None) -> dict[str, object] | None:
    if end is None:
        return None
    return {
        "since": str(end.since),
        "until": str(end.until),
        "since_at": None if end.since_at is None else instant_text(end.since_at),
        "until_at": None if end.until_at is None else instant_text(end.until_at),
    }


def stop_fields(stop: StopPoint) -> dict[str, object]:
    """Return the exact stop for JSON."""
    return {
        "recovery_target_lsn": str(stop.target_lsn) if stop.target_lsn is not None else None,
        "is_inclusive": stop.is_inclusive,
        "replay_end": str(stop.replay_end),
        "last_commit": _transaction_fields(stop.last_commit),
        "next_commit": _transaction_fields(stop.next_commit),
    }


def _transaction_fields(end: TransactionEnd | None) -> dict[str, object] | None:
    if end is None:
        return None
    return {"lsn": str(end.start), "end": str(end.end), "xid": end.xid, "at": instant_text(end.at)}
