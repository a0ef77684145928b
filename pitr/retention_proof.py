"""The proof of an expiry plan: the planner's own answers, before and after, for every kind of target.  Pure.

The decision (``pitr.retention``) reasons about times and positions; here nothing is reasoned: a restore is
planned with all that is there and with only what would be kept, and both must be the same restore.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias, TypeVar

from pitr.errors import ExpiryRefused, TargetRefused
from pitr.planner import plan_along
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.retention import ExpiryPlan, Place, seen_from, what_stays
from pitr.survey import TICK, ArchiveSurvey, Ground, Window, survey_ground
from pitr.wal_runs import WalLink

# Evenly over the window, beside the moments that the caller names.
_INSTANTS: Final = 32
# So many of the moments at which the planner's choice changes, and of the backups: each costs a plan.
_BORDERS_MAX: Final = 192
_BACKUPS_MAX: Final = 48
_LOST_TOLD_MAX: Final = 5

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class ProvenTargets:
    """How many targets were planned twice, and how many of them can be restored."""

    targets: int
    restorable: int


@dataclass(frozen=True, slots=True)
class _Question:
    """One restore to plan along a way, with a backup that is named or not."""

    target: RecoveryTarget
    backup: str | None = None

    def __str__(self) -> str:
        return str(self.target) if self.backup is None else f"{self.target} of backup {self.backup}"


@dataclass(slots=True)
class _Compared:
    """Runs of WAL that were found to be alike, from where on."""

    alike_from: dict[tuple[int, int], int] = field(default_factory=dict)


def prove_plan(
    survey: ArchiveSurvey, plan: ExpiryPlan, *, now: datetime, instants: Sequence[datetime] = ()
) -> ProvenTargets:
    """Plan restores with what is there and with what would stay, and compare them.

    On every way that anything inside the window lies on each kept backup must lead to the same moments along
    the same WAL.  Asked are the window's start, moments over the window and ``instants``, those around which
    another backup is taken, both ends of what a backup can be taken to, its consistency, and the latest.
    Raises ExpiryRefused with what would be lost.
    """
    stays = what_stays(survey, plan)
    kept = {each.backup.backup for each in plan.kept}
    lost: list[str] = []
    asked = restorable = 0
    for place in plan.ways:
        latest = RecoveryTarget("latest", timeline=place[1])
        before, after = (survey_ground(latest, seen_from(all_, place[0]), None) for all_ in (survey, stays))
        where = f"on timeline {place[1]} of archive {place[0]}"
        lost += [f"backup {name} {where}" for name in _changed_backups(before, after, kept)]
        for question in _questions(plan, place, before, kept, now, instants):
            one, other = _answer(before, question), _answer(after, question)
            asked += 1
            restorable += one is not None
            if one != other:
                lost.append(f"{question} {where}")
    if lost:
        more = f" and {len(lost) - _LOST_TOLD_MAX} more" if len(lost) > _LOST_TOLD_MAX else ""
        raise ExpiryRefused(
            f"{len(lost)} targets inside the window would be lost or change; nothing was deleted",
            detail="; ".join(lost[:_LOST_TOLD_MAX]) + more,
            hint="this is a mistake in pitr itself: report it, with what `pitr expire --json` says",
        )
    return ProvenTargets(asked, restorable)


def _changed_backups(before: Ground, after: Ground, kept: set[str]) -> Iterator[str]:
    """Yield the kept backups that would lead to other moments, or along other WAL."""
    stays = {window.backup.backup: window for window in after.windows}
    compared = _Compared()
    for window in before.windows:
        name = window.backup.backup
        other = stays.get(name)
        if name in kept and (other is None or not _is_alike(window, other, compared)):
            yield name


def _is_alike(one: Window, other: Window, compared: _Compared) -> bool:
    if replace(one, run=other.run) != other:
        return False
    # Backups of one run share its WAL from where the later one begins: compared once, it is compared for all.
    runs = (id(one.run), id(other.run))
    first = one.backup.wal_start.offset
    if runs not in compared.alike_from or first < compared.alike_from[runs]:
        if _links(one) != _links(other):
            return False
        compared.alike_from[runs] = first
    return True


def _links(window: Window) -> list[_Link]:
    links, first = window.run.links, window.backup.wal_start.offset
    at = bisect_right(links, first, key=lambda link: link.until.offset)
    return [_link(link, first) for link in links[at:]]


# Of one link: the object that is read, and which part of it.
_Link: TypeAlias = tuple[object, int, int]


def _link(link: WalLink, first: int) -> _Link:
    return link.unit.key, max(first, link.start.offset), link.until.offset


def _questions(
    plan: ExpiryPlan,
    place: Place,
    ground: Ground,
    kept: set[str],
    now: datetime,
    instants: Sequence[datetime],
) -> Iterator[_Question]:
    timeline = place[1]
    step = (now - plan.since) / _INSTANTS
    times = {plan.since + number * step for number in range(_INSTANTS + 1)} | set(instants)
    borders = {at for window in ground.windows for at in (window.from_at, window.until_at) if at is not None}
    borders = {at + shift for at in borders for shift in (-TICK, timedelta(), TICK)}
    times |= set(_spread(sorted(at for at in borders if at >= plan.since), _BORDERS_MAX))
    for at in sorted(times):
        if at >= plan.since:
            yield _Question(RecoveryTarget("time", instant=at, timeline=timeline))
    for window in _spread([each for each in ground.windows if each.backup.backup in kept], _BACKUPS_MAX):
        name = window.backup.backup
        yield _Question(RecoveryTarget("immediate", timeline=timeline), name)
        for lsn in (window.backup.stop_lsn, window.run.end):
            yield _Question(RecoveryTarget("lsn", lsn=lsn, timeline=timeline), name)
    yield _Question(RecoveryTarget("latest", timeline=timeline))


def _spread(values: Sequence[_Value], count_max: int) -> list[_Value]:
    """Return at most so many of the values, evenly, the first and the last among them."""
    if len(values) <= count_max:
        return list(values)
    last = len(values) - 1
    return [values[number * last // (count_max - 1)] for number in range(count_max)]


# What a restore does: its backup and what that is built on, its WAL, and whether it goes to the end.
_Restore: TypeAlias = tuple[str, tuple[str, ...], int, _Link, _Link, bool]


def _answer(ground: Ground, question: _Question) -> _Restore | None:
    """Return the restore that is planned, None where it is refused."""
    if question.backup is not None:
        windows = tuple(each for each in ground.windows if each.backup.backup == question.backup)
        ground = replace(ground, windows=windows)
    try:
        return _restore(plan_along(question.target, ground))
    except TargetRefused:
        return None


def _restore(plan: RestorePlan) -> _Restore:
    parents = tuple(parent.backup for parent in plan.parents)
    # Which WAL lies between was compared for the backup as a whole.
    ends = (_link(plan.links[0], 0), _link(plan.links[-1], 0))
    return plan.backup.backup, parents, len(plan.links), *ends, plan.is_past_end
