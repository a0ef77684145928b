"""The mirror of the configuration, put together: for the daemon, and for a plan over what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.errors import ConfigRefused
from cli.kafka_client import open_kafka
from cli.reading import Source, choose_archive, open_source
from pitr.errors import KeyMissing, NotInitialised
from pitr.events.broker import BrokerRefused
from pitr.events.mirror_names import MirrorNames, ReplicationPolicy

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.context import App
    from cli.events_settings import EventsSettings, MirrorSettings
    from cli.mirror_keeper import MirrorKeeper, NewestFence
    from cli.wiring import Reader
    from pitr.datakeys import HostKeys
    from pitr.events.mirror_plan import MirrorPlan
    from pitr.events.sync_pairs import PairSource
    from pitr.layout import ArchiveId
    from pitr.pipeline.sign import Signer
    from pitr.repository import Repository

PAIRS_NAME: Final = "mirror-pairs.sqlite"


def mirror_names(settings: MirrorSettings) -> MirrorNames:
    """Return what the configured mirror calls things."""
    return MirrorNames(
        settings.source_alias,
        ReplicationPolicy(settings.policy),
        settings.separator,
        settings.syncs_topic,
    )


@contextmanager
def open_pairs(
    app: App, settings: MirrorSettings, source: Source, faults: list[str], reader: Reader | None = None
) -> Iterator[PairSource]:
    """Yield the pairs of the daemon on this host, else those in the store: the host may be gone.

    ``reader`` is the store if it is open already, ``faults`` gets what is wrong with its pairs.  Raises
    BookFailed, NotAuthentic, KeyMissing, StoreError.
    """
    from pitr.events.sync_book import SyncBook

    path = app.settings().daemon.state_dir / PAIRS_NAME
    if path.exists():
        book = SyncBook(path, is_read_only=True)
        try:
            yield book
        finally:
            book.close()
        return
    if reader is not None:
        yield stored_pairs(reader, settings, source, faults)
        return
    with open_source(app, source) as opened:
        found = stored_pairs(opened, settings, source, faults)
    yield found


def stored_pairs(reader: Reader, settings: MirrorSettings, source: Source, faults: list[str]) -> PairSource:
    """Return the pairs in the store.  Raises NotAuthentic, KeyMissing, StoreError."""
    from pitr.datakeys import DataKeys
    from pitr.events.sync_store import SyncReader

    if reader.identity is None:
        raise KeyMissing(
            "the mirror's pairs of offsets are sealed: only an identity opens them",
            hint="give it with --identity FILE, or ask on the daemon's host",
        )
    keys = DataKeys(reader.repository, reader.identity.identity)
    archive = choose_archive(reader.repository, source.archive)
    found = SyncReader(reader.repository, archive).read(settings.source_alias, keys)
    faults.extend(found.faults)
    return found


def mirror_keeper(
    settings: EventsSettings,
    state_dir: Path,
    repository: Repository,
    archive: ArchiveId,
    signer: Signer,
    keys: HostKeys,
    newest_fence: Callable[[], NewestFence | None],
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
