"""``pitr doctor`` for Kafka: can it be read as fences and replays must, and does it keep what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cli.errors import ConfigRefused
from cli.kafka_client import open_kafka
from cli.mirror_parts import mirror_names
from pitr.errors import NotInitialised, PitrError, ServerRefused, ServerUnavailable
from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.mirror_checks import check_mirror
from pitr.events.partition import TopicPartition
from pitr.events.topic_checks import TopicFinding, check_topics, check_undeclared
from pitr.postgres.fence_rights import lacking_rights
from verifiers.base import Finding, Severity

if TYPE_CHECKING:
    from cli.events_settings import EventsSettings
    from pitr.events.kafka import KafkaBroker


def examine_events(settings: EventsSettings, window_s: float) -> Iterator[Finding]:
    """Yield the findings of the cluster and of the declared topics; reads only."""
    broker, refused = _open(settings.bootstrap, lambda: open_kafka(settings.bootstrap, settings.client_file))
    if broker is None:
        yield refused
        return
    try:
        yield from _examine_cluster(broker, settings, window_s)
    finally:
        broker.close()
    mirror = settings.mirror
    if mirror is None:
        return
    copy, refused = _open(mirror.bootstrap, lambda: open_kafka(mirror.bootstrap, mirror.client_file))
    if copy is None:
        yield refused
        return
    try:
        names = mirror_names(mirror)
        facts = copy.topics(names.remote(flow.topic) for flow in settings.topics)
        for found in check_mirror(names, settings.topics, copy.names(), facts, window_s):
            yield _finding(found)
    except (BrokerUnavailable, BrokerRefused) as away:
        yield _fault("events.mirror", mirror.bootstrap, away)
    finally:
        copy.close()


def examine_mark(dsn: str) -> Finding:
    """Return whether the role may leave a fence's mark: without marks no replay knows where it starts."""
    try:
        lacking = lacking_rights(dsn)
    except (ServerRefused, ServerUnavailable) as wrong:
        return _fault("events.mark", "pitr.fence", wrong)
    if lacking:
        text = f"no fence's mark can be written: the role lacks {', '.join(lacking)}"
        hint = "make the table and grant what docs/events.md names under Rights"
        return Finding("events.mark", Severity.FAIL, "pitr.fence", text, hint)
    return Finding("events.mark", Severity.OK, "pitr.fence", "the fence's mark can be written")


def _examine_cluster(broker: KafkaBroker, settings: EventsSettings, window_s: float) -> Iterator[Finding]:
    try:
        cluster_id = broker.cluster_id()
    except (BrokerUnavailable, BrokerRefused) as away:
        yield _fault("events.cluster", settings.bootstrap, away)
        return
    yield Finding("events.cluster", Severity.OK, settings.bootstrap, f"it is cluster {cluster_id}")
    try:
        facts = broker.topics(flow.topic for flow in settings.topics)
        names = broker.names()
    except (BrokerUnavailable, BrokerRefused) as away:
        # To know how long records are kept needs DescribeConfigs.
        yield _fault("events.acl", "topics", away)
        return
    for found in check_topics(settings.topics, facts, window_s):
        yield _finding(found)
    for found in check_undeclared(names, settings.topics):
        yield _finding(found)
    yield from _examine_rights(broker, settings, {name: one.partitions for name, one in facts.items()})


def _examine_rights(
    broker: KafkaBroker, settings: EventsSettings, partitions: dict[str, int]
) -> Iterator[Finding]:
    """Try what a fence does: whoever may describe a topic may not be allowed to describe its groups."""
    is_allowed = True
    for name, count in sorted(partitions.items()):
        at = [TopicPartition(name, number) for number in range(count)]
        try:
            broker.begins(at)
            broker.ends(at)
        except (BrokerUnavailable, BrokerRefused) as away:
            is_allowed = False
            yield _fault("events.acl", name, away)
    for group in sorted({flow.group for flow in settings.topics if flow.group is not None}):
        try:
            broker.group(group)
        except (BrokerUnavailable, BrokerRefused) as away:
            is_allowed = False
            yield _fault("events.acl", f"group {group}", away)
    if is_allowed:
        yield Finding("events.acl", Severity.OK, "topics", "offsets of topics and groups can be read")


def _open(place: str, do: Callable[[], KafkaBroker]) -> tuple[KafkaBroker | None, Finding]:
    try:
        return do(), Finding("events.client", Severity.OK, place, "the client can be made")
    except (ConfigRefused, NotInitialised, BrokerRefused, BrokerUnavailable) as wrong:
        return None, _fault("events.client", place, wrong)


def _fault(check: str, subject: str, wrong: PitrError) -> Finding:
    return Finding(check, Severity.FAIL, subject, wrong.in_one_line, wrong.hint)


def _finding(found: TopicFinding) -> Finding:
    return Finding(found.check, Severity(found.weight.value), found.subject, found.message, found.hint)
