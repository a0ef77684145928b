"""What a mirror lacks is told while its source is well."""

from __future__ import annotations

from dataclasses import replace

from pitr.events.broker import TopicFacts
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.mirror_checks import check_mirror
from pitr.events.mirror_names import MirrorNames
from pitr.events.topic_checks import Weight

NAMES = MirrorNames("eu")
ORDERS = FlowDeclaration("orders", Flow.DB_FIRST)
COPY = TopicFacts("eu.orders", "id", 2, False, True, None, None, 0, False)
THERE = ["eu.heartbeats", "eu.orders", NAMES.syncs]


def bad(there: list[str], copy: TopicFacts | None) -> dict[str, Weight]:
    facts = {} if copy is None else {copy.name: copy}
    found = check_mirror(NAMES, [ORDERS], there, facts, 86_400.0)
    return {one.check: one.weight for one in found if one.weight is not Weight.OK}


def test_a_mirror_that_has_all_is_well() -> None:
    assert bad(THERE, COPY) == {}


def test_each_lack_has_its_finding() -> None:
    assert bad(THERE, None) == {"events.mirror_topic": Weight.FAIL}
    assert bad(THERE[:2], COPY) == {"events.offset_syncs": Weight.FAIL}
    assert bad(THERE[1:], COPY) == {"events.mirror_heartbeats": Weight.WARN}
    assert bad(THERE, replace(COPY, has_append_time=True)) == {"events.mirror_timestamps": Weight.WARN}
    assert bad(THERE, replace(COPY, retention_ms=3_600_000)) == {"events.retention": Weight.WARN}


def test_a_copy_of_an_event_first_topic_may_have_the_source_s_timestamps() -> None:
    flow = FlowDeclaration("orders", Flow.EVENT_FIRST, max_lag_s=10.0)
    found = list(check_mirror(NAMES, [flow], THERE, {"eu.orders": COPY}, 86_400.0))
    assert all(one.weight is Weight.OK for one in found)
