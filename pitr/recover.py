"""Recovery: a private instance replays WAL to the planned LSN, and opens only if it arrived exactly there.

The instance listens on a socket of its own, archives nothing, and has a configuration of its own: what
the restored files say about addresses, libraries and archives must not reach anybody from here.

Where WAL says that the primary's limits were raised since the backup, it is started again with them.

The rule of arrival, checked against PostgreSQL 15 to 18: when replay pauses at a recovery_target_lsn,
``pg_last_wal_replay_lsn()`` is the end of the last record that was replayed.  It equals the plan's
``replay_end`` or the recovery failed.  Where hot standby cannot start before the target (its first
snapshot is incomplete), PostgreSQL does not pause but promotes; then the new timeline's history file
must say that it left the old one at ``replay_end``.
Reference: PostgreSQL src/backend/access/transam/xlogrecovery.c (recoveryPausesHere, recoveryStopsBefore).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, TypeAlias

from pitr.errors import MalformedValue, PitrError, RecoveryFailed, ServerRefused
from pitr.postgres.control import parse_control_file
from pitr.postgres.datadir import CONTROL_PATH
from pitr.postgres.instance import Instance
from pitr.postgres.primary_limits import limits_of, raised_limits
from pitr.postgres.replay import ReplayMonitor, ReplayState
from pitr.postgres.wal_folder import WalFolder
from pitr.prefetch import Prefetcher
from pitr.recovery_certificate import Certifier, Promoted, begin_of
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, history_file_name

RestoreAction: TypeAlias = Literal["promote", "pause", "none"]

STALL_TIMEOUT_S: Final = 900.0
PROMOTE_TIMEOUT_S: Final = 3600.0
STOP_TIMEOUT_S: Final = 600.0
_SIGNAL_NAME: Final = "recovery.signal"
_LOOK_S: Final = 0.1
_DOUBTS_SHOWN_MAX: Final = 3
# postgresql.auto.conf is read all the same, and an ALTER SYSTEM that suited the primary must not decide here.
_PRIVATE_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_group": "",
    "unix_socket_permissions": "0777",
    "bonjour": "off",
    "archive_mode": "off",
    "hot_standby": "on",
    "ssl": "off",
    "shared_buffers": "128MB",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    # What a server says while it starts is read.
    "lc_messages": "C",
    # Each of them ends a server that has the limits of its primary and the host of a restore.
    "wal_level": "replica",
    "superuser_reserved_connections": "3",
    "shared_memory_type": "mmap",
    "min_dynamic_shared_memory": "0",
    # Replay must not pass over damage, and what it wrote must last.
    "ignore_invalid_pages": "off",
    "ignore_checksum_failure": "off",
    "zero_damaged_pages": "off",
    "data_sync_retry": "off",
    "fsync": "on",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    # A delayed standby's, whose backup this may be, would hold each commit up for as long.
    "recovery_min_apply_delay": "0",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "warning",
    "autovacuum": "off",
    "recovery_init_sync_method": "syncfs",
    "huge_pages": "off",
    "external_pid_file": "",
    "cluster_name": "pitr restore",
}
# The same for settings that not all versions have: since which major, before which, value.
_VERSIONED_SETTINGS: Final = {
    # If there is such a file the server is promoted at once.
    "promote_trigger_file": (15, 16, ""),
    "reserved_connections": (16, 99, "0"),
    # It would look for the primary's slots, and complain of wal_level for as long as it runs.
    "sync_replication_slots": (17, 99, "off"),
    # io_uring is what a kernel, and most containers, may refuse.
    "io_method": (18, 99, "worker"),
}
# Promotion without it throws the times of all commits away (src/backend/access/transam/commit_ts.c).
_KEPT_SETTINGS: Final = ("track_commit_timestamp",)
_CONFIG_TEXT: Final = "# Private configuration of a restore.  The cluster's own is in its data directory.\n"
# Replication: a plan of replay asks for the timelines by its protocol.
_HBA_TEXT: Final = (
    "# The socket's folder is closed to everybody else.\nlocal all all trust\nlocal replication all trust\n"
)


class ArrivedElsewhere(RecoveryFailed):
    """Replay ended at another place than planned.  Going on cannot mend it; the cluster must not be used."""


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How far replay is; ``lsn`` None until the server lets us look."""

    lsn: LSN | None
    target: LSN
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where replay must arrive; ``latest_xact_at`` bounds the time of the last transaction, if known."""

    replay_end: LSN
    latest_xact_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """The end of a recovery that arrived; ``timeline`` is the one the cluster is on now."""

    replay_lsn: LSN
    last_xact_at: datetime | None
    timeline: TimelineId
    recover_s: float
    promote_s: float
    has_paused: bool


def private_settings(
    major: int, manifest_settings: Mapping[str, str], work: Path, data_dir: Path, extra: Mapping[str, str]
) -> dict[str, str]:
    """Write the private configuration files; return the settings for a command line of ``major``.

    ``manifest_settings`` are the primary's, for the limits that replay needs.
    """
    config, hba = work / "postgresql.conf", work / "pg_hba.conf"
    config.write_text(_CONFIG_TEXT, encoding="utf-8")
    hba.write_text(_HBA_TEXT, encoding="utf-8")
    return {
        "config_file": str(config),
        "hba_file": str(hba),
        "data_directory": str(data_dir),
        **limits_of(manifest_settings),
        **{name: manifest_settings[name] for name in _KEPT_SETTINGS if name in manifest_settings},
        **_PRIVATE_SETTINGS,
        **{
            name: value
            for name, (since, before, value) in _VERSIONED_SETTINGS.items()
            if since <= major < before
        },
        **extra,
    }


class Recovery:
    """One recovery of one instance.  The caller owns the instance and stops it after any error.

    ``at_target`` is called when it is paused at the target, before anything else is done with it.
    """

    def __init__(
        self,
        instance: Instance,
        feeder: Prefetcher,
        arrival: Arrival,
        *,
        superuser: str,
        certifier: Certifier,
        on_progress: Callable[[ReplayProgress], None],
        cancel: threading.Event,
        at_target: Callable[[Instance], None] = lambda _instance: None,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._instance = instance
        self._feeder = feeder
        self._arrival = arrival
        self._superuser = superuser
        self._certifier = certifier
        self._on_progress = on_progress
        self._cancel = cancel
        self._at_target = at_target
        self._stall_timeout_s = stall_timeout_s
        self._monotonic = monotonic

    def run(self, settings: Mapping[str, str], action: RestoreAction, old: TimelineId) -> Recovered:
        """Start the server, wait until it pauses at the target, check, and carry out ``action``.

        ``old`` is the timeline of the target.  With "pause" the server is left running, paused.
        Raises RecoveryFailed if it did not arrive exactly; then it must not be used.
        """
        begun, major = self._monotonic(), self._instance.installation.major
        needed = dict(settings)
        while True:
            self._start(needed)
            with ReplayMonitor(self._instance.dsn_as(self._superuser), major=major) as monitor:
                state = self._wait_for_target(monitor)
                raised = self._raised_limits(state, needed)
                if not raised:
                    return self._arrive(monitor, state, action, old, begun)
            # The restartpoint of an orderly stop spares replaying it all again.
            self._instance.stop("fast", timeout_s=STOP_TIMEOUT_S)
            needed |= raised

    def _start(self, settings: Mapping[str, str]) -> None:
        try:
            self._instance.start(settings, wait=False)
        except ServerRefused as cause:
            raise self._failed("the server could not be started", cause.detail) from cause

    def _raised_limits(self, state: ReplayState | None, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the limits with which a server that ended or paused before its target goes on.

        Each is larger than the one before it, so there is an end.
        """
        if state is not None and (not state.is_in_recovery or state.replay_lsn == self._arrival.replay_end):
            return {}
        instance = self._instance
        try:
            return raised_limits(instance.installation, instance.data_dir, instance.user, settings)
        except ServerRefused:
            return {}  # that it ended, or where it paused, is told

    def _arrive(
        self,
        monitor: ReplayMonitor,
        state: ReplayState | None,
        action: RestoreAction,
        old: TimelineId,
        begun: float,
    ) -> Recovered:
        """Check where the server is, and carry out ``action``."""
        if state is None:
            raise self._failed("recovery stopped before its target", None)
        arrived = self._monotonic()
        if state.is_in_recovery:
            replayed = self._check_arrival(state)
            self._certifier.arrived(replayed, state.last_xact_at)
            self._at_target(self._instance)
        if action == "pause" and state.is_in_recovery:
            return Recovered(
                self._arrival.replay_end, state.last_xact_at, old, arrived - begun, 0.0, has_paused=True
            )
        if state.is_in_recovery:
            self._promote()
        timeline = monitor.checkpoint()
        history, left_at = self._check_new_timeline(old, timeline)
        if not state.is_in_recovery:
            # It was opened by itself, for it let nobody in before its target; where is known only now.
            self._certifier.arrived(left_at, state.last_xact_at)
        self._certifier.promoted(Promoted(timeline, left_at, self._begin_sha256(history, left_at)))
        return Recovered(
            self._arrival.replay_end,
            state.last_xact_at,
            timeline,
            arrived - begun,
            self._monotonic() - arrived,
            has_paused=state.is_in_recovery,
        )

    def _wait_for_target(self, monitor: ReplayMonitor) -> ReplayState | None:
        """Return once replay pauses or recovery has ended, None if the server has.  Raises RecoveryFailed."""
        last_sign: tuple[LSN | None, int] | None = None
        last_sign_at = self._monotonic()
        while True:
            if not self._instance.is_running:
                return None
            if self._cancel.is_set():
                raise RecoveryFailed("the recovery was cancelled", hint="run the same restore again to go on")
            state = monitor.look()
            lsn = None if state is None else state.replay_lsn
            sign = (lsn, self._feeder.fetched_bytes)
            self._on_progress(ReplayProgress(lsn, self._arrival.replay_end, sign[1]))
            if state is not None and (state.is_paused or not state.is_in_recovery):
                return state
            now = self._monotonic()
            if sign != last_sign:
                last_sign, last_sign_at = sign, now
            elif now - last_sign_at > self._stall_timeout_s:
                raise self._failed(f"recovery has not moved for {self._stall_timeout_s:g} s", None)
            self._cancel.wait(_LOOK_S)

    def _check_arrival(self, state: ReplayState) -> LSN:
        """Return where replay stands, if that is where it was to go."""
        planned, reached = self._arrival.replay_end, state.replay_lsn
        if reached is None or reached != planned:
            raise self._failed(
                "recovery stopped elsewhere than planned", f"at {reached}, not at {planned}", ArrivedElsewhere
            )
        latest, last = self._arrival.latest_xact_at, state.last_xact_at
        if latest is not None and last is not None and last > latest:
            raise self._failed(
                "recovery replayed a transaction too many", f"it ended at {last}, after {latest}"
            )
        return reached

    def _promote(self) -> None:
        try:
            self._instance.promote(timeout_s=PROMOTE_TIMEOUT_S)
        except PitrError as cause:
            raise self._failed("the server was not promoted", cause.detail) from cause

    def _begin_sha256(self, history: TimelineHistory, left_at: LSN) -> str | None:
        """Return the digest of what the new timeline begins with, by which its cluster is known again."""
        segment_bytes = self._certifier.segment_bytes
        end = begin_of(left_at, segment_bytes)
        if end is None:
            return None
        folder = WalFolder(self._instance.data_dir / "pg_wal", segment_bytes)
        begin = folder.read_wal(left_at, end, history, history.timeline)
        return None if begin is None else hashlib.sha256(begin).hexdigest()

    def _check_new_timeline(self, old: TimelineId, new: TimelineId) -> tuple[TimelineHistory, LSN]:
        """Return the new timeline's history and where it left the old one, if that is where the plan ends."""
        file = self._instance.data_dir / "pg_wal" / history_file_name(new)
        try:
            history = TimelineHistory.parse(new, file.read_bytes())
            left_at = history.end_of(old)
        except (OSError, PitrError) as cause:
            raise self._failed(
                "the promoted cluster has no history of its timeline", str(cause), ArrivedElsewhere
            ) from cause
        if left_at != self._arrival.replay_end:
            raise self._failed(
                "the cluster was promoted elsewhere than planned",
                f"timeline {new} left {old} at {left_at}, not at {self._arrival.replay_end}",
                ArrivedElsewhere,
            )
        return history, left_at

    def _failed(
        self, message: str, detail: str | None, kind: type[RecoveryFailed] = RecoveryFailed
    ) -> RecoveryFailed:
        """Say what failed, with what the feeder could not get and why the server ended."""
        refusal = self._feeder.refusal
        if refusal is not None and not self._instance.is_running:
            return refusal
        doubts = self._feeder.doubts[:_DOUBTS_SHOWN_MAX]
        lines = [*([detail] if detail else []), *doubts, self._instance.last_log_lines()]
        return kind(
            message,
            detail="\n".join(line for line in lines if line),
            hint=f"the whole log of the server is {self._instance.log_path}",
        )


def is_promotion_cut(data_dir: Path) -> bool:
    """Tell whether a server ended after it had taken its signal file away, and before it was promoted.

    Started again it would take itself for one that crashed, and come up on the old timeline, somewhere.
    Reference: PostgreSQL src/backend/access/transam/xlog.c (StartupXLOG).
    """
    if (data_dir / _SIGNAL_NAME).exists():
        return False
    try:
        return parse_control_file((data_dir / os.fsdecode(CONTROL_PATH)).read_bytes()).is_in_archive_recovery
    except (OSError, MalformedValue):
        return False  # the server says what is wrong with it
