"""What the configuration says of Kafka, as frozen values.  No secret: those are in the client files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pitr.events.flows import FlowDeclaration

FENCE_EVERY_S = 10.0
STORE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """The copy in another region that MirrorMaker 2 makes.  ``syncs_topic`` is on the mirror's cluster."""

    bootstrap: str
    client_file: Path | None
    source_alias: str
    policy: Literal["default", "identity"]
    separator: str
    syncs_topic: str
    verify: bool = False
    """Whether verifications and drills ask it for the events, and not the source."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How events are replayed.  ``rate_limit`` in events a second; None: no limit."""

    handlers_file: Path | None = None
    batch: int = 10_000
    rate_limit: int | None = None


@dataclass(frozen=True, slots=True)
class EventsSettings:
    """The Kafka cluster beside the database, and the topics whose events belong to it.

    ``clock_topic``: where a record asks for the broker's time before each fence; None: it is not asked.
    """

    bootstrap: str
    client_file: Path | None
    topics: tuple[FlowDeclaration, ...]
    fence_every_s: float = FENCE_EVERY_S
    store_every_s: float = STORE_EVERY_S
    clock_topic: str | None = None
    mirror: MirrorSettings | None = None
    replay: ReplaySettings = field(default_factory=ReplaySettings)

    @property
    def flows(self) -> Mapping[str, FlowDeclaration]:
        """The declarations by topic."""
        return {one.topic: one for one in self.topics}
