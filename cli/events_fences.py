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

    def on_way(self, way: Sequence[WalSpan], end: LSN) -> Iterator[Fence]:
        """Yield the fences of a way that stops at ``end``, the newest writer's first, each's newest first.

        Of a writer that the way has left only those that lie on it: what it wrote later, or on a timeline
        of another's number, is no part of it.  Of the last one also what follows the end.  Raises as
        ``downwards``.
        """
        last = way[-1].archive
        for archive in dict.fromkeys(one.archive for one in reversed(way)):
            spans = [one for one in way if one.archive == archive]
            limit = end if archive == last else spans[-1].end or end
            for fence in self.downwards(archive, spans[-1].timeline, limit):
                mark = fence.mark
                if archive == last or any(
                    one.timeline == mark.timeline and (one.end is None or mark.lsn < one.end) for one in spans
                ):
                    yield fence

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


def beside_branches(
    survey: ArchiveSurvey, timeline: TimelineId, later: Sequence[Branch]
) -> tuple[Branch, ...]:
    """Return the timelines of this cluster, of any writer, that are neither on the way to one nor ``later``.

    The LSN of each is where it left the way, or what it came from did.  Raises TargetRefused if the way is
    not known; another one that is not known is left out.
    """
    from pitr.wal_runs import way_to

    own = way_in(survey, later[-1].timeline if later else timeline)
    found: dict[tuple[ArchiveId, TimelineId], Branch] = {}
    for archive, histories in survey.histories.items():
        for history in histories:
            try:
                other = way_to(archive, history.timeline, survey.epochs, survey.histories)
            except PitrError:
                continue
            for span, lsn in _beside(own, other):
                found.setdefault((span.archive, span.timeline), Branch(span.timeline, lsn, 0, XID_MAX))
    return tuple(found.values())


def _beside(own: Sequence[WalSpan], other: Sequence[WalSpan]) -> Iterator[tuple[WalSpan, LSN]]:
    """Yield the spans of another way which are not on the own one, and where they left it."""
    common = 0
    for mine, theirs in zip(own, other, strict=False):
        if (mine.archive, mine.timeline) != (theirs.archive, theirs.timeline):
            break
        common += 1
    if common == len(other):
        return
    left = other[common].start
    end = own[common - 1].end if common else None
    left = left if end is None else min(left, end)
    for at in range(common, len(other)):
        # A writer that goes on with a timeline, instead of beginning one, is the same line of WAL.
        if not at or other[at].timeline != other[at - 1].timeline:
            yield other[at], left


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
