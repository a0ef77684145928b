"""One verification: from the store alone into a scratch place, checked, measured, and wiped.

Whatever happens, each check of the table has a result at the end; what ended the run early is C21's failure;
and the scratch place is gone or C20 says that it is not.  Not here: which target and region, the log, and the
report.  Reference: docs/verify.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Final, NoReturn

from pitr.errors import PitrError
from pitr.postgres.cut_off import why_not_cut_off
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import readable_installation
from pitr.recover import ReplayProgress
from pitr.restore import restore
from pitr.restore_directory import FilesDiffer
from pitr.restore_files import FileProgress
from pitr.restore_onward import Onward, go_on
from pitr.restore_request import Progress, RestoreRequest, RestoreResult
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import StoreError
from verifiers.check import CheckResult
from verifiers.check_maker import CheckMaker, Judgement, passed
from verifiers.check_table import CHECKS
from verifiers.checks_data import (
    check_assertions,
    check_constraints,
    check_relations,
    looks_for_duplicates,
    unseen_indexes,
)
from verifiers.checks_events import check_events
from verifiers.checks_files import check_control, check_files, check_page_checksums
from verifiers.checks_safety import check_isolation, check_signs, check_wiped, look_at_network
from verifiers.checks_schema import check_roles, check_schema, check_versions
from verifiers.checks_source import Comparison, check_source
from verifiers.checks_store import StoreScope, StoreSeen, check_objects, check_signatures
from verifiers.checks_target import (
    check_last_commit,
    check_marker,
    check_reached,
    check_replayed_wal,
    left_at,
    look_at_target,
)
from verifiers.rot_indicators import ransomware_fields
from verifiers.scratch_server import ScratchServer
from verifiers.verify_values import (
    DeadlinePassed,
    Marks,
    Verified,
    VerifyRequest,
    failed_check,
    server_settings,
)

STOP_TIMEOUT_S: Final = 600.0


def verify(
    request: VerifyRequest,
    *,
    begun: float,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    cancel: threading.Event | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Verified:
    """Carry it out.  ``begun``: when the recovery began, planning included, by ``monotonic``.

    Raises nothing about what it examines; KeyboardInterrupt after the scratch place was wiped.
    """
    return _Verification(request, begun, on_progress, cancel or threading.Event(), monotonic).run()


class _Verification:
    """One verification; its methods run in one thread, but for the restore's progress and the wiping."""

    def __init__(
        self,
        request: VerifyRequest,
        begun: float,
        on_progress: Callable[[Progress], None],
        cancel: threading.Event,
        monotonic: Callable[[], float],
    ) -> None:
        self._request = request
        self._on_progress = on_progress
        self._cancel = cancel
        self._monotonic = monotonic
        self._begun = begun
        self._deadline = monotonic() + request.deadline_s
        self._maker = CheckMaker(request.product_version, monotonic=monotonic)
        self._marks = Marks(monotonic, begun)
        self._found = Verified()
        self._results: dict[str, list[CheckResult]] = {}
        self._instance: Instance | None = None
        # Checks between recovery and promotion are no part of the time that recovery takes.
        self._paused_s = 0.0
        self._no_namespace: str | None = None
        self._opened_on: TimelineId | None = None

    def run(self) -> Verified:
        self._marks.note("decide")
        # One other thread, which wipes: the pool's end waits for it, whatever ends the run.
        with ThreadPoolExecutor(1, "wipe") as beside:
            try:
                result = self._restore()
                if result is not None:
                    self._look(result)
                self._end(None)
            except (PitrError, StoreError, OSError) as cause:
                self._fail(cause)
            finally:
                wiping = beside.submit(self._tear_down)
            # The store is read meanwhile, for neither needs what the other does.
            self._check_store()
            removed = wiping.result()
        self._add(check_wiped(self._request.place.path, removed, self._maker))
        self._marks.note("checks_done")
        self._fill_gaps()
        self._found.marks = self._marks.found
        self._found.paused_ms = round(self._paused_s * 1000)
        self._found.checks = [one for check in CHECKS for one in self._results[check]]
        return self._found

    # -- restore

    def _restore(self) -> RestoreResult | None:
        request, plan = self._request, self._request.plan
        installation = readable_installation(
            request.installation, request.user, lambda: request.place.programs
        )
        if request.wants_network_cut:
            self._no_namespace = why_not_cut_off(request.user)
        self._marks.note("provision")
        wanted = RestoreRequest(
            plan=plan,
            target=request.place.data_dir,
            # Where it goes on to a fingerprint it is opened there.
            action="promote" if request.comparison is None else "pause",
            installation=installation,
            fetch_command=(),
            tablespace_mapping={
                str(space.oid): request.place.tablespace(space.oid) for space in plan.backup.tablespaces
            },
            user=request.user,
            superuser=request.superuser,
            # Where hot standby cannot begin before the target it opens by itself, and is looked at then.
            keep_running=True,
            workers=request.workers,
            server_settings=server_settings(plan, installation, request.preload_allowed),
            certificate=request.place.certificate,
            # All that it makes must be gone with its folder.
            takes_spaces=False,
            is_cut_off=request.wants_network_cut and self._no_namespace is None,
            at_target=self._look_at_target,
        )
        try:
            result = restore(
                wanted,
                request.repository,
                request.data_keys,
                on_progress=self._watch,
                cancel=self._cancel,
                monotonic=self._monotonic,
            )
        except FilesDiffer as cause:
            self._add(check_files(installation.version, cause, plan.backup.files, self._maker))
            raise
        self._instance = result.instance
        self._marks.note("wal_replay_done")
        total_s = self._monotonic() - self._begun - self._paused_s
        self._found.result = result
        self._opened_on = result.timeline
        if request.comparison is not None and result.has_paused and result.instance is not None:
            total_s += self._go_on(wanted, request.comparison, result.instance)
        self._marks.note("accept_writes")
        self._found.recovery_time_ms = max(0, round(total_s * 1000))
        self._add(check_files(installation.version, None, result.files, self._maker))
        return result

    def _go_on(self, wanted: RestoreRequest, comparison: Comparison, instance: Instance) -> float:
        """Go on to the fingerprint, compare there, open the server; return how long the opening took."""

        def compare(paused: Instance) -> None:
            server, plan = self._server(paused), comparison.plan
            assert plan.stop is not None, "it was resolved"
            reached = look_at_target(server, plan, None)
            self._add(check_source(server, comparison.fingerprint, reached.replay_lsn, self._maker))

        done = go_on(
            Onward(wanted, comparison.plan),
            instance,
            self._request.repository,
            self._request.data_keys,
            at_target=compare,
            on_progress=lambda progress: self._watch(progress),
            cancel=self._cancel,
            monotonic=self._monotonic,
        )
        self._opened_on = done.timeline
        return done.promote_s

    def _watch(self, progress: Progress) -> None:
        """Note what the restore comes to; called from its threads."""
        self._check_time()
        if isinstance(progress, FileProgress):
            self._marks.note("fetch_first_byte")
        elif isinstance(progress, ReplayProgress):
            self._marks.note("base_done")
            if progress.lsn is not None:
                self._marks.note("consistent")
                self._marks.note("accept_reads")
        self._on_progress(progress)

    # -- checks of the server

    def _look_at_target(self, instance: Instance, replayed: LSN | None = None) -> None:
        """Look at the server that is paused at the target; ``replayed`` is of one that was opened already."""
        self._marks.note("wal_replay_done")
        if self._request.service is not None:
            self._request.service.reached(self._server(instance).dsn)
        self._instance = instance
        began = self._monotonic()
        plan, maker = self._request.plan, self._maker
        server = self._server(instance)
        assert plan.stop is not None, "it was restored to it"
        self._found.reached = reached = look_at_target(server, plan, replayed)
        self._add(check_reached(plan, reached, maker))
        self._add(check_last_commit(plan, reached, maker))
        if self._request.marker is not None:
            marked, self._found.marker_at = check_marker(server, plan, self._request.marker, maker)
            self._add(marked)
        isolation = look_at_network(instance.pid, self._no_namespace)
        self._found.isolation = isolation
        self._add(check_isolation(server, isolation, self._request.preload_allowed, maker))
        if self._request.events is not None:
            agreed, self._found.kafka = check_events(self._request.events, server, self._check_time, maker)
            self._add(agreed)
        self._paused_s += self._monotonic() - began

    def _look(self, result: RestoreResult) -> None:
        """Look at the opened server; then stop it, and look at its files."""
        plan, maker = self._request.plan, self._maker
        instance = result.instance
        assert instance is not None, "it was to be kept running"
        if self._found.reached is None:
            # Hot standby could not begin before the target, so it did not pause there.
            self._look_at_target(instance, left_at(self._server(instance), plan))
        server = self._server(instance)
        if self._request.service is not None:
            self._request.service.opened(server)
            self._check_time()
        self._add(check_replayed_wal(self._request.place.certificate, plan, maker))
        self._found.databases = server.databases()
        self._found.closed = server.closed_databases()
        constraints = partial(check_constraints, asks_unique=not looks_for_duplicates(server))
        for check in (check_schema, check_versions, check_roles, constraints, check_relations):
            self._check_time()
            self._add(check(server, maker))
        for one in check_assertions(server, self._request.assertions, maker):
            self._add(one)
        unseen = unseen_indexes(server)
        if unseen is not None:
            self._found.limits.append(unseen)
        instance.stop("fast", timeout_s=STOP_TIMEOUT_S)
        self._check_time()
        self._add(check_control(server, plan.archive.system_identifier, self._opened_on, maker))
        self._add(check_page_checksums(server, plan.backup, maker))

    def _server(self, instance: Instance) -> ScratchServer:
        return ScratchServer(instance, self._request.superuser, self._left_s)

    # -- the end

    def _tear_down(self) -> int:
        """Stop the server and remove everything; what cannot be removed is C20's finding."""
        try:
            if self._instance is not None:
                self._instance.kill()
            return self._request.place.wipe()
        except (PitrError, OSError) as cause:
            self._found.failure = self._found.failure or str(cause)
            return 0

    def _check_store(self) -> None:
        request = self._request
        scope = StoreScope(
            request.plan,
            request.repository,
            request.alone,
            request.region,
            request.data_keys,
            datetime.now(UTC),
            self._check_time,
        )
        seen = StoreSeen(len(scope.chain))
        self._add(check_signatures(scope, self._maker, seen))
        for one in check_objects(scope, self._maker, seen):
            self._add(one)
        found, backup = self._found, request.plan.backup
        found.listed, found.manifests_ok, found.commitment_ok = (
            seen.listed,
            seen.manifests_ok,
            seen.commitment_ok,
        )
        if seen.late:
            found.limits.append(
                f"{len(seen.late)} WAL objects of the last minutes were not in region {request.region} yet:"
                " C02 and C03 did not read them there"
            )
        self._add(check_signs(backup, request.backups, self._maker))
        found.ransomware = ransomware_fields(backup, request.backups)

    def _fail(self, cause: Exception) -> None:
        """Say which check the restore's failure is a failure of; C21's it always is."""
        text = str(cause)
        if isinstance(cause, PitrError) and cause.detail:
            text = f"{cause.message}: {cause.detail}"
        self._found.failure = text
        check = failed_check(cause)
        if check is not None and check not in self._results:
            self._add(self._maker.run(check, "restore", lambda: _raise(cause)))
        self._end(cause)

    def _end(self, cause: Exception | None) -> None:
        """C21: without it a run that proved half of it would look like one that found nothing wrong."""

        def judge() -> Judgement:
            if cause is not None:
                raise cause
            return passed(CHECKS["C21"].title, "the server was restored, looked at and stopped")

        self._add(self._maker.run("C21", "restore, look at the server, and stop it", judge))

    def _fill_gaps(self) -> None:
        """Give each check that did not run a result that says so."""
        why = "the restore or the time did not reach it"
        if self._found.failure is not None:
            why = f"{why}: {self._found.failure.splitlines()[0]}"
        for check, spec in CHECKS.items():
            if check not in self._results:
                reasons = {}
                if self._request.events is None:
                    reasons["C16"] = "no Kafka topic is configured"
                if self._request.comparison is None:
                    reasons["C11"] = self._request.why_no_comparison
                reason = reasons.get(check, why) if not spec.is_required else why
                self._add(self._maker.skipped(check, reason))

    def _add(self, result: CheckResult) -> None:
        self._results.setdefault(result.id.partition(".")[0], []).append(result)

    def _left_s(self) -> float:
        return max(0.0, self._deadline - self._monotonic())

    def _check_time(self) -> None:
        """Raise DeadlinePassed when the time is up or somebody has cancelled."""
        if self._cancel.is_set():
            raise DeadlinePassed("the verification was cancelled")
        if self._monotonic() > self._deadline:
            raise DeadlinePassed(
                f"the verification took longer than {self._request.deadline_s:g} s",
                hint="set [verify] deadline",
            )


def _raise(cause: Exception) -> NoReturn:
    raise cause
