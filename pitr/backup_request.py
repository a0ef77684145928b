"""What a base backup is asked to be, who writes it, and who vouches for its WAL.  Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from pitr.backup_pace import Pace
from pitr.backup_parent import ParentBackup
from pitr.catalogue.lease_record import Holder
from pitr.layout import ArchiveId
from pitr.lease_terms import LeaseTerms
from pitr.pipeline.keys import Recipient
from pitr.pipeline.pack_writer import PACK_BYTES_DEFAULT
from pitr.pipeline.sign import Signer
from pitr.priority import Priority
from pitr.repository import Repository
from pitr.strain import StrainBounds
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

WORKERS_MAX: Final = 64
# Packs being built, waiting and on their way, all together.
_PACKS_BYTES_MAX: Final = 128 * 1024 * 1024
_PACK_BYTES_MIN: Final = 4 * 1024 * 1024


class WalGate(Protocol):
    """Waits until all WAL of ``timeline`` from ``start`` to ``end`` is at quorum.

    Returns False if it is not after ``timeout_s``; may raise a PitrError if it never will be.
    """

    def __call__(self, timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """What to back up and how.  ``data_dir`` if it lies elsewhere here than the server says.

    ``fast_checkpoint`` starts at once, with a burst of writes.  ``parent``: what an incremental backup is
    built on; ``compare_pages`` reads every page for it although the server has WAL summaries.
    ``full_because``: why there is no parent though there should be one.
    ``notes_dir``: where the host keeps what it needs to build on this one.  ``holder`` has the lease
    meanwhile; None is somebody without a name.  ``pace`` may be changed meanwhile; None: at full speed.
    Copying pauses while the server is beyond ``strain``, for ``pause_max_s`` in all.  Packs have about
    ``pack_bytes_max`` at most.
    """

    dsn: str
    archive: ArchiveId
    label: str
    data_dir: Path | None = None
    workers: int = 2
    puts_in_flight: int = 2
    fast_checkpoint: bool = True
    use_direct_io: bool = True
    wal_timeout_s: float = 600.0
    parent: ParentBackup | None = None
    compare_pages: bool = False
    full_because: str | None = None
    notes_dir: Path | None = None
    holder: Holder | None = None
    lease: LeaseTerms = field(default_factory=LeaseTerms)
    pace: Pace | None = None
    priority: Priority = field(default_factory=Priority)
    strain: StrainBounds = field(default_factory=StrainBounds)
    pause_max_s: float = 43_200.0
    pack_bytes_max: int = PACK_BYTES_DEFAULT

    def __post_init__(self) -> None:
        if not 0 < self.workers <= WORKERS_MAX or not 0 < self.puts_in_flight <= WORKERS_MAX:
            raise ValueError(f"workers and puts in flight must be from 1 to {WORKERS_MAX}")

    @property
    def pack_bytes(self) -> int:
        """The size of packs that keeps memory bounded with so many of them at hand."""
        share = _PACKS_BYTES_MAX // (self.workers + self.puts_in_flight)
        return min(self.pack_bytes_max, max(_PACK_BYTES_MIN, share))


@dataclass(frozen=True, slots=True)
class BackupWriter:
    """Who writes the backup, and for whom."""

    repository: Repository
    signer: Signer
    recipients: Sequence[Recipient]
