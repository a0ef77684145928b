"""Name in a plan what a mirror never had.  Pure.

A plan over a mirror finds what its target no longer has; that some records never came there only the pairs
tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pitr.events.gaps import Gap, GapKind
from pitr.events.partition import TopicPartition
from pitr.events.plan import PartitionPlan, ReplayPlan


def with_unmirrored(
    plan: ReplayPlan, missing: Mapping[tuple[int | None, TopicPartition], tuple[int, int]]
) -> ReplayPlan:
    """Return the plan with a gap for each start below which the mirror has nothing.

    ``missing`` is what ``mirror_fences.FenceTranslator`` collected; offsets in it are the source's.
    """

    def mark(topic: str, one: PartitionPlan) -> PartitionPlan:
        found = missing.get((one.fence, TopicPartition(topic, one.partition)))
        if found is None:
            return one
        return replace(one, gaps=(*one.gaps, Gap(GapKind.UNMIRRORED, *found)))

    topics = tuple(
        replace(topic, partitions=tuple(mark(topic.topic, one) for one in topic.partitions))
        for topic in plan.topics
    )
    return replace(plan, topics=topics)
