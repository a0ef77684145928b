"""Which consumer groups must be moved back, for their sinks' effects were lost with the restore.  Pure.

A group that stands where replay starts, or before, will read it all by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pitr.events.broker import GroupState
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.partition import TopicPartition
from pitr.events.plan import GroupPlan, OffsetReset, TopicPlan


def plan_resets(
    topics: Sequence[TopicPlan],
    declarations: Mapping[str, FlowDeclaration],
    states: Mapping[str, GroupState],
) -> tuple[GroupPlan, ...]:
    """Return the groups to move, by name; ``states`` holds those of all groups that are declared."""
    found: dict[str, list[OffsetReset]] = {}
    for topic in topics:
        declared = declarations[topic.topic]
        # A db-first topic's consumers are downstream: what they did is not in this database.
        if declared.group is None or declared.flow is Flow.DB_FIRST:
            continue
        offsets = states[declared.group].offsets
        for one in topic.partitions:
            now = offsets.get(TopicPartition(topic.topic, one.partition))
            if now is None or now > one.start:
                found.setdefault(declared.group, []).append(
                    OffsetReset(topic.topic, one.partition, now, one.start)
                )
    return tuple(GroupPlan(group, tuple(resets)) for group, resets in sorted(found.items()))
