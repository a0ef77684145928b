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
from verifiers.scratch import ScratchRoot
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
