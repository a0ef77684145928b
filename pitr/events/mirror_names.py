"""What MirrorMaker 2 calls things on the target cluster.  Pure.

The default policy puts the source's alias before a topic's name; the identity policy leaves names alone, but
not that of the heartbeats.  Reference: Apache Kafka, ``ReplicationPolicy``, ``DefaultReplicationPolicy``,
``IdentityReplicationPolicy`` (KIP-382, KIP-690).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pitr.errors import MalformedValue
from pitr.events.partition import TopicPartition, check_topic

_ALIAS: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SEPARATOR: Final = re.compile(r"[._-]{1,8}")
_HEARTBEATS: Final = "heartbeats"


class ReplicationPolicy(StrEnum):
    """How a mirrored topic is named; MirrorMaker's ``replication.policy.class``."""

    DEFAULT = "default"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class MirrorNames:
    """The names that one flow, from ``source_alias``, gives to topics of its target.

    ``syncs_topic`` is None where it has the name that MirrorMaker gives it.
    """

    source_alias: str
    policy: ReplicationPolicy = ReplicationPolicy.DEFAULT
    separator: str = "."
    syncs_topic: str | None = None

    def __post_init__(self) -> None:
        if _ALIAS.fullmatch(self.source_alias) is None:
            raise MalformedValue(f"not an alias of a cluster: {self.source_alias[:80]!r}")
        if _SEPARATOR.fullmatch(self.separator) is None:
            raise MalformedValue(f"not a separator of a replication policy: {self.separator[:20]!r}")
        if self.syncs_topic is not None:
            check_topic(self.syncs_topic)

    def remote(self, topic: str) -> str:
        """Return what a topic of the source is called on the target.  Raises MalformedValue if too long."""
        if self.policy is ReplicationPolicy.IDENTITY and topic != _HEARTBEATS:
            return check_topic(topic)
        return check_topic(f"{self.source_alias}{self.separator}{topic}")

    def remote_partition(self, at: TopicPartition) -> TopicPartition:
        """Return the partition that holds the copy: a mirror keeps its number."""
        return TopicPartition(self.remote(at.topic), at.partition)

    def source(self, remote: str) -> str | None:
        """Return what a topic of the target is called at the source; None if it is no copy from there."""
        if remote in {self.syncs, self.checkpoints, self.heartbeats}:
            return None
        if self.policy is ReplicationPolicy.IDENTITY:
            return remote
        prefix = f"{self.source_alias}{self.separator}"
        return remote.removeprefix(prefix) if remote.startswith(prefix) and remote != prefix else None

    @property
    def syncs(self) -> str:
        """The topic with the pairs of offsets, where ``offset-syncs.topic.location = target``."""
        joined = self.separator.join(("mm2-offset-syncs", self.source_alias, "internal"))
        return self.syncs_topic or check_topic(joined)

    @property
    def checkpoints(self) -> str:
        """The topic with the translated offsets of consumer groups."""
        return check_topic(self.separator.join((self.source_alias, "checkpoints", "internal")))

    @property
    def heartbeats(self) -> str:
        """The copy of the source's heartbeats: how old the newest is says how far the mirror is behind."""
        return self.remote(_HEARTBEATS)
