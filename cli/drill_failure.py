"""What the regions had at a drill's failure: looked at right before it is declared, for production goes on.

Who looks after it sees what was archived since, and would count that as saved.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """What all regions had and what those that are left had; ``head_at``: their newest signed end's time."""

    lost: Lost
    head_at: datetime | None

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
    return AtFailure(Lost(_end_of(every), _end_of(left)), None if head is None else head.at)


def _look(run: DrillRun, without: str | None) -> Looked:
    identity = run.source.identity_path
    with open_reader(run.settings, identity_path=identity, without=without) as reader:
        return look(reader, run.source, run.app.output)


def _end_of(looked: Looked) -> RestorableMoment | None:
    """Return the newest moment that the regions hold on the way from a backup."""
    stretches = restorable_stretches(looked.survey)
    return max((one.last for one in stretches), key=lambda moment: moment.lsn, default=None)
