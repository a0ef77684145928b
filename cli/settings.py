"""Settings: the configuration as frozen values.  Made by ``cli.config``, passed in parts to what needs them.

No secret is ever in here: only the paths of the files that hold one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cli.events_settings import EventsSettings
from cli.verify_settings import VerifySettings, default_verify
from pitr.disk_forecast import DropPolicy
from pitr.priority import Priority
from pitr.protection import ProtectionPolicy
from pitr.quorum import WriteQuorum
from pitr.strain import StrainBounds

# In the state directory.
SPOOL_NAME = "spool"
LOCK_NAME = "daemon.lock"
WATCHDOG_LOCK_NAME = "watchdog.lock"
GATE_NAME = "gate"


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The server to protect.  ``dsn`` is a libpq connection string without a password.

    With ``patroni``, the REST addresses of the cluster's members, its host and port are the leader's.
    """

    name: str
    dsn: str
    slot: str
    patroni: tuple[str, ...] = ()
    patroni_ca_file: Path | None = None
    patroni_certificate_file: Path | None = None
    patroni_key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """Which repository, and in how many regions an object must be before it counts as kept."""

    repository: str
    quorum: int


@dataclass(frozen=True, slots=True)
class RegionSettings:
    """One region: a bucket or a directory, and the file with the credentials for it, if any."""

    name: str
    url: str
    credentials_file: Path | None = None
    credentials_profile: str = "default"


@dataclass(frozen=True, slots=True)
class KeySettings:
    """The host's own key, whom to seal for, and the root that vouches for the repository."""

    signing_key_file: Path
    recipients: tuple[str, ...]
    root: str


@dataclass(frozen=True, slots=True)
class WalSettings:
    """When a piece is cut and how many are on their way at once; ``heartbeat_s`` None: no heartbeat.

    ``sync_…`` hold while commits wait for us.  ``put_price``: of 1,000 puts into one region, in any currency.
    ``release_after_s``: how long commits wait for a dead daemon before the watchdog releases them.
    ``drop``: when the slot is given up for the disk's sake.
    ``source``: WAL is streamed, or comes from ``archive_command``; ``gate_dir`` None: in the state directory.
    """

    piece_age_s: float = 1.0
    piece_bytes: int = 4 << 20
    puts_in_flight: int = 4
    heartbeat_s: float | None = None
    source: Literal["stream", "archive"] = "stream"
    gate_dir: Path | None = None
    gate_group: str | None = None
    sync_puts_in_flight: int = 8
    sync_spacing_s: float = 0.005
    protection: ProtectionPolicy = ProtectionPolicy()  # noqa: RUF009 - a frozen value
    put_price: float = 0.005
    release_after_s: float = 120.0
    drop: DropPolicy = DropPolicy()  # noqa: RUF009 - a frozen value


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """How base backups are taken.  ``full_every_s`` and ``incr_every_s`` None: only when asked.

    ``rate_limit`` in bytes a second, None without one.  ``rto_objective_s``: an incremental backup is taken
    earlier where recovery is forecast to take longer; None: never.
    """

    workers: int = 2
    full_every_s: float | None = 86_400.0
    incr_every_s: float | None = 3_600.0
    deadline_s: float = 43_200.0
    source: Literal["files", "protocol"] = "files"
    rate_limit: float | None = None
    priority: Priority = Priority(10, "best-effort")  # noqa: RUF009 - a frozen value
    strain: StrainBounds = StrainBounds()  # noqa: RUF009 - a frozen value
    rto_objective_s: float | None = None

    @property
    def every_s(self) -> float | None:
        """Return how often there is a backup of either kind."""
        return min(filter(None, (self.full_every_s, self.incr_every_s)), default=None)


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """What ``pitr expire`` keeps: all that serves ``window_s``, and so many full backups at least."""

    window_s: float = 35 * 86_400.0
    minimum_backups: int = 2


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """Where the daemon keeps its state and shows its metrics.  ``metrics_port``: None nowhere, 0 any."""

    state_dir: Path
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = 9187
    drain_s: float = 25.0
    spool_bytes_max: int = 1 << 30

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / SPOOL_NAME

    @property
    def protection_path(self) -> Path:
        return self.state_dir / "protection.json"

    @property
    def release_path(self) -> Path:
        return self.state_dir / "released.json"

    @property
    def events_path(self) -> Path:
        return self.state_dir / "events.notes"

    @property
    def catalogue_path(self) -> Path:
        return self.state_dir / "catalogue.sqlite"

    @property
    def backup_notes_dir(self) -> Path:
        return self.state_dir / "backups"

    @property
    def repair_queue_path(self) -> Path:
        return self.state_dir / "repair.sqlite"

    @property
    def control_path(self) -> Path:
        return self.state_dir / "control.sock"

    @property
    def lock_path(self) -> Path:
        return self.state_dir / LOCK_NAME

    @property
    def watchdog_lock_path(self) -> Path:
        return self.state_dir / WATCHDOG_LOCK_NAME

    @property
    def releases_path(self) -> Path:
        return self.state_dir / "releases.jsonl"


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration; ``path`` is the file it was read from."""

    path: Path
    cluster: ClusterSettings
    repository: RepositorySettings
    regions: tuple[RegionSettings, ...]
    keys: KeySettings
    daemon: DaemonSettings
    wal: WalSettings = field(default_factory=WalSettings)
    backup: BackupSettings = field(default_factory=BackupSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    verify: VerifySettings | None = None
    events: EventsSettings | None = None
    timezone: str | None = None
    bin_dir: Path | None = None

    @property
    def verify_or_default(self) -> VerifySettings:
        """What a person's ``pitr verify`` goes by; without ``[verify]`` the daemon verifies nothing."""
        default = default_verify(self.daemon.state_dir, self.path.parent, self.cluster.name)
        return self.verify or default

    @property
    def gate_dir(self) -> Path:
        """Return the folder where ``archive_command`` and the daemon meet."""
        return self.wal.gate_dir or self.daemon.state_dir / GATE_NAME

    @property
    def write_quorum(self) -> WriteQuorum:
        """Return how many regions there are, and how many must have an object."""
        return WriteQuorum(len(self.regions), self.repository.quorum)
