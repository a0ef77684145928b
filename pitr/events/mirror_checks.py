"""What is wrong with a mirror for a replay, told before its source is gone.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pitr.events.broker import TopicFacts
from pitr.events.flows import FlowDeclaration
from pitr.events.mirror_names import MirrorNames
from pitr.events.topic_checks import TopicFinding, Weight, check_syncs, check_topics


def check_mirror(
    names: MirrorNames,
    flows: Sequence[FlowDeclaration],
    there: Sequence[str],
    facts: Mapping[str, TopicFacts],
    window_s: float,
) -> Iterator[TopicFinding]:
    """Yield the findings of a mirror's target.

    ``there`` are its topics' names, ``facts`` those of declared topics by the *target's* names; ``window_s``
    is how far back a restore may go.
    """
    yield check_syncs(names.syncs, there)
    copied = {flow: facts[names.remote(flow.topic)] for flow in flows if names.remote(flow.topic) in facts}
    for flow in flows:
        if flow not in copied:
            yield TopicFinding(
                "events.mirror_topic",
                Weight.FAIL,
                flow.topic,
                f"it is not mirrored: the mirror's cluster has no {names.remote(flow.topic)}",
                "add it to the flow's topics in MirrorMaker 2, or correct [events.mirror] policy",
            )
        elif copied[flow].has_append_time:
            yield TopicFinding(
                "events.mirror_timestamps",
                Weight.WARN,
                copied[flow].name,
                "the mirror's cluster writes timestamps of its own, so no record is found by who it is",
                f"kafka-configs --alter --topic {copied[flow].name}"
                " --add-config message.timestamp.type=CreateTime",
            )
    # The copies must be kept as long as what they are copies of; their timestamps are the source's.
    of_copies = {flow.topic: one for flow, one in copied.items()}
    for found in check_topics(list(copied), of_copies, window_s):
        if found.check != "events.timestamps":
            yield found
    if names.heartbeats not in there:
        yield TopicFinding(
            "events.mirror_heartbeats",
            Weight.WARN,
            names.heartbeats,
            "the source's heartbeats are not mirrored, so nothing says how old the mirror is",
            "set emit.heartbeats.enabled = true for the flow from the mirror to the source",
        )
