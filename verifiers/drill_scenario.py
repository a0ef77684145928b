"""What a drill does: its kinds, and scenarios of named steps, from a closed list of actions.  Pure.

Not here: how a scenario's file is read (``cli.drill_file``), and how it is carried out
(``verifiers.drill_steps``).  Reference: docs/drills.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

STEPS_MAX: Final = 50


class DrillKind(StrEnum):
    """How much a drill tries."""

    COMPONENTS = "components"
    FAILOVER = "failover"
    FULL = "full"
    DISASTER = "disaster"

    @property
    def report_type(self) -> str:
        """What its reports are in the series."""
        return _REPORT_TYPES[self]


_REPORT_TYPES: Final = {
    DrillKind.COMPONENTS: "scrub",
    DrillKind.FAILOVER: "monthly_drill",
    DrillKind.FULL: "monthly_drill",
    DrillKind.DISASTER: "quarterly_drill",
}


class Action(StrEnum):
    """What a step may do; each is described in docs/drills.md."""

    WAIT = "wait"
    NOTE = "note"
    MARK_FAILURE = "mark-failure"
    CUT_REGION = "cut-region"
    RESTORE = "restore"
    START_SERVICE = "start-service"
    LOAD = "load"
    SQL = "sql"
    CHECKS = "checks"


AUTO: Final = "auto"
"""Region: the one whose turn it is, or the primary's."""
BEFORE_CORRUPTION: Final = "before-corruption"
_ONCE: Final = (Action.MARK_FAILURE, Action.RESTORE, Action.START_SERVICE, Action.CHECKS)


@dataclass(frozen=True, slots=True)
class Step:
    """One step; of the fields after ``deadline_s`` only those of its action are set."""

    name: str
    action: Action
    deadline_s: float | None = None
    duration_s: float | None = None
    text: str | None = None
    region: str | None = None
    target: str | None = None
    clients: int | None = None
    database: str | None = None
    query: str | None = None
    errors_permille_max: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A drill's plan; ``sha256`` is of its text, or of what stands here where it has none."""

    name: str
    kind: DrillKind
    steps: tuple[Step, ...]
    description: str = ""
    sha256: str = ""

    def step(self, action: Action) -> Step | None:
        """Return the first step with an action."""
        return next((one for one in self.steps if one.action is action), None)


def scenario_mistakes(steps: Sequence[Step]) -> Iterator[tuple[int | None, str]]:
    """Yield what is wrong with the order of steps: the index of one, None for all, and words."""
    if len(steps) > STEPS_MAX:
        yield None, f"there are {len(steps)} steps; the limit is {STEPS_MAX}"
    names = [one.name for one in steps]
    for at, name in enumerate(names):
        if name in names[:at]:
            yield at, f"the name {name!r} is given twice"
    actions = [one.action for one in steps]
    for action in _ONCE:
        if actions.count(action) != 1:
            yield None, f"{action} is wanted once, and is there {actions.count(action)} times"
    if actions.count(Action.CUT_REGION) > 1:
        yield None, "only one region can be cut off"
    if any(actions.count(action) != 1 for action in _ONCE):
        return
    failure, restore, start, checks = (actions.index(action) for action in _ONCE)
    if failure > restore:
        yield failure, "the failure comes before the restore"
    if start != restore + 1:
        yield start, "the service is started by the step right after the restore"
    if checks < start:
        yield checks, "the checks come after the service was started"
    for at, action in enumerate(actions):
        if action is Action.CUT_REGION and at > restore:
            yield at, "a region is cut off before the restore"
        if action in (Action.LOAD, Action.SQL) and not start < at < checks:
            yield at, f"{action} comes after the service was started, and before the checks, which stop it"
        if action is Action.WAIT and at > checks:
            yield at, "after the checks there is nothing to wait for"


def built_in(kind: DrillKind, *, clients: int, load_s: float) -> Scenario:
    """Return the scenario of a kind where the configuration names no file."""
    assert kind is not DrillKind.COMPONENTS, "it has parts, and no steps"
    cuts = kind is not DrillKind.FULL
    steps = [
        Step("declare", Action.MARK_FAILURE),
        *([Step("cut", Action.CUT_REGION, region=AUTO)] if cuts else []),
        Step("restore", Action.RESTORE, target="latest"),
        Step("promote", Action.START_SERVICE),
        Step("load", Action.LOAD, duration_s=load_s, clients=clients, errors_permille_max=0),
        Step("checks", Action.CHECKS),
    ]
    words = {
        DrillKind.FAILOVER: "one region cannot be reached: the service is rebuilt from the others",
        DrillKind.FULL: "the primary is lost: the service is rebuilt elsewhere, from the store alone",
        DrillKind.DISASTER: "the primary and its region are gone: the service is rebuilt from the others",
    }
    text = json.dumps([asdict(one) for one in steps], sort_keys=True)
    return Scenario(str(kind), kind, tuple(steps), words[kind], hashlib.sha256(text.encode()).hexdigest())
