"""Move consumer groups back to where replay starts, so that their sinks read again what the restore lost.

A group with members cannot be moved: they would write their own offsets over it.  It may be repeated: a group
that stands where it should is left alone, and so is one that stands before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pitr.events.broker import Broker
from pitr.events.partition import TopicPartition
from pitr.events.plan import GroupPlan, ReplayPlan


@dataclass(frozen=True, slots=True)
class GroupMove:
    """One offset of a group: where it stands now, and where it goes; ``is_needed``: whether it has to."""

    group: str
    at: TopicPartition
    now: int | None
    to: int
    is_empty: bool

    @property
    def is_needed(self) -> bool:
        """Tell whether it stands elsewhere, and behind what it must read again."""
        return self.now is None or self.now > self.to


def moves_of(plan: ReplayPlan, broker: Broker, groups: Sequence[str] = ()) -> list[GroupMove]:
    """Return what is to be moved, as the groups stand now; of ``groups`` only, if any are named.

    Raises BrokerUnavailable, BrokerRefused; changes nothing.
    """
    return [
        one for group in plan.groups if not groups or group.group in groups for one in _moves(group, broker)
    ]


def _moves(group: GroupPlan, broker: Broker) -> list[GroupMove]:
    state = broker.group(group.group)
    found = []
    for one in group.resets:
        at = TopicPartition(one.topic, one.partition)
        found.append(GroupMove(group.group, at, state.offsets.get(at), one.to, state.is_empty))
    return found


def move_groups(moves: Sequence[GroupMove], broker: Broker) -> int:
    """Move the groups that have to be; return how many offsets were moved.  Raises as ``moves_of``."""
    count = 0
    for group in dict.fromkeys(one.group for one in moves):
        wanted = {one.at: one.to for one in moves if one.group == group and one.is_needed}
        if wanted:
            broker.set_group_offsets(group, wanted)
            count += len(wanted)
    return count
