"""What a topic lacks for a replay is told before one is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pitr.events.broker import TopicFacts
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.topic_checks import Weight, check_syncs, check_topics, check_undeclared

DAY_MS = 86_400_000
WINDOW_S = 7 * 86_400.0
ORDERS = FlowDeclaration("orders", Flow.DB_FIRST)
FOREVER = TopicFacts(
    "orders",
    "id",
    3,
    is_compacted=False,
    is_deleted_by_age=True,
    retention_ms=None,
    retention_bytes=None,
    delete_retention_ms=DAY_MS,
    has_append_time=True,
)


def said(topic: TopicFacts, flow: FlowDeclaration = ORDERS) -> dict[str, Weight]:
    return {one.check: one.weight for one in check_topics([flow], {topic.name: topic}, WINDOW_S)}


def test_a_topic_that_keeps_all_is_well() -> None:
    assert said(FOREVER) == {"events.retention": Weight.OK}
    assert said(replace(FOREVER, retention_ms=1, is_deleted_by_age=False)) == {"events.retention": Weight.OK}


@pytest.mark.parametrize(("kept_ms", "weight"), [(7 * DAY_MS, Weight.OK), (7 * DAY_MS - 1, Weight.WARN)])
def test_records_must_be_kept_as_long_as_the_window(kept_ms: int, weight: Weight) -> None:
    assert said(replace(FOREVER, retention_ms=kept_ms))["events.retention"] is weight


def test_the_lag_of_an_event_first_flow_is_needed_beside_the_window() -> None:
    flow = FlowDeclaration("orders", Flow.EVENT_FIRST, max_lag_s=3600)
    assert said(replace(FOREVER, retention_ms=7 * DAY_MS), flow)["events.retention"] is Weight.WARN
    assert said(replace(FOREVER, has_append_time=False), flow)["events.timestamps"] is Weight.WARN
    assert "events.timestamps" not in said(replace(FOREVER, has_append_time=False))


def test_bounds_by_size_and_compaction_are_told() -> None:
    assert said(replace(FOREVER, retention_bytes=1 << 30))["events.retention_bytes"] is Weight.WARN
    state = replace(FOREVER, is_compacted=True)
    (short,) = [one for one in check_topics([ORDERS], {"orders": state}, WINDOW_S) if "compact" in one.check]
    assert "brings last values" not in short.message
    assert "deleted things back" in short.message
    whole = replace(state, delete_retention_ms=8 * DAY_MS)
    (kept,) = [one for one in check_topics([ORDERS], {"orders": whole}, WINDOW_S) if "compact" in one.check]
    assert "last values" in kept.message


def test_a_declared_topic_that_is_not_there_fails() -> None:
    (found,) = check_topics([ORDERS], {}, WINDOW_S)
    assert (found.check, found.weight, found.subject) == ("events.topic", Weight.FAIL, "orders")


def test_topics_that_nobody_declared_are_counted_without_kafkas_own() -> None:
    own = ["__consumer_offsets", "mm2-status", "east.checkpoints.internal", "heartbeats", "orders"]
    assert list(check_undeclared(own, [ORDERS])) == []
    (found,) = check_undeclared([*own, *(f"t{number}" for number in range(12))], [ORDERS])
    assert found.message.startswith("12 topics are not declared")
    assert found.message.endswith("and others")


def test_offset_syncs_must_be_on_the_mirrors_side() -> None:
    assert (
        check_syncs("mm2-offset-syncs.east.internal", ["mm2-offset-syncs.east.internal"]).weight is Weight.OK
    )
    assert check_syncs("mm2-offset-syncs.east.internal", ["east.orders"]).weight is Weight.FAIL
