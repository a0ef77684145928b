"""What ``pitr init`` is asked for, and what there is afterwards: values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cli.config_template import NewRegion
from cli.settings import GATE_NAME, RegionSettings, Settings
from pitr.catalogue.records import EpochParent
from pitr.layout import ArchiveId
from pitr.pipeline.keys import IdentityFile, Recipient


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """What is wanted.  ``identity_in``: the identity of a repository that exists, which is joined.

    ``kept``: the configuration that this host has and keeps.  ``certificate``: of the recovery that the
    server is from, None: the one beside its data directory.
    """

    cluster: str
    dsn: str
    slot: str
    regions: tuple[NewRegion, ...]
    quorum: int
    directory: Path
    identity_in: Path | None
    identity_out: Path
    recipients: tuple[Recipient, ...]
    creates_directories: bool
    timezone: str | None = None
    metrics_listen: str = "127.0.0.1:9187"
    kept: Settings | None = None
    wal_source: str = "stream"
    certificate: Path | None = None

    @property
    def streams(self) -> bool:
        """Whether WAL is streamed, which needs the right to replicate and a slot."""
        return self.wal_source == "stream"

    @property
    def reads_files(self) -> bool:
        """Whether backups are of the server's files; else they need the right to replicate as well."""
        return self.kept is None or self.kept.backup.source == "files"

    @property
    def gate_dir(self) -> Path:
        return self.state_dir / GATE_NAME if self.kept is None else self.kept.gate_dir

    @property
    def config_path(self) -> Path:
        return self.directory / "pitr.toml" if self.kept is None else self.kept.path

    @property
    def signing_key_path(self) -> Path:
        return self.directory / "signing.key" if self.kept is None else self.kept.keys.signing_key_file

    @property
    def state_dir(self) -> Path:
        return self.directory / "state" if self.kept is None else self.kept.daemon.state_dir

    @property
    def region_settings(self) -> tuple[RegionSettings, ...]:
        if self.kept is not None:
            return self.kept.regions
        return tuple(
            RegionSettings(region.name, region.url, region.credentials_file) for region in self.regions
        )


@dataclass(frozen=True, slots=True)
class SetupResult:
    """What there is now.  ``is_new_repository``: the identity was made here and must be kept safe.

    ``is_config_kept``: the configuration was there, so all that this would tell of the keys was told.
    """

    archive: ArchiveId
    parent: EpochParent | None
    identity: IdentityFile
    identity_path: Path
    config_path: Path
    is_new_repository: bool
    is_new_epoch: bool
    is_config_kept: bool = False
