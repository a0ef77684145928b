"""Flows: in which order a topic's events and their database effects come to be.  Pure.

Where replay may start without losing anything depends on it, and nothing in a topic tells: so each topic is
declared, and one that is not declared is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pitr.errors import MalformedValue
from pitr.events.partition import check_topic


class Flow(StrEnum):
    """How a topic's events and the database come together."""

    DB_FIRST = "db-first"
    """Committed, then produced: an outbox, change data capture, or commit-then-produce."""
    SINK_CURSOR = "sink-cursor"
    """Consumed into the database; the next offset is kept there, in the same transaction."""
    SINK_GROUP = "sink-group"
    """Consumed into the database, which commits before the consumer group's offset does."""
    EVENT_FIRST = "event-first"
    """Produced, then committed, within a lag that the owner bounds."""


class EventFormat(StrEnum):
    """Where an event says who it is and which transaction wrote it."""

    HEADERS = "headers"
    """Headers ``event-id``, ``event-type``, ``event-version``, ``pg-xid``, ``pg-tl``, ``pg-lsn``."""
    DEBEZIUM = "debezium"
    """Debezium's change envelope, flattened or not: ``source.txId``, ``source.lsn``."""
    DEBEZIUM_OUTBOX = "debezium-outbox"
    """What Debezium's outbox router makes: headers ``id`` and ``eventType``, beside those of ``headers``."""


@dataclass(frozen=True, slots=True)
class FlowDeclaration:
    """What the owner says of a topic.

    ``group`` is the sink's consumer group (sink-group), ``cursor_sql`` a query on the restored database that
    returns rows (partition int, next_offset bigint) (sink-cursor), ``max_lag_s`` the longest time from append
    to commit (event-first).  A state topic (compacted) holds last values only: replay is an upsert of state.
    """

    topic: str
    flow: Flow
    format: EventFormat = EventFormat.HEADERS
    group: str | None = None
    cursor_sql: str | None = None
    max_lag_s: float | None = None

    def __post_init__(self) -> None:
        check_topic(self.topic)
        wanted = {Flow.SINK_GROUP: "group", Flow.SINK_CURSOR: "cursor_sql", Flow.EVENT_FIRST: "max_lag_s"}
        for flow, name in wanted.items():
            is_given = getattr(self, name) is not None
            if self.flow is flow and not is_given:
                raise MalformedValue(f"topic {self.topic}: flow {self.flow} needs {name}")
            if self.flow is not flow and is_given and name != "group":
                raise MalformedValue(f"topic {self.topic}: {name} belongs to flow {flow} only")
        if self.max_lag_s is not None and not 0 < self.max_lag_s <= 30 * 86_400:
            raise MalformedValue(f"topic {self.topic}: max_lag_s is above 0 and at most 30 days")
