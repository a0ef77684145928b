"""Out of many fences those few that the starts of a replay need, however long the look-back.  Pure.

Fences come newest first; of each topic one for each timeline is kept, and for an event-first topic the one
before its lag.  Whoever gives them may stop when ``is_enough``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice

from pitr.events.classify import Lineage
from pitr.events.fence import Fence, Mark
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.history import XactStatus
from pitr.events.starts import LOOK_BACK, SKEW, FenceView, marks_to_ask, view_fences
from pitr.wal.timeline import TimelineId

FENCES_READ_MAX = 50_000
"""Five days of fences; more are not looked at."""
_BATCH = 100


@dataclass(slots=True)
class _Topic:
    """Fences of one topic that are kept."""

    declared: FlowDeclaration
    newest: dict[TimelineId, Fence] = field(default_factory=dict)
    before_lag: dict[TimelineId, Fence] = field(default_factory=dict)

    def see(self, fence: Fence) -> None:
        if fence.unknown is not None or all(one.name != self.declared.topic for one in fence.topics):
            return
        self.newest.setdefault(fence.mark.timeline, fence)
        if self.declared.flow is not Flow.EVENT_FIRST:
            return
        lag = timedelta(seconds=self.declared.max_lag_s or 0) + SKEW
        for timeline, anchor in self.newest.items():
            if fence.mark.at <= anchor.mark.at - lag:
                self.before_lag.setdefault(timeline, fence)

    def is_found(self) -> bool:
        """Tell whether nothing older is wanted, but for timelines before those that were seen."""
        wants_lag = self.declared.flow is Flow.EVENT_FIRST
        return bool(self.newest) and (not wants_lag or self.newest.keys() == self.before_lag.keys())


@dataclass(frozen=True, slots=True)
class Sifted:
    """What was kept; ``marks`` are the newest and the oldest of each timeline that were seen."""

    view: FenceView
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Sieve:
    """What decides which fences count."""

    declarations: Sequence[FlowDeclaration]
    lineage: Lineage
    system_identifier: int
    ask: Callable[[Sequence[int]], Mapping[int, XactStatus]]
    look_back: timedelta = LOOK_BACK

    def sift(self, newest_first: Iterable[Fence]) -> Sifted:
        """Return those that are needed.  Reads no more than it must, and FENCES_READ_MAX at most."""
        topics = [_Topic(one) for one in self.declarations if one.flow is not Flow.SINK_CURSOR]
        after: list[Fence] = []
        following: list[Fence] = []
        newest: Fence | None = None
        knowing: Fence | None = None
        marks: dict[TimelineId, tuple[Mark, Mark]] = {}
        for batch in _batches(islice(newest_first, FENCES_READ_MAX)):
            for one in batch:
                if one.mark.system_identifier == self.system_identifier:
                    first, _ = marks.get(one.mark.timeline, (one.mark, one.mark))
                    marks[one.mark.timeline] = (first, one.mark)
            asked = marks_to_ask(batch, self.lineage)
            # The last one of the batch before tells where the first one's commit was at the latest.
            view = view_fences(
                [*batch, *following], self.lineage, self.ask(asked) if asked else {}, self.system_identifier
            )
            inside = [one for one in view.inside if one not in following]
            # The oldest of those after the end decide; the newer ones are let go.
            after = [*view.after, *after][:_BATCH]
            for fence in inside:
                newest = newest or fence
                # Whose offsets a sink's cursor are, this one says.
                knowing = knowing or (fence if fence.unknown is None else None)
                for topic in topics:
                    topic.see(fence)
            following = batch[-1:]
            if newest is not None and self._is_enough(topics, newest, batch[-1]):
                break
        view = FenceView(tuple(_ordered(topics, newest, knowing)), tuple(after))
        return Sifted(view, tuple(mark for pair in marks.values() for mark in pair))

    def _is_enough(self, topics: Sequence[_Topic], newest: Fence, last: Fence) -> bool:
        if not all(topic.is_found() for topic in topics):
            return False
        first = self.lineage.branches[0].timeline
        seen_all = all(first in topic.newest for topic in topics)
        return seen_all or last.mark.at < newest.mark.at - self.look_back


def _batches(fences: Iterator[Fence]) -> Iterator[list[Fence]]:
    while batch := list(islice(fences, _BATCH)):
        yield batch


def _ordered(topics: Iterable[_Topic], *others: Fence | None) -> list[Fence]:
    kept: dict[tuple[TimelineId, int], Fence] = {}
    for other in others:
        if other is not None:
            kept[other.mark.timeline, other.mark.number] = other
    for topic in topics:
        for fence in (*topic.newest.values(), *topic.before_lag.values()):
            kept[fence.mark.timeline, fence.mark.number] = fence
    # Along one way positions only grow, whatever the timeline.
    return sorted(kept.values(), key=lambda one: one.mark.lsn, reverse=True)
