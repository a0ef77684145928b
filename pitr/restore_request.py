"""What a restore is asked for, and what it answers: values only.  Pure."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from pitr.errors import RestoreRefused
from pitr.postgres.installation import Installation
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser
from pitr.prefetch import AHEAD_BYTES_MAX, PATIENCE_S
from pitr.recover import STALL_TIMEOUT_S, Recovered, ReplayProgress, RestoreAction
from pitr.restore_aim import Asked
from pitr.restore_files import WORKERS, FileProgress
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal_plan_file import RegionAddress

CERTIFICATE_SUFFIX: Final = ".recovery-certificate.json"
PROMOTED_STEPS: Final = (
    "start it where it shall run, then, before anything is archived, give it a new writer epoch:",
    "pitr init --identity FILE; on a host without a configuration also --pg, --region and --dir",
    "take a full backup of it: pitr backup",
)
"""What a person does next with a cluster that was promoted."""
Progress: TypeAlias = FileProgress | ReplayProgress


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore, where and how.

    ``fetch_command`` is what ``restore_command`` becomes when no restore feeds the spool, with the words
    NAME DESTINATION --plan FILE; it runs as the server's user.  Empty: there is none.
    ``regions`` and ``identity_file`` are for a later fetch without this process, after "none" or "pause".
    ``tablespace_mapping``: oid, name or old location, to the new place.  ``wal_dir``: what pg_wal becomes
    a link to.  ``superuser`` is the cluster's, None: the one that the backup names.
    ``certificate``: where the recovery certificate is written, None: beside the target.
    ``installation`` None only for the action "none" without ``verify_files``.
    ``is_delta``: a stopped cluster at the target is replaced, and what of it is right is kept; it must have
    the backup's system identifier, or be the one that ``replaced_cluster`` names.
    ``takes_spaces``: what WAL makes later may take directories of this host for its tablespaces, if they are
    empty.  ``asked``: what was typed, for the journal: whoever types it again goes on with this restore.
    ``is_cut_off``: the server runs without a network.  ``at_target`` is called with the server when it is
    paused there, before it is promoted.
    """

    plan: RestorePlan
    target: Path
    action: RestoreAction
    installation: Installation | None
    fetch_command: Sequence[str]
    regions: tuple[RegionAddress, ...] = ()
    identity_file: Path | None = None
    tablespace_mapping: Mapping[str, Path] = field(default_factory=dict)
    wal_dir: Path | None = None
    user: ServerUser | None = None
    superuser: str | None = None
    verify_files: bool = True
    keep_running: bool = False
    workers: int = WORKERS
    ahead_bytes_max: int = AHEAD_BYTES_MAX
    patience_s: float = PATIENCE_S
    stall_timeout_s: float = STALL_TIMEOUT_S
    server_settings: Mapping[str, str] = field(default_factory=dict)
    certificate: Path | None = None
    is_delta: bool = False
    replaced_cluster: int | None = None
    takes_spaces: bool = True
    asked: Asked | None = None
    is_cut_off: bool = False
    at_target: Callable[[Instance], None] = lambda _instance: None

    @property
    def role(self) -> str:
        """Return whom the restored cluster knows as its superuser."""
        return self.superuser or self.plan.backup.superuser

    @property
    def certificate_file(self) -> Path:
        """Return where the recovery certificate is written."""
        return self.certificate or self.target.with_name(f"{self.target.name}{CERTIFICATE_SUFFIX}")


@dataclass(frozen=True, slots=True)
class StepTiming:
    """How long a step took; ``plan`` is the caller's."""

    step: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A restore that ended as planned.

    ``timeline`` is the cluster's now: a new one after promotion.  ``fetched_bytes`` are sealed bytes
    of the backup, ``kept_bytes`` content of an old directory, ``wal_bytes`` opened WAL.  ``certificate`` says
    what was replayed; None if nothing was.  ``instance`` is the
    running one, if it was kept: it is the caller's now.
    """

    backup: str
    target: Path
    action: RestoreAction
    replay_end: LSN | None
    last_xact_at: datetime | None
    timeline: TimelineId
    files: int
    size_bytes: int
    fetched_bytes: int
    kept_bytes: int
    wal_bytes: int
    certificate: Path | None
    timings: tuple[StepTiming, ...]
    has_paused: bool
    instance: Instance | None
    superuser: str
    next_steps: tuple[str, ...]

    @property
    def dsn(self) -> str | None:
        """Return the conninfo of the running instance, which listens on a Unix socket only."""
        return None if self.instance is None else self.instance.dsn_as(self.superuser)

    @property
    def total_s(self) -> float:
        """Return the time of all steps: the recovery time objective is measured against it."""
        return sum(timing.seconds for timing in self.timings)


def exact_stop(request: RestoreRequest) -> StopPoint:
    """Return the plan's stop.  Raises RestoreRefused if the request lacks what it needs."""
    stop = request.plan.stop
    if stop is None:
        raise RestoreRefused("the plan has no exact stop yet", hint="resolve it with the identity first")
    if request.installation is None and (request.action != "none" or request.verify_files):
        raise RestoreRefused("PostgreSQL's programs are needed", hint="install the backup's major version")
    return stop


def next_steps(
    request: RestoreRequest, done: Recovered | None, target: Path, kept: Sequence[Path] = ()
) -> tuple[str, ...]:
    """Return what a person does next, in words.  ``kept``: where the old cluster still is."""
    steps = _next_steps(request, done, target)
    return (*steps, *(f"the old cluster is kept in {path}: remove it when all is well" for path in kept))


def _next_steps(request: RestoreRequest, done: Recovered | None, target: Path) -> tuple[str, ...]:
    tool = "pg_ctl" if request.installation is None else str(request.installation.bin_dir / "pg_ctl")
    pg_ctl = shlex.join([tool, "-D", str(target)])
    if done is None:
        return (
            "if the original runs on this host, give postgresql.conf another port and other sockets first",
            f"start the server as its files' owner: {pg_ctl} start; it recovers to the target, and pauses",
            f"check it, then promote it: {pg_ctl} promote",
        )
    if request.action == "pause" and done.has_paused:
        return (
            f"the server runs, paused at the target: look at it, then promote it: {pg_ctl} promote",
            "then remove the recovery settings from postgresql.auto.conf",
        )
    return PROMOTED_STEPS


def identify(request: RestoreRequest, tablespaces: Mapping[int, Path], *, with_read_end: bool = False) -> str:
    """Return a digest of what makes two runs the same restore.

    ``with_read_end``: as it was before 2026-11-30, when an archive that had grown meanwhile made it another.
    """
    plan, stop = request.plan, request.plan.stop
    read_end = f" {stop.read_end}" if with_read_end and stop is not None else ""
    parts = [
        plan.backup.repository,
        plan.backup.backup,
        str(plan.archive),
        str(plan.timeline),
        "" if stop is None else f"{stop.target_lsn} {stop.is_inclusive} {stop.replay_end}{read_end}",
        str(request.target.absolute()),
        *(f"{oid}={place}" for oid, place in sorted(tablespaces.items())),
        *(["delta"] if request.is_delta else []),
        *([] if request.wal_dir is None else [f"pg_wal={request.wal_dir}"]),
    ]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
