"""The cluster that events are read from: the one beside the database, or its mirror in another region."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from cli.events_settings import EventsSettings, MirrorSettings
    from cli.output import Output
    from cli.settings import Settings
    from pitr.events.broker import Broker
    from pitr.events.kafka import KafkaBroker
    from pitr.events.mirror_names import MirrorNames
    from pitr.events.sink_topic import EventProducer

OPEN_WAIT_S: Final = 90.0
"""Kafka ends a transaction that is open for 60 s, or for the time that its producer asked for."""
_OPEN_PAUSE_S: Final = 1.0

Command = TypeVar("Command", bound=Callable[..., Any])


def mirror_option(command: Command) -> Command:
    """Give a command ``--mirror``; it gets ``mirror``."""
    return click.option(
        "--mirror",
        is_flag=True,
        help="Read the copy that MirrorMaker made ([events.mirror]), not the cluster itself.",
    )(command)


def open_transactions(output: Output) -> Callable[[], bool]:
    """Return what waits for open transactions of Kafka to end, OPEN_WAIT_S at most; it says so once."""
    until: list[float] = []

    def wait() -> bool:
        now = time.monotonic()
        if not until:
            output.note(
                f"an open Kafka transaction hides records; it is waited for, {OPEN_WAIT_S:g} s at most"
            )
            until.append(now + OPEN_WAIT_S)
        if now >= until[0]:
            return False
        time.sleep(_OPEN_PAUSE_S)
        return True

    return wait


@dataclass(frozen=True, slots=True)
class EventsCluster:
    """``broker`` has topics by the source's names, ``own`` by the cluster's; ``names`` of a mirror."""

    bootstrap: str
    client_file: Path | None
    own: KafkaBroker
    broker: Broker
    names: MirrorNames | None

    def producer(self, replay_id: str) -> EventProducer:
        """Connect a producer of one replay.  Raises ConfigRefused, BrokerUnavailable, BrokerRefused."""
        from cli.kafka_client import kafka_settings
        from pitr.events.kafka_producer import KafkaProducer
        from pitr.events.mirror_producer import MirrorProducer

        made = KafkaProducer(kafka_settings(self.bootstrap, self.client_file), replay_id, self.own)
        return made if self.names is None else MirrorProducer(made, self.names)

    def own_name(self, topic: str) -> str:
        """Return what a topic of the source is called there."""
        return topic if self.names is None else self.names.remote(topic)


def mirror_of(settings: EventsSettings) -> MirrorSettings:
    """Return the mirror of the configuration.  Raises NotInitialised."""
    from pitr.errors import NotInitialised

    if settings.mirror is None:
        raise NotInitialised(
            "the configuration has no [events.mirror]", hint="it says where the copy is; see docs/events.md"
        )
    return settings.mirror


def verified_over_mirror(settings: Settings) -> Settings:
    """Return the settings of a verification that asks the mirror for its events.  Raises NotInitialised."""
    from pitr.errors import NotInitialised

    if settings.events is None:
        raise NotInitialised("the configuration has no [events]", hint="see docs/events.md")
    mirror = replace(mirror_of(settings.events), verify=True)
    return replace(settings, events=replace(settings.events, mirror=mirror))


@contextmanager
def open_cluster(settings: EventsSettings, *, is_mirror: bool) -> Iterator[EventsCluster]:
    """Yield the cluster; it connects when it is first asked.  Raises NotInitialised, ConfigRefused."""
    from cli.kafka_client import open_kafka
    from cli.mirror_parts import mirror_names
    from pitr.events.mirror_broker import MirrorBroker

    if not is_mirror:
        own = open_kafka(settings.bootstrap, settings.client_file)
        found = EventsCluster(settings.bootstrap, settings.client_file, own, own, None)
    else:
        mirror = mirror_of(settings)
        own, names = open_kafka(mirror.bootstrap, mirror.client_file), mirror_names(mirror)
        found = EventsCluster(mirror.bootstrap, mirror.client_file, own, MirrorBroker(own, names), names)
    try:
        yield found
    finally:
        own.close()
