"""What a period report says of the store: backups, deletions, keys and events that others signed.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pitr.expiry_reader import ListedExpiry
from pitr.pipeline.sign import encode_time
from verifiers.check_maker import clean
from verifiers.log_entry import EntryKind, LogEntry
from verifiers.period_values import HostRecord, PeriodFacts
from verifiers.report_shape import LIST_MAX


def taken_backups(facts: PeriodFacts) -> dict[str, Any]:
    """Return the backups that ended in the period and whose manifests the store still has."""
    taken = [one for one in facts.host.backups if facts.period.holds(one.manifest.stopped_at)]
    kinds = [one.manifest.type for one in taken]
    newest = max((one.manifest.stopped_at for one in taken), default=None)
    return {
        "full": kinds.count("full"),
        "incr": kinds.count("incr"),
        "refused": facts.host.refused,
        "bytes": sum(one.manifest.size_bytes for one in taken),
        "newest_stopped_at": None if newest is None else encode_time(newest),
        "listed": [
            {
                "backup": one.manifest.backup,
                "kind": one.manifest.type,
                "stopped_at": encode_time(one.manifest.stopped_at),
                "size_bytes": one.manifest.size_bytes,
            }
            for one in taken[-LIST_MAX:]
        ],
    }


def subject_of(facts: PeriodFacts) -> dict[str, Any]:
    """Return what the report is about: the manifests of the period's backups."""
    taken = [one for one in facts.host.backups if facts.period.holds(one.manifest.stopped_at)]
    return {
        "backups": [
            {"name": one.manifest.backup, "manifest_sha256": one.object_sha256.hex()}
            for one in taken[-LIST_MAX:]
        ]
    }


def deletions_of(facts: PeriodFacts) -> list[dict[str, Any]]:
    """Return what was declared gone in the period, by whom; of each record only what is new in it."""
    found = []
    for listed, before in facts.host.expired:
        record = listed.record
        if not facts.period.holds(record.at):
            continue
        old = None if before is None else before.record
        gone = {one.backup for one in record.backups} - {one.backup for one in (old.backups if old else ())}
        # WAL is told anew in each record, and a stretch may have grown: what is not the same is new.
        wal = set(record.wal) - set(old.wal if old else ())
        keys = {one.key_id for one in record.envelopes} - {
            one.key_id for one in (old.envelopes if old else ())
        }
        found.append(
            {
                "archive": str(record.archive),
                "sequence": record.sequence,
                "at": encode_time(record.at),
                "record_sha256": listed.payload_sha256.hex(),
                "approved_by": facts.host.root_key_id,
                "window_s": record.window_s,
                "backups": sorted(gone)[:LIST_MAX],
                "wal_ranges": len(wal),
                "envelopes": len(keys),
            }
        )
    return sorted(found, key=lambda one: str(one["at"]))[:LIST_MAX]


def cut_limits(report: Mapping[str, Any]) -> list[str]:
    """Say which of a report's lists end at the most that one may have: more may be missing there."""
    lists = {
        "backups": report["backups"]["listed"],
        **{name: report[name] for name in ("deletions", "findings", "host_events", "key_events")},
    }
    return [
        f"{name.replace('_', ' ')}: no more than {LIST_MAX} are listed, and there may be others"
        for name, rows in lists.items()
        if len(rows) >= LIST_MAX
    ]


def is_broken(host: HostRecord) -> bool:
    """Tell whether an expire record does not go on from the one before it."""

    def goes_on(listed: ListedExpiry, before: ListedExpiry | None) -> bool:
        if before is None:
            return listed.record.previous is None
        return listed.record.previous == before.payload_sha256

    return not all(goes_on(listed, before) for listed, before in host.expired)


def key_events_of(facts: PeriodFacts) -> list[dict[str, Any]]:
    """Return what happened to keys, the oldest first."""
    events = [
        (entry.at, entry.text("event") or "key-event", _words(entry))
        for entry in facts.entries
        if entry.kind == EntryKind.KEY_EVENT
    ]
    events += [(one.at, one.event, one.detail) for one in facts.host.keys]
    return [
        {"at": encode_time(at), "event": clean(event)[:300], "detail": clean(detail)}
        for at, event, detail in sorted(events)
        if facts.period.holds(at)
    ][:LIST_MAX]


def _words(entry: LogEntry) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(entry.facts.items()) if name != "event")


def host_events_of(facts: PeriodFacts) -> list[dict[str, Any]]:
    """Return the host's signed events of the period."""
    return [
        {
            "archive": str(one.archive),
            "sequence": one.sequence,
            "at": encode_time(one.happening.at),
            "event": one.happening.event,
            "message": clean(one.happening.message),
        }
        for one in facts.host.events
        if facts.period.holds(one.happening.at)
    ][:LIST_MAX]
