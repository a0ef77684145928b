"""The mirror of the configuration, put together: for the daemon, and for a plan over what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.errors import ConfigRefused
from cli.kafka_client import open_kafka
from pitr.errors import NotInitialised
from pitr.events.broker import Broker, BrokerRefused
from pitr.events.mirror_age import mirrored_until
from pitr.events.mirror_broker import MirrorBroker
from pitr.events.mirror_fences import FenceTranslator, TranslatedPartition
from pitr.events.mirror_gaps import with_unmirrored
from pitr.events.mirror_names import MirrorNames, ReplicationPolicy

if TYPE_CHECKING:
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from cli.events_settings import EventsSettings, MirrorSettings
    from cli.mirror_keeper import MirrorKeeper
    from pitr.datakeys import HostKeys
    from pitr.events.fence import Fence
    from pitr.events.partition import TopicPartition
    from pitr.events.plan import ReplayPlan
    from pitr.events.sync_pairs import PairSource
    from pitr.layout import ArchiveId
    from pitr.pipeline.sign import Signer
    from pitr.repository import Repository
    from pitr.wal_reader import DataKeySource

PAIRS_NAME: Final = "mirror-pairs.sqlite"


def mirror_names(settings: MirrorSettings) -> MirrorNames:
    """Return what the configured mirror calls things."""
    return MirrorNames(
        settings.source_alias,
        ReplicationPolicy(settings.policy),
        settings.separator,
        settings.syncs_topic,
    )


@dataclass(frozen=True, slots=True)
class MirrorView:
    """A mirror in the place of its source, for one plan.

    Give ``broker`` and ``fences`` to the plan in place of the source's, translate cursors with ``cursor``,
    and pass the plan through ``with_gaps``.  ``partitions`` say how exact the starting fence is, ``tail`` how
    much before the newest fence may not be mirrored; ``until`` is when the mirror last brought anything.
    """

    broker: Broker
    fences: tuple[Fence, ...]
    partitions: tuple[TranslatedPartition, ...]
    tail: tuple[TranslatedPartition, ...]
    until: datetime | None
    translator: FenceTranslator

    def cursor(self, at: TopicPartition, offset: int) -> int:
        """Return where to read for a sink's cursor, safely below it."""
        return self.translator.offset(at, offset).lower

    def with_gaps(self, plan: ReplayPlan) -> ReplayPlan:
        """Return the plan with what the mirror never had."""
        return with_unmirrored(plan, self.translator.missing)


def mirror_view(
    target: Broker,
    names: MirrorNames,
    pairs: PairSource,
    topics: Iterable[str],
    fences: Sequence[Fence],
    start: Fence,
) -> MirrorView:
    """Return the view of a plan that starts from fence ``start``, which is looked for closely.

    ``fences`` are all that the plan sees, ``start`` among them.  Raises BrokerRefused, BrokerUnavailable.
    """
    translator = FenceTranslator(target, names, pairs, topics)
    newest = max(fences, key=lambda one: one.collector_at, default=start)
    exact, partitions = translator.closely(start, newest)
    translated = tuple(
        exact if before is start else after
        for before, after in zip(fences, translator.fences(fences), strict=True)
    )
    return MirrorView(
        MirrorBroker(target, names),
        translated,
        partitions,
        partitions if newest is start else translator.unmirrored(newest),
        mirrored_until(target, names),
        translator,
    )


def open_pairs(
    settings: MirrorSettings, state_dir: Path, repository: Repository, archive: ArchiveId, keys: DataKeySource
) -> PairSource:
    """Return the pairs of the daemon on this host, else those in the store: the host may be gone.

    Raises NotInitialised, BookFailed, NotAuthentic, KeyMissing, StoreError.
    """
    from pitr.events.sync_book import SyncBook
    from pitr.events.sync_store import SyncReader

    path = state_dir / PAIRS_NAME
    if path.exists():
        return SyncBook(path, is_read_only=True)
    return SyncReader(repository, archive).read(settings.source_alias, keys)


def mirror_keeper(
    settings: EventsSettings,
    state_dir: Path,
    repository: Repository,
    archive: ArchiveId,
    signer: Signer,
    keys: HostKeys,
    newest_fence: Callable[[], Fence | None],
    log: FilteringBoundLogger,
) -> MirrorKeeper | None:
    """Return who keeps the mirror's pairs; None where no mirror is configured."""
    mirror = settings.mirror
    if mirror is None:
        return None
    from cli.mirror_keeper import MirrorKeeper, MirrorTools
    from pitr.events.sync_book import SyncBook
    from pitr.events.sync_keeper import SyncKeeper
    from pitr.events.sync_store import SyncWriter

    def open_tools() -> MirrorTools:
        try:
            target = open_kafka(mirror.bootstrap, mirror.client_file)
        except (ConfigRefused, NotInitialised) as wrong:
            raise BrokerRefused(wrong.message, detail=wrong.detail, hint=wrong.hint) from wrong
        book = SyncBook(state_dir / PAIRS_NAME)
        return MirrorTools(book, SyncKeeper(target, mirror_names(mirror), book))

    return MirrorKeeper(
        open_tools,
        SyncWriter(repository, archive, signer, keys.wal_key, mirror.source_alias),
        newest_fence,
        settings.store_every_s,
        log,
    )


def view_fields(view: MirrorView) -> Mapping[str, object]:
    """Return how exact the view is and what the mirror may lack, for JSON."""
    return {
        "mirrored_until": None if view.until is None else view.until.isoformat().replace("+00:00", "Z"),
        "unmirrored_max": sum(one.unmirrored_max for one in view.tail),
        "partitions": [
            {
                "topic": one.at.topic,
                "partition": one.at.partition,
                "source_offset": one.translation.upstream,
                "offset": one.translation.lower,
                "basis": one.translation.basis.value,
                "records_read": one.read,
                "stopped": one.stopped,
                "missing": None if one.translation.missing is None else list(one.translation.missing),
                "unmirrored_max": tail.unmirrored_max,
            }
            for one, tail in _with_tail(view)
        ],
    }


def _with_tail(view: MirrorView) -> list[tuple[TranslatedPartition, TranslatedPartition]]:
    tails = {one.at: one for one in view.tail}
    return [(one, tails.get(one.at, one)) for one in view.partitions]
