"""Restore: carry out a plan.  Files first, then recovery up to the planned LSN, then promotion.

Every step may be repeated after a crash: files are staged beside their place and moved there when they are
complete; recovery goes on where the server was; the journal in the work directory tells how far it came.
Nothing that was there before is overwritten; a cluster that is replaced is moved aside and stays there until
the restore has succeeded.

Not here: the plan (``pitr.planner``, ``pitr.stop``), and what a daemon does with the restored cluster: it
needs a new writer epoch before it may archive anything.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from pitr.datakeys import DataKeys
from pitr.errors import AlreadyRunning, PitrError, RecoveryFailed, RestoreRefused
from pitr.layout import PieceKey, SegmentKey
from pitr.postgres.installation import Installation
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import hand_over
from pitr.prefetch import Prefetcher
from pitr.recover import (
    STOP_TIMEOUT_S,
    Arrival,
    ArrivedElsewhere,
    Recovered,
    Recovery,
    is_promotion_cut,
    private_settings,
)
from pitr.recovery_certificate import Certifier, check_writable
from pitr.repository import Repository
from pitr.restore_again import phase_to_go_on
from pitr.restore_aim import Aim
from pitr.restore_config import config_steps
from pitr.restore_directory import (
    AUTO_CONF,
    DirectoryBuilder,
    FilesDiffer,
    remove_recovery,
    verify_directory,
)
from pitr.restore_files import ChainLink, RestoredFiles
from pitr.restore_instance import private_instance
from pitr.restore_journal import Journal, Phase
from pitr.restore_place import check_path, check_place, find_place, tablespace_locations
from pitr.restore_replace import OldCluster, find_old
from pitr.restore_request import (
    Progress,
    RestoreRequest,
    RestoreResult,
    StepTiming,
    exact_stop,
    identify,
    next_steps,
)
from pitr.restore_staged import RestorePlace
from pitr.restore_wal import recovery_timeline, write_wal_plan


def restore(
    request: RestoreRequest,
    repository: Repository,
    data_keys: DataKeys,
    *,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    cancel: threading.Event | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> RestoreResult:
    """Carry the plan out.  The same call again, after a crash or an error, goes on or begins cleanly.

    ``on_progress`` is called from several threads.  Raises RestoreRefused (nothing was written),
    WalMissing, NotAuthentic, KeyMissing, StoreError (nothing is at the target yet), RecoveryFailed (the
    target directory holds a cluster that was not promoted), AlreadyRunning.
    """
    run = _Run(request, repository, data_keys, on_progress, cancel or threading.Event(), monotonic)
    return run.run()


def check_restore(request: RestoreRequest, repository: Repository, data_keys: DataKeys) -> None:
    """Refuse what ``restore`` would refuse before its first byte, in the same words; change nothing.

    Raises RestoreRefused, AlreadyRunning.
    """
    _Run(request, repository, data_keys, lambda _progress: None, threading.Event(), time.monotonic).check()


class _PromotionCut(Exception):
    """The server of an earlier run ended in the midst of its promotion."""


class _Run:
    """One run of one restore, through the phases of its journal."""

    def __init__(
        self,
        request: RestoreRequest,
        repository: Repository,
        data_keys: DataKeys,
        on_progress: Callable[[Progress], None],
        cancel: threading.Event,
        monotonic: Callable[[], float],
    ) -> None:
        self._request = request
        self._stop = exact_stop(request)
        self._timeline = recovery_timeline(request.plan, self._stop)
        self._backup = request.plan.backup
        self._repository = repository
        self._data_keys = data_keys
        self._on_progress = on_progress
        self._cancel = cancel
        self._monotonic = monotonic
        check_path(request.target)
        self._tablespaces = tablespace_locations(self._backup, request.tablespace_mapping)
        self._place: RestorePlace = find_place(
            request.target, self._tablespaces, wal_dir=request.wal_dir, replaces=request.is_delta
        )
        self._old: OldCluster | None = None
        self._identities = tuple(
            identify(request, self._tablespaces, with_read_end=is_old) for is_old in (False, True)
        )
        self._aim = None if request.asked is None else Aim.of(request.asked, request.plan, self._stop)
        self._timings: list[StepTiming] = []
        self._files: RestoredFiles | None = None
        self._wal_bytes = 0

    def check(self) -> Phase | None:
        """Return where to go on, None for a new restore, after all that can be checked without writing."""
        work = self._place.work
        work.check_unlocked()
        phase = self._phase(work.read())
        if phase in (None, "files"):
            self._check(is_claimed=phase == "files")
        return phase

    def run(self) -> RestoreResult:
        try:
            return self._go()
        except PitrError as failure:
            if self._place.kept:
                places = ", ".join(str(path) for path in self._place.kept)
                said = f"the old cluster is kept in {places}"
                failure.detail = f"{failure.detail}; {said}" if failure.detail else said
            raise

    def _go(self) -> RestoreResult:
        work = self._place.work
        phase = self.check()
        with work.locked():
            found = work.read()
            if self._phase(found) != phase:
                raise AlreadyRunning("another restore into this directory has just run")
            if found is not None and phase not in (None, "files"):
                self._aim = found.aim or self._aim  # what was typed first, and when
            if phase == "refusing":
                self._finish_refusal(found)
            if phase == "renewing":
                self._throw_away()
                phase = "files"
            if phase in (None, "files"):
                self._files = self._make_files()
                phase = "placing"
            if phase == "placing":
                self._place_files()
            installation = self._request.installation
            if self._request.action != "none" and installation is not None:
                try:
                    return self._recover(installation, is_resumed=phase == "recovering")
                except _PromotionCut:
                    self._throw_away()
                    self._files = self._make_files()
                    self._place_files()
                    return self._recover(installation)
            self._place.forget()
            self._journal("done")
            return self._result(None, None)

    def _check(self, *, is_claimed: bool) -> None:
        segment_bytes = self._backup.segment_bytes
        if self._place.kept:
            raise RestoreRefused(
                f"{self._place.kept[0]} holds what an earlier restore replaced",
                hint="look at it, and move it away",
            )
        if self._request.is_delta:
            foreign = self._request.replaced_cluster
            self._old = find_old(self._request.target, self._tablespaces, self._backup, foreign=foreign)
        check_place(
            self._request.target,
            self._tablespaces,
            wal_dir=self._request.wal_dir,
            size_bytes=self._backup.size_bytes,
            # Replay keeps a segment or two in pg_wal beside what the spool holds.
            spool_bytes=max(self._request.ahead_bytes_max, 2 * segment_bytes) + 2 * segment_bytes,
            user=self._request.user,
            is_claimed=is_claimed,
            replaced={} if self._old is None else self._old.replaced,
        )
        if self._request.action != "none":
            check_writable(self._request.certificate_file)

    def _phase(self, found: Journal | None) -> Phase | None:
        """Return where to go on; None for a new restore.  Raises RestoreRefused."""
        return phase_to_go_on(
            found, self._place.data.final, self._identities, replaces=self._request.is_delta
        )

    def _make_files(self) -> RestoredFiles:
        request, work = self._request, self._place.work
        with self._timed("prepare"):
            self._journal("files")
            work.clear()
            work.desk.spool.mkdir(mode=0o700)
            hand_over(work.path, request.user)
            write_wal_plan(
                work.plan_file,
                request.plan,
                self._stop,
                self._repository,
                request.regions,
                request.identity_file,
            )
        with self._timed("fetch"):
            builder = DirectoryBuilder(
                [ChainLink.open(each, self._data_keys) for each in (self._backup, *request.plan.parents)],
                self._place,
                user=request.user,
                workers=request.workers,
                patience_s=request.patience_s,
                old=None if self._old is None else self._old.directory,
            )
            restored = builder.fetch(self._repository.store, self._on_progress)
            builder.add_recovery(self._timeline, self._stop, request.fetch_command)
            hand_over(work.plan_file, request.user)
            hand_over(work.desk.script, request.user)
            builder.finish()
        self._journal("placing")
        return restored

    def _place_files(self) -> None:
        with self._timed("place"):
            self._place.place()
        if self._request.verify_files and self._request.installation is not None:
            with self._timed("verify"):
                try:
                    verify_directory(self._request.installation, self._place.data.final, self._request.user)
                except FilesDiffer as cause:
                    self._refuse(cause)
                    raise

    def _throw_away(self) -> None:
        """Throw away what cannot be recovered any further, so that the files can be made again.

        What was replaced comes back first, for the files are made of it.  May be repeated.
        """
        self._journal("renewing")
        self._place.set_aside()
        self._journal("files")
        self._place.throw_away()
        self._check(is_claimed=True)

    def _recover(self, installation: Installation, *, is_resumed: bool = False) -> RestoreResult:
        request, work = self._request, self._place.work
        with private_instance(installation, self._place, request) as instance:
            if is_resumed and is_promotion_cut(self._place.data.final):
                raise _PromotionCut
            self._journal("recovering")
            settings = private_settings(
                installation.major,
                dict(self._backup.settings),
                work.path,
                self._place.data.final,
                request.server_settings,
            )
            work.hand_over(request.user)
            with Prefetcher(
                work.plan_file,
                self._read_wal,
                data_dir=self._place.data.final,
                takes_spaces=request.takes_spaces,
                user=request.user,
                ahead_bytes_max=request.ahead_bytes_max,
                patience_s=request.patience_s,
            ) as feeder:
                recovery = Recovery(
                    instance,
                    feeder,
                    self._arrival(),
                    superuser=request.role,
                    certifier=self._certifier(feeder, is_resumed=is_resumed),
                    on_progress=self._on_progress,
                    cancel=self._cancel,
                    at_target=request.at_target,
                    stall_timeout_s=request.stall_timeout_s,
                    monotonic=self._monotonic,
                )
                try:
                    done = recovery.run(settings, request.action, self._timeline)
                except ArrivedElsewhere as cause:
                    instance.stop("immediate", timeout_s=STOP_TIMEOUT_S)
                    self._refuse(cause)
                    raise
                self._wal_bytes = feeder.fetched_bytes
            self._timings += [StepTiming("recover", done.recover_s), StepTiming("promote", done.promote_s)]
            return self._end(instance, done)

    def _end(self, instance: Instance, done: Recovered) -> RestoreResult:
        """Leave the cluster as the request wants it; its recovery settings go once it is promoted."""
        is_paused = self._request.action == "pause" and done.has_paused
        is_kept = self._request.keep_running or is_paused
        if not is_paused:
            auto_conf = self._place.data.final / AUTO_CONF
            remove_recovery(auto_conf, self._request.user)
        if not is_kept:
            with self._timed("stop"):
                instance.stop("fast", timeout_s=STOP_TIMEOUT_S)
        if not is_paused:
            self._place.forget()
        self._journal("done")
        if is_kept and not is_paused:
            self._place.work.remove_feed()
        elif not is_kept:
            self._place.work.remove()
        return self._result(done, instance if is_kept else None)

    def _certifier(self, feeder: Prefetcher, *, is_resumed: bool) -> Certifier:
        file, plan = self._request.certificate_file, self._request.plan
        return Certifier(file, plan, self._stop, feeder.path, feeder.notes, is_resumed=is_resumed)

    def _arrival(self) -> Arrival:
        target = self._request.plan.target
        return Arrival(self._stop.replay_end, target.instant if target.kind == "time" else None)

    def _read_wal(self, key: PieceKey | SegmentKey) -> bytes:
        return self._repository.read_wal(key, self._data_keys)

    def _refuse(self, cause: RecoveryFailed) -> None:
        """Move what must not be used aside, so that nobody starts it; what was replaced comes back."""
        self._journal("refusing", cause.message)
        was_kept = bool(self._place.kept)
        places = ", ".join(str(path) for path in self._place.set_aside())
        self._journal("refused", f"{cause.message}; the files are in {places}")
        if was_kept:
            cause.hint = (
                f"the old cluster is at {self._place.data.final} again; {cause.hint or 'look at the log'}"
            )

    def _finish_refusal(self, found: Journal | None) -> NoReturn:
        """Go on with what a run was killed in."""
        reason = (found.reason if found is not None else None) or "recovery went elsewhere than planned"
        failure = RecoveryFailed(reason, detail="an earlier run of this restore found it out")
        self._refuse(failure)
        raise failure

    def _journal(self, phase: Phase, reason: str | None = None) -> None:
        self._place.work.write(Journal(self._identities[0], phase, reason, self._aim))

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        begun = self._monotonic()
        yield
        self._timings.append(StepTiming(step, self._monotonic() - begun))

    def _result(self, done: Recovered | None, instance: Instance | None) -> RestoreResult:
        request, files = self._request, self._files
        return RestoreResult(
            backup=self._backup.backup,
            target=self._place.data.final,
            action=request.action,
            replay_end=None if done is None else done.replay_lsn,
            last_xact_at=None if done is None else done.last_xact_at,
            timeline=self._timeline if done is None else done.timeline,
            files=self._backup.files,
            size_bytes=self._backup.size_bytes,
            fetched_bytes=0 if files is None else files.fetched_bytes,
            kept_bytes=0 if files is None else files.kept_bytes,
            wal_bytes=self._wal_bytes,
            certificate=None if done is None else request.certificate_file,
            timings=tuple(self._timings),
            has_paused=done is not None and done.has_paused,
            instance=instance,
            superuser=request.role,
            next_steps=(
                *config_steps(dict(self._backup.settings), self._place.data.final),
                *next_steps(request, done, self._place.data.final, self._place.kept),
            ),
        )
