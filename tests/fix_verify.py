"""Verifications of a history that a test has made: the request, and the run."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fix_restore import History

from pitr.catalogue.records import HeadRecord
from pitr.quorum import WriteQuorum
from pitr.recovery import RecoveryTarget
from verifiers.check import CheckResult
from verifiers.run_ids import uuid7
from verifiers.scratch import ScratchRoot
from verifiers.verify_report import Policy, ReportFacts, Sampling, Scope
from verifiers.verify_run import verify
from verifiers.verify_values import Verified, VerifyRequest

RUN = "018f0000-0000-7000-8000-000000000001"


def run_verification(
    history: History,
    folder: Path,
    target: RecoveryTarget | None = None,
    *,
    cancel: threading.Event | None = None,
    **options: Any,
) -> Verified:
    """Verify the archive of a history in ``folder``; ``options`` are fields of the request."""
    house = history.restores
    root = ScratchRoot(folder / "scratch")
    root.prepare()
    begun = time.monotonic()
    plan = house.plan(target or RecoveryTarget("latest"))
    with root.slot(), root.place(RUN, datetime.now(UTC)) as place:
        request = VerifyRequest(
            plan=plan,
            repository=house.repository,
            alone=house.repository,
            region="eu",
            data_keys=house.data_keys,
            installation=history.server.instance.installation,
            user=house.user,
            superuser="postgres",
            place=place,
            deadline_s=300.0,
            product_version="test",
        )
        return verify(replace(request, **options), begun=begun, cancel=cancel)


def facts_of(history: History) -> ReportFacts:
    """Return what a report on the newest moment says beside what a run of it found."""
    at, digest = datetime.now(UTC), "0" * 64
    return ReportFacts(
        report_id=uuid7(at, bytes(10)),
        report_type="weekly_verification",
        created_at=at,
        started_at=at,
        scheduled_at=None,
        started_by="a test",
        reason="asked for",
        scope=Scope("St. Elsewhere", "clinic"),
        policy=Policy("verify/clinic", digest, None, None, 60_000, None),
        sampling=Sampling("latest"),
        plan=history.restores.plan(RecoveryTarget("latest")),
        zone="UTC",
        region="eu",
        regions=["eu"],
        host="host",
        environment_id="scratch of host",
        writer=history.archiver.house.signer.public,
        product_version="test",
        config_sha256=digest,
        pg_binaries_sha256=None,
        verifier_name="pitr on host",
        recoverability=(),
        archive_age_ms=1000,
    )


def put_head(history: History, quorum: WriteQuorum | None = None) -> None:
    """Sign the end of the archive, as a daemon does every while."""
    archiver = history.archiver
    head = HeadRecord(
        repository=archiver.house.repository.repository_id,
        archive=archiver.house.archive,
        sequence=1,
        previous=None,
        at=datetime.now(UTC),
        timeline=archiver.timeline,
        wal_start=None,
        wal_end=None,
        piece_sequence=archiver.sequence,
        piece_sha256=archiver.previous,
        backups_count=1,
        backups_sha256=bytes(32),
        quorum=quorum,
    )
    archiver.house.repository.put_head(head, archiver.house.signer)


def outcome_of(verified: Verified, check: str) -> CheckResult:
    """Return the one result of a check."""
    (found,) = [one for one in verified.checks if one.id == check]
    return found
