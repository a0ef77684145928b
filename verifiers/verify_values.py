"""What a verification is asked for and what it finds: values, and the rules that need no server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

from pitr.catalogue.backup_record import BackupManifest
from pitr.datakeys import DataKeys
from pitr.errors import NotAuthentic, PitrError, RecoveryFailed, WalMissing
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import ServerUser
from pitr.repository import ListedBackup, Repository
from pitr.restore_directory import FilesDiffer
from pitr.restore_plan import RestorePlan
from pitr.restore_request import RestoreResult
from storage.store import CopyDamaged
from verifiers.check import CheckResult
from verifiers.checks_data import Assertion
from verifiers.checks_events import LookAtEvents
from verifiers.checks_safety import Isolation
from verifiers.checks_source import Comparison
from verifiers.checks_target import Marker, Reached
from verifiers.scratch import ScratchPlace
from verifiers.scratch_server import ScratchServer

# What the restored cluster must not do here; docs/verify.md, "Isolation".
_CLOSED: Final = {
    "archive_command": "",
    "archive_library": "",
    "max_logical_replication_workers": "0",
    "local_preload_libraries": "",
}
_EVENT_TRIGGERS_SINCE: Final = 17


class DeadlinePassed(PitrError):
    """The verification took longer than it may."""


class LiveService(Protocol):
    """Whoever uses the restored server while it is in service; see ``verifiers.drill_steps``."""

    def reached(self, dsn: str) -> None:
        """Take note: the server answers at the target, and is not promoted yet."""

    def opened(self, server: ScratchServer) -> None:
        """Use the promoted server; it is checked and stopped after that."""


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What to verify, and with what.

    ``alone`` is the repository as the region ``region`` has it.  ``backups`` are all of the archive, for
    the signs of rot.  ``preload_allowed``: libraries of the cluster's that may be loaded.  ``comparison``:
    with what the tables are compared, after the target was looked at.  ``service``: who uses the restored
    server before it is checked.  ``events``: who asks Kafka what belongs to the target, None: nobody.
    """

    plan: RestorePlan
    repository: Repository
    alone: Repository
    region: str
    data_keys: DataKeys
    installation: Installation
    user: ServerUser | None
    superuser: str
    place: ScratchPlace
    deadline_s: float
    product_version: str
    backups: Sequence[BackupManifest] = ()
    assertions: Sequence[Assertion] | None = None
    marker: Marker | None = None
    preload_allowed: Sequence[str] = ()
    comparison: Comparison | None = None
    why_no_comparison: str = "no fingerprint of the source was taken after the target (pitr fingerprint)"
    workers: int = 3
    wants_network_cut: bool = True
    service: LiveService | None = None
    events: LookAtEvents | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """When a step of recovery was reached, and after how long."""

    at: datetime
    ms: int


@dataclass(slots=True)
class Marks:
    """The steps of one recovery, each noted the first time.  Thread-safe as far as dicts are."""

    monotonic: Callable[[], float]
    begun: float
    found: dict[str, Mark] = field(default_factory=dict)

    def note(self, step: str) -> None:
        """Note a step, if it is the first time."""
        elapsed_ms = max(0, round((self.monotonic() - self.begun) * 1000))
        self.found.setdefault(step, Mark(datetime.now(UTC), elapsed_ms))


@dataclass(slots=True)
class Verified:
    """What a verification found; ``failure`` is why the restore did not come to its end, None if it did."""

    checks: list[CheckResult] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)
    listed: list[ListedBackup] = field(default_factory=list)
    result: RestoreResult | None = None
    reached: Reached | None = None
    marker_at: datetime | None = None
    isolation: Isolation | None = None
    databases: list[str] = field(default_factory=list)
    # Those that no check looked into, and why.
    closed: list[tuple[str, str]] = field(default_factory=list)
    failure: str | None = None
    recovery_time_ms: int | None = None
    # How long recovery stood still for checks before the server was promoted: no part of that time.
    paused_ms: int = 0
    certificate_sha256: str | None = None
    # What the region's own copies say of themselves; None: it could not be looked at.
    manifests_ok: bool | None = None
    commitment_ok: bool | None = None
    ransomware: Mapping[str, object] | None = None
    # Offsets of each partition, None where nothing was asked or nobody answered.
    kafka: Mapping[str, object] | None = None
    # What the checks that passed do not say, in words.
    limits: list[str] = field(default_factory=list)


def server_settings(
    plan: RestorePlan, installation: Installation, preload_allowed: Sequence[str]
) -> dict[str, str]:
    """Return what the scratch server is started with, over what every restore's is."""
    source = dict(plan.backup.settings)
    wanted = [one.strip() for one in source.get("shared_preload_libraries", "").split(",") if one.strip()]
    settings = {
        **_CLOSED,
        "shared_preload_libraries": ",".join(one for one in wanted if one in preload_allowed),
        # Replay keeps commit times only where the setting is on, and a check asks for one.
        "track_commit_timestamp": source.get("track_commit_timestamp", "off"),
    }
    if installation.major >= _EVENT_TRIGGERS_SINCE:
        settings["event_triggers"] = "off"
    return settings


def failed_check(cause: Exception) -> str | None:
    """Return the check that a restore's failure belongs to."""
    if isinstance(cause, FilesDiffer):
        return "C04"
    if isinstance(cause, WalMissing):
        return "C05"
    if isinstance(cause, RecoveryFailed):
        return "C09"
    if isinstance(cause, CopyDamaged):
        return "C02"
    if isinstance(cause, NotAuthentic):
        return "C03"
    return None
