"""The table [events] of the configuration: Kafka beside the database, and how each topic flows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cli.config_table import Duration, Table
from cli.config_values import read_duration
from cli.events_settings import (
    FENCE_EVERY_S,
    STORE_EVERY_S,
    EventsSettings,
    MirrorSettings,
    ReplaySettings,
)
from pitr.errors import MalformedValue
from pitr.events.flows import EventFormat, Flow, FlowDeclaration
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import check_topic

TOPICS_MAX = 1_000
_Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
_Group = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]


def read_bootstrap(text: str) -> str:
    """Check a list of brokers: ``host:port``, joined by commas."""
    for one in text.split(","):
        host, _, port = one.strip().rpartition(":")
        if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ValueError("expected brokers as 'host:port', joined by commas")
    return text


_Bootstrap = Annotated[str, Field(max_length=4000), AfterValidator(read_bootstrap)]


class TopicTable(Table):
    """One [[events.topic]]."""

    name: _Topic
    flow: Literal["db-first", "sink-cursor", "sink-group", "event-first"]
    format: Literal["headers", "debezium", "debezium-outbox"] = "headers"
    group: _Group | None = None
    cursor_sql: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    max_lag: Duration | None = None

    @model_validator(mode="after")
    def _fits(self) -> TopicTable:
        try:
            self.declaration()
        except MalformedValue as wrong:
            # The declaration's own words, with the setting's name as it stands in the file.
            raise ValueError(wrong.message.replace("max_lag_s", "max_lag")) from wrong
        return self

    def declaration(self) -> FlowDeclaration:
        """Return what it declares.  Raises MalformedValue where settings do not fit the flow."""
        return FlowDeclaration(
            check_topic(self.name),
            Flow(self.flow),
            EventFormat(self.format),
            self.group,
            self.cursor_sql,
            self.max_lag,
        )


class MirrorTable(Table):
    """The table [events.mirror]."""

    bootstrap: _Bootstrap
    client_file: str | None = None
    source_alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
    policy: Literal["default", "identity"] = "default"
    separator: Annotated[str, Field(pattern=r"^[._-]$")] = "."
    syncs_topic: _Topic | None = None
    verify: bool = False


class ReplayTable(Table):
    """The table [events.replay]."""

    handlers_file: str | None = None
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    rate_limit: Annotated[int, Field(ge=1, le=10_000_000)] | None = None


class EventsTable(Table):
    """As it stands in the file."""

    bootstrap: _Bootstrap
    client_file: str | None = None
    fence_every: Annotated[float, BeforeValidator(read_duration), Field(ge=1, le=3600)] = FENCE_EVERY_S
    store_every: Annotated[float, BeforeValidator(read_duration), Field(ge=1, le=3600)] = STORE_EVERY_S
    clock_topic: _Topic | None = None
    topic: Annotated[list[TopicTable], Field(min_length=1, max_length=TOPICS_MAX)]
    mirror: MirrorTable | None = None
    replay: ReplayTable = Field(default_factory=ReplayTable)

    @model_validator(mode="after")
    def _names_differ(self) -> EventsTable:
        twice = [name for name, count in Counter(one.name for one in self.topic).items() if count > 1]
        if twice:
            raise ValueError(f"topic {twice[0]} is declared twice")
        return self


def events_settings(table: EventsTable | None, base: Path) -> EventsSettings | None:
    """Return the settings; None where the file has no such table."""
    if table is None:
        return None

    def path(text: str | None) -> Path | None:
        if text is None:
            return None
        found = Path(text).expanduser()
        return found if found.is_absolute() else base / found

    mirror = table.mirror
    return EventsSettings(
        table.bootstrap,
        path(table.client_file),
        tuple(one.declaration() for one in table.topic),
        fence_every_s=table.fence_every,
        store_every_s=table.store_every,
        clock_topic=table.clock_topic,
        mirror=None
        if mirror is None
        else MirrorSettings(
            mirror.bootstrap,
            path(mirror.client_file),
            mirror.source_alias,
            mirror.policy,
            mirror.separator,
            MirrorNames(
                mirror.source_alias, separator=mirror.separator, syncs_topic=mirror.syncs_topic
            ).syncs,
            mirror.verify,
        ),
        replay=ReplaySettings(path(table.replay.handlers_file), table.replay.batch, table.replay.rate_limit),
    )
