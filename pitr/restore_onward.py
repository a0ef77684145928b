"""Onward: a restore that is paused at its target goes on to a later place of the same way.

For verifications, which look at one moment and compare with the source at another, and for searches, which
look at many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pitr.datakeys import DataKeys
from pitr.errors import RestoreRefused
from pitr.fetch_desk import script_command
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import hand_over
from pitr.prefetch import Prefetcher
from pitr.recover import (
    STOP_TIMEOUT_S,
    Arrival,
    Recovered,
    Recovery,
    ReplayProgress,
    RestoreAction,
    private_settings,
)
from pitr.recovery import recovery_settings, with_recovery_settings
from pitr.recovery_certificate import Certifier
from pitr.repository import Repository
from pitr.restore_directory import AUTO_CONF
from pitr.restore_journal import WorkDirectory, remove_tree
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.restore_request import RestoreRequest
from pitr.restore_wal import recovery_timeline, write_wal_plan
from pitr.wal.timeline import TimelineId
from pitr.wal_deliveries import notes_file


@dataclass(frozen=True, slots=True)
class Onward:
    """Where a paused restore goes on to: ``plan`` is of the same backup and timeline, and stops later."""

    request: RestoreRequest
    plan: RestorePlan


def go_on(
    onward: Onward,
    instance: Instance,
    repository: Repository,
    data_keys: DataKeys,
    *,
    at_target: Callable[[Instance], None] = lambda _instance: None,
    action: RestoreAction = "promote",
    on_progress: Callable[[ReplayProgress], None] = lambda _progress: None,
    cancel: threading.Event | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Recovered:
    """Recover further; ``at_target`` is called with the server when it is paused there, then it is promoted.

    With "pause" it stays as it is, unless hot standby could not begin before the target: then it was opened.

    The instance is the caller's, before and after, and must not be used after an error.  Raises
    RestoreRefused for a plan that does not lead on, WalMissing, RecoveryFailed, StoreError.
    """
    plan, request = onward.plan, onward.request
    stop = _check(onward)
    work = WorkDirectory.of(request.target)
    instance.stop("fast", timeout_s=STOP_TIMEOUT_S)
    # What lies in the spool may end where the first plan does, and be zero from there on.
    remove_tree(work.desk.spool)
    notes_file(work.plan_file).unlink(missing_ok=True)
    work.desk.spool.mkdir(mode=0o700)
    write_wal_plan(work.plan_file, plan, stop, repository, request.regions, request.identity_file)
    timeline = recovery_timeline(plan, stop)
    _aim(request, timeline, stop)
    work.hand_over(request.user)

    file = request.certificate_file.with_name(f"onward-{request.certificate_file.name}")
    with Prefetcher(
        work.plan_file,
        lambda key: repository.read_wal(key, data_keys),
        data_dir=request.target,
        takes_spaces=request.takes_spaces,
        user=request.user,
        ahead_bytes_max=request.ahead_bytes_max,
        patience_s=request.patience_s,
    ) as feeder:
        recovery = Recovery(
            instance,
            feeder,
            Arrival(stop.replay_end),
            superuser=request.role,
            # Replay goes on in mid-way: what came before is in the first certificate.
            certifier=Certifier(file, plan, stop, feeder.path, feeder.notes, is_resumed=True),
            on_progress=on_progress,
            cancel=cancel or threading.Event(),
            at_target=at_target,
            stall_timeout_s=request.stall_timeout_s,
            monotonic=monotonic,
        )
        major, settings = instance.installation.major, dict(plan.backup.settings)
        private = private_settings(major, settings, work.path, request.target, request.server_settings)
        return recovery.run(private, action, timeline)


def _check(onward: Onward) -> StopPoint:
    """Return where it stops, if its plan leads on from the restore's.  Raises RestoreRefused."""
    plan, first = onward.plan, onward.request.plan
    is_alike = (plan.backup, plan.timeline) == (first.backup, first.timeline)
    if (
        not is_alike
        or plan.stop is None
        or first.stop is None
        or plan.stop.replay_end < first.stop.replay_end
    ):
        raise RestoreRefused("the plan does not lead on from where the restore is paused")
    return plan.stop


def _aim(request: RestoreRequest, timeline: TimelineId, stop: StopPoint) -> None:
    """Give recovery its new target."""
    auto_conf = request.target / AUTO_CONF
    text = auto_conf.read_text("utf-8", "surrogateescape")
    settings = recovery_settings(
        restore_command=script_command(WorkDirectory.of(request.target).desk.script),
        timeline=timeline,
        stop_lsn=stop.target_lsn,
        is_inclusive=stop.is_inclusive,
    )
    auto_conf.write_text(with_recovery_settings(text, settings), "utf-8", "surrogateescape")
    hand_over(auto_conf, request.user)
