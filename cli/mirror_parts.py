"""The mirror of the configuration, put together: for the daemon, and for a plan over what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.errors import ConfigRefused
from cli.kafka_client import open_kafka
from pitr.errors import NotInitialised
from pitr.events.broker import BrokerRefused
from pitr.events.mirror_names import MirrorNames, ReplicationPolicy

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.events_settings import EventsSettings, MirrorSettings
    from cli.mirror_keeper import MirrorKeeper
    from pitr.datakeys import HostKeys
    from pitr.events.fence import Fence
    from pitr.events.mirror_plan import MirrorPlan
    from pitr.events.partition import TopicPartition
    from pitr.events.plan_build import PlanRequest
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


def plan_over_mirror(
    request: PlanRequest,
    settings: MirrorSettings,
    pairs: PairSource,
    told: Callable[[TopicPartition, int], None] = lambda _at, _count: None,
) -> MirrorPlan:
    """Return the plan of ``--mirror``.  Raises as ``build_mirror_plan``, ConfigRefused, NotInitialised."""
    from pitr.events.mirror_plan import build_mirror_plan

    target = open_kafka(settings.bootstrap, settings.client_file)
    try:
        return build_mirror_plan(request, target, mirror_names(settings), pairs, told)
    finally:
        target.close()


def mirror_fields(found: MirrorPlan) -> Mapping[str, object]:
    """Return how exact a plan over a mirror is and what the mirror may lack, for JSON."""
    tails = {one.at: one.unmirrored_max for one in found.tail}
    return {
        "mirrored_until": None if found.until is None else found.until.isoformat().replace("+00:00", "Z"),
        "unmirrored_max": sum(tails.values()),
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
                "unmirrored_max": tails.get(one.at, one.unmirrored_max),
            }
            for one in found.partitions
        ],
    }
