"""An expiry plan and its outcome, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cli.output import Output, format_bytes
from pitr.expire import wal_between
from pitr.layout import backup_prefix
from pitr.recovery import instant_text
from pitr.retention import ExpiryPlan
from storage.store import StoreError

if TYPE_CHECKING:
    from pitr.catalogue.expiry_record import ExpireRecord
    from pitr.expire import RegionDeletion
    from pitr.expire_record import BesidePlan
    from pitr.layout import ArchiveId
    from pitr.planner import RestorableStretch
    from storage.regions import Region


def show_plan(output: Output, plan: ExpiryPlan, freed: Mapping[str, int | None]) -> None:
    """Write what stays and why, what goes and so is ``freed``, and what can be restored before and after."""
    rows = [("KEEP", each.backup, "; ".join(each.why)) for each in plan.kept]
    rows += [("EXPIRE", each, "older than the window, and nothing kept needs it") for each in plan.expired]
    output.table(
        ["verdict", "backup", "complete", "stored", "why"],
        [
            [
                verdict,
                backup.backup,
                f"{backup.stopped_at:%Y-%m-%d %H:%M:%S}Z",
                format_bytes(backup.stored_bytes),
                why,
            ]
            for verdict, backup, why in sorted(rows, key=lambda row: row[1].stopped_at)
        ],
        empty="there is no backup",
    )
    output.line()
    output.line(f"window from {instant_text(plan.since)}")
    for hole in plan.holes:
        output.warn(f"nothing goes where a hole is: {hole}")
    for wal in plan.wal:
        output.line(f"WAL of archive {wal.archive}: EXPIRE {wal.first} to {wal.last}")
    for attempt in plan.attempts:
        output.line(
            f"interrupted backup {attempt.backup}: EXPIRE, it has no manifest and nobody goes on with it"
        )
    for name, size_bytes in freed.items():
        output.line(f"frees {'?' if size_bytes is None else format_bytes(size_bytes)} in region {name}")
    output.line(f"restorable before: {_range_text(plan.before)}")
    output.line(f"restorable after:  {_range_text(plan.after)}")


def freed_bytes(plan: ExpiryPlan, regions: Sequence[Region]) -> dict[str, int | None]:
    """Return how many bytes of WAL and backups would go, by region; None if it cannot be listed.

    Nothing is listed where nothing goes.
    """
    if plan.is_empty:
        return {}
    prefixes = [backup_prefix(each.archive, each.backup) for each in plan.expired]
    prefixes += [backup_prefix(each.archive, each.backup) for each in plan.attempts]
    freed: dict[str, int | None] = {}
    for region in regions:
        try:
            packs = sum(info.size_bytes for prefix in prefixes for info in region.store.list_objects(prefix))
            wal = sum(
                info.size_bytes
                for each in plan.wal
                for info in wal_between(region, each.archive, each.first, each.last)
            )
            freed[region.name] = packs + wal
        except StoreError:
            freed[region.name] = None
    return freed


def _range_text(stretches: Sequence[RestorableStretch]) -> str:
    if not stretches:
        return "nothing"
    return f"from {stretches[0].first} to {stretches[-1].last}"


def plan_fields(plan: ExpiryPlan, freed: Mapping[str, int | None]) -> dict[str, object]:
    """Return a plan for JSON, with what ``freed_bytes`` says of it."""
    return {
        "since": instant_text(plan.since),
        "kept": [{"backup": each.backup.backup, "why": list(each.why)} for each in plan.kept],
        "expired": [each.backup for each in plan.expired],
        "wal": [
            {
                "archive": str(wal.archive),
                "first": str(wal.first),
                "last": str(wal.last),
                "size_bytes": wal.size_bytes,
            }
            for wal in plan.wal
        ],
        "interrupted": [{"archive": str(each.archive), "backup": each.backup} for each in plan.attempts],
        "holes": list(plan.holes),
        "freed_bytes": dict(freed),
        "restorable_before": _range_fields(plan.before),
        "restorable_after": _range_fields(plan.after),
        "is_confirmed": False,
    }


def _range_fields(stretches: Sequence[RestorableStretch]) -> Mapping[str, object] | None:
    if not stretches:
        return None
    ends = {"first": stretches[0].first, "last": stretches[-1].last}
    return {
        name: {"lsn": str(moment.lsn), "at": None if moment.at is None else instant_text(moment.at)}
        for name, moment in ends.items()
    }


def show_beside(output: Output, plans: Mapping[ArchiveId, BesidePlan]) -> None:
    """Write what goes beside WAL and backups, and why some of it stays that might go."""
    for archive, plan in plans.items():
        for kind, first in plan.first.items():
            output.line(f"{kind} of archive {archive}: EXPIRE objects before number {first}")
        for name in plan.snapshots:
            output.line(f"snapshot of archive {archive}: EXPIRE {name}")
        for why in plan.stays:
            output.warn(why)


def beside_fields(plans: Mapping[ArchiveId, BesidePlan]) -> list[dict[str, object]]:
    """Return the same for JSON."""
    return [
        {
            "archive": str(archive),
            "first_kept": {str(kind): first for kind, first in plan.first.items()},
            "snapshots": list(plan.snapshots),
            "stays": list(plan.stays),
        }
        for archive, plan in plans.items()
    ]


def show_outcomes(
    output: Output, outcomes: Sequence[RegionDeletion], records: Sequence[ExpireRecord]
) -> None:
    """Write what was deleted in each region, and what is still to come."""
    for one in outcomes:
        text = f"region {one.region}: {one.deleted} objects deleted, {format_bytes(one.deleted_bytes)}"
        output.line(text + (f"; {one.refused} refused" if one.refused else ""))
    later = [delete_after for record in records for delete_after in record.deletions.values()]
    later += [gone.delete_after for record in records for gone in record.wal]
    later += [gone.delete_after for record in records for gone in record.beside.below]
    later += [gone.delete_after for record in records for gone in record.beside.snapshots]
    if later and max(later) > max(record.at for record in records):
        output.line(f"the rest goes with the next run after {instant_text(max(later))}")


def outcome_fields(outcomes: Sequence[RegionDeletion], records: Sequence[ExpireRecord]) -> dict[str, object]:
    """Return what was done, for JSON."""
    return {
        "is_confirmed": True,
        "records": [
            {"archive": str(record.archive), "sequence": record.sequence, "at": instant_text(record.at)}
            for record in records
        ],
        "regions": [
            {
                "region": one.region,
                "deleted": one.deleted,
                "deleted_bytes": one.deleted_bytes,
                "refused": one.refused,
                "reason": one.first_refusal,
            }
            for one in outcomes
        ],
    }
