"""Wiring: the parts put together from settings, for the host that writes and for a reader.

The only place that knows which part gets what; the parts themselves know their arguments only.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import ConfigRefused
from cli.key_files import read_identity, read_signing_key
from cli.region_standing import RegionStanding, Standing, look_at_regions
from cli.regions import open_reading, open_regions
from cli.settings import ClusterSettings, RegionSettings, Settings
from pitr.errors import NotAuthentic, NotInitialised
from pitr.gate_folder import GateFolder
from pitr.layout import ArchiveId
from pitr.pipeline.keys import IdentityFile, Recipient
from pitr.pipeline.sign import Signer, Verifier
from pitr.quorum import Answers, WriteQuorum
from pitr.repository import Repository
from storage.observed import RequestCount, observed_store
from storage.regions import Region

if TYPE_CHECKING:
    from pitr.postgres.address import ConfiguredAddress, ServerAddress
    from pitr.postgres.leader import LeaderAddress
    from pitr.wal_assembly import ReadWal
    from pitr.wal_plan_file import WalPlanHeader
    from storage.copy_faults import FaultReport
    from storage.replicated import ReplicatedStore
    from storage.store import ObjectStore


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """Who this host is in the repository."""

    signer: Signer
    root: Verifier
    recipients: tuple[Recipient, ...]


def host_identity(settings: Settings) -> HostIdentity:
    """Read the host's key.  Raises KeyMissing."""
    return HostIdentity(
        read_signing_key(settings.keys.signing_key_file),
        Verifier.parse(settings.keys.root),
        tuple(Recipient.parse(text) for text in settings.keys.recipients),
    )


def host_repository(settings: Settings, store: ObjectStore) -> Repository:
    """Return the configured repository in ``store``."""
    return Repository(store, settings.repository.repository, Verifier.parse(settings.keys.root))


def server_address(cluster: ClusterSettings) -> ConfiguredAddress | LeaderAddress:
    """Return where the cluster's server is: as configured, or the leader of a Patroni cluster.

    Raises ConfigRefused for TLS files that cannot be read.
    """
    from pitr.postgres.address import ConfiguredAddress

    if not cluster.patroni:
        return ConfiguredAddress(cluster.dsn)
    from pitr.postgres.leader import LeaderAddress
    from pitr.postgres.patroni import PatroniMembers, PatroniTls

    tls = PatroniTls(cluster.patroni_ca_file, cluster.patroni_certificate_file, cluster.patroni_key_file)
    try:
        return LeaderAddress(cluster.dsn, PatroniMembers(cluster.patroni, tls))
    except OSError as error:
        raise ConfigRefused(
            "the TLS files for Patroni's REST interface cannot be read",
            detail=error.strerror or str(error),
            hint="see cluster.patroni_ca_file, patroni_certificate_file and patroni_key_file",
        ) from error


def own_archive(repository: Repository, signer: Signer, system_identifier: int) -> ArchiveId:
    """Return the archive that this key may write for a cluster: its newest epoch, if that is ours.

    Raises NotInitialised if no epoch names the key, NotAuthentic if a newer epoch superseded ours.
    """
    epochs = [one for one in repository.archives() if one.system_identifier == system_identifier]
    if not epochs:
        raise NotInitialised(
            f"the repository has no archive of the cluster with system identifier {system_identifier}",
            hint="pitr init --identity FILE lets this cluster in",
        )
    newest = max(epochs, key=lambda archive: archive.epoch)
    if repository.verifier(newest) == signer.public:
        return newest
    own = [archive for archive in epochs if repository.verifier(archive) == signer.public]
    if own:
        raise NotAuthentic(
            f"another host writes this cluster's archive now: epoch {newest.epoch}",
            detail=f"ours was epoch {own[-1].epoch}; what we would write, readers would ignore",
            hint="stop this host's daemon for good, or start a new epoch: pitr init --identity FILE",
        )
    raise NotInitialised(
        "this host's signing key may write none of the cluster's archives",
        detail=f"newest: {newest}, written by {repository.verifier(newest)}",
        hint="use the key file that pitr init made, or start a new epoch: pitr init --identity FILE",
    )


def server_identifier(settings: Settings, address: ServerAddress) -> int:
    """Ask the server who it is, over the kind of connection that WAL needs.

    Raises ServerUnavailable, ServerRefused.
    """
    if settings.wal.source == "archive":
        from pitr.postgres.server import Server

        with Server.connect(address.find()) as server:
            return server.wal_identity()[0]
    from pitr.postgres.replication import ReplicationConnection

    with closing(ReplicationConnection.connect(address.find())) as connection:
        return connection.identify().system_identifier


def gate_folder(settings: Settings) -> GateFolder:
    """Return the gate's folder, with the group that PostgreSQL's user is in.  Raises NotInitialised."""
    group, group_id = settings.wal.gate_group, None
    if group is not None:
        try:
            group_id = grp.getgrnam(group).gr_gid
        except KeyError as cause:
            raise NotInitialised(
                f"there is no group {group!r}",
                hint="set [wal] gate_group to one that PostgreSQL's user is in",
            ) from cause
    return GateFolder(settings.gate_dir, group_id=group_id)


@dataclass(frozen=True, slots=True)
class Reader:
    """A repository opened for reading; ``identity`` None: records can be read, data cannot.

    ``quorum`` None: no configuration says how many regions there are; the signed heads do.
    """

    repository: Repository
    store: ReplicatedStore
    regions: tuple[RegionSettings, ...]
    quorum: WriteQuorum | None
    identity: IdentityFile | None
    identity_path: Path | None
    standings: tuple[RegionStanding, ...]

    def answers(self, unseen: Sequence[str] = ()) -> Answers:
        """Return how many regions count, without those that did not answer since."""
        counting = [one for one in self.standings if one.counts and one.name not in unseen]
        return Answers(len(counting), self.quorum)


@contextmanager
def open_reader(
    settings: Settings | None,
    *,
    urls: Sequence[str] = (),
    identity_path: Path | None = None,
    region: str | None = None,
    first: str | None = None,
    without: str | None = None,
    counts: dict[str, RequestCount] | None = None,
) -> Iterator[Reader]:
    """Open the repository from the configuration, or from URLs and an identity alone.

    ``region`` restricts a configured repository to one region, ``without`` leaves one out, and ``first`` is
    read before the others.  ``counts`` gets by name how many requests each region that is opened was sent.
    Raises NotInitialised, KeyMissing.
    """
    identity = read_identity(identity_path) if identity_path is not None else None
    for named in filter(None, (first, without)):
        _regions_of(settings, urls, named)
    regions = tuple(one for one in _regions_of(settings, urls, region) if one.name != without)
    regions = tuple(sorted(regions, key=lambda one: one.name != first))
    if identity is not None:
        repository_id, root = identity.repository, identity.root
    elif settings is not None:
        repository_id, root = settings.repository.repository, Verifier.parse(settings.keys.root)
    else:
        raise NotInitialised(
            "nobody says which repository to trust",
            detail="there is no configuration, and no identity was given",
            hint="give the identity file of the recovery sheet: --identity FILE",
        )
    quorum = settings.write_quorum if settings is not None and not urls else None
    is_whole = quorum is not None and len(regions) == quorum.regions
    opened = open_regions(regions)
    if counts is not None:
        opened = tuple(
            Region(one.name, observed_store(one.store, counts.setdefault(one.name, RequestCount())))
            for one in opened
        )
    store = open_reading(
        opened,
        len(regions) if quorum is None else min(quorum.acknowledged_by, len(regions)),
        # What is only a part of the regions is listed as far as it answers; the plan says what that is worth.
        answers_min=None if is_whole else 1,
    )
    try:
        repository = Repository(store, repository_id, root)
        standings = look_at_regions(store.regions, regions, repository_id, str(root))
        _refuse_foreign(standings, repository, identity, identity_path)
        _refuse_empty(standings)
        yield Reader(repository, store, regions, quorum, identity, identity_path, standings)
    finally:
        store.close()


def _refuse_empty(standings: Sequence[RegionStanding]) -> None:
    """Say that no region holds anything.  Raises NotInitialised."""
    if all(one.standing is Standing.EMPTY for one in standings):
        raise NotInitialised(
            f"{', '.join(one.name for one in standings)}: no repository is there",
            hint="check the URL, a mistyped prefix is an empty place; pitr init makes a new repository",
        )


def _refuse_foreign(
    standings: Sequence[RegionStanding],
    repository: Repository,
    identity: IdentityFile | None,
    path: Path | None,
) -> None:
    """Refuse regions of another repository in words of their own.  Raises KeyMissing, NotAuthentic.

    Otherwise their records would seem to be this repository's, damaged, and somebody might delete them.
    """
    foreign = [one for one in standings if one.standing is Standing.FOREIGN]
    if not foreign:
        return
    if len(foreign) == len(standings) and identity is not None and path is not None:
        from cli.setup_identity import KnownIdentity, RegionLook, other_repository

        raise other_repository(
            KnownIdentity(path, identity), [RegionLook(one.name, one.record) for one in foreign]
        )
    names = ", ".join(one.name for one in foreign)
    held = ", ".join(sorted({one.record.repository for one in foreign if one.record is not None}))
    raise NotAuthentic(
        f"{names} {'holds' if len(foreign) == 1 else 'hold'} another repository",
        detail=f"it is {held}; this one is {repository.repository_id}",
        hint="leave that region out, or give the identity that belongs to it; nothing there is damaged",
    )


def _regions_of(
    settings: Settings | None, urls: Sequence[str], region: str | None
) -> tuple[RegionSettings, ...]:
    if urls:
        return tuple(RegionSettings(url, url) for url in dict.fromkeys(urls))
    if settings is None:
        raise NotInitialised(
            "no region is known",
            detail="there is no configuration, and no region was given",
            hint="give one or more with --from URL, or the configuration with --config",
        )
    if region is None:
        return settings.regions
    chosen = tuple(one for one in settings.regions if one.name == region)
    if not chosen:
        names = ", ".join(one.name for one in settings.regions)
        raise NotInitialised(f"there is no region {region!r}", hint=f"the configuration has: {names}")
    return chosen


@dataclass(frozen=True, slots=True)
class OpenedWal:
    """The regions of a WAL plan, opened: ``read`` gives WAL, ``faults`` what it fell back past so far."""

    read: ReadWal
    faults: Callable[[], FaultReport]


def open_wal_reader(header: WalPlanHeader) -> OpenedWal:
    """Open the regions and the identity that a WAL plan names.  Raises KeyMissing, StoreError."""
    from pitr.datakeys import DataKeys
    from pitr.errors import KeyMissing

    if header.identity_file is None:
        raise KeyMissing("the plan names no identity", hint="restore with --identity FILE")
    identity = read_identity(header.identity_file)
    if (identity.repository, str(identity.root)) != (header.repository, header.root):
        raise NotAuthentic("the identity belongs to another repository than the plan")
    regions = tuple(RegionSettings(region.name, region.url) for region in header.regions)
    store = open_reading(open_regions(regions), len(regions))
    repository = Repository(store, identity.repository, identity.root)
    keys = DataKeys(repository, identity.identity)
    return OpenedWal(lambda key: repository.read_wal(key, keys), store.faults)


def preferred_bin_dir(settings: Settings | None) -> Path | None:
    """Return where PostgreSQL's programs are wanted from: $PITR_PG_BIN, else the configuration."""
    named = os.environ.get("PITR_PG_BIN")
    if named:
        return Path(named)
    return settings.bin_dir if settings is not None else None
