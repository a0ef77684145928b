"""What is wrong with declared topics for a replay, told before one is needed.  Pure.

A replay needs what was published since the oldest moment that can be restored.  So a topic must keep its
records at least as long as the archive's window, and what it does not keep is named now, not after a loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pitr.events.broker import TopicFacts
from pitr.events.flows import Flow, FlowDeclaration

# Names that are shown of many; the count says the rest.
NAMES_SHOWN = 10
# What MirrorMaker, Connect and Kafka itself keep.
_INTERNAL_ENDS = (".internal", "heartbeats")
_INTERNAL_BEGINS = ("__", "mm2-", "connect-")


class Weight(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class TopicFinding:
    """The outcome of one check; ``check`` names it for good, ``subject`` is the topic."""

    check: str
    weight: Weight
    subject: str
    message: str
    hint: str | None = None


def check_topics(
    flows: Sequence[FlowDeclaration], facts: Mapping[str, TopicFacts], window_s: float
) -> Iterator[TopicFinding]:
    """Yield the findings of every declared topic; ``window_s`` is how far back a restore may go."""
    for flow in flows:
        topic = facts.get(flow.topic)
        if topic is None:
            yield TopicFinding(
                "events.topic",
                Weight.FAIL,
                flow.topic,
                "it is declared, and Kafka does not have it or does not show it",
                "correct its name, or let the user of client_file describe it",
            )
            continue
        yield from _check(flow, topic, window_s)


def _check(flow: FlowDeclaration, topic: TopicFacts, window_s: float) -> Iterator[TopicFinding]:
    needed_s = window_s + (flow.max_lag_s or 0.0)
    yield _retention(topic, needed_s)
    if topic.retention_bytes is not None:
        yield TopicFinding(
            "events.retention_bytes",
            Weight.WARN,
            topic.name,
            f"a partition keeps {topic.retention_bytes} bytes, however young they are",
            f"kafka-configs --alter --topic {topic.name} --add-config retention.bytes=-1",
        )
    if topic.is_compacted:
        yield _compaction(topic, needed_s)
    if flow.flow is Flow.EVENT_FIRST and not topic.has_append_time:
        yield TopicFinding(
            "events.timestamps",
            Weight.WARN,
            topic.name,
            "its timestamps are the producers' claims, and an event-first flow is bounded by time",
            f"kafka-configs --alter --topic {topic.name} --add-config message.timestamp.type=LogAppendTime",
        )


def _retention(topic: TopicFacts, needed_s: float) -> TopicFinding:
    check = "events.retention"
    if not topic.is_deleted_by_age or topic.retention_ms is None:
        return TopicFinding(check, Weight.OK, topic.name, "no record is deleted for its age")
    kept_s = topic.retention_ms / 1000
    if kept_s >= needed_s:
        return TopicFinding(check, Weight.OK, topic.name, f"records are kept for {_days(kept_s)}")
    return TopicFinding(
        check,
        Weight.WARN,
        topic.name,
        f"records are kept for {_days(kept_s)}, and a restore may go back {_days(needed_s)}:"
        " beyond that a replay has a gap",
        f"kafka-configs --alter --topic {topic.name} --add-config retention.ms={int(needed_s * 1000)}",
    )


def _compaction(topic: TopicFacts, needed_s: float) -> TopicFinding:
    check = "events.compaction"
    if topic.delete_retention_ms / 1000 < needed_s:
        return TopicFinding(
            check,
            Weight.WARN,
            topic.name,
            "it is compacted, and forgets deletions after"
            f" {_days(topic.delete_retention_ms / 1000)}: a replay would bring deleted things back",
            f"kafka-configs --alter --topic {topic.name} --add-config"
            f" delete.retention.ms={int(needed_s * 1000)}",
        )
    return TopicFinding(
        check, Weight.WARN, topic.name, "it is compacted: a replay brings last values, not what happened"
    )


def check_undeclared(names: Sequence[str], flows: Sequence[FlowDeclaration]) -> Iterator[TopicFinding]:
    """Tell of topics that are not declared: nothing says how they flow, so a replay refuses them."""
    declared = {flow.topic for flow in flows}
    others = [name for name in names if name not in declared and not is_internal(name)]
    if others:
        shown = ", ".join(others[:NAMES_SHOWN]) + (" and others" if len(others) > NAMES_SHOWN else "")
        yield TopicFinding(
            "events.undeclared",
            Weight.WARN,
            "[[events.topic]]",
            f"{len(others)} topics are not declared, and no replay takes them: {shown}",
            "declare those whose events belong to the database",
        )


def check_syncs(syncs_topic: str, mirror_names: Sequence[str]) -> TopicFinding:
    """Tell whether the mirror keeps its offset syncs on its own side: on the source's they die with it."""
    check = "events.offset_syncs"
    if syncs_topic in mirror_names:
        return TopicFinding(check, Weight.OK, syncs_topic, "the mirror's cluster has the offset syncs")
    return TopicFinding(
        check,
        Weight.FAIL,
        syncs_topic,
        "the mirror's cluster has no such topic: without the source's region no offset could be translated",
        "set offset-syncs.topic.location = target in MirrorMaker 2",
    )


def is_internal(name: str) -> bool:
    """Tell whether a topic is Kafka's, Connect's or MirrorMaker's own."""
    return name.startswith(_INTERNAL_BEGINS) or name.endswith(_INTERNAL_ENDS)


def _days(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.1f} days"
