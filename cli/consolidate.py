"""``pitr backups consolidate``: a chain becomes a full backup, without the database host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.errors import RegionsMissed, UsageRefused
from cli.output import format_bytes
from cli.reading import choose_archive, open_source, source_of, source_options

if TYPE_CHECKING:
    from cli.wiring import Reader
    from pitr.catalogue.backup_record import BackupManifest
    from pitr.layout import ArchiveId
    from storage.replicated import ReplicatedStore

# The queue of what a region lacks ends with this run: what is not there by then is left to pitr repair.
_LAG_WAIT_S = 30.0
_CLOSE_S = 10.0


@click.command("consolidate")
@click.argument("backup", default="latest")
@click.option(
    "--scratch",
    required=True,
    type=click.Path(path_type=Path),
    help="A new directory, with room for the whole cluster.",
)
@source_options
@common_options
def consolidate_backup(
    backup: str,
    scratch: Path,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Make a full backup of a chain, from the store alone.

    BACKUP is an incremental one, "latest" the newest of them. The new full backup stands for it: restores
    read that and nothing before it, and the chain may go on. The database host is not needed; the
    identity is, and credentials that may put.
    """
    from cli.backups import backup_fields
    from cli.copy_faults import telling_faults
    from cli.progress import ProgressReport
    from cli.restore_scratch import scratch_place

    app = current()
    if source_identity is None:
        raise UsageRefused("consolidating needs the reader's identity", hint="--identity FILE")
    source = source_of(source_urls, source_identity, source_region, source_archive)
    if source_region is not None:
        raise UsageRefused("a backup is written to every region", hint="leave out --region")
    fields: dict[str, object] = {}
    app.partial_result = fields
    # The place first: what a killed run left there goes even if nothing is left to do.
    with (
        scratch_place(scratch) as place,
        open_source(app, source) as reader,
        telling_faults(app.output, reader.store, fields),
    ):
        archive = choose_archive(reader.repository, source.archive)
        with ProgressReport(app.output) as report:
            done = consolidate_chain(app, reader, archive, backup, place, fields, report.update)
    manifest = done.manifest
    app.output.line(
        f"{manifest.backup} stands for {manifest.stands_for}: {format_bytes(manifest.size_bytes)} in"
        f" {manifest.files} files, {format_bytes(manifest.stored_bytes)} stored,"
        f" {format_bytes(done.fetched_bytes)} read from {len(done.chain)} backups"
    )
    fields |= {
        "backup": backup_fields(manifest),
        "chain": list(done.chain),
        "lagging_regions": list(done.lagging),
    }
    if done.lagging:
        raise RegionsMissed(
            f"the backup is at quorum, but not yet in {', '.join(done.lagging)}", hint="pitr repair"
        )
    app.output.finish(fields)


@dataclass(frozen=True, slots=True)
class ChainDone:
    """The full backup that was made, the chain that it stands for, and which regions lack it yet."""

    manifest: BackupManifest
    fetched_bytes: int
    chain: tuple[str, ...]
    lagging: tuple[str, ...]


def consolidate_chain(
    app: App,
    reader: Reader,
    archive: ArchiveId,
    backup: str,
    place: Path,
    fields: dict[str, object],
    update: Callable[[str, int, int], None],
) -> ChainDone:
    """Make a full backup of the chain of ``backup`` in the empty directory ``place``.

    ``fields`` gets the copies that reads fell back past, ``update`` the step, and of how many bytes how many
    are done, from any thread.  Raises UsageRefused, TargetRefused, and as ``pitr.consolidate``.
    """
    from cli.copy_faults import telling_faults
    from cli.lagging import lagging_regions

    chain = _chain(reader, archive, backup)
    with _writing(reader, archive, place) as store, telling_faults(app.output, store, fields):
        manifest, fetched_bytes = _make(reader, store, chain, place, update)
        lagging = lagging_regions(store, wait_s=_LAG_WAIT_S, failing_wait_s=_LAG_WAIT_S)
    return ChainDone(manifest, fetched_bytes, tuple(one.backup for one in chain), tuple(lagging))


def _chain(reader: Reader, archive: ArchiveId, backup: str) -> list[BackupManifest]:
    """Return the chain of a backup, the newest first.  Raises UsageRefused, TargetRefused."""
    from pitr.errors import TargetRefused
    from pitr.survey import KnownBackups, chain_of

    others = [
        one for one in reader.repository.archives() if one.system_identifier == archive.system_identifier
    ]
    backups = [listed.manifest for other in others for listed in reader.repository.manifests(other).backups]
    known = KnownBackups(backups)
    increments = [one for one in backups if one.parent is not None and one.archive == archive]
    if backup == "latest":
        newest = max(increments, key=lambda one: (one.stop_lsn, one.backup), default=None)
    else:
        newest = known.get(backup)
    if newest is None:
        raise UsageRefused(
            "there is no incremental backup" if backup == "latest" else f"there is no backup {backup}",
            hint="pitr backups list",
        )
    standing = known.standing_for(newest.backup)
    if standing is not None:
        raise TargetRefused(
            f"backup {standing.backup} stands for {newest.backup} already", hint="pitr backups list"
        )
    parents = chain_of(newest, known)
    if isinstance(parents, str):
        raise TargetRefused(f"the chain of backup {newest.backup} is not whole", detail=parents)
    return [newest, *parents]


@contextmanager
def _writing(reader: Reader, archive: ArchiveId, place: Path) -> Iterator[ReplicatedStore]:
    """Open the regions for putting, with a queue of what they lack that is only this run's."""
    from cli.regions import open_regions, open_writing
    from storage.repair import RepairQueue

    head = reader.repository.latest_head(archive)
    quorum = reader.quorum or (head.quorum if head is not None else None)
    needed = quorum.acknowledged_by if quorum is not None else len(reader.regions) // 2 + 1
    if len(reader.regions) < needed:
        raise UsageRefused(
            f"a backup is in {needed} regions before it counts, and {len(reader.regions)} were named",
            hint="name more with --from",
        )
    queue = RepairQueue(place / "repair.sqlite")
    store = open_writing(open_regions(reader.regions), needed, queue)
    try:
        yield store
    finally:
        store.close(_CLOSE_S)
        queue.close()


def _make(
    reader: Reader,
    store: ReplicatedStore,
    chain: list[BackupManifest],
    place: Path,
    update: Callable[[str, int, int], None],
) -> tuple[BackupManifest, int]:
    import os
    from datetime import UTC, datetime

    from pitr.consolidate import ConsolidateRequest, consolidate
    from pitr.datakeys import DataKeys
    from pitr.pipeline.keys import Recipient
    from pitr.repository import Repository

    identity = reader.identity
    assert identity is not None, "the command asks for an identity first"
    repository = Repository(store, reader.repository.repository_id, reader.repository.root)
    recipients = [Recipient.parse(text) for text in repository.record().recipients]
    done = consolidate(
        ConsolidateRequest(chain, place),
        repository,
        DataKeys(repository, identity.identity),
        identity.identity.root_signer(),
        recipients,
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
        on_files=lambda seen: update("reading", seen.written_bytes, seen.total_bytes),
        on_copy=lambda seen: update("writing", seen.bytes_done, seen.bytes_listed),
    )
    return done.manifest, done.fetched_bytes
