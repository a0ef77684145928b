"""Signed fences and the way of timelines, as a plan of replay reads them from the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pitr.errors import MalformedValue, NotAuthentic, PitrError
from pitr.events.forks import branches_of
from pitr.events.history import XID_MAX, Branch
from pitr.wal.timeline import TimelineHistory, TimelineSwitch
from storage.store import ObjectMissing

if TYPE_CHECKING:
    from pitr.events.fence import Fence
    from pitr.events.fence_store import FenceReader
    from pitr.layout import ArchiveId
    from pitr.survey import ArchiveSurvey
    from pitr.wal.lsn import LSN
    from pitr.wal.timeline import TimelineId
    from pitr.wal_reader import DataKeySource
    from pitr.wal_runs import WalSpan

# So many that are bad are no rot but an attack; fence_store stops there too.
BAD_MAX = 16


@dataclass(slots=True)
class SignedFences:
    """Reads the fences of an archive downwards from a place; what is wrong with objects is kept."""

    fences: FenceReader
    keys: DataKeySource
    faults: list[str]

    def downwards(self, archive: ArchiveId, timeline: TimelineId, end: LSN) -> Iterator[Fence]:
        """Yield fences, the newest first, from the object behind a place on.

        Raises NotAuthentic after BAD_MAX bad objects, KeyMissing, StoreError.
        """
        ordered = list(reversed(self.fences.sequences(archive)))
        low, high = 0, len(ordered)
        while low < high:
            middle = (low + high) // 2
            try:
                first = self.fences.header(archive, ordered[middle]).header.first
                is_after = (first.timeline.number, first.lsn) > (timeline.number, end)
            except (NotAuthentic, MalformedValue, ObjectMissing) as wrong:
                self._note(f"fences {ordered[middle]} cannot be used: {wrong}")
                # Look below: a fence that is too early is safe, and costs only more to read.
                is_after = True
            low, high = (low, middle) if is_after else (middle + 1, high)
        # One object more: its fences are after the end, and bound what is not in the database.
        for sequence in reversed(ordered[: low + 1]):
            try:
                found = self.fences.read(archive, sequence, self.keys)
            except (NotAuthentic, MalformedValue, ObjectMissing) as wrong:
                self._note(f"fences {sequence} cannot be used: {wrong}")
                continue
            yield from reversed(found)

    def _note(self, text: str) -> None:
        if text not in self.faults:
            self.faults.append(text)
        if len(self.faults) >= BAD_MAX:
            raise NotAuthentic(
                f"{len(self.faults)} objects of fences are bad",
                detail=self.faults[0],
                hint="look at the other regions one by one with `--region`",
            )


def history_of(way: Sequence[WalSpan]) -> TimelineHistory:
    """Return the timelines of a way, each with the LSN where it was left."""
    switches = [
        TimelineSwitch(one.timeline, following.start)
        for one, following in pairwise(way)
        if one.timeline != following.timeline
    ]
    return TimelineHistory(way[-1].timeline, tuple(switches))


def way_in(survey: ArchiveSurvey, timeline: TimelineId) -> tuple[WalSpan, ...]:
    """Return the way to a timeline as an archive knows it.  Raises TargetRefused."""
    from pitr.wal_runs import way_to

    return way_to(survey.archive, timeline, survey.epochs, survey.histories)


def later_branches(survey: ArchiveSurvey, branches: Sequence[Branch], end: LSN) -> tuple[Branch, ...]:
    """Return the timelines that followed a place on the way to the archive's newest one, none if unknown."""
    head = survey.end.head
    if head is None:
        return ()
    try:
        newest = branches_of(history_of(way_in(survey, head.timeline)))
    except PitrError:
        return ()
    at = next((n for n, one in enumerate(newest) if one.timeline == branches[-1].timeline), None)
    if at is None or at + 1 >= len(newest) or newest[at + 1].fork_lsn < end:
        return ()
    return tuple(Branch(one.timeline, one.fork_lsn, 0, XID_MAX) for one in newest[at + 1 :])
