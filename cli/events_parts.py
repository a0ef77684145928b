"""Parts of the daemon that speak with Kafka, put together; none where the configuration has no [events]."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cli.errors import ConfigRefused
from cli.events_settings import EventsSettings
from cli.kafka_client import open_kafka
from pitr.errors import NotInitialised
from pitr.events.broker import BrokerRefused, ClusterNow, EventRecord
from pitr.events.partition import TopicPartition

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.backup_runner import TakeBackup
    from cli.fence_keeper import FenceKeeper
    from cli.settings import Settings
    from pitr.backup_choice import BackupKind
    from pitr.backup_tally import BackupProgress
    from pitr.catalogue.backup_record import BackupManifest
    from pitr.datakeys import HostKeys
    from pitr.events.kafka import KafkaBroker
    from pitr.events.kafka_clock import KafkaClock
    from pitr.layout import ArchiveId
    from pitr.pipeline.sign import Signer
    from pitr.postgres.address import ServerAddress
    from pitr.repository import Repository


class ConfiguredSource:
    """The configured cluster, opened when it is first asked: a client file that is wrong stops no daemon."""

    def __init__(self, settings: EventsSettings) -> None:
        self._settings = settings
        self._opened: KafkaBroker | None = None
        self._clock: KafkaClock | None = None

    def now(self, names: Iterable[str]) -> ClusterNow:
        return self._broker().now(names)

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._broker().ends(partitions)

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._broker().begins(partitions)

    def committed(
        self, groups: Iterable[str], partitions: Iterable[TopicPartition]
    ) -> Mapping[str, Mapping[TopicPartition, int]]:
        return self._broker().committed(groups, partitions)

    def last_records(
        self, ends: Mapping[TopicPartition, int], budget_s: float
    ) -> Mapping[TopicPartition, EventRecord]:
        return self._broker().last_records(ends, budget_s)

    def broker_time(self) -> datetime | None:
        """Return a broker's time; None where no topic is named for it.  Raises as ``Broker``."""
        topic = self._settings.clock_topic
        if topic is None:
            return None
        if self._clock is None:
            from pitr.events.kafka_clock import KafkaClock

            self._clock = KafkaClock(self._broker().settings, topic)
        return self._clock.now()

    def _broker(self) -> KafkaBroker:
        if self._opened is None:
            try:
                self._opened = open_kafka(self._settings.bootstrap, self._settings.client_file)
            except (ConfigRefused, NotInitialised) as wrong:
                raise BrokerRefused(wrong.message, detail=wrong.detail, hint=wrong.hint) from wrong
        return self._opened


def fence_keeper(
    settings: Settings,
    repository: Repository,
    archive: ArchiveId,
    signer: Signer,
    keys: HostKeys,
    address: ServerAddress,
    log: FilteringBoundLogger,
    count: Callable[[str], None],
) -> FenceKeeper | None:
    """Return who takes fences; None where nobody is to."""
    if settings.events is None:
        return None
    from cli.fence_keeper import FenceKeeper
    from cli.mirror_parts import mirror_keeper
    from pitr.events.fence_store import FenceWriter
    from pitr.events.last_records import LastRecords
    from pitr.postgres.fence_mark import FenceMarker

    source = ConfiguredSource(settings.events)
    has_mirror = settings.events.mirror is not None
    keeper = FenceKeeper(
        source,
        FenceMarker(address.session),
        FenceWriter(repository, archive, signer, keys.wal_key),
        settings.events,
        log,
        count,
        broker_clock=source.broker_time,
        # Only a mirror is searched for them.
        identify=LastRecords(source).identify if has_mirror else None,
    )
    mirror = mirror_keeper(
        settings.events,
        settings.daemon.state_dir,
        repository,
        archive,
        signer,
        keys,
        lambda: keeper.newest,
        log,
    )
    if mirror is not None:
        keeper.accompany(mirror)
    return keeper


def fence_now(keeper: FenceKeeper | None) -> Mapping[str, Any]:
    """Take a fence because somebody asks.  Raises NotInitialised, ServerUnavailable, ServerRefused."""
    if keeper is None:
        raise NotInitialised("the configuration has no [events]", hint="see docs/events.md")
    from cli.fence_keeper import fence_fields

    taken = keeper.take()
    keeper.send_soon()
    return fence_fields(taken)


def with_fence(take: TakeBackup, keeper: FenceKeeper | None) -> TakeBackup:
    """Return what takes a backup with a fence before it, so that the backup itself holds one."""
    if keeper is None:
        return take

    def take_both(
        label: str,
        kind: BackupKind,
        cancel: threading.Event,
        progress: Callable[[BackupProgress], None],
        note: Callable[[str], None],
    ) -> BackupManifest:
        keeper.try_take()
        try:
            return take(label, kind, cancel, progress, note)
        finally:
            keeper.send_soon()

    return take_both
