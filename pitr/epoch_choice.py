"""Whether a plan may take the newest writer epoch without anybody having said so.  Pure.

A cluster that was restored and let in again starts a new epoch, and what the old one wrote after it was left
is not on its way.  Usually the old one is dead, and that was the point.  But a rehearsal that was let in
leaves two clusters that both write; and a moment between fork and new epoch's birth is in the old one only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pitr.catalogue.records import EpochRecord, HeadRecord
from pitr.errors import TargetRefused
from pitr.layout import ArchiveId
from pitr.recovery import instant_text
from pitr.restore_plan import RestorePlan
from pitr.wal.lsn import LSN


def judge_epoch(
    plan: RestorePlan, epochs: Sequence[EpochRecord], heads: Mapping[ArchiveId, HeadRecord]
) -> str | None:
    """Return a warning that an older epoch goes on after the plan's has left it; None if none does.

    Raises TargetRefused where the target may mean either of them.
    """
    own = next((record for record in epochs if record.archive == plan.archive), None)
    if own is None or own.parent is None:
        return None
    older = ArchiveId(plan.archive.system_identifier, own.parent.epoch)
    head = heads.get(older)
    if head is None or head.wal_end is None or head.wal_end <= own.parent.lsn:
        return None
    if _farthest(plan) <= own.parent.lsn and not plan.is_past_end:
        return None  # before the fork there is only one past
    goes_on = (
        f"epoch {older.epoch} goes on to {head.wal_end}, signed {instant_text(head.at)}, where epoch"
        f" {plan.archive.epoch} left it at {own.parent.lsn}"
    )
    target = plan.target
    is_before_birth = target.instant is not None and target.instant <= own.created_at
    is_open_end = target.kind in ("latest", "time", "lsn")
    if is_before_birth or (is_open_end and head.at > own.created_at):
        why = (
            f"{instant_text(target.instant)} lies before epoch {plan.archive.epoch} began"
            if is_before_birth and target.instant is not None
            else f"both have been written since {instant_text(own.created_at)}"
        )
        raise TargetRefused(
            f"{target} could be meant in two epochs of this cluster",
            detail=f"{goes_on}; {why}",
            hint=f"say which: --archive {older} or --archive {plan.archive}",
        )
    return f"{goes_on}: what it wrote after that is not restored; --archive {older} has it"


def _farthest(plan: RestorePlan) -> LSN:
    """Return the farthest that the plan can lead, as far as it is known yet."""
    if plan.stop is not None:
        return plan.stop.replay_end
    return plan.candidates[-1].until if plan.candidates and not plan.is_past_end else plan.wal_end
