"""Forks between the regions that are read: told before a plan is made, and what depends on one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pitr.errors import NotAuthentic, NotInitialised
from pitr.region_heads import HeadFork, compare_heads, is_before_fork, last_common_head

if TYPE_CHECKING:
    from cli.output import Output
    from cli.wiring import Reader
    from pitr.catalogue.records import EpochParent, HeadRecord
    from pitr.layout import ArchiveId
    from pitr.restore_plan import RestorePlan
    from pitr.wal.lsn import LSN
    from pitr.wal.timeline import TimelineId

# A chain of restored clusters is short; more parents than this is a mistake of records.
_EPOCHS_MAX = 100


@dataclass(frozen=True, slots=True)
class ForkSeen:
    """Two regions part ways in ``archive`` after the head ``common``; None if they have none alike.

    ``left_at`` is where the plan's own archive has left this one; None if it is that archive itself.
    """

    archive: ArchiveId
    fork: HeadFork
    common: HeadRecord | None
    left_at: EpochParent | None

    def __str__(self) -> str:
        one, other = self.fork.regions
        return (
            f"regions {one} and {other} have different signed ends of archive {self.archive}:"
            f" head {self.fork.sequence if self.common is None else self.common.sequence + 1}"
        )


def warn_of_forks(reader: Reader, archive: ArchiveId, output: Output) -> tuple[ForkSeen, ...]:
    """Compare the signed ends of the regions that are read, also of the archives that this one came from.

    Costs a listing and a few small reads for each region.  Raises as ``compare_heads``.
    """
    seen: list[ForkSeen] = []
    current, left_at = archive, None
    for _ in range(_EPOCHS_MAX):
        try:
            found = compare_heads(reader.repository, current, reader.store.regions, heads_max=1)
        except NotInitialised:
            # A parent that no region has cannot be compared; whoever needs its WAL is told by the plan.
            break
        for fork in found.first_forks():
            common = last_common_head(reader.repository, current, reader.store.regions, fork)
            seen.append(ForkSeen(current, fork, common, left_at))
        left_at = reader.repository.epoch(current).parent
        if left_at is None:
            break
        current = type(archive)(archive.system_identifier, left_at.epoch)
    for one in seen:
        output.warn(f"FORK: {one}; what follows may be another cluster's: {_alike(one)}")
    return tuple(seen)


def refuse_forked(plan: RestorePlan, forks: Sequence[ForkSeen]) -> RestorePlan:
    """Return the plan if no fork touches what it needs, or if its stop is not known yet.

    Raises NotAuthentic: nobody but a person can say which side is right.
    """
    if plan.stop is None:
        return plan
    end = (plan.timeline, max(plan.stop.replay_end, plan.stop.read_end))
    for one in forks:
        used: tuple[TimelineId, LSN] = end
        if one.left_at is not None:
            used = min(end, (one.left_at.timeline, one.left_at.lsn))
        if not is_before_fork(one.common, *used):
            raise NotAuthentic(
                f"{one}; the target depends on which of them is right",
                detail=f"both are signed by the host: two writers have its key, or one region was rolled back"
                f" and written anew; {_alike(one)}",
                hint="look at each side with pitr plan --region NAME, decide, and restore from that region"
                " alone with --region NAME or --from URL, up to an LSN; or to before the fork",
            )
    return plan


def _alike(one: ForkSeen) -> str:
    if one.common is None or one.common.wal_end is None:
        return "they have no end in common"
    return (
        f"they are alike up to lsn:{one.common.wal_end} of timeline {one.common.timeline},"
        f" head {one.common.sequence}"
    )
