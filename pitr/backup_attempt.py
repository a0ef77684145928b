"""The frame of one attempt at a base backup: the lease around it, how it fails, and the wait for its WAL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from pitr.backup_puts import failed_by
from pitr.backup_request import BackupWriter, WalGate
from pitr.catalogue.lease_record import Holder
from pitr.errors import AlreadyRunning, BackupFailed, PitrError
from pitr.layout import ArchiveId, backup_lease
from pitr.lease import Lease
from pitr.lease_terms import LeaseTerms
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import StoreError

# In short waits, so that the backup can be cancelled.
_WAL_WAIT_S: Final = 1.0


@contextmanager
def backup_attempt(
    writer: BackupWriter,
    archive: ArchiveId,
    holder: Holder | None,
    *,
    terms: LeaseTerms,
    clock: Callable[[], datetime],
    random: Callable[[int], bytes],
    cancel: threading.Event,
) -> Iterator[Lease]:
    """Hold the archive's lease on backups inside; ``holder`` None is somebody without a name.

    Raises AlreadyRunning if another holds it; what else fails, here or inside, is raised as BackupFailed.
    """
    lease = Lease(
        writer.repository,
        writer.signer,
        archive,
        backup_lease(archive),
        holder or Holder("unnamed", 0, random(8).hex()),
        terms=terms,
        clock=clock,
        cancel=cancel,
    )
    try:
        lease.take()
        yield lease
    except AlreadyRunning:
        raise
    except (PitrError, StoreError, OSError) as failure:
        raise failed_by(failure) from failure
    finally:
        lease.release()


def await_wal(
    wait_for_wal: WalGate,
    timeline: TimelineId,
    start: LSN,
    stop: LSN,
    *,
    timeout_s: float,
    monotonic: Callable[[], float],
    watch: Callable[[], None],
) -> None:
    """Return once the WAL that a backup needs is at quorum; ``watch`` is called meanwhile, and may raise.

    Raises BackupFailed if it is not after ``timeout_s``.
    """
    deadline = monotonic() + timeout_s
    while True:
        watch()
        rest_s = deadline - monotonic()
        if wait_for_wal(timeline, start, stop, max(0.0, min(rest_s, _WAL_WAIT_S))):
            return
        if rest_s <= 0:
            raise BackupFailed(
                "the WAL that the base backup needs did not reach a quorum in time",
                detail=f"Needed is {start} to {stop} on timeline {timeline.number}, within {timeout_s:g} s.",
                hint="look with `pitr status` whether WAL is streaming and the regions answer",
            )
