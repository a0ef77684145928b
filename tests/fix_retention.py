"""Worlds to expire something of: epochs, timelines, orphaned tails, holes, chains; and what is to be kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import fix_archive as fix
from fix_worlds import FIRST, LAST, World, worlds
from hypothesis import strategies as st

from pitr.catalogue.backup_record import BackupManifest
from pitr.retention import ExpiryPlan, plan_expiry


@dataclass
class Case:
    """A world, and what is to be kept of it."""

    world: World
    since: datetime
    now: datetime
    minimum: int

    @property
    def plan(self) -> ExpiryPlan:
        return plan_expiry(
            self.world.survey(),
            window=self.now - self.since,
            minimum_full_backups=self.minimum,
            now=self.now,
        )


@st.composite
def cases(draw: st.DrawFn, *, is_aligned: bool) -> Case:
    world = draw(worlds(is_aligned=is_aligned))
    newest = max(world.writers)
    world.archive, world.timeline = newest, world.writers[newest].timelines[-1][0]
    world.end = replace(world.end, head=None, is_certain=True)
    world.backups = _chained(draw, world.backups)
    now = LAST * 10 + draw(st.integers(40, 200))
    since = draw(st.integers(FIRST * 10 - 20, now))
    return Case(world, fix.at_second(since), fix.at_second(now), draw(st.integers(0, 3)))


def _chained(draw: st.DrawFn, backups: list[BackupManifest]) -> list[BackupManifest]:
    """Build some backups on an earlier one of the same writer and timeline, and on nothing else."""
    made: list[BackupManifest] = []
    alone = [replace(each, type="full", parent=None) for each in backups]
    for backup in sorted(alone, key=lambda each: each.start_lsn):
        earlier = [
            each
            for each in made
            if each.stop_lsn <= backup.start_lsn
            and (each.archive, each.timeline) == (backup.archive, backup.timeline)
        ]
        if earlier and draw(st.booleans()):
            name = backup.backup.replace("-full-", "-incr-")
            backup = replace(backup, type="incr", parent=draw(st.sampled_from(earlier)).backup, backup=name)
        made.append(backup)
    return made
