"""The verifier's log and its key, opened: where intents, outcomes and reports go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.config import may_be_there
from cli.key_files import read_signing_key
from cli.lock import RunLock
from cli.regions import open_regions, open_writing
from cli.settings import Settings
from cli.verify_settings import VerifySettings
from pitr.errors import AlreadyRunning, KeyMissing
from storage.repair import RepairQueue
from verifiers.audit_log import AuditLog
from verifiers.log_memory import LogMemory

if TYPE_CHECKING:
    from pitr.pipeline.sign import Signer
    from storage.replicated import ReplicatedStore

# Verifications, drills and fingerprints at once, over all scratch folders.
WRITERS_MAX: Final = 8
_CLOSE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """The log, and the store that it is written to."""

    log: AuditLog
    store: ReplicatedStore


def verifier_key(verify: VerifySettings) -> Signer:
    """Read the verifier's key.  Raises KeyMissing."""
    if not may_be_there(verify.key_file):
        raise KeyMissing(
            f"there is no verifier's key {verify.key_file}",
            detail="reports are signed by a key of their own, not by the host's",
            hint="pitr verifier init",
        )
    return read_signing_key(verify.key_file)


@contextmanager
def open_log(settings: Settings, verify: VerifySettings) -> Iterator[OpenedLog]:
    """Open the log for writing at quorum.  Raises KeyMissing, StoreError, AlreadyRunning, PitrError."""
    signer = verifier_key(verify)
    verify.work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with own_number(verify.work_dir) as number:
        queue = RepairQueue(verify.work_dir / f"repair-{number}.sqlite")
        store = open_writing(open_regions(settings.regions), settings.repository.quorum, queue)
        try:
            memory = LogMemory(verify.work_dir / f"log-{signer.public.key_id}-{number}.jsonl")
            yield OpenedLog(AuditLog(store, settings.repository.repository, signer, memory=memory), store)
        finally:
            store.close(_CLOSE_S)
            queue.close()


@contextmanager
def own_number(work_dir: Path) -> Iterator[int]:
    """Give a number for files that one process alone has while it holds it, and hold it.

    A scratch folder's slot is none: runs with other scratch folders have the same one at the same time.
    Raises AlreadyRunning.
    """
    for number in range(1, WRITERS_MAX + 1):
        lock = RunLock(work_dir / f"files-{number}.lock", whose="verifier")
        try:
            lock.acquire()
        except AlreadyRunning:
            continue
        try:
            yield number
        finally:
            lock.release()
        return
    raise AlreadyRunning(
        f"{WRITERS_MAX} writers of the verifier's log run already",
        detail=f"in {work_dir}",
        hint="wait until one has ended",
    )
