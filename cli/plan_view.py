"""A restore plan for people and for programs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from cli.output import Output, format_bytes
from pitr.recovery import instant_text, local_text

if TYPE_CHECKING:
    from pitr.restore_plan import RestorePlan, StopPoint
    from pitr.wal.transactions import TransactionEnd


def show_plan(output: Output, plan: RestorePlan, zone: str, *, into: str | None = None) -> None:
    """Write the plan as a person reads it before a restore."""
    backup, stored = plan.backup, format_bytes(plan.backup_bytes)
    rows = [
        ("target", plan.target.describe(zone)),
        ("archive", str(plan.archive)),
        ("backup", f"{backup.backup} ({backup.type}), complete {_moment(backup.stopped_at, zone)}"),
        ("", f"{format_bytes(backup.size_bytes)} in {backup.files} files, {stored} stored"),
        ("WAL", f"{plan.segments} segments from {plan.links[0].start} to {plan.wal_end}"),
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
        if not plan.candidates:
            return []
        first, last = plan.candidates[0], plan.candidates[-1]
        return [
            ("stop", f"between {first.start} and {last.until}"),
            ("", "the exact place needs the reader's identity: --identity FILE"),
        ]
    rows = [("stop", f"replay ends at {stop.replay_end}")]
    if stop.last_commit is not None:
        rows.append(("last kept", _transaction(stop.last_commit, zone)))
    if stop.next_commit is not None:
        rows.append(("first gone", _transaction(stop.next_commit, zone)))
    return rows


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
        "candidates": [{"start": str(link.start), "end": str(link.until)} for link in plan.candidates],
        "skipped": [{"backup": one.backup, "reason": one.reason} for one in plan.skipped],
        "plan_warnings": list(plan.all_warnings),
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
