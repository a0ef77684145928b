"""What the configuration says of verifications, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

DAY_S: Final = 86_400.0
WEEK_S: Final = 7 * DAY_S
KEY_NAME: Final = "verifier.key"
PUBLIC_KEY_NAME: Final = "verifier.pub.pem"


@dataclass(frozen=True, slots=True)
class DrillSettings:
    """Which drills run by themselves, and how.  A time None: only when asked; a scenario None: the usual one.

    ``region`` is cut off by the failover drill, None: each in turn.  ``primary_region`` is lost with the
    primary in a disaster, None: the first.  ``probes_production``: the server is asked ``SELECT 1`` before.
    """

    every_s: Mapping[str, float | None] = field(default_factory=dict)
    scenarios: Mapping[str, Path] = field(default_factory=dict)
    region: str | None = None
    primary_region: str | None = None
    clients: int = 4
    load_s: float = 30.0
    probes_production: bool = False


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """How restores are verified.  ``every_s`` None: only when asked.

    ``identity_file`` opens the backups, ``key_file`` signs the reports.  ``work_dir`` holds the verifier's
    own copy of its log.  ``reports_dir`` None: reports are in the store only.  ``rto_s`` and ``rpo_s`` are
    the objectives.  ``owner`` sees to findings, within ``due_s``.
    ``marker``: the query for the time of the newest row that the owner's heart wrote.
    """

    work_dir: Path
    scratch_dir: Path
    key_file: Path
    identity_file: Path | None = None
    reports_dir: Path | None = None
    checks_dir: Path | None = None
    every_s: float | None = WEEK_S
    target: Literal["latest", "random"] = "random"
    deadline_s: float = 43_200.0
    rto_s: float | None = 300.0
    rpo_s: float | None = 60.0
    organisation: str = ""
    system: str = ""
    asset_id: str | None = None
    criticality_tier: str | None = None
    data_classes: tuple[str, ...] = field(default_factory=tuple)
    preload_libraries: tuple[str, ...] = field(default_factory=tuple)
    superuser: str | None = None
    network: Literal["none", "host"] = "none"
    owner: str = ""
    due_s: float = 14 * 86_400.0
    drills: DrillSettings = field(default_factory=DrillSettings)
    consolidate: bool = False
    marker: str | None = None
    marker_database: str = "postgres"
    marker_every_s: float = 60.0

    @property
    def public_key_file(self) -> Path:
        """Where the verifier's public key is, for auditors."""
        return self.key_file.with_name(PUBLIC_KEY_NAME)


def default_verify(state_dir: Path, base: Path, cluster: str) -> VerifySettings:
    """Return what holds where nothing is configured: nothing by itself, files beside the others."""
    return VerifySettings(
        work_dir=state_dir / "verify",
        scratch_dir=state_dir / "verify" / "scratch",
        key_file=base / KEY_NAME,
        every_s=None,
        system=cluster,
    )
