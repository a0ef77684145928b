"""Full or incremental: what the next backup is to be, and what it is built on.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from pitr.catalogue.backup_record import BackupManifest
from pitr.survey import KnownBackups
from pitr.wal.lsn import LSN

BackupKind: TypeAlias = Literal["full", "incr", "auto"]
# Every incremental backup makes a restore read one more index, and one more thing that may be lost.
CHAIN_LENGTH_MAX: Final = 30


@dataclass(frozen=True, slots=True)
class NewestChain:
    """The newest backup, how many incremental ones lead to it from a full one, and when that was begun.

    ``missing`` is a backup that it is built on and that is not there, so that nothing can be built on it.
    """

    newest: BackupManifest
    length: int
    full_started_at: datetime
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """``parent`` None: a full backup.  ``reason`` says why it is not what was asked for."""

    parent: BackupManifest | None
    reason: str | None = None


def newest_chain(manifests: Iterable[BackupManifest]) -> NewestChain | None:
    """Return the chain of the newest backup; None if there is none."""
    backups = list(manifests)
    known = KnownBackups(backups)
    # One that stands for another has no note on this host; the other one has.
    newest = max(
        (each for each in backups if each.stands_for is None),
        key=lambda each: (each.stopped_at, each.backup),
        default=None,
    )
    if newest is None:
        return None
    full, length = known.named(newest.backup) or newest, 0
    while full.parent is not None and length <= len(backups):
        parent = known.named(full.parent)
        if parent is None:
            return NewestChain(newest, length, full.started_at, missing=full.parent)
        full, length = parent, length + 1
    return NewestChain(newest, length, full.started_at)


def followed_by(chain: NewestChain | None, manifest: BackupManifest) -> NewestChain:
    """Return the chain after one more backup."""
    if manifest.parent is None or chain is None:
        return NewestChain(manifest, 0, manifest.started_at)
    return NewestChain(manifest, chain.length + 1, chain.full_started_at)


def choose(
    kind: BackupKind,
    chain: NewestChain | None,
    *,
    now: datetime,
    full_every_s: float | None,
    wal_since: LSN | None,
    has_increments: bool = True,
    chain_length_max: int = CHAIN_LENGTH_MAX,
) -> Choice:
    """Decide.  ``auto`` is full when one is due, else incremental where there is something to build on.

    ``wal_since``: where the archived WAL begins that reaches the present without a hole.  Nothing is built on
    a backup from before that: nobody has seen that the server came from there, and it may have been set back.
    ``has_increments`` False: ``auto`` is always full.
    """
    if kind == "full" or (kind == "auto" and not has_increments):
        return Choice(None)
    if chain is None:
        return Choice(None, "there is no backup to build on")
    if chain.missing is not None:
        return Choice(None, f"backup {chain.missing}, which {chain.newest.backup} is built on, is missing")
    if wal_since is None or chain.newest.start_lsn < wal_since:
        return Choice(None, f"WAL after the start of backup {chain.newest.backup} is missing in the archive")
    if chain.length >= chain_length_max:
        return Choice(None, f"{chain.length} incremental backups have been built on the last full one")
    if (
        kind == "auto"
        and full_every_s is not None
        and now >= chain.full_started_at + timedelta(seconds=full_every_s)
    ):
        return Choice(None)
    return Choice(chain.newest)
