"""What the regions had at a drill's failure: looked at right before it is declared, for production goes on.

Who looks after it sees what was archived since, and would count that as saved; and a backup that was taken
since would make the recovery look shorter.  So the restore is planned from what was there then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cli.drill_choice import DrillRun
from cli.planning import Looked, look
from cli.wiring import open_reader
from pitr.planner import restorable_stretches
from verifiers.drill_report import Lost

if TYPE_CHECKING:
    from pitr.restore_plan import RestorableMoment


@dataclass(frozen=True, slots=True)
class AtFailure:
    """What all regions had, and those that are ``left``; ``head_at``: the time of their newest signed end."""

    lost: Lost
    left: Looked
    head_at: datetime | None

    def bound(self, looked: Looked) -> Looked:
        """Return what was seen after the failure without what came after it."""
        return replace(looked, survey=self.left.survey, heads=self.left.heads)

    def age_ms(self, failure_at: datetime) -> int | None:
        """Return how old the newest signed end was at the failure; one from the future is a clock's doing."""
        if self.head_at is None:
            return None
        return max(0, round((failure_at.astimezone(UTC) - self.head_at).total_seconds() * 1000))


def look_at_failure(run: DrillRun) -> AtFailure:
    """Look at all regions, then at those that are left.  Raises as a plan does."""
    every = left = _look(run, None)
    if run.ready.cut is not None:
        left = _look(run, run.ready.cut)
    head = left.heads.get(left.archive)
    return AtFailure(Lost(_end_of(every), _end_of(left)), left, None if head is None else head.at)


def _look(run: DrillRun, without: str | None) -> Looked:
    identity = run.source.identity_path
    with open_reader(run.settings, identity_path=identity, without=without) as reader:
        return look(reader, run.source, run.app.output)


def _end_of(looked: Looked) -> RestorableMoment | None:
    """Return the newest moment that the regions hold on the way from a backup."""
    stretches = restorable_stretches(looked.survey)
    return max((one.last for one in stretches), key=lambda moment: moment.lsn, default=None)
